"""A folder of features: shards of fixed ranges of rows, and a record of what computed them.

    features.json              the encoder, the data set, the settings and, once a split is complete, its shards
    data/train-00000.parquet   rows 0 to `rows_per_shard` - 1 of the split, without images that cannot be used
    index/train.faiss          index for `search`, if one was asked for

A shard has its name only when it is complete, and which rows it covers does not depend on who computed it. So what is
left of a run that was killed is the shards that are missing.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import Encoder
from hf_ssl.evaluation.features import RowFeatures
from hf_ssl.evaluation.references import read_json
from hf_ssl.tokens import record_without_tokens
from hf_ssl.training.output import make_folder
from hf_ssl.writing import replacing, write_whole

RECORD = "features.json"
DTYPES = ("float32", "float16")

_ROWS_PER_GROUP = 4096
_METADATA_KEY = b"hf_ssl"


@dataclass(frozen=True)
class ExtractionSettings:
    """What the features depend on beside encoder and data set; equal for all splits of a folder.

    Args:
        dtype: `float32` or `float16`.
        bf16: Whether the encoder computes in bfloat16.
        max_images: Use only the first so many images of each split; None for all.
        rows_per_shard: Rows of the data set that a shard covers, at least 1.
    """

    dtype: str = "float32"
    bf16: bool = False
    max_images: int | None = None
    rows_per_shard: int = 8192

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise UserError(f"`dtype` must be {' or '.join(DTYPES)}, got `{self.dtype}`.")
        if self.rows_per_shard < 1:
            raise UserError(f"`rows_per_shard` must be at least 1, got {self.rows_per_shard}.")


def describe(
    encoder: Encoder, source: Source, settings: ExtractionSettings, *, seed: int, dataset: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of a folder that has no complete split yet.

    Args:
        encoder: The encoder.
        source: One split of the data set.
        settings: Settings of the extraction.
        seed: With which the encoder was loaded.
        dataset: What `open_source` was called with, without the split.
    """
    return {
        "encoder": {
            "name": encoder.name,
            "local": Path(encoder.name.rpartition(":")[2]).exists(),
            "seed": seed,
            "dim": encoder.dim,
            "fingerprint": encoder.fingerprint(),
        },
        "dataset": record_without_tokens(dict(dataset)),  # as it is written, to compare with
        "dataset_kind": source.kind,
        "labels": source.labels,
        "paths": True,
        "settings": asdict(settings),
        "splits": {},
    }


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder; None if it has none.

    Raises:
        UserError: If it is not one that `describe` and `finish_split` made.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    record = read_json(path)
    if not _is_record(record):
        raise UserError(f"`{path}` must be as `hf-ssl extract` writes it, and is not. Extract the features again.")
    return record


def _is_record(record: Mapping[str, Any]) -> bool:
    """Whether a record, which may come from elsewhere, holds what is looked up in it, and no split that is a path."""
    texts = {"encoder": ("name", "fingerprint"), "dataset": ("dataset",)}
    try:
        return (
            all(isinstance(record[part][name], str) for part, names in texts.items() for name in names)
            and isinstance(record["encoder"]["dim"], int)
            and isinstance(record["labels"], dict)
            and isinstance(record["settings"]["rows_per_shard"], int)
            and not any({"/", "\\"} & set(split) for split in record["splits"])
            and all(isinstance(rows, int) for about in record["splits"].values() for rows in about.get("shards", []))
        )
    except (KeyError, TypeError, AttributeError):
        return False


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record; at any time the folder holds the former one or this one."""
    write_whole(folder / RECORD, json.dumps(record_without_tokens(record), indent=2) + "\n")


def begin_split(folder: Path, description: Mapping[str, Any], source: Source, *, overwrite: bool = False) -> set[int]:
    """Make the folder ready for the shards of a split; only the first process may call it.

    Args:
        folder: The folder; made if missing.
        description: See `describe`.
        source: The split.
        overwrite: Remove the features that the folder holds instead of going on with them.

    Returns:
        Numbers of the shards of this split that are complete.

    Raises:
        UserError: If the folder holds something else, or features of another encoder, data set or setting.
    """
    make_folder(folder, "output")
    record = read_record(folder)
    if record is None and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"`output` `{folder}` is not empty and holds no features. Choose another folder.")
    if record is not None and overwrite:
        remove_features(folder)
        record = None
    if record is not None:
        other = _difference(record, description, source)
        if other:
            raise UserError(f"`{folder}` holds features {other}. Choose another `output`, or add `--overwrite`.")
    record = record or dict(description)
    record["splits"].setdefault(source.split, {"fingerprint": source.fingerprint})
    (folder / "data").mkdir(exist_ok=True)
    write_record(folder, record)
    return set(_shards(folder, source.split))


def remove_features(folder: Path) -> None:
    """Remove what an extraction wrote into a folder, and leave what else lies there."""
    shutil.rmtree(folder / "data", ignore_errors=True)
    shutil.rmtree(folder / "index", ignore_errors=True)
    (folder / RECORD).unlink(missing_ok=True)


def _difference(record: Mapping[str, Any], new: Mapping[str, Any], source: Source) -> str | None:
    """What a folder's features are of, where that is not what is asked for."""
    old_encoder, encoder = record["encoder"], new["encoder"]
    if old_encoder["fingerprint"] != encoder["fingerprint"]:
        if old_encoder["name"] != encoder["name"]:
            return f"of the encoder `{old_encoder['name']}`, not of `{encoder['name']}`"
        return f"that `{encoder['name']}` computed with other weights or another preprocessing than it has now"
    former = record["splits"].get(source.split)
    if former is not None and former["fingerprint"] != source.fingerprint:
        name = record["dataset"]["dataset"]
        if name == source.name:
            return f"of split `{source.split}` of `{name}` as it was; the data set, its config or revision is another"
        return f"of the data set `{name}`, not of `{source.name}`"
    if former is None and record["dataset"] != new["dataset"]:
        return f"of the data set `{record['dataset']['dataset']}` with other settings, or of another data set"
    if record["labels"] != new["labels"]:
        return f"with other labels than split `{source.split}` of `{source.name}` has"
    for name, value in new["settings"].items():
        if record["settings"].get(name) != value:
            return f"with `{name}` {record['settings'].get(name)}, not {value}"
    return None


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Where a shard lies once it is complete."""
    return folder / "data" / f"{split}-{number:05d}.parquet"


def write_shard(path: Path, parts: Iterable[RowFeatures], features: datasets.Features) -> None:
    """Write the rows of one shard: the file appears when it is complete and on the disk.

    Args:
        path: See `shard_path`.
        parts: All rows that the shard covers, in order.
        features: See `columns_of`.

    Raises:
        UserError: If a feature is too large for float16.
    """
    parts = list(parts)
    about = {
        "first": parts[0].first,
        "num_rows": sum(part.num_rows for part in parts),
        "skipped": dict(sorted(sum((part.skipped for part in parts), Counter()).items())),
    }
    plain = features.arrow_schema
    schema = plain.with_metadata({**plain.metadata, _METADATA_KEY: json.dumps(about).encode()})
    table = pa.Table.from_batches([_record_batch(part, schema) for part in parts], schema=schema)
    # Numbers without pattern: neither a dictionary nor compression makes them smaller, and both take time.
    columns = [name for name in features if name != "embedding"]
    with replacing(path) as part, part.open("wb") as file:
        with pq.ParquetWriter(
            file,
            schema,
            use_dictionary=columns,  # pyright: ignore[reportArgumentType]
            compression="none",
            write_statistics=columns,  # pyright: ignore[reportArgumentType]
        ) as writer:
            if table.num_rows:  # `datasets` cannot read a row group without rows
                writer.write_table(table.combine_chunks(), _ROWS_PER_GROUP)
        file.flush()
        os.fsync(file.fileno())


def has_paths(record: Mapping[str, Any]) -> bool:
    """Whether the rows of a folder have a `path`; folders from before there were paths go on without."""
    return record.get("paths", False)


def columns_of(labels: Mapping[str, list[str]], dim: int, dtype: str, *, with_path: bool = True) -> datasets.Features:
    """`row_id`, `path`, every label column and `embedding`, a list of fixed size, as `datasets` describes them.

    Raises:
        UserError: If a label column has the name of one of the other columns.
    """
    own = ("row_id", "path", "embedding") if with_path else ("row_id", "embedding")
    for name in own:
        if name in labels:
            raise UserError(f"The label column `{name}` has the name of a column that is written. Rename it.")
    return datasets.Features(
        {
            "row_id": datasets.Value("int64"),
            **({"path": datasets.Value("string")} if with_path else {}),
            **{
                column: datasets.ClassLabel(names=names) if names else datasets.Value("int64")
                for column, names in labels.items()
            },
            "embedding": datasets.List(datasets.Value(dtype), length=dim),
        }
    )


def _record_batch(part: RowFeatures, schema: pa.Schema) -> pa.RecordBatch:
    embedding = schema.field("embedding").type
    features = part.features.features.to(torch.float16 if embedding.value_type == pa.float16() else torch.float32)
    if torch.isinf(features).any() and not torch.isinf(part.features.features).any():
        raise UserError(
            f"A feature of {float(part.features.features.abs().max()):.0f} is too large for `float16`. "
            "Write `float32`."
        )
    columns = {name: pa.array(values.numpy()) for name, values in part.features.labels.items()}
    columns["row_id"] = pa.array(part.features.row_ids.numpy())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(features.flatten().numpy()), embedding.list_size)
    if "path" in schema.names:
        columns["path"] = pa.array(part.paths or [None] * len(features), pa.string())
    return pa.RecordBatch.from_arrays([columns[field.name].cast(field.type) for field in schema], schema=schema)


def finish_split(folder: Path, split: str, num_rows: int | None) -> dict[str, Any]:
    """Note in the record that a split is complete, with its shards and what was skipped; the first process calls it.

    Args:
        folder: The folder.
        split: The split.
        num_rows: Rows of the data set that must be covered; None where its end was not known beforehand.

    Returns:
        The record.

    Raises:
        UserError: If no image could be used.
        UserError: If a shard is missing, such as one that another machine wrote to a folder of its own.
    """
    record = read_record(folder)
    assert record is not None
    shards = _shards(folder, split)
    covered, rows, skipped = 0, [], Counter()
    for number in range(len(shards)):
        if number not in shards:
            break
        with pq.ParquetFile(shards[number]) as file:
            about = json.loads(file.metadata.metadata[_METADATA_KEY])
            rows.append(file.metadata.num_rows)
        assert about["first"] == covered == number * record["settings"]["rows_per_shard"]
        covered += about["num_rows"]
        skipped.update(about["skipped"])
    if len(rows) < len(shards) or (num_rows is not None and covered < num_rows):
        raise UserError(
            f"`{shard_path(folder, split, len(rows))}` is missing. All processes must write to one folder that they "
            "share; then the same command goes on."
        )
    if sum(rows) == 0:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in skipped.most_common())
        name = record["dataset"]["dataset"]
        raise UserError(f"Split `{split}` of `{name}` has no usable image ({reasons or 'it is empty'}).")
    record["splits"][split] |= {"num_rows": covered, "shards": rows, "skipped": dict(sorted(skipped.items()))}
    write_record(folder, record)
    for left in (folder / "data").glob(f".{split}-*.part*"):  # of processes that were killed
        left.unlink(missing_ok=True)
    return record


def is_complete(record: Mapping[str, Any], split: str) -> bool:
    """Whether all shards of a split have been written."""
    return "shards" in record["splits"].get(split, {})


def _shards(folder: Path, split: str) -> dict[int, Path]:
    """Complete shards by number."""
    found = {}
    for path in (folder / "data").glob("*.parquet"):
        name, _, number = path.stem.rpartition("-")
        if name == split and number.isdigit():
            found[int(number)] = path
    return found
