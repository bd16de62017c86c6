"""Every kind of data set as one stream of records whose images are not yet decoded."""

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from hf_ssl.data.decode.access import Access
from hf_ssl.data.decode.image_bytes import reason_of
from hf_ssl.data.decode.unavailable import DATA_TIMEOUT
from hf_ssl.data.sources.columns import Columns, find_columns
from hf_ssl.data.sources.embedded import open_embedded
from hf_ssl.data.sources.files import INDEX_COLUMN
from hf_ssl.data.sources.listing import is_utf8
from hf_ssl.data.sources.local import is_saved, open_local, open_saved
from hf_ssl.data.sources.objects import DataObject, name_of_object, open_object
from hf_ssl.data.sources.opened import EMBEDDED, Opened, attempt, no_images
from hf_ssl.data.sources.remote import is_address, open_address, open_hub
from hf_ssl.data.sources.resolve import Choice
from hf_ssl.data.sources.texts import is_text, with_meaning
from hf_ssl.errors import UserError
from hf_ssl.tokens import without_tokens

_logger = logging.getLogger(__name__)

_HERE = "file://"  # what follows is a path

DataLike = str | Path | DataObject
"""What `open_source` opens."""


@dataclass(frozen=True)
class Source:
    """A data set, opened.

    Args:
        name: As the user typed it, an address without tokens and passwords; of an object, what `name_of` says.
        split: Name of the split.
        records: Rows with the undecoded image (`{"bytes": ..., "path": ...}`), the label columns as integers and,
            where the source has one, `INDEX_COLUMN`; in fixed order.
        image_column: Column of the images.
        labels: Every label column and its class names (empty where unknown); the main one first.
        num_images: Number of records; None if only reading them all would tell.
        fingerprint: Hexadecimal; changes with names and sizes of local files, the commit of the Hub, split, image
            column, and the settings that choose files and labels. Not with the label column: what uses it compares it.
        left_out: Pictures and folders in an image folder, all splits together, that are no records because they cannot
            be read, counted by reason.
        understood: How a local data set is read: splits and classes with counts, and what is not read, in one line.
            Empty for others.
        files: Columns `name` and `size` (bytes) of the files of the split; None if they do not lie on this machine.
        access: Which paths of records may be read, and for how long that is tried.
        kind: What the name is, one of `KINDS`. Decided here, where the data set lies; records and cards repeat it.
    """

    name: str
    split: str
    records: datasets.IterableDataset
    image_column: str
    labels: dict[str, list[str]]
    num_images: int | None
    fingerprint: str
    left_out: dict[str, int] = field(default_factory=dict)
    understood: str = ""
    files: pa.Table | None = field(default=None, repr=False, compare=False)
    access: Access = Access()
    kind: str = "object"

    @property
    def has_indices(self) -> bool:
        """Whether every record carries a stable number."""
        return INDEX_COLUMN in (self.records.features or {})


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
    data_dir: str | None = None,
    data_files: str | list[str] | dict[str, Any] | None = None,
    drop_labels: bool | None = None,
    allow_paths: bool = False,
    data_timeout: float = DATA_TIMEOUT,
) -> Source:
    """Open one split of a data set as a stream of records.

    Args:
        dataset: `shapes`, `digits`, a folder or file that `datasets.load_dataset` reads (images, parquet, arrow, csv,
            json, webdataset tars, zip archives of images) or that `save_to_disk` wrote, an address (`hf://`,
            `https://`, `s3://`), or the id of a data set on the Hub, which is streamed. Splits and classes are those
            of `load_dataset`. Also an object of `datasets`: a `Dataset` (in memory or on the disk), an
            `IterableDataset`, or a dictionary of splits. Labels, columns and order of an object are its own; format
            and transform are not used.
        config: Config of a data set that has several, on the Hub or in the README.md of a folder.
        split: Name of the split.
        revision: Branch, tag or commit of a Hub data set.
        image_column: Column of the images; None: found by its type, else by its name.
        label_column: Main label column; None: found by its type and name. A data set may have none. Each text of a
            column of texts is a class.
        index_column: Column of integers that number the images; None: made for local files and embedded data sets.
        data_dir: Folder in `dataset` that holds the data.
        data_files: Patterns of the files, relative to `dataset`, or splits with their patterns, such as
            `{"train": "photos/**"}`.
        drop_labels: For a folder of images: True: folders are no classes; False: they always are; None: as `datasets`
            finds.
        allow_paths: Read whatever file or address a record names. Else, in data from the Hub or an address, only what
            belongs to the data set; in data of this machine any file, but no address.
        data_timeout: Seconds for which it is tried again to read what cannot be read, at least 0.

    Returns:
        The opened source.

    Raises:
        UserError: If the data set cannot be opened, is empty, can be read in two ways, or lacks the split or column.
    """
    name = name_of(dataset)
    choice = Choice(config, revision, data_dir, read_data_files(data_files), drop_labels)
    if isinstance(dataset, str | Path):
        opened = _open_name(name, split, choice)
    else:
        for setting, value in _of_names(choice):
            if value is not None:
                raise UserError(f"`{setting}` is for folders and the Hub, but `dataset` is an object. Leave it out.")
        opened = open_object(dataset, name, split)
    shown = without_tokens(name) if is_address(name) else name  # it goes into records, cards and pictures
    source = _with_columns(opened, shown, config, split, image_column, label_column, index_column)
    source = replace(source, access=Access(opened.roots, allow_paths, data_timeout), kind=opened.kind)
    _tell(source.understood, bool(source.left_out))
    return source


def read_data_files(value: Any) -> Any:
    """Patterns, or splits with patterns, where they may also be given as JSON or as the README of a data set has them.

    Raises:
        UserError: If they are neither.
    """
    wrong = UserError(
        "`data_files` must be a pattern, a list of patterns, or a JSON object of splits with patterns such as "
        f'\'{{"train": "photos/**"}}\', got {json.dumps(value, default=str)}.'
    )
    if isinstance(value, str) and value.lstrip().startswith(("{", "[{", '["')):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise wrong from None
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        if not all(set(one) == {"split", "path"} for one in value):
            raise wrong
        value = {one["split"]: one["path"] for one in value}  # as the README of a data set has it
    parts = list(value.values()) if isinstance(value, dict) else [] if value is None else [value]
    for part in parts:
        patterns = part if isinstance(part, list) else [part]
        if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
            raise wrong
    if value == {}:
        raise wrong
    for split in value if isinstance(value, dict) else []:
        if not re.fullmatch(r"\w+(\.\w+)*", split):  # the rule of `datasets`
            raise UserError(f"`data_files` must name splits by letters, digits and _, got `{split}`.")
    return value


@lru_cache(maxsize=64)  # once for each data set, however often it is opened
def _tell(understood: str, incomplete: bool) -> None:
    if understood:
        _logger.log(logging.WARNING if incomplete else logging.INFO, "%s", understood)


def _of_names(choice: Choice) -> list[tuple[str, Any]]:
    return [
        ("dataset_config", choice.config),
        ("dataset_revision", choice.revision),
        ("data_dir", choice.data_dir),
        ("data_files", choice.data_files),
        ("drop_labels", choice.drop_labels),
    ]


def _open_name(name: str, split: str, choice: Choice) -> Opened:
    if not is_utf8(name):
        raise UserError(f"`dataset` must have a name in UTF-8, got {ascii(name)}. Rename the file or folder.")
    if name.startswith(_HERE) and os.path.exists(name.removeprefix(_HERE)):
        name = name.removeprefix(_HERE)
    if name in EMBEDDED:
        _refuse(name, choice, "comes with the package")
        return replace(open_embedded(name, split), kind="embedded")
    if is_address(name):
        return replace(open_address(name, split, choice), kind="address")
    path = Path(name).expanduser()
    try:
        exists, is_folder, is_file = path.exists(), path.is_dir(), path.is_file()
    except OSError as error:
        raise UserError(f"`dataset` `{name}` cannot be opened: {reason_of(error)}. Check its path.") from None
    if is_folder and is_saved(path):
        _refuse(name, choice, "was written by `save_to_disk`")
        return replace(open_saved(name, path, split), kind="local")
    if is_folder or is_file:
        return replace(open_local(name, path, split, choice), kind="local")
    if exists:
        raise UserError(f"`dataset` must be a folder or a regular file, but `{name}` is a pipe, socket or device.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix in (".parquet", ".tar", ".zip", ".csv"):
        raise UserError(f"`dataset` must exist, but there is no file or folder `{name}`.")
    return replace(open_hub(name, split, choice), kind="hub")


def _refuse(name: str, choice: Choice, why: str) -> None:
    for setting, value in _of_names(choice):
        if value is not None and setting != "dataset_revision":
            raise UserError(f"`{setting}` is for folders of files and the Hub, but `{name}` {why}. Leave it out.")


def _with_columns(
    opened: Opened,
    dataset: str,
    config: str | None,
    split: str,
    image_column: str | None,
    label_column: str | None,
    index_column: str | None = None,
) -> Source:
    records, features = opened.records, opened.records.features
    if opened.num_images == 0:
        raise no_images(dataset, split)
    if features is None:  # some formats declare no columns: the first rows show them
        first_rows = attempt(dataset, lambda: list(records.take(8)))
        if not first_rows:
            raise no_images(dataset, split)
        features = datasets.Dataset.from_list(first_rows).features
    stated = opened.features or {}
    named = datasets.Features(
        {name: stated.get(name, feature) for name, feature in features.items() if name != INDEX_COLUMN}
    )
    columns = find_columns(
        named, dataset, image_column, label_column, index_column, opened.distinct, opened.num_images
    )
    if opened.select is not None:
        records = opened.select([columns.image, *([index_column] if index_column else [])], list(columns.labels))
    records = _without_texts(records, columns, opened)
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
    if opened.num_images is None and not attempt(dataset, lambda: list(records.take(1))):
        raise no_images(dataset, split)
    main_label = next(iter(columns.labels), None)
    identity = json.dumps([config, split, columns.image, index_column, opened.identity])
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:32]
    known = (columns.image, columns.labels, opened.num_images)
    understood = opened.understood
    if understood and opened.distinct is not None:  # a table; classes that are folders are told already
        names = columns.labels[main_label] if main_label is not None else []
        what = f"Labels: `{main_label}`" if main_label is not None else "No label column"
        understood += f" {what}" + (f", {len(names):,} classes." if names else ".")
    return Source(dataset, split, records, *known, fingerprint, opened.left_out, understood, opened.files)


def _without_texts(records: datasets.IterableDataset, columns: Columns, opened: Opened) -> datasets.IterableDataset:
    """Records whose labels are numbers and whose images are images, where they are texts."""
    # Only what lies on this machine is read as tables, and its paths are relative to its folder.
    image = (
        columns.image if opened.distinct is not None and is_text((records.features or {}).get(columns.image)) else None
    )
    if not columns.texts and image is None:
        return records
    return with_meaning(records, {name: columns.labels[name] for name in columns.texts}, image, opened.folder)
