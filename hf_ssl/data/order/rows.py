"""Records of a data set by their numbers: what extraction in pieces and galleries of neighbours read."""

import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Any

import datasets
import pyarrow as pa

from hf_ssl.data.order.patience import patient_tables
from hf_ssl.data.sources.files import INDEX_COLUMN
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError

_TABLE_ROWS = 128  # rows that `datasets` hands over at once
_ROWS_PER_PIECE = 1024  # of a data set that can be entered anywhere; about what is read in vain on entering it
_IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


class RowReader:
    """Reads ranges of rows, forwards, and decodes nothing.

    Where the rows are numbered (files on this machine, embedded data sets) it enters the data set near the row that is
    wanted. A stream has to be read up to there, in whole tables where its format has them.

    Args:
        source: The data set, opened without an index column of the user's.
    """

    def __init__(self, source: Source):
        labels = list(source.labels)
        self._source, self._image_column = source, source.image_column
        self._types = {source.image_column: _IMAGE_TYPE, **dict.fromkeys(labels, pa.int64())}
        self._records = source.records
        self._pieces = 0
        if source.has_indices and source.num_images is not None:
            self._pieces = min(source.records.num_shards, -(-source.num_images // _ROWS_PER_PIECE))
        self._row = 0  # of the first record that `_tables` will give
        self._tables: Iterator[pa.Table] = self._tables_of([self._records])
        self._first_row = lru_cache(maxsize=None)(self._first_row_of)

    def read(self, first: int, stop: int) -> pa.Table:
        """Records of the rows `first` to `stop` - 1, fewer where the data set ends; columns: image and labels.

        Args:
            first: Not before the end of the last range that was read.
            stop: Larger than `first`.
        """
        self._enter(first)
        parts = []
        while self._row < stop:
            table = next(self._tables, None)
            if table is None:
                break
            start, end = self._row, self._row + len(table)
            if end > stop:
                self._tables = chain([table.slice(stop - start)], self._tables)
                end = stop
            if end > first:
                parts.append(table.slice(max(0, first - start), end - max(start, first)))
            self._row = end
        schema = pa.schema(list(self._types.items()))
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def images(self, row_ids: Iterable[int]) -> dict[int, Any]:
        """Undecoded images by their rows, which are read in ascending order."""
        found = {}
        for row in sorted(set(row_ids)):
            for image in self.read(row, row + 1)[self._image_column].to_pylist():
                found[row] = image
        return found

    def _enter(self, row: int) -> None:
        """Go on to the last piece that begins at or before a row, unless it is the one at hand or cannot be known."""
        if row < self._row:
            raise UserError(f"Rows are read forwards, but row {row} comes before row {self._row}. Sort the ranges.")
        if row - self._row <= _ROWS_PER_PIECE or self._pieces < 2:
            return
        piece = bisect_right(range(self._pieces), row, key=self._first_row) - 1
        if self._first_row(piece) > self._row:
            self._row = self._first_row(piece)
            self._tables = self._tables_of(map(self._piece, range(piece, self._pieces)))

    def _piece(self, number: int) -> datasets.IterableDataset:
        return self._records.shard(self._pieces, number)

    def _first_row_of(self, piece: int) -> int:
        for number in range(piece, self._pieces):  # a file may have row groups without rows
            numbers = self._piece(number).select_columns([INDEX_COLUMN])
            for table, _ in patient_tables(self._source, numbers, 1):
                return table[INDEX_COLUMN][0].as_py()
        return sys.maxsize

    def _tables_of(self, parts: Iterable[datasets.IterableDataset]) -> Iterator[pa.Table]:
        for records in parts:
            for table, _ in patient_tables(self._source, records.select_columns(list(self._types)), _TABLE_ROWS):
                yield table
