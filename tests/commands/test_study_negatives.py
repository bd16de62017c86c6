"""`hf-ssl study negatives`: all methods tiny, going on where it was, and what it refuses."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_ssl.commands import main
from hf_ssl.studies import negatives as study
from hf_ssl.studies import supervised

SMALL = ["--dataset", "digits", "--num_steps", "4", "--batch_size", "16", "--num_workers", "0"]
SMALL += ["--queue_size", "64", "--num_hard_negatives", "16", "--num_mixed_negatives", "8"]
SMALL += ["--num_mixed_queries", "4", "--start_step", "1", "--eval_images", "120"]
METHODS = ["moco_v2", "mochi", "moco_v2-oracle", "mochi-oracle", "supervised"]


def run(folder: Path, *arguments: str) -> int:
    return main(["study", "negatives", *SMALL, "--output_dir", str(folder), *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    assert run(folder) == 0
    return folder


def measured_in(folder: Path) -> dict[str, dict]:
    return {one["method"]: one["measured"] for one in json.loads((folder / "negatives.json").read_text())["runs"]}


def test_all_methods_are_trained_measured_and_drawn(finished: Path):
    measured = measured_in(finished)
    assert list(measured) == ["fresh", *METHODS]
    for method, numbers in measured.items():
        assert 0 <= numbers["linear"] <= 1 and 0 <= numbers["knn"] <= 1
        assert 0 <= numbers["class_alignment_h"] <= 4 and numbers["uniformity_h"] < 0
        assert (numbers["uniformity_z"] is None) == (method == "supervised")
        assert (numbers["false_negative_share"] is None) == (method in ("fresh", "supervised"))
        assert (numbers["contrast_accuracy_with_mixed"] is None) == (not method.startswith("mochi"))
    # Each has trained something else; mixing starts with the second of four steps.
    assert len({numbers["class_alignment_h"] for numbers in measured.values()}) == 6
    record = json.loads((finished / "negatives.json").read_text())
    assert record["chance"] == pytest.approx(0.1, abs=2e-3)
    assert len(record["claims"]) == 12 and all(len(claim["holds"]) == 1 for claim in record["claims"])
    table = (finished / "negatives.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:8]] == ["fresh", *METHODS]
    assert all(line.count("|") == 12 for line in table[:8])
    assert "Chance for `own class`" in table[9] and table[10].startswith("- Claim: the oracle raises MoCo v2's")
    for name in ("plane.png", "study.png", "matching.png"):
        with Image.open(finished / name) as image:
            assert min(image.size) > 400


def test_results_are_drawn_again(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    results = json.loads((finished / "negatives.json").read_text())
    logged = {one["method"]: one["log"] for one in results["runs"]}
    assert logged["fresh"] == logged["supervised"] == {} and logged["mochi"]["step"] == [1, 2, 3, 4]
    line = json.loads((finished / "mochi" / "seed0" / "metrics.jsonl").read_text().splitlines()[2])
    for name in ("match_probability_rank_1", "match_probability_rank_64", "contrast_accuracy_with_mixed"):
        assert logged["mochi"][name][2] == pytest.approx(line[name], rel=1e-3)
    assert results["command"].endswith(" --output_dir FOLDER") and str(finished.parent) not in json.dumps(results)
    words = ["study", "negatives", "--output_dir", str(tmp_path / "out"), "--drawn_from"]
    assert main([*words, str(finished / "negatives.json")]) == 0
    assert (tmp_path / "out" / "negatives.md").read_text() == (finished / "negatives.md").read_text()
    assert "- Claim: the oracle raises MoCo v2's linear accuracy" in capsys.readouterr().out
    for name in ("plane.png", "study.png", "matching.png"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes()
    first = results["runs"][0]
    for content, message in (
        ({**results, "study": "methods"}, "its `study` is 'methods'"),
        ({**results, "runs": []}, "`runs` is empty"),
        ({**results, "runs": [{**first, "method": "moko"}]}, "has a method `moko`, which the study does not know"),
        (
            {**results, "runs": [{**first, "log": {"step": [1, 2], "loss": [1.0]}}]},
            "must have a number for each `step`",
        ),
        ({**results, "runs": [{"method": "fresh"}]}, "it lacks `runs.0.seed`. Name its negatives.json."),
    ):
        (tmp_path / "x.json").write_text(json.dumps(content))
        assert main([*words, str(tmp_path / "x.json")]) == 2
        assert message in capsys.readouterr().err


def test_it_needs_images_unless_it_draws(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["study", "negatives", "--output_dir", str(tmp_path)]) == 2
    assert "`dataset` is needed" in capsys.readouterr().err


def test_methods_share_their_settings_but_for_oracle_and_mixtures(finished: Path):
    configs, trainings = {}, {}
    for method in METHODS[:4]:
        run_json = json.loads((finished / method / "seed0" / "run.json").read_text())
        configs[method], trainings[method] = run_json["config"], run_json["training"]
    differing = {name for name in configs["mochi"] if len({str(each[name]) for each in configs.values()}) > 1}
    assert differing == {"class_oracle", "num_mixed_negatives", "num_mixed_queries"}
    assert [configs[method]["class_oracle"] for method in METHODS[:4]] == ["measure", "measure", "mask", "mask"]
    assert [configs[method]["num_mixed_negatives"] for method in METHODS[:4]] == [0, 8, 0, 8]
    supervised = json.loads((finished / "supervised" / "seed0" / "run.json").read_text())
    for name in ("num_steps", "batch_size", "lr_schedule", "weight_decay", "optimizer_momentum"):
        assert supervised["training"][name] == trainings["mochi"][name]


def test_a_finished_study_trains_nothing_and_says_the_same(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def refuse(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(study, "train", refuse)
    monkeypatch.setattr(supervised, "fine_tune", refuse)
    before = {name: (finished / name).read_text() for name in ("negatives.json", "negatives.md")}
    assert run(finished) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:7]] == ["method", "fresh", *METHODS]
    assert {name: (finished / name).read_text() for name in before} == before
    with pytest.raises(AssertionError, match="trained again"):
        run(finished, "--seeds", "2", "--methods", "supervised")


def test_supervised_training_starts_from_the_same_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = {}

    class Stopped:
        signal = int(signal.SIGINT)

    def keep(name, module):
        started[name] = {key: value.clone() for key, value in module.state_dict().items()}
        return Stopped

    monkeypatch.setattr(study, "train", lambda model, *_: keep("mochi", model.encoder))
    monkeypatch.setattr(supervised, "fine_tune", lambda classifier, *_: keep("supervised", classifier.module))
    for method in ("mochi", "supervised"):
        assert run(tmp_path, "--methods", method) == 128 + signal.SIGINT
    assert len(started["mochi"]) > 10
    for name, value in started["mochi"].items():
        assert torch.equal(value, started["supervised"][name]), name


def test_a_killed_run_continues_to_the_same_numbers(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    original = study.MoCHiForPreTraining.after_optimizer_step

    def kill_after_two(model, step: int, num_steps: int):
        original(model, step, num_steps)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(study.MoCHiForPreTraining, "after_optimizer_step", kill_after_two)
        assert run(tmp_path, "--methods", "mochi") == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM after 1 of 2 runs. The same command continues." in capsys.readouterr().err
    assert (tmp_path / "mochi" / "seed0" / "checkpoints" / "step-000002").is_dir()
    assert not (tmp_path / "mochi" / "seed0" / "result.json").exists()
    assert run(tmp_path, "--methods", "mochi") == 0
    assert measured_in(tmp_path) == {name: measured_in(finished)[name] for name in ("fresh", "mochi")}


def test_a_folder_keeps_one_choice_of_settings(finished: Path, capsys: pytest.CaptureFixture):
    assert run(finished, "--num_steps", "5") == 2
    assert "have `num_steps` 4, got 5. Give another `output_dir`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "moco"], "Unknown method `moco`. Did you mean `moco_v2`?"),
        (["--methods", "x"], "Unknown method `x`. Known: moco_v2, mochi,"),
        (["--seed", "2"], "Unknown flag `--seed`. Did you mean `--seeds`?"),
        (["--num_steps", "0"], "`num_steps` must be at least 1, got 0"),
        (["--test_split", "train"], "`split` and `test_split` are both `train`"),
        (["--supervised_learning_rate", "0"], "`supervised_learning_rate` must be positive, got 0.0"),
        (["--num_hard_negatives", "65"], "`num_hard_negatives` must be at most `queue_size`, 64, got 65"),
        (["--view_recipe", "moco"], "`view_recipe` must be the name of a recipe, got `moco`"),
        (["--test_split", "validation"], "`digits` has no split `validation`"),
    ],
)
def test_wrong_commands_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
):
    assert run(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_data_set_without_labels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    for split in ("train", "test"):
        (tmp_path / "plain" / split).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "plain" / split / "one.png")
    assert run(tmp_path / "out", "--dataset", str(tmp_path / "plain")) == 2
    assert "has no label column of integers or classes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
