"""scripts/benchmarks/two_checkouts.py: what both checkouts measure side by side, or a sentence."""

import json
from pathlib import Path

import pytest
import two_checkouts
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_row_has_both_checkouts(tmp_path, capsys):
    for number in range(8):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (9, 7), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    sources, output = [str(tmp_path / "images")], tmp_path / "found.json"
    tiny = ["--image_sizes", "8", "--batch_size", "4", "--num_workers", "0", "--seconds", "0", "--rounds", "1"]
    where = ["--before", str(ROOT), "--after", str(ROOT), "--datasets", *sources, "--output", str(output)]
    assert two_checkouts.main([*where, *tiny]) == 0
    rows = json.loads(output.read_text())["results"]
    assert {row["part"] for row in rows} == {"reader", "stream"}
    assert all(len(row["before"]) == len(row["after"]) == 1 and row["before"][0] > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--before", "nowhere", "--datasets", "digits"], "`before` must be the folder of a checkout, got `nowhere`"),
        (["--before", str(ROOT), "--after", str(ROOT)], "`datasets` must name at least one data set"),
        (
            ["--before", str(ROOT), "--after", str(ROOT), "--datasets", "a", "b", "c", "--image_sizes", "8", "9"],
            "one for each of `datasets`, got 2 for 3",
        ),
        (
            ["--before", str(ROOT), "--after", str(ROOT), "--datasets", "nothing_here", "--rounds", "1"],
            "failed on `nothing_here`: .*nothing_here",
        ),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        two_checkouts.main(arguments)
