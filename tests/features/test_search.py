"""Search: the same neighbours from the index and from the shards, and from a formula."""

import sys
from collections import Counter

import datasets
import numpy as np
import pytest
import torch

from hf_ssl.evaluation.features import Features, RowFeatures
from hf_ssl.features.folder import (
    begin_split,
    columns_of,
    finish_split,
    shard_path,
    write_record,
    write_shard,
)
from hf_ssl.features.search import build_index, features_of_pictures, nearest, new_index, open_features

SIZES = [40, 0, 37, 5]
DIM = 8


class Source:
    """What `begin_split` looks at."""

    split, name, fingerprint, labels = "train", "numbers", "f", {"kind": ["a", "b", "c"], "number": []}


def write_folder(folder, dtype="float32"):
    torch.manual_seed(3)
    settings = {"dtype": dtype, "bf16": False, "max_images": None, "rows_per_shard": 50}
    about = {
        "encoder": {"name": "e", "seed": 0, "dim": DIM, "fingerprint": "x"},
        "dataset": {"dataset": "numbers"},
        "labels": Source.labels,
        "settings": settings,
        "splits": {},
    }
    begin_split(folder, about, Source)
    for number, size in enumerate(SIZES):
        ids = 50 * number + 2 + torch.arange(size)  # the first two of each shard could not be used
        labels = {"kind": ids % 3, "number": 7 * ids}
        part = RowFeatures(50 * number, 50, Counter(), Features(5 * torch.randn(size, DIM), labels, ids))
        write_shard(shard_path(folder, "train", number), [part], columns_of(Source.labels, DIM, dtype))
    finish_split(folder, "train", None)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("features") / "new")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("features") / "new")
    build_index(folder, "train")
    return folder


@pytest.fixture
def queries():
    return np.random.default_rng(0).normal(size=(4, DIM)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 9, 82, 1000])
def test_neighbours_are_those_of_the_largest_cosine(folder, indexed, queries, k):
    table = datasets.load_dataset("parquet", data_files=str(folder / "data/*.parquet"), split="train")
    rows = np.array(table["embedding"][:], np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(queries, axis=1)[:, None]
    cosines = queries.astype(np.float64) @ rows.T / lengths
    order = np.argsort(-cosines, axis=1)[:, :k]
    for place in (folder, indexed):
        found = nearest(open_features(str(place)), queries, k)
        assert (found.row_ids == np.array(table["row_id"][:])[order]).all()
        assert (found.labels["kind"] == np.array(table["kind"][:])[order]).all()
        assert (found.labels["number"] == 7 * found.row_ids).all()
        np.testing.assert_allclose(found.similarities, np.take_along_axis(cosines, order, axis=1), atol=1e-6)


def test_the_index_is_used_unless_told_otherwise(indexed, queries, monkeypatch):
    saved = open_features(str(indexed))
    by_index = nearest(saved, queries, 5)
    monkeypatch.setattr("hf_ssl.features.search._faiss", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        nearest(saved, queries, 5)
    exact = nearest(saved, queries, 5, exact=True)
    assert (exact.row_ids == by_index.row_ids).all()
    np.testing.assert_allclose(exact.similarities, by_index.similarities, atol=1e-6)


def test_datasets_takes_the_index(indexed, queries):
    table = datasets.load_dataset(str(indexed), split="train")
    table.load_faiss_index("embedding", str(indexed / "index" / "train.faiss"))
    _, examples = table.get_nearest_examples("embedding", queries[0] / np.linalg.norm(queries[0]), k=5)
    assert examples["row_id"] == nearest(open_features(str(indexed)), queries[:1], 5).row_ids[0].tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_index_of_cells_learns_them_and_may_find_fewer(tmp_path, queries, dtype):
    folder = write_folder(tmp_path / "new", dtype)
    build_index(folder, "train", "IVF2,Flat")
    found = nearest(open_features(str(folder)), queries, 70)
    missing = found.row_ids < 0
    assert missing.any()
    assert not missing.all(axis=1).any()
    assert (found.labels["number"][~missing] == 7 * found.row_ids[~missing]).all()
    with pytest.raises(ValueError, match=r"faiss cannot make the index `IVF1000,Flat`: .* 82 features to learn from"):
        build_index(folder, "train", "IVF1000,Flat")


def test_an_index_of_other_features_is_refused(tmp_path, queries):
    folder = write_folder(tmp_path / "new")
    build_index(folder, "train")
    saved = open_features(str(folder))
    saved.record["splits"]["train"]["shards"][0] -= 1
    with pytest.raises(ValueError, match="index of split `train` .* is of other features than its shards"):
        nearest(saved, queries, 3)


def test_what_cannot_be_searched_is_named(tmp_path, queries, monkeypatch):
    with pytest.raises(ValueError, match="holds no features: it has no `features.json`"):
        open_features(str(tmp_path))
    with pytest.raises(ValueError, match="There is no folder `./nowhere`"):
        open_features("./nowhere")
    with pytest.raises(ValueError, match="There is no folder `org/none`, and the Hub gave no `features.json`"):
        open_features("org/none")
    folder = write_folder(tmp_path / "new")
    with pytest.raises(ValueError, match="no features of split `test`. It has: train"):
        open_features(str(folder), "test")
    saved = open_features(str(folder))
    with pytest.raises(ValueError, match=r"must have shape \(queries, 8\), got \(4, 7\)"):
        nearest(saved, queries[:, 1:], 3)
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        nearest(saved, queries, 0)
    with pytest.raises(ValueError, match="faiss cannot make the index `Flut`"):
        new_index("Flut", 8)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"faiss, which is not installed: pip install 'hf_ssl\[search\]'"):
        build_index(folder, "train")
    del saved.record["splits"]["train"]["shards"]
    write_record(folder, saved.record)
    with pytest.raises(ValueError, match="features of split `train` in .* are not complete. Run the extraction again"):
        open_features(str(folder))


def test_a_query_has_the_features_of_its_picture():
    class Sum(torch.nn.Module):
        def forward(self, pixels):
            return pixels.sum(dim=(2, 3))

    class Whole:
        def __call__(self, image):
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()

    encoder = type("Encoder", (), {"module": Sum(), "transform": Whole(), "name": "sum"})
    pictures = [np.full((2, 3, 3), 7, np.uint8), np.arange(12, dtype=np.uint8).reshape(2, 2, 3)]
    assert features_of_pictures(encoder, pictures).tolist() == [[42, 42, 42], [18, 22, 26]]
