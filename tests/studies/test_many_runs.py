"""What studies share: a folder of one choice of settings, and results that are read again."""

import json
import multiprocessing
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import hf_ssl
from hf_ssl.commands import main
from hf_ssl.commands.simulate import COMMAND as SIMULATE
from hf_ssl.commands.study import COMMAND as STUDY
from hf_ssl.errors import UserError
from hf_ssl.studies import many_runs
from hf_ssl.studies.ablation_grid import Cell
from hf_ssl.studies.ablation_theory import Measured as AblationMeasured
from hf_ssl.studies.ablation_theory import Run as AblationRun
from hf_ssl.studies.ablation_theory import Start, Theory
from hf_ssl.studies.dictionaries_runs import Cell as DictionaryCell
from hf_ssl.studies.labels import LabelRun
from hf_ssl.studies.many_runs import claim_folder, finished_run
from hf_ssl.studies.methods import _COMMON, MethodsSettings
from hf_ssl.studies.methods_report import MethodRun
from hf_ssl.studies.negatives_measures import Measured, Run
from hf_ssl.studies.reproduce_report import FinishedRun
from hf_ssl.training.output import RESULTS, make_results_folder

NUMBERS = {"linear": 0.5, "knn": 0.4, "view_alignment_h": 1.0, "class_alignment_h": 1.0, "uniformity_h": -2.0}
STUDIES: list[tuple[Any, dict[str, Any]]] = [
    (MethodRun("moco_v2", 0, 0.5, 0.6, 10.0, "abc"), {"linear": "0.6"}),
    (MethodRun("random", 0, 0.5, 0.6, 0.0), {"seed": 0.5}),
    (LabelRun("scratch", 0.1, 0, 50, 0.3, 1.0), {"images": None}),
    (FinishedRun("a", 0, "digits", {"knn": 0.5}, None, 4, 1.0, {}), {"values": {"knn": "high"}}),
    (Run(method="mochi", seed=0, measured=Measured(**NUMBERS)), {"measured": {**NUMBERS, "knn": [1]}}),
    (
        AblationRun(
            cell=Cell(),
            seed=0,
            start=Start(
                noise=0.1, correlation=[0.5], predictor=[1], spread=1, projection_rank=2, representation_rank=3
            ),
            theory=Theory(
                expected="no", num_modes=1, num_survivors=1, variance_left=1, critical_weight_decay=0.5, reason="so"
            ),
            measured=AblationMeasured(
                knn=None, knn_random=0.1, loss=1, spread=1, projection_rank=2, representation_rank=2, seconds=5
            ),
        ),
        {"cell": {"predictor": "quadratic"}},
    ),
]


@pytest.mark.parametrize(("run", "change"), STUDIES, ids=[type(run).__qualname__ + str(c) for run, c in STUDIES])
def test_a_result_is_read_again_or_what_is_wrong_in_it_is_named(tmp_path: Path, run: Any, change: dict[str, Any]):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(run.record() if hasattr(run, "record") else asdict(run)))
    assert finished_run(path, type(run), seed=0) == run
    with pytest.raises(UserError, match="its `seed` is 0, and the folder is of 1. Remove the file, and the same"):
        finished_run(path, type(run), seed=1)
    content = json.loads(path.read_text())
    (name,) = change
    first = next(iter(content))
    wrong = [content | change, {key: value for key, value in content.items() if key != first}, [1]]
    for broken, named in zip(wrong, (name, f"it lacks `{first}`", "must hold a JSON object"), strict=True):
        path.write_text(json.dumps(broken))
        with pytest.raises(UserError) as refused:
            finished_run(path, type(run))
        message = str(refused.value)
        assert message.startswith(f"`{path}` is not the result of a run of this study: ") and named in message
        assert message.endswith("Remove the file, and the same command measures that run again.")


def test_a_folder_of_an_older_version_has_the_defaults(tmp_path: Path):
    settings = MethodsSettings(dataset="digits", output_dir=tmp_path, num_steps=4)
    source = settings.data_of({}).open()
    claim_folder(tmp_path, settings, _COMMON, source)
    stored = json.loads((tmp_path / "settings.json").read_text())
    older = {name: value for name, value in stored.items() if name not in ("supervised_learning_rate", "eval_images")}
    (tmp_path / "settings.json").write_text(json.dumps(older))
    claim_folder(tmp_path, settings, _COMMON, source)  # and now they are written
    assert json.loads((tmp_path / "settings.json").read_text()) == stored
    (tmp_path / "settings.json").write_text(json.dumps(older))
    other = MethodsSettings(dataset="digits", output_dir=tmp_path, num_steps=4, supervised_learning_rate=0.5)
    with pytest.raises(UserError, match="have `supervised_learning_rate` 0.1, got 0.5"):
        claim_folder(tmp_path, other, _COMMON, source)


def test_of_two_that_begin_in_a_folder_at_once_the_first_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each has its own settings; without waiting for each other both would write theirs and train."""
    first, second = (MethodsSettings(dataset="digits", output_dir=tmp_path, num_steps=steps) for steps in (4, 5))
    source = first.data_of({}).open()
    write, refused = many_runs.write_json, []

    def claim_second() -> None:
        try:
            claim_folder(tmp_path, second, _COMMON, source)
        except UserError as error:
            refused.append(str(error))

    other = threading.Thread(target=claim_second)

    def write_while_another_begins(path: Path, content: dict[str, Any]) -> None:
        monkeypatch.setattr(many_runs, "write_json", write)
        other.start()
        other.join(0.2)  # it would be done by now, if it did not wait
        write(path, content)

    monkeypatch.setattr(many_runs, "write_json", write_while_another_begins)
    claim_folder(tmp_path, first, _COMMON, source)
    other.join()
    assert len(refused) == 1 and "have `num_steps` 4, got 5" in refused[0]
    assert json.loads((tmp_path / "settings.json").read_text())["num_steps"] == 4


def test_commands_with_the_same_settings_share_a_folder_from_the_first_second(tmp_path: Path):
    settings = MethodsSettings(dataset="digits", output_dir=tmp_path / "new", num_steps=4)
    source = settings.data_of({}).open()
    fork = multiprocessing.get_context("fork")
    begin = fork.Barrier(4)

    def claim() -> None:
        begin.wait()
        for _ in range(25):
            claim_folder(tmp_path / "new", settings, _COMMON, source)

    children = [fork.Process(target=claim) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["settings.json"]


@pytest.mark.parametrize(("began", "said"), [("0.0.1", "hf_ssl 0.0.1"), (None, "did not record its version")])
def test_a_folder_that_another_version_began_says_so_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, began: str | None, said: str
):
    settings = MethodsSettings(dataset="digits", output_dir=tmp_path, num_steps=4)
    source = settings.data_of({}).open()
    claim_folder(tmp_path, settings, _COMMON, source)
    path = tmp_path / "settings.json"
    stored = json.loads(path.read_text())
    assert stored["hf_ssl"] == hf_ssl.__version__ and not caplog.records
    del stored["hf_ssl"]
    path.write_text(json.dumps(stored if began is None else stored | {"hf_ssl": began}))
    for _ in range(2):
        caplog.clear()
        claim_folder(tmp_path, settings, _COMMON, source)
        assert said in caplog.text and f"this is hf_ssl {hf_ssl.__version__}" in caplog.text


def test_settings_that_are_nearly_equal_have_folders_of_their_own():
    assert len({Cell(weight_decay=decay).folder for decay in (0.1234567, 0.1234568, 4e-4, 1e-7)}) == 4
    assert Cell(weight_decay=4e-4).folder == "linear-ema-decay-0.0004"
    cell = {"method": "moco", "queue_size": 8, "batch_size": 4, "num_images": 8, "learning_rate": 0.12}
    folders = {DictionaryCell(**cell, momentum=momentum).folder for momentum in (0.9, 0.9999999, 1.0)}
    assert folders == {f"moco-m{text}-q8-b4-n8-lr0.12" for text in ("0.9", "0.9999999", "1")}


@pytest.mark.parametrize("study", ["ablation", "augmentation", "curriculum", "dictionaries"])
def test_refused_predictions_leave_a_new_folder_as_it_was(study: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "predictions.json").write_text('{"study": "another"}')
    words = ["--dataset", "digits", "--num_steps", "2", "--batch_size", "8", "--num_workers", "0"]
    assert main(["study", study, *words, "--output_dir", str(tmp_path)]) == 2
    assert "predictions of this study: it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]


def test_every_study_and_simulation_knows_its_folder_again():
    """What each writes is named after it, but for the table of `reproduce`."""
    names = {name.replace("-", "_") for name in (*STUDY.kinds, *SIMULATE.kinds)}
    assert {"reproduction" if name == "reproduce" else name for name in names} <= {*RESULTS}


OTHER_FILES = [
    ["simulate", "phase_portrait", "--output_dir", "FOLDER"],
    ["analyze", "random:test_resnet", "--dataset", "digits", "--max_images", "2", "--output", "FOLDER"],
    ["study", "methods", "--dataset", "digits", "--output_dir", "FOLDER"],
    ["study", "negatives", "--drawn_from", "model_cards/results/negatives.json", "--output_dir", "FOLDER"],
    ["study", "curriculum", "--drawn_from", "model_cards/results/curriculum.json", "--output_dir", "FOLDER"],
]


@pytest.mark.parametrize("words", OTHER_FILES, ids=lambda words: " ".join(words[:2]))
def test_a_folder_of_other_files_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str]
):
    photo = tmp_path / "cat" / "1.png"
    photo.parent.mkdir()
    photo.write_text("mine")
    assert main([str(tmp_path) if word == "FOLDER" else word for word in words]) == 2
    assert f"{tmp_path}` is not empty and holds no results: it has `cat`. Give another" in capsys.readouterr().err
    assert [*tmp_path.iterdir(), *photo.parent.iterdir()] == [photo.parent, photo]


def test_settings_of_another_program_are_refused(tmp_path: Path):
    (tmp_path / "settings.json").write_text('{"theme": "dark"}')
    settings = MethodsSettings(dataset="digits", output_dir=tmp_path, num_steps=4)
    with pytest.raises(UserError, match="settings.json` is not of a study: it lacks `dataset`"):
        claim_folder(tmp_path, settings, _COMMON, settings.data_of({}).open())
    assert (tmp_path / "settings.json").read_text() == '{"theme": "dark"}'


def test_pictures_are_drawn_twice_and_beside_those_of_others(tmp_path: Path):
    for study in ("curriculum", "negatives", "curriculum"):
        drawn = ["--drawn_from", f"model_cards/results/{study}.json", "--output_dir", str(tmp_path)]
        assert main(["study", study, *drawn]) == 0
    assert {"curriculum.png", "negatives.md"} <= {path.name for path in tmp_path.iterdir()}


def test_a_study_takes_over_runs_that_were_made_before_it(tmp_path: Path):
    (tmp_path / "directpred-100" / "seed0").mkdir(parents=True)
    (tmp_path / "directpred-100" / "seed0" / "run.json").write_text("{}")
    make_results_folder(tmp_path, "output_dir")


def test_a_study_in_the_folder_of_images_is_refused(tmp_path: Path):
    settings = MethodsSettings(dataset=str(tmp_path), output_dir=tmp_path / "study", num_steps=4)
    source = MethodsSettings(dataset="digits", output_dir=tmp_path, num_steps=4).data_of({}).open()
    with pytest.raises(UserError, match="`output_dir` .* lies in the data set"):
        claim_folder(settings.output_dir, settings, _COMMON, source)
