"""`hf-ssl extract`: a folder that datasets reads, or a sentence; the same from Python."""

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

import hf_ssl
from hf_ssl.commands import main
from hf_ssl.data.sources.open import open_source
from hf_ssl.evaluation.encoders import load_encoder
from hf_ssl.evaluation.features import extract_features
from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS

SCRIPTS = Path(__file__).parents[2] / "scripts"


def extract(words):
    """Exit code of the command."""
    return main(["extract", *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    method = METHODS["simsiam"]
    folder = tmp_path_factory.mktemp("runs") / "first"
    export_run(method(method.config_class(architecture="test_resnet", image_size=32, projection_dim=8)), folder)
    return str(folder)


ARGUMENTS = ["--dataset", "digits", "--num_workers", "0", "--rows_per_shard", "100"]


@pytest.fixture(scope="module")
def features(run, tmp_path_factory):
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


def test_splits_with_names_of_their_own_are_found(run, tmp_path, capsys):
    for split in ("train", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
        Image.new("L", (20, 40), 77).save(tmp_path / "in" / split / "one.png")
    data = ["--dataset", str(tmp_path / "in"), "--split", "train", "test", "--num_workers", "0"]
    extract([f"raw:{run}", *data, "--output", str(tmp_path / "out"), "--dtype", "float16"])
    table = datasets.load_dataset(str(tmp_path / "out"))
    assert {split: rows.num_rows for split, rows in table.items()} == {"train": 1, "test": 1}
    assert table["test"].column_names == ["row_id", "path", "embedding"]  # labels are not needed
    assert table["test"].features["embedding"] == datasets.List(datasets.Value("float16"), length=3 * 32 * 32)
    assert "split test: 1 rows of row_id, path, embedding (3072 x float16)" in capsys.readouterr().out


def test_the_same_command_again_computes_nothing_and_other_settings_are_refused(run, features, monkeypatch, capsys):
    before = content_of(features)
    again = [run, *ARGUMENTS, "--split", "test", "--output", str(features), "--index", "faiss"]
    monkeypatch.setattr("hf_ssl.commands.extract.extract_shards", lambda *_, **__: 1 / 0)
    assert extract(again) == 0
    assert content_of(features) == before
    assert extract([*again, "--max_images", "7"]) == 2
    assert "with `max_images` None, not 7. Choose another `output`, or add" in capsys.readouterr().err
    assert content_of(features) == before


def test_python_reads_the_same_folder(run, features):
    result = hf_ssl.extract_features(
        run, dataset="digits", num_workers=0, rows_per_shard=100, split="test", output=features, index="faiss"
    )
    assert (result.folder, result.rows, result.url) == (features, {"test": 360}, None)
    assert result.columns == datasets.load_dataset(str(result.folder), split="test").column_names
    assert (result.dim, result.dtype) == (load_encoder(run).dim, "float32")
    with pytest.raises(hf_ssl.UserError, match="holds features with `dtype` float32, not float16"):
        hf_ssl.extract_features(
            run, dataset="digits", num_workers=0, rows_per_shard=100, split="test", output=features, dtype="float16"
        )


HELD = """
import sys, threading
from hf_ssl.commands import program
from hf_ssl.features import extract

last, write_shard = sys.argv.pop(1), extract.write_shard

def held(path, *content):
    if path.name == last:
        threading.Event().wait()
    write_shard(path, *content)

extract.write_shard = held
program("extract")
"""


def launch(processes, *arguments, program=(str(SCRIPTS / "extract.py"),)):
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
        [sys.executable, "-m", *launcher, *program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_killed_processes_leave_a_folder_that_others_complete(run, tmp_path, monkeypatch):
    arguments = [run, "--dataset", "digits", "--rows_per_shard", "8", "--batch_size", "4", "--num_workers", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    monkeypatch.setattr(sys, "argv", ["hf-ssl", "extract", *arguments, "--output", str(whole)])
    extract(sys.argv[2:])
    shards = len(list(whole.glob("data/*")))
    wanted = random.randrange(1, shards // 2)
    (tmp_path / "held.py").write_text(HELD)  # which never writes the last shard
    held = (str(tmp_path / "held.py"), max(path.name for path in whole.glob("data/*")))
    process = launch(2, *arguments, "--output", str(killed), program=held)
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
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert f"{there} shards of split `train` are there." in printed
    ours, theirs = content_of(killed), content_of(whole)
    cards = ours.pop("README.md").replace(b"/killed", b"/whole"), theirs.pop("README.md")
    assert ours == theirs
    first, second = (card.split(b"<!--")[0].splitlines() for card in cards)
    differing = [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]]
    assert len(differing) == 1  # the command
    assert differing[0][0].startswith(b"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 ")
    assert differing[0][1].startswith(b"hf-ssl extract ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "validation"], "`digits` has no split `validation`"),
        (["--batch_sise", "3"], "Unknown flag `--batch_sise`. Did you mean `--batch_size`?"),
        (["--batch_size", "0"], "`batch_size` must be at least 1, got 0"),
        (["--rows_per_shard", "0"], "`rows_per_shard` must be at least 1, got 0"),
        (["--dtype", "float23"], "`dtype` must be one of float32, float16, got `float23`. Did you mean `float32`?"),
        (["--output", "features.parquet"], "`output` is a folder of parquet files, got `features.parquet`"),
        (["--private"], "`private` is for what is pushed. Add `--push ORG/NAME`"),
        (["--push", "a/b/c"], "`repo_id` must be `org/name`"),
        (["--index", "annoy"], "`index` must be faiss or faiss:FACTORY, got `annoy`"),
        (["--index", "faiss:Flut"], "faiss cannot make the index `Flut`"),
    ],
)
def test_wrong_input_is_named(run, tmp_path, capsys, arguments, message):
    output = tmp_path / "features"
    assert extract([run, *ARGUMENTS, "--output", str(output), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_push_is_complete_and_a_second_one_changes_nothing(online, run, tmp_path, capsys):
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


def test_a_push_that_fails_leaves_the_folder_and_the_command(online, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    words = [run, *ARGUMENTS, "--split", "test", "--max_images", "50", "--output", str(tmp_path / "out")]
    command = ["hf-ssl", "extract", *words, "--push", "org/features"]
    monkeypatch.setattr(sys, "argv", command)
    assert extract(command[2:]) == 4
    assert f"are intact; then: {' '.join(command)}" in capsys.readouterr().err
    assert (tmp_path / "out" / "README.md").is_file()
