"""Find the images nearest to given ones, near-duplicates or outliers, by features that `extract` wrote.

    hf-ssl extract runs/first --dataset photos --output features --index faiss
    hf-ssl search cat.jpg dog.jpg --index features --k 9 --figure neighbours.png
    hf-ssl search cat.jpg --index ORG/FEATURES
    hf-ssl search --index features --duplicates --figure duplicates.png
    hf-ssl search --index features --split train --duplicates --against_split test
    hf-ssl search --index features --outliers 20

The features of the given images are computed by the encoder that computed the folder's; a faiss index is used where
there is one, else every feature is compared, with the same result. Similarities are cosines. --figure draws what was
found, for which the data set must be at hand.

--duplicates lists groups of images that are nearly the same to the encoder, --outliers the images that are farthest
from all others; both within one split or, by --against_split or --against, between two, such as test images in train.
Without --threshold the one that is used comes from the data: it is so high that, without any duplicate, about one
image in 1,000 would be listed. If more than half of the images have a duplicate, give one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hf_ssl.commands.command import Command
from hf_ssl.commands.encoder_settings import check_output_file, check_picture_ending
from hf_ssl.data.decode.access import is_address, leads_outside
from hf_ssl.data.decode.pictures import SkippedImageError, decode
from hf_ssl.data.order.rows import RowReader
from hf_ssl.data.sources.card import named_places
from hf_ssl.data.sources.open import Source, open_source
from hf_ssl.data.sources.opened import EMBEDDED
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import Encoder, load_encoder
from hf_ssl.features.duplicates import (
    Duplicates,
    FoundImage,
    Outliers,
    find_duplicates,
    find_outliers,
    titles_of_splits,
)
from hf_ssl.features.search import Neighbours, SavedFeatures, features_of_pictures, nearest, open_features
from hf_ssl.figures.neighbours import neighbour_gallery, picture_sheet, short_name
from hf_ssl.settings import check_least, checked

_SHEET_ROWS, _SHEET_COLUMNS = 16, 8  # of a picture of duplicates or outliers


@checked
class SearchSettings:
    """What is searched for, and where.

    Args:
        images: Image files to find the neighbours of; not with `duplicates` or `outliers`.
        index: Folder that `extract` wrote, or the repository to which it was pushed.
        split: Split to search in; the only one, or `train`, if not given.
        revision: Branch, tag or commit of a repository.
        k: Neighbours of each image, at least 1.
        duplicates: List groups of near-duplicates.
        threshold: Cosine from which on two images are near-duplicates, above 0 and at most 1; chosen from the data if
            not given.
        outliers: List so many images, those that are the least similar to the image nearest to them, at least 1.
        against: Folder or repository of features to compare with; of the same encoder.
        against_split: Split to compare with; of `against`, or of `index`.
        figure: Picture of what was found to write; the ending chooses its format, such as .png, .pdf or .svg.
        exact: Compare with every feature, although there is an index.
        encoder: Where the encoder of the features is, if it has moved.
        dataset: Where the data set of the features is, if it has moved. An address that the features name, and a
            path that features on the Hub name, is opened only if you give it here.
        allow_paths: For pictures of what was found, read whatever file or address a record of the data set names.
        device: Where the encoder runs; `auto` is CUDA if there is a device.
    """

    images: list[str] | None = None
    index: str
    split: str | None = None
    revision: str | None = None
    k: int = 9
    duplicates: bool = False
    threshold: float | None = None
    outliers: int | None = None
    against: str | None = None
    against_split: str | None = None
    figure: Path | None = None
    exact: bool = False
    encoder: str | None = None
    dataset: str | None = None
    allow_paths: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def validate_search(self) -> None:
        """Check what can be checked without features and images."""
        check_least(self, k=1, outliers=1)
        asked = {"images": bool(self.images), "duplicates": self.duplicates, "outliers": self.outliers is not None}
        given = [f"`{name}`" for name, is_asked in asked.items() if is_asked]
        if len(given) != 1:
            raise UserError(
                f"One of `images`, `duplicates` and `outliers` must be given, got {' and '.join(given) or 'none'}. "
                "Name image files, or add `--duplicates` or `--outliers N`."
            )
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UserError(f"`threshold` must be above 0 and at most 1, got {self.threshold}.")
        needed = {"threshold": ("duplicates",), "against": ("duplicates", "outliers"), "encoder": ("images",)}
        for name, of in (needed | {"against_split": needed["against"]}).items():
            if getattr(self, name) is not None and not any(asked[one] for one in of):
                raise UserError(f"`{name}` is for {' and '.join(f'`{one}`' for one in of)}. Leave it out.")
        if self.figure is not None:
            check_picture_ending(self.figure, "figure")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("`device` cuda needs a CUDA device, but PyTorch sees none. Leave it out.")


@dataclass(frozen=True)
class SearchResult:
    """What was found: the neighbours of each image, near-duplicates or outliers.

    Args:
        neighbours: For each image, in the order given, its neighbours from the nearest: `row_id`, `path` (its file in
            the data set, None where it is unknown), `similarity` (a cosine) and the class name of each label column,
            None where it is unknown.
        images: The images that were searched for.
        figure: The picture that was drawn, if any.
        duplicates: Groups of near-duplicates and the threshold, if they were asked for.
        outliers: The images farthest from all others, if they were asked for.
    """

    neighbours: list[list[dict[str, str | int | float | None]]]
    images: list[str]
    figure: Path | None
    duplicates: Duplicates | None = None
    outliers: Outliers | None = None

    def __str__(self) -> str:
        parts = [f"\n{image}\n{_table(found)}" for image, found in zip(self.images, self.neighbours, strict=True)]
        parts += [str(found) for found in (self.duplicates, self.outliers) if found is not None]
        what = "the duplicates" if self.duplicates else "the outliers" if self.outliers else "the neighbours"
        return "\n".join([*parts, *([f"\n{self.figure}: {what}"] if self.figure else [])])


def run(settings: SearchSettings) -> SearchResult:
    """Search, and draw if asked to."""
    if settings.figure is not None:
        check_output_file(settings.figure, "figure")
    if not settings.images:
        return _search_all(settings)
    pictures = [_picture(image) for image in settings.images]
    saved = open_features(settings.index, settings.split, settings.revision)
    encoder = _encoder_of(saved, settings)
    source = _source_of(saved, settings) if settings.figure else None
    queries = features_of_pictures(encoder, pictures)
    found = nearest(saved, queries, settings.k, exact=settings.exact, progress=True)
    if source is not None:
        _draw(settings.images, settings.figure, pictures, saved, source, found)
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


def _source_of(saved: SavedFeatures, settings: SearchSettings, *, is_other: bool = False) -> Source:
    """The data set of features; `dataset` says where it is, unless the features are of another one."""
    about: dict[str, Any] = dict(saved.record["dataset"])
    name = about["dataset"] if is_other else settings.dataset or about["dataset"]
    # Never what the features say, which may come from anyone.
    about |= {"dataset": name, "allow_paths": settings.allow_paths}
    _check_place(saved, about, is_named=settings.dataset is not None and not is_other)
    source = open_source(**about, split=saved.split)
    if source.fingerprint != saved.record["splits"][saved.split]["fingerprint"]:
        raise UserError(
            f"`{name}` is not the data set whose features `{saved.name}` holds, or it has changed. Name the one by "
            "`--dataset`, or leave out `--figure`."
        )
    return source


def _check_place(saved: SavedFeatures, about: Mapping[str, Any], *, is_named: bool) -> None:
    """Refuse what only the features say, which may come from anyone: addresses, and for features on the Hub paths."""
    on_hub = not Path(saved.name).expanduser().is_dir()
    name = str(about["dataset"])
    if not is_named and name not in EMBEDDED and not name.startswith("hf://datasets/"):
        is_path = leads_outside(name) or name.startswith(".") or Path(name).exists()
        if is_address(name) or (on_hub and is_path):
            raise UserError(
                f"The features in `{saved.name}` are of `{name}`, which is opened only if you name it: features may "
                "come from anyone. Name it by `--dataset`, or leave out `--figure`."
            )
    for file in named_places(about):
        if is_address(file) or (on_hub and leads_outside(file)):
            raise UserError(
                f"The features in `{saved.name}` are of files at `{file}`, which are not opened: features may come "
                "from anyone. Leave out `--figure`."
            )


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
    names: Sequence[str],
    figure: Path | None,
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
    for query, name in enumerate(names):
        rows.append([pictures[query], *(decode(images[row]) if row >= 0 else blank for row in found.row_ids[query])])
        titles.append([short_name(name)])
        for place, row in enumerate(found.row_ids[query]):
            title = f"{found.similarities[query, place]:.3f}" if row >= 0 else ""
            if main_label is not None and row >= 0:
                label = found.labels[main_label][query, place]
                title += f" {_name(saved.record['labels'][main_label], label) or '-'}"
            title += f"\n{short_name(found.paths[query, place])}" if found.paths[query, place] else ""
            titles[-1].append(title)
    assert figure is not None
    neighbour_gallery(rows, titles=titles).savefig(figure)


def _search_all(settings: SearchSettings) -> SearchResult:
    """Find near-duplicates or outliers among all images of a split, or of one against another."""
    saved = open_features(settings.index, settings.split, settings.revision)
    against = None
    if settings.against is not None:
        against = open_features(settings.against, settings.against_split)
    elif settings.against_split is not None:
        against = open_features(settings.index, settings.against_split, settings.revision)
    sources = {}
    if settings.figure is not None:  # what cannot be opened is said before the comparisons
        compared = [saved] if against is None else [saved, against]
        names = [one.record["dataset"]["dataset"] for one in compared]
        opened = [
            _source_of(one, settings, is_other=name != names[0]) for one, name in zip(compared, names, strict=True)
        ]
        sources = dict(zip(titles_of_splits(saved, against), opened, strict=True))
    how = {"exact": settings.exact, "progress": True}
    if settings.outliers is not None:
        outliers = find_outliers(saved, settings.outliers, against, **how)
        shown = outliers.images[: _SHEET_ROWS * _SHEET_COLUMNS]
        rows = [shown[first : first + _SHEET_COLUMNS] for first in range(0, len(shown), _SHEET_COLUMNS)]
        return SearchResult([], [], _draw_sheet(settings.figure, rows, sources), outliers=outliers)
    duplicates = find_duplicates(saved, against, settings.threshold, **how)
    rows = [group[:_SHEET_COLUMNS] for group in duplicates.groups[:_SHEET_ROWS]]
    labels = [f"group {number}" for number in range(1, len(rows) + 1)]
    for number, group in enumerate(duplicates.groups[:_SHEET_ROWS]):
        if len(group) > _SHEET_COLUMNS:
            labels[number] += f"\n{_SHEET_COLUMNS} of {len(group)}"
    return SearchResult([], [], _draw_sheet(settings.figure, rows, sources, labels), duplicates=duplicates)


def _draw_sheet(
    figure: Path | None, rows: list[list[FoundImage]], sources: dict[str, Source], labels: Sequence[str] | None = None
) -> Path | None:
    """Draw images in rows; None where no figure is asked for or there is nothing to draw."""
    if figure is None or not rows:
        return None
    pictures = {}
    for split, source in sources.items():
        images = RowReader(source).images(one.row_id for row in rows for one in row if one.split == split)
        pictures |= {(split, row_id): decode(image) for row_id, image in images.items()}
    titles = []
    for row in rows:
        above = [[f"{one.similarity:.4f}"] + [Path(one.split).name] * (len(sources) > 1) for one in row]
        names = [short_name(one.path) if one.path else f"row {one.row_id}" for one in row]
        titles.append([" ".join(words) + f"\n{name}" for words, name in zip(above, names, strict=True)])
    drawn = [[pictures[one.split, one.row_id] for one in row] for row in rows]
    picture_sheet(drawn, titles, labels).savefig(figure)
    return figure


COMMAND = Command(
    "search",
    SearchSettings,
    run,
    __doc__ or "",
    words=("images",),
    first=("index", "k", "duplicates", "outliers", "figure", "split", "against_split", "encoder", "dataset"),
)
