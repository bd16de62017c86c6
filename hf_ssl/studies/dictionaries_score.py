"""How well staleness was foretold, and what the choice of queue and momentum was worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_ssl.dynamics.staleness import KeyTheory
from hf_ssl.studies.dictionaries_runs import Cell, Run, by_cell
from hf_ssl.studies.dictionaries_theory import Predictions, drift_of_run, rivals


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well the predictions did.

    Args:
        settings: Number of settings that were foretold and measured.
        points: Number of pairs of setting and age.
        r2: R^2 of foretold against measured cosines, of all pairs.
        r2_logarithm: The same of the logarithm of 1 - cosine, where the small ones count as much.
        r2_settings: R^2 of the means over the ages of each setting.
        largest_error: Largest difference of the cosines.
        by_momentum: R^2 of the pairs of each momentum, by momentum.
        r2_own_start: R^2 of the looks after `until` if the law is fitted to the queries of the same run up to there:
            without the step from one setting to another.
        r2_own: The same if it is fitted to the queries of the very looks: without that from early to late. What
            remains is the theory of the average, and the form of the law.
        best: The setting with the best k-NN accuracy; None without k-NN, as is all that follows.
        best_knn: Its mean accuracy.
        choice_knn: That of the setting that was chosen.
        spread: Standard deviation over the seeds within a setting, from all settings with several seeds; None
            without them.
    """

    settings: int
    points: int
    r2: float
    r2_logarithm: float
    r2_settings: float
    largest_error: float
    by_momentum: dict[str, float]
    r2_own_start: float | None = None
    r2_own: float | None = None
    best: Cell | None = None
    best_knn: float | None = None
    choice_knn: float | None = None
    spread: float | None = None

    def said(self) -> list[str]:
        """The score in sentences."""
        lines = [
            f"Foretold against measured cosines of keys: R^2 {self.r2:.3f} over {self.settings} settings that were "
            f"not fitted ({self.points} pairs of setting and age), {self.r2_settings:.3f} over their means, "
            f"{self.r2_logarithm:.3f} in the logarithm of 1 - cosine; largest error {self.largest_error:.2f}.",
            "R^2 by momentum: " + ", ".join(f"{name} {value:.2f}" for name, value in self.by_momentum.items()) + ".",
        ]
        if self.r2_own_start is not None and self.r2_own is not None:
            lines.append(
                f"R^2 with the law of each run's own first steps {self.r2_own_start:.3f}, of its own last steps "
                f"{self.r2_own:.3f}."
            )
        if self.best is not None and self.best_knn is not None and self.choice_knn is not None:
            spread = "one seed, so its spread is not known"
            if self.spread is not None:
                word = "within" if self.best_knn - self.choice_knn <= self.spread else "outside"
                spread = f"{word} the spread of seeds, {100 * self.spread:.1f}"
            lines.append(
                f"The choice has {100 * self.choice_knn:.1f} % k-NN; the best setting, queue {self.best.queue_size} "
                f"and momentum {self.best.momentum:g}, has {100 * self.best_knn:.1f} %: {spread}."
            )
        return lines


def r_squared(foretold: Sequence[float], measured: Sequence[float]) -> float:
    """1 - squared errors / squared deviations of what was measured; nothing is fitted between the two.

    Args:
        foretold: At least two.
        measured: As many, not all equal.
    """
    seen = np.asarray(measured, dtype=float)
    deviations = np.square(seen - seen.mean()).sum()
    return float(1 - np.square(seen - np.asarray(foretold)).sum() / deviations) if deviations else float("nan")


def score(predictions: Predictions, runs: Sequence[Run]) -> Score | None:
    """Compare predictions with the runs that they are about; None if none of these is there.

    Args:
        predictions: Written before.
        runs: Of the study.
    """
    groups = by_cell(runs)
    pairs = pairs_of(predictions, groups)
    if len(pairs) < 2:
        return None
    momenta = list(dict.fromkeys(cell.momentum for cell, *_ in pairs))
    means = [
        np.mean([pair[2:] for pair in pairs if pair[0] == one], axis=0)
        for one in dict.fromkeys(cell for cell, *_ in pairs)
    ]
    said, found = [pair[2] for pair in pairs], [pair[3] for pair in pairs]
    return Score(
        settings=len(means),
        points=len(pairs),
        r2=r_squared(said, found),
        r2_logarithm=r_squared(*(np.log(np.maximum(1 - np.array(each), 1e-6)).tolist() for each in (said, found))),
        r2_settings=r_squared([mean[0] for mean in means], [mean[1] for mean in means]),
        largest_error=float(np.abs(np.subtract(said, found)).max()),
        by_momentum={
            f"{momentum:g}": r_squared(
                *zip(*(pair[2:] for pair in pairs if pair[0].momentum == momentum), strict=True)
            )
            for momentum in momenta
        },
        **_of_own_drift(predictions, [run for one in predictions.foretold for run in groups.get(one.cell, [])]),
        **_of_choice(predictions, groups),
    )


def pairs_of(predictions: Predictions, groups: Mapping[Cell, list[Run]]) -> list[tuple[Cell, int, float, float]]:
    """Setting, age, foretold cosine, and measured cosine as the mean over seeds, of all that is there."""
    pairs = []
    for one in predictions.foretold:
        curves = [run.curve("keys") for run in groups.get(one.cell, [])]
        for age, cosine in one.keys.items():
            measured = [curve[age] for curve in curves if age in curve]
            if measured:
                pairs.append((one.cell, age, cosine, float(np.mean(measured))))
    return pairs


def _of_own_drift(predictions: Predictions, runs: Sequence[Run]) -> dict[str, Any]:
    """The numbers of `Score` about laws that are fitted to the runs themselves; none if a run has too few looks."""
    until = predictions.until
    spans = {
        "r2_own_start": (0, until),
        "r2_own": (until, max((run.measured.looks[-1].step for run in runs), default=0)),
    }
    numbers: dict[str, Any] = {}
    for name, (after, last) in spans.items():
        said, found = [], []
        for run in runs:
            looks = [look for look in run.measured.looks if after < look.step <= last]
            law = drift_of_run(run, looks)
            if law is None:
                return {}
            theory = KeyTheory(law, run.cell.step_rate, run.cell.momentum or 0.0)
            for look in (look for look in run.measured.looks if look.step > until):
                said += [theory.agreement(look.step, age) for age in look.ages]
                found += look.keys
        numbers[name] = r_squared(said, found)
    return numbers


def _of_choice(predictions: Predictions, groups: Mapping[Cell, list[Run]]) -> dict[str, Any]:
    """The numbers of `Score` about k-NN."""
    values = {
        one.cell: [run.measured.knn for run in groups.get(one.cell, []) if run.measured.knn is not None]
        for one in predictions.foretold
        if rivals(one.cell, predictions.choice)
    }
    means = {cell: float(np.mean(each)) for cell, each in values.items() if each}
    if predictions.choice not in means:
        return {}
    best = max(means, key=lambda cell: means[cell])
    several = [each for each in values.values() if len(each) > 1]
    spread = float(np.sqrt(np.mean([np.var(each, ddof=1) for each in several]))) if several else None
    return {"best": best, "best_knn": means[best], "choice_knn": means[predictions.choice], "spread": spread}
