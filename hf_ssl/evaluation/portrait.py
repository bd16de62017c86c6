"""What the pictures of a model card are made of: numbers, spectrum, map and neighbours of a sample of a split."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hf_ssl.data.decode.pictures import decode
from hf_ssl.data.order.ordered import sampled_rows
from hf_ssl.data.order.rows import RowReader
from hf_ssl.data.sources.open import Source
from hf_ssl.diagnostics.alignment import alignment, uniformity
from hf_ssl.diagnostics.rank import effective_rank
from hf_ssl.diagnostics.spectrum import covariance_spectrum, rank_me
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import Picture
from hf_ssl.evaluation.features import Encoder, extract_augmented_features, extract_features

MAX_IMAGES = 2000
"""Images of a portrait: enough for a picture, and some seconds even for a large encoder."""

_NUM_PAIRS = 500  # images whose crops tell the alignment; its standard error is below a tenth of it
_READ_PER_IMAGE = 25  # records read for each image of a sample at most: bounds what is read of a large split
_QUERIES, _NEIGHBOURS = 6, 8
_THUMBNAIL = 96  # pixels


@dataclass(frozen=True)
class Portrait:
    """One encoder beside others on the same images; the last one is the one that the portrait is of.

    Args:
        numbers: Name of the encoder -> `dim`, `rank_me`, `effective_rank`, `alignment` (of two random crops of an
            image) and `uniformity`.
        spectra: Name of the encoder -> eigenvalues of the covariance of its features as shares of their sum, largest
            first, (dim,); zeros for features that are all equal.
        positions: Place of each image on a map of the last encoder's features, (images, 2).
        classes: Class of each image by the main label column, (images,), negative where unknown; None without one.
        label: Name of that column.
        class_names: Names of its classes; empty if it has none.
        num_images: Images of the sample.
        num_pairs: Images whose crops gave the alignment.
        gallery: Rows of pictures, (height, width, 3) uint8: an image and its nearest ones by cosine, nearest first;
            None if none was asked for.
        gallery_rows: Number of each picture of the gallery in the sample, (rows, 1 + neighbours).
    """

    numbers: dict[str, dict[str, float]]
    spectra: dict[str, NDArray[np.float64]]
    positions: NDArray[np.float64]
    classes: NDArray[np.int64] | None
    label: str | None
    class_names: list[str]
    num_images: int
    num_pairs: int
    gallery: list[list[NDArray[np.uint8]]] | None
    gallery_rows: NDArray[np.int64]


def take_portrait(
    encoders: Mapping[str, Encoder], source: Source, batch_size: int = 256, num_workers: int = 0, *, gallery: bool
) -> Portrait:
    """Measure encoders on a sample of a split, at most `MAX_IMAGES` images from all over it.

    Args:
        encoders: By the names that figures show; the last one is the one that the portrait is of.
        source: The split.
        batch_size: Images in a forward pass.
        num_workers: Worker processes that decode.
        gallery: Keep pictures of the data set, which everyone who sees the portrait then sees.

    Raises:
        UserError: If the split has no two usable images.
    """
    source = sample_of(source)
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
    numbers, spectra = {}, {}
    for name, encoder in encoders.items():
        found = extract_features(encoder, source, description=f"portrait, {name}", **options)
        if len(found.features) < 2:
            raise UserError(f"A portrait needs two images, but split `{source.split}` of `{source.name}` has one.")
        crops = extract_augmented_features(encoder, source, 2, max_images=_NUM_PAIRS, **options)
        numbers[name] = {"dim": found.features.shape[1], **numbers_of(found.features, *crops.float())}
        eigenvalues = covariance_spectrum(found.features).numpy()
        spectra[name] = eigenvalues / (eigenvalues.sum() or 1.0)
    label = next(iter(source.labels), None)
    rows = neighbours_of(found.features, _QUERIES, _NEIGHBOURS)
    return Portrait(
        numbers,
        spectra,
        map_of(found.features),
        None if label is None else found.labels[label].numpy(),
        label,
        [] if label is None else source.labels[label],
        len(found.features),
        crops.shape[1],
        _pictures(source, found.row_ids[rows]) if gallery else None,
        rows.numpy(),
    )


def sample_of(source: Source, max_images: int | None = None) -> Source:
    """At most `max_images` (None: `MAX_IMAGES`) records from all over a split: splits are often sorted."""
    max_images = max_images or MAX_IMAGES
    if source.num_images is None:
        return replace(source, records=source.records.take(max_images))
    within = min(source.num_images, _READ_PER_IMAGE * max_images)
    rows = frozenset(sampled_rows(within, max_images).tolist())
    records = source.records.take(within)
    if len(rows) < within:
        records = records.filter(lambda _, place: place in rows, with_indices=True)
    return replace(source, records=records, num_images=len(rows))


def numbers_of(features: Tensor, first_crops: Tensor, second_crops: Tensor) -> dict[str, float]:
    """What a card tells of an encoder's features beside pictures.

    Args:
        features: (images, dim).
        first_crops: Features of a random crop of some images, (pairs, dim).
        second_crops: Of another crop of each of them, same shape.
    """
    return {
        "rank_me": rank_me(features).item(),
        "effective_rank": effective_rank(features).item(),
        "alignment": alignment(first_crops, second_crops).item(),
        "uniformity": uniformity(features).item(),
    }


def map_of(features: Tensor) -> NDArray[np.float64]:
    """Places on a plane, (images, 2), where images with similar features lie together (t-SNE of unit vectors).

    The same features give the same map. Features that are all equal lie on one point.

    Args:
        features: (images, dim), at least two images.
    """
    from sklearn.manifold import TSNE  # imported here: it takes a second, and every script imports this module

    unit = F.normalize(features.double(), dim=1).numpy()
    if len(unit) < 5 or np.ptp(unit, axis=0).max() < 1e-6:
        return np.zeros((len(unit), 2))
    perplexity = min(30.0, (len(unit) - 1) / 3)
    # Half of scikit-learn's default iterations: what comes later moves points, not groups.
    return TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=0).fit_transform(unit).astype(np.float64)


def neighbours_of(features: Tensor, num_queries: int, num_neighbours: int) -> Tensor:
    """Some images, equally far apart, and after each those of the most similar features (cosine), nearest first.

    Args:
        features: (images, dim).
        num_queries: Rows, fewer if there are fewer images.
        num_neighbours: Neighbours in a row, fewer if there are fewer other images.

    Returns:
        (queries, 1 + neighbours), int64: numbers of images; the first of each row is the query.
    """
    unit = F.normalize(features.float(), dim=1)
    queries = torch.linspace(0, len(unit) - 1, min(num_queries, len(unit))).round().long()
    similarity = unit[queries] @ unit.T
    similarity[torch.arange(len(queries)), queries] = -torch.inf
    nearest = similarity.topk(min(num_neighbours, len(unit) - 1), dim=1).indices
    return torch.cat([queries[:, None], nearest], dim=1)


def _pictures(source: Source, rows: Tensor) -> list[list[NDArray[np.uint8]]]:
    # Without a length the reader goes through all rows: those of a sample are not the ones of its files.
    images = RowReader(replace(source, num_images=None)).images(rows.flatten().tolist())
    pictures = {
        row: middle_square(decode(image, source.access.timeout), _THUMBNAIL).numpy() for row, image in images.items()
    }
    return [[pictures[row] for row in line] for line in rows.tolist()]


def middle_square(picture: Picture, size: int) -> Tensor:
    """The middle square of a picture at another size, (size, size, 3), uint8."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    # Small pictures are enlarged in whole pixels, as they are.
    kind = Image.Resampling.NEAREST if side < size else Image.Resampling.LANCZOS
    square = Image.fromarray(picture[top : top + side, left : left + side]).resize((size, size), kind)
    return torch.from_numpy(np.array(square))
