"""Undecoded records of one process, in windows that are shuffled, cut into chunks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from datasets.distributed import split_dataset_by_node
from torch import Tensor

from hf_ssl.data.local import INDEX_COLUMN
from hf_ssl.data.sources import Source

# What a generator is seeded for: the last number of its seed.
FOR_SHARDS, FOR_WINDOW = 0, 1  # `draws.py` has 2

# With this many shards for each process, one more or less does not matter; with fewer, every process reads all records
# and keeps its share, unless the shards divide evenly.
_MANY_SHARDS = 8


@dataclass
class Chunk:
    """Consecutive records of the shuffled order, and what a worker made of them.

    A record is an undecoded image, its index and its label. `start` and `end` are where the reader stands before and
    after the chunk; one without records ends an epoch.
    """

    start: dict[str, Any]
    end: dict[str, Any]
    place: int
    records: list[tuple[Any, int | None, int | None]] = field(default_factory=list)
    size: int = 0
    views: tuple[Tensor, ...] = ()
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
        while True:
            yield from self._epoch(records, **state)
            state = {"epoch": state["epoch"] + 1, "window": 0, "offset": 0, "state": None}

    def _epoch(
        self, records: datasets.IterableDataset, epoch: int, window: int, offset: int, state: dict[str, Any] | None
    ) -> Iterator[Chunk]:
        records.set_epoch(self._shard_order(epoch))
        records.load_state_dict(state)  # pyright: ignore[reportArgumentType]
        for rows in records.iter(self.window_size):
            after = records.state_dict()
            images = rows[self.source.image_column]
            numbers = rows.get(INDEX_COLUMN) or [None] * len(images)
            labels = rows[self.label_column] if self.label_column is not None else [None] * len(images)
            order = np.random.default_rng([self.seed, epoch, self.rank, window, FOR_WINDOW]).permutation(len(images))
            for begin in range(offset, len(images), self.chunk_size):
                end = min(begin + self.chunk_size, len(images))
                chosen = order[begin:end]
                in_window = end < len(images)
                yield Chunk(
                    start={"epoch": epoch, "window": window, "offset": begin, "state": state},
                    end={
                        "epoch": epoch,
                        "window": window if in_window else window + 1,
                        "offset": end if in_window else 0,
                        "state": state if in_window else after,
                    },
                    place=window * self.window_size + begin,
                    records=[(images[row], numbers[row], labels[row]) for row in chosen],
                    size=len(chosen),
                )
            window, offset, state = window + 1, 0, after
        if window == 0:
            raise ValueError(
                f"`{self.source.name}` has too few images: process {self.rank} would get none. Start fewer processes."
            )
        here = {"epoch": epoch, "window": window, "offset": 0, "state": state}
        yield Chunk(start=here, end=here, place=window * self.window_size)

    def _shard_order(self, epoch: int) -> int:
        # `datasets` orders the shards of an epoch by its number alone. A number drawn from seed and epoch makes the
        # order depend on both, and the same on every process; its own `shuffle(seed)` would cut tables into rows.
        words = np.random.SeedSequence([self.seed, epoch, FOR_SHARDS]).generate_state(2)
        return int(words[0]) * 2**30 + int(words[1]) % 2**30 + 1  # not 0, which leaves the shards as they are
