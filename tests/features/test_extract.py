"""Features as shards: lossless, complete or absent, and the same whoever writes them and however often it begins."""

import dataclasses
import json
from collections import Counter
from itertools import islice

import datasets
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import encoder_of
from hf_ssl.evaluation.features import Features, RowFeatures, extract_features
from hf_ssl.features import extract, folder
from hf_ssl.features.extract import extract_shards, own_shards, rows_to_cover
from hf_ssl.features.folder import (
    ExtractionSettings,
    begin_split,
    columns_of,
    describe,
    finish_split,
    is_complete,
    read_record,
    shard_path,
    write_shard,
)

BAD = {4: b"text", 9: b"", 10: b"", 11: b""}
NUMBER = 23
SETTINGS = ExtractionSettings(rows_per_shard=3)
DATASET = {"dataset": "pictures"}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return encoder_of(timm.create_model("test_resnet", num_classes=0), 32, (0.5,) * 3, (0.2,) * 3)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(NUMBER):
        path = folder / ("cat", "dog")[number >= 12] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.linear_gradient("L").rotate(16 * number).resize((40, 30)).save(path)
        if number in BAD:
            path.write_bytes(BAD[number])
    return open_source(str(folder))


def as_stream(source):
    """The same images without numbers and without known length, as a stream from elsewhere."""
    records = source.records.select_columns([source.image_column, *source.labels])
    return dataclasses.replace(source, records=records, num_images=None)


def begin(folder, encoder, source, settings=SETTINGS, seed=0, **options):
    about = describe(encoder, source, settings, seed=seed, dataset=DATASET)
    return begin_split(folder, about, source, **options)


def run(folder, encoder, source, settings=SETTINGS, processes=1, monkeypatch=None):
    """What `processes` processes do, one after the other."""
    complete = begin(folder, encoder, source, settings)
    for rank in range(processes):
        if monkeypatch is not None:
            monkeypatch.setattr(extract, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(extract, "world_size", lambda: processes)
        extract_shards(folder, encoder, source, settings, complete, batch_size=2)
    return finish_split(folder, source.split, rows_to_cover(source, settings.max_images))


def content_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(encoder, source, tmp_path_factory):
    """Folder of an uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("whole")
    folder.rmdir()
    run(folder, encoder, source)
    return folder


def test_datasets_reads_the_features_of_every_usable_image(whole, encoder, source):
    table = datasets.load_dataset(str(whole), split="train")
    expected = extract_features(encoder, source, batch_size=2)
    assert table.column_names == ["row_id", "path", "label", "embedding"]
    assert table.features["label"] == datasets.ClassLabel(names=["cat", "dog"])
    assert table.features["embedding"] == datasets.List(datasets.Value("float32"), length=encoder.dim)
    assert table["row_id"][:] == expected.row_ids.tolist() == [row for row in range(NUMBER) if row not in BAD]
    assert table["path"][:] == [
        f"{('cat', 'dog')[row >= 12]}/{row:02d}.png" for row in range(NUMBER) if row not in BAD
    ]
    assert table["label"][:] == expected.labels["label"].tolist()
    torch.testing.assert_close(torch.tensor(table["embedding"][:]), expected.features, atol=1e-6, rtol=0)
    about = read_record(whole)["splits"]["train"]
    assert about["num_rows"] == NUMBER
    assert about["shards"] == [3, 2, 3, 0, 3, 3, 3, 2]  # the fourth shard covers bad images alone
    assert about["skipped"] == {"empty": 3, "not an image": 1}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("processes", [1, 2, 3, 20])
def test_the_number_of_processes_changes_nothing(whole, encoder, source, tmp_path, monkeypatch, processes, stream):
    run(tmp_path, encoder, as_stream(source) if stream else source, processes=processes, monkeypatch=monkeypatch)
    assert content_of(tmp_path) == content_of(whole)


@pytest.mark.parametrize("stream", [False, True])
def test_a_run_that_stops_anywhere_goes_on_to_the_same_end(whole, encoder, source, tmp_path, monkeypatch, stream):
    source = as_stream(source) if stream else source
    write = folder.write_shard
    written = []

    def failing(path, *arguments):
        if len(written) == 2:
            (path.parent / f".{path.name}.1234.part").write_bytes(b"half")  # what a killed process leaves
            written.clear()
            raise RuntimeError("killed")
        written.append(path.name)
        write(path, *arguments)

    monkeypatch.setattr(extract, "write_shard", failing)
    processes = iter([2, 1, 3, 1, 1, 1, 1, 1])
    for number in processes:  # with another number of processes each time
        try:
            run(tmp_path, encoder, source, processes=number, monkeypatch=monkeypatch)
            break
        except RuntimeError as error:
            assert str(error) == "killed"
            assert not is_complete(read_record(tmp_path), "train")
    assert next(processes) == 1
    assert content_of(tmp_path) == content_of(whole)


def test_processes_share_what_is_missing(source):
    complete = {1, 4}
    for processes in (1, 2, 3, 9):
        parts = [list(own_shards(source, SETTINGS, complete, rank, processes)) for rank in range(processes)]
        assert sorted(sum(parts, [])) == [0, 2, 3, 5, 6, 7]
        assert all(part == sorted(part) for part in parts)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    stream = as_stream(source)
    shares = [list(islice(own_shards(stream, SETTINGS, complete, rank, 2), 4)) for rank in range(2)]
    assert shares == [[0, 3, 6, 8], [2, 5, 7, 9]]
    bounded = dataclasses.replace(SETTINGS, max_images=8)
    assert [list(own_shards(stream, bounded, complete, rank, 2)) for rank in range(2)] == [[0], [2]]


@pytest.mark.parametrize("stream", [False, True])
def test_only_the_first_images_are_read(encoder, source, tmp_path, stream):
    source = as_stream(source) if stream else source
    record = run(tmp_path, encoder, source, dataclasses.replace(SETTINGS, max_images=8))
    assert record["splits"]["train"]["shards"] == [3, 2, 2]
    assert record["splits"]["train"]["num_rows"] == 8


def test_another_split_of_the_same_data_set_joins_the_folder(encoder, source, tmp_path):
    run(tmp_path, encoder, source)
    other = dataclasses.replace(source, split="test", fingerprint="other")
    record = run(tmp_path, encoder, other)
    assert list(record["splits"]) == ["train", "test"]
    assert len(datasets.load_dataset(str(tmp_path), split="test")) == NUMBER - len(BAD)


def test_folders_of_something_else_are_refused_and_stay(whole, encoder, source, tmp_path):
    before = content_of(whole)

    def refused(message, encoder=encoder, source=source, settings=SETTINGS):
        with pytest.raises(ValueError, match=message):
            begin(whole, encoder, source, settings)
        assert content_of(whole) == before

    torch.manual_seed(1)
    fresh = encoder_of(timm.create_model("test_resnet", num_classes=0), 32, (0.5,) * 3, (0.2,) * 3)
    refused("holds features that `encoder` computed with other weights or another preprocessing", encoder=fresh)
    cropped = dataclasses.replace(encoder, transform=encoder.transform.of_crops())
    refused("computed with other weights or another preprocessing", encoder=cropped)
    refused("of the encoder `encoder`, not of `b`", encoder=dataclasses.replace(fresh, name="b"))
    refused("of the data set `pictures`, not of `/", source=dataclasses.replace(source, fingerprint="x"))
    changed = dataclasses.replace(source, fingerprint="x", name="pictures")
    refused("of split `train` of `pictures` as it was", source=changed)
    refused("with other labels than", source=dataclasses.replace(source, labels={"label": ["cat", "cow"]}))
    refused(
        "with `dtype` float32, not float16. Choose another `output`, or add `--overwrite`",
        settings=dataclasses.replace(SETTINGS, dtype="float16"),
    )
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no features"):
        begin(tmp_path, encoder, source, overwrite=True)
    with pytest.raises(ValueError, match="cannot be written: it is a file"):
        begin(tmp_path / "thesis.tex", encoder, source)


def test_overwriting_removes_the_features_and_nothing_else(encoder, source, tmp_path):
    run(tmp_path, encoder, source)
    (tmp_path / "notes.txt").write_text("mine")
    half = dataclasses.replace(SETTINGS, dtype="float16")
    assert begin(tmp_path, encoder, source, half, overwrite=True) == set()
    assert read_record(tmp_path)["settings"]["dtype"] == "float16"
    assert set(content_of(tmp_path)) == {"features.json", "notes.txt"}


def test_a_shard_that_another_machine_kept_to_itself_is_named(encoder, source, tmp_path):
    run(tmp_path, encoder, source)
    shard_path(tmp_path, "train", 2).unlink()
    with pytest.raises(UserError, match="train-00002.parquet` is missing. All processes must write to one folder"):
        finish_split(tmp_path, "train", NUMBER)
    shard_path(tmp_path, "train", 7).unlink()
    with pytest.raises(UserError, match="train-00002.parquet` is missing"):
        finish_split(tmp_path, "train", None)


def test_a_data_set_without_usable_images_is_named(encoder, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.png").write_bytes(b"")
    source = open_source(str(tmp_path / "in"))
    with pytest.raises(ValueError, match=r"Split `train` of `pictures` has no usable image \(empty: 1\)"):
        run(tmp_path / "out", encoder, source)


def rows(sizes=(3, 3, 2), dim=4):
    start = 10
    for size in sizes:
        ids = torch.arange(start, start + size)
        labels = {"kind": ids % 2, "number": 7 * ids}
        yield RowFeatures(start, size, Counter(), Features(torch.randn(size, dim), labels, ids))
        start += size


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_shard_is_lossless(tmp_path, dtype):
    path = tmp_path / "train-00000.parquet"
    parts = list(rows())
    write_shard(path, parts, columns_of({"kind": ["cat", "dog"], "number": []}, 4, dtype))
    table = datasets.load_dataset("parquet", data_files=str(path), split="train")
    assert table.features["number"] == datasets.Value("int64")
    assert table.features["embedding"] == datasets.List(datasets.Value(dtype), length=4)
    expected = torch.cat([part.features.features for part in parts]).to(getattr(torch, dtype))
    assert torch.equal(torch.tensor(table["embedding"][:], dtype=expected.dtype), expected)
    assert table["row_id"][:] == list(range(10, 18))
    assert json.loads(pq.read_metadata(path).metadata[b"hf_ssl"]) == {"first": 10, "num_rows": 8, "skipped": {}}


def test_a_failure_leaves_no_shard(tmp_path, monkeypatch):
    path = tmp_path / "train-00000.parquet"
    large = RowFeatures(0, 1, Counter(), Features(torch.full((1, 4), 1e5), {}, torch.tensor([0])))
    with pytest.raises(ValueError, match="A feature of 100000 is too large for `float16`"):
        write_shard(path, [large], columns_of({}, 4, "float16"))
    monkeypatch.setattr(folder.os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_shard(path, rows(), columns_of({"kind": [], "number": []}, 4, "float32"))
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="`dtype` must be float32 or float16, got `int8`"):
        ExtractionSettings(dtype="int8")
    with pytest.raises(ValueError, match="`rows_per_shard` must be at least 1, got 0"):
        ExtractionSettings(rows_per_shard=0)
    with pytest.raises(ValueError, match="The label column `row_id` has the name"):
        columns_of({"row_id": []}, 4, "float32")
