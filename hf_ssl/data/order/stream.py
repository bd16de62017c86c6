"""The training stream: endless batches of views in an order that is exact, resumable and free of worker effects.

The main process reads the records of its lanes (`lanes.py`) and hands them out in chunks; workers decode a chunk and
make its views (or, where the device decodes, read its files, and the main process makes the views); the main process
takes the good ones, from each lane as many as from every other. What becomes of a record depends on its lane and its
number in the lane's epoch, so neither the number of workers nor that of processes changes it. A position is a few
numbers for each lane.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hf_ssl.data.decode.image_bytes import SHOWN
from hf_ssl.data.decode.pictures import decoded, undecoded
from hf_ssl.data.order.chunks import Chunk, Decoder, Fetcher, LaneReader, Maker, Pictures, ViewMaker
from hf_ssl.data.order.lanes import Dealing, choose_lanes
from hf_ssl.data.order.loader import make_loader
from hf_ssl.data.order.ordered import EvaluationBatch, evaluation_batches
from hf_ssl.data.order.progress import Filling, LaneProgress
from hf_ssl.data.sources.open import Source
from hf_ssl.data.sources.tars import damaged_archives
from hf_ssl.errors import UserError

__all__ = ["Batch", "EvaluationBatch", "TrainingStream", "evaluation_batches"]

CHUNK_SIZE = 64  # records that one worker handles at a time, at the most
MIN_RECORDS_TO_JUDGE = 1000  # before which, or the end of an epoch, a few bad images stop no run


@dataclass
class Batch:
    """One batch of views.

    Args:
        views: (batch, 2, image size, image size, 3), uint8, on the device where they were made.
        indices: Stable number of each image in the data set, (batch,), int64; None where the source has none.
        labels: Class of each image, (batch,), int64, `UNKNOWN_LABEL` where it has none; None unless asked for.
        epoch: Pass over the data, from 0.
        position: JSON-able state from which the next batch is read.
        skipped: Images that this process could not use so far, by reason; part of `position`.
    """

    views: Tensor
    indices: Tensor | None
    labels: Tensor | None
    epoch: int
    position: dict[str, Any]
    skipped: dict[str, int]


class TrainingStream:
    """Endless batches of augmented views: the share of one process in every optimizer step.

    Every epoch reads each record once, in a new order, but for less than a batch that is left over at its end. An
    image that cannot be used is skipped and counted, and the next one of its lane takes its place, so all batches
    have the same shape. Which images a step sees does not depend on the number of processes.

    Args:
        source: The data set.
        views: Makes the two views, or what `finish` makes them of.
        batch_size: Images of one optimizer step, over all processes.
        seed: Of order and augmentation, at least 0; equal on all processes.
        lanes: See `lanes.choose_lanes`.
        images_per_device: Images of a batch, a divisor of this process's share of the step; None: all of them.
        pictures: Makes pictures of undecoded images; None: decodes them.
        decoder: Makes pictures of files in this process, on its device, and `views` what `finish` needs; None: workers
            do both.
        finish: Makes the views of a batch in this process, on its device; None: workers have made them.
        rank: Number of this process, in [0, world_size).
        world_size: Number of processes.
        num_workers: Worker processes that decode and augment; 0: this process does it.
        chunk_size: Records that a worker handles at a time, at the most.
        window_size: Records of all processes that are shuffled together, undecoded in memory.
        max_skipped_ratio: Fraction of unusable images above which the stream stops, in [0, 1].
        position: `Batch.position` of the last batch that was used, to go on after it. At the end of a step it may come
            from another number of processes, merged by `merged_positions`.
        with_labels: Bring the main label column along.

    Raises:
        UserError: If an argument is out of range, the position belongs to another data set or setting, or an epoch
            has too few images for one step. While iterating also if too many images cannot be used.
    """

    def __init__(
        self,
        source: Source,
        views: ViewMaker,
        batch_size: int,
        *,
        seed: int,
        lanes: int | None = None,
        images_per_device: int | None = None,
        pictures: Pictures | None = None,
        decoder: Decoder | None = None,
        finish: Callable[..., Tensor] | None = None,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        chunk_size: int = CHUNK_SIZE,
        window_size: int = 2048,
        max_skipped_ratio: float = 0.01,
        position: Mapping[str, Any] | None = None,
        with_labels: bool = False,
    ):
        _check_at_least(batch_size=(batch_size, 1), seed=(seed, 0), num_workers=(num_workers, 0))
        _check_at_least(shuffle_window=(window_size, 1))
        if not 0 <= max_skipped_ratio <= 1:
            raise UserError(f"`max_skipped_ratio` must be in [0, 1], got {max_skipped_ratio}.")
        _check_source(source, batch_size, with_labels)
        lanes = choose_lanes(batch_size, world_size, lanes)
        self.source = source
        self.views = views
        self.lanes = range(rank, lanes, world_size)  # this process's own
        self.share = batch_size // lanes  # of a lane in a step
        self.images = self.share * len(self.lanes)  # of this process in a step
        self.images_per_device = images_per_device or self.images
        if self.images % self.images_per_device:
            raise UserError(
                f"`images_per_device` must divide the {self.images} images of one process in a step of {batch_size}, "
                f"got {self.images_per_device}."
            )
        self._named: list[str] = []  # the first images that cannot be used
        self.num_workers = num_workers
        self.max_skipped_ratio = max_skipped_ratio
        self._batch_size = batch_size
        self._pictures = pictures or partial(_read, decoded, timeout=source.access.timeout)
        self._decoder, self._finish, self._with_labels = decoder, finish, with_labels
        label_column = next(iter(source.labels)) if with_labels else None
        self._dealing = Dealing(source, seed, lanes, self.share, window_size, label_column)
        # What must be the same on resuming, for the steps to be the same.
        self._identity = {
            "seed": seed,
            "lanes": lanes,
            "batch_size": batch_size,
            "shuffle_window": window_size,
            "fingerprint": source.fingerprint,
            "label_column": label_column,
        }
        self._position = self._checked(position) if position is not None else None
        # Lanes give images in turns, so that a chunk, where no image is bad, goes into a batch as it is.
        chunk_size = min(chunk_size, self.images)
        self._turn = turn_of(self.share, len(self.lanes), chunk_size)
        round_size = self._turn * len(self.lanes)
        self._chunk_size = max(1, chunk_size // round_size) * round_size

    def _checked(self, position: Mapping[str, Any]) -> dict[str, Any]:
        missing = {*self._identity, "taken", "world_size", "at"} - position.keys()
        if missing:
            raise UserError(f"The stream's position lacks `{min(missing)}`. Was it saved by another version?")
        for name, value in self._identity.items():
            if position[name] != value:
                what = "`dataset` or its `split` or `dataset_revision`" if name == "fingerprint" else f"`{name}`"
                raise UserError(
                    f"{what} must be the same on resuming: it was {position[name]} and is {value}. "
                    "Resume with the settings of the first run."
                )
        lacking = [lane for lane in self.lanes if str(lane) not in position["at"]]
        if lacking or (position["taken"] and position["world_size"] != self._identity["lanes"] // len(self.lanes)):
            raise UserError(
                "The stream's position was saved by another process, or in the middle of a step by another number of "
                "processes. Resume from a checkpoint, by the number that wrote it."
            )
        return copy.deepcopy(dict(position))

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the position on, without end."""
        saved = self._position or {"at": {}, "taken": 0}
        lanes = {lane: LaneProgress(saved["at"].get(str(lane))) for lane in self.lanes}
        maker = Maker(self.views, self._identity["seed"], self._pictures, self._decoder)
        chunks = iter(self._loader(maker, lanes))
        taken, batch = saved["taken"], Filling()
        for lane, number in self._turns(taken):
            while number:
                here = min(number, self.images_per_device - taken % self.images_per_device)
                while lanes[lane].num_ready < here:
                    chunk = next(chunks)
                    self._arrived(chunk if self._decoder is None else maker[chunk], lanes)
                lanes[lane].move(here, batch)
                number, taken = number - here, (taken + here) % self.images
                if batch.num_images == self.images_per_device:
                    yield self._batch(batch, lanes, taken)
                    batch = Filling()

    def _turns(self, taken: int) -> Iterator[tuple[int, int]]:
        """Which lane gives how many images next, step after step.

        Args:
            taken: Images of the first step that are used already.
        """
        while True:
            for start in range(0, self.share, self._turn):
                for lane in self.lanes:
                    number = min(self._turn, self.share - start)
                    here = max(0, number - taken)
                    taken -= number - here
                    if here:
                        yield lane, here

    def _batch(self, filled: Filling, lanes: Mapping[int, LaneProgress], taken: int) -> Batch:
        world_size = self._identity["lanes"] // len(self.lanes)
        at = {str(lane): one.position() for lane, one in lanes.items()}
        parts = filled.parts()
        return Batch(
            views=parts[0] if self._finish is None else self._finish(*parts),
            indices=self._checked_indices(filled.indices),
            labels=torch.tensor(filled.labels) if self._with_labels else None,
            epoch=min(one.place.epoch for one in lanes.values()),
            position={**self._identity, "world_size": world_size, "taken": taken, "at": at},
            skipped=dict(sum((one.skipped for one in lanes.values()), Counter())),
        )

    def _arrived(self, chunk: Chunk, lanes: Mapping[int, LaneProgress]) -> None:
        """Put the images of a chunk behind those that its lanes have ready, and see whether too many are missing."""
        epoch = min(one.epoch for one in lanes.values())
        row, ended = 0, []
        for part in chunk.parts:
            self._named = list(dict.fromkeys(self._named + part.named))[:SHOWN]  # each epoch meets them again
            if part.size:
                row = lanes[part.lane].arrive(part, chunk.views, row)
            elif not lanes[part.lane].end_epoch(self.share):
                ended.append(lanes[part.lane].last_epoch)
        self._judge(lanes, epoch_ended=bool(ended) or min(one.epoch for one in lanes.values()) > epoch)
        if ended:
            fewest, num_lanes = min(ended), self._identity["lanes"]
            of_lanes = f": of its {num_lanes} lanes, one has {fewest}, and a step takes {self.share} from each"
            raise UserError(
                f"`batch_size` must not exceed the usable images of an epoch, but it is {self._batch_size} and an "
                f"epoch of `{self.source.name}` has about {fewest * num_lanes}{of_lanes * (num_lanes > 1)}. Lower "
                f"`batch_size`{', or give fewer `lanes`' * (num_lanes > 1)}."
            )

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

    def _loader(self, maker: Maker, lanes: Mapping[int, LaneProgress]) -> DataLoader:
        options: dict[str, Any] = {}
        if self.num_workers:
            chunks_of_two_batches = math.ceil(2 * self.images_per_device / (self._chunk_size * self.num_workers))
            options = {"prefetch_factor": max(2, chunks_of_two_batches)}
        if self._decoder is not None:
            files = partial(_read, undecoded, timeout=self.source.access.timeout)
            return make_loader(Fetcher(files), self._chunks(lanes), self.num_workers, **options)
        return make_loader(maker, self._chunks(lanes), self.num_workers, **options)

    def _chunks(self, lanes: Mapping[int, LaneProgress]) -> Iterator[Chunk]:
        """Records for the workers: next always those of the lane that is behind the others."""
        windows = self._dealing.windows({lane: one.place for lane, one in lanes.items()})
        size = self._dealing.lane_window
        readers = {lane: LaneReader(lane, windows[lane], size, one.place.offset) for lane, one in lanes.items()}
        handed_out = dict.fromkeys(lanes, 0)
        while True:
            parts, room = [], self._chunk_size
            while room > 0:
                # Bad images do not count, or the views of the other lanes would pile up.
                lane = min(lanes, key=lambda lane: handed_out[lane] - lanes[lane].num_bad)
                number = min(self._turn, room)
                parts += readers[lane].take(number)
                handed_out[lane] += number
                room -= number
            yield Chunk(parts)

    def _judge(self, lanes: Mapping[int, LaneProgress], *, epoch_ended: bool) -> None:
        seen = sum(one.num_seen for one in lanes.values())
        skipped = sum((one.found_bad for one in lanes.values()), Counter[str]())
        num_skipped = skipped.total()
        if num_skipped <= self.max_skipped_ratio * seen or not (epoch_ended or seen >= MIN_RECORDS_TO_JUDGE):
            return
        by_count = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
        reasons = ", ".join(f"{count} {reason}" for reason, count in by_count)
        archives = damaged_archives(self.source.name) if "damaged archive" in skipped else []
        named = f", such as {', '.join(self._named)}" if self._named else ""
        damaged = f" Damaged: {', '.join(f'`{path}`' for path in archives[:SHOWN])}." if archives else ""
        raise UserError(
            f"{num_skipped} of {seen} images of `{self.source.name}` cannot be used: {reasons}{named}.{damaged} "
            f"Repair the data set or raise `max_skipped_ratio`, which is {self.max_skipped_ratio}."
        )


def merged_positions(positions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The position of all lanes, from those of all processes after the same step."""
    merged: dict[str, Any] = {}
    for position in positions:
        merged = {**position, "at": {**merged.get("at", {}), **position["at"]}}
    return merged


def turn_of(share: int, num_lanes: int, chunk_size: int) -> int:
    """Images that a lane gives at a time: a divisor of its share, unless that would be much less than possible.

    Args:
        share: Images of the lane in a step.
        num_lanes: Lanes of a process, which take turns.
        chunk_size: Records that a worker handles at a time, at the most.
    """
    most = min(share, max(1, chunk_size // num_lanes))
    divisor = max(number for number in range(1, most + 1) if share % number == 0)
    return divisor if 2 * divisor > most else most


def _read(read: Callable[..., Iterator[Any]], images: pa.Array, timeout: float) -> Iterator[Any]:
    # One by one: the memory of the last is used again, and that of a new list costs more than reading it.
    return read((image.as_py() for image in images), timeout)


def _check_at_least(**values: tuple[int, int]) -> None:
    for name, (value, minimum) in values.items():
        if value < minimum:
            raise UserError(f"`{name}` must be at least {minimum}, got {value}.")


def _check_source(source: Source, batch_size: int, with_labels: bool) -> None:
    if source.num_images is not None and source.num_images < batch_size:
        raise UserError(
            f"`batch_size` must not exceed the images of the data set, but split `{source.split}` of "
            f"`{source.name}` has {source.num_images} and the batch size is {batch_size}. Lower `batch_size`."
        )
    if with_labels and not source.labels:
        raise UserError(
            f"`{source.name}` has no labels, which this method is set to look at. Name their column with "
            "`label_column`, or take other settings."
        )
