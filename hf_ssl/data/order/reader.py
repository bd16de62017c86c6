"""Undecoded records of one process, in windows that are shuffled, cut into chunks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.distributed import split_dataset_by_node
from torch import Tensor

from hf_ssl.data.order.patience import patient_tables
from hf_ssl.data.sources.files import INDEX_COLUMN
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError

# What a generator is seeded for: the last number of its seed.
FOR_SHARDS, FOR_WINDOW = 0, 1  # `draws.py` has 2

# With this many shards for each process, one more or less does not matter; with fewer, every process reads all records
# and keeps its share, unless the shards divide evenly.
_MANY_SHARDS = 8

_TABLE_ROWS = 128  # rows that `datasets` hands over at once, or somewhat fewer, so that a window holds whole tables
_TRUSTED_BYTES = 2**30  # of memory for a window before its images are read

_IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@dataclass
class Chunk:
    """Consecutive records of the shuffled order, and what a worker made of them.

    `records` has three columns: the undecoded images (`{"bytes": ..., "path": ...}`), their indices and their labels,
    null where there are none. `start` and `end` are where the reader stands before and after the chunk; one without
    records ends an epoch.
    """

    start: dict[str, Any]
    end: dict[str, Any]
    place: int
    records: pa.RecordBatch | None = None
    size: int = 0
    views: tuple[Tensor, ...] = ()
    indices: list[int | None] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)


class Reader:
    """Reads this process's records window by window, each shuffled, and cuts them into chunks."""

    def __init__(
        self,
        source: Source,
        seed: int,
        rank: int,
        world_size: int,
        window_size: int,
        chunk_size: int,
        label_column: str | None = None,
    ):
        self.source = source
        self.label_column = label_column
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.window_size = window_size
        self.chunk_size = chunk_size

    def beginning(self, epoch: int = 0) -> dict[str, Any]:
        """The state before the first record of an epoch."""
        divisors = (rows for rows in range(_TABLE_ROWS, _TABLE_ROWS // 8, -1) if self.window_size % rows == 0)
        table_rows = next(divisors, self.window_size)
        return {"epoch": epoch, "window": 0, "offset": 0, "state": None, "table_rows": table_rows}

    def chunks(self, state: dict[str, Any]) -> Iterator[Chunk]:
        """Chunks from a state on, epoch after epoch."""
        columns = [self.source.image_column]
        if self.source.has_indices:
            columns.append(INDEX_COLUMN)
        if self.label_column is not None:
            columns.append(self.label_column)
        records = self.source.records.select_columns(columns)
        enough = records.num_shards >= _MANY_SHARDS * self.world_size
        records = split_dataset_by_node(records, self.rank, self.world_size, "shards" if enough else "auto")
        memory = _Window(self.window_size)
        while True:
            yield from self._epoch(records, memory, **state)
            state = self.beginning(state["epoch"] + 1)

    def _epoch(
        self,
        records: datasets.IterableDataset,
        memory: "_Window",
        epoch: int,
        window: int,
        offset: int,
        state: dict[str, Any] | None,
        table_rows: int,
    ) -> Iterator[Chunk]:
        records.set_epoch(self._shard_order(epoch))
        states = {"after": state}

        def tables() -> Iterator[pa.Table]:
            for table, states["after"] in patient_tables(self.source, records, table_rows, state):
                yield self._table(table)

        reading = tables()
        while rows := memory.fill(islice(reading, self.window_size // table_rows)):
            after = states["after"]
            order = np.random.default_rng([self.seed, epoch, self.rank, window, FOR_WINDOW]).permutation(len(rows))
            for begin in range(offset, len(rows), self.chunk_size):
                end = min(begin + self.chunk_size, len(rows))
                in_window = end < len(rows)
                here = {"epoch": epoch, "window": window, "offset": begin, "state": state, "table_rows": table_rows}
                following = {"window": window + 1, "offset": 0, "state": after}
                yield Chunk(
                    start=here,
                    end={**here, "offset": end} if in_window else {**here, **following},
                    place=window * self.window_size + begin,
                    records=rows.take(pa.array(order[begin:end])),
                    size=end - begin,
                )
            window, offset, state = window + 1, 0, after
        if window == 0:
            raise UserError(
                f"`{self.source.name}` has too few images: process {self.rank} would get none. Start fewer processes."
            )
        here = {"epoch": epoch, "window": window, "offset": 0, "state": state, "table_rows": table_rows}
        yield Chunk(start=here, end=here, place=window * self.window_size)

    def _table(self, rows: pa.Table) -> pa.Table:
        """The columns of a chunk."""
        types = {self.source.image_column: _IMAGE_TYPE, INDEX_COLUMN: pa.int64(), self.label_column: pa.int64()}
        present = rows.schema.names
        columns = [rows[name] if name in present else pa.nulls(len(rows), type_) for name, type_ in types.items()]
        return pa.table(columns, names=["image", "index", "label"])

    def _shard_order(self, epoch: int) -> int:
        # `datasets` orders the shards of an epoch by its number alone. A number drawn from seed and epoch makes the
        # order depend on both, and the same on every process; its own `shuffle(seed)` would cut tables into rows.
        words = np.random.SeedSequence([self.seed, epoch, FOR_SHARDS]).generate_state(2)
        return int(words[0]) * 2**30 + int(words[1]) % 2**30 + 1  # not 0, which leaves the shards as they are


class _Window:
    """Rows of one window, whose bytes lie in memory that is used again for the next.

    Memory that the system has to hand out and clear anew costs several times as much as reading a file into it.
    """

    def __init__(self, window_size: int):
        self._window_size = window_size
        self._memory = np.empty(0, np.uint8)

    def fill(self, tables: Iterable[pa.Table]) -> pa.RecordBatch | None:
        """The rows of all tables, in order; None if there are none. Valid until it is called again."""
        filled, rows, sizes, valid, others = 0, 0, [], [], []
        for table in tables:
            for batch in table.to_batches():
                data, paths = batch["image"].flatten()
                _, offsets, content = data.buffers()
                ends = np.frombuffer(offsets, np.int32)[data.offset : data.offset + len(data) + 1]
                size = int(ends[-1] - ends[0])
                rows += len(data)
                self._grow(filled, filled + size, rows)
                if size:
                    self._memory[filled : filled + size] = np.frombuffer(content, np.uint8)[ends[0] : ends[-1]]
                filled += size
                sizes.append(np.diff(ends))
                valid.append(data.is_valid())
                others.append(pa.table([paths, batch["index"], batch["label"]], names=["path", "index", "label"]))
        if not others:
            return None
        starts = np.concatenate([[0], *sizes]).cumsum(dtype=np.int64)
        buffers = [pa.concat_arrays(valid).buffers()[1], pa.py_buffer(starts), pa.py_buffer(self._memory)]
        data = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts) - 1, buffers)
        (paths,), (indices,), (labels,) = (column.chunks for column in pa.concat_tables(others).combine_chunks())
        images = pa.StructArray.from_arrays([data, paths], names=["bytes", "path"])
        return pa.record_batch([images, indices, labels], names=["image", "index", "label"])

    def _grow(self, filled: int, needed: int, rows: int) -> None:
        if needed > len(self._memory):
            # Room for a whole window of such rows and a quarter more: what is not written to costs nothing, but to
            # copy a window while it grows costs more than to read it. No more than a GiB on trust: the system refuses
            # what it could never hold, and one large image may come first.
            expected = needed * self._window_size // rows * 5 // 4
            larger = np.empty(max(needed, 2 * len(self._memory), min(expected, _TRUSTED_BYTES)), np.uint8)
            larger[:filled] = self._memory[:filled]
            self._memory = larger
