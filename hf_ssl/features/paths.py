"""The path of an image as features carry it: its place in the data set, and nothing of the machine that it lies on."""

import os
import posixpath
import re
from pathlib import Path


def path_in_dataset(path: str | None, folder: Path | None) -> str | None:
    """The path of an image in its data set, with `/` between its parts; never an absolute one.

    Of an address on the Hub it is the path in the repository, of an archive's member the member's. Of a file that lies
    outside of the folder, as parquet files may name it, only the file's name is kept: the rest tells about the
    machine that wrote it.

    Args:
        path: What the record says: a file, the name of a member, an address. None or empty: nothing is known.
        folder: Folder of the data set, if it is one.

    Returns:
        The path; None where nothing is known.
    """
    if not path:
        return None
    inside = _inside(path, folder) if folder is not None else None
    if inside is not None:
        return _text(inside)
    path = path.split("::")[0]  # `zip://cat/1.png::hf://...`: the member
    found = re.match(r"hf://(?:datasets/)?[^/]+/[^/]+/(.+)", path) or re.match(r"(?:zip|tar)://(.+)", path)
    named = str(found[1]) if found else path
    parts = posixpath.normpath(named.replace("\\", "/") if re.match(r"[A-Za-z]:\\|\\\\", named) else named)
    outside = parts.startswith(("/", "../", "~")) or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", parts)
    return _text(posixpath.basename(parts) if outside else parts)


def _inside(path: str, folder: Path) -> str | None:
    """The path relative to a folder; None if it does not lie in it."""
    for root in dict.fromkeys((str(folder), os.path.abspath(folder))):
        if path.startswith(root.rstrip("/") + "/"):
            inside = posixpath.normpath(path[len(root.rstrip("/")) + 1 :])
            return None if inside.startswith("../") else inside
    return None


def _text(path: str) -> str:
    """The path as text that parquet can hold, whatever bytes the file's name has."""
    return path.encode(errors="surrogateescape").decode(errors="replace")
