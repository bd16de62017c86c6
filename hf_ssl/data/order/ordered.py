"""Every image once, or a sample of them, in order and with labels: what evaluation and feature extraction read."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hf_ssl.data.decode.image_bytes import SHOWN, with_name
from hf_ssl.data.decode.pictures import decoded, in_groups
from hf_ssl.data.order.loader import make_loader
from hf_ssl.data.order.patience import patient_tables
from hf_ssl.data.order.rows import RowReader
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError

UNKNOWN_LABEL = -1
"""Label of an image whose record has none, or one that is no class."""

_logger = logging.getLogger(__name__)
_READ_PER_SAMPLED = 10  # records of a stream that are read for each one of a sample, at the most
_ROWS_AT_ONCE = 128  # what `RowReader` gets at once, so that no table is cut


@dataclass
class EvaluationBatch:
    """Images of a data set in its order, without those that cannot be used.

    Args:
        pixel_values: Transformed images, (batch, 3, height, width), float32.
        labels: Label column -> class of each image, (batch,), int64; `UNKNOWN_LABEL` where there is none.
        row_ids: Place of each image in the data set, from 0, (batch,), int64.
        paths: File or address of each image as its record names it, (batch,); None where it names none.
    """

    pixel_values: Tensor
    labels: dict[str, Tensor]
    row_ids: Tensor
    paths: list[str | None] = field(default_factory=list)


@dataclass
class ReadRows:
    """What became of some records.

    Args:
        first: Row of the first one; of a range, the others follow it without a gap.
        num_rows: Their number, at least 1.
        images: Those that can be used; None if there are none.
        skipped: The others, counted by reason.
        named: The first of them, such as "`a.jpg` (truncated)"; at most three.
    """

    first: int
    num_rows: int
    images: EvaluationBatch | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)

    def pin_memory(self) -> "ReadRows":
        """Put the pixels where a CUDA device fetches them by itself; what `DataLoader(pin_memory=True)` calls."""
        if self.images is not None:
            self.images.pixel_values = self.images.pixel_values.pin_memory()
        return self


@dataclass
class _Rows:
    """Records and their rows, ascending."""

    row_ids: Sequence[int]
    images: list[Any]
    labels: dict[str, list[int | None]]


class EvaluationBatches(Iterator[EvaluationBatch]):
    """Iterator over the batches of one process.

    Attributes:
        skipped: Images left out so far because they cannot be used, by reason.
        named: The first of them, such as "`a.jpg` (truncated)"; at most three.
    """

    def __init__(self, batches: Iterator[ReadRows]):
        self.skipped: Counter[str] = Counter()
        self.named: list[str] = []
        self._batches = batches

    def __next__(self) -> EvaluationBatch:
        """The next batch that holds an image."""
        for read in self._batches:
            self.skipped.update(read.skipped)
            self.named = (self.named + read.named)[:SHOWN]
            if read.images is not None:
                return read.images
        raise StopIteration


def evaluation_batches(
    source: Source,
    transform: Callable[..., Any],
    batch_size: int,
    *,
    with_rows: bool = False,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    max_images: int | None = None,
) -> EvaluationBatches:
    """Read a data set, or a sample of it, once and in its own order; each process gets every `world_size`-th batch.

    A sample comes from all over the data set, because files are often sorted by class. A stream of unknown
    length gives its first images, a very long one a sample of its beginning. Both are logged as a warning, once.

    Args:
        source: The data set.
        transform: Makes a tensor of a decoded picture, (height, width, 3), uint8; runs in the workers. All tensors
            have one shape.
        batch_size: Records in a batch; the last one may be shorter, and so is one with images that cannot be used.
        with_rows: Call `transform(pictures, rows)` with some pictures and the places of their images in the data set,
            from 0, so that what is drawn at random can depend on nothing else; it makes a list of their tensors.
        rank: Number of this process, in [0, world_size).
        world_size: Number of processes.
        num_workers: Worker processes that decode and transform; 0: this process does it.
        max_images: Read a sample of so many records; None: all. It depends on nothing else but the number of records.

    Returns:
        Iterator over batches; its `skipped` counts the images that were left out.

    Raises:
        UserError: If `batch_size` is not positive.
    """
    rows = _rows_of_process(source, batch_size, rank, world_size, max_images)
    return EvaluationBatches(_read(source, transform, batch_size, rows, num_workers, with_rows=with_rows))


def batches_of_ranges(
    source: Source,
    transform: Callable[..., Any],
    batch_size: int,
    ranges: Iterable[tuple[int, int]],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[ReadRows]:
    """Read some of the rows of a data set, in batches that begin anew in each range.

    So which images share a batch depends on the range and the batch size alone. What lies between is not decoded.

    Args:
        source: The data set.
        transform: Makes a tensor of a decoded picture, (height, width, 3), uint8; runs in the workers. All tensors
            have one shape.
        batch_size: Records in a batch; the last one of a range may be shorter.
        ranges: First row and the one after the last, ascending. They may go on without end: the data set's end is
            theirs.
        num_workers: Worker processes that decode and transform; 0: this process does it.
        pin_memory: Put the pixels where a CUDA device fetches them by itself.

    Returns:
        Iterator over all batches of records, those without usable image included.

    Raises:
        UserError: If `batch_size` is not positive, or, while iterating, the ranges do not ascend.
    """
    rows = _rows_of_ranges(source, batch_size, ranges)
    return _read(source, transform, batch_size, rows, num_workers, pin_memory=pin_memory)


def _read(
    source: Source,
    transform: Callable[..., Any],
    batch_size: int,
    rows: Iterator[_Rows],
    num_workers: int,
    *,
    with_rows: bool = False,
    pin_memory: bool = False,
) -> Iterator[ReadRows]:
    if batch_size < 1:
        raise UserError(f"`batch_size` must be at least 1, got {batch_size}.")
    transformer = _Transformer(transform, with_rows, source)
    return iter(make_loader(transformer, rows, num_workers, pin_memory=pin_memory))


def sampled_rows(num_rows: int, max_images: int) -> NDArray[np.int64]:
    """Rows of a sample, ascending: one drawn from each of `max_images` equal parts of the data set.

    They are the same in every program. Equal steps would meet only some of the classes where these take turns.

    Args:
        num_rows: Rows of the data set.
        max_images: Size of the sample; all rows if there are no more.
    """
    if max_images >= num_rows:
        return np.arange(num_rows)
    borders = np.arange(max_images + 1) * num_rows // max_images
    draws = np.random.default_rng(0).random(max_images)
    return borders[:-1] + (draws * np.diff(borders)).astype(np.int64)


def _rows_of_process(
    source: Source, batch_size: int, rank: int, world_size: int, max_images: int | None
) -> Iterator[_Rows]:
    known = source.num_images
    if max_images is None or max_images < 1 or known is None or known <= max_images:
        if max_images is not None and known is None:
            _warn_of_beginning(source.name, source.split, max_images, None)
        batches = _first_rows(source, batch_size, max_images)
    else:
        within = known if source.has_indices else min(known, _READ_PER_SAMPLED * max_images)
        if within < known:
            _warn_of_beginning(source.name, source.split, max_images, within)
        batches = _rows_of_sample(source, batch_size, sampled_rows(within, max_images))
    for number, rows in enumerate(batches):
        if number % world_size == rank:
            yield rows


@lru_cache(maxsize=64)  # once for each data set, not at every evaluation of a run
def _warn_of_beginning(name: str, split: str, max_images: int, within: int | None) -> None:
    reason = "its length is not known" if within is None else "it is too long to read for a sample"
    _logger.warning(
        "The %d images that are used of split `%s` of `%s` come from its %s, because it is a stream and %s. If it is "
        "sorted by class, use more of them.",
        max_images,
        split,
        name,
        "beginning" if within is None else f"first {within}",
        reason,
    )


def _first_rows(source: Source, batch_size: int, max_images: int | None) -> Iterator[_Rows]:
    first = 0
    for rows, _ in patient_tables(source, source.records, batch_size):
        images = rows[source.image_column].slice(0, None if max_images is None else max_images - first).to_pylist()
        if not images:
            return
        labels = {label: rows[label].slice(0, len(images)).to_pylist() for label in source.labels}
        yield _Rows(range(first, first + len(images)), images, labels)
        first += len(images)


def _rows_of_sample(source: Source, batch_size: int, row_ids: NDArray[np.int64]) -> Iterator[_Rows]:
    records = _records_of(source, row_ids)
    while batch := list(islice(records, batch_size)):
        images = [record[source.image_column] for _, record in batch]
        labels = {label: [record[label] for _, record in batch] for label in source.labels}
        yield _Rows([row for row, _ in batch], images, labels)


def _records_of(source: Source, row_ids: NDArray[np.int64]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Some records with their rows; the memory of a few."""
    # Without a length the reader goes through all rows: an index column of the user's would mislead it.
    reader = RowReader(replace(source, num_images=None))
    for first in range(0, int(row_ids[-1]) + 1, _ROWS_AT_ONCE):
        table = reader.read(first, first + _ROWS_AT_ONCE)
        here = row_ids[slice(*np.searchsorted(row_ids, [first, first + table.num_rows]))]
        yield from zip(here.tolist(), table.take(pa.array(here - first)).to_pylist(), strict=True)
        if table.num_rows < _ROWS_AT_ONCE:
            return


def _rows_of_ranges(source: Source, batch_size: int, ranges: Iterable[tuple[int, int]]) -> Iterator[_Rows]:
    reader = RowReader(source)
    for start, stop in ranges:
        for first in range(start, stop, batch_size):
            end = min(first + batch_size, stop)
            table = reader.read(first, end)
            if table.num_rows:
                labels = {label: table[label].to_pylist() for label in source.labels}
                yield _Rows(range(first, first + table.num_rows), table[source.image_column].to_pylist(), labels)
            if table.num_rows < end - first:
                return


def _path_of(record_image: Any) -> str | None:
    return record_image.get("path") if isinstance(record_image, dict) else None


class _Transformer(Dataset):
    """Turns records into a batch; runs in the workers."""

    def __init__(self, transform: Callable[..., Any], with_rows: bool, source: Source):
        self.transform = transform
        self.with_rows = with_rows
        self.num_classes = {label: len(names) for label, names in source.labels.items()}
        self.timeout = source.access.timeout

    def __getitem__(self, rows: _Rows) -> ReadRows:
        read = ReadRows(rows.row_ids[0], len(rows.images))
        kept, tensors = [], []

        def skip(place: int, reason: str) -> None:
            read.skipped[reason] += 1
            read.named = with_name(read.named, rows.images[place], reason, rows.row_ids[place])

        for places, pictures in in_groups(decoded(rows.images, self.timeout), skip):
            if self.with_rows:
                tensors += self.transform(pictures, [rows.row_ids[place] for place in places])
            else:
                tensors += map(self.transform, pictures)
            kept += places
        if kept:
            labels = {
                label: torch.tensor([self._class(values[place], self.num_classes[label]) for place in kept])
                for label, values in rows.labels.items()
            }
            row_ids = torch.tensor([rows.row_ids[place] for place in kept])
            paths = [_path_of(rows.images[place]) for place in kept]
            read.images = EvaluationBatch(torch.stack(tensors), labels, row_ids, paths)
        return read

    @staticmethod
    def _class(label: int | None, num_classes: int) -> int:
        known = label is not None and label >= 0 and (num_classes == 0 or label < num_classes)
        return label if known else UNKNOWN_LABEL  # pyright: ignore[reportReturnType]
