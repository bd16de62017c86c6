"""Spectra of encoders side by side, and what a run's diagnoses say: numbers in, figures out."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_ssl.figures.metrics_log import read_metrics
from hf_ssl.figures.names import readable

# Okabe and Ito's colours, of different lightness in print.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_FLOOR = 1e-12  # of the largest eigenvalue; what lies below is rounding
_MOST_STEPS = 12  # curves in a panel
_MAP = "viridis"


def spectrum_curves(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str | None = None) -> Figure:
    """Draw eigenvalues of covariances by rank, divided by the largest, on logarithmic axes.

    Args:
        panels: Title of a panel, such as `representation` -> encoder -> eigenvalues, largest first.
        title: Title of the figure.

    Returns:
        The figure; save it by `figure.savefig(path)`.

    Raises:
        ValueError: If there is nothing to draw.
    """
    panels = {name: spectra for name, spectra in panels.items() if spectra}
    if not panels:
        raise ValueError("There are no spectra to draw. Give at least one panel with one encoder.")
    figure, axes = _panels(len(panels))
    for axis, (name, spectra) in zip(axes, panels.items(), strict=True):
        for place, (encoder, eigenvalues) in enumerate(spectra.items()):
            ranks = list(range(1, len(eigenvalues) + 1))
            colour = _COLOURS[place % len(_COLOURS)]
            _plot_by_rank(axis, ranks, _relative(eigenvalues), color=colour, lw=1.4, label=readable(encoder))
        _finish(axis, f"spectrum of the {name}", "rank", "eigenvalue / largest")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.legend(fontsize=8, frameon=False, loc="lower left")
    if title:
        figure.suptitle(readable(title), fontsize=11)
    return figure


def predictor_curves(predictors: Mapping[str, Mapping[str, Sequence[float]]], title: str | None = None) -> Figure:
    """Draw predictors beside the correlation of what they predict from (figure 2 of Tian et al., 2021).

    Left, what the predictor does along each eigenvector of the correlation F against the root of its eigenvalue: on
    the line where it has become a multiple of the root. Right, the cosine of each eigenvector and its image.

    Args:
        predictors: Encoder -> `correlation` (eigenvalues of F, largest first), `predictor` (u_j^T W_p u_j) and
            `cosine`, equally long.
        title: Title of the figure.

    Returns:
        The figure; save it by `figure.savefig(path)`.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if not predictors:
        raise ValueError("There is no predictor to draw. Give at least one encoder that has one.")
    figure, (left, right) = _panels(2)
    for place, (encoder, curves) in enumerate(predictors.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        _plot_against_root(left, curves, colour, encoder)
        ranks = range(1, len(curves["cosine"]) + 1)
        _plot_by_rank(right, ranks, curves["cosine"], color=colour, lw=1.2, label=readable(encoder))
    _finish_predictor(left, right)
    if len(predictors) > 1:
        left.legend(fontsize=8, frameon=False)
    if title:
        figure.suptitle(readable(title), fontsize=11)
    return figure


def diagnosis_curves(diagnostics_path: Path) -> Figure | None:
    """Draw how spectra and predictor of a run developed, one curve for each diagnosis, from dark to light.

    Args:
        diagnostics_path: A run's `diagnostics.jsonl`: one object a line, with `step`, `curves` and `ranks`.

    Returns:
        The figure, with at most 12 diagnoses; None without any, or without the file.
    """
    lines = read_metrics(diagnostics_path) if diagnostics_path.exists() else []
    lines = [line for line in {line["step"]: line for line in lines}.values() if line["curves"]]
    if not lines:
        return None
    apart = max(1.0, (len(lines) - 1) / (_MOST_STEPS - 1))
    lines = [lines[round(place * apart)] for place in range(min(len(lines), _MOST_STEPS))]
    has_predictor = "predictor" in lines[-1]["curves"]
    figure, axes = _panels(4 if has_predictor else 2)
    steps = Normalize(lines[0]["step"], max(lines[-1]["step"], lines[0]["step"] + 1))
    colours = matplotlib.colormaps[_MAP]
    for line in lines:
        colour = colours(0.92 * steps(line["step"]))
        for axis, name in zip(axes[:2], ("projection", "representation"), strict=True):
            _plot_by_rank(axis, line["ranks"][name], _relative(line["curves"][name]), color=colour, lw=1.1)
        if has_predictor and line["curves"].get("predictor"):
            _plot_against_root(axes[2], line["curves"], colour, None)
            _plot_by_rank(axes[3], line["ranks"]["cosine"], line["curves"]["cosine"], color=colour, lw=1.1)
    for axis, name in zip(axes[:2], ("projections", "representations"), strict=True):
        _finish(axis, f"spectrum of the {name}", "rank", "eigenvalue / largest")
        axis.set_xscale("log")
        axis.set_yscale("log")
    if has_predictor:
        _finish_predictor(axes[2], axes[3])
    ticks = MaxNLocator(integer=True, min_n_ticks=1) if len(lines) > 1 else [lines[0]["step"]]
    colours_of_steps = ScalarMappable(steps, _MAP)
    figure.colorbar(colours_of_steps, ax=axes, label="optimizer step", fraction=0.03, pad=0.01, ticks=ticks)
    return figure


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.8 * number + 0.4, 3.1), dpi=130, layout="constrained")
    return figure, list(figure.subplots(1, number, squeeze=False)[0])


def _relative(eigenvalues: Sequence[float]) -> list[float]:
    largest = eigenvalues[0] or 1.0
    return [max(value / largest, _FLOOR) for value in eigenvalues]


def _plot_by_rank(axis: Axes, ranks: Sequence[int], values: Sequence[float], **look: Any) -> None:
    """A curve over ranks; of one rank a point."""
    axis.plot(ranks, values, marker="o" if len(ranks) == 1 else None, markersize=3, **look)


def _plot_against_root(axis: Axes, curves: Mapping[str, Sequence[float]], colour: Any, label: str | None) -> None:
    """Predictor against root of F, both divided by what makes the root fit best, and the line of equality."""
    roots = [math.sqrt(value) for value in curves["correlation"]]
    values = curves["predictor"]
    size = sum(root * value for root, value in zip(roots, values, strict=True))
    factor = size / sum(root * root for root in roots) if any(roots) else 0.0
    factor = factor or max(map(abs, values)) or 1.0
    largest = max(roots) or 1.0
    axis.plot(
        [root / largest for root in roots],
        [value / (factor * largest) for value in values],
        ".",
        color=colour,
        markersize=4,
        label=label,
    )


def _finish_predictor(left: Axes, right: Axes) -> None:
    left.plot([0, 1], [0, 1], color="#000000", lw=0.8, ls="--")
    _finish(left, "predictor along F's eigenvectors", "root of F's eigenvalue / largest", "scaled to fit best")
    _finish(right, "cosine of $u_j$ and $W_p u_j$", "rank", None)
    right.set_xscale("log")
    right.set_ylim(min(-0.05, right.get_ylim()[0]), 1.05)


def _finish(axis: Axes, title: str, x: str, y: str | None) -> None:
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x)
    if y:
        axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3, lw=0.6)
