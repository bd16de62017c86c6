"""What the lanes of a process have ready, and how batches use it up."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_ssl.data.order.chunks import Part
from hf_ssl.data.order.lanes import Place


@dataclass
class _Ready:
    """Usable images of a part that are not yet in a batch.

    `offsets` are those in the part. `used` of the images are in batches. `unseen` and `bad` are of the records before
    the first image that no batch has counted.
    """

    part: Part
    views: tuple[Tensor, ...]
    row: int
    offsets: Sequence[int]
    unseen: int
    bad: Counter[str]
    used: int = 0


class LaneProgress:
    """What a lane has ready, and how far batches have used it.

    Attributes:
        place: After the last image that is in a batch.
        skipped: Images before it that cannot be used, by reason.
        num_ready: Usable images that wait for a batch.
        epoch: That of the next record to arrive.
        last_epoch: Usable images of the epoch before it.
        num_seen: Records that have arrived.
        found_bad: Those of them that cannot be used, by reason.
        num_bad: Those of them that cannot be used, in this process.
    """

    def __init__(self, position: Mapping[str, Any] | None):
        saved = position or {"epoch": 0, "window": 0, "offset": 0, "state": None, "seen": 0, "skipped": {}}
        self.place = Place(*(saved[name] for name in ("epoch", "window", "offset", "state")))
        self.skipped = Counter[str](saved["skipped"])
        self._seen = self.num_seen = saved["seen"]
        self.found_bad = Counter(self.skipped)
        self.num_ready = self.num_bad = self.last_epoch = 0
        self.epoch = self.place.epoch
        self._whole = self.place.window == self.place.offset == 0  # whether the epoch has been read from its start
        self._in_epoch = 0  # usable images
        self._ready: deque[_Ready] = deque()
        self._unseen, self._bad = 0, Counter[str]()  # after the last usable image

    def position(self) -> dict[str, Any]:
        """Where to go on, as JSON has it."""
        return {**vars(self.place), "seen": self._seen, "skipped": dict(self.skipped)}

    def arrive(self, part: Part, views: tuple[Tensor, ...], row: int) -> int:
        """Take a part whose views begin at a row; gives the row after them."""
        bad = part.reasons
        offsets = [offset for offset in range(part.size) if offset not in bad] if bad else range(part.size)
        self.num_seen += part.size
        self.found_bad.update(bad.values())
        self.num_bad += len(bad)
        self.num_ready += len(offsets)
        self._in_epoch += len(offsets)
        if offsets:
            self._ready.append(_Ready(part, views, row, offsets, self._unseen, self._bad))
            self._unseen, self._bad = 0, Counter()
        last = offsets[-1] if offsets else -1
        self._unseen += part.size - 1 - last
        self._bad.update(reason for offset, reason in bad.items() if offset > last)
        return row + len(offsets)

    def end_epoch(self, share: int) -> bool:
        """Begin another epoch; whether the last one had enough images for a step."""
        enough = self._in_epoch >= share or not self._whole
        self.last_epoch, self._in_epoch, self._whole = self._in_epoch, 0, True
        self.epoch += 1
        return enough

    def move(self, number: int, batch: "Filling") -> None:
        """Move images that are ready into a batch."""
        self.num_ready -= number
        while number:
            ready = self._ready[0]
            part, here = ready.part, min(number, len(ready.offsets) - ready.used)
            first, stop = ready.used, ready.used + here
            batch.add(ready.views, ready.row + first, part.indices[first:stop], part.labels[first:stop])
            if first == 0:
                self._seen += ready.unseen
                self.skipped.update(ready.bad)
            before = ready.offsets[first - 1] if first else -1
            last = ready.offsets[stop - 1]
            self._seen += last - before
            self.skipped.update(reason for offset, reason in part.reasons.items() if before < offset < last)
            self.place = replace(part.place, offset=part.place.offset + last + 1)
            ready.used = stop
            number -= here
            if stop == len(ready.offsets):
                self._ready.popleft()


class Filling:
    """A batch that is being filled."""

    def __init__(self) -> None:
        self._slices: list[tuple[tuple[Tensor, ...], int, int]] = []
        self.indices: list[int | None] = []
        self.labels: list[int] = []

    @property
    def num_images(self) -> int:
        """Images so far."""
        return len(self.indices)

    def add(self, views: tuple[Tensor, ...], row: int, indices: list[int | None], labels: list[int]) -> None:
        """Add images whose views follow each other from a row on."""
        stop = row + len(indices)
        if self._slices and self._slices[-1][0] is views and self._slices[-1][2] == row:
            _, row, _ = self._slices.pop()  # one piece need not be copied
        self._slices.append((views, row, stop))
        self.indices += indices
        self.labels += labels

    def parts(self) -> list[Tensor]:
        """The views, or what they are made of, of all images."""
        pieces = [[tensor[row:stop] for tensor in views] for views, row, stop in self._slices]
        return pieces[0] if len(pieces) == 1 else [torch.cat(tensors) for tensors in zip(*pieces, strict=True)]
