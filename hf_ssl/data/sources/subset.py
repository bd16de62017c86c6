"""A small, class-balanced part of a labelled data set: the semi-supervised protocol with 1 % or 10 % of the labels."""

import heapq
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from hf_ssl.data.sources.files import table_records
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError

logger = logging.getLogger(__name__)

_SHOWN_CLASSES = 20
_ROWS = 256  # records that are in memory at once besides those that are kept, and priorities drawn at once
_FOR_SUBSET = 5  # the last number of the seed: views and the reader have others


@dataclass(frozen=True)
class LabelledSubset:
    """Part of a data set.

    Args:
        source: The chosen images, undecoded and in memory, in the order of the data set.
        row_ids: Row of each in the whole data set, from 0, ascending.
        counts: Class name -> number of chosen images.
        fraction: Share of the labelled images that was chosen: less than asked for where a class has too few.
    """

    source: Source
    row_ids: list[int]
    counts: dict[str, int]
    fraction: float


def class_names(source: Source) -> list[str]:
    """Names of the classes of the main label column, in the order of their numbers.

    Without names in the data set they are the numbers that occur, for which the labels are read once: 0, 100 and 200
    are three classes. `numbers_of_classes` gives their places.

    Raises:
        UserError: If there is no label column, no label, or a single class.
    """
    if not source.labels:
        raise UserError(
            f"Split `{source.split}` of `{source.name}` has no label column of integers or classes. Name one with "
            "`label_column`, or give a data set with labels."
        )
    column, names = next(iter(source.labels.items()))
    if not names:
        labels = source.records.select_columns([column]).iter(_ROWS)
        present = {label for rows in labels for label in rows[column] if label is not None and label >= 0}
        names = [str(number) for number in sorted(present)]
    if len(names) < 2:
        raise UserError(
            f"A classifier needs two classes or more, but `{column}` of split `{source.split}` of `{source.name}` has "
            f"{f'only `{names[0]}`' if names else 'no label'}. Give another `label_column` or data set."
        )
    return names


def numbers_of_classes(labels: Tensor, names: list[str]) -> Tensor:
    """Number the classes of a label column without names by their places in `class_names`.

    Args:
        labels: As the data set has them, int64; negative where unknown.
        names: Class names. Where they are no ascending numbers, labels are places already.

    Returns:
        Place of each label in `names`, `len(names)` if it is none of them; negative where unknown.
    """
    if not names or not all(name.isdigit() for name in names):
        return labels
    classes = torch.tensor([int(name) for name in names], device=labels.device)
    if bool((classes.diff() <= 0).any()):
        return labels
    places = torch.searchsorted(classes, labels).clamp(max=len(names) - 1)
    return torch.where(labels < 0, labels, torch.where(classes[places] == labels, places, len(names)))


def labelled_subset(
    source: Source, names: list[str], fraction: float, seed: int, *, show_progress: bool = False
) -> LabelledSubset:
    """Choose the same number of images of every class, as SimCLR does for 1 % and 10 % of ImageNet's labels.

    The number is `fraction` of the labelled images divided by the classes that exist, at least 1; a class that has
    fewer gives all it has. Which images are chosen depends on `seed` and their rows alone: those of a class with the
    lowest of random priorities, so a smaller fraction is part of a larger one. The data set is read once; once more to
    count the labels if it does not say how many images it has, or if some images or classes turn out to have no label.

    Args:
        source: The data set, with labels.
        names: Class names, from `class_names`.
        fraction: In (0, 1].
        seed: At least 0.
        show_progress: Whether to draw a progress bar.

    Raises:
        UserError: If `fraction` is out of range or no image has a label.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"`label_fraction` must be above 0 and at most 1, such as 0.01 for 1 %, got {fraction}.")
    column = next(iter(source.labels))
    # Where the data set does not name its classes, its labels may have gaps.
    number_of = {number if source.labels[column] else int(name): number for number, name in enumerate(names)}
    present = Counter[int]()
    if source.num_images is None:
        records = source.records.select_columns([column]).iter(_ROWS)
        for rows in tqdm(records, "counting labels", disable=not show_progress):
            present.update(label for label in rows[column] if label in number_of)
        num_labelled, num_classes = present.total(), len(present)
    else:
        num_labelled, num_classes = source.num_images, len(names)
    kept, present = _choose(
        source, column, number_of, fraction * num_labelled / max(1, num_classes), seed, show_progress
    )
    if (num_labelled, num_classes) != (present.total(), len(present)):  # some images or classes have no label
        most = fraction * present.total() / max(1, len(present))
        kept, present = _choose(source, column, number_of, most, seed, show_progress)
    chosen = sorted((row, label, image) for label, heap in enumerate(kept) for _, row, image in heap)
    if not chosen:
        raise UserError(f"No image of split `{source.split}` of `{source.name}` has a label in `{column}`.")
    rows = [{source.image_column: image, column: label} for _, label, image in chosen]
    subset = _in_memory(source, rows, {column: names}, f"{fraction}-{seed}")
    counts = {name: len(heap) for name, heap in zip(names, kept, strict=True)}
    _say(counts)
    return LabelledSubset(subset, [row for row, _, _ in chosen], counts, len(chosen) / present.total())


def _choose(
    source: Source, column: str, number_of: dict[int, int], most: float, seed: int, show_progress: bool
) -> tuple[list[list[tuple[float, int, Any]]], Counter[int]]:
    """Priority, row and image of `most` records of each class, rounded, and how many records have each label."""
    limit = max(1, round(most))
    kept: list[list[tuple[float, int, Any]]] = [[] for _ in number_of]  # heaps, the highest priority first
    present = Counter[int]()
    with tqdm(total=source.num_images, desc="choosing labels", unit="img", disable=not show_progress) as bar:
        for row, priority, label, image in _candidates(source, column, seed, bar):
            if label is None or label not in number_of:
                continue
            present[label] += 1
            heap = kept[number_of[label]]
            if len(heap) < limit:
                heapq.heappush(heap, (-priority, row, image))
            elif priority < -heap[0][0]:
                heapq.heapreplace(heap, (-priority, row, image))
    return kept, present


def _say(counts: dict[str, int]) -> None:
    numbers = list(counts.values())
    shown = ", ".join(f"{name} {number}" for name, number in list(counts.items())[:_SHOWN_CLASSES])
    more = f", ... (from {min(numbers)} to {max(numbers)})" if len(counts) > _SHOWN_CLASSES else ""
    logger.info("Training on %d labelled images: %s%s.", sum(numbers), shown, more)
    missing = [name for name, number in counts.items() if number == 0]
    if missing:
        logger.warning("%d classes have no image, such as `%s`.", len(missing), missing[0])


def _candidates(source: Source, column: str, seed: int, bar: tqdm) -> Iterator[tuple[int, float, int | None, Any]]:
    """Row, priority, label and undecoded image of every record."""
    records = source.records.select_columns([source.image_column, column])
    for block, rows in enumerate(records.iter(_ROWS)):
        labels, images = rows[column], rows[source.image_column]
        priorities = _priorities(seed, block)
        for offset, (label, image) in enumerate(zip(labels, images, strict=True)):
            yield block * _ROWS + offset, float(priorities[offset]), label, image
        bar.update(len(labels))


def _priorities(seed: int, block: int) -> NDArray[np.float64]:
    """Uniform numbers of consecutive rows, (_ROWS,)."""
    return np.random.default_rng([seed, block, _FOR_SUBSET]).random(_ROWS)


def spaced_subset(source: Source, num_images: int) -> Source:
    """Part of a data set: images at equal distances in its order, so that a split sorted by class keeps all classes.

    Args:
        source: The data set, which is read once.
        num_images: How many, at least 1; all of them give the source itself.

    Returns:
        The chosen images, undecoded and in memory, with the labels of the main column and numbers from 0.

    Raises:
        UserError: If the data set has fewer, or does not say how many it has.
    """
    total = check_part(source, num_images)
    if num_images == total:
        return source
    columns = [source.image_column, *list(source.labels)[:1]]
    wanted = iter(number * total // num_images for number in range(num_images))
    row, kept = next(wanted), []
    for start, rows in enumerate(source.records.select_columns(columns).iter(_ROWS)):
        while row is not None and row < (start + 1) * _ROWS:
            kept.append({column: rows[column][row - start * _ROWS] for column in columns})
            row = next(wanted, None)
    return _in_memory(source, kept, dict(list(source.labels.items())[:1]), f"{num_images}")


def check_part(source: Source, num_images: int) -> int:
    """Refuse a number of images that `spaced_subset` cannot choose; see there.

    Returns:
        How many images there are.
    """
    total = source.num_images
    if total is None:
        raise UserError(
            f"`{source.name}` does not say how many images it has, so no part of it can be chosen evenly. Give a data "
            "set that does, such as a folder or parquet files."
        )
    if num_images > total:
        raise UserError(
            f"`num_images` must be at most the {total} images of split `{source.split}` of `{source.name}`, got "
            f"{num_images}."
        )
    return total


def _in_memory(source: Source, rows: list[dict[str, Any]], labels: dict[str, list[str]], mark: str) -> Source:
    """A source of chosen records, with these label columns and names of classes."""
    features = datasets.Features(
        {source.image_column: datasets.Image(decode=False)} | {name: datasets.Value("int64") for name in labels}
    )
    parts = [  # in parts, because one array of bytes holds at most 2 GB
        pa.table(
            {name: [row[name] for row in rows[start : start + _ROWS]] for name in features},
            schema=features.arrow_schema,
        )
        for start in range(0, len(rows), _ROWS)
    ]
    return replace(
        source,
        records=table_records(pa.concat_tables(parts), features),
        labels=labels,
        num_images=len(rows),
        fingerprint=f"{source.fingerprint}-{mark}",
    )
