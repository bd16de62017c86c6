"""Directions over a training, by the equations and as measured: numbers in, figures out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_ssl.figures.dynamics import COLOURS
from hf_ssl.figures.metrics_log import over_steps

_FLOOR = 1e-6


def curriculum_curves(results: Mapping[str, Any]) -> Figure:
    """Draw s of each fixed direction against the step, a row for theory and one for the runs, a column a target.

    Args:
        results: Of the study of the curriculum: `steps`, and `targets` with `theory` and `measured`.

    Returns:
        The figure; save it by `figure.savefig(path)`.
    """
    targets = results["targets"]
    figure = Figure(figsize=(3.1 * len(targets) + 0.8, 5.2), dpi=130, layout="constrained")
    grid = figure.subplots(2, len(targets), squeeze=False, sharex=True, sharey="row")
    colours = matplotlib.colormaps["viridis"]
    for column, (target, one) in enumerate(targets.items()):
        for row, kind in enumerate(("theory", "measured")):
            axis: Axes = grid[row, column]
            curves = list(zip(*one[kind]["s"], strict=True))
            for place, curve in enumerate(curves):
                colour = colours(0.92 * place / max(1, len(curves) - 1))
                axis.plot(results["steps"], [max(value, _FLOOR) for value in curve], color=colour, lw=1.3)
            axis.set_yscale("log")
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.3, lw=0.6)
            title = "no moving average" if target == "none" else f"m = {target.replace('-cosine', ' to 1')}"
            axis.set_title(f"{title}: {'equations' if kind == 'theory' else 'run'}", fontsize=10, loc="left")
        over_steps(grid[1, column])
    for row in range(2):
        grid[row, 0].set_ylabel("$s$ along a fixed direction")
    return figure


def alignment_curves(results: Mapping[str, Any]) -> Figure:
    """Draw the cosine of predictor and correlation over the step, and where projections go on the plane.

    Left, lines are the equations and dots the runs. Right, uniformity and alignment of the runs, turned so that better
    is up and right; a ring marks the common start.

    Args:
        results: Of the study of the curriculum.
    """
    figure = Figure(figsize=(9.6, 3.6), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (target, one) in enumerate(results["targets"].items()):
        colour = COLOURS[place % len(COLOURS)]
        title = "no moving average" if target == "none" else f"m = {target.replace('-cosine', ' to 1')}"
        # Each thinner than the one below, which therefore shows where both are the same.
        more = len(results["targets"]) - 1 - place
        left.plot(results["steps"], _numbers(one["theory"]["cosine"]), color=colour, lw=1.2 + 0.9 * more)
        left.plot(results["steps"], _numbers(one["measured"]["cosine"]), "o", color=colour, ms=3 + 1.2 * more)
        x = [max(-value, _FLOOR) for value in one["measured"]["uniformity"]]
        y = [max(value, _FLOOR) for value in one["measured"]["alignment"]]
        right.plot(x, y, "-o", color=colour, lw=1.0 + 0.9 * more, ms=3 + 1.2 * more, label=title)
        right.plot(x[0], y[0], "o", ms=13, mfc="none", mec="#000000")
    left.set_title("cosine of $u_j$ and $W_p u_j$ (lines: equations)", fontsize=10, loc="left")
    left.set_ylim(min(-0.05, left.get_ylim()[0]), 1.03)
    over_steps(left)
    right.set_title("projections on the plane, from the ring", fontsize=10, loc="left")
    right.set_xlabel("- uniformity   (more even $\\rightarrow$)")
    right.set_ylabel("alignment   (closer together $\\rightarrow$)")
    right.set_yscale("log")
    right.invert_yaxis()
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3, lw=0.6)
    right.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _numbers(values: Sequence[float | None]) -> list[float]:
    """Values to draw: a gap where there is none."""
    return [math.nan if value is None else value for value in values]
