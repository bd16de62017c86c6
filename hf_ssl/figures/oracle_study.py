"""The study of negatives as pictures: the plane of alignment and uniformity, and how the runs went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hf_ssl.figures.metrics_log import curve_of, marker_of, over_steps

# Okabe and Ito: told apart with any colour vision; marks differ in shape too.
_STYLES = {
    "fresh": ("X", "#7F7F7F"),
    "moco_v2": ("o", "#0072B2"),
    "mochi": ("s", "#D55E00"),
    "moco_v2-oracle": ("^", "#56B4E9"),
    "mochi-oracle": ("D", "#E69F00"),
    "supervised": ("P", "#009E73"),
}
"""Marker and colour of each method."""

_BETTER = r"$\rightarrow$"
_PANELS = (
    ("two views of an image, representations", "view_alignment_h", "uniformity_h"),
    ("two images of a class, representations", "class_alignment_h", "uniformity_h"),
    ("two views of an image, projections", "view_alignment_z", "uniformity_z"),
)
_LABEL_GAP = 0.075  # between two labels, as a fraction of the panel's height
_SMOOTHED = 10  # log lines: each is of one batch
_BELOW = {"fontsize": 8, "frameon": False, "loc": "upper center", "bbox_to_anchor": (0.5, -0.15), "ncols": 2}


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One method of the study.

    Args:
        title: Its name: `fresh`, `moco_v2`, `mochi`, `moco_v2-oracle`, `mochi-oracle` or `supervised`.
        numbers: Values of its runs by name, of which are drawn `linear`, `knn`, `view_alignment_h`,
            `class_alignment_h`, `uniformity_h`, `view_alignment_z`, `uniformity_z`; empty or missing where there are
            none.
        logs: Lines of the log of each run, if it is contrastive.
    """

    title: str
    numbers: Mapping[str, Sequence[float]]
    logs: Sequence[list[dict[str, Any]]] = field(default_factory=list)


def plane(rows: Sequence[StudyRow]) -> Figure:
    """Draw what each method came to, uniformity against alignment, both negative so that better is up and right.

    Args:
        rows: The methods; seeds are small marks, their mean a large one with a label. `fresh` is left out: an
            encoder that makes almost one point of all images would push the others into a corner.

    Returns:
        The figure; save it by `figure.savefig(path)`.
    """
    figure = Figure(figsize=(14, 4.2), dpi=150, layout="constrained")
    for axis, (title, vertical, horizontal) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        heights = {}
        for row in rows:
            x, y = ([-value for value in row.numbers.get(name, ())] for name in (horizontal, vertical))
            if row.title == "fresh" or not x or not y:
                continue
            marker, colour = _STYLES[row.title]
            axis.plot(x, y, marker, ms=4, color=colour, alpha=0.5, mew=0)
            axis.plot(mean(x), mean(y), marker, ms=9, color=colour, mec="white", mew=0.8)
            heights[row.title] = mean(x), mean(y)
        axis.margins(0.12)
        _label(axis, heights)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel(f"- uniformity   (more even {_BETTER})")
        axis.set_ylabel(f"- alignment   (closer together {_BETTER})")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3, lw=0.6)
    return figure


def _label(axis: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Names beside the panel, in the order of the points' heights, each with a line to its point."""
    if not points:
        return
    low, high = axis.get_ylim()
    names = sorted(points, key=lambda name: points[name][1])
    places = spread_apart([(points[name][1] - low) / (high - low) for name in names], _LABEL_GAP)
    axis.set_ylim(low, high)
    for name, place in zip(names, places, strict=True):
        axis.annotate(
            name,
            points[name],
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=_STYLES[name][1],
            arrowprops={"arrowstyle": "-", "color": _STYLES[name][1], "lw": 0.6, "alpha": 0.6, "relpos": (0, 0.5)},
        )


def spread_apart(places: Sequence[float], gap: float) -> list[float]:
    """Move places in [0, 1], in ascending order, by no more than it takes to lie `gap` apart within [0, 1]."""
    lowest = np.maximum.accumulate(np.asarray(places) - gap * np.arange(len(places)))
    highest = np.minimum.accumulate((np.asarray(places) - gap * np.arange(len(places)))[::-1])[::-1]
    moved = np.clip((lowest + highest) / 2, 0, max(0.0, 1 - gap * (len(places) - 1)))
    return (moved + gap * np.arange(len(places))).tolist()


def study_chart(rows: Sequence[StudyRow], chance: float) -> Figure:
    """Draw false negatives and the accuracy of picking the positive against the step, and what probes came to.

    Args:
        rows: The methods; `fresh` is drawn as lines.
        chance: Share of a query's class in the training images, in (0, 1].

    Returns:
        The figure; save it by `figure.savefig(path)`.
    """
    figure = Figure(figsize=(14, 4.8), dpi=150, layout="constrained")
    share, task, accuracy = figure.subplots(1, 3)
    for row in rows:
        for axis, name, dashes in (
            (share, "false_negative_share", "-"),
            (task, "contrast_accuracy", "-"),
            (task, "contrast_accuracy_with_mixed", ":"),
        ):
            steps, values = _mean_curve(row.logs, name)
            plain = _mean_curve(row.logs, "contrast_accuracy")[1]
            if len(steps) == 0 or (dashes == ":" and np.array_equal(values, plain)):
                continue  # without mixtures both accuracies are one
            label = row.title if dashes == "-" else f"{row.title}, keys and mixtures"
            look = {"color": _STYLES[row.title][1], "lw": 1.5, "marker": marker_of(steps), "ms": 3}
            axis.plot(steps, 100 * values, dashes, label=label, **look)
    share.axhline(100 * chance, color="0.35", lw=1, ls="--", label="chance")
    share.set_ylim(bottom=0)
    task.set_ylim(bottom=0)
    for axis, title in (
        (share, "keys of the query's class among the hardest (%)"),
        (task, "positive above all keys that count (%)"),
    ):
        axis.set_title(title, fontsize=10, loc="left")
        over_steps(axis, f"optimizer step (means of {_SMOOTHED} log lines)")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(**_BELOW)
    _accuracies(accuracy, rows)
    for axis in (share, task, accuracy):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3, lw=0.6)
    return figure


def _mean_curve(logs: Sequence[list[dict[str, Any]]], name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps and mean over the runs of a logged number, smoothed; both empty if it is in no log."""
    curves = [curve_of(lines, name) for lines in logs]
    shortest = min((len(steps) for steps, _ in curves), default=0)
    if shortest == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    values = np.mean([values[:shortest] for _, values in curves], axis=0)
    window = np.ones(min(_SMOOTHED, shortest))
    smooth = np.convolve(values, window, "same") / np.convolve(np.ones(shortest), window, "same")
    return np.asarray(curves[0][0][:shortest]), smooth


def _accuracies(axis: Axes, rows: Sequence[StudyRow]) -> None:
    trained = [row for row in rows if row.title != "fresh"]
    shown = (("linear", "linear probe", "o", -0.14), ("knn", "k-NN", "^", 0.14))
    for name, label, marker, shift in shown:
        for place, row in enumerate(trained):
            values = [100 * value for value in row.numbers.get(name, ())]
            colour = _STYLES[row.title][1]
            axis.plot(values, [place + shift] * len(values), marker, ms=4, color=colour, alpha=0.5, mew=0)
            if values:
                axis.plot(mean(values), place + shift, marker, ms=8, color=colour, mec="white", mew=0.8)
        axis.plot([], [], marker, ms=7, color="0.35", label=label)
    for row in rows:
        if row.title == "fresh":
            for name, label, dashes in (("linear", "linear probe", "--"), ("knn", "k-NN", ":")):
                level = 100 * mean(row.numbers[name])
                axis.axvline(level, color="0.35", lw=1, ls=dashes, label=f"{label}, fresh encoder")
    axis.set_yticks(range(len(trained)), [row.title for row in trained])
    axis.set_ylim(len(trained) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.set_title("accuracy of the frozen encoder (%)", fontsize=10, loc="left")
    axis.legend(**_BELOW)
