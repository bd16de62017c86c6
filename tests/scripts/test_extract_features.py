"""scripts/extract_features.py and scripts/search.py: a folder that datasets reads, its neighbours, or a sentence."""

import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import datasets
import psutil
import pytest
import torch
from PIL import Image

from hf_ssl.data.decode import decode
from hf_ssl.data.rows import RowReader
from hf_ssl.data.sources import open_source
from hf_ssl.evaluation.features import extract_features, load_encoder
from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS

SCRIPTS = Path(__file__).parents[2] / "scripts"


def main_of(name):
    spec = importlib.util.spec_from_file_location(f"{name}_script", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def extract():
    return main_of("extract_features")


@pytest.fixture(scope="module")
def search():
    return main_of("search")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return new_run(tmp_path_factory.mktemp("runs") / "first")


def new_run(folder):
    method = METHODS["simsiam"]
    export_run(method(method.config_class(architecture="test_resnet", image_size=32, projection_dim=8)), folder)
    return str(folder)


ARGUMENTS = ["--dataset", "digits", "--num_workers", "0", "--rows_per_shard", "100"]


@pytest.fixture(scope="module")
def features(extract, run, tmp_path_factory):
    """Features of the test split, with an index."""
    output = tmp_path_factory.mktemp("features") / "new"
    assert extract([run, *ARGUMENTS, "--split", "test", "--output", str(output), "--index", "faiss"]) == 0
    return output


def content_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_the_features_and_the_class_names(run, features):
    table = datasets.load_dataset(str(features), split="test")
    expected = extract_features(load_encoder(run), open_source("digits", split="test"), batch_size=100)
    torch.testing.assert_close(torch.tensor(table["embedding"][:]), expected.features, atol=1e-6, rtol=0)
    assert table["row_id"][:] == list(range(360))
    assert table["label"][:] == expected.labels["label"].tolist()
    assert table.features["label"].names == [str(digit) for digit in range(10)]
    names = {f"data/test-0000{number}.parquet" for number in range(4)}
    assert set(content_of(features)) == names | {"features.json", "README.md", "index/test.faiss"}


def test_splits_with_names_of_their_own_are_found(extract, run, tmp_path, capsys):
    for split in ("train", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
        Image.new("L", (20, 40), 77).save(tmp_path / "in" / split / "one.png")
    data = ["--dataset", str(tmp_path / "in"), "--split", "train", "test", "--num_workers", "0"]
    extract([f"raw:{run}", *data, "--output", str(tmp_path / "out"), "--dtype", "float16"])
    table = datasets.load_dataset(str(tmp_path / "out"))
    assert {split: rows.num_rows for split, rows in table.items()} == {"train": 1, "test": 1}
    assert table["test"].column_names == ["row_id", "embedding"]  # labels are not needed
    assert table["test"].features["embedding"] == datasets.List(datasets.Value("float16"), length=3 * 32 * 32)
    assert "split test: 1 rows of row_id, embedding (3072 x float16)" in capsys.readouterr().out


def test_the_same_command_again_computes_nothing_and_other_settings_are_refused(extract, run, features, monkeypatch):
    before = content_of(features)
    again = [run, *ARGUMENTS, "--split", "test", "--output", str(features), "--index", "faiss"]
    monkeypatch.setitem(extract.__globals__, "extract_shards", lambda *_, **__: 1 / 0)
    extract(again)
    assert content_of(features) == before
    with pytest.raises(ValueError, match="with `max_images` None, not 7. Choose another `--output`, or add"):
        extract([*again, "--max_images", "7"])
    assert content_of(features) == before


def launch(processes, *arguments):
    """Start the script in processes of its own."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    launcher = [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(processes),
        "--main_process_port",
        "0",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, str(SCRIPTS / "extract_features.py"), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_killed_processes_leave_a_folder_that_others_complete(extract, run, tmp_path):
    arguments = [run, "--dataset", "digits", "--rows_per_shard", "8", "--batch_size", "4", "--num_workers", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    extract([*arguments, "--output", str(whole)])
    shards = len(list(whole.glob("data/*")))
    wanted = random.randrange(1, shards // 2)
    process = launch(2, *arguments, "--output", str(killed))
    try:
        while len(list(killed.glob("data/train-*.parquet"))) < wanted:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.001)
    finally:
        # Not the group: the launcher gives each process a session of its own, in which it would live on.
        everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in everyone:
            one.kill()
        psutil.wait_procs(everyone)
        process.wait()
    there = len(list(killed.glob("data/train-*.parquet")))
    assert wanted <= there < shards
    process = launch(2, *arguments, "--output", str(killed))
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert f"{there} shards of split `train` are there." in printed
    ours, theirs = content_of(killed), content_of(whole)
    cards = ours.pop("README.md").replace(b"/killed", b"/whole"), theirs.pop("README.md")
    assert ours == theirs
    assert cards[0].split(b"<!--")[0] == cards[1].split(b"<!--")[0]


def test_images_find_themselves_and_their_kind(search, features, tmp_path, capsys):
    rows = RowReader(open_source("digits", split="test")).images([5, 300])
    names = [str(tmp_path / f"{row}.png") for row in rows]
    for name, image in zip(names, rows.values(), strict=True):
        Image.fromarray(decode(image)).save(name)
    figure = tmp_path / "figures" / "neighbours.png"
    assert search([*names, "--index", str(features), "--k", "3", "--figure", str(figure)]) == 0
    by_index = capsys.readouterr().out
    labels = datasets.load_dataset(str(features), split="test")["label"]
    for name, row in zip(names, rows, strict=True):
        first = by_index.split(f"\n{name}\n")[1].splitlines()[1].split()
        assert first == ["1", "1.0000", str(row), str(labels[row])]
    assert min(Image.open(figure).size) > 200
    search([*names, "--index", str(features), "--k", "3", "--exact"])
    assert by_index.startswith(capsys.readouterr().out)


def test_an_encoder_or_data_set_that_has_moved_is_named(search, features, run, tmp_path, capsys):
    Image.new("L", (8, 8), 99).save(tmp_path / "one.png")
    copy = tmp_path / "features"
    copy.mkdir()
    for path in features.iterdir():
        if path.is_dir():
            (copy / path.name).symlink_to(path)
    record = json.loads((features / "features.json").read_text())
    record["encoder"]["name"] = "./gone"
    record["dataset"]["dataset"] = "./gone"
    (copy / "features.json").write_text(json.dumps(record))
    words = [str(tmp_path / "one.png"), "--index", str(copy), "--figure", str(tmp_path / "figure.png")]
    with pytest.raises(ValueError, match="encoder `./gone`, which is not at hand: .* where it is by `--encoder`"):
        search(words)
    with pytest.raises(ValueError, match="no file or folder `./gone`"):
        search([*words, "--encoder", run])
    with pytest.raises(ValueError, match="`shapes` is not the data set whose features"):
        search([*words, "--encoder", run, "--dataset", "shapes"])
    torch.manual_seed(7)
    with pytest.raises(ValueError, match="are of another encoder than .* is now"):
        search([*words, "--encoder", new_run(tmp_path / "second")])
    search([*words, "--encoder", run, "--dataset", "digits"])
    assert (tmp_path / "figure.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png"], "`none.png` cannot be read as an image: missing file. Give another"),
        (["README"], "`README` cannot be read as an image: not an image"),
        (["--k", "0"], "`--k` must be at least 1, got 0"),
        (["--kk", "3"], r"Unknown flag `--kk`. Did you mean `--k`\?"),
        (["--split", "train"], "has no features of split `train`. It has: test"),
        (["--index", "./none"], "There is no folder `./none`"),
        (["--index", "."], "holds no features"),
    ],
)
def test_wrong_input_of_a_search_is_named(search, features, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("README").write_text("text")
    Image.new("L", (8, 8)).save("one.png")
    with pytest.raises(ValueError, match=message):
        search(["one.png", "--index", str(features), *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "validation"], "`digits` has no split `validation`"),
        (["--batch_sise", "3"], r"Unknown flag `--batch_sise`. Did you mean `--batch_size`\?"),
        (["--batch_size", "0"], "`--batch_size` must be at least 1, got 0"),
        (["--rows_per_shard", "0"], "`--rows_per_shard` must be at least 1, got 0"),
        (["--output", "features.parquet"], "`--output` is a folder of parquet files, got `features.parquet`"),
        (["--private"], "`--private` is for what is pushed. Add `--push ORG/NAME`"),
        (["--push", "a/b/c"], "`repo_id` must be `org/name`"),
        (["--index", "annoy"], "`--index` must be faiss or faiss:FACTORY, got `annoy`"),
        (["--index", "faiss:Flut"], "faiss cannot make the index `Flut`"),
    ],
)
def test_wrong_input_is_named(extract, run, tmp_path, arguments, message):
    output = tmp_path / "features"
    with pytest.raises(ValueError, match=message):
        extract([run, *ARGUMENTS, "--output", str(output), *arguments])
    assert not output.exists()


def test_a_push_is_complete_and_a_second_one_changes_nothing(extract, online, run, tmp_path, capsys):
    words = [run, *ARGUMENTS, "--split", "test", "--max_images", "50", "--output", str(tmp_path / "out")]
    extract([*words, "--push", "org/features", "--private"])
    repo = online.repos["datasets/org/features"]
    assert repo.private
    files = online.files("datasets/org/features")
    assert set(files) == {"README.md", "features.json", "data/test-00000.parquet"}
    assert b'load_dataset("org/features"' in files["README.md"]
    assert files["data/test-00000.parquet"] == (tmp_path / "out" / "data" / "test-00000.parquet").read_bytes()
    number = len(repo.commits["main"])
    extract([*words, "--push", "org/features", "--private"])
    assert len(repo.commits["main"]) == number
    assert "Pushed to " in capsys.readouterr().out


def test_a_push_that_fails_leaves_the_folder_and_the_command(extract, online, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    words = [run, *ARGUMENTS, "--split", "test", "--max_images", "50", "--output", str(tmp_path / "out")]
    with pytest.raises(RuntimeError, match=r"are intact; then: python scripts/extract_features.py .*--push"):
        extract([*words, "--push", "org/features"])
    assert (tmp_path / "out" / "README.md").is_file()
