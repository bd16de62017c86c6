"""Record to the bytes of its image file, or a named reason why not. Only regular files are opened: nothing hangs."""

import errno
import lzma
import os
import stat
import tarfile
import time
import zipfile
import zlib
from typing import Any

import fsspec

from hf_ssl.data.decode.pillow import SkippedImageError
from hf_ssl.data.decode.unavailable import DATA_TIMEOUT, Patience, comes_from_reading, impatient_libraries

MAX_FILE_BYTES = 2**31
"""Larger files are not read: `decode` would refuse such a picture, and they would fill the memory."""

DAMAGED_ARCHIVE = "\0damaged archive"
"""Path of an image that a damaged archive has lost; no file has such a name."""

OUTSIDE = "\0path outside the data set"
"""What the path of an image begins with that must not be read, see `Access`; another NUL and the path follow."""

SHOWN = 3
"""So many of the images that cannot be used are named."""

_OF_THE_PROGRAM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # not the fault of a file: these stop the run
_REASONS = {
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOENT: "missing file",
    errno.ENOTDIR: "missing file",
    errno.ELOOP: "link loop",
    errno.ENAMETOOLONG: "path too long",
}


def bytes_of(record_image: Any, timeout: float = DATA_TIMEOUT) -> bytes:
    """Read one image of a record, undecoded.

    Args:
        record_image: What `datasets.Image(decode=False)` gives (`{"bytes": ..., "path": ...}`), bytes, a path, an
            fsspec address, or None.
        timeout: Seconds for which an address is tried again that cannot be read.

    Returns:
        At least one byte.

    Raises:
        SkippedImageError: If there is none.
        DataUnavailableError: If an address could not be read in time.
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
    if isinstance(data, str) and data.startswith((DAMAGED_ARCHIVE, OUTSIDE)):
        raise SkippedImageError(data.split("\0")[1])
    if not isinstance(data, bytes):
        data = _read(str(data), timeout)
    if not data:
        raise SkippedImageError("empty")
    return data


def with_name(named: list[str], record_image: Any, reason: str, row: int | None = None) -> list[str]:
    """Names of images that cannot be used, with one more if there are not enough: its path, else its row.

    Args:
        named: Names so far.
        record_image: As for `bytes_of`.
        reason: Why it cannot be used.
        row: Its number in the data set, if it has one.
    """
    path = record_image.get("path") if isinstance(record_image, dict) else record_image
    path = path.removeprefix(f"{OUTSIDE}\0") if isinstance(path, str) and path != DAMAGED_ARCHIVE else None
    name = f"`{path}`" if path else None if row is None else f"row {row}"
    return named if name is None or len(named) >= SHOWN else [*named, f"{name} ({reason})"]


def reason_of(error: OSError) -> str:
    """Why a file or folder cannot be read, as a reason of `SkippedImageError`."""
    return _REASONS.get(error.errno or 0, "read error")


def problem_of(path: str) -> str | None:
    """Why a file must not be opened, as a reason of `SkippedImageError`; None if it is a regular file."""
    try:
        return None if stat.S_ISREG(os.stat(path).st_mode) else "not a regular file"
    except OSError as error:
        return reason_of(error)


def _read(path: str, timeout: float) -> bytes:
    if path.startswith("file://"):
        return _read_file(path.removeprefix("file://"))
    return _read_address(path, timeout) if "://" in path else _read_file(path)


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


def _read_address(address: str, timeout: float) -> bytes:
    patience = Patience(address, timeout)
    while True:
        started = time.monotonic()
        try:
            with impatient_libraries(), fsspec.open(address, "rb") as file:
                return file.read()  # pyright: ignore[reportAttributeAccessIssue]
        except Exception as error:
            reason = _reason_of_address(error, address)
            if reason is not None:
                raise SkippedImageError(reason) from None
            if not comes_from_reading(error):
                raise
            patience.wait(error, started)


def _reason_of_address(error: Exception, address: str) -> str | None:
    """Why this image cannot be read, however long one waits; None if waiting may help or the program is at fault."""
    if isinstance(error, FileNotFoundError):
        return "missing file"
    if isinstance(error, PermissionError):
        return "no permission"
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return "not a regular file"
    if isinstance(error, zipfile.BadZipFile | tarfile.TarError | zlib.error | lzma.LZMAError | EOFError):
        return "damaged archive"
    if isinstance(error, NotImplementedError | RuntimeError) and "zip://" in address:  # encrypted, or packed oddly
        return "format not supported: zip"
    if isinstance(error, ImportError) or "Protocol not known" in str(error):
        return "no package for its address"
    on_this_machine = "://" not in address.rpartition("::")[2]
    if isinstance(error, OSError) and on_this_machine and error.errno not in _OF_THE_PROGRAM:
        return reason_of(error)
    return None
