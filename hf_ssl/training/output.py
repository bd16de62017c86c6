"""Folders of results: checked before any work is done; that of a run is used by one run at a time."""

import errno
import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_ssl.errors import UserError
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.files import RUN_FILE, storage_errors_explained
from hf_ssl.training.find import remove_leftovers
from hf_ssl.writing import leftovers_of

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

logger = logging.getLogger(__name__)

_LOCK = ".lock"
_held: set[Path] = set()  # by this process: to open and close the file again would let go of it


def prepare_output_dir(settings: TrainingSettings) -> None:
    """Make the run's folder and refuse one that holds something else or cannot be written.

    Only the first process looks: the others would see what it has already written.

    Raises:
        UserError: If the folder is not empty and `resume` is not given, or cannot be written.
    """
    if not _is_first_process():
        return
    folder = Path(settings.output_dir)
    if settings.resume is None and folder.is_dir() and not _holds_no_step(folder):
        raise UserError(
            f"`output_dir` `{folder}` is not empty. Give `--resume auto` to continue the run in it, or another folder."
        )
    make_folder(folder, "output_dir")


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


def _holds_no_step(folder: Path) -> bool:
    """Whether a folder is empty, or what is left of a run that was refused before its first log line."""
    names = (RUN_FILE, "recipe.json")
    of_refused = {folder / name for name in (_LOCK, *names)}
    of_refused.update(*(leftovers_of(folder / name) for name in names))
    return all(
        path in of_refused or (path.name == "metrics.jsonl" and path.stat().st_size == 0) for path in folder.iterdir()
    )


@contextmanager
def locked_output_dir(settings: TrainingSettings) -> Iterator[None]:
    """Refuse a folder in which another run is still at work, such as one whose launcher alone was killed.

    The lock is the operating system's: it ends with the process, however that ends, and its workers do not inherit it.
    A command holds it until it has exported; within it, training asks again and gets it. What a killed process has
    left half written is removed first.

    Raises:
        UserError: If another process holds the lock.
    """
    folder = Path(settings.output_dir)
    key = folder.resolve()
    if not _is_first_process() or key in _held:
        yield
        return
    if fcntl is None:
        _held.add(key)
        try:
            remove_leftovers(folder)
            yield
        finally:
            _held.remove(key)
        return
    with storage_errors_explained(folder / _LOCK):
        file = (folder / _LOCK).open("a")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"Another process still trains in `{settings.output_dir}`. Wait for it or end it, then resume."
                ) from None
            logger.warning("`%s` is on a file system without locks: start one run at a time there.", file.name)
        _held.add(key)
        try:
            remove_leftovers(folder)
            yield
        finally:
            _held.remove(key)


def is_locked(folder: Path) -> bool:
    """Whether this process is in `locked_output_dir` of a folder, so that the run in it is its own."""
    return folder.resolve() in _held


def is_in_use(folder: Path) -> bool:
    """Whether any process is in `locked_output_dir` of a folder; False where the system has no locks."""
    path = folder / _LOCK
    if is_locked(folder):
        return True  # to open the file again would let go of it
    if fcntl is None or not os.access(path, os.R_OK):
        return False
    with path.open("rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def check_tracker(report_to: str) -> None:
    """Refuse a tracker whose package is missing; Accelerate would ignore it silently.

    Raises:
        UserError: Names the package.
    """
    if report_to != "none" and importlib.util.find_spec(report_to) is None:
        raise UserError(f"`report_to` {report_to} needs a package: `pip install {report_to}`.")
