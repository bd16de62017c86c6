"""The pictures and numbers of an encoder's features that lie beside it and that its model card shows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_ssl.evaluation.portrait import Portrait
from hf_ssl.figures.diagnostics import spectrum_curves
from hf_ssl.figures.embedding_map import embedding_map
from hf_ssl.figures.neighbours import neighbour_gallery
from hf_ssl.writing import write_whole

SHOWN_BY_DEFAULT = ("shapes", "digits")
"""Data sets whose pictures may be published without asking: the package draws or brings them itself."""


def write_embedding(encoder_folder: Path, portrait: Portrait, about: Mapping[str, Any]) -> None:
    """Write `embedding.json` and `figures/{spectrum,embedding_map,neighbours}.png`, in the place of older ones.

    Args:
        encoder_folder: The encoder's folder.
        portrait: What to write.
        about: JSON-able description of the images: `dataset`, `dataset_config` and `split`.
    """
    counts = {"label": portrait.label, "num_images": portrait.num_images, "num_pairs": portrait.num_pairs}
    written = {**about, **counts, "encoders": portrait.numbers}
    write_whole(encoder_folder / "embedding.json", json.dumps(written, indent=2) + "\n")
    figures = encoder_folder / "figures"
    figures.mkdir(exist_ok=True)
    spectra = {name: eigenvalues.tolist() for name, eigenvalues in portrait.spectra.items()}
    spectrum_curves({"features": spectra}).savefig(figures / "spectrum.png")
    title = f"{Path(about['dataset']).name}, {portrait.label}" if portrait.label else None
    embedding_map(portrait.positions, portrait.classes, portrait.class_names, title).savefig(
        figures / "embedding_map.png"
    )
    (figures / "neighbours.png").unlink(missing_ok=True)  # of other images, or of those that may not be shown
    if portrait.gallery is not None:
        neighbour_gallery(portrait.gallery, _same_class(portrait), portrait.label).savefig(figures / "neighbours.png")


def _same_class(portrait: Portrait) -> list[list[bool | None]] | None:
    if portrait.classes is None:
        return None
    classes = portrait.classes[portrait.gallery_rows]
    return [
        [bool(one == query) if min(one, query) >= 0 else None for one in others] for query, *others in classes.tolist()
    ]
