"""Record to the bytes of its image file, or a named reason why not. Only regular files are opened: nothing hangs."""

import errno
import os
import stat
from typing import Any

import fsspec

from hf_ssl.data.decode.pillow import SkippedImageError

MAX_FILE_BYTES = 2**31
"""Larger files are not read: `decode` would refuse such a picture, and they would fill the memory."""

DAMAGED_ARCHIVE = "\0damaged archive"
"""Path of an image that a damaged archive has lost; no file has such a name."""

_OF_THE_PROGRAM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # not the fault of a file: these stop the run
_REASONS = {
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOENT: "missing file",
    errno.ENOTDIR: "missing file",
    errno.ELOOP: "link loop",
    errno.ENAMETOOLONG: "path too long",
}


def bytes_of(record_image: Any) -> bytes:
    """Read one image of a record, undecoded.

    Args:
        record_image: What `datasets.Image(decode=False)` gives (`{"bytes": ..., "path": ...}`), bytes, a path, an
            fsspec address, or None.

    Returns:
        At least one byte.

    Raises:
        SkippedImageError: If there is none.
    """
    if record_image is None:
        raise SkippedImageError("null")
    if isinstance(record_image, dict):
        data = record_image.get("bytes")
        if data is None:
            data = record_image.get("path")
    else:
        data = record_image
    if data is None:
        raise SkippedImageError("null")
    if data == DAMAGED_ARCHIVE:
        raise SkippedImageError("damaged archive")
    if not isinstance(data, bytes):
        data = _read(str(data))
    if not data:
        raise SkippedImageError("empty")
    return data


def reason_of(error: OSError) -> str:
    """Why a file or folder cannot be read, as a reason of `SkippedImageError`."""
    return _REASONS.get(error.errno or 0, "read error")


def problem_of(path: str) -> str | None:
    """Why a file must not be opened, as a reason of `SkippedImageError`; None if it is a regular file."""
    try:
        return None if stat.S_ISREG(os.stat(path).st_mode) else "not a regular file"
    except OSError as error:
        return reason_of(error)


def _read(path: str) -> bytes:
    path = path.removeprefix("file://")
    return _read_address(path) if "://" in path else _read_file(path)


def _read_file(path: str) -> bytes:
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):  # a pipe or a device may give its bytes never, or without end
            raise SkippedImageError("not a regular file")
        if about.st_size > MAX_FILE_BYTES:
            raise SkippedImageError("too large")
        with open(path, "rb") as file:
            return file.read()
    except SkippedImageError:
        raise
    except OSError as error:
        if error.errno in _OF_THE_PROGRAM:
            raise
        raise SkippedImageError(reason_of(error)) from None
    except ValueError:  # NUL in the path, or characters that no path has
        raise SkippedImageError("invalid path") from None


def _read_address(address: str) -> bytes:
    try:
        with fsspec.open(address, "rb") as file:
            return file.read()  # pyright: ignore[reportAttributeAccessIssue]
    except FileNotFoundError:
        raise SkippedImageError("missing file") from None
    except PermissionError:
        raise SkippedImageError("no permission") from None
    except (IsADirectoryError, NotADirectoryError):
        raise SkippedImageError("not a regular file") from None
