"""A grid of ablations as a picture: what theory and forecast expected of each cell beside what came."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito: told apart with any colour vision; marks differ in shape too.
_FINE, _LOST, _UNSURE = "#0072B2", "#D55E00", "#7F7F7F"
_PROJECTION, _REPRESENTATION = "#009E73", "#CC79A7"
_MARKS = {
    "survives": ("o", _FINE),
    "later": ("o", _UNSURE),
    "dimensional": ("D", _LOST),
    "complete": ("X", _LOST),
    "open": ("s", _UNSURE),
    "diverges": ("P", _UNSURE),
}
"""Marker and colour of each outcome."""


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """One cell of the grid.

    Args:
        title: Its settings.
        expected: What theory says, a word of `survives`, `later`, `dimensional`, `complete`, `open`, `diverges`.
        forecast: The forecast of each run, words of the same list.
        found: What each run did, words of the same list.
        agrees: Whether no run contradicts its forecast.
        knn: k-NN accuracy of each run, in [0, 1]; empty if not measured.
        projection_rank: Effective rank of the projections of each run.
        forecast_rank: The same of each forecast.
        representation_rank: Effective rank of the representations of each run.
    """

    title: str
    expected: str
    forecast: Sequence[str]
    found: Sequence[str]
    agrees: bool
    knn: Sequence[float]
    projection_rank: Sequence[float]
    forecast_rank: Sequence[float]
    representation_rank: Sequence[float]


def ablation_chart(
    rows: Sequence[AblationRow],
    *,
    title: str = "",
    random_knn: float | None = None,
    ranks_at_start: tuple[float, float] | None = None,
) -> Figure:
    """Draw one line a cell: marks of theory and measurement, then k-NN accuracy and ranks of its runs.

    Args:
        rows: The cells, from the top; those that contradict their forecast are shaded.
        title: Of the figure, such as the data set.
        random_knn: k-NN accuracy of the fresh encoder, in [0, 1].
        ranks_at_start: Effective rank of the fresh network's projections and representations.

    Returns:
        The figure; save it by `figure.savefig(path)`.
    """
    figure = Figure(figsize=(11, 1.7 + 0.32 * len(rows)), dpi=150, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    marks, accuracy, ranks = figure.subplots(1, 3, sharey=True, width_ratios=(1.5, 2, 2))
    for place, row in enumerate(rows):
        if not row.agrees:
            for axis in (marks, accuracy, ranks):
                axis.axhspan(place - 0.5, place + 0.5, color="#E69F00", alpha=0.22, lw=0)
        _mark(marks, 0.0, place, row.expected)
        for column, outcomes in enumerate((row.forecast, row.found), start=1):
            for number, outcome in enumerate(outcomes):
                aside = (number - (len(outcomes) - 1) / 2) / max(1, len(outcomes) - 1)
                _mark(marks, column + 0.3 * aside, place, outcome)
        accuracy.plot([100 * value for value in row.knn], [place] * len(row.knn), "o", ms=5, color=_FINE, alpha=0.8)
        for values, colour, marker in (
            (row.projection_rank, _PROJECTION, "o"),
            (row.representation_rank, _REPRESENTATION, "^"),
        ):
            ranks.plot(values, [place] * len(values), marker, ms=5, color=colour, alpha=0.8)
        where = [place] * len(row.forecast_rank)
        ranks.plot(row.forecast_rank, where, "o", ms=8, mfc="none", mec=_PROJECTION, mew=1)
    marks.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=8)
    marks.set_ylim(len(rows) - 0.5, -0.5)
    marks.set_xlim(-0.5, 2.5)
    marks.set_xticks([0, 1, 2], ["theory", "forecast", "measured"], fontsize=8)
    accuracy.set_xlabel("k-NN accuracy (%)")
    if random_knn is not None:
        accuracy.axvline(100 * random_knn, color="0.35", lw=1, ls="--", label="fresh encoder")
    ranks.set_xlabel("effective rank")
    for level, colour in zip(ranks_at_start or (), (_PROJECTION, _REPRESENTATION), strict=False):
        ranks.axvline(level, color=colour, lw=1, ls="--")
    ranks.set_xlim(left=-0.5)
    for axis in (marks, accuracy, ranks):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25, lw=0.6)
        axis.tick_params(axis="y", length=0)
    _legend(figure, marks, accuracy, ranks, rows)
    return figure


def _mark(axis: Axes, x: float, y: float, outcome: str) -> None:
    marker, colour = _MARKS[outcome]
    axis.plot(x, y, marker, ms=7, color=colour, mec="white", mew=0.5)


def _legend(figure: Figure, marks: Axes, accuracy: Axes, ranks: Axes, rows: Sequence[AblationRow]) -> None:
    shown = {row.expected for row in rows} | {one for row in rows for one in (*row.forecast, *row.found)}
    handles = [
        marks.plot([], [], marker, ms=7, color=colour, label=outcome)[0]
        for outcome, (marker, colour) in _MARKS.items()
        if outcome in shown
    ]
    handles += accuracy.get_legend_handles_labels()[0]
    handles += ranks.plot([], [], "o", ms=5, color=_PROJECTION, label="projections (dashed: fresh)")
    handles += ranks.plot([], [], "^", ms=5, color=_REPRESENTATION, label="representations (dashed: fresh)")
    if any(row.forecast_rank for row in rows):
        handles += ranks.plot([], [], "o", ms=8, mfc="none", mec=_PROJECTION, label="forecast of the projections")
    if any(not row.agrees for row in rows):
        handles += [marks.fill_between([], [], [], color="#E69F00", alpha=0.22, label="forecast and run differ")]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
