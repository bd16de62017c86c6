"""Features as parquet: lossless, complete or absent, with class names."""

import datasets
import pyarrow.parquet as pq
import pytest
import torch

from hf_ssl.evaluation import export_features
from hf_ssl.evaluation.export_features import write_features
from hf_ssl.evaluation.features import Features


def batches(sizes=(3, 3, 2), dim=4):
    start = 0
    for size in sizes:
        rows = torch.arange(start, start + size)
        labels = {"kind": rows % 2, "number": 100 * rows}
        yield Features(torch.randn(size, dim), labels, rows + 10)
        start += size


LABELS = {"kind": ["cat", "dog"], "number": []}


@pytest.mark.parametrize(("dtype", "rows_per_group"), [("float32", 4096), ("float16", 4)])
def test_datasets_reads_what_was_written(tmp_path, monkeypatch, dtype, rows_per_group):
    monkeypatch.setattr(export_features, "_ROWS_PER_GROUP", rows_per_group)
    path = tmp_path / "new" / "features.parquet"
    torch.manual_seed(0)
    assert write_features(path, batches(), LABELS, 4, dtype) == 8
    torch.manual_seed(0)
    expected = torch.cat([batch.features for batch in batches()])
    if dtype == "float16":
        expected = expected.half()

    table = datasets.load_dataset("parquet", data_files=str(path), split="train")
    assert table.column_names == ["row_id", "kind", "number", "embedding"]
    assert table.features["kind"] == datasets.ClassLabel(names=["cat", "dog"])
    assert table.features["embedding"] == datasets.List(datasets.Value(dtype), length=4)
    assert table["row_id"][:] == list(range(10, 18))
    assert table["number"][:] == [100 * row for row in range(8)]
    assert torch.equal(torch.tensor(table["embedding"][:], dtype=expected.dtype), expected)
    assert pq.ParquetFile(path).num_row_groups == (1 if rows_per_group > 8 else 2)
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_nothing_and_an_older_file_as_it_was(tmp_path):
    path = tmp_path / "features.parquet"

    def failing():
        yield from batches()
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write_features(path, failing(), LABELS, 4)
    assert list(tmp_path.iterdir()) == []
    path.write_text("older")
    with pytest.raises(RuntimeError, match="disk on fire"):
        write_features(path, failing(), LABELS, 4)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_input_is_named(tmp_path):
    path = tmp_path / "features.parquet"
    with pytest.raises(ValueError, match="no image to write features of"):
        write_features(path, [], LABELS, 4)
    with pytest.raises(ValueError, match="`dtype` must be float32 or float16, got `int8`"):
        write_features(path, batches(), LABELS, 4, "int8")
    with pytest.raises(ValueError, match="The label column `row_id` has the name"):
        write_features(path, batches(), {"row_id": []}, 4)
    large = Features(torch.full((1, 4), 1e5), {}, torch.tensor([0]))
    with pytest.raises(ValueError, match="A feature of 100000 is too large for `float16`"):
        write_features(path, [large], {}, 4, "float16")
    assert list(tmp_path.iterdir()) == []
