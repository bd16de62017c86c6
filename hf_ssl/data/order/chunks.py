"""Chunks: records on their way through the workers, in which images become views."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, cycle
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hf_ssl.data.decode.image_bytes import with_name
from hf_ssl.data.decode.pictures import in_groups
from hf_ssl.data.order.lanes import Dealing, Place, Window
from hf_ssl.data.order.ordered import UNKNOWN_LABEL
from hf_ssl.data.views.draws import numbers_between
from hf_ssl.errors import UserError


class ViewMaker(Protocol):
    """What a stream makes of pictures: `Views`, `Crops`, `CropsOfEach`, or `CachedDraws` of places in a cache."""

    def __call__(self, pictures: list[Any], numbers: NDArray) -> tuple[Tensor, ...]:
        """Make the views of some pictures, (pictures, ...) each, from numbers in [0, 1), (pictures, 2, NUM_DRAWS)."""
        ...


Pictures = Callable[[pa.Array], Iterator[Any]]
"""Undecoded images -> for each a picture, or the `SkippedImageError` that says why there is none."""

Decoder = Callable[[Iterable[Any]], Iterator[Any]]
"""The same of what `Fetcher` has found."""


@dataclass
class Part:
    """Consecutive records of a lane, and what a worker made of them.

    Args:
        lane: The lane.
        place: Of the first record.
        first: Number of the first record in the lane's epoch.
        size: Number of records; 0 where an epoch ends.
        records: Undecoded images, their indices and their labels; None once they have become views.
        fetched: The files of the images, or why there is none, where the training process decodes them.
        reasons: Offset of each image that cannot be used -> why.
        named: The first of them, such as "`a.jpg` (truncated)"; at most three.
        indices: Of the other images.
        labels: Of the other images, `UNKNOWN_LABEL` where they have none.
    """

    lane: int
    place: Place
    first: int = 0
    size: int = 0
    records: pa.RecordBatch | None = None
    fetched: list[Any] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    indices: list[int | None] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def finish(self, records: pa.RecordBatch) -> None:
        """Keep what the usable images need beside their views; the bytes need not travel back."""
        indices, labels = records["index"].to_pylist(), records["label"].to_pylist()
        usable = [offset for offset in range(self.size) if offset not in self.reasons]
        self.indices = [indices[offset] for offset in usable]
        self.labels = [UNKNOWN_LABEL if labels[offset] is None else labels[offset] for offset in usable]
        self.records, self.fetched = None, []


@dataclass
class Chunk:
    """What a worker handles at a time, and the views of its usable images, part after part."""

    parts: list[Part]
    views: tuple[Tensor, ...] = ()


class Fetcher(Dataset):
    """Reads the files of a chunk where the training process decodes them; runs in the workers.

    Args:
        files: Undecoded images -> for each its file, a picture, or why there is none.
    """

    def __init__(self, files: Pictures):
        self.files = files

    def __getitem__(self, chunk: Chunk) -> Chunk:
        for part in chunk.parts:
            if part.records is not None:
                images = part.records["image"]
                part.fetched = list(self.files(images))
                paths = [pa.nulls(len(images), pa.binary()), images.field("path")]  # the bytes need not travel twice
                part.records = part.records.set_column(
                    part.records.schema.get_field_index("image"),
                    "image",
                    pa.StructArray.from_arrays(paths, names=["bytes", "path"]),
                )
        return chunk


class Maker(Dataset):
    """Turns the records of a chunk into views; runs in the workers, or after them in the training process.

    Args:
        views: Makes the views.
        seed: Of the run.
        pictures: Makes pictures of undecoded images.
        decoder: Makes them of what a `Fetcher` has found, in the place of `pictures`.
    """

    def __init__(self, views: ViewMaker, seed: int, pictures: Pictures, decoder: Decoder | None = None):
        self.views = views
        self.seed = seed
        self.pictures = pictures
        self.decoder = decoder

    def __getitem__(self, chunk: Chunk) -> Chunk:
        parts = [(part, part.records) for part in chunk.parts if part.records is not None]
        places = [(part, records, offset) for part, records in parts for offset in range(part.size)]

        def skip(place: int, reason: str) -> None:
            part, records, offset = places[place]
            part.reasons[offset] = reason
            image, index = records["image"][offset].as_py(), records["index"][offset].as_py()
            part.named = with_name(part.named, image, reason, index)

        made: list[tuple[Tensor, ...]] = []
        if parts:
            numbers = np.concatenate([self._numbers_of(part) for part, _ in parts])
            if self.decoder is not None:  # all parts together, since a device gains from many
                pictures = self.decoder(chain.from_iterable(part.fetched for part, _ in parts))
            else:
                pictures = chain.from_iterable(self.pictures(records["image"]) for _, records in parts)
            made = [self.views(group, numbers[kept]) for kept, group in in_groups(pictures, skip)]
        chunk.views = made[0] if len(made) == 1 else tuple(map(torch.cat, zip(*made, strict=True)))
        for part, records in parts:
            part.finish(records)
        return chunk

    def _numbers_of(self, part: Part) -> NDArray[np.float64]:
        return numbers_between(self.seed, part.place.epoch, part.lane, part.first, part.first + part.size)


class LaneReader:
    """Hands out the records of a lane."""

    def __init__(self, lane: int, windows: Iterator[Window], window_size: int, offset: int):
        self._lane, self._windows, self._window_size = lane, windows, window_size
        self._window: Window | None = None
        self._empty_epochs = 0  # in a row
        self._offset = offset  # of the first window

    def take(self, number: int) -> list[Part]:
        """The next records: of one window or several, with an empty part where an epoch ends.

        Raises:
            UserError: If the lane has no records.
        """
        parts = []
        while number:
            if self._window is None:
                self._window = next(self._windows)
            start, records = self._window.start, self._window.records
            rows = self._window.rows[self._offset : self._offset + number]
            if records is not None and len(rows):
                place = Place(start.epoch, start.window, self._offset, start.state)
                first = start.window * self._window_size + self._offset
                parts.append(Part(self._lane, place, first, len(rows), records.take(pa.array(rows))))
                self._offset += len(rows)
                number -= len(rows)
                self._empty_epochs = 0
            else:
                if records is None:
                    parts.append(Part(self._lane, start))
                    self._empty_epochs += 1
                if self._empty_epochs > 1:  # the first may have begun at its end
                    raise UserError(
                        f"The data set has too few images: lane {self._lane} would get none. Start fewer processes, "
                        "or give fewer `lanes`."
                    )
                self._window, self._offset = None, 0
        return parts


def parts_in_turns(dealing: Dealing, turn: int) -> Iterator[Part]:
    """The records of all lanes in training order from the beginning, without views; empty parts end epochs.

    Args:
        dealing: How the records become lanes.
        turn: Records that a lane gives at a time.
    """
    windows = dealing.windows(dict.fromkeys(range(dealing.lanes), Place()))
    readers = [LaneReader(lane, windows[lane], dealing.lane_window, 0) for lane in windows]
    return chain.from_iterable(reader.take(turn) for reader in cycle(readers))
