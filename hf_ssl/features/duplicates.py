"""Near-duplicates and outliers among saved features: within one split, and between two (leakage of train into test).

Both ask for the images nearest to each image, and leave the comparisons to `pairs`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hf_ssl.features.pairs import NO_SIMILARITY, nearest_of_each, pairs_above
from hf_ssl.features.search import SavedFeatures, rows_at

CHANCE = 0.001
"""Part of the images that a threshold chosen from the data is expected to list where there are no duplicates."""

_SAME = 1e-5  # least distance of a threshold that is chosen: images nearer than that are the same to the encoder
_ROUNDING = 1e-6  # what the cosine of a feature with itself may lack to 1


@dataclass(frozen=True)
class FoundImage:
    """An image of a data set of features.

    Args:
        split: Where it is: the split, after the folder's name where two folders are compared.
        row_id: Row in the split.
        path: File in the data set; None where it is unknown.
        similarity: Cosine to the image nearest to it, in [-1, 1]; where two splits are compared, to the nearest one of
            the other split.
    """

    split: str
    row_id: int
    path: str | None
    similarity: float


@dataclass(frozen=True)
class Duplicates:
    """Groups of images that are nearly the same to the encoder.

    Args:
        groups: Images of each group, by split and row; the group of the most similar images first. Each image of a
            group is a near-duplicate of at least one other of it; where two splits are compared, of the other split.
        threshold: Cosine from which on two images are near-duplicates.
        by_chance: Images that a threshold chosen from the data is expected to list where there are no duplicates;
            None if the user gave the threshold.
        splits: The split, or the two that were compared, and the images of each.
    """

    groups: list[list[FoundImage]]
    threshold: float
    by_chance: float | None
    splits: dict[str, int]

    def __str__(self) -> str:
        images = [one for group in self.groups for one in group]
        what = f"{len(self.groups):,} group{'s' * (len(self.groups) != 1)} of near-duplicates"
        parts = [
            f"{sum(one.split == split for one in images):,} of {total:,} images of {split}"
            for split, total in self.splits.items()
        ]
        text = [f"{what}: {' and '.join(parts)}."]
        how = "as given" if self.by_chance is None else "chosen from the data"
        text.append(f"Near-duplicates have a similarity of at least {self.threshold:.6g}, {how}.")
        if self.by_chance is not None:
            few = f"{self.by_chance:.1g}" if self.by_chance < 1 else f"{self.by_chance:,.0f}"
            text[-1] += f" Without any duplicate, about {few} images would be listed by chance."
        numbered = [(number, one) for number, group in enumerate(self.groups, start=1) for one in group]
        return "\n".join([*text, *(_table(numbered, "group") if numbered else [])])


@dataclass(frozen=True)
class Outliers:
    """The images that are farthest from all others.

    Args:
        images: The images, the farthest first.
        splits: The split; where two are compared, the one of the images and the one whose images they are far from.
    """

    images: list[FoundImage]
    splits: list[str]

    def __str__(self) -> str:
        others = "all others" if len(self.splits) == 1 else f"all images of {self.splits[1]}"
        head = f"The {len(self.images):,} images of {self.splits[0]} that are farthest from {others}."
        return "\n".join([head, *_table(list(enumerate(self.images, start=1)), "")])


def find_duplicates(
    saved: SavedFeatures,
    against: SavedFeatures | None = None,
    threshold: float | None = None,
    *,
    exact: bool = False,
    progress: bool = False,
) -> Duplicates:
    """Groups of near-duplicates within one split, or between two.

    Two images of a group need not be near-duplicates of each other: a chain of them connects the two.

    Args:
        saved: The features.
        against: Features of another split, by the same encoder; only pairs of one image from each are looked for.
        threshold: Cosine from which on images are near-duplicates, in (0, 1], where 1 leaves room for rounding; None:
            `chosen_threshold`.
        exact: Do not use a faiss index.
        progress: Show a progress bar.

    Raises:
        UserError: If the features are of different encoders, or there are fewer than two images.
    """
    others = against or saved
    similarities, places = nearest_of_each(saved, against, exact=exact, progress=progress)
    by_chance = None
    if threshold is None:
        threshold = chosen_threshold(similarities[:, 0])
        by_chance = CHANCE * len(similarities)
    threshold = min(threshold, 1 - _ROUNDING)
    groups = _Groups(similarities[:, 0], sum(others.rows_of_shards) if against is not None else None)
    near = similarities >= threshold
    groups.join(np.nonzero(near)[0], places[near], similarities[near])
    # An image with as many near-duplicates as were kept of it may have more.
    full = near.all(axis=1) & (similarities.shape[1] < sum(others.rows_of_shards) - (against is None))
    if full.any():
        for pairs in pairs_above(saved, against, full, threshold, progress=progress):
            groups.join(*pairs)
    images = _images_of(saved, against, groups.members(), groups.best)
    images.sort(key=lambda group: -max(one.similarity for one in group))
    sizes = [len(similarities), sum(others.rows_of_shards)]
    return Duplicates(images, threshold, by_chance, dict(zip(titles_of_splits(saved, against), sizes, strict=False)))


def find_outliers(
    saved: SavedFeatures,
    number: int,
    against: SavedFeatures | None = None,
    *,
    exact: bool = False,
    progress: bool = False,
) -> Outliers:
    """The images whose nearest neighbour is the least similar.

    Args:
        saved: The features.
        number: How many, at least 1; all if there are fewer.
        against: Features of another split, by the same encoder, among which the neighbours are looked for.
        exact: Do not use a faiss index.
        progress: Show a progress bar.

    Raises:
        UserError: If the features are of different encoders, or there are fewer than two images.
    """
    similarities, _ = nearest_of_each(saved, against, 1, exact=exact, progress=progress)
    order = np.argsort(similarities[:, 0], kind="stable")[:number]
    images = _images_of(saved, against, [order], similarities[:, 0])[0]
    return Outliers(images, titles_of_splits(saved, against))


def chosen_threshold(similarities: NDArray[np.float32]) -> float:
    """A cosine from which on images are unusually similar, judged by how similar neighbours usually are.

    Where images lie evenly around each other, the distances (1 - cosine) to the nearest ones follow a Weibull
    distribution, whatever their scale and the number of dimensions. It is fitted to the larger half of the distances,
    by their median and upper quartile, so that duplicates do not matter unless half of the images have one. The
    threshold is the distance that only `CHANCE` of the images would come below. Images that are the same up to
    rounding are duplicates in any case.

    Args:
        similarities: Cosine of each image to its nearest neighbour, (images,).

    Returns:
        The threshold, below 1.
    """
    logs = np.log(np.maximum(1 - similarities.astype(np.float64), _SAME))
    median, quartile = np.quantile(logs, (0.5, 0.75))
    # log(distance) = constant + slope * log(-log(1 - p)), of which the second is log(log 2) and log(log 4).
    slope = (quartile - median) / math.log(2)
    distance = math.exp(median + slope * (math.log(-math.log1p(-CHANCE)) - math.log(math.log(2))))
    return 1 - max(distance, _SAME)


def titles_of_splits(saved: SavedFeatures, against: SavedFeatures | None) -> list[str]:
    """What results call the split, or the two that are compared."""
    if against is None:
        return [saved.split]
    here, there = saved.split, against.split
    return [here, there] if saved.name == against.name else [f"{saved.name} {here}", f"{against.name} {there}"]


class _Groups:
    """Images that are connected by near-duplicates; joined pair by pair.

    Args:
        nearest: Cosine of each image to its nearest neighbour, (images,).
        num_others: Number of images of the other split, if two are compared; they are numbered after the first.

    Attributes:
        best: Cosine of every image to the one nearest to it, as far as it is in a pair.
    """

    def __init__(self, nearest: NDArray[np.float32], num_others: int | None):
        self._offset = 0 if num_others is None else len(nearest)
        self.best = np.concatenate([nearest, np.full(num_others or 0, NO_SIMILARITY, np.float32)])
        self._group = np.arange(len(self.best))

    def join(self, rows: NDArray[np.int64], others: NDArray[np.int64], similarities: NDArray[np.float32]) -> None:
        """Put each image into one group with the other of its pair; places as `pairs_above` gives them."""
        others = others + self._offset
        np.maximum.at(self.best, others, similarities)
        number = int(self._group.max()) + 1
        ends = (self._group[rows], self._group[others])
        pairs = coo_matrix((np.ones(len(rows), np.bool_), ends), shape=(number, number))
        self._group = connected_components(pairs, directed=False)[1][self._group]

    def members(self) -> list[NDArray[np.int64]]:
        """Images of each group that has two or more, ascending."""
        sizes = np.bincount(self._group)
        inside = np.flatnonzero(sizes[self._group] > 1)
        order = inside[np.argsort(self._group[inside], kind="stable")]
        return np.split(order, np.flatnonzero(np.diff(self._group[order])) + 1) if len(order) else []


def _images_of(
    saved: SavedFeatures,
    against: SavedFeatures | None,
    groups: Sequence[NDArray[np.int64]],
    similarities: NDArray[np.float32],
) -> list[list[FoundImage]]:
    """What the shards say about images by their numbers, of which those of the other split follow the first's.

    The images of all groups are looked up at once, so that each shard is read once.
    """
    numbers = np.concatenate([*groups, np.empty(0, np.int64)])
    border = sum(saved.rows_of_shards)
    rows, paths, splits = np.empty(len(numbers), np.int64), np.empty(len(numbers), object), numbers >= border
    titles = titles_of_splits(saved, against)
    for which, features in enumerate((saved, against)):
        here = splits == which
        if features is not None and here.any():
            rows[here], _, paths[here] = rows_at(features, numbers[here] - which * border)
    found = [
        FoundImage(titles[int(split)], int(row), path, float(similarities[number]))
        for split, row, path, number in zip(splits, rows, paths, numbers, strict=True)
    ]
    ends = np.cumsum([0, *map(len, groups)])
    return [found[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]


def _table(images: Sequence[tuple[int, FoundImage]], first: str) -> list[str]:
    """A line for each image with its number, which the column `first` holds; columns that say nothing are left out."""
    with_split = len({one.split for _, one in images}) > 1
    with_path = any(one.path is not None for _, one in images)
    heads = [first, "similarity", "row_id", *["split"] * with_split, *["path"] * with_path]
    rows = [heads]
    for number, one in images:
        cells = [str(number), f"{one.similarity:.4f}", str(one.row_id)]
        rows.append([*cells, *[one.split] * with_split, *[one.path or "-"] * with_path])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
