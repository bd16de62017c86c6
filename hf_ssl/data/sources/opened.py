"""What every way of opening a data set gives, before its columns are chosen, and how failures become one sentence."""

import difflib
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError, DatasetsError

from hf_ssl.answers import hub_answers
from hf_ssl.errors import UserError, first_line

# What opening a data set raises when its files, its name, its config or the network are not as they should be.
_OPENING_ERRORS = (DatasetsError, OSError, ValueError, RuntimeError, IndexError, tarfile.TarError, pa.ArrowException)
_OPENING_ERRORS += (pickle.UnpicklingError,)  # what PyTorch raises where it refuses to load code

_OBJECTS = ("in-memory data set", "streamed data set")  # what objects of `datasets` are called
_ALL_ENDINGS = " with any supported extension ["  # a list of hundreds follows

EMBEDDED = ("shapes", "digits")
"""Names of the data sets that need no files."""

KINDS = ("embedded", "local", "hub", "address", "object")
"""What the name of a data set is: one of `EMBEDDED`, a path here, an id on the Hub, an address, or of an object."""


@dataclass(frozen=True)
class Opened:
    """One split of a data set as its records come.

    Args:
        records: Every column.
        num_images: Number of records, if known.
        identity: What identifies their content (JSON).
        select: Opens them again with some of their columns only, where the others need not be read for that: those
            that every record has, and those that are null where they are missing.
        left_out: What is no record because it cannot be read, counted by reason.
        features: Columns and types that are stated beside the records, if other than theirs.
        distinct: The different texts of a column, in all splits, sorted; None where only reading all would tell.
        folder: Paths in a column of texts are relative to it.
        understood: One line about splits and classes.
        files: Columns `name` and `size` (bytes) of the files of the split, if they lie on this machine.
        roots: Those of `Access`.
        kind: One of `KINDS`.
    """

    records: datasets.IterableDataset
    num_images: int | None
    identity: Any
    select: Callable[[list[str], list[str]], datasets.IterableDataset] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    features: datasets.Features | None = None
    distinct: Callable[[str], list[str]] | None = None
    folder: str | None = None
    understood: str = ""
    files: pa.Table | None = None
    roots: tuple[str, ...] = ()
    kind: str = "object"


def kind_by_name(name: str) -> str | None:
    """What a name is as far as it tells, for what was recorded before records told it; one of `KINDS`.

    Returns:
        `local` for what is written like a path, or exists here; `hub` for another `ORG/NAME`; None for a bare name,
        which may be of a folder or of the Hub.
    """
    if name in EMBEDDED:
        return "embedded"
    if name.startswith(_OBJECTS):
        return "object"
    if "://" in name:
        return "local" if name.startswith("file:") else "address"
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(?<!\.parquet)(?<!\.tar)", name) and not Path(name).exists():
        return "hub"
    return "local" if re.search(r"[/\\]|^[.~]", name) or Path(name).exists() else None


def no_images(dataset: str, split: str) -> UserError:
    """The error for a split without records."""
    return UserError(f"Split `{split}` of `{dataset}` holds no images. Choose another split or data set.")


def no_split(dataset: str, split: str, has: list[str], more: str = "", *, of_files: bool = False) -> UserError:
    """The error for a split that is not there.

    Args:
        dataset: Name of the data set.
        split: What was asked for.
        has: The splits that are there.
        more: A sentence about images that may be meant.
        of_files: Whether `data_files` can make splits of its files.
    """
    cure = "Choose one of these."
    if any(sign in split for sign in "[+"):
        cure = "One split is opened at a time, whole."
    elif more:
        cure = more
    elif of_files:
        example = json.dumps({**dict.fromkeys(has[:1], "PATTERN"), split: "PATTERN"})
        cure = f"Choose one of these, or say which files are `{split}`: `--data_files '{example}'`."
    return UserError(f"`{dataset}` has no split `{split}`. It has: {', '.join(has)}. {cure}")


def attempt(name: str, open_: Callable[[], Any]) -> Any:
    """Call `datasets` and say in one sentence what it could not do.

    Raises:
        UserError: Names the data set and the reason.
    """
    try:
        with hub_answers():
            return open_()
    except UserError:
        raise
    except _OPENING_ERRORS as error:
        here = [] if "/" in name else [path.name for path in Path().iterdir() if not path.name.startswith(".")]
        close = difflib.get_close_matches(name, [*EMBEDDED, *here], n=1)
        hint = f" Did you mean `{close[0]}`?" if close else " Check the name, and the connection if it is on the Hub."
        hint = "" if os.path.exists(os.path.expanduser(name)) else hint
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        error = cause if isinstance(cause, Exception) else error
        detail = first_line(error, kind=True).partition(_ALL_ENDINGS)[0]
        raise UserError(f"`dataset` `{name}` cannot be opened: {detail}.{hint}") from error
