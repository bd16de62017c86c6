"""Whether a file is still the one that was opened: another one in its place would silently give other images."""

import hashlib
import os
from typing import NamedTuple

_AT_EACH_END = 4096  # bytes that stand for the content: headers of a tar, and the footer of a parquet file


class Stamp(NamedTuple):
    """What tells a file from another.

    Args:
        size: In bytes.
        changed: When it was last written, in nanoseconds.
        ends: Digest of its first and last bytes.
    """

    size: int
    changed: int
    ends: str


def stamp_of(path: str) -> Stamp:
    """Look at a file.

    Raises:
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        ends = file.read(_AT_EACH_END)
        file.seek(max(0, about.st_size - _AT_EACH_END))
        ends += file.read(_AT_EACH_END)
    return Stamp(about.st_size, about.st_mtime_ns, hashlib.sha256(ends).hexdigest())


def check_unchanged(path: str, stamp: Stamp) -> None:
    """Refuse a file that is no longer what it was; one that was only touched is.

    Raises:
        OSError: Names the file.
    """
    about = os.stat(path)
    if (about.st_size, about.st_mtime_ns) == (stamp.size, stamp.changed):
        return
    now = stamp_of(path)
    if (now.size, now.ends) != (stamp.size, stamp.ends):
        raise OSError(f"`{path}` has changed since it was opened: it had {stamp.size} bytes, now {now.size}")
