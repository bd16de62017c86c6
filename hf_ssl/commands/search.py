"""Find the images of a data set that are nearest to given ones, by features that `extract` wrote.

    hf-ssl extract runs/first --dataset photos --output features --index faiss
    hf-ssl search cat.jpg dog.jpg --index features --k 9 --figure neighbours.png
    hf-ssl search cat.jpg --index ORG/FEATURES

The features of the given images are computed by the encoder that computed the folder's; a faiss index is used where
there is one, else every feature is compared, with the same result. Similarities are cosines. --figure draws the
neighbours, for which the data set must be at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hf_ssl.commands.command import Command
from hf_ssl.commands.encoder_settings import check_output_file
from hf_ssl.data.decode import SkippedImageError, decode
from hf_ssl.data.rows import RowReader
from hf_ssl.data.sources import Source, open_source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import Encoder, load_encoder
from hf_ssl.features.search import Neighbours, SavedFeatures, features_of_pictures, nearest, open_features
from hf_ssl.figures.neighbours import neighbour_gallery, short_name
from hf_ssl.settings import check_least, checked


@checked
class SearchSettings:
    """What is searched for, and where.

    Args:
        images: Image files to find the neighbours of.
        index: Folder that `extract` wrote, or the repository to which it was pushed.
        split: Split to search in; the only one, or `train`, if not given.
        revision: Branch, tag or commit of a repository.
        k: Neighbours of each image, at least 1.
        figure: Picture of the neighbours to write, such as neighbours.png.
        exact: Compare with every feature, although there is an index.
        encoder: Where the encoder of the features is, if it has moved.
        dataset: Where the data set of the features is, if it has moved.
        device: Where the encoder runs; `auto` is CUDA if there is a device.
    """

    images: list[str]
    index: str
    split: str | None = None
    revision: str | None = None
    k: int = 9
    figure: Path | None = None
    exact: bool = False
    encoder: str | None = None
    dataset: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def validate_search(self) -> None:
        """Check what can be checked without features and images."""
        check_least(self, k=1)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("`device` cuda needs a CUDA device, but PyTorch sees none. Leave it out.")


@dataclass(frozen=True)
class SearchResult:
    """The neighbours of each image that was searched for.

    Args:
        neighbours: For each image, in the order given, its neighbours from the nearest: `row_id`, `path` (its file in
            the data set, None where it is unknown), `similarity` (a cosine) and the class name of each label column,
            None where it is unknown.
        images: The images that were searched for.
        figure: The picture that was drawn, if any.
    """

    neighbours: list[list[dict[str, str | int | float | None]]]
    images: list[str]
    figure: Path | None

    def __str__(self) -> str:
        parts = [f"\n{image}\n{_table(found)}" for image, found in zip(self.images, self.neighbours, strict=True)]
        return "\n".join([*parts, *([f"\n{self.figure}: the neighbours"] if self.figure else [])])


def run(settings: SearchSettings) -> SearchResult:
    """Search, and draw if asked to."""
    if settings.figure is not None:
        check_output_file(settings.figure, "figure")
    pictures = [_picture(image) for image in settings.images]
    saved = open_features(settings.index, settings.split, settings.revision)
    encoder = _encoder_of(saved, settings)
    source = _source_of(saved, settings) if settings.figure else None
    queries = features_of_pictures(encoder, pictures)
    found = nearest(saved, queries, settings.k, exact=settings.exact, progress=True)
    if source is not None:
        _draw(settings, pictures, saved, source, found)
    neighbours = [_neighbours(saved, found, number) for number in range(len(pictures))]
    return SearchResult(neighbours, list(settings.images), settings.figure)


def _picture(image: str) -> NDArray[np.uint8]:
    try:
        return decode(image)
    except SkippedImageError as error:
        raise UserError(f"`{image}` cannot be read as an image: {error.reason}. Give another.") from None


def _encoder_of(saved: SavedFeatures, settings: SearchSettings) -> Encoder:
    """The encoder that computed the features, here perhaps under another name."""
    about = saved.record["encoder"]
    name = settings.encoder or about["name"]
    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        encoder = load_encoder(name, device, about["seed"])
    except ValueError as error:
        if settings.encoder:
            raise
        raise UserError(
            f"The features are of the encoder `{name}`, which is not at hand: {error} Say where it is by `--encoder`."
        ) from None
    if encoder.fingerprint() != about["fingerprint"]:
        raise UserError(
            f"The features in `{saved.name}` are of another encoder than `{name}` is now: weights or preprocessing "
            f"differ. Extract them again, or name the encoder (then `{about['name']}`) by `--encoder`."
        )
    return encoder


def _source_of(saved: SavedFeatures, settings: SearchSettings) -> Source:
    about = dict(saved.record["dataset"])
    name = settings.dataset or about["dataset"]
    source = open_source(**(about | {"dataset": name}), split=saved.split)
    if source.fingerprint != saved.record["splits"][saved.split]["fingerprint"]:
        raise UserError(
            f"`{name}` is not the data set whose features `{saved.name}` holds, or it has changed. Name the one by "
            "`--dataset`, or leave out `--figure`."
        )
    return source


def _neighbours(saved: SavedFeatures, found: Neighbours, query: int) -> list[dict[str, str | int | float | None]]:
    rows = []
    for place, row_id in enumerate(found.row_ids[query]):
        if row_id >= 0:
            row = {
                "row_id": int(row_id),
                "path": found.paths[query, place],
                "similarity": float(found.similarities[query, place]),
            }
            labels = {
                name: _name(saved.record["labels"][name], found.labels[name][query, place]) for name in found.labels
            }
            rows.append(row | labels)
    return rows


def _table(neighbours: list[dict[str, str | int | float | None]]) -> str:
    own = ("row_id", "path", "similarity")
    shown = [name for name in (neighbours[0] if neighbours else {}) if name not in own]
    if any(one["path"] is not None for one in neighbours):
        shown.insert(0, "path")
    rows = [["", "similarity", "row_id", *shown]]
    for place, one in enumerate(neighbours, start=1):
        rows.append(
            [str(place), f"{one['similarity']:.4f}", str(one["row_id"]), *(str(one[name] or "-") for name in shown)]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _name(names: list[str], label: int) -> str | None:
    if label < 0:
        return None
    return names[label] if names else str(label)


def _draw(
    settings: SearchSettings,
    pictures: Sequence[NDArray[np.uint8]],
    saved: SavedFeatures,
    source: Source,
    found: Neighbours,
) -> None:
    """A row for each given image, followed by its neighbours."""
    images = RowReader(source).images(int(row) for row in np.unique(found.row_ids) if row >= 0)
    blank = np.full((1, 1, 3), 255, np.uint8)
    main_label = next(iter(found.labels), None)
    rows, titles = [], []
    for query, name in enumerate(settings.images):
        rows.append([pictures[query], *(decode(images[row]) if row >= 0 else blank for row in found.row_ids[query])])
        titles.append([short_name(name)])
        for place, row in enumerate(found.row_ids[query]):
            title = f"{found.similarities[query, place]:.3f}" if row >= 0 else ""
            if main_label is not None and row >= 0:
                label = found.labels[main_label][query, place]
                title += f" {_name(saved.record['labels'][main_label], label) or '-'}"
            title += f"\n{short_name(found.paths[query, place])}" if found.paths[query, place] else ""
            titles[-1].append(title)
    assert settings.figure is not None
    neighbour_gallery(rows, titles=titles).savefig(settings.figure)


COMMAND = Command(
    "search",
    SearchSettings,
    run,
    __doc__ or "",
    words=("images",),
    first=("index", "k", "figure", "split", "encoder", "dataset"),
)
