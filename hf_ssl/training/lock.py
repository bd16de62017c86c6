"""The lock of a run's folder, by which one process at a time uses it."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_ssl.errors import UserError
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.files import storage_errors_explained
from hf_ssl.training.find import remove_leftovers

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

logger = logging.getLogger(__name__)

_LOCK = ".lock"
_held: set[Path] = set()  # by this process: to open and close the file again would let go of it


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
    if os.environ.get("RANK", "0") != "0" or key in _held:
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
