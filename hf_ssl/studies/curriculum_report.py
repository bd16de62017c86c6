"""The study of the curriculum in lines of text."""

from collections.abc import Mapping
from typing import Any

CLAIMS = {
    "order": "In each run directions turn in the order of the equations: rank correlation of at least 0.5.",
    "alignment": "The target whose predictor aligns most slowly by the equations does so in the runs: lowest mean "
    "cosine.",
}
"""What the study asks of the theory; a direction turns at the first step where log s is half of the way to its end."""

COLUMNS = {
    "turns (eq.)": "step at which half of the directions have turned (log s halfway to its end), by the equations",
    "cosine (eq.)": "of predictor and correlation at the end, by the equations: 1 if they share their eigenvectors",
    "turns": "the same step, as measured in the run",
    "rank corr.": "rank correlation of the steps at which directions turn, by the equations and in the run",
    "cosine": "the same cosine, as measured in the run",
}
"""Columns of the table, and what they say."""


def text_of(results: Mapping[str, Any]) -> str:
    """The table, what its columns say, and whether the claims hold."""
    has_runs = "holds" in results
    names = list(COLUMNS) if has_runs else list(COLUMNS)[:2]
    widest = max(map(len, ("target", *results["targets"])))
    lines = ["target".ljust(widest) + "".join(f"{name:>14}" for name in names)]
    for target, one in results["targets"].items():
        cells = [str(one["theory"]["turns"]), f"{one['theory']['cosine'][-1]:.2f}"]
        if has_runs:
            found = one["measured"]
            cells += [str(found["turns"]), f"{one['order']:.2f}", f"{found['cosine'][-1]:.2f}"]
        lines.append(target.ljust(widest) + "".join(f"{cell:>14}" for cell in cells))
    lines += ["", *(f"{name:<13} {COLUMNS[name]}" for name in names), ""]
    held = results.get("holds", {})
    lines += [f"{'holds' if value else 'FAILS'}: {CLAIMS[name]}" for name, value in held.items()]
    return "\n".join([*lines, *([""] if held else [])])
