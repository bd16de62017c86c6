"""The lock of the folder of a run or a study, by which one process at a time uses it."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
def locked(folder: Path, refusal: str) -> Iterator[bool]:
    """Use a folder as the only process; within it, the same process may ask again.

    The lock is the operating system's: it ends with the process, however that ends, and its workers do not inherit it.

    Args:
        folder: The folder.
        refusal: What to tell the user if another process holds it.

    Returns:
        Whether this process did not hold the lock before.

    Raises:
        UserError: If another process holds the lock.
    """
    key = folder.resolve()
    if key in _held:
        yield False
        return
    with ExitStack() as open_files:
        if fcntl is not None:
            with storage_errors_explained(folder / _LOCK):
                file = open_files.enter_context((folder / _LOCK).open("a"))
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise UserError(refusal) from None
                logger.warning("`%s` is on a file system without locks: start one run at a time there.", file.name)
        _held.add(key)
        try:
            yield True
        finally:
            _held.remove(key)


@contextmanager
def locked_output_dir(settings: TrainingSettings) -> Iterator[None]:
    """Refuse a folder in which another run is still at work, such as one whose launcher alone was killed.

    A command holds the lock until it has exported; within it, training asks again and gets it. What a killed process
    has left half written is removed first.

    Raises:
        UserError: If another process holds the lock.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    folder = Path(settings.output_dir)
    busy = f"Another process still trains in `{settings.output_dir}`. Wait for it or end it, then resume."
    with locked(folder, busy) as first:
        if first:
            remove_leftovers(folder)
        yield


def is_locked(folder: Path) -> bool:
    """Whether this process is in `locked` of a folder, so that the run in it is its own."""
    return folder.resolve() in _held


def is_in_use(folder: Path) -> bool:
    """Whether any process is in `locked` of a folder; False where the system has no locks."""
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
