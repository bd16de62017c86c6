"""Undecoded records as tables, read with patience: where a file or a connection fails, reading goes on as it was."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from hf_ssl.data.decode.access import Access
from hf_ssl.data.decode.image_bytes import OUTSIDE
from hf_ssl.data.decode.unavailable import Patience, comes_from_reading, impatient_libraries
from hf_ssl.data.sources.open import Source

_IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def patient_tables(
    source: Source, records: datasets.IterableDataset, rows: int, state: dict[str, Any] | None = None
) -> Iterator[tuple[pa.Table, dict[str, Any]]]:
    """Read records, each once and in order, also where reading fails on the way and works again later.

    What fails is tried again, with pauses that grow, for `source.access.timeout` seconds after the last success. All
    readers of images go through here, because it also takes out paths that a data set must not make us read.

    Args:
        source: The data set; its name goes into messages.
        records: Its records, or some of their columns or shards.
        rows: Records of a table, at least 1; the last one may have fewer.
        state: What came with the table after which to begin; None: at the beginning.

    Yields:
        A table with the columns of `records`, and the state after it.

    Raises:
        DataUnavailableError: If nothing could be read for so long. It names the file or address, if that is known.
    """
    patience = Patience(source.name, source.access.timeout)
    as_tables = records._ex_iterable.iter_arrow is not None
    formatting = records._formatting
    # The others come row by row, and each would become a table.
    if as_tables and not (formatting and formatting.is_table):
        epoch = records.epoch
        records = records.with_format("arrow")  # which forgets the epoch, and with it the order of the shards
        records.set_epoch(epoch)
    while True:
        records.load_state_dict(state)  # pyright: ignore[reportArgumentType]
        parts = records.iter(rows)
        while True:
            started = time.monotonic()
            try:
                with impatient_libraries() if source.access.remote else nullcontext():
                    part = next(parts, None)
            except Exception as error:
                if not comes_from_reading(error):
                    raise
                patience.wait(error, started)
                break
            if part is None:
                return
            state = records.state_dict()
            patience.succeeded()
            table: pa.Table = part if as_tables else _table_of(part, source.image_column)  # pyright: ignore[reportAssignmentType]
            yield _without_outside(table, source.image_column, source.access), state


def _table_of(rows: dict[str, list], image_column: str) -> pa.Table:
    types = {name: _IMAGE_TYPE if name == image_column else pa.int64() for name in rows}
    return pa.table(rows, schema=pa.schema(list(types.items())))


def _without_outside(table: pa.Table, image_column: str, access: Access) -> pa.Table:
    """The table with `OUTSIDE` for the paths that must not be read."""
    if access.allow_paths or image_column not in table.column_names:
        return table
    if all(chunk.field("bytes").null_count == 0 for chunk in table[image_column].chunks):
        return table  # no path is read
    images = table[image_column].combine_chunks()
    if isinstance(images, pa.ChunkedArray):  # more than 2 GB
        images = pa.concat_arrays(images.chunks)
    data, paths = images.field("bytes"), images.field("path")
    read = pc.and_(pc.is_null(data), pc.is_valid(paths))  # pyright: ignore[reportAttributeAccessIssue]
    if not access.remote:  # of paths of this machine, only addresses are refused
        read = pc.and_(read, pc.fill_null(pc.match_substring_regex(paths, "::|://"), False))  # pyright: ignore[reportAttributeAccessIssue]
    suspects = pc.indices_nonzero(read).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
    refused = {place for place in suspects if not access.permits(paths[place].as_py())}
    if not refused:
        return table
    kept = [f"{OUTSIDE}\0{path}" if place in refused else path for place, path in enumerate(paths.to_pylist())]
    images = pa.StructArray.from_arrays(
        [data, pa.array(kept, paths.type)], names=["bytes", "path"], mask=images.is_null()
    )
    return table.set_column(table.column_names.index(image_column), image_column, images)
