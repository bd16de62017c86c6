"""Files of a run: written as a whole or not at all, flushed to the disk, and explained where the disk refuses."""

import errno
import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_ssl.errors import UserError
from hf_ssl.writing import replacing

RUN_FILE = "run.json"
"""Name of the record in the folder of a run, and in the folders that are exported from it; see `RunRecord`."""

LISTING = "data_files.json.gz"
"""Names and sizes of the files of a run's data set, where these lie on this machine."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_CHUNK = 1 << 22


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is always either the old or the new one.

    JSON has no NaN and no infinity, and strict readers refuse a file with them: such a number becomes null.
    """
    with replacing(path) as partial:
        partial.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        flush(partial)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def flush(path: Path) -> None:
    """Have the disk hold a file or a folder before anything else is done."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum_of(path: Path) -> str:
    """CRC-32 of a file: it finds every flipped bit, and is as fast as the memory."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def storage_error(error: BaseException | None) -> OSError | None:
    """What the operating system refused when a file was written, behind the errors of the libraries that wrote it."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        told = re.search(r"\(os error (\d+)\)", str(error))  # of safetensors
        if told:
            return OSError(int(told.group(1)), os.strerror(int(told.group(1))))
        error = error.__cause__ or error.__context__  # torch raises its own error while it handles this one
    return None


def refusal_of_storage(what: str, error: OSError, way_on: str) -> str:
    """The sentences about a file that could not be written.

    Args:
        what: The file, such as "The checkpoint of step 500".
        error: What the operating system said.
        way_on: What to do after that.
    """
    reason = (error.strerror or str(error)).rstrip(".")
    if error.errno in _FULL:
        cure = "Make room on that disk or in its quota"
    elif error.errno in _CLOSED:
        cure = "Make the folder writable"
    else:
        cure = "See to that disk or its connection"
    return f"{what} cannot be written: {reason}. {cure}; {way_on}"


@contextmanager
def storage_errors_explained(path: Path) -> Iterator[None]:
    """Turn what a disk refuses while a run writes a file into a sentence.

    Raises:
        UserError: Names the file, the reason and the cure.
    """
    try:
        yield
    except OSError as error:
        way_on = "the same command with `--resume auto` then continues from the newest checkpoint."
        raise UserError(refusal_of_storage(f"`{path}`", error, way_on)) from error
