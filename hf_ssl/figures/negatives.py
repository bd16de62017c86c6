"""What became of the negatives during a run: the analysis of MoCHi as curves."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_ssl.figures.metrics_log import curve_of, marker_of, over_steps, read_metrics

_PROBABILITY = "match_probability_rank_"
_ACCURACIES = {
    "contrast_accuracy": ("keys of the queue", "#0072B2"),
    "contrast_accuracy_with_mixed": ("queue and mixtures", "#E69F00"),
}
_SHARE = "false_negative_share"
_SMALLEST = 1e-9  # of a probability that is drawn; keys that are left out have none
MOMENTS = (0.03, 0.1, 0.25, 0.5, 1.0)  # ends of what is averaged, as fractions of a run
_MOMENT = 0.03  # its length: some log lines, of which each is of one batch


def negative_curves(metrics_path: Path) -> Figure | None:
    """Draw how hard the negatives of a contrastive method are, against the step.

    One panel each: the softmax probability of the hardest negatives by rank, on a logarithmic axis; the accuracy of
    the task of finding the positive key; the share of false negatives among the hardest. What no line has gets no
    panel.

    Args:
        metrics_path: A run's `metrics.jsonl`: one object a line, with `step` and any of `match_probability_rank_R`,
            `contrast_accuracy`, `contrast_accuracy_with_mixed`, `false_negative_share`.

    Returns:
        The figure; save it by `figure.savefig(path)`. None without any matching probability: the method has no
        analysis of its negatives.
    """
    lines = read_metrics(metrics_path)
    names = {name for line in lines for name in line}
    ranks = sorted(int(name.removeprefix(_PROBABILITY)) for name in names if re.fullmatch(rf"{_PROBABILITY}\d+", name))
    probabilities = {rank: curve_of(lines, f"{_PROBABILITY}{rank}") for rank in ranks}
    if not any(steps for steps, _ in probabilities.values()):
        return None
    accuracies = {name: curve_of(lines, name, scale=100) for name in _ACCURACIES if name in names}
    share = curve_of(lines, _SHARE, scale=100)
    num_panels = 1 + bool(accuracies) + bool(share[0])
    figure = Figure(figsize=(4.2 * num_panels, 3.1), dpi=150, layout="constrained")
    axes = iter(figure.subplots(1, num_panels, squeeze=False)[0])

    axis = next(axes)
    colours = matplotlib.colormaps["viridis"]
    for place, (rank, (steps, values)) in enumerate(probabilities.items()):
        colour = colours(0.9 * place / max(1, len(ranks) - 1))
        _plot(axis, steps, [max(value, _SMALLEST) for value in values], colour, f"{rank:,}")
    axis.set_yscale("log")
    _finish(axis, "softmax probability of a negative")
    axis.legend(title="rank", fontsize=8, title_fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    if accuracies:
        axis = next(axes)
        for name, (steps, values) in accuracies.items():
            label, colour = _ACCURACIES[name]
            _plot(axis, steps, values, colour, label)
        _finish(axis, "positive above all negatives (%)")
        highest = max(value for _, values in accuracies.values() for value in [0, *values])
        axis.set_ylim(0, 1.3 * highest or 1)  # room for the legend
        axis.legend(loc="upper left", fontsize=8, frameon=False)
    if share[0]:
        axis = next(axes)
        _plot(axis, *share, "#D55E00", "hardest")
        _finish(axis, "false negatives among the hardest (%)")
        axis.set_ylim(0, 1.08 * max(share[1]) or 1)
    return figure


def matching_curves(logs: Mapping[str, Sequence[list[dict[str, Any]]]], queue_size: int) -> Figure:
    """Draw the softmax probability of the hardest negatives against their rank at several moments, early to late.

    Early in training the curve is nearly flat; late a few negatives hold what the positive leaves (the case that MoCHi
    makes for mixing them).

    Args:
        logs: Lines of the logs of each method's runs, with `match_probability_rank_R`; one panel a method, the mean
            over its runs.
        queue_size: Keys in the queue, at least 1; with the positive they make the level at which all are equal.

    Returns:
        The figure; save it by `figure.savefig(path)`.
    """
    figure = Figure(figsize=(4.6 * len(logs) + 1.2, 4.0), dpi=150, layout="constrained")
    colours = matplotlib.colormaps["viridis"]
    axes = figure.subplots(1, len(logs), squeeze=False, sharey=True)[0]
    for axis, (method, lines) in zip(axes, logs.items(), strict=True):
        for number, moment in enumerate(MOMENTS):
            last, probabilities = probabilities_at(lines, moment)
            axis.plot(
                list(probabilities),
                [max(value, _SMALLEST) for value in probabilities.values()],
                color=colours(0.9 * number / (len(MOMENTS) - 1)),
                lw=1.6,
                marker="o",
                markersize=4,
                label=f"{last:,}",
            )
        axis.axhline(1 / (1 + queue_size), color="0.35", lw=1, ls="--", label="all equal")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(method, fontsize=10, loc="left")
        axis.set_xlabel("rank of the negative, from the hardest")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3, lw=0.6)
    axes[0].set_ylabel("softmax probability")
    axes[-1].legend(
        title="step", fontsize=8, title_fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    return figure


def probabilities_at(runs: Sequence[list[dict[str, Any]]], moment: float) -> tuple[int, dict[int, float]]:
    """Last step of a moment, and mean probability by rank over its log lines and over runs.

    Args:
        runs: Lines of their logs.
        moment: Its end, as a fraction of the run.
    """
    curves: dict[int, list[float]] = {}
    last = 0
    for lines in runs:
        names = {name for line in lines for name in line if name.startswith(_PROBABILITY)}
        for rank in sorted(int(name.removeprefix(_PROBABILITY)) for name in names):
            steps, values = curve_of(lines, f"{_PROBABILITY}{rank}")
            end = moment * steps[-1]
            chosen = [place for place, step in enumerate(steps) if end - _MOMENT * steps[-1] < step <= end]
            chosen = chosen or [min(range(len(steps)), key=lambda place: abs(steps[place] - end))]
            last = steps[chosen[-1]]
            curves.setdefault(rank, []).append(mean(values[place] for place in chosen))
    return last, {rank: mean(values) for rank, values in sorted(curves.items())}


def _plot(axis: Axes, steps: list[int], values: list[float], colour: object, label: str) -> None:
    marker = marker_of(steps)
    axis.plot(steps, values, color=colour, lw=1.4, marker=marker, markersize=3, label=label)  # pyright: ignore[reportArgumentType]


def _finish(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10, loc="left")
    over_steps(axis)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3, lw=0.6)
