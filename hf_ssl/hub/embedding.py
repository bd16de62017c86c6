"""The pictures and numbers of an encoder's features that lie beside it and that its model card shows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_ssl.errors import UserError
from hf_ssl.evaluation.portrait import Portrait
from hf_ssl.evaluation.references import read_json
from hf_ssl.figures.diagnostics import spectrum_curves
from hf_ssl.figures.embedding_map import embedding_map
from hf_ssl.figures.neighbours import neighbour_gallery
from hf_ssl.settings import of_json
from hf_ssl.writing import write_whole

_CURE = "Move it away; `hf-ssl evaluate` with numbers for the card makes it again."

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


@dataclass(frozen=True)
class _Numbers:
    """What `embedding.json` holds of an encoder, for the check of its types."""

    dim: int
    rank_me: float
    effective_rank: float
    alignment: float
    uniformity: float


@dataclass(frozen=True)
class _Embedding:
    """What `embedding.json` holds, for the check of its types."""

    dataset: str
    split: str
    num_images: int
    num_pairs: int
    encoders: dict[str, _Numbers]
    dataset_kind: str | None = None


def embedding_in(encoder_folder: Path) -> dict[str, Any]:
    """The content of a folder's `embedding.json`; empty if there is none.

    Raises:
        UserError: If it holds something else.
    """
    path = encoder_folder / "embedding.json"
    if not path.is_file():
        return {}
    content = read_json(path)
    try:
        of_json(_Embedding, content)
    except UserError as error:
        raise UserError(f"`{path}` does not hold the numbers of features: {error}. {_CURE}") from error
    return content


def _same_class(portrait: Portrait) -> list[list[bool | None]] | None:
    if portrait.classes is None:
        return None
    classes = portrait.classes[portrait.gallery_rows]
    return [
        [bool(one == query) if min(one, query) >= 0 else None for one in others] for query, *others in classes.tolist()
    ]
