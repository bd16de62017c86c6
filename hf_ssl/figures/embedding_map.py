"""Images as points of a plane, coloured by class."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hf_ssl.figures.names import readable

# Okabe and Ito's colours and two more: at most ten classes get a colour and a name each.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_COLOURS += ("#8C564B", "#7F7F7F")
_UNKNOWN = "#CCCCCC"


def embedding_map(
    positions: NDArray[np.floating],
    classes: NDArray[np.integer] | None = None,
    class_names: Sequence[str] = (),
    title: str | None = None,
) -> Figure:
    """Draw each image as a point; the axes have no unit, so they are not shown.

    Args:
        positions: Place of each image, (images, 2).
        classes: Class of each image, (images,), negative where unknown; None: all points look the same.
        class_names: Name of each class, for a legend of up to ten of them; "class 3" where the font lacks it.
        title: What the colours are.

    Returns:
        The figure; save it by `figure.savefig(path)`.

    Raises:
        ValueError: If the positions are not of shape (images, 2), or the classes not one for each.
    """
    if positions.ndim != 2 or positions.shape[1] != 2 or not len(positions):
        raise ValueError(f"`positions` must have shape (images, 2), got {positions.shape}.")
    if classes is not None and classes.shape != (len(positions),):
        raise ValueError(f"`classes` must have shape ({len(positions)},), one for each position, got {classes.shape}.")
    figure = Figure(figsize=(6.2, 4.4), dpi=150, layout="constrained")
    axis = figure.subplots()
    size = float(np.clip(12_000 / len(positions), 5, 30))  # square points
    known = np.unique(classes[classes >= 0]) if classes is not None else []
    if classes is None or len(known) == 0:
        axis.scatter(*positions.T, s=size, color=_COLOURS[0], linewidths=0, alpha=0.7)
    elif len(known) > len(_COLOURS):
        shown = classes >= 0
        axis.scatter(*positions[~shown].T, s=size, color=_UNKNOWN, linewidths=0)
        # Neighbouring class numbers get different hues: the golden ratio spreads them.
        hues = matplotlib.colormaps["hsv"]((classes[shown] * 0.618034) % 1.0)
        axis.scatter(*positions[shown].T, s=size, c=hues, linewidths=0, alpha=0.7)
    else:
        axis.scatter(*positions[classes < 0].T, s=size, color=_UNKNOWN, linewidths=0)
        for colour, number in zip(_COLOURS, known, strict=False):
            name = readable(class_names[int(number)], f"class {number}") if number < len(class_names) else str(number)
            axis.scatter(*positions[classes == number].T, s=size, color=colour, linewidths=0, alpha=0.8, label=name)
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.6)
    axis.set_aspect("equal", adjustable="datalim")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_color("#CCCCCC")
    if title:
        axis.set_title(readable(title), fontsize=10, loc="left")
    return figure
