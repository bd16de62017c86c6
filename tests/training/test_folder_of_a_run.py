"""Folders that hold something already: only a run goes on, and only an empty folder begins one."""

import json
from pathlib import Path

import pytest
from test_loop import DATA, new_model, settings  # pyright: ignore[reportMissingImports]

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
        {"recipe.json": '{"batch_size": 8}', "data_files.json.gz": "", "metrics.jsonl": "", "run.json": OWN},
        {"recipe.json": '{"batch_size": 8}'},
    ],
    ids=lambda files: " ".join(files) or "empty",
)
@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_folder_without_a_step_begins_a_run(tmp_path: Path, files: dict[str, str], resume: str | None):
    write(tmp_path, files)
    prepare(tmp_path, resume)


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
