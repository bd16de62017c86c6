"""Augmentation beside data, direction by direction: numbers in, figures out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

# Okabe and Ito: told apart with any colour vision.
_IMAGES, _DATA, _AUGMENTATION = "#000000", "#0072B2", "#D55E00"
_FLOOR = 1e-6  # of the largest variance; what lies below cannot be told from nothing
_COLUMNS = 3


def augmentation_spectra(spectra: Mapping[str, Mapping[str, Sequence[float]]], title: str | None = None) -> Figure:
    """Draw the variance of images along their principal directions, and what views share and augmentation adds there.

    Args:
        spectra: Title of a panel, such as encoder and recipe -> `images` (largest first), `between` (an estimate,
            which may be negative) and `within`.
        title: Title of the figure.

    Returns:
        The figure, shaded where augmentation varies more than what the views of an image share.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if not spectra:
        raise ValueError("There are no spectra to draw. Give at least one.")
    columns = min(_COLUMNS, len(spectra))
    rows = -(-len(spectra) // columns)
    figure = Figure(figsize=(4.0 * columns + 0.4, 3.0 * rows), dpi=130, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axis, (name, curves) in zip(axes, spectra.items(), strict=False):
        largest = curves["images"][0] or 1.0
        images, between, within = (
            [max(value / largest, _FLOOR) for value in curves[kind]] for kind in ("images", "between", "within")
        )
        ranks = range(1, len(images) + 1)
        axis.plot(ranks, images, color=_IMAGES, lw=1.2, label="images as they are")
        axis.plot(ranks, between, ".", color=_DATA, ms=4, label="shared by the views of an image")
        axis.plot(ranks, within, ".", color=_AUGMENTATION, ms=4, label="augmentation")
        drowned = [augmented > data for augmented, data in zip(within, between, strict=True)]
        axis.fill_between(ranks, between, within, where=drowned, color=_AUGMENTATION, alpha=0.15, lw=0)
        axis.set_yscale("log")
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_xlabel("principal direction of the images")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3, lw=0.6)
    for axis in axes[len(spectra) :]:
        axis.remove()
    for axis in axes[::columns]:
        axis.set_ylabel("variance / largest of the images")
    axes[0].legend(fontsize=8, frameon=False, loc="lower left")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def lost_directions(one: Mapping[str, Any]) -> Figure:
    """Draw what training kept of each direction against the share of augmentation that was foretold for it.

    Args:
        one: A seed of the study of augmentation: `predictions` and `runs` by recipe, `variances` and `scores`.

    Returns:
        The figure: a panel for each recipe, with colours by the variance of the direction.
    """
    runs = one["runs"]
    figure = Figure(figsize=(3.9 * len(runs) + 0.9, 3.4), dpi=130, layout="constrained")
    axes = list(figure.subplots(1, len(runs), squeeze=False, sharey=True)[0])
    largest = max(one["variances"])
    colours = [max(value / largest, _FLOOR) for value in one["variances"]]
    for axis, (recipe, measured) in zip(axes, runs.items(), strict=True):
        said, score = one["predictions"][recipe], one["scores"]["by_recipe"][recipe]
        kept = [math.nan if value is None else max(value, -0.05) for value in measured["kept"]]
        shares = [min(max(share, 0.0), 1.0) for share in said["shares"]]  # estimates, which may lie beyond
        points = axis.scatter(shares, kept, c=colours, s=16, cmap="viridis", norm="log", lw=0)
        axis.axvline(0.5, color="0.35", lw=0.9, ls=":")
        correlation = score["share_and_loss"]
        told = "" if correlation is None else f": rank correlation {-correlation:.2f}"
        axis.set_title(f"{recipe}{told}", fontsize=10, loc="left")
        axis.set_xlabel("share of augmentation, before training")
        axis.set_xlim(0, 1)
        axis.set_ylim(-0.07, 1.03)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3, lw=0.6)
    axes[0].set_ylabel("$R^2$ of the direction after training")
    figure.colorbar(points, ax=axes, label="variance / largest", fraction=0.03, pad=0.01)
    return figure
