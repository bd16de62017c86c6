"""Which classes a classifier takes for which."""

from collections.abc import Sequence
from textwrap import shorten

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from hf_ssl.figures.names import readable

_MOST_CLASSES = 30  # that can be read
_MOST_NUMBERS = 15  # classes up to which every cell says its number


def confusion_matrix(counts: ArrayLike, class_names: Sequence[str], title: str | None = None) -> Figure:
    """Draw a table of true classes (rows) and predicted ones (columns), each cell the share of its row.

    Of more than 30 classes it shows those with the most errors.

    Args:
        counts: Images of each true class that are taken for each class, (classes, classes).
        class_names: Names of the classes; their numbers are shown where the font lacks a character.
        title: Title of the figure.

    Returns:
        The figure; save it by `figure.savefig(path)`.

    Raises:
        ValueError: If the table does not have a row and a column for each name, or holds no image.
    """
    table = np.asarray(counts)
    if table.shape != (len(class_names), len(class_names)):
        raise ValueError(f"`counts` must have shape ({len(class_names)}, {len(class_names)}), got {table.shape}.")
    if not table.sum():
        raise ValueError("`counts` holds no image. Score a split with labels.")
    shares = 100 * table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    shown = np.arange(len(table))
    if len(table) > _MOST_CLASSES:
        errors = table.sum(axis=0) + table.sum(axis=1) - 2 * table.diagonal()
        shown = np.sort(np.argsort(-errors, kind="stable")[:_MOST_CLASSES])
    names = [readable(class_names[number], f"class {number}") for number in shown.tolist()]
    names = [shorten(name.replace("_", " "), 18, placeholder="...") for name in names]
    shares = shares[np.ix_(shown, shown)]
    size = 2.4 + 0.34 * len(shown)  # inches
    figure = Figure(figsize=(size + 0.8, size), dpi=150, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axis.set_xticks(range(len(shown)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(shown)), names, fontsize=8)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if len(shown) <= _MOST_NUMBERS:
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 55 else "black"
            text = f"{share:.0f}" if share >= 0.5 else ""
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axis, label="share of the true class (%)", shrink=0.7)
    part = f"the {len(shown)} classes with the most errors of {len(table)}" if len(shown) < len(table) else None
    axis.set_title("\n".join(line for line in (readable(title or ""), part) if line), fontsize=10, loc="left")
    return figure
