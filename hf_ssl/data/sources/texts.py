"""Columns of texts: classes by their names, and images as paths or base64."""

import base64
import binascii
import os
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.builder import Key

from hf_ssl.data.sources.files import PlacedExamples

# The first characters of base64 that holds a JPEG, PNG, GIF, WebP, BMP, TIFF or JPEG XL file. No path begins like this
# and is base64 to its end.
_BEGINNINGS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A", "/woA", "AAAADEpYTCAN")
_SHORTEST = 64  # characters; no image is smaller


def is_text(feature: Any) -> bool:
    """Whether a column holds texts."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def distinct_texts(columns: Iterable[pa.ChunkedArray | pa.Array]) -> list[str]:
    """The different values of columns, sorted, without nulls."""
    found: set[str] = set()
    for column in columns:
        found.update(value for value in pc.unique(column).to_pylist() if value is not None)  # pyright: ignore[reportAttributeAccessIssue]
    return sorted(found)


def image_of(text: str | None, folder: str | None) -> dict[str, Any] | None:
    """The image that a text stands for.

    A data address (`data:image/png;base64,...`) or base64 that begins like an image file is the image; every other
    text is a path or an address. Paths are relative to the folder of the data set.

    Args:
        text: Of a cell.
        folder: The data set's; None: of the current one.

    Returns:
        As `datasets.Image(decode=False)` gives it.
    """
    if text is None:
        return None
    content = None
    if text.startswith("data:") and ";base64," in text[:128]:
        content = text.split(";base64,", 1)[1]
    elif len(text) >= _SHORTEST and text.startswith(_BEGINNINGS):
        content = text
    if content is not None:
        try:
            return {"bytes": base64.b64decode("".join(content.split()), validate=True), "path": None}
        except (binascii.Error, ValueError):
            pass  # a path
    if folder is not None and "://" not in text and not os.path.isabs(text):
        text = os.path.join(folder, text)
    return {"bytes": None, "path": text}


def with_meaning(
    records: datasets.IterableDataset, classes: dict[str, list[str]], image: str | None, folder: str | None
) -> datasets.IterableDataset:
    """Give texts their meaning while tables are read.

    Args:
        records: Read as tables.
        classes: Column of texts -> its different values, which become numbers.
        image: Column whose texts are images, if there is one.
        folder: See `image_of`.
    """
    tables = records._ex_iterable
    assert isinstance(tables, PlacedExamples)
    assert records.features is not None
    new: dict[str, Any] = {column: datasets.Value("int64") for column in classes}
    if image is not None:
        new[image] = datasets.Image(decode=False)
    features = datasets.Features({name: new.get(name, feature) for name, feature in records.features.items()})
    read = partial(_read, tables.generate_tables_fn, classes, image, folder)
    return datasets.IterableDataset(PlacedExamples(read, tables.places), info=datasets.DatasetInfo(features=features))


def _read(
    read: Any, classes: dict[str, list[str]], image: str | None, folder: str | None, places: list[tuple]
) -> Iterator[tuple[Key, pa.Table]]:
    values = {column: pa.array(names, pa.large_string()) for column, names in classes.items()}
    for key, table in read(places):
        for column, names in values.items():
            texts = table[column].cast(pa.large_string())
            numbers = pc.index_in(texts, value_set=names).cast(pa.int64())  # pyright: ignore[reportAttributeAccessIssue]
            table = table.set_column(table.column_names.index(column), column, numbers)
        if image is not None:
            cells = [image_of(text, folder) for text in table[image].to_pylist()]
            type_ = pa.struct({"bytes": pa.binary(), "path": pa.string()})
            table = table.set_column(table.column_names.index(image), image, pa.array(cells, type_))
        yield key, table
