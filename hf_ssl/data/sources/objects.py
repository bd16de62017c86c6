"""Data sets that a Python user hands over as objects of `datasets`: what they hold, what they are called."""

import hashlib
import json
import re
from typing import Any

import datasets
from datasets.iterable_dataset import BufferShuffledExamplesIterable, _BaseExamplesIterable
from datasets.utils.track import TrackedIterableFromGenerator

from hf_ssl.data.decode.access import roots_of
from hf_ssl.data.sources.files import dataset_records
from hf_ssl.data.sources.opened import Opened, attempt, no_images
from hf_ssl.errors import UserError

DataObject = datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict
"""The classes of such objects."""

_ROWS_THAT_IDENTIFY = 8  # of a stream, which has no fingerprint


def open_object(dataset: DataObject, name: str, split: str) -> Opened:
    """Open one split of an object.

    Args:
        dataset: The object.
        name: What messages call it.
        split: Name of the split.

    Raises:
        UserError: If it is no data set, has no such split or no rows, or a transform, which would not be applied.
    """
    if not isinstance(dataset, dict | datasets.Dataset | datasets.IterableDataset):
        raise UserError(
            "`dataset` must be a folder, a file, an address, a Hub id, or an object of the library `datasets`: a "
            f"`Dataset`, `DatasetDict`, `IterableDataset` or `IterableDatasetDict`; got a `{type(dataset).__name__}`."
        )
    one = split_of(dataset, name, split)
    if isinstance(one, datasets.Dataset) and not one.num_rows:
        raise no_images(name, split)
    if isinstance(one, datasets.Dataset) and one.format["type"] == "custom":
        raise UserError(
            f"`dataset` must not have a transform, but split `{split}` of the {name} has one of `with_transform` or "
            "`set_transform`, and images are read as they are stored. Apply it by `.map`, or leave it off by "
            "`.with_format(None)`."
        )
    records, num_images = records_of(one)
    identity = attempt(name, lambda: identity_of(one))
    parts = list(dataset.values()) if isinstance(dataset, dict) else [dataset]

    def distinct(column: str) -> list[str]:
        own = [part for part in parts if isinstance(part, datasets.Dataset) and column in part.column_names]
        return sorted({text for part in own for text in part.unique(column) if text is not None})

    return Opened(
        records,
        num_images,
        ["object", identity],
        lambda needed, others: records_of(one, [*needed, *others])[0],
        distinct=distinct if isinstance(one, datasets.Dataset) else None,
        roots=addresses_of(records),
    )


def split_of(dataset: DataObject, name: str, split: str) -> datasets.Dataset | datasets.IterableDataset:
    """One split of an object.

    A dictionary has the splits of its keys. Another object is its own only split: the one that `datasets` says it
    comes from (`train` for `train[:10%]`), or `train`.

    Args:
        dataset: The object.
        name: What messages call it.
        split: Name of the split.

    Raises:
        UserError: If there is no such split, or what a dictionary holds is no data set.
    """
    if isinstance(dataset, dict):
        if split not in dataset:
            raise UserError(f"The {name} has no split `{split}`. It has: {', '.join(map(str, dataset)) or 'none'}.")
        one = dataset[split]
        if not isinstance(one, datasets.Dataset | datasets.IterableDataset):
            raise UserError(f"Split `{split}` of the {name} must be a data set, got a `{type(one).__name__}`.")
        return one
    own = re.match(r"\w*", str(dataset.split or ""))
    known = (own[0] if own else "") or "train"
    if split != known:
        raise UserError(
            f"The {name} is the split `{known}` and has no `{split}`. Choose `{known}`, or give a `DatasetDict` that "
            "holds all splits."
        )
    return dataset


def records_of(
    dataset: datasets.Dataset | datasets.IterableDataset, columns: list[str] | None = None
) -> tuple[datasets.IterableDataset, int | None]:
    """The records of an object in its own order, whatever format it has, and their number if known.

    Args:
        dataset: One split.
        columns: The columns to read; None: all.
    """
    if isinstance(dataset, datasets.IterableDataset):
        records = undecoded(dataset.with_format(None))
        return records if columns is None else records.select_columns(columns), None
    return dataset_records(dataset if columns is None else dataset.select_columns(columns)), dataset.num_rows


def undecoded(records: datasets.IterableDataset) -> datasets.IterableDataset:
    """A stream whose images are as they are stored: by itself `datasets` decodes image files on the Hub.

    An image that is broken must stop nothing, and what is not used need not be decoded.
    """
    return records if records.features is None else records.decode(False)


def addresses_of(records: datasets.IterableDataset) -> tuple[str, ...]:
    """What the addresses of the files of a stream begin with (`Access.roots`); empty if none of them is an address."""
    found, waiting = set(), [records._ex_iterable]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            found |= {one} if "://" in one else set()
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, _BaseExamplesIterable):
            waiting += [getattr(one, name) for name in ("kwargs", "ex_iterable", "ex_iterables") if hasattr(one, name)]
        elif isinstance(one, TrackedIterableFromGenerator):  # files or members of an archive
            waiting.append(one.args)
    return roots_of(found) if found else ()


def identity_of(dataset: datasets.Dataset | datasets.IterableDataset) -> Any:
    """What tells the content of an object from that of another (JSON).

    For a `Dataset` that is its fingerprint, which `datasets` changes with everything done to it. A stream has none:
    its first rows stand for all.
    """
    if isinstance(dataset, datasets.Dataset):
        return [dataset._fingerprint, dataset.num_rows]
    stream = undecoded(dataset.with_format(None))
    content = hashlib.sha256()
    for row in stream.take(_ROWS_THAT_IDENTIFY):
        content.update(json.dumps(row, sort_keys=True, default=_as_text).encode())
    return [stream.num_shards, content.hexdigest()]


def name_of_object(dataset: DataObject) -> str:
    """What to call an object, such as `in-memory data set (cifar10)`: never the name of a file or a Hub id by itself.

    Its content may have been changed since it was loaded, so that the name it came with is only a hint.
    """
    one = next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset
    streamed = isinstance(dataset, datasets.IterableDataset | datasets.IterableDatasetDict)
    kind = "streamed data set" if streamed else "in-memory data set"
    info = getattr(one, "info", None)
    if info is None:  # an empty dictionary, or one that holds something else, which `split_of` refuses
        return kind
    # A builder of `datasets` that is asked for directly, such as `imagefolder`, gives its own name to the data set. A
    # slash would make a path or a Hub id of the name.
    came_as = (info.dataset_name or "").split("/")[-1] if info.dataset_name != info.builder_name else None
    return f"{kind} ({came_as})" if came_as else kind


def is_shuffled(records: datasets.IterableDataset) -> bool:
    """Whether a stream goes through a buffer of the user's `shuffle`, whose content is lost when a run stops."""
    waiting = [records._ex_iterable]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BufferShuffledExamplesIterable):
            return True
        inner = getattr(one, "ex_iterable", None)
        waiting += getattr(one, "ex_iterables", []) if inner is None else [inner]
    return False


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if hasattr(value, "tobytes"):  # a picture that a function of the user's made
        return hashlib.sha256(value.tobytes()).hexdigest()
    return str(value)
