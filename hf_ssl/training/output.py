"""Folders of results: what is in them already is looked at before any work is done."""

import importlib.util
import os
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_ssl.data.settings import PlaceSettings
from hf_ssl.data.sources.card import read_card
from hf_ssl.data.sources.local import is_saved
from hf_ssl.data.sources.opened import EMBEDDED
from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import read_json
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.files import LISTING, RUN_FILE
from hf_ssl.training.find import complete_checkpoints
from hf_ssl.training.integrity import STATE
from hf_ssl.training.record import RunRecord

RESULTS = (
    *("settings", "predictions", "analysis", "reproduction"),
    *("ablation", "augmentation", "curriculum", "dictionaries", "labels", "methods", "negatives"),
    *("collapse", "flow", "phase_portrait", "sweep"),
)
"""Stems of the files by which a folder of studies, simulations or analyses is known."""

_LOGS = (".log", ".txt", ".out", ".err")  # what launchers write where a run is to begin
_CHOICE = "recipe.json"  # what `auto` has chosen: see `commands/resolve`


def prepare_output_dir(settings: TrainingSettings, data: PlaceSettings | None = None) -> None:
    """Make the run's folder and refuse one that holds something else or cannot be written.

    Only the first process looks: the others would see what it has already written.

    Args:
        settings: Of the run.
        data: What it reads, if that is not known to lie elsewhere; see `check_outside_data`.

    Raises:
        UserError: If the folder holds a run and `resume` is not given, holds something else, or cannot be written.
        UserError: If it lies in the data set.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    folder = Path(settings.output_dir)
    if data is not None and not _holds_run(folder):  # one that stands there goes on, if its data can still be read
        check_outside_data(folder, "output_dir", data)
    if folder.is_dir() and not _holds_no_step(folder):
        _check_run(folder, resumes=settings.resume is not None)
    make_folder(folder, "output_dir")


def check_outside_data(folder: Path, setting: str, data: PlaceSettings) -> None:
    """Refuse a folder of results in a folder of images, which would be read with the figures as images from then on.

    Where `data_files`, a README.md with configs or `save_to_disk` says which files are the data, others do no harm.
    Neither do hidden folders, which no data set is read from.

    Args:
        folder: Where results are to go.
        setting: Name of the setting from which it comes.
        data: Which data set is read, as `dataset`, and how.

    Raises:
        UserError: If it does.
    """
    dataset: Any = getattr(data, "dataset", None)
    if not isinstance(dataset, str | Path) or data.data_files is not None or str(dataset) in EMBEDDED:
        return
    root = Path(str(dataset).removeprefix("file://")).expanduser()
    try:
        decides = root.is_dir() and not is_saved(root) and not read_card(str(dataset), root)[0]
    except OSError:  # such as a name that is too long: opening the data set explains it
        return
    if not decides:
        return
    place = root.joinpath(data.data_dir or "").resolve()
    if not folder.resolve().is_relative_to(place):
        return
    if not any(part.startswith(".") for part in folder.resolve().relative_to(place).parts):
        raise UserError(
            f"`{setting}` `{folder}` lies in the data set `{dataset}`, where its figures would count as images. "
            "Give a folder beside it, or name the images by `data_files`."
        )


def _check_run(folder: Path, resumes: bool) -> None:
    """Refuse a folder whose content a start would write over: no run, or one that is not to go on or cannot."""
    if not _holds_run(folder):
        (some, *_) = _shown(folder)
        raise UserError(
            f"`output_dir` `{folder}` is not empty and holds no run: it has `{some.name}`. Give another folder."
        )
    if not resumes:
        raise UserError(
            f"`output_dir` `{folder}` is not empty. Give `--resume auto` to continue the run in it, or another folder."
        )
    record = _record_in(folder)
    if record is not None and record.finished and not complete_checkpoints(folder):
        raise UserError(
            f"The run in `{folder}` has finished, and no checkpoint is left from which it could go on. Give another "
            "`output_dir`; `start_from` gives it these weights."
        )


def _holds_run(folder: Path) -> bool:
    """Whether a run stands in a folder: its record, or checkpoints, from which a damaged record is made again."""
    return _record_in(folder) is not None or any((folder / "checkpoints").glob(f"step-*/{STATE}"))


def _record_in(folder: Path) -> RunRecord | None:
    """The record of the run in a folder; None without a run, also in an exported folder, whose record is a copy."""
    if (folder / "model.safetensors").is_file():
        return None
    try:
        return RunRecord.read(folder)
    except UserError:  # another program's `run.json`, or a damaged one
        return None


def _shown(folder: Path) -> list[Path]:
    """What stands in a folder but for logs of launchers and hidden files: locks, leftovers, what desktops write."""
    try:
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        return [path for path in found if path.suffix not in _LOGS or not path.is_file()]
    except OSError as error:
        raise UserError(f"`{folder}` cannot be read: {error.strerror}. Give another folder.") from error


def _holds_no_step(folder: Path) -> bool:
    """Whether a folder is empty, or what is left of a run that was refused before its first log line."""
    found = {path.name: path for path in _shown(folder)}
    if not found.keys() <= {RUN_FILE, _CHOICE, LISTING, "metrics.jsonl"}:
        return False
    if "metrics.jsonl" in found and found["metrics.jsonl"].stat().st_size > 0:
        return False
    if RUN_FILE in found:
        record = _record_in(folder)
        return record is not None and record.progress.step == 0 and record.finished is None
    return _CHOICE not in found or _is_choice(found[_CHOICE])


def _is_choice(path: Path) -> bool:
    """Whether a file holds settings, which a method of the user's own may have left to their defaults."""
    try:
        found = read_json(path)
    except UserError:
        return False
    return not found or any(field.name in found for field in fields(TrainingSettings))  # pyright: ignore[reportArgumentType]


def make_folder(folder: Path, setting: str, cure: str = "Give another folder.") -> None:
    """Make a folder, and refuse one that cannot be written before any work is done whose result is to go there.

    Args:
        folder: The folder.
        setting: Name of the setting from which it comes.
        cure: What to do about it.

    Raises:
        UserError: If the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise UserError(f"`{setting}` `{folder}` cannot be written: {reason}. {cure}") from error


def make_results_folder(folder: Path, setting: str) -> None:
    """Make a folder for the results of studies, simulations and analyses, several of which may share one.

    Args:
        folder: The folder.
        setting: Name of the setting from which it comes.

    Raises:
        UserError: If it holds files but no such results, or cannot be made or written.
    """
    found = _shown(folder) if folder.is_dir() else []
    # A run that `hf-ssl pretrain` made is taken over by the study whose folder it is in.
    if found and not any(map(_is_result, found)) and not any(folder.glob(f"*/seed*/{RUN_FILE}")):
        raise UserError(
            f"`{setting}` `{folder}` is not empty and holds no results: it has `{found[0].name}`. Give another folder."
        )
    make_folder(folder, setting)


def _is_result(path: Path) -> bool:
    stem = path.name.removesuffix(path.suffix).partition("-")[0]  # such as `ablation-1.png`
    return path.suffix in (".json", ".md", ".png") and stem in RESULTS


def check_tracker(report_to: str) -> None:
    """Refuse a tracker whose package is missing; Accelerate would ignore it silently.

    Raises:
        UserError: Names the package.
    """
    if report_to != "none" and importlib.util.find_spec(report_to) is None:
        raise UserError(f"`report_to` {report_to} needs a package: `pip install {report_to}`.")
