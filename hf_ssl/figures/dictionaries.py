"""The study of dictionaries as pictures: how keys age, what was foretold of it, and which queue learns best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hf_ssl.figures.dynamics import COLOURS

_CHOICE, _BEST = "#D55E00", "#0072B2"
_MARKERS = ("o", "s", "D", "^", "v", "<", ">", "P")


@dataclass(frozen=True, kw_only=True)
class AgingCurve:
    """How the keys of one setting age.

    Args:
        title: Its name in the legend.
        measured: Cosine of keys and of the same views encoded now, by age in steps.
        foretold: The same, as theory foretold it; empty if it did not.
    """

    title: str
    measured: Mapping[int, float]
    foretold: Mapping[int, float] = field(default_factory=dict)


def aging(panels: Mapping[str, Sequence[AgingCurve]]) -> Figure:
    """Draw how fresh keys are against their age, dots measured and dashed lines foretold.

    Args:
        panels: Curves by title of the panel, in the order of the colours.

    Returns:
        The figure; save it by `figure.savefig(path)`.
    """
    figure = Figure(figsize=(4.4 * len(panels) + 0.6, 3.6), dpi=150, layout="constrained")
    for axis, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for colour, curve in zip(_colours(len(curves)), curves, strict=True):
            axis.plot(
                list(curve.measured),
                list(curve.measured.values()),
                linestyle="none" if curve.foretold else "-",
                color=colour,
                marker="o",
                markersize=4,
                lw=1.4,
                label=curve.title,
            )
            if curve.foretold:
                axis.plot(list(curve.foretold), list(curve.foretold.values()), "--", color=colour, lw=1.2)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.axhline(0, color="0.6", lw=0.8)
        axis.set_xlabel("age of the key in steps")
        _finish(axis, title)
        axis.legend(fontsize=8, frameon=False)
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel("cosine with the same view, encoded now")
    return figure


def foretold_against_measured(points: Mapping[str, Sequence[tuple[float, float]]], r2: float) -> Figure:
    """Draw foretold cosines of keys against measured ones.

    Args:
        points: Pairs of both by title.
        r2: R^2 of all pairs.

    Returns:
        The figure; save it by `figure.savefig(path)`.
    """
    figure = Figure(figsize=(4.6, 4.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    for colour, (title, pairs) in zip(_colours(len(points)), points.items(), strict=True):
        axis.scatter(*zip(*pairs, strict=True), s=16, color=[colour], label=title, alpha=0.8)
    low = min(value for pairs in points.values() for pair in pairs for value in pair)
    axis.plot([low, 1], [low, 1], color="0.5", lw=1)
    axis.set_xlabel("foretold cosine")
    axis.set_ylabel("measured cosine")
    _finish(axis, f"freshness of keys, $R^2$ = {r2:.3f}")
    axis.legend(title="momentum", fontsize=8, title_fontsize=8, frameon=False)
    return figure


def accuracy_grid(
    accuracies: Mapping[tuple[float, int], Sequence[float]],
    *,
    choice: tuple[float, int] | None = None,
    best: tuple[float, int] | None = None,
) -> Figure:
    """Draw k-NN accuracy over momentum and size of the queue.

    Args:
        accuracies: Of each seed, in [0, 1], by momentum and keys; a pair that is missing stays white.
        choice: The pair that theory chose.
        best: The pair with the best mean.

    Returns:
        The figure; save it by `figure.savefig(path)`.
    """
    momenta, sizes = (sorted({pair[place] for pair in accuracies}) for place in (0, 1))
    table = np.full((len(momenta), len(sizes)), np.nan)
    for (momentum, size), values in accuracies.items():
        table[momenta.index(momentum), sizes.index(size)] = 100 * float(np.mean(values))
    figure = Figure(figsize=(1.1 * len(sizes) + 2.2, 0.62 * len(momenta) + 1.6), dpi=150, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(table, cmap="cividis", aspect="auto")
    low, high = np.nanmin(table), np.nanmax(table)
    for row, column in zip(*np.nonzero(np.isfinite(table)), strict=True):
        dark = table[row, column] < (low + high) / 2
        axis.text(column, row, f"{table[row, column]:.1f}", ha="center", va="center", color="w" if dark else "k")
    for pair, colour, title, inset in ((best, _BEST, "best", 0.06), (choice, _CHOICE, "foretold choice", 0.14)):
        if pair is not None:
            corner = (sizes.index(int(pair[1])) - 0.5 + inset, momenta.index(pair[0]) - 0.5 + inset)
            size = 1 - 2 * inset
            axis.add_patch(Rectangle(corner, size, size, fill=False, ec=colour, lw=2.5, label=title))
    axis.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axis.set_yticks(range(len(momenta)), [f"{momentum:g}" for momentum in momenta])
    axis.set_xlabel("keys in the queue")
    axis.set_ylabel("momentum")
    axis.set_title("k-NN accuracy (%)", fontsize=10, loc="left")
    if choice is not None or best is not None:
        figure.legend(loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    figure.colorbar(image, ax=axis)
    return figure


@dataclass(frozen=True, kw_only=True)
class NegativesRow:
    """What negatives one setting has, and what they cost.

    Args:
        kind: Its mechanism, in words.
        negatives: Negatives of a query.
        effective: How many the softmax has in effect.
        held: Bytes that a step holds for its backward pass.
        kept: Bytes of the dictionary and of a second network.
    """

    kind: str
    negatives: float
    effective: float
    held: float
    kept: float


def negatives_and_memory(rows: Sequence[NegativesRow]) -> Figure:
    """Draw the effective number of negatives, and the memory of a step, against the number of negatives.

    Args:
        rows: In any order; those of one kind are joined.

    Returns:
        The figure; save it by `figure.savefig(path)`.
    """
    figure = Figure(figsize=(9.0, 3.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    kinds: dict[str, list[NegativesRow]] = {}
    for row in sorted(rows, key=lambda row: row.negatives):
        kinds.setdefault(row.kind, []).append(row)
    for place, (kind, group) in enumerate(kinds.items()):
        number = [row.negatives for row in group]
        style = {"color": COLOURS[place % len(COLOURS)], "marker": _MARKERS[place % len(_MARKERS)], "label": kind}
        style |= {"markersize": 7, "mec": "white", "mew": 0.5, "lw": 1.2}
        left.plot(number, [row.effective for row in group], **style)
        right.plot(number, [(row.held + row.kept) / 1e6 for row in group], **style)
    ends = [min(row.negatives for row in rows), max(row.negatives for row in rows)]
    left.plot(ends, ends, color="0.5", lw=1, ls="--", label="all count")
    for axis, title in ((left, "negatives that count"), (right, "memory of a step and its dictionary (MB)")):
        axis.set_xscale("log", base=2)
        axis.set_xlabel("negatives of a query")
        _finish(axis, title)
    left.set_yscale("log", base=2)
    for direction in (left.xaxis, left.yaxis, right.xaxis):
        direction.set_major_formatter("{x:,g}")
    right.set_ylim(bottom=0)
    left.legend(fontsize=8, frameon=False)
    return figure


def _colours(count: int) -> list[tuple[float, ...]]:
    """Colours that are told apart with any colour vision, dark to light."""
    colours = matplotlib.colormaps["viridis"]
    return [colours(0.88 * place / max(1, count - 1)) for place in range(count)]


def _finish(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3, lw=0.6)
