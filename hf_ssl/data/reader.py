"""Undecoded records of one process, in windows that are shuffled, cut into chunks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.distributed import split_dataset_by_node
from torch import Tensor

from hf_ssl.data.local import INDEX_COLUMN
from hf_ssl.data.sources import Source

# What a generator is seeded for: the last number of its seed.
FOR_SHARDS, FOR_WINDOW, FOR_VIEWS = 0, 1, 2

# With this many shards for each process, one more or less does not matter; with fewer, every process reads all records
# and keeps its share, unless the shards divide evenly.
_MANY_SHARDS = 8

# The bytes have 64-bit offsets, because a window may hold more than 2 GB.
_IMAGE_TYPE = pa.struct({"bytes": pa.large_binary(), "path": pa.string()})


@dataclass
class Chunk:
    """Consecutive records of the shuffled order, and what a worker made of them.

    `records` has three columns: the undecoded images (`{"bytes": ..., "path": ...}`), their indices and their labels,
    null where there are none. It holds its own rows alone, so that no window stays in memory for them. `start` and
    `end` are where the reader stands before and after the chunk; one without records ends an epoch.
    """

    start: dict[str, Any]
    end: dict[str, Any]
    place: int
    records: pa.RecordBatch | None = None
    size: int = 0
    views: Tensor | None = None
    indices: list[int | None] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)


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
        if records._ex_iterable.iter_arrow:  # the others are read row by row, and would become a table each
            records = records.with_format("arrow")
        while True:
            yield from self._epoch(records, **state)
            state = {"epoch": state["epoch"] + 1, "window": 0, "offset": 0, "state": None}

    def _epoch(
        self, records: datasets.IterableDataset, epoch: int, window: int, offset: int, state: dict[str, Any] | None
    ) -> Iterator[Chunk]:
        records.set_epoch(self._shard_order(epoch))
        records.load_state_dict(state)  # pyright: ignore[reportArgumentType]
        for rows in map(self._contiguous, records.iter(self.window_size)):
            after = records.state_dict()
            order = np.random.default_rng([self.seed, epoch, self.rank, window, FOR_WINDOW]).permutation(len(rows))
            for begin in range(offset, len(rows), self.chunk_size):
                end = min(begin + self.chunk_size, len(rows))
                in_window = end < len(rows)
                yield Chunk(
                    start={"epoch": epoch, "window": window, "offset": begin, "state": state},
                    end={
                        "epoch": epoch,
                        "window": window if in_window else window + 1,
                        "offset": end if in_window else 0,
                        "state": state if in_window else after,
                    },
                    place=window * self.window_size + begin,
                    records=rows.take(pa.array(order[begin:end])),
                    size=end - begin,
                )
            del rows  # else it would stay in memory while the next window is read
            window, offset, state = window + 1, 0, after
        if window == 0:
            raise ValueError(
                f"`{self.source.name}` has too few images: process {self.rank} would get none. Start fewer processes."
            )
        here = {"epoch": epoch, "window": window, "offset": 0, "state": state}
        yield Chunk(start=here, end=here, place=window * self.window_size)

    def _contiguous(self, rows: pa.Table | dict[str, list]) -> pa.RecordBatch:
        """One window as one piece of memory: from a table of many pieces, each `take` would copy them all first."""
        types = {self.source.image_column: _IMAGE_TYPE, INDEX_COLUMN: pa.int64(), self.label_column: pa.int64()}
        if isinstance(rows, dict):
            rows = pa.table(rows, schema=pa.schema([(name, types[name]) for name in rows]))
        columns = [
            rows[name].cast(type_) if name in rows.column_names else pa.nulls(len(rows), type_)
            for name, type_ in types.items()
        ]
        return pa.table(columns, names=["image", "index", "label"]).combine_chunks().to_batches()[0]

    def _shard_order(self, epoch: int) -> int:
        # `datasets` orders the shards of an epoch by its number alone. A number drawn from seed and epoch makes the
        # order depend on both, and the same on every process; its own `shuffle(seed)` would cut tables into rows.
        words = np.random.SeedSequence([self.seed, epoch, FOR_SHARDS]).generate_state(2)
        return int(words[0]) * 2**30 + int(words[1]) % 2**30 + 1  # not 0, which leaves the shards as they are
