"""Images beside the views that augmentation makes of them."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

_SIDE = 0.95  # of a picture, in inches
_GAP = 0.22  # between the image and its pairs and between pairs, as a fraction of a picture
_MARGIN = 0.15  # to the left and right, in inches
_SIZES = {"title": 11, "note": 7.5, "column": 8, "row": 7}  # of text, in points


def view_sheet(
    images: Sequence[NDArray[np.uint8]],
    views: Sequence[NDArray[np.uint8]],
    title: str,
    notes: Sequence[str] = (),
    names: Sequence[str | None] | None = None,
) -> Figure:
    """Draw a row for each image: the image, then its pairs of views.

    Args:
        images: Pictures of any size, (height, width, 3) each; at least one.
        views: Of each image, (pairs, 2, size, size, 3); the same number of pairs for all.
        title: What stands over the sheet.
        notes: Lines of small text under the title.
        names: What stands under each image, such as its class; None where there is nothing to say.

    Returns:
        The figure; save it by `figure.savefig(path)`.

    Raises:
        ValueError: If there is no image, or not the same number of images and of views.
    """
    if not images or len(images) != len(views):
        raise ValueError(f"Give views of at least one image, got {len(images)} image(s) and views of {len(views)}.")
    num_pairs = len(views[0])
    widths = [1.0] + [_GAP, 1.0, 1.0] * num_pairs
    named = names is not None and any(names)
    width = _SIDE * sum(widths) + 2 * _MARGIN
    titles = _wrapped([title], width, _SIZES["title"] * 1.15)  # bold letters are wider
    notes = _wrapped(notes, width, _SIZES["note"])
    top_of_notes = 0.1 + 0.2 * len(titles)
    head = top_of_notes + 0.15 * len(notes) + 0.48  # the last is for the names of the columns; all in inches
    foot = 0.2 if named else 0.06
    height = _SIDE * (1.16 if named else 1.04) * len(images) + head + foot
    figure = Figure(figsize=(width, height), dpi=150)
    grid = figure.add_gridspec(
        len(images),
        len(widths),
        width_ratios=widths,
        left=_MARGIN / width,
        right=1 - _MARGIN / width,
        top=1 - head / height,
        bottom=foot / height,
        wspace=0.04,
        hspace=0.16 if named else 0.04,
    )
    for row, (image, pairs) in enumerate(zip(images, views, strict=True)):
        axis = figure.add_subplot(grid[row, 0])
        _show(axis, image, "image" if row == 0 else None)
        if names is not None and names[row]:
            axis.set_xlabel(_shortened(names[row] or ""), fontsize=_SIZES["row"], labelpad=2)
        for pair, both in enumerate(pairs):
            for number, view in enumerate(both):
                axis = figure.add_subplot(grid[row, 2 + 3 * pair + number])
                _show(axis, view, f"view {number + 1}" if row == 0 else None)
                if row == 0 and number == 0:
                    place = axis.get_position()
                    middle = place.x1 + 0.02 * _SIDE / width
                    figure.text(middle, place.y1 + 0.24 / height, f"pair {pair + 1}", ha="center", va="bottom",
                                fontsize=_SIZES["column"], fontweight="bold")  # fmt: skip
    left = _MARGIN / width
    for line, text in enumerate(titles):
        figure.text(
            left, 1 - (0.08 + 0.2 * line) / height, text, fontsize=_SIZES["title"], fontweight="bold", va="top"
        )
    for line, text in enumerate(notes):
        down = (top_of_notes + 0.03 + 0.15 * line) / height
        figure.text(left, 1 - down, text, fontsize=_SIZES["note"], color="#444444", va="top")
    return figure


def _show(axis: Axes, picture: NDArray[np.uint8], heading: str | None) -> None:
    # Small pictures are shown as the squares that they are made of, others smoothly.
    small = max(picture.shape[:2]) < 100
    axis.imshow(picture, interpolation="nearest" if small else "antialiased", aspect="equal")
    # In the middle of a square, so that all headings stand at one height.
    height, width = picture.shape[:2]
    side = max(height, width)
    axis.set_xlim((width - side) / 2 - 0.5, (width + side) / 2 - 0.5)
    axis.set_ylim((height + side) / 2 - 0.5, (height - side) / 2 - 0.5)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    if heading is not None:
        axis.set_title(heading, fontsize=_SIZES["column"], pad=4)


def _wrapped(texts: Sequence[str], width: float, size: float) -> list[str]:
    """Lines of at most a width in inches, for letters of a size in points."""
    letters = max(20, int((width - 2 * _MARGIN) * 72 / (0.56 * size)))
    return [line for text in texts for line in textwrap.wrap(text, letters)]


def _shortened(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else name[: limit - 3] + "..."
