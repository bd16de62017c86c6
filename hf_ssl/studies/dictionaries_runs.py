"""What the study of dictionaries trains, and what comes of it."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_ssl.studies.dictionaries_probe import Look

MOCO = "moco"
BANK = "memory_bank"
END_TO_END = "end_to_end"
TWO_NETWORKS = "end_to_end-two"
METHODS = (END_TO_END, TWO_NETWORKS, BANK, MOCO)
"""Ways to keep a dictionary: figure 2 of MoCo's paper, (a) with one network and with two, (b) and (c)."""

FRESH = "fresh"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One setting of one mechanism.

    Args:
        method: Of `METHODS`, or `FRESH` for the encoder that is not trained.
        momentum: Of the key encoder; None but for `moco`.
        queue_size: Keys in the queue, of a memory bank the entries drawn for each image; None end to end.
        batch_size: Images of a step.
        num_images: Images of the data set.
        learning_rate: For 256 images a step.
    """

    method: str
    momentum: float | None = None
    queue_size: int | None = None
    batch_size: int
    num_images: int
    learning_rate: float

    @property
    def folder(self) -> str:
        """Name of the folder of its runs, different for each cell."""
        parts = [self.method]
        parts += [f"m{self.momentum:.15g}"] if self.momentum is not None else []
        parts += [f"q{self.queue_size}"] if self.queue_size is not None else []
        if self.method != FRESH:
            parts += [f"b{self.batch_size}", f"n{self.num_images}", f"lr{self.learning_rate:.15g}"]
        return "-".join(parts)

    @property
    def step_rate(self) -> float:
        """Learning rate of a step."""
        return self.learning_rate * self.batch_size / 256


def cells_of(
    methods: Iterable[str],
    *,
    momenta: Sequence[float],
    queue_sizes: Sequence[int],
    batch_sizes: Sequence[int],
    numbers_of_images: Sequence[int],
    learning_rates: Sequence[float],
) -> list[Cell]:
    """All settings of some axes; what an axis does not change in a method is there once.

    Args:
        methods: Of `METHODS`.
        momenta: Axis of `moco`.
        queue_sizes: Axis of `moco` and `memory_bank`.
        batch_sizes: Axis.
        numbers_of_images: Axis.
        learning_rates: Axis.
    """
    common = list(itertools.product(numbers_of_images, batch_sizes, learning_rates))
    cells = []
    for method in methods:
        own_momenta = momenta if method == MOCO else [None]
        own_queues = queue_sizes if method in (MOCO, BANK) else [None]
        for (images, batch, rate), momentum, size in itertools.product(common, own_momenta, own_queues):
            cells.append(
                Cell(
                    method=method,
                    momentum=momentum,
                    queue_size=size,
                    batch_size=batch,
                    num_images=images,
                    learning_rate=rate,
                )
            )
    return cells


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run came to.

    Args:
        knn: Accuracy of k-NN on representations, in [0, 1]; None if not measured.
        loss: Mean over the last tenth of the log, in nats; None of the fresh encoder, as is everything that follows.
        loss_spread: Standard deviation over that tenth.
        contrast_accuracy: Share of queries whose positive scores above all negatives, mean over that tenth.
        looks: What the dictionary was, early to late.
        stored_age_share: Share of the variance of the dictionary's keys that their age explains, at the end.
        fresh_age_share: The same of the same views encoded by the last encoder: what their batches explain.
        dictionary_bytes: Bytes of the keys that outlive a step and of a second network.
        held_bytes: Bytes that a forward pass holds for the backward pass.
        step_milliseconds: Processor time of a step in the training process, without looking.
    """

    knn: float | None
    loss: float | None = None
    loss_spread: float | None = None
    contrast_accuracy: float | None = None
    looks: tuple[Look, ...] = ()
    stored_age_share: float | None = None
    fresh_age_share: float | None = None
    dictionary_bytes: int | None = None
    held_bytes: int | None = None
    step_milliseconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run.

    Args:
        cell: Its setting.
        seed: Its seed.
        measured: What came.
    """

    cell: Cell
    seed: int
    measured: Measured

    def record(self) -> dict[str, Any]:
        """Everything, JSON-able; `of_json` reads it."""
        return asdict(self)

    @property
    def late_looks(self) -> list[Look]:
        """Those of the second half of the run."""
        if not self.measured.looks:
            return []
        middle = self.measured.looks[-1].step / 2
        return [look for look in self.measured.looks if look.step > middle]

    def curve(self, name: str) -> dict[int, float]:
        """Cosine by age, mean over the looks of the second half; `name` is `keys`, `queries` or `entries`."""
        by_age: dict[int, list[float]] = {}
        for look in self.late_looks:
            for age, value in zip(look.ages, getattr(look, name), strict=True):
                if value is not None:
                    by_age.setdefault(age, []).append(value)
        return {age: float(np.mean(values)) for age, values in sorted(by_age.items())}

    def late(self, name: str) -> float | None:
        """A number of `Look`, mean over the second half of the run; None if it was not measured."""
        values = [getattr(look, name) for look in self.late_looks]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    @property
    def oldest(self) -> int | None:
        """Age of the oldest keys in the dictionary, in steps; 0 where the batch is the dictionary."""
        cell = self.cell
        if cell.method == FRESH:
            return None
        size = {MOCO: cell.queue_size, BANK: cell.num_images}.get(cell.method)
        return -(-size // cell.batch_size) if size else 0

    @property
    def oldest_agreement(self) -> float | None:
        """Cosine of the oldest keys in the dictionary and of their views now, between the ages that were measured."""
        if not self.oldest:
            return None if self.oldest is None else 1.0
        curve = self.curve("keys")
        if not curve:
            return None
        return float(np.interp(np.log(self.oldest), np.log(list(curve)), list(curve.values())))


def by_cell(runs: Iterable[Run]) -> dict[Cell, list[Run]]:
    """Runs of the same setting together, in the order in which settings come first."""
    together: dict[Cell, list[Run]] = {}
    for run in runs:
        together.setdefault(run.cell, []).append(run)
    return together
