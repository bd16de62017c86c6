"""scripts/benchmarks/data.py: rows of every part and a JSON file, or a sentence."""

import json

import data as benchmark
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(20):
        Image.new("RGB", (9, 7), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


TINY = ["--image_size", "8", "--batch_size", "4", "--seconds", "0", "--num_workers", "1"]


@pytest.mark.slow
def test_every_part_gives_rows_and_the_file_says_of_which_machine(folder, tmp_path, capsys):
    output = tmp_path / "data.json"
    arguments = ["--dataset", str(folder), *TINY, "--repeats", "1", "3", "--output", str(output)]
    assert benchmark.main(arguments) == 0
    written = json.loads(output.read_text())
    rows = written["results"]
    assert list(dict.fromkeys(row["part"] for row in rows)) == list(benchmark.PARTS)
    assert all(row["value"] > 0 for row in rows)
    memory = [row["what"] for row in rows if row["part"] == "memory"]
    assert memory == ["1 x, 16 records", "3 x, 56 records"]
    printed = capsys.readouterr().out.splitlines()
    for line, row in zip(printed, rows, strict=True):
        assert line.startswith(row["part"]) and row["what"] in line and row["unit"] in line
    assert written["machine"]["cpu"] and {"torch", "pyarrow"} <= written["machine"]["versions"].keys()
    assert (written["data"]["dataset"], written["settings"]["image_size"]) == (str(folder), 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "memori"], r"Unknown part `memori`. Known: decode, .* Did you mean `memory`\?"),
        (["--only", "memory"], "`memory` repeats files, but `digits` is no file or folder"),
        (["--only", "views", "--compare", "lightly", "--view_recipe", "shapes"], "needs a recipe that lightly has"),
        (["--batch_size", "0"], "`batch_size` must be at least 1, got 0"),
        (["--repeats", "0"], "`repeats` must be at least 1, got 0"),
        (["--batch_sise", "3"], r"Unknown flag `--batch_sise`. Did you mean `--batch_size`\?"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmark.main(["--dataset", "digits", *arguments])
