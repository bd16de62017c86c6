"""Augmentation beside data, direction by direction: numbers in, figures out."""

from collections.abc import Mapping, Sequence

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
