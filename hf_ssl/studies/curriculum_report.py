"""The study of the curriculum in lines of text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import spearmanr

CLAIMS = {
    "order": "In each run directions turn in the order of the equations: rank correlation of at least 0.5.",
    "alignment": "The target whose predictor aligns most slowly by the equations does so in the runs: lowest mean "
    "cosine.",
}
"""What the study asks of the theory; a direction turns at the first step where log s is half of the way to its end."""

COLUMNS = {
    "turns (eq.)": "step at which half of the directions have turned (log s halfway to its end), by the equations",
    "cosine (eq.)": "of predictor and correlation at the end, by the equations: 1 if they share their "
    "eigenvectors, none if all directions have collapsed",
    "turns": "the same step, as measured in the run",
    "rank corr.": "rank correlation of the steps at which directions turn, by the equations and in the run",
    "cosine": "the same cosine, as measured in the run",
}
"""Columns of the table, and what they say."""


def order_of(expected: Sequence[int], measured: Sequence[int]) -> float:
    """Rank correlation of the steps at which directions turn; 0 if all of one kind turn at one step, without order."""
    if len(set(expected)) < 2 or len(set(measured)) < 2:
        return 0.0
    return round(float(spearmanr(expected, measured)[0]), 4)  # pyright: ignore[reportArgumentType]


def claims_of(targets: Mapping[str, Any]) -> dict[str, bool]:
    """Which of `CLAIMS` hold, by name.

    Args:
        targets: Equations, measurements and `order` by target.
    """

    def slowest(kind: str) -> str:
        return min(targets, key=lambda target: _mean(targets[target][kind]["cosine"]))

    return {
        "order": all(one["order"] >= 0.5 for one in targets.values()),
        "alignment": slowest("theory") == slowest("measured"),
    }


def _mean(cosines: Sequence[float | None]) -> float:
    """Mean over the steps at which there is a cosine; endless without any, so that no such run counts as slowest."""
    known = [value for value in cosines if value is not None]
    return sum(known) / len(known) if known else math.inf


def _cosine_text(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def text_of(results: Mapping[str, Any]) -> str:
    """The table, what its columns say, and whether the claims hold; of a study that was stopped what is missing."""
    missing = [target for target, one in results["targets"].items() if "measured" not in one]
    has_runs = len(missing) < len(results["targets"])
    names = list(COLUMNS) if has_runs else list(COLUMNS)[:2]
    widest = max(map(len, ("target", *results["targets"])))
    lines = ["target".ljust(widest) + "".join(f"{name:>14}" for name in names)]
    for target, one in results["targets"].items():
        cells = [str(one["theory"]["turns"]), _cosine_text(one["theory"]["cosine"][-1])]
        if has_runs and target in missing:
            cells += ["not run"] * 3
        elif has_runs:
            found = one["measured"]
            cells += [str(found["turns"]), f"{one['order']:.2f}", _cosine_text(found["cosine"][-1])]
        lines.append(target.ljust(widest) + "".join(f"{cell:>14}" for cell in cells))
    lines += ["", *(f"{name:<13} {COLUMNS[name]}" for name in names), ""]
    held = results.get("holds", {})
    lines += [f"{'holds' if value else 'FAILS'}: {CLAIMS[name]}" for name, value in held.items()]
    return "\n".join([*lines, *([""] if held else [])])
