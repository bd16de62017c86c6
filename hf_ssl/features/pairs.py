"""The nearest images of each image among saved features, and all pairs above a similarity, in chunks.

With n images that makes n x n comparisons, but only the few nearest of each image and one block of similarities are in
memory.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_ssl.errors import UserError
from hf_ssl.features.search import SavedFeatures, embeddings_of, open_index

NO_SIMILARITY = -2.0
"""Similarity to an image that is not there."""

_NEIGHBOURS = 8
_QUERIES_AT_ONCE = 1024
_ROWS_AT_ONCE = 16_384


def nearest_of_each(
    saved: SavedFeatures,
    against: SavedFeatures | None = None,
    k: int = _NEIGHBOURS,
    *,
    exact: bool = False,
    progress: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The nearest other images of each image.

    By the faiss index of the images that are searched if there is one, else, or if `exact`, by comparing all.

    Args:
        saved: The features.
        against: Features to search; None: the same ones, of which an image itself is left out.
        k: Neighbours of each image, at least 1; all if there are fewer.
        exact: Do not use the index.
        progress: Show a progress bar.

    Returns:
        Cosines, (images, k), the largest first, and places in the sequence of the shards' rows, (images, k); -2 and
        -1 where an index found fewer than k.

    Raises:
        UserError: If the features are of different encoders, or there are fewer than two images.
    """
    others = against or saved
    _check_comparable(saved, against)
    number, total = sum(saved.rows_of_shards), sum(others.rows_of_shards)
    k = min(k, total - (against is None))
    similarities = np.full((number, k), NO_SIMILARITY, np.float32)
    places = np.full((number, k), -1, np.int64)
    wanted = np.ones(number, np.bool_)
    with tqdm(total=number * total, desc="comparing", unit="pair", unit_scale=True, disable=not progress) as bar:
        if others.has_index and not exact:
            index = open_index(others)
            for here, queries in _queries(saved, wanted):
                cosines, found = index.search(queries, k + (against is None))
                missing = found < 0
                if against is None:
                    missing |= found == here[:, None]
                similarities[here], places[here] = _best(
                    np.where(missing, np.float32(NO_SIMILARITY), cosines), np.where(missing, -1, found), k
                )
                bar.update(len(here) * total)
            wanted = places[:, 0] < 0  # an index of cells may find none
        for here, start, block in _blocks(saved, others, wanted, itself=against is None):
            cosines, columns = (part.numpy() for part in torch.from_numpy(block).topk(min(k, block.shape[1])))
            similarities[here], places[here] = _best(
                np.concatenate([similarities[here], cosines], axis=1),
                np.concatenate([places[here], np.where(cosines > NO_SIMILARITY, columns + start, -1)], axis=1),
                k,
            )
            bar.update(block.size)
    return similarities, places


def pairs_above(
    saved: SavedFeatures,
    against: SavedFeatures | None,
    wanted: NDArray[np.bool_],
    limit: float,
    *,
    progress: bool = False,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """All pairs of wanted images and others whose cosine is large enough, by comparing all, some at a time.

    Args:
        saved: The features.
        against: Features of the others; None: the same ones.
        wanted: Which images of `saved`, (images,).
        limit: The least cosine.
        progress: Show a progress bar.

    Yields:
        Places of the images and of the others in the sequence of their shards' rows, and the cosines, (pairs,).
    """
    others = against or saved
    total = int(wanted.sum()) * sum(others.rows_of_shards)
    with tqdm(total=total, desc="groups", unit="pair", unit_scale=True, disable=not progress) as bar:
        for here, start, block in _blocks(saved, others, wanted, itself=against is None):
            rows, columns = np.nonzero(block >= limit)
            if len(rows):
                yield here[rows], columns + start, block[rows, columns]
            bar.update(block.size)


def _check_comparable(saved: SavedFeatures, against: SavedFeatures | None) -> None:
    if against is None:
        if sum(saved.rows_of_shards) < 2:
            raise UserError(f"Split `{saved.split}` in `{saved.name}` has one image: there are none to compare it to.")
        return
    folders = [Path(one.name).expanduser().resolve() for one in (saved, against)]
    if folders[0] == folders[1] and saved.split == against.split:
        raise UserError(
            f"`against` must be other features than `index`, got split `{saved.split}` of `{saved.name}` twice. "
            "Leave it out to compare the images of one split."
        )
    if saved.record["encoder"]["fingerprint"] != against.record["encoder"]["fingerprint"]:
        encoders = [one.record["encoder"]["name"] for one in (saved, against)]
        raise UserError(
            f"The features in `{saved.name}` and `{against.name}` are of different encoders (`{encoders[0]}` and "
            f"`{encoders[1]}`) and cannot be compared. Extract both by one encoder."
        )


def _queries(
    saved: SavedFeatures, wanted: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Places and normalised features of the wanted images, some at a time."""
    start = 0
    for number, size in enumerate(saved.rows_of_shards):
        here = start + np.flatnonzero(wanted[start : start + size])
        if len(here):
            features = embeddings_of(saved, number)[here - start]
            for first in range(0, len(here), _QUERIES_AT_ONCE):
                part = slice(first, first + _QUERIES_AT_ONCE)
                yield here[part], features[part]
        start += size


def _blocks(
    saved: SavedFeatures, others: SavedFeatures, wanted: NDArray[np.bool_], *, itself: bool
) -> Iterator[tuple[NDArray[np.int64], int, NDArray[np.float32]]]:
    """Cosines of the wanted images to all others: places of the rows, place of the first column, and the block.

    Args:
        saved: The features of the rows.
        others: Those of the columns.
        wanted: Which images of `saved`, (images,).
        itself: Whether both are the same, so that an image must not find itself.
    """
    starts = np.cumsum([0, *others.rows_of_shards])
    for queries in _per_shard(saved, wanted):
        for number, size in enumerate(others.rows_of_shards):
            rows = embeddings_of(others, number) if size else np.empty((0, 0), np.float32)
            for first in range(0, size, _ROWS_AT_ONCE):
                start = int(starts[number]) + first
                for here, features in queries:
                    block = features @ rows[first : first + _ROWS_AT_ONCE].T
                    if itself:
                        own = (here >= start) & (here < start + block.shape[1])
                        block[own, here[own] - start] = NO_SIMILARITY
                    yield here, start, block


def _per_shard(
    saved: SavedFeatures, wanted: NDArray[np.bool_]
) -> Iterator[list[tuple[NDArray[np.int64], NDArray[np.float32]]]]:
    """What `_queries` gives, eight parts at a time, so that each shard of the others is read once for them."""
    parts = []
    for part in _queries(saved, wanted):
        parts.append(part)
        if len(parts) == 8:
            yield parts
            parts = []
    if parts:
        yield parts


def _best(
    similarities: NDArray[np.float32], places: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, axis=1), np.take_along_axis(places, order, axis=1)
