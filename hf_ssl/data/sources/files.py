"""Data sets on this machine: image folders and parquet files as sharded tables whose rows are numbered.

`datasets` reads an image folder as one shard, which shuffles badly where files are sorted by class, and numbers no
rows. Here tables become many small shards, with `INDEX_COLUMN`.
"""

import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.iterable_dataset import ArrowExamplesIterable
from datasets.table import cast_table_to_features

from hf_ssl.data.decode.image_bytes import DAMAGED_ARCHIVE
from hf_ssl.data.sources.unchanged import Stamp, check_unchanged, stamp_of
from hf_ssl.errors import UserError, first_line

_logger = logging.getLogger(__name__)

INDEX_COLUMN = "__index__"
"""Column of the records with the stable number of each image, where the source has one."""

_ROWS_PER_SHARD = 16  # so small that the shuffled order of shards mixes classes that lie in sequence
_MAX_SHARDS = 65536
# Rows and bytes in memory at once, however large the file's row groups are. Much larger blocks go back to the system
# after each use and come again as fresh pages, which costs more than reading. Saved positions count in these batches.
_PARQUET_BATCH = 512
_PARQUET_BATCH_BYTES = 2**23
_IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_IMAGE_STRUCT = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
_PARQUET_BUFFER = 2**20  # bytes of the file read at once; pyarrow's default is a whole row group


class PlacedExamples(ArrowExamplesIterable):
    """Rows of a table that can be entered at any of them.

    Args:
        read: Gives the tables of some places.
        places: What makes a shard each. A place ends with the numbers of its first row and of the one after its last
            in the whole table; what comes before says where it lies. The numbers may be moved together to cut it.
    """

    def __init__(self, read: Callable[..., Iterator[tuple[Any, pa.Table]]], places: list[tuple]):
        super().__init__(read, {"places": places})

    @property
    def places(self) -> list[tuple]:
        """Its shards."""
        return self.kwargs["places"]

    def at(self, places: list[tuple]) -> "PlacedExamples":
        """The rows of other places."""
        return PlacedExamples(self.generate_tables_fn, places)


def folder_records(
    folder: Path, images: list[str], classes: list[str] | None, names: list[str]
) -> datasets.IterableDataset:
    """Records with the paths of image files; the files themselves are read where they are decoded.

    Args:
        folder: The folder.
        images: Image files, relative to it, or absolute; those in an archive as `archive.zip//member`.
        classes: Class name of each; None: no image of this split has a class.
        names: Names of the classes, in the order of their numbers; empty without classes.

    Returns:
        Records with the columns `image`, `label` (if there are classes) and `INDEX_COLUMN`.
    """
    columns: dict[str, pa.Array] = {"image": pa.array(images, pa.string())}
    features: dict[str, datasets.Image | datasets.ClassLabel] = {"image": datasets.Image(decode=False)}
    if names:
        number = {name: index for index, name in enumerate(names)}
        numbers = [None] * len(images) if classes is None else [number[name] for name in classes]
        columns["label"] = pa.array(numbers, pa.int64())
        features["label"] = datasets.ClassLabel(names=names)
    return table_records(pa.table(columns), datasets.Features(features), folder)


def table_records(
    table: pa.Table, features: datasets.Features, folder: Path | None = None
) -> datasets.IterableDataset:
    """Stream a table that is in memory, in many small shards.

    Args:
        table: At least one row.
        features: Its columns and types.
        folder: If given, the column `image` holds paths relative to it, or absolute ones.

    Returns:
        Its records, with `INDEX_COLUMN`.
    """
    read = partial(_read_ranges, table, folder)
    return _numbered_records(read, _small_ranges(table.num_rows), features)


def dataset_records(dataset: datasets.Dataset) -> datasets.IterableDataset:
    """Stream a `Dataset`, in many small shards and in the order in which it shows its rows.

    Args:
        dataset: At least one row; they may be selected or shuffled. Its format and transform are not used.

    Returns:
        Its records, with `INDEX_COLUMN`.
    """
    features = datasets.Features({name: kind for name, kind in dataset.features.items() if name != INDEX_COLUMN})
    rows = dataset.select_columns(list(features)).with_format("arrow")
    read = partial(_read_dataset, rows)
    return _numbered_records(read, _small_ranges(dataset.num_rows), features)


def _small_ranges(rows: int) -> list[tuple[int, int]]:
    # A power of two, so that the usual numbers of processes divide it and each gets its own shards.
    num_shards = min(_MAX_SHARDS, 1 << max(0, rows // _ROWS_PER_SHARD).bit_length() >> 1) or 1
    borders = [shard * rows // num_shards for shard in range(num_shards + 1)]
    return list(zip(borders[:-1], borders[1:], strict=True))


def _read_dataset(
    dataset: datasets.Dataset, places: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    for start, end in places:
        part: pa.Table = dataset[start:end]  # pyright: ignore[reportAssignmentType]
        yield (start, end), part.append_column(INDEX_COLUMN, pa.array(range(start, end), pa.int64()))


def _read_ranges(
    table: pa.Table, folder: Path | None, places: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    for start, end in places:
        part = table.slice(start, end - start)
        if folder is not None:
            cells = [_image_in(folder, path) for path in part["image"].to_pylist()]
            part = part.set_column(0, "image", pa.array(cells, _IMAGE_TYPE))
        yield (start, end), part.append_column(INDEX_COLUMN, pa.array(range(start, end), pa.int64()))


def _image_in(folder: Path, path: str) -> dict[str, str | bytes | None]:
    archive, inside, member = path.partition(".zip//")
    if not inside:
        return {"bytes": None, "path": os.path.join(folder, path)}
    archive = os.path.join(folder, f"{archive}.zip")
    try:
        return {"bytes": _archive(archive, os.getpid()).read(member), "path": f"zip://{member}::{archive}"}
    except OSError:  # said when the image is read
        return {"bytes": None, "path": f"zip://{member}::{archive}"}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, KeyError):
        # `NotImplementedError` is raised for an unknown compression, `RuntimeError` for an encrypted member.
        return {"bytes": None, "path": DAMAGED_ARCHIVE}


@lru_cache(maxsize=8)
def _archive(path: str, process: int) -> zipfile.ZipFile:
    """Opened once in each process, since its list of members may be long; two must not share its place in the file."""
    return zipfile.ZipFile(path)


def parquet_records(
    files: list[str], columns: list[str] | None = None, optional: Sequence[str] = ()
) -> tuple[datasets.IterableDataset, int]:
    """Stream local parquet files; every row group is a shard.

    A file may have its columns in another order or, where the meaning is clear, in another type than the first one.

    Args:
        files: Parquet files of one data set, in order.
        columns: The columns to read; None: all that any file has.
        optional: Those of `columns` that are null in a file that lacks them.

    Returns:
        Records with `INDEX_COLUMN`, and their number.

    Raises:
        UserError: If a file is no parquet file, or lacks a column.
    """
    places, rows, schemas, stamps = [], 0, [], {}
    for path in files:
        try:
            stamps[path] = stamp_of(path)
            with pq.ParquetFile(path) as file:
                schemas.append(_without_dictionaries(file.schema_arrow))
                for group in range(file.num_row_groups):
                    after = rows + file.metadata.row_group(group).num_rows
                    if after > rows:
                        places.append((path, group, rows, rows, after))
                    rows = after
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"`{path}` cannot be read as parquet: {first_line(error)}.") from None
    features = datasets.Features()
    for schema, path in {str(schema): (schema, path) for schema, path in zip(schemas, files, strict=True)}.values():
        features = datasets.Features({**_features_of(schema, path), **features})
    # The columns of the first file come first.
    first = [name for name in schemas[0].names if name in features]
    features = datasets.Features({name: features[name] for name in dict.fromkeys([*first, *features])})
    if columns is not None:
        features = datasets.Features({name: features[name] for name in columns})
        for path, schema in zip(files, schemas, strict=True):
            lacking = [name for name in columns if name not in schema.names and name not in optional]
            if lacking:
                raise UserError(
                    f"`{path}` has no column `{lacking[0]}`, which other files of the data set have. It has: "
                    f"{', '.join(f'`{name}`' for name in schema.names)}. Rename its column, or take the file away."
                )
    types = {name: next(s.field(name).type for s in schemas if name in s.names) for name in features}
    for name in [name for name, feature in features.items() if _lacks_type(feature)]:
        features[name], types[name] = _IMAGE_STRUCT, _IMAGE_TYPE
    read = partial(_read_row_groups, columns, types, features, stamps)
    return _numbered_records(read, places, features), rows


def _features_of(schema: pa.Schema, path: str) -> datasets.Features:
    try:
        return datasets.Features.from_arrow_schema(schema)
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # whatever a damaged description leads to
        _logger.warning("`%s` is read without its description of the columns, which is damaged: %s", path, error)
        return datasets.Features.from_arrow_schema(schema.remove_metadata())


def _lacks_type(feature: Any) -> bool:
    """Whether it is that of images written without the type of a part, all of whose values are null."""
    null = datasets.Value("null")
    return isinstance(feature, dict) and set(feature) == set(_IMAGE_STRUCT) and null in feature.values()


def _without_dictionaries(schema: pa.Schema) -> pa.Schema:
    """The schema with the type of the values where they are stored as a dictionary, which `datasets` does not know."""
    for place, column in enumerate(schema):
        if pa.types.is_dictionary(column.type):
            schema = schema.set(place, column.with_type(column.type.value_type))
    return schema


@lru_cache(maxsize=8)
def _metadata(path: str, stamp: Stamp) -> pq.FileMetaData:
    """Read once for all row groups of a file: a large file's takes longer than one of its row groups."""
    return pq.read_metadata(path)


def _read_row_groups(
    columns: list[str] | None,
    types: dict[str, pa.DataType],
    features: datasets.Features,
    stamps: dict[str, Stamp],
    places: list[tuple[str, int, int, int, int]],
) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    for path, group, first, start, end in places:
        for batch in _batches(path, group, columns, stamps[path]):
            here, first = first, first + batch.num_rows
            if first <= start:
                continue
            if here >= end:
                break
            batch = batch.slice(max(0, start - here), min(first, end) - max(here, start))
            here = max(here, start)
            index = pa.array(range(here, here + batch.num_rows), pa.int64())
            table = pa.Table.from_batches([batch])
            if types != {field.name: field.type for field in table.schema}:
                table = _as_the_others(table, types, features, path)
            yield (group, here), table.append_column(INDEX_COLUMN, index)


def _batches(path: str, group: int, columns: list[str] | None, stamp: Stamp) -> Iterator[pa.RecordBatch]:
    """Rows of a row group. What fails raises an `OSError` that names the file."""
    try:
        check_unchanged(path, stamp)
        metadata = _metadata(path, stamp)
        about = metadata.row_group(group)
        rows = min(_PARQUET_BATCH, 1 + _PARQUET_BATCH_BYTES * about.num_rows // max(1, about.total_byte_size))
        with pq.ParquetFile(path, metadata=metadata, pre_buffer=False, buffer_size=_PARQUET_BUFFER) as file:
            for batch in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                check_unchanged(path, stamp)  # a file that is written to while it is open gives anything
                yield batch
    except (pa.ArrowException, OSError) as error:
        reason = first_line(error)
        raise OSError(reason if path in reason else f"`{path}`: {reason}") from error


def _as_the_others(table: pa.Table, types: dict[str, pa.DataType], features: datasets.Features, path: str) -> pa.Table:
    """Rows of a file with the columns and types of the data set."""
    columns = {}
    for name, type_ in types.items():
        column = table[name] if name in table.column_names else pa.nulls(table.num_rows, type_)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        feature = datasets.Image() if features[name] == _IMAGE_STRUCT else features[name]  # it also reads plain bytes
        one = datasets.Features({name: feature})
        try:
            columns[name] = cast_table_to_features(pa.table({name: column}), one)[name]
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise UserError(
                f"Column `{name}` of `{path}` holds {column.type}, which cannot be read as the {type_} of the other "
                f"files: {first_line(error)}. Convert the column, or take the file away."
            ) from None
    return pa.table(columns)


def _numbered_records(read, places: list[tuple], features: datasets.Features) -> datasets.IterableDataset:
    features = datasets.Features({**features, INDEX_COLUMN: datasets.Value("int64")})
    return datasets.IterableDataset(PlacedExamples(read, places), info=datasets.DatasetInfo(features=features))
