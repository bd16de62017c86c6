"""The files of a data set with their sizes: what tells on resuming which of them has changed."""

import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from hf_ssl.errors import UserError

if TYPE_CHECKING:
    from hf_ssl.data.sources.open import Source


def files_table(names: list[str], sizes: list[int]) -> pa.Table:
    """Names and sizes in bytes of files, compact."""
    return pa.table({"name": pa.array(names, pa.large_string()), "size": pa.array(sizes, pa.int64())})


def digest_of(files: pa.Table) -> str:
    """Hexadecimal; changes with the name, size or order of a file."""
    content = hashlib.sha256()
    for batch in files.to_batches(max_chunksize=65536):
        rows = zip(batch["name"].to_pylist(), batch["size"].to_pylist(), strict=True)
        content.update("".join(f"{name}\0{size}\n" for name, size in rows).encode())
    return content.hexdigest()


def first_difference(old: Iterable[tuple[str, int]], new: Iterable[tuple[str, int]]) -> str | None:
    """The first file, by name, that is not as it was.

    Args:
        old: Names and sizes in bytes before.
        new: Names and sizes now.

    Returns:
        Such as "`cat/7.png` has 812 bytes, and had 790"; None if there is none.
    """
    before, now = dict(old), dict(new)
    changed = [name for name, size in before.items() if now.get(name) != size]
    changed += [name for name in now if name not in before]
    if not changed:
        return None
    name = min(changed)
    if name not in now:
        return f"`{name}` is gone"
    if name not in before:
        return f"`{name}` is new"
    return f"`{name}` has {now[name]:,} bytes, and had {before[name]:,}"


def write_listing(source: "Source", path: Path) -> None:
    """Write the files of a source, for `difference_from`.

    Args:
        source: Nothing is written for one whose files do not lie on this machine.
        path: Such as `data_files.json.gz` in the folder of a run.
    """
    if source.files is None:
        return
    content = {"dataset": source.name, "split": source.split, "files": list(_pairs(source.files))}
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=5) as file:
        json.dump(content, file)


def difference_from(path: Path, source: "Source") -> str | None:
    """The first file of a source that is not as `write_listing` found it.

    Args:
        path: Written by `write_listing`.
        source: The source now.

    Returns:
        See `first_difference`; None if there is no difference, or no listing to compare with.

    Raises:
        UserError: If the listing is damaged.
    """
    if source.files is None or not path.is_file():
        return None
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            old = [(str(name), int(size)) for name, size in json.load(file)["files"]]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"`{path}` must list the files of the data set, but it cannot be read. Delete it.") from error
    return first_difference(old, _pairs(source.files))


def _pairs(files: pa.Table) -> Iterable[tuple[str, int]]:
    return zip(files["name"].to_pylist(), files["size"].to_pylist(), strict=True)
