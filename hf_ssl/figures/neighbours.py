"""Images beside those that an encoder finds most similar."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hf_ssl.figures.names import readable

_SAME, _OTHER = "#0072B2", "#E69F00"  # Okabe and Ito's blue and orange


def short_name(path: str, length: int = 18) -> str:
    """The file name of a path, cut in its middle where it would not fit over a small picture."""
    name = re.split(r"[/\\]", path)[-1]
    half = (length - 3) // 2
    return name if len(name) <= length else f"{name[:half]}...{name[-half:]}"


def neighbour_gallery(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    same_class: Sequence[Sequence[bool | None]] | None = None,
    label: str | None = None,
    titles: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Draw one row for each query: the query, a gap, and its neighbours, nearest first.

    Args:
        rows: Pictures, (height, width, 3); the first of each row is the query. All rows are equally long.
        same_class: Whether each neighbour (without the query) is of the query's class, shown by the colour of its
            frame; None where that is not known.
        label: What the classes are called.
        titles: What stands over each picture; without it the first row says which is the query.

    Returns:
        The figure; save it by `figure.savefig(path)`.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if not rows or len(rows[0]) < 2:
        raise ValueError("There are no neighbours to draw. Give at least one query and one neighbour.")
    num_columns = len(rows[0])
    side = 0.85 if titles is None else 1.1  # inches
    figure = Figure(figsize=(side * num_columns + 0.5, side * len(rows) + 0.6), dpi=150, layout="constrained")
    axes = figure.subplots(len(rows), num_columns + 1, squeeze=False, width_ratios=[1, 0.2] + [1] * (num_columns - 1))
    for number, (line, pictures) in enumerate(zip(axes, rows, strict=True)):
        line[1].set_axis_off()
        for place, (axis, picture) in enumerate(zip([line[0], *line[2:]], pictures, strict=True)):
            axis.imshow(picture, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if titles is not None:
                axis.set_title(readable(titles[number][place]), fontsize=6)
            agrees = same_class[number][place - 1] if same_class and place else None
            axis.spines[:].set_visible(agrees is not None)
            if agrees is not None:
                axis.spines[:].set(color=_SAME if agrees else _OTHER, linewidth=2.5)
    if titles is None:
        axes[0, 0].set_title("query", fontsize=9)
        axes[0, 2].set_title("nearest", fontsize=9, loc="left")
    if same_class and any(agrees is not None for line in same_class for agrees in line):
        what = readable(label or "class")
        figure.supxlabel(f"frame: blue for the same {what}, orange for another", fontsize=8)
    return figure


def picture_sheet(
    rows: Sequence[Sequence[NDArray[np.uint8]]], titles: Sequence[Sequence[str]], labels: Sequence[str] | None = None
) -> Figure:
    """Draw rows of pictures, such as groups of near-duplicates.

    Args:
        rows: Pictures, (height, width, 3); rows may have different lengths.
        titles: What stands over each picture.
        labels: What stands at the left of each row.

    Returns:
        The figure; save it by `figure.savefig(path)`.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if not rows:
        raise ValueError("There are no pictures to draw. Give at least one.")
    num_columns = max(map(len, rows))
    figure = Figure(figsize=(1.1 * num_columns + 0.5, 1.25 * len(rows) + 0.2), dpi=150, layout="constrained")
    axes = figure.subplots(len(rows), num_columns, squeeze=False)
    for number, (line, pictures) in enumerate(zip(axes, rows, strict=True)):
        for axis, picture, title in zip(line, pictures, titles[number], strict=False):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.set_title(readable(title), fontsize=6)
        for axis in line[len(pictures) :]:
            axis.set_axis_off()
        if labels is not None:
            line[0].set_ylabel(labels[number], fontsize=8)
    return figure
