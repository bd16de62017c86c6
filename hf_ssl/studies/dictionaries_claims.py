"""What MoCo's paper and MoCHi's say of dictionaries, as statements that runs show or refute.

He et al., 2019 (https://arxiv.org/abs/1911.05722), sections 3 and 4.1; Kalantidis et al., 2020
(https://arxiv.org/abs/2010.01028), section 1, as they are quoted (UNVERIFIED). What a claim means in numbers is
decided here, before the runs: each has the sentence, the settings that it compares and a test.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from hf_ssl.studies.dictionaries_runs import BANK, END_TO_END, FRESH, MOCO, Run

_PART_OF_GAIN = 0.25  # of the best momentum's gain over a fresh encoder, below which a run has not learnt
_EQUAL = 0.1  # relative difference of bytes that still counts as equal


@dataclass(frozen=True)
class Claim:
    """A claim, and whether the runs show it.

    Args:
        text: The claim.
        holds: Whether it holds, of each seed that has what it takes.
        numbers: What was compared, in words, of the first seed.
    """

    text: str
    holds: list[bool]
    numbers: str

    def __str__(self) -> str:
        """The claim, in how many seeds it holds, and its numbers."""
        seeds = f"{len(self.holds)} seed{'s' * (len(self.holds) > 1)}"
        whose = "of the first: " if len(self.holds) > 1 else ""
        return f"{self.text}: in {sum(self.holds)} of {seeds} ({whose}{self.numbers})"


Test = Callable[[Sequence[Run]], tuple[bool, str] | None]
"""From the runs of a seed to the verdict and its numbers; None where runs are missing."""


def claims_of(runs: Iterable[Run]) -> list[Claim]:
    """Which claims the runs show; those whose settings are missing are left out.

    Args:
        runs: Finished runs of all seeds. Where an axis is not what a claim is about, its first value counts: that of
            the fresh encoder's setting.
    """
    by_seed: dict[int, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(run)
    claims = []
    for text, test in _CLAIMS:
        found = [answer for group in by_seed.values() if (answer := test(group)) is not None]
        if found:
            claims.append(Claim(text, [holds for holds, _ in found], found[0][1]))
    return claims


def _base(runs: Sequence[Run], method: str, but: str = "") -> list[Run]:
    """Runs of a method, of all momenta, at the first value of every other axis but one; ascending in that."""
    of_method = [run for run in runs if run.cell.method == method]
    start = next((run.cell for run in runs if run.cell.method == FRESH), None)
    if start is None or not of_method:
        return []
    size = of_method[0].cell.queue_size
    fixed = {
        "batch_size": start.batch_size,
        "num_images": start.num_images,
        "learning_rate": start.learning_rate,
        "queue_size": size,
    }
    fixed.pop(but, None)
    chosen = [run for run in of_method if all(getattr(run.cell, name) == value for name, value in fixed.items())]
    return sorted(chosen, key=lambda run: getattr(run.cell, but)) if but else chosen


def _fresh_knn(runs: Sequence[Run]) -> float | None:
    return next((run.measured.knn for run in runs if run.cell.method == FRESH), None)


def _best(runs: Sequence[Run]) -> Run | None:
    """The run of `moco` with the best k-NN accuracy."""
    return max(
        (run for run in _base(runs, MOCO) if run.measured.knn is not None),
        key=lambda run: run.measured.knn or 0.0,
        default=None,
    )


def _no_momentum_learns_nothing(runs: Sequence[Run], largest: bool = False) -> tuple[bool, str] | None:
    sizes = {run.cell.queue_size or 0 for run in _base(runs, MOCO, "queue_size")}
    if largest:  # the other sizes are out of the question
        runs = [run for run in runs if run.cell.method != MOCO or run.cell.queue_size == max(sizes, default=0)]
    fresh, best = _fresh_knn(runs), _best(runs)
    without = next((run for run in _base(runs, MOCO) if run.cell.momentum == 0), None)
    if largest and len(sizes) < 2:
        return None
    if fresh is None or best is None or without is None or best is without or without.measured.knn is None:
        return None
    gain, best_gain = without.measured.knn - fresh, (best.measured.knn or 0.0) - fresh
    said = (
        f"k-NN {100 * gain:+.1f} points over a fresh encoder, momentum {best.cell.momentum:g} {100 * best_gain:+.1f}"
    )
    return gain < _PART_OF_GAIN * best_gain, said


def _best_momentum_is_large(runs: Sequence[Run]) -> tuple[bool, str] | None:
    best = _best(runs)
    if best is None or len(_base(runs, MOCO)) < 2:
        return None
    return (best.cell.momentum or 0.0) >= 0.99, f"best k-NN with momentum {best.cell.momentum:g}"


def _bank_is_staler(runs: Sequence[Run]) -> tuple[bool, str] | None:
    best, bank = _best(runs), next(iter(_base(runs, BANK)), None)
    if best is None or bank is None or best.oldest_agreement is None or bank.oldest_agreement is None:
        return None
    said = f"cosine of the oldest keys {bank.oldest_agreement:.2f} against {best.oldest_agreement:.2f}"
    return bank.oldest_agreement < best.oldest_agreement, said


def _bank_is_less_consistent(runs: Sequence[Run]) -> tuple[bool, str] | None:
    best, bank = _best(runs), next(iter(_base(runs, BANK)), None)
    if best is None or bank is None:
        return None
    own, other = (_age_alone(run) for run in (bank, best))
    return own > other, f"age explains {100 * own:z.1f} % of its variance against {100 * other:z.1f} %"


def _age_alone(run: Run) -> float:
    """What age explains beyond what batches of one age do."""
    return (run.measured.stored_age_share or 0.0) - (run.measured.fresh_age_share or 0.0)


def _bank_suffers_from_size(runs: Sequence[Run]) -> tuple[bool, str] | None:
    banks = _base(runs, BANK, "num_images")
    agreements = [run.oldest_agreement for run in banks]
    known = [value for value in agreements if value is not None]
    if len(known) < 2 or len(known) < len(banks):
        return None
    said = ", ".join(f"{run.cell.num_images}: {value:.2f}" for run, value in zip(banks, known, strict=True))
    return bool(np.all(np.diff(known) < 0)), f"cosine of the oldest keys by images: {said}"


def _values_are_not_fresher(runs: Sequence[Run]) -> tuple[bool, str] | None:
    bank = next(iter(_base(runs, BANK)), None)
    if bank is None:
        return None
    keys, entries = bank.curve("keys"), bank.curve("entries")
    if not entries:
        return None
    said = ", ".join(f"age {age}: {value:.2f} against {keys[age]:.2f}" for age, value in entries.items())
    # By the size, for keys may have turned past a right angle, which an average of anything takes back.
    return all(abs(value) <= abs(keys[age]) for age, value in entries.items()), said


def _more_negatives_pay_less(runs: Sequence[Run]) -> tuple[bool, str] | None:
    best = _best(runs)
    if best is None:
        return None
    queues = [run for run in _base(runs, MOCO, "queue_size") if run.cell.momentum == best.cell.momentum]
    if len(queues) < 3:
        return None
    first, middle, last = queues[0], queues[len(queues) // 2], queues[-1]
    slopes = [
        ((b.measured.knn or 0.0) - (a.measured.knn or 0.0)) / ((b.cell.queue_size or 0) - (a.cell.queue_size or 0))
        for a, b in ((first, middle), (middle, last))
    ]
    said = ", ".join(f"{run.cell.queue_size}: {100 * (run.measured.knn or 0.0):.1f}" for run in queues)
    return slopes[1] < slopes[0], f"k-NN by keys: {said}"


def _effective_number_lags(runs: Sequence[Run]) -> tuple[bool, str] | None:
    best = _best(runs)
    if best is None:
        return None
    queues = [run for run in _base(runs, MOCO, "queue_size") if run.cell.momentum == best.cell.momentum]
    shares = [(run.late("effective") or 0.0) / (run.late("negatives") or 1.0) for run in queues]
    if len(queues) < 2:
        return None
    said = ", ".join(f"{run.cell.queue_size}: {run.late('effective'):.0f}" for run in queues)
    return max(shares) < 1, f"effective negatives by keys: {said}"


def _batches_cost_memory(runs: Sequence[Run]) -> tuple[bool, str] | None:
    batches = _base(runs, END_TO_END, "batch_size")
    queues = _base(runs, MOCO, "queue_size")
    queues = [run for run in queues if run.cell.momentum == queues[0].cell.momentum]
    if len(batches) < 2 or len(queues) < 2:
        return None
    per_image = [(run.measured.held_bytes or 0) / run.cell.batch_size for run in batches]
    of_queues = [run.measured.held_bytes or 0 for run in queues]
    megabytes = [f"{run.cell.batch_size}: {(run.measured.held_bytes or 0) / 1e6:.1f}" for run in batches]
    said = f"MB by batch, end to end: {', '.join(megabytes)}; queue of {queues[0].cell.queue_size} keys "
    said += f"{of_queues[0] / 1e6:.1f}, of {queues[-1].cell.queue_size} {of_queues[-1] / 1e6:.1f}"
    grows = max(per_image) <= (1 + _EQUAL) * min(per_image)
    return grows and max(of_queues) <= (1 + _EQUAL) * min(of_queues), said


_CLAIMS: list[tuple[str, Test]] = [
    ("without momentum MoCo's encoder does not learn from the first queue", _no_momentum_learns_nothing),
    ("without momentum it does not learn from the largest queue", partial(_no_momentum_learns_nothing, largest=True)),
    ("the best momentum is at least 0.99", _best_momentum_is_large),
    ("the oldest keys of a memory bank are staler than the queue's", _bank_is_staler),
    ("age explains more of the bank's variance than of the queue's", _bank_is_less_consistent),
    ("a memory bank's keys are staler the more images there are", _bank_suffers_from_size),
    ("averaging a bank's values does not make them fresher than the last feature alone", _values_are_not_fresher),
    ("more keys in the queue pay less and less", _more_negatives_pay_less),
    ("fewer negatives count than there are", _effective_number_lags),
    ("end to end, memory grows with the negatives, and with a queue it does not", _batches_cost_memory),
]
