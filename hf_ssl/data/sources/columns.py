"""Which columns of a data set are images and labels."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import datasets

from hf_ssl.data.sources.texts import is_text
from hf_ssl.errors import UserError

_IMAGE_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "picture", "photo", "pixel_values", "bytes")
_LABEL_NAMES = ("label", "labels", "cls", "class", "target", "fine_label", "coarse_label", "category")

_SURELY_CLASSES = 1000  # so few different texts are classes, however few the rows


@dataclass(frozen=True)
class Columns:
    """The columns that are used.

    Args:
        image: Column of the images.
        labels: Every label column and its class names (empty where unknown); the main one first.
        texts: Those label columns that hold texts, which are the names of the classes.
    """

    image: str
    labels: dict[str, list[str]]
    texts: set[str] = field(default_factory=set)


def find_columns(
    features: datasets.Features,
    dataset: str,
    image_column: str | None = None,
    label_column: str | None = None,
    index_column: str | None = None,
    distinct: Callable[[str], list[str]] | None = None,
    num_images: int | None = None,
) -> Columns:
    """Find the image and label columns.

    The image is the column of type `datasets.Image` (of several, the one with a usual name, else the first); without
    one, a column of bytes or paths with a usual name, else the only column of bytes. Labels are all columns of type
    `ClassLabel` and the integer, bool and text columns with a usual name. Each different text is a class, unless most
    rows have their own.

    Args:
        features: Columns and their types.
        dataset: Name of the data set, for messages.
        image_column: The image column, if the user named it.
        label_column: The main label column, if the user named it.
        index_column: The column that numbers the images, if the user named it; it is no label.
        distinct: The different texts of a column, sorted; None where they are not known.
        num_images: Number of rows, if known.

    Returns:
        The columns.

    Raises:
        UserError: If there is no image column, or a named column is missing or of another kind.
    """
    image = _image_column(features, dataset) if image_column is None else image_column
    if image not in features:
        raise UserError(f"`image_column` `{image}` must be a column of `{dataset}`, which has: {_listed(features)}.")
    if not _can_hold_images(features[image]):
        raise UserError(
            f"`image_column` must name images, bytes or paths, but `{image}` of `{dataset}` does not hold them. "
            f"Columns: {_listed(features)}."
        )
    for setting, column in (("label_column", label_column), ("index_column", index_column)):
        if column is not None and column not in features:
            raise UserError(f"`{setting}` `{column}` must be a column of `{dataset}`, which has: {_listed(features)}.")
        if column is not None and setting == "label_column" and not hasattr(features[column], "dtype"):
            raise UserError(
                f"`label_column` must hold one class for each image, but `{column}` of `{dataset}` holds lists or "
                "dictionaries. Several labels for one image are not supported: name another column."
            )
        if column is not None and setting == "label_column" and is_text(features[column]):
            if distinct is None:
                raise UserError(
                    f"`label_column` must hold integers or class labels where a data set is streamed, but `{column}` "
                    f"of `{dataset}` holds texts, and only reading all of it would tell the classes. Load it with "
                    "`datasets`, use `class_encode_column`, and hand over the object or save it as parquet."
                )
            continue
        if column is not None and not _is_integer(features[column]):
            raise UserError(
                f"`{setting}` must hold integers{' or class labels' if setting == 'label_column' else ''}, but "
                f"`{column}` of `{dataset}` does not. Columns: {_listed(features)}."
            )
    if label_column is not None and label_column == index_column:
        raise UserError(f"`label_column` and `index_column` must be two columns, got `{label_column}` for both.")
    usual = [name for name in _LABEL_NAMES if name in features and name != image]
    texts: dict[str, list[str]] = {}
    if distinct is not None:
        for name in usual:
            if name not in (label_column, index_column) and is_text(features[name]):
                texts[name] = distinct(name)
        texts = {name: found for name, found in texts.items() if 0 < len(found) <= _most_classes(num_images)}
        if label_column is not None and is_text(features[label_column]):
            texts[label_column] = distinct(label_column)
    labels = [name for name in usual if _is_integer(features[name]) or name in texts]
    labels += [name for name in features if isinstance(features[name], datasets.ClassLabel) and name not in labels]
    labels = [name for name in labels if name != index_column]
    if label_column is not None:
        labels = [label_column, *(name for name in labels if name != label_column)]
    return Columns(image, {name: texts.get(name) or _class_names(features[name]) for name in labels}, set(texts))


def _most_classes(num_images: int | None) -> int:
    """More different texts than this are captions or names, not classes."""
    return max(_SURELY_CLASSES, (num_images or 0) // 2)


def _class_names(feature: Any) -> list[str]:
    if feature.dtype == "bool":
        return ["False", "True"]
    return list(getattr(feature, "names", None) or [])


def _image_column(features: datasets.Features, dataset: str) -> str:
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        binary = [name for name in features if getattr(features[name], "dtype", None) in ("binary", "large_binary")]
        images = [name for name in _IMAGE_NAMES if name in features and _can_hold_images(features[name])]
        images = images or (binary if len(binary) == 1 else [])
    usual = [name for name in _IMAGE_NAMES if name in images]
    if not images:
        raise UserError(
            f"`{dataset}` has no column of images. It has: {_listed(features)}. Name one with `image_column`."
        )
    return (usual or images)[0]


def _can_hold_images(feature: Any) -> bool:
    if isinstance(feature, dict):  # a struct written without the metadata of `datasets.Image`
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in (
        "binary",
        "large_binary",
        "string",
        "large_string",
    )


def _is_integer(feature: Any) -> bool:
    return isinstance(feature, datasets.Value | datasets.ClassLabel) and feature.dtype.lstrip("u").startswith(
        ("int", "bool")
    )


def _listed(features: datasets.Features) -> str:
    return ", ".join(f"`{name}`" for name in features) or "no columns"
