"""The data sets that need no files."""

import hashlib
from functools import cache

import cv2
import datasets
import numpy as np
import pyarrow as pa

from hf_ssl.data.sources.files import table_records
from hf_ssl.data.sources.opened import Opened
from hf_ssl.data.sources.shapes import shapes
from hf_ssl.errors import UserError


def open_embedded(name: str, split: str) -> Opened:
    """Open one of `EMBEDDED`.

    Raises:
        UserError: If there is no such split.
    """
    return _open_shapes(split) if name == "shapes" else _open_digits(split)


def _open_shapes(split: str) -> Opened:
    dataset = shapes(split)
    return _of_table(dataset.data.table, dataset.features)


def _open_digits(split: str) -> Opened:
    table = _digits(split)
    return _of_table(table, datasets.Features.from_arrow_schema(table.schema))


@cache
def _digits(split: str) -> pa.Table:
    """scikit-learn's 8 x 8 handwritten digits; the last 360 of 1,797 are the test split."""
    bounds = {"train": slice(None, -360), "test": slice(-360, None)}
    if split not in bounds:
        raise UserError(f"`digits` has no split `{split}`. It has: {', '.join(bounds)}.")
    # Imported here: it takes most of a second, in every program and worker process, and only these images need it.
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    pictures = np.rint(pictures.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[bounds[split]]
    images = [{"bytes": cv2.imencode(".png", picture)[1].tobytes(), "path": None} for picture in pictures]
    names = [str(digit) for digit in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return pa.table({"image": images, "label": labels[bounds[split]]}, schema=features.arrow_schema)


def _of_table(table: pa.Table, features: datasets.Features) -> Opened:
    content = hashlib.sha256()
    for batch in table.to_batches():
        content.update(batch.serialize())
    return Opened(table_records(table, features), table.num_rows, content.hexdigest())
