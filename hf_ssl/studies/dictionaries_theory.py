"""Foretell how stale the keys of runs will be that were not trained yet, and choose a queue from that."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hf_ssl.dynamics.staleness import Drift, KeyTheory, Seen, angle_of, fit_drifts
from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import json_object
from hf_ssl.studies.dictionaries_probe import AGES, Look
from hf_ssl.studies.dictionaries_runs import MOCO, Cell, Run


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """What theory says of one setting.

    Args:
        cell: The setting.
        keys: Cosine of keys and of the same views encoded now, by age, mean over the looks of the second half.
        oldest: The same for the oldest keys of the queue, at the look at which it is smallest.
        lag: Cosine of what key encoder and query encoder make of a view, at the end.
        variance: Of unit keys over images, in (0, 1], in the runs from which it is foretold.
    """

    cell: Cell
    keys: dict[int, float]
    oldest: float
    lag: float
    variance: float

    @property
    def consistency(self) -> float:
        """1 - (1 - cosine) / variance of the oldest keys: how near they stay, against how far apart images are."""
        return 1 - (1 - self.oldest) / self.variance


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What is written before the runs that it foretells.

    Args:
        drifts: The laws that were fitted, by momentum.
        fitted: Folders of the settings that it was fitted to.
        until: Last step that was looked at.
        misfit: Root mean square of the fit's error in the angle, arccos of the cosine.
        bound: See `choose`.
        foretold: Of each setting.
        choice: The setting that `choose` takes.
    """

    FILE: ClassVar[str] = "predictions.json"

    drifts: dict[float, Drift]
    fitted: tuple[str, ...]
    until: int
    misfit: float
    bound: float
    foretold: tuple[Foretold, ...]
    choice: Cell

    def record(self) -> dict[str, Any]:
        """Everything, JSON-able; `read` reads it."""
        return asdict(self)

    def says_of(self) -> tuple[Any, ...]:
        """What is foretold, and from what: equal for equal questions."""
        return [one.cell for one in self.foretold], self.fitted, self.until, self.bound

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Predictions from a file.

        Raises:
            UserError: If something else stands there.
        """
        try:
            return cls.from_record(json_object(path))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"it has no `{error.args[0]}`" if isinstance(error, KeyError) else error
            raise UserError(
                f"`{path}` does not hold predictions of this study: {reason}. Put the file back, or give another "
                "`output_dir`."
            ) from error

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Predictions":
        """Predictions from what `record` gave."""
        foretold = [
            Foretold(
                cell=Cell(**one["cell"]),
                keys={int(age): value for age, value in one["keys"].items()},
                oldest=one["oldest"],
                lag=one["lag"],
                variance=one["variance"],
            )
            for one in record["foretold"]
        ]
        drifts = {float(momentum): Drift.from_record(law) for momentum, law in record["drifts"].items()}
        made = {"drifts": drifts, "choice": Cell(**record["choice"])}
        made |= {"foretold": tuple(foretold), "fitted": tuple(record["fitted"])}
        return cls(**{**record, **made})

    def said(self) -> list[str]:
        """The law and the choice, in sentences."""
        choice, (first, *_) = self.choice, self.drifts.values()
        chosen = next(one for one in self.foretold if one.cell == choice)
        laws = "; ".join(
            f"exp(-{law.walk:.3g} x) cos({law.turn:.3g} x) for momentum {momentum:g}"
            + (f", slowing by a power of {law.slowing:.2f}" if law.slowing else "")
            for momentum, law in self.drifts.items()
        )
        return [
            f"Cosine of queries, fitted to the first {self.until} steps of {len(self.fitted)} settings: {laws}; x = "
            f"(rate of a step / 0.01)^{first.speed:.2f} times steps; error of the fit {self.misfit:.2f} in the angle.",
            f"Foretold: {len(self.foretold)} settings. Choice for a bound of {self.bound:g}: queue "
            f"{choice.queue_size}, momentum {choice.momentum:g} (oldest keys {chosen.oldest:.3f}, consistency "
            f"{chosen.consistency:.3f}, key encoder against query encoder {chosen.lag:.3f}).",
        ]


def predict(
    cells: Sequence[Cell], runs: Sequence[Run], *, until: int, num_steps: int, look_every: int, bound: float
) -> Predictions:
    """Foretell settings from the first steps of runs of other settings.

    Args:
        cells: Settings of `moco` to foretell.
        runs: Runs of `moco` whose queries are looked at; those of a setting in `cells` are left out.
        until: Last step at which they are looked at.
        num_steps: Of the runs that are foretold.
        look_every: Steps between two looks at them.
        bound: See `choose`.

    Raises:
        UserError: If there is nothing to foretell, or nothing to fit.
    """
    if not cells:
        raise UserError(f"`fit_from` foretells runs of `{MOCO}`, but `methods` does not name it.")
    usable = [run for run in runs if run.cell not in cells]
    seen = [
        one for run in usable for one in _seen_in(run, [look for look in run.measured.looks if look.step <= until])
    ]
    if len({one.learning_rate for one in seen}) < 2 or len(seen) < 4:
        raise UserError(
            f"`fit_from` needs runs of `{MOCO}` with at least two learning rates, of settings that are not foretold "
            f"here; it has {len(usable)} such run{'' if len(usable) == 1 else 's'} with {len(seen)} looks up to step "
            f"{until}. Train others in its folder, with another `learning_rate`."
        )
    drifts = {
        momentum: replace(law, lengths=_lengths([run for run in usable if run.cell.momentum == momentum], until))
        for momentum, law in fit_drifts(seen).items()
    }
    variances = {
        momentum: float(np.mean([(run.late("spread") or 1.0) ** 2 for run in usable if run.cell.momentum == momentum]))
        for momentum in drifts
    }
    error = [
        angle_of(one.cosine) - angle_of(drifts[one.momentum].cosine(one.earlier, one.later, one.learning_rate))
        for one in seen
    ]
    steps = sorted({*range(look_every, num_steps, look_every), num_steps - 1})
    foretold = tuple(_foretell(cell, drifts, variances, steps) for cell in cells)
    return Predictions(
        drifts=drifts,
        fitted=tuple(sorted({run.cell.folder for run in usable})),
        until=until,
        misfit=float(np.sqrt(np.mean(np.square(error)))),
        bound=bound,
        foretold=foretold,
        # Of queues and momenta, beside whatever else the first setting has.
        choice=choose([one for one in foretold if rivals(one.cell, foretold[0].cell)], bound),
    )


def drift_of_run(run: Run, looks: Sequence[Look]) -> Drift | None:
    """The law of the queries of one run, from some of its looks; None if these are too few."""
    seen = _seen_in(run, looks)
    if len(seen) < 4:
        return None
    # Of one learning rate, so that its power is not asked for.
    (law,) = fit_drifts(seen, speed=0.0).values()
    return replace(
        law, lengths=tuple((look.step, look.length) for look in run.measured.looks if look.step <= looks[-1].step)
    )


def _seen_in(run: Run, looks: Sequence[Look]) -> list[Seen]:
    """Cosines of the queries in some looks of a run."""
    return [
        Seen(look.step - age, look.step, run.cell.step_rate, run.cell.momentum or 0.0, cosine)
        for look in looks
        for age, cosine in zip(look.ages, look.queries, strict=True)
    ]


def _lengths(runs: Sequence[Run], until: int) -> tuple[tuple[int, float], ...]:
    """Length of the queries by step, mean over runs."""
    by_step: dict[int, list[float]] = {}
    for look in (look for run in runs for look in run.measured.looks if look.step <= until):
        by_step.setdefault(look.step, []).append(look.length)
    return tuple((step, float(np.mean(lengths))) for step, lengths in sorted(by_step.items()))


def _foretell(
    cell: Cell, drifts: Mapping[float, Drift], variances: Mapping[float, float], steps: Sequence[int]
) -> Foretold:
    # Runs whose average is about as long tell how the queries move.
    own = np.log(1 - (cell.momentum or 0.0) + 1e-9)
    nearest = min(drifts, key=lambda momentum: abs(float(np.log(1 - momentum + 1e-9) - own)))
    theory = KeyTheory(drifts[nearest], cell.step_rate, cell.momentum or 0.0)
    agreement = cache(theory.agreement)
    late = [step for step in steps if step > steps[-1] / 2]
    by_age = {age: [agreement(step, age) for step in late if age <= step] for age in AGES}
    age = -(-(cell.queue_size or 0) // cell.batch_size)
    return Foretold(
        cell=cell,
        keys={age: float(np.mean(cosines)) for age, cosines in by_age.items() if cosines},
        oldest=min(agreement(step, min(age, step)) for step in steps),
        lag=theory.lag(steps[-1]),
        variance=variances[nearest],
    )


def choose(foretold: Sequence[Foretold], bound: float) -> Cell:
    """The setting that theory recommends: the largest queue that stays consistent.

    MoCo asks for a dictionary that is large and consistent. A key is consistent if it has not moved by more than a
    little of what tells images apart: where all keys lie in a narrow cone, a small step leads past others. So of all
    settings whose `consistency` is at least `bound` throughout the run, take those of the largest queue, and of these
    the smallest momentum, whose key encoder has learnt most; if there is none, the most consistent setting, and of
    equal ones the larger queue. The rule is a heuristic; the cosines are the theory's.

    Args:
        foretold: At least one.
        bound: In (0, 1).
    """
    good = [one for one in foretold if one.consistency >= bound]
    if not good:
        return max(foretold, key=lambda one: (one.consistency, one.cell.queue_size or 0)).cell
    return max(good, key=lambda one: (one.cell.queue_size or 0, -(one.cell.momentum or 0.0))).cell


def rivals(cell: Cell, choice: Cell) -> bool:
    """Whether two settings differ in queue and momentum alone, if at all."""
    names = ("method", "batch_size", "num_images", "learning_rate")
    return all(getattr(cell, name) == getattr(choice, name) for name in names)
