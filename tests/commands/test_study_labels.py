"""`hf-ssl study labels`: what pretraining is worth, by share of the labels; going on, and what it refuses."""

import importlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import hf_ssl
from hf_ssl.commands import main
from hf_ssl.errors import UserError
from hf_ssl.fine_tuning.task import FineTuning
from hf_ssl.studies import labels as study
from hf_ssl.studies.labels import LabelRun, names_of, table_of

SMALL = ["--dataset", "digits", "--num_steps", "4", "--batch_size", "64", "--num_workers", "0"]
SMALL += ["--fractions", "1", "0.02"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("encoder") / "run"
    given: dict[str, Any] = {"method": "simsiam", "recipe": "quickstart", "dataset": "digits", "knn_images": 50}
    hf_ssl.pretrain(**given, encoder="test_resnet", num_steps=2, batch_size=16, num_workers=0, output_dir=str(run))
    return run


@pytest.fixture(scope="module")
def finished(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    assert run(folder, encoder, "--seeds", "2") == 0
    return folder


def run(folder: Path, encoder: Path | str, *arguments: str) -> int:
    return main(["study", "labels", str(encoder), *SMALL, "--output_dir", str(folder), *arguments])


def runs_in(folder: Path) -> list[dict]:
    return json.loads((folder / "labels.json").read_text())["runs"]


def test_every_share_of_the_labels_is_trained_scored_and_drawn(finished: Path):
    runs = runs_in(finished)
    assert [(one["seed"], one["fraction"], one["start"]) for one in runs] == [
        (seed, fraction, start) for seed in (0, 1) for fraction in (0.02, 1.0) for start in ("scratch", "simsiam")
    ]
    assert {(one["fraction"], one["images"]) for one in runs} == {(0.02, 30), (1.0, 1437)}
    table = (finished / "labels.md").read_text().splitlines()
    assert table[0] == "| start | 2 % (30 images) | 100 % (1,437 images) |"
    assert [line.split("|")[1].strip() for line in table[2:]] == ["scratch", "simsiam"]
    with Image.open(finished / "labels.png") as image:
        assert min(image.size) > 300


def test_a_run_is_what_fine_tuning_gives(finished: Path, encoder: Path, tmp_path: Path):
    alone = hf_ssl.fine_tune(
        str(encoder),
        dataset="digits",
        label_fraction=0.02,
        test_split="test",
        num_steps=4,
        batch_size=30,
        base_learning_rate=1e-3,
        num_workers=0,
        seed=1,
        output_dir=str(tmp_path / "alone"),
    )
    chosen = {"seed": 1, "fraction": 0.02, "start": "simsiam"}
    (same,) = [one for one in runs_in(finished) if chosen.items() <= one.items()]
    assert same["accuracy"] == alone.accuracy


def test_a_killed_study_continues_to_the_same_numbers(
    finished: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    original = FineTuning.after_optimizer_step
    steps = []

    def kill_at_the_sixth(task: FineTuning, *arguments: Any) -> None:
        original(task, *arguments)
        steps.append(1)
        if len(steps) == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(FineTuning, "after_optimizer_step", kill_at_the_sixth)
        assert run(tmp_path, encoder) == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM after 1 of 4 runs. The same command continues." in capsys.readouterr().err
    assert not (tmp_path / "labels.json").exists()
    assert run(tmp_path, encoder) == 0
    expected = [one for one in runs_in(finished) if one["seed"] == 0]
    assert [one["accuracy"] for one in runs_in(tmp_path)] == [one["accuracy"] for one in expected]
    monkeypatch.setattr(study, "fine_tune", lambda *_: pytest.fail("trained again"))
    assert run(tmp_path, encoder) == 0


def test_a_table_has_means_and_standard_deviations():
    runs = [LabelRun("scratch", 0.1, seed, 50, value, 1.0) for seed, value in enumerate((0.3, 0.5))]
    runs += [LabelRun("moco", 0.1, 0, 50, 0.7, 1.0)]
    lines = table_of(runs).splitlines()
    assert lines[2:] == ["| scratch | 40.0 ± 14.1 |", "| moco | 70.0 |"]


def test_encoders_have_short_names_that_differ(encoder: Path, tmp_path: Path):
    assert names_of([str(encoder), "resnet18.a1_in1k"]) == {
        "simsiam": str(encoder),
        "resnet18.a1_in1k": "resnet18.a1_in1k",
    }
    inner = str(encoder / "encoder")
    assert names_of([str(encoder), inner]) == {"run (1)": str(encoder), "run (2)": inner}
    other = str(shutil.copytree(encoder, tmp_path / "other"))
    assert names_of([str(encoder), other]) == {"run": str(encoder), "other": other}  # without the folders above them


@pytest.mark.parametrize("inside", ["", "labels", "encoder"])
def test_a_folder_in_a_run_is_refused(encoder: Path, inside: str, capsys: pytest.CaptureFixture):
    before = sorted(encoder.rglob("*"))
    assert run(encoder / inside, encoder) == 2
    assert f"`output_dir` `{encoder / inside}` lies in the run `" in capsys.readouterr().err
    assert sorted(encoder.rglob("*")) == before


def test_advice_that_a_study_cannot_follow_says_so(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (16, 16), (number, 9, 200)).save(tmp_path / "data" / split / label / f"{number}.png")
    for number in range(5):  # which decoding finds out, not opening
        file = tmp_path / "data" / "train" / "a" / f"{number}.png"
        file.write_bytes(file.read_bytes()[:50] + bytes(30))
    flags = ["--dataset", str(tmp_path / "data"), "--fractions", "1", "--output_dir", str(tmp_path / "out")]
    assert main(["study", "labels", str(encoder), *SMALL, *flags, "--batch_size", "4"]) == 2
    told = capsys.readouterr().err
    assert "or raise `max_skipped_ratio`" in told
    assert "(A study has no `max_skipped_ratio`: its runs have the recipe's, or the default.)" in told


@pytest.mark.parametrize("name", ["augmentation", "curriculum", "dictionaries"])
def test_every_study_says_what_it_has_no_setting_for(name: str, tmp_path: Path, monkeypatch, capsys):
    def refuse():
        raise UserError("The loss was not finite. Give `max_grad_norm`.")

    monkeypatch.setattr(importlib.import_module(f"hf_ssl.studies.{name}"), "check_one_process", refuse)
    assert main(["study", name, "--dataset", "digits", "--output_dir", str(tmp_path)]) == 2
    assert "(A study has no `max_grad_norm`: its runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fractions", "0", "1"], "`fractions` must be above 0 and at most 1"),
        (["--seeds", "0"], "`seeds` must be at least 1, got 0"),
        (["--test_split", "train"], "`split` and `test_split` are both `train`"),
        (["--learning_rate", "-1"], "`learning_rate` must be positive"),
        (["--test_split", "holdout"], "holdout"),
    ],
)
def test_wrong_commands_are_refused_before_anything_is_written(
    encoder: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
):
    assert run(tmp_path, encoder, *arguments) == 2
    assert message in capsys.readouterr().err
    assert run(tmp_path, "no-such-encoder") == 2
    assert "no-such-encoder" in capsys.readouterr().err
    assert main(["study", "labels", str(encoder), str(encoder), *SMALL, "--output_dir", str(tmp_path)]) == 2
    assert "`encoders` must be different" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
