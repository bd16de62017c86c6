"""The training stream: endless batches of views in an order that is exact, resumable and free of worker effects.

The main process reads undecoded records, shuffles them in windows and cuts them into chunks; workers decode a chunk
and make its views; the main process fills batches from the good ones. The order is a function of (seed, epoch, shards,
rank, world size) and a record's augmentation one of (seed, epoch, rank, its place in the order), so neither depends on
the number of workers. A position is a few numbers and the reader's state at the start of a window.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hf_ssl.data.decode.pictures import decode_in_groups
from hf_ssl.data.order.cache import CachedDraws
from hf_ssl.data.order.loader import make_loader
from hf_ssl.data.order.ordered import UNKNOWN_LABEL, EvaluationBatch, evaluation_batches
from hf_ssl.data.order.reader import Chunk, Reader
from hf_ssl.data.sources.open import Source
from hf_ssl.data.sources.tars import damaged_archives
from hf_ssl.data.views.cpu import Crops, Views
from hf_ssl.data.views.draws import numbers_between
from hf_ssl.errors import UserError

__all__ = ["Batch", "EvaluationBatch", "TrainingStream", "evaluation_batches"]

CHUNK_SIZE = 64  # records that one worker handles at a time, at the most
_SHOWN_ARCHIVES = 3
MIN_RECORDS_TO_JUDGE = 1000  # before which, or the end of an epoch, a few bad images stop no run


@dataclass
class Batch:
    """One batch of views.

    Args:
        views: (batch, 2, image size, image size, 3), uint8, on the device where they were made.
        indices: Stable number of each image in the data set, (batch,), int64; None where the source has none.
        labels: Class of each image, (batch,), int64, `UNKNOWN_LABEL` where it has none; None unless asked for.
        epoch: Pass over this process's records, from 0.
        position: JSON-able state from which the next batch is read.
        skipped: Images that this process could not use so far, by reason; part of `position`.
    """

    views: Tensor
    indices: Tensor | None
    labels: Tensor | None
    epoch: int
    position: dict[str, Any]
    skipped: dict[str, int]


class _ViewMaker(Dataset):
    """Turns a chunk of records into views; runs in the workers."""

    def __init__(self, views: Views | Crops, seed: int, rank: int):
        self.views = views
        self.seed = seed
        self.rank = rank

    def __getitem__(self, chunk: Chunk) -> Chunk:
        if chunk.records is None:
            return chunk
        skipped = Counter()
        images, indices, labels = chunk.records.columns
        end = chunk.place + chunk.size
        numbers = numbers_between(self.seed, chunk.start["epoch"], self.rank, chunk.place, end)
        parts: list[tuple[Tensor, ...]] = []
        good: list[int] = []
        for places, pictures in decode_in_groups((image.as_py() for image in images), skipped):
            parts.append(self.views(pictures, numbers[places]))
            good += places
        indices, labels = indices.to_pylist(), labels.to_pylist()
        chunk.indices = [indices[place] for place in good]
        chunk.labels = [UNKNOWN_LABEL if labels[place] is None else labels[place] for place in good]
        chunk.views = parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))
        chunk.skipped = dict(skipped)
        chunk.records = None  # the bytes need not travel back
        return chunk


class _DrawMaker(Dataset):
    """Turns a chunk of a cache's records into places in the cache and draws."""

    def __init__(self, draws: CachedDraws, seed: int, rank: int):
        self.draws = draws
        self.seed = seed
        self.rank = rank

    def __getitem__(self, chunk: Chunk) -> Chunk:
        if chunk.records is None:
            return chunk
        images, indices, labels = chunk.records.columns
        indices, labels = indices.to_pylist(), labels.to_pylist()
        places = [int(path) for path in images.field("path").to_pylist()]
        reasons = [self.draws.reasons.get(place) for place in places]
        chunk.skipped = dict(Counter(reason for reason in reasons if reason is not None))
        good = [offset for offset, reason in enumerate(reasons) if reason is None]
        if good:
            start, end = chunk.place, chunk.place + chunk.size
            numbers = numbers_between(self.seed, chunk.start["epoch"], self.rank, start, end)[good]
            chunk.views = (torch.tensor([places[offset] for offset in good]), self.draws(numbers))
            chunk.indices = [indices[offset] for offset in good]
            chunk.labels = [UNKNOWN_LABEL if labels[offset] is None else labels[offset] for offset in good]
        chunk.records = None
        return chunk


class TrainingStream:
    """Endless batches of augmented views of one process's part of a data set.

    Every epoch reads each of this process's records once, in a new order; what is left over at its end and fills no
    batch is dropped. An image that cannot be used is skipped and counted, and the next one takes its place, so all
    batches have the same shape.

    Args:
        source: The data set.
        views: Makes the two views, or what `finish` makes them of.
        batch_size: Images in a batch of this process.
        seed: Of order and augmentation, at least 0; equal on all processes.
        finish: Makes the views of a batch in this process, on its device; None: workers have made them.
        rank: Number of this process, in [0, world_size).
        world_size: Number of processes.
        num_workers: Worker processes that decode and augment; 0: this process does it.
        window_size: Records that are shuffled together; they are in memory, undecoded.
        max_skipped_ratio: Fraction of unusable images above which the stream stops, in [0, 1].
        position: `Batch.position` of the last batch that was used, to go on after it.
        with_labels: Bring the main label column along.

    Raises:
        UserError: If an argument is out of range, the position belongs to another data set or setting, or an epoch
            has too few images for one batch. While iterating also if too many images cannot be used.
    """

    def __init__(
        self,
        source: Source,
        views: Views | Crops | CachedDraws,
        batch_size: int,
        *,
        seed: int,
        finish: Callable[..., Tensor] | None = None,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        window_size: int = 2048,
        max_skipped_ratio: float = 0.01,
        position: dict[str, Any] | None = None,
        with_labels: bool = False,
    ):
        _check_at_least("batch_size", batch_size, 1)
        _check_at_least("seed", seed, 0)
        _check_at_least("num_workers", num_workers, 0)
        _check_at_least("shuffle_window", window_size, 1)
        if not 0 <= max_skipped_ratio <= 1:
            raise UserError(f"`max_skipped_ratio` must be in [0, 1], got {max_skipped_ratio}.")
        if source.num_images is not None and source.num_images // world_size < batch_size:
            raise UserError(
                f"`batch_size` must not exceed the images of one process, but split `{source.split}` of "
                f"`{source.name}` has {source.num_images} for {world_size} process(es) and the batch size is "
                f"{batch_size}. Lower `batch_size`."
            )
        self.source = source
        self.views = views
        self.batch_size = batch_size
        self._finish = finish
        self.num_workers = 0 if isinstance(views, CachedDraws) else num_workers  # who only draws does it faster alone
        self.max_skipped_ratio = max_skipped_ratio
        self._chunk_size = batch_size if isinstance(views, CachedDraws) else min(CHUNK_SIZE, batch_size)
        self._with_labels = with_labels
        if with_labels and not source.labels:
            raise UserError(
                f"`{source.name}` has no labels, which this method is set to look at. Name their column with "
                "`label_column`, or take other settings."
            )
        label_column = next(iter(source.labels)) if with_labels else None
        self._reader = Reader(source, seed, rank, world_size, window_size, self._chunk_size, label_column)
        # What must be the same on resuming, for the batches to be the same.
        self._identity = {
            "seed": seed,
            "rank": rank,
            "world_size": world_size,
            "shuffle_window": window_size,
            "fingerprint": source.fingerprint,
            "label_column": label_column,
        }
        self._position = self._start() if position is None else self._checked(position)

    def _start(self) -> dict[str, Any]:
        return {
            **self._identity,
            "reader": self._reader.beginning(),
            "used": 0,
            "batches": 0,
            "seen": 0,
            "skipped": {},
        }

    def _checked(self, position: dict[str, Any]) -> dict[str, Any]:
        start = self._start()
        missing = (start.keys() - position.keys()) or (start["reader"].keys() - position["reader"].keys())
        if missing:
            raise UserError(f"The stream's position lacks `{min(missing)}`. Was it saved by another version?")
        for name, value in self._identity.items():
            if position[name] != value:
                what = "`dataset` or its `split` or `dataset_revision`" if name == "fingerprint" else f"`{name}`"
                raise UserError(
                    f"{what} must be the same on resuming: it was {position[name]} and is {value}. "
                    "Resume with the settings of the first run."
                )
        return copy.deepcopy(position)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the position on, without end."""
        position = self._position
        used, batches, seen = position["used"], position["batches"], position["seen"]
        skipped = Counter(position["skipped"])
        pending: list[tuple[Tensor, ...]] = []
        indices: list[int | None] = []
        labels: list[int] = []
        for chunk in self._loader(position["reader"]):
            if chunk.size == 0:  # the end of an epoch
                self._judge(seen, skipped, epoch_ended=True)
                if batches == 0:
                    raise UserError(
                        f"`batch_size` must not exceed the usable images of one process, but it is {self.batch_size} "
                        f"and an epoch of `{self.source.name}` has {len(indices)}. Lower `batch_size`."
                    )
                pending, indices, labels, batches = [], [], [], 0
                continue
            before = {"reader": chunk.start, "seen": seen, "skipped": dict(skipped)}
            seen += chunk.size
            skipped.update(chunk.skipped)
            self._judge(seen, skipped, epoch_ended=False)
            after = {"reader": chunk.end, "seen": seen, "skipped": dict(skipped), "used": 0}
            num_good = len(chunk.indices)
            taken = min(used, num_good)
            used -= taken
            while taken < num_good:
                added = min(self.batch_size - len(indices), num_good - taken)
                pending.append(tuple(part[taken : taken + added] for part in chunk.views))
                indices += chunk.indices[taken : taken + added]
                labels += chunk.labels[taken : taken + added]
                taken += added
                if len(indices) == self.batch_size:
                    batches += 1
                    place = after if taken == num_good else {**before, "used": taken}
                    yield Batch(
                        views=self._finished(pending),
                        indices=self._checked_indices(indices),
                        labels=torch.tensor(labels) if self._with_labels else None,
                        epoch=chunk.start["epoch"],
                        position={**self._identity, **place, "batches": batches},
                        skipped=dict(skipped),
                    )
                    pending, indices, labels = [], [], []

    def _finished(self, pending: list[tuple[Tensor, ...]]) -> Tensor:
        parts = [torch.cat(part) for part in zip(*pending, strict=True)] if len(pending) > 1 else list(pending[0])
        return parts[0] if self._finish is None else self._finish(*parts)

    def _checked_indices(self, indices: list[int | None]) -> Tensor | None:
        if None in indices:
            return None
        numbers = torch.tensor(indices)
        size = self.source.num_images
        if int(numbers.min()) < 0 or (size is not None and int(numbers.max()) >= size):
            wrong = numbers.min() if numbers.min() < 0 else numbers.max()
            raise UserError(
                f"`index_column` must number the images of `{self.source.name}` from 0 to one less than their number "
                f"({'unknown' if size is None else size}), but holds {int(wrong)}. Name a column that does."
            )
        return numbers

    def _loader(self, reader_state: dict[str, Any]) -> DataLoader:
        options: dict[str, Any] = {}
        if self.num_workers:
            chunks_of_two_batches = math.ceil(2 * self.batch_size / (self._chunk_size * self.num_workers))
            options = {"prefetch_factor": max(2, chunks_of_two_batches)}
        seed, rank, views = self._identity["seed"], self._identity["rank"], self.views
        maker = _DrawMaker(views, seed, rank) if isinstance(views, CachedDraws) else _ViewMaker(views, seed, rank)
        return make_loader(maker, self._reader.chunks(reader_state), self.num_workers, **options)

    def _judge(self, seen: int, skipped: Counter[str], *, epoch_ended: bool) -> None:
        num_skipped = sum(skipped.values())
        if num_skipped <= self.max_skipped_ratio * seen or not (epoch_ended or seen >= MIN_RECORDS_TO_JUDGE):
            return
        by_count = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
        reasons = ", ".join(f"{count} {reason}" for reason, count in by_count)
        archives = damaged_archives(self.source.name) if "damaged archive" in skipped else []
        damaged = f" Damaged: {', '.join(f'`{path}`' for path in archives[:_SHOWN_ARCHIVES])}." if archives else ""
        raise UserError(
            f"{num_skipped} of {seen} images of `{self.source.name}` cannot be used: {reasons}.{damaged} Repair the "
            f"data set or raise `max_skipped_ratio`, which is {self.max_skipped_ratio}."
        )


def _check_at_least(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise UserError(f"`{name}` must be at least {minimum}, got {value}.")
