"""Features of a data set as a parquet file that `datasets`, pandas and polars read."""

import os
from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_ssl.evaluation.features import Features

_ROWS_PER_GROUP = 4096


def write_features(
    path: Path, batches: Iterable[Features], labels: dict[str, list[str]], dim: int, dtype: str = "float32"
) -> int:
    """Write `row_id`, every label column and `embedding` (a list of fixed size), in constant memory.

    The file appears when it is complete: until then it has another name, and a failure leaves nothing behind. Its
    metadata name the classes, so that `datasets.load_dataset("parquet", data_files=...)` knows them.

    Args:
        path: The file; its folder is made if missing. An existing file is replaced.
        batches: Features of consecutive images.
        labels: Class names of each label column; empty for a column of plain integers.
        dim: Width of the features.
        dtype: `float32` or `float16`.

    Returns:
        Number of rows.

    Raises:
        ValueError: If `dtype` is another, a label column has the name of one of the two other columns, there is no
            image, or a feature is too large for float16.
    """
    if dtype not in ("float32", "float16"):
        raise ValueError(f"`dtype` must be float32 or float16, got `{dtype}`.")
    for name in ("row_id", "embedding"):
        if name in labels:
            raise ValueError(f"The label column `{name}` has the name of a column that is written. Rename it.")
    schema = datasets.Features(
        {
            "row_id": datasets.Value("int64"),
            **{
                column: datasets.ClassLabel(names=names) if names else datasets.Value("int64")
                for column, names in labels.items()
            },
            "embedding": datasets.List(datasets.Value(dtype), length=dim),
        }
    ).arrow_schema
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    num_rows = 0
    try:
        with pq.ParquetWriter(temporary, schema) as writer:
            waiting: list[pa.RecordBatch] = []
            for batch in batches:
                waiting.append(_record_batch(batch, list(labels), dtype, schema))
                num_rows += len(batch.row_ids)
                if sum(part.num_rows for part in waiting) >= _ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_batches(waiting).combine_chunks())
                    waiting = []
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting).combine_chunks())
        if num_rows == 0:
            raise ValueError("There is no image to write features of. Check the data set.")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return num_rows


def _record_batch(batch: Features, labels: list[str], dtype: str, schema: pa.Schema) -> pa.RecordBatch:
    features = batch.features.half() if dtype == "float16" else batch.features
    if torch.isinf(features).any() and not torch.isinf(batch.features).any():
        raise ValueError(
            f"A feature of {float(batch.features.abs().max()):.0f} is too large for `float16`. Write `float32`."
        )
    columns = [
        pa.array(batch.row_ids.numpy()),
        *(pa.array(batch.labels[column].numpy()) for column in labels),
        pa.FixedSizeListArray.from_arrays(pa.array(features.flatten().numpy()), features.shape[1]),
    ]
    return pa.RecordBatch.from_arrays(
        [column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
