"""The order of training: records dealt to lanes, each shuffled in windows of its own.

A step takes the same number of images from every lane, and a process owns every `world_size`-th lane. So the images of
a step depend on seed, data set, batch size and number of lanes, but not on the number of processes.
"""

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.distributed import split_dataset_by_node
from numpy.typing import NDArray

from hf_ssl.data.order.patience import patient_tables
from hf_ssl.data.sources.files import INDEX_COLUMN, PlacedExamples
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError

MOST_LANES = 8  # unless more processes need more

# What a generator is seeded for: the last number of its seed. `views/draws.py` has 2, `sources/subset.py` 5.
FOR_SHARDS, FOR_WINDOW = 0, 1

# With so many shards for each lane, one more or less does not matter. With fewer, unless they divide evenly, the
# records of all shards are dealt one by one.
_MANY_SHARDS = 8

_MOST_WAITING = 2  # windows that lanes which share a stream may be behind the first of them

_TABLE_ROWS = 128  # rows that `datasets` hands over at once, or somewhat fewer, so that a window holds whole tables

_IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_LARGE_IMAGE_TYPE = pa.struct({"bytes": pa.large_binary(), "path": pa.string()})  # a window may hold more than 2 GB


def choose_lanes(batch_size: int, world_size: int, lanes: int | None = None) -> int:
    """The number of lanes of a run.

    Args:
        batch_size: Images of one optimizer step, at least 1.
        world_size: Number of processes.
        lanes: What the user or the run's first part says. None: the largest power of two up to 8 that divides the
            batch, whatever the number of processes; only if these cannot share it, their number.

    Raises:
        UserError: If the lanes cannot be dealt to the processes, or the batch not to the lanes.
    """
    chosen = lanes
    if chosen is None:
        chosen = next(number for number in (MOST_LANES, 4, 2, 1) if batch_size % number == 0)
        chosen = world_size if chosen % world_size else chosen
    if batch_size % chosen:
        number = f"`lanes`, which is {lanes}," if lanes is not None else f"{world_size}, the number of processes,"
        raise UserError(
            f"`batch_size`, the images of one optimizer step over all processes, must be a multiple of {number} got "
            f"{batch_size}. Give {max(1, round(batch_size / chosen)) * chosen}."
        )
    if chosen % world_size:
        fitting = [str(number) for number in range(1, chosen + 1) if chosen % number == 0]
        raise UserError(
            f"The number of processes must divide `lanes`, in which the images of a run are read and which is "
            f"{chosen}, got {world_size}. Start {', '.join(fitting)} processes; only a new run can have other `lanes`."
        )
    return chosen


@dataclass(frozen=True)
class Place:
    """Where a lane stands, before a record.

    Args:
        epoch: Pass over the data, from 0.
        window: Number of the window in the epoch.
        offset: Records of the window that lie before it.
        state: Of `datasets` at the start of the window; None at the start of an epoch, and where none is needed.
    """

    epoch: int = 0
    window: int = 0
    offset: int = 0
    state: Any = None

    @property
    def order(self) -> tuple[int, int]:
        """For comparing windows."""
        return self.epoch, self.window


@dataclass(frozen=True)
class Window:
    """Records of a lane that are shuffled together.

    Args:
        start: The place of its start.
        records: Columns `image` (`{"bytes": ..., "path": ...}`, undecoded), `index` and `label`, null where there are
            none, in the order of the data set, perhaps with those of other lanes. None: the epoch ends here.
        rows: Rows of the lane's records, in training order.
    """

    start: Place
    records: pa.RecordBatch | None
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Dealing:
    """How the records of a data set become lanes.

    Args:
        source: The data set.
        seed: Of the order, at least 0.
        lanes: Number of lanes.
        share: Images that a step takes from each lane.
        window_size: Records of all lanes that are shuffled at a time.
        label_column: Labels to bring along; None: none.
    """

    source: Source
    seed: int
    lanes: int
    share: int
    window_size: int
    label_column: str | None = None

    @property
    def lane_window(self) -> int:
        """Records of one lane that are shuffled together."""
        return -(-self.window_size // self.lanes)

    def windows(self, starts: Mapping[int, Place]) -> dict[int, Iterator[Window]]:
        """Windows of some lanes, epoch after epoch; each epoch ends with one that has no records.

        Where the rows of the data set are known, they are ranges of equal length in the order of the shuffled shards,
        so that a lane fills the same number of steps as every other. Of a stream, a lane gets shards of its own where
        there are enough; else all processes read everything, once each, and the lanes take turns.

        Args:
            starts: Lane -> the place whose window is the first. A process names all lanes that it owns.
        """
        records = self.records()
        placed = placed_examples(records)
        if placed is not None:
            return {lane: self._of_rows(records, placed, lane, start) for lane, start in starts.items()}
        if records.num_shards >= _MANY_SHARDS * self.lanes or records.num_shards % self.lanes == 0:
            return {lane: self._of_shards(records, lane, start) for lane, start in starts.items()}
        turns = _Turns(self, starts)
        return {lane: turns.of(lane) for lane in starts}

    def shuffled(self, lane: int, place: Place, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of a lane's window in training order."""
        return np.random.default_rng([self.seed, place.epoch, lane, place.window, FOR_WINDOW]).permutation(rows)

    def records(self) -> datasets.IterableDataset:
        """The records of the data set, with the columns that are needed; a new object each time."""
        columns = [self.source.image_column]
        if self.source.has_indices:
            columns.append(INDEX_COLUMN)
        if self.label_column is not None:
            columns.append(self.label_column)
        return self.source.records.select_columns(columns)

    def _of_rows(
        self, records: datasets.IterableDataset, placed: PlacedExamples, lane: int, start: Place
    ) -> Iterator[Window]:
        places = placed.places
        sizes = np.array([place[-1] - place[-2] for place in places])
        length = int(sizes.sum()) // self.lanes
        usable = length // self.share * self.share
        moved = None
        while True:
            generator = np.random.default_rng([self.seed, start.epoch, FOR_SHARDS])
            order = generator.permutation(len(places))
            # Lanes begin elsewhere in each epoch, or with a single shard the same rows would always be left over.
            shift = lane * length + int(generator.integers(sizes.sum()))
            first = start.window * self.lane_window
            own = _rows_between(places, order, sizes[order].cumsum(), shift + first, shift + usable)
            moved = _at(records, own, moved)
            for place, table in self.epoch(moved, start, self.lane_window):
                yield self._window(lane, Place(place.epoch, place.window), table)
            start = Place(start.epoch + 1)

    def _of_shards(self, records: datasets.IterableDataset, lane: int, start: Place) -> Iterator[Window]:
        own = split_dataset_by_node(records, lane, self.lanes, "shards")
        for place, table in self.stream(own, start, self.lane_window):
            yield self._window(lane, place, table)

    def _window(self, lane: int, place: Place, table: pa.RecordBatch | None) -> Window:
        rows = np.arange(0 if table is None else table.num_rows)
        return Window(place, table, self.shuffled(lane, place, rows))

    def stream(
        self, records: datasets.IterableDataset, start: Place, window_rows: int
    ) -> Iterator[tuple[Place, pa.RecordBatch | None]]:
        """Windows of a stream, in its order; epoch after epoch, in each of which the shards have another order.

        Args:
            records: What a reader reads.
            start: The place of the first window.
            window_rows: Records of a window.
        """
        while True:
            records.set_epoch(self._shard_order(start.epoch))
            yield from self.epoch(records, start, window_rows)
            start = Place(start.epoch + 1)

    def epoch(
        self, records: datasets.IterableDataset, start: Place, window_rows: int
    ) -> Iterator[tuple[Place, pa.RecordBatch | None]]:
        """The windows of an epoch, and None in the place of the one after its last."""
        divisors = (rows for rows in range(_TABLE_ROWS, _TABLE_ROWS // 8, -1) if window_rows % rows == 0)
        table_rows = next(divisors, window_rows)
        states = [start.state]  # the last one is that after the last table

        def tables() -> Iterator[pa.Table]:
            for table, states[-1] in patient_tables(self.source, records, table_rows, start.state):
                yield self._table(table)

        place, reading = start, tables()
        while (batch := _joined(islice(reading, window_rows // table_rows))) is not None:
            yield Place(place.epoch, place.window, 0, place.state), batch
            place = Place(place.epoch, place.window + 1, 0, states[-1])
        yield place, None

    def _shard_order(self, epoch: int) -> int:
        # `datasets` orders the shards of an epoch by its number alone. A number drawn from seed and epoch makes the
        # order depend on both, and the same on every process; its own `shuffle(seed)` would cut tables into rows.
        words = np.random.SeedSequence([self.seed, epoch, FOR_SHARDS]).generate_state(2)
        return int(words[0]) * 2**30 + int(words[1]) % 2**30 + 1  # not 0, which leaves the shards as they are

    def _table(self, rows: pa.Table) -> pa.Table:
        """The columns of a window."""
        types = {self.source.image_column: _IMAGE_TYPE, INDEX_COLUMN: pa.int64(), self.label_column: pa.int64()}
        present = rows.schema.names
        columns = [rows[name] if name in present else pa.nulls(len(rows), type_) for name, type_ in types.items()]
        return pa.table([columns[0].cast(_LARGE_IMAGE_TYPE), *columns[1:]], names=["image", "index", "label"])


class _Turns:
    """Lanes that take turns with the records of one stream, which is read once for all of them.

    Bad images let a lane run ahead, a little more in each epoch. Windows that wait for lanes far behind would fill the
    memory, so those are read once more when their turn comes.
    """

    def __init__(self, dealing: Dealing, starts: Mapping[int, Place]):
        self._dealing, self._starts = dealing, dict(starts)
        self._waiting: dict[int, deque[Window]] = {lane: deque() for lane in starts}
        self._streams = dict.fromkeys(starts, self._stream(starts.values()))

    def of(self, lane: int) -> Iterator[Window]:
        """The windows of one lane."""
        while True:
            while not self._waiting[lane]:
                self._leave_behind(self._streams[lane])
                self._read_one(self._streams[lane])
            yield self._waiting[lane].popleft()

    def _stream(self, starts: Iterable[Place]) -> Iterator[tuple[Place, pa.RecordBatch | None]]:
        first = min(starts, key=lambda place: place.order)
        dealing = self._dealing
        return dealing.stream(dealing.records(), first, dealing.lane_window * dealing.lanes)

    def _leave_behind(self, stream: Iterator) -> None:
        """Give those for which windows of a stream wait another stream, once many wait for one of them."""
        waiting = {lane: self._waiting[lane] for lane, own in self._streams.items() if own is stream}
        most = max(sum(window.records is not None for window in windows) for windows in waiting.values())
        behind = {lane: windows[0].start for lane, windows in waiting.items() if windows}
        if most < _MOST_WAITING:
            return
        self._starts |= behind
        self._streams |= dict.fromkeys(behind, self._stream(behind.values()))
        for lane in behind:
            self._waiting[lane].clear()

    def _read_one(self, stream: Iterator[tuple[Place, pa.RecordBatch | None]]) -> None:
        place, records = next(stream)
        for lane, start in self._starts.items():
            if self._streams[lane] is stream and place.order >= start.order:
                rows = np.arange(lane, 0 if records is None else records.num_rows, self._dealing.lanes)
                self._waiting[lane].append(Window(place, records, self._dealing.shuffled(lane, place, rows)))


def _joined(tables: Iterable[pa.Table]) -> pa.RecordBatch | None:
    """All rows in one piece, from which rows are taken quickly; None if there are none."""
    parts = list(tables)
    if not parts:
        return None
    table = pa.concat_tables(parts)
    columns = [pa.concat_arrays(column.chunks) for column in table.columns]
    return pa.record_batch(columns, names=table.schema.names)


def placed_examples(records: datasets.IterableDataset) -> PlacedExamples | None:
    """What the records are read from, if they can be entered at any row."""
    inner: Any = records._ex_iterable
    while hasattr(inner, "ex_iterable"):
        inner = inner.ex_iterable
    return inner if isinstance(inner, PlacedExamples) else None


def _at(
    records: datasets.IterableDataset, places: list[tuple], again: datasets.IterableDataset | None
) -> datasets.IterableDataset:
    """The same columns of other places; in what this has given before, since to make one takes a while."""

    def rebuilt(examples: Any) -> Any:
        if isinstance(examples, PlacedExamples):
            return examples.at(places)
        examples = copy.copy(examples)
        examples.ex_iterable = rebuilt(examples.ex_iterable)
        return examples

    if again is None:
        # Others come row by row, such as those with a column that was renamed.
        again = records.with_format("arrow" if records._ex_iterable.iter_arrow else None)
    again._ex_iterable = rebuilt(records._ex_iterable)
    return again


def _rows_between(
    places: list[tuple], order: NDArray[np.int64], ends: NDArray[np.int64], first: int, stop: int
) -> list[tuple]:
    """The places of some rows of a table whose shards are put in another order; after its end it begins anew.

    Args:
        places: Of the shards.
        order: Their order.
        ends: Rows up to the end of each, in this order.
        first: First row.
        stop: The one after the last.
    """
    total, found = int(ends[-1]), []
    while first < stop:
        base = first // total * total
        number = int(np.searchsorted(ends, first - base, side="right"))
        *where, begin, end = places[order[number]]
        before = base + int(ends[number]) - (end - begin)
        upto = min(stop, base + int(ends[number]))
        found.append((*where, begin + first - before, begin + upto - before))
        first = upto
    return found
