"""Files that are always whole, whichever processes write them, and folders in which they wait for each other."""

import glob
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

logger = logging.getLogger(__name__)

_PARTIAL = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to, which no other process or thread has; the file there takes the place of `path` at the end.

    So a reader finds the old file or the new one, and of several that write at once the last one's stays. If
    something fails, the old one stays.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{_PARTIAL}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file; see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def leftovers_of(path: Path) -> list[Path]:
    """What killed processes have left half written of a file; of one that still writes it is what it writes."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.*{_PARTIAL[1:]}"))  # older versions: `.NAME.partial`


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait for others that write into a folder; the lock is on the folder, so that no file is left in it."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems cannot lock a folder
            logger.warning("`%s` cannot be locked (%s): start one command at a time there.", folder, error.strerror)
        yield
    finally:
        os.close(descriptor)
