"""`hf-ssl study dictionaries`: the whole laboratory tiny, going on where it was, foretelling, and what it refuses."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_ssl.commands import main
from hf_ssl.methods.moco import MoCoForPreTraining
from hf_ssl.studies import dictionaries_bench as bench

SMALL = ["--dataset", "digits", "--num_steps", "7", "--num_workers", "0", "--knn_images", "100", "--look_every", "2"]
AXES = ["--num_images", "128", "--queue_size", "64", "--batch_size", "16", "--momentum", "0.99"]
FAST = ["--methods", "moco", "--momentum", "0", "0.99", "--learning_rate", "0.4"]
FOUR = ["end_to_end", "end_to_end-two", "memory_bank", "moco"]


def run(folder: Path, *arguments: str) -> int:
    return main(["study", "dictionaries", *SMALL, *AXES, "--output_dir", str(folder), *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    assert run(folder) == 0 and run(folder, *FAST) == 0
    return folder


def runs_in(folder: Path) -> list[dict]:
    return json.loads((folder / "dictionaries.json").read_text())["runs"]


def test_all_mechanisms_are_trained_measured_and_drawn(finished: Path):
    runs = runs_in(finished)
    methods = [one["cell"]["method"] for one in runs]
    assert methods[0] == "fresh" and sorted(methods[1:]) == sorted([*FOUR, "moco", "moco"])
    for one in runs[1:]:
        measured, method = one["measured"], one["cell"]["method"]
        assert 0 <= measured["knn"] <= 1 and measured["loss"] > 0 and measured["step_milliseconds"] > 0
        assert [look["step"] for look in measured["looks"]] == [0, 2, 4, 6]
        ages = [(look["ages"], look["keys"], look["queries"], look["entries"]) for look in measured["looks"]]
        assert all(len({len(each) for each in lists}) == 1 for lists in ages)
        assert measured["looks"][-1]["false_share"] is not None
        assert (measured["dictionary_bytes"] == 0) == (method == "end_to_end")
    table = (finished / "dictionaries.md").read_text()
    assert table.count("\n| ") == 7
    assert "averaging a bank's values does not make them fresher" in table
    for name in ("aging.png", "negatives.png"):
        with Image.open(finished / name) as image:
            assert min(image.size) > 400


def test_all_mechanisms_start_from_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = {}

    class Stopped:
        signal = int(signal.SIGINT)

    def keep(task):
        name = str(task.settings.output_dir)
        weights = task.model.state_dict().items()
        started[name] = {key: value.clone() for key, value in weights if key.startswith(("encoder", "projector"))}
        return Stopped

    monkeypatch.setattr(bench, "run_task", keep)
    for method in FOUR:
        assert run(tmp_path, "--methods", method) == 128 + signal.SIGINT
    first, *others = (list(weights.values()) for weights in started.values())
    assert len(others) == 3 and len(first) > 10
    for other in others:
        assert len(first) == len(other) and all(map(torch.equal, first, other))


def test_a_finished_study_trains_nothing_and_says_the_same(finished: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(task):
        raise AssertionError("trained again")

    monkeypatch.setattr(bench, "run_task", refuse)
    before = {name: (finished / name).read_text() for name in ("dictionaries.json", "dictionaries.md")}
    # A smaller question does not take away what is there.
    assert run(finished, *FAST) == 0
    assert {name: (finished / name).read_text() for name in before} == before


def test_table_and_figures_come_from_the_results_file_alone(finished: Path, tmp_path: Path):
    results = str(finished / "dictionaries.json")
    assert main(["study", "dictionaries", "--drawn_from", results, "--output_dir", str(tmp_path)]) == 0
    for name in ("dictionaries.json", "dictionaries.md"):
        assert (tmp_path / name).read_text() == (finished / name).read_text()
    assert (tmp_path / "aging.png").exists()


def test_a_killed_run_begins_again_and_comes_to_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    original = MoCoForPreTraining.after_optimizer_step

    def kill_after_three(model, step: int, num_steps: int):
        original(model, step, num_steps)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    few = ["--methods", "moco"]
    with monkeypatch.context() as patched:
        patched.setattr(MoCoForPreTraining, "after_optimizer_step", kill_after_three)
        assert run(tmp_path, *few) == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM after 1 of 2 runs. The same command continues." in capsys.readouterr().err
    assert run(tmp_path, *few) == 0
    (again,) = [one for one in runs_in(tmp_path) if one["cell"]["method"] == "moco"]
    (before,) = [one for one in runs_in(finished) if one["cell"] == again["cell"]]
    for one in (again, before):
        one["measured"].pop("step_milliseconds")
    assert again == before


def test_staleness_is_foretold_before_the_runs_and_never_after(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    asked = ["--methods", "moco", "--momentum", "0.9", "--queue_size", "32", "64", "--fit_from", str(finished)]
    asked += ["--fit_steps", "4"]
    assert run(tmp_path, *asked, "--predict_only") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.json", "settings.json"]
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert len(predictions["foretold"]) == 2 and len(predictions["fitted"]) == 3 and predictions["until"] == 4
    text = (tmp_path / "predictions.json").read_text()
    assert run(tmp_path, *asked) == 0
    out = capsys.readouterr().out
    assert "Foretold: 2 settings. Choice for a bound of 0.9: queue" in out
    assert "over 2 settings that were not fitted" in out and "The choice has" in out
    assert (tmp_path / "predictions.json").read_text() == text
    record = json.loads((tmp_path / "dictionaries.json").read_text())
    assert record["score"]["settings"] == 2 and record["predictions"]["choice"] == predictions["choice"]
    for name in ("aging.png", "foretold.png", "grid.png"):
        assert (tmp_path / name).exists()
    assert run(tmp_path, *asked, "--bound", "0.5") == 2
    assert "predictions are not changed afterwards" in capsys.readouterr().err
    (tmp_path / "predictions.json").unlink()
    assert run(tmp_path, *asked) == 2
    assert "what is known cannot be foretold" in capsys.readouterr().err


def test_a_folder_keeps_one_choice_of_settings(finished: Path, capsys: pytest.CaptureFixture):
    assert run(finished, "--num_steps", "8") == 2
    assert "have `num_steps` 7, got 8. Give another `output_dir`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda looks: looks[0].update(step="first"), "`runs.1.measured.looks.0.step`"),
        (lambda looks: looks[-1].pop("keys"), "it lacks `runs.1.measured.looks."),
    ],
)
def test_results_that_were_changed_are_named(finished: Path, tmp_path: Path, change, message: str, capsys):
    record = json.loads((finished / "dictionaries.json").read_text())
    run_of_moco = next(one for one in record["runs"] if one["measured"]["looks"])
    change(run_of_moco["measured"]["looks"])
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(record))
    assert main(["study", "dictionaries", "--drawn_from", str(changed), "--output_dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "mocco"], "Unknown method `mocco`. Did you mean `moco`?"),
        (["--momentum", "1.5"], "`momentum` must be in [0, 1], got 1.5"),
        (["--batch_size", "18"], "`batch_size` must be a multiple of 4, got 18"),
        (["--learning_rate", "0"], "`learning_rate` must be positive, got 0.0"),
        (["--queue_size", "8"], "`queue_size` must be at least the batch size, 16, got 8. Raise it"),
        (["--num_images", "99999"], "images of split `train` of `digits`, got 99999"),
        (["--bound", "1"], "`bound` must be above 0 and below 1, got 1.0"),
        (["--num_steps", "1"], "`num_steps` must be at least 2, got 1"),
        (["--predict_only"], "`predict_only` needs `fit_from`"),
        (["--fit_from", "nowhere"], "study dictionaries`, but `nowhere` is not there. Name the"),
        (["--fit_from", "."], "but `.` holds no finished run of `moco`. Name the `output_dir`"),
        (["--knn_split", "train"], "`split` and `knn_split` are both `train`"),
        (["--drawn_from", "nothing.json"], "draws what is there, so `dataset` and "),
    ],
)
def test_wrong_commands_are_refused_before_anything_is_trained(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
):
    assert run(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*/seed*"))


def test_a_data_set_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["study", "dictionaries", "--output_dir", str(tmp_path)]) == 2
    assert "`dataset` is needed" in capsys.readouterr().err
