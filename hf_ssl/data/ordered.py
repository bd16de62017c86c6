"""Every image once, in order, with its labels: what evaluation and feature extraction read."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from hf_ssl.data.decode import SkippedImageError, decode
from hf_ssl.data.rows import RowReader
from hf_ssl.data.sources import Source
from hf_ssl.data.workers import make_loader

UNKNOWN_LABEL = -1
"""Label of an image whose record has none, or one that is no class."""


@dataclass
class EvaluationBatch:
    """Consecutive images of a data set, without those that cannot be used.

    Args:
        pixel_values: Transformed images, (batch, 3, height, width), float32.
        labels: Label column -> class of each image, (batch,), int64; `UNKNOWN_LABEL` where there is none.
        row_ids: Place of each image in the data set, from 0, (batch,), int64.
    """

    pixel_values: Tensor
    labels: dict[str, Tensor]
    row_ids: Tensor


@dataclass
class ReadRows:
    """What became of consecutive records.

    Args:
        first: Row of the first one.
        num_rows: Their number, at least 1.
        images: Those that can be used; None if there are none.
        skipped: The others, counted by reason.
    """

    first: int
    num_rows: int
    images: EvaluationBatch | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    def pin_memory(self) -> "ReadRows":
        """Put the pixels where a CUDA device fetches them by itself; what `DataLoader(pin_memory=True)` calls."""
        if self.images is not None:
            self.images.pixel_values = self.images.pixel_values.pin_memory()
        return self


@dataclass
class _Rows:
    """Consecutive records and where they begin."""

    first: int
    images: list[Any]
    labels: dict[str, list[int | None]]


class EvaluationBatches(Iterator[EvaluationBatch]):
    """Iterator over the batches of one process.

    Attributes:
        skipped: Images left out so far because they cannot be used, by reason.
    """

    def __init__(self, batches: Iterator[ReadRows]):
        self.skipped: Counter[str] = Counter()
        self._batches = batches

    def __next__(self) -> EvaluationBatch:
        """The next batch that holds an image."""
        for read in self._batches:
            self.skipped.update(read.skipped)
            if read.images is not None:
                return read.images
        raise StopIteration


def evaluation_batches(
    source: Source,
    transform: Callable[..., Tensor],
    batch_size: int,
    *,
    with_rows: bool = False,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    max_images: int | None = None,
) -> EvaluationBatches:
    """Read a data set once, in its own order; each process gets every `world_size`-th batch.

    Args:
        source: The data set.
        transform: Makes a tensor, (3, height, width), of an RGB image; runs in the workers.
        batch_size: Records in a batch; the last one may be shorter, and so is one with images that cannot be used.
        with_rows: Call `transform(image, row)` with the image's place in the data set, from 0, so that what is drawn
            at random can depend on nothing else.
        rank: Number of this process, in [0, world_size).
        world_size: Number of processes.
        num_workers: Worker processes that decode and transform; 0: this process does it.
        max_images: Read only the first so many records of the data set; None: all.

    Returns:
        Iterator over batches; its `skipped` counts the images that were left out.

    Raises:
        ValueError: If `batch_size` is not positive.
    """
    rows = _rows_of_process(source, batch_size, rank, world_size, max_images)
    return EvaluationBatches(_read(source, transform, batch_size, rows, num_workers, with_rows=with_rows))


def batches_of_ranges(
    source: Source,
    transform: Callable[..., Tensor],
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
        transform: Makes a tensor, (3, height, width), of an RGB image; runs in the workers.
        batch_size: Records in a batch; the last one of a range may be shorter.
        ranges: First row and the one after the last, ascending. They may go on without end: the data set's end is
            theirs.
        num_workers: Worker processes that decode and transform; 0: this process does it.
        pin_memory: Put the pixels where a CUDA device fetches them by itself.

    Returns:
        Iterator over all batches of records, those without usable image included.

    Raises:
        ValueError: If `batch_size` is not positive, or, while iterating, the ranges do not ascend.
    """
    rows = _rows_of_ranges(source, batch_size, ranges)
    return _read(source, transform, batch_size, rows, num_workers, pin_memory=pin_memory)


def _read(
    source: Source,
    transform: Callable[..., Tensor],
    batch_size: int,
    rows: Iterator[_Rows],
    num_workers: int,
    *,
    with_rows: bool = False,
    pin_memory: bool = False,
) -> Iterator[ReadRows]:
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    transformer = _Transformer(transform, with_rows, source.labels)
    return iter(make_loader(transformer, rows, num_workers, pin_memory=pin_memory))


def _rows_of_process(
    source: Source, batch_size: int, rank: int, world_size: int, max_images: int | None
) -> Iterator[_Rows]:
    first = 0
    for number, rows in enumerate(source.records.iter(batch_size)):
        images = rows[source.image_column]
        if max_images is not None:
            images = images[: max_images - first]
        if not images:
            return
        if number % world_size == rank:
            yield _Rows(first, images, {label: rows[label][: len(images)] for label in source.labels})
        first += len(images)


def _rows_of_ranges(source: Source, batch_size: int, ranges: Iterable[tuple[int, int]]) -> Iterator[_Rows]:
    reader = RowReader(source)
    for start, stop in ranges:
        for first in range(start, stop, batch_size):
            end = min(first + batch_size, stop)
            table = reader.read(first, end)
            if table.num_rows:
                labels = {label: table[label].to_pylist() for label in source.labels}
                yield _Rows(first, table[source.image_column].to_pylist(), labels)
            if table.num_rows < end - first:
                return


class _Transformer(Dataset):
    """Turns records into a batch; runs in the workers."""

    def __init__(self, transform: Callable[..., Tensor], with_rows: bool, labels: dict[str, list[str]]):
        self.transform = transform
        self.with_rows = with_rows
        self.num_classes = {label: len(names) for label, names in labels.items()}

    def __getitem__(self, rows: _Rows) -> ReadRows:
        read = ReadRows(rows.first, len(rows.images))
        kept, images = [], []
        for place, record_image in enumerate(rows.images):
            try:
                image = decode(record_image)
            except SkippedImageError as error:
                read.skipped[error.reason] += 1
                continue
            kept.append(place)
            row = [rows.first + place] if self.with_rows else []
            images.append(self.transform(Image.fromarray(image), *row))
        if kept:
            labels = {
                label: torch.tensor([self._class(values[place], self.num_classes[label]) for place in kept])
                for label, values in rows.labels.items()
            }
            read.images = EvaluationBatch(torch.stack(images), labels, torch.tensor(kept) + rows.first)
        return read

    @staticmethod
    def _class(label: int | None, num_classes: int) -> int:
        known = label is not None and label >= 0 and (num_classes == 0 or label < num_classes)
        return label if known else UNKNOWN_LABEL  # pyright: ignore[reportReturnType]
