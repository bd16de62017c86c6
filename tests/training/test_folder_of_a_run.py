"""Folders that hold something already: only a run goes on, and only an empty folder begins one."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_loop import DATA, new_model, settings  # pyright: ignore[reportMissingImports]

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.loop import train
from hf_ssl.training.output import prepare_output_dir

OWN = '{"method": "simsiam", "config": {}, "data": {}, "training": {}, "progress": {"step": 0}}'


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def prepare(folder: Path, resume: str | None) -> None:
    prepare_output_dir(TrainingSettings(output_dir=str(folder), num_steps=1, resume=resume))


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize(
    "files",
    [
        {"encoder/cat.jpg": "mine", "encoder/README.md": "mine", "pretraining/dog.jpg": "mine"},
        {"run.json": '{"name": "of another program"}'},
        {"run.json": "not JSON"},
        {"metrics.jsonl": '{"loss": 1}\n'},
        {"recipe.json": '{"flour": "500 g"}'},
        {"run.json": OWN, "model.safetensors": "an exported folder, whose run.json is a copy"},
        {"checkpoints/step-000500/model.pt": "of another program", "checkpoints/latest": "500"},
    ],
    ids=lambda files: " ".join(files),
)
def test_a_folder_without_a_run_is_refused_and_left_alone(tmp_path: Path, files: dict[str, str], resume: str | None):
    write(tmp_path, files)
    before = content(tmp_path)
    with pytest.raises(UserError, match="is not empty and holds no run: it has `[a-z.]*`. Give another folder.$"):
        prepare(tmp_path, resume)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "files",
    [
        {},
        {".DS_Store": "", ".lock": ""},
        {"slurm-17.out": "of a launcher", "log.txt": ""},
        {"recipe.json": '{"batch_size": 8}', "data_files.json.gz": "", "metrics.jsonl": "", "run.json": OWN},
        {"recipe.json": '{"num_epochs": 8, "own_setting": 1}'},
        {"recipe.json": "{}"},
    ],
    ids=lambda files: " ".join(files) or "empty",
)
@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_folder_without_a_step_begins_a_run(tmp_path: Path, files: dict[str, str], resume: str | None):
    write(tmp_path, files)
    prepare(tmp_path, resume)


def test_a_run_that_stands_in_its_folder_of_images_goes_on(tmp_path: Path):
    """Where `datasets` reads named folders alone, such as `train` and `test`, its figures are no images."""
    folder, data = tmp_path / "runs" / "x", DataSettings(dataset=str(tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="lies in the data set"):
        prepare_output_dir(TrainingSettings(output_dir=str(folder), num_steps=1, resume="auto"), data)
    train(new_model(), open_source("digits"), DATA, settings(folder, num_steps=1))
    prepare_output_dir(TrainingSettings(output_dir=str(folder), num_steps=2, resume="auto"), data)


def test_only_resuming_goes_on_and_a_damaged_record_does_not_matter(tmp_path: Path):
    train(new_model(), open_source("digits"), DATA, settings(tmp_path, num_steps=1))
    write(tmp_path, {"notes.txt": "mine"})
    record = json.loads((tmp_path / "run.json").read_text())
    for text in (json.dumps(record), "damaged", None):
        (tmp_path / "run.json").unlink()
        if text is not None:
            (tmp_path / "run.json").write_text(text)
        prepare(tmp_path, "auto")
        with pytest.raises(UserError, match="is not empty. Give `--resume auto` to continue the run in it"):
            prepare(tmp_path, None)
        (tmp_path / "run.json").touch()


def test_a_run_in_the_folder_of_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its figures would be images of the data set, also where the folder is the working directory."""
    photos = tmp_path / "photos"
    write(photos, {"a/1.png": "", "a/.keep": "", "mine/README.md": "no data set's"})
    monkeypatch.chdir(photos)

    def start(dataset: str | Path, output_dir: str | Path, **place: Any) -> None:
        training = TrainingSettings(output_dir=str(output_dir), num_steps=1)
        prepare_output_dir(training, DataSettings(dataset=str(dataset), **place))

    inside: list[tuple[Any, Any, dict[str, Any]]] = [(".", "runs/x", {}), (photos, photos / "run", {})]
    inside += [("../photos", "a/b/../run", {}), (photos, "a/run", {"data_dir": "a"}), (photos, ".", {})]
    for dataset, folder, place in inside:
        with pytest.raises(UserError, match="^`output_dir` `.*` lies in the data set `.*a folder beside it, or name"):
            start(dataset, folder, **place)
    assert sorted(content(photos)) == ["a/.keep", "a/1.png", "mine/README.md"]
    assert not (photos / "runs").exists()
    start(photos, "../photos-run")
    start(photos, "run-1", data_dir="a")
    start(photos, "run-2", data_files="a/**")
    start(photos, ".runs/3")
    start("shapes", "run-4")
    write(photos, {"README.md": "---\nconfigs:\n- config_name: default\n  data_files: a/**\n---\n"})
    start(photos, "run-5")
