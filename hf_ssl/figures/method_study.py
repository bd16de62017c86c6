"""Methods side by side: the accuracy of each run, means with their spread, and the time of training."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_ssl.figures.names import readable

# Okabe and Ito: told apart with any colour vision.
_RUN, _RANDOM = "#0072B2", "#7F7F7F"


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One method.

    Args:
        title: Its name.
        knn: k-NN accuracy of each run, in [0, 1].
        linear: Accuracy of a linear probe of each run, in [0, 1].
        seconds: Time of training of each run.
    """

    title: str
    knn: Sequence[float]
    linear: Sequence[float]
    seconds: Sequence[float]


def method_chart(rows: Sequence[MethodRow], random: MethodRow, title: str | None = None) -> Figure:
    """Draw one line a method: its runs as small points, their mean as a large one with the standard deviation.

    Args:
        rows: The methods, from the top.
        random: The same of encoders with random weights, drawn as dashed lines.
        title: Title of the figure.

    Returns:
        The figure; save it by `figure.savefig(path)`.
    """
    figure = Figure(figsize=(11, 1.9 + 0.34 * len(rows)), dpi=150, layout="constrained")
    axes = figure.subplots(1, 3, sharey=True, width_ratios=(2, 2, 1))
    for axis, name, label, factor in zip(
        axes,
        ("knn", "linear", "seconds"),
        ("k-NN accuracy (%)", "linear probe accuracy (%)", "training (seconds)"),
        (100, 100, 1),
        strict=True,
    ):
        for place, row in enumerate(rows):
            _draw(axis, place, [factor * value for value in getattr(row, name)])
        level = getattr(random, name)
        if name != "seconds" and level:
            axis.axvline(factor * mean(level), color=_RANDOM, lw=1.2, ls="--", label="random encoder")
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.6)
        axis.tick_params(axis="y", length=0)
    axes[2].set_xlim(left=0)
    axes[0].set_yticks(range(len(rows)), [row.title for row in rows], fontsize=9)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    handles = axes[0].get_legend_handles_labels()[0]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", fontsize=9, frameon=False)
    if title:
        figure.suptitle(readable(title), fontsize=11)
    return figure


def _draw(axis: Axes, place: int, values: Sequence[float]) -> None:
    if not values:
        return
    if len(values) > 1:
        axis.plot(values, [place] * len(values), "o", ms=4, color=_RUN, alpha=0.45, mew=0)
        axis.errorbar(mean(values), place, xerr=stdev(values), color=_RUN, lw=1.5, capsize=3)
    axis.plot(mean(values), place, "o", ms=8, color=_RUN, mec="white", mew=0.8)
