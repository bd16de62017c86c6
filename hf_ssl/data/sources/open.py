"""Every kind of data set as one stream of records whose images are not yet decoded."""

import difflib
import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import pyarrow as pa
from datasets.exceptions import DatasetsError

from hf_ssl.data.decode.access import Access, roots_of
from hf_ssl.data.decode.image_bytes import reason_of
from hf_ssl.data.decode.unavailable import DATA_TIMEOUT
from hf_ssl.data.sources.archive import pieces
from hf_ssl.data.sources.columns import find_columns
from hf_ssl.data.sources.files import (
    INDEX_COLUMN,
    folder_records,
    images_of_split,
    is_utf8,
    list_folder,
    parquet_records,
    table_records,
)
from hf_ssl.data.sources.objects import (
    DataObject,
    addresses_of,
    identity_of,
    name_of_object,
    records_of,
    split_of,
    undecoded,
)
from hf_ssl.data.sources.shapes import shapes
from hf_ssl.data.sources.tar_bytes import is_tar
from hf_ssl.data.sources.tars import tar_layout, tar_records
from hf_ssl.errors import UserError

_logger = logging.getLogger(__name__)

DataLike = str | Path | DataObject
"""What `open_source` opens."""

# What opening a data set raises when its files, its name, its config or the network are not as they should be.
_OPENING_ERRORS = (DatasetsError, OSError, ValueError, RuntimeError, IndexError, tarfile.TarError)


@dataclass(frozen=True)
class Source:
    """A data set, opened.

    Args:
        name: As the user typed it; of an object, what `name_of` says.
        split: Name of the split.
        records: Rows with the undecoded image (`{"bytes": ..., "path": ...}`), the label columns as integers and,
            where the source has one, `INDEX_COLUMN`; in fixed order.
        image_column: Column of the images.
        labels: Every label column and its class names (empty where unknown); the main one first.
        num_images: Number of records; None if only reading them all would tell.
        fingerprint: Hexadecimal; changes with data set, revision and split.
        left_out: Pictures and folders in an image folder, all splits together, that are no records because they cannot
            be read, counted by reason.
        access: Which paths of records may be read, and for how long that is tried.
    """

    name: str
    split: str
    records: datasets.IterableDataset
    image_column: str
    labels: dict[str, list[str]]
    num_images: int | None
    fingerprint: str
    left_out: dict[str, int] = field(default_factory=dict)
    access: Access = Access()

    @property
    def has_indices(self) -> bool:
        """Whether every record carries a stable number."""
        return INDEX_COLUMN in (self.records.features or {})


@dataclass(frozen=True)
class _Opened:
    """Records as they come, their number if known, and what identifies their content (JSON).

    `select` opens them again with some of their columns alone, where the others need not be read for that: those that
    every record has, and those that are null where they are missing. `roots` are those of `Access`.
    """

    records: datasets.IterableDataset
    num_images: int | None
    identity: Any
    select: Callable[[list[str], list[str]], datasets.IterableDataset] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    roots: tuple[str, ...] = ()


def name_of(dataset: DataLike) -> str:
    """What titles, cards and messages call a data set.

    Returns:
        What the user typed; of an object a text such as `in-memory data set (cifar10)`, which is neither the name of
        a file nor a Hub id.
    """
    return str(dataset) if isinstance(dataset, str | Path) else name_of_object(dataset)


def open_source(
    dataset: DataLike,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    index_column: str | None = None,
    allow_paths: bool = False,
    data_timeout: float = DATA_TIMEOUT,
) -> Source:
    """Open one split of a data set as a stream of records.

    Args:
        dataset: `shapes`, `digits`, a folder of images (class folders and split folders are recognised), a parquet or
            webdataset tar file or a folder of them, or the id of a data set on the Hub, which is streamed. Also an
            object of `datasets`: a `Dataset` (in memory or on the disk), an `IterableDataset`, or a dictionary of
            splits. Labels, columns and order of an object are its own; format and transform are not used.
        config: Config of a Hub data set.
        split: Name of the split.
        revision: Branch, tag or commit of a Hub data set.
        image_column: Column of the images; None: found by its type, else by its name.
        label_column: Main label column; None: found by its type and name. A data set may have none.
        index_column: Column of integers that number the images; None: made for local files and embedded data sets.
        allow_paths: Read whatever file or address a record names. Else, in data from the Hub or an address, only what
            belongs to the data set; in data of this machine any file, but no address.
        data_timeout: Seconds for which it is tried again to read what cannot be read, at least 0.

    Returns:
        The opened source.

    Raises:
        UserError: If the data set cannot be opened, is empty, or lacks the split or the column.
    """
    name = name_of(dataset)
    if isinstance(dataset, str | Path):
        opened = _open_name(name, config, split, revision)
    else:
        for setting, value in (("dataset_config", config), ("dataset_revision", revision)):
            if value is not None:
                raise UserError(f"`{setting}` is for data sets on the Hub, but `dataset` is an object. Leave it out.")
        opened = _open_object(dataset, name, split)
    source = _with_columns(opened, name, config, split, image_column, label_column, index_column)
    return replace(source, access=Access(opened.roots, allow_paths, data_timeout))


def _open_name(name: str, config: str | None, split: str, revision: str | None) -> _Opened:
    path = Path(name).expanduser()
    if not is_utf8(name):
        raise UserError(f"`dataset` must have a name in UTF-8, got {ascii(name)}. Rename the file or folder.")
    if name in _EMBEDDED:
        return _EMBEDDED[name](split)
    try:
        exists, is_folder, is_file = path.exists(), path.is_dir(), path.is_file()
    except OSError as error:
        raise UserError(f"`dataset` `{name}` cannot be opened: {reason_of(error)}. Check its path.") from None
    if is_folder:
        return _open_folder(name, path, config, split)
    if is_file:
        return _open_file(name, path, split)
    if exists:
        raise UserError(f"`dataset` must be a folder or a regular file, but `{name}` is a pipe, socket or device.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix in (".parquet", ".tar"):
        raise UserError(f"`dataset` must exist, but there is no file or folder `{name}`.")
    return _open_builder(name, split, path=name, name=config, revision=revision)


def _open_object(dataset: DataObject, name: str, split: str) -> _Opened:
    one = split_of(dataset, name, split)
    if isinstance(one, datasets.Dataset) and not one.num_rows:
        raise _no_images(name, split)
    records, num_images = records_of(one)
    identity = _attempt(name, lambda: identity_of(one))
    return _Opened(
        records,
        num_images,
        ["object", identity],
        lambda needed, others: records_of(one, [*needed, *others])[0],
        roots=addresses_of(records),
    )


def _with_columns(
    opened: _Opened,
    dataset: str,
    config: str | None,
    split: str,
    image_column: str | None,
    label_column: str | None,
    index_column: str | None = None,
) -> Source:
    records, features = opened.records, opened.records.features
    if opened.num_images == 0:
        raise _no_images(dataset, split)
    if features is None:  # some formats declare no columns: the first rows show them
        first_rows = _attempt(dataset, lambda: list(records.take(8)))
        if not first_rows:
            raise _no_images(dataset, split)
        features = datasets.Dataset.from_list(first_rows).features
    named = datasets.Features({name: feature for name, feature in features.items() if name != INDEX_COLUMN})
    columns = find_columns(named, dataset, image_column, label_column, index_column)
    if opened.select is not None:
        records = opened.select([columns.image, *([index_column] if index_column else [])], list(columns.labels))
    if index_column is not None:
        dropped = [INDEX_COLUMN] if INDEX_COLUMN in features else []
        records = records.remove_columns(dropped).rename_column(index_column, INDEX_COLUMN)
        features = {**features, INDEX_COLUMN: features[index_column]}
    # Labels as plain integers: casting to ClassLabel stops at the first label out of range.
    kept: dict[str, Any] = {columns.image: datasets.Image(decode=False)}
    kept |= {label: datasets.Value("int64") for label in columns.labels}
    if INDEX_COLUMN in features:
        kept[INDEX_COLUMN] = datasets.Value("int64")
    records = records.select_columns(list(kept)).cast(datasets.Features(kept))
    if opened.num_images is None and not _attempt(dataset, lambda: list(records.take(1))):
        raise _no_images(dataset, split)
    identity = json.dumps([config, split, index_column, opened.identity])
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:32]
    known = (columns.image, columns.labels, opened.num_images)
    return Source(dataset, split, records, *known, fingerprint, opened.left_out)


def _open_shapes(split: str) -> _Opened:
    dataset = shapes(split)
    return _of_table(dataset.data.table, dataset.features)


def _open_digits(split: str) -> _Opened:
    """scikit-learn's 8 x 8 handwritten digits; the last 360 of 1,797 are the test split."""
    bounds = {"train": slice(None, -360), "test": slice(-360, None)}
    if split not in bounds:
        raise UserError(f"`digits` has no split `{split}`. It has: {', '.join(bounds)}.")
    # Imported here: it takes most of a second, in every program and worker process, and only these images need it.
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    pictures = np.rint(pictures.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[bounds[split]]
    images = [{"bytes": cv2.imencode(".png", picture)[1].tobytes(), "path": None} for picture in pictures]
    names = [str(digit) for digit in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return _of_table(
        pa.table({"image": images, "label": labels[bounds[split]]}, schema=features.arrow_schema), features
    )


_EMBEDDED: dict[str, Callable[[str], _Opened]] = {"shapes": _open_shapes, "digits": _open_digits}


def _of_table(table: pa.Table, features: datasets.Features) -> _Opened:
    content = hashlib.sha256()
    for batch in table.to_batches():
        content.update(batch.serialize())
    return _Opened(table_records(table, features), table.num_rows, content.hexdigest())


def _open_folder(name: str, path: Path, config: str | None, split: str) -> _Opened:
    contents = list_folder(path)
    counts = contents.left_out
    if contents.kind in ("parquet", "tar"):  # pictures beside them do not belong to the data
        counts = {reason: count for reason, count in counts.items() if not reason.startswith("format")}
    left_out = _listed(counts)
    if contents.kind is None and left_out:
        raise UserError(f"The folder `{name}` holds no images that can be read: {left_out}.{_help_for(left_out)}")
    if contents.kind is None:
        raise UserError(f"The folder `{name}` holds no images, parquet or tar files. Give the folder that holds them.")
    if left_out:
        _warn_of_left_out(name, left_out)
    if contents.kind != "images":
        return replace(_open_builder(name, split, path=str(path), name=config), left_out=counts)
    images, classes, names = images_of_split(name, contents.images, split)
    content = hashlib.sha256("\n".join(images).encode(errors="surrogateescape")).hexdigest()
    records = folder_records(path, images, classes, names)
    return _Opened(records, len(images), content, left_out=counts)


@lru_cache(maxsize=64)  # once for each data set, however often it is opened
def _warn_of_left_out(name: str, left_out: str) -> None:
    _logger.warning("Left out of the folder `%s`: %s.%s", name, left_out, _help_for(left_out))


def _listed(counts: dict[str, int]) -> str:
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in by_count)


def _help_for(left_out: str) -> str:
    if any(ending in left_out for ending in (".heic", ".heif", ".hif", ".jxl")):
        return " HEIC and JPEG XL can be read after: pip install 'hf_ssl[formats]'"
    return ""


def _open_file(name: str, path: Path, split: str) -> _Opened:
    kind = "webdataset" if is_tar(path.name) else {".parquet": "parquet"}.get(path.suffix)
    if kind is None:
        raise UserError(f"`dataset` must be a folder, a parquet or a tar file or a Hub id, got the file `{name}`.")
    return _open_builder(name, split, path=kind, data_files={"train": [str(path)]})


def _open_builder(dataset: str, split: str, **where: Any) -> _Opened:
    """Open what `datasets` knows: the Hub, parquet and webdataset."""
    builder = _attempt(dataset, lambda: datasets.load_dataset_builder(**where))
    data_files = builder.config.data_files or {}
    splits = [str(known) for known in (builder.info.splits or data_files)]
    if splits and split not in splits:
        raise UserError(f"`{dataset}` has no split `{split}`. It has: {', '.join(splits)}.")
    files = list(data_files.get(split, []))
    known = (builder.info.splits or {}).get(split)
    if files and all(os.path.isfile(file) for file in files):
        identity = [[os.path.basename(file), os.path.getsize(file)] for file in files]
        if all(file.endswith(".parquet") for file in files):
            records, num_images = parquet_records(files)
            return _Opened(
                records,
                num_images,
                identity,
                lambda needed, labels: parquet_records(files, [*needed, *labels], optional=labels)[0],
            )
        if all(is_tar(file) and _is_empty_tar(file) for file in files):
            raise _no_images(dataset, split)
    else:
        identity = [builder.hash, files]  # addresses with the commit
    here = bool(files) and all(map(os.path.exists, files))
    roots = () if here else roots_of(file for of_split in data_files.values() for file in of_split)
    layout = _attempt(dataset, lambda: tar_layout(files)) if files and all(map(is_tar, files)) else None
    if layout is not None:
        return _Opened(
            tar_records(files, layout),
            known.num_examples if known else None,
            identity,
            lambda needed, labels: tar_records(files, layout, needed[0], [*needed, *labels]),
            roots=roots,
        )
    records = _attempt(dataset, lambda: undecoded(builder.as_streaming_dataset(split=split)))
    roots = (
        ()
        if files and all(map(os.path.exists, files))
        else roots_of(file for of in data_files.values() for file in of)
    )
    return _Opened(records, known.num_examples if known else None, identity, roots=roots)


def _no_images(dataset: str, split: str) -> UserError:
    return UserError(f"Split `{split}` of `{dataset}` holds no images. Choose another split or data set.")


def _is_empty_tar(path: str) -> bool:
    try:
        return next(pieces(path), None) is None
    except OSError:
        return False  # opening it as a data set says why


def _attempt(name: str, open_: Callable[[], Any]) -> Any:
    """Call `datasets` and say in one sentence what it could not do."""
    try:
        return open_()
    except _OPENING_ERRORS as error:
        here = [] if "/" in name else [path.name for path in Path().iterdir() if not path.name.startswith(".")]
        close = difflib.get_close_matches(name, [*_EMBEDDED, *here], n=1)
        hint = f" Did you mean `{close[0]}`?" if close else " Check the name, and the connection if it is on the Hub."
        detail = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise UserError(f"`dataset` `{name}` cannot be opened: {type(error).__name__}: {detail}.{hint}") from error
