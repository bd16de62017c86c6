"""The reader's batches of Arrow memory hold what `datasets` gives row by row, in an order that never changes."""

import io
import json
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.distributed import split_dataset_by_node

from hf_ssl.data.order import reader
from hf_ssl.data.order.reader import FOR_WINDOW, Reader
from hf_ssl.data.sources import files as local
from hf_ssl.data.sources import open as sources
from hf_ssl.data.sources.files import INDEX_COLUMN
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.sources.remote import open_hub

WINDOW, CHUNK, SEED, EPOCHS = 12, 5, 3, 2
IMAGES = [None, {"bytes": None, "path": None}, {"bytes": b"", "path": "a"}]
IMAGES += [{"bytes": bytes([number]) * (number % 7 * 50 + 1), "path": None} for number in range(97)]
LABELS = [None if number % 10 == 3 else number % 4 for number in range(100)]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("reader")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = pa.table({"image": IMAGES, "label": LABELS}, schema=features.arrow_schema)
    (root / "parquet").mkdir()
    for file, group in ((0, 13), (1, 50)):
        pq.write_table(table.slice(50 * file, 50), root / "parquet" / f"train-{file}.parquet", row_group_size=group)
    (root / "folder").mkdir()
    for number in range(100):
        (root / "folder" / f"{number:03}.png").touch()
    with tarfile.open(root / "train.tar", "w") as archive:
        for number, label in enumerate(LABELS):
            for suffix, data in (("png", b"%d" % number), ("cls", b"%d" % (label or 0))):
                member = tarfile.TarInfo(f"{number:03}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return root


def _open(places, kind, monkeypatch):
    if kind == "streamed parquet":
        # As a data set on the Hub is opened.
        monkeypatch.setattr(sources, "open_local", lambda name, path, split, choice: open_hub(name, split, choice))
        return open_source(str(places / "parquet"))
    return open_source(kind if kind == "digits" else str(places / kind))


def _row_by_row(source, rank, world_size, label):
    """Windows of rows as `datasets` gives them: epoch, place in the order, image, index and label of each record."""
    for epoch in range(EPOCHS):
        order = Reader(source, SEED, rank, world_size, WINDOW, CHUNK)._shard_order(epoch)
        enough = source.records.num_shards >= 8 * world_size
        records = split_dataset_by_node(source.records, rank, world_size, "shards" if enough else "auto")
        records.set_epoch(order)
        for window, rows in enumerate(records.iter(WINDOW)):
            images = rows[source.image_column]
            missing = [None] * len(images)
            numbers, labels = rows.get(INDEX_COLUMN) or missing, rows[label] if label else missing
            shuffled = np.random.default_rng([SEED, epoch, rank, window, FOR_WINDOW]).permutation(len(images))
            for place, row in enumerate(shuffled):
                image = images[row] or {"bytes": None, "path": None}
                yield epoch, window * WINDOW + place, image, numbers[row], labels[row]


def _rows(chunk):
    images, indices, labels = (column.to_pylist() for column in chunk.records.columns)
    places = range(chunk.place, chunk.place + chunk.size)
    return list(zip([chunk.start["epoch"]] * chunk.size, places, images, indices, labels, strict=True))


def _chunks(read, state):
    for chunk in read.chunks(state):
        if chunk.start["epoch"] == EPOCHS:
            return
        yield chunk


KINDS = ["parquet", "streamed parquet", "folder", "train.tar", "digits"]


@pytest.mark.parametrize("table_rows", [4, 128])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_records_and_their_order_are_those_of_rows(places, monkeypatch, kind, world_size, table_rows):
    monkeypatch.setattr(reader, "_TABLE_ROWS", table_rows)
    monkeypatch.setattr(local, "_PARQUET_BATCH_BYTES", 1000)
    source = _open(places, kind, monkeypatch)
    label = next(iter(source.labels), None)
    for rank in range(world_size):
        read = Reader(source, SEED, rank, world_size, WINDOW, CHUNK, label)
        chunks = list(_chunks(read, read.beginning()))
        rows = [row for chunk in chunks if chunk.size for row in _rows(chunk)]
        assert rows == list(_row_by_row(source, rank, world_size, label))
        assert [chunk.size for chunk in chunks].count(0) == EPOCHS
        assert all(chunk.size <= CHUNK for chunk in chunks)


@pytest.mark.parametrize("kind", KINDS[:-1])
@pytest.mark.parametrize("world_size", [1, 3])
def test_reading_goes_on_from_every_state(places, monkeypatch, kind, world_size):
    monkeypatch.setattr(reader, "_TABLE_ROWS", 4)
    monkeypatch.setattr(local, "_PARQUET_BATCH_BYTES", 1000)
    source = _open(places, kind, monkeypatch)
    read = Reader(source, SEED, 0, world_size, WINDOW, CHUNK)
    chunks = list(_chunks(read, read.beginning()))
    for here, following in zip(chunks, chunks[1:], strict=False):
        if here.size and following.size:
            for state in (here.end, following.start):
                resumed = next(read.chunks(json.loads(json.dumps(state))))
                assert _rows(resumed) == _rows(following)


def test_chunks_stay_as_they_are_while_reading_goes_on(places):
    read = Reader(open_source(str(places / "parquet")), SEED, 0, 1, WINDOW, CHUNK)
    chunks = list(_chunks(read, read.beginning()))
    assert [_rows(chunk) for chunk in chunks if chunk.size] == [
        _rows(chunk) for chunk in _chunks(read, read.beginning()) if chunk.size
    ]


def test_a_chunk_keeps_no_window_in_memory(tmp_path):
    images = [{"bytes": bytes(100_000), "path": None}] * 256
    features = datasets.Features({"image": datasets.Image()})
    pq.write_table(pa.table({"image": images}, schema=features.arrow_schema), tmp_path / "a.parquet")
    read = Reader(open_source(str(tmp_path / "a.parquet")), SEED, 0, 1, 256, 4)
    chunks = read.chunks(read.beginning())
    before = pa.total_allocated_bytes()
    kept = [next(chunks) for _ in range(4)]
    chunks.close()
    assert 1.6e6 <= pa.total_allocated_bytes() - before < 3e6
    assert sum(chunk.size for chunk in kept) == 16


def test_a_large_image_at_the_start_reserves_no_more_than_a_gib():
    rows = [{"bytes": bytes(20_000_000), "path": None}, *[{"bytes": b"small", "path": None}] * 3]
    column = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    numbers = pa.array(range(4), pa.int64())
    table = pa.table([column, numbers, numbers], names=["image", "index", "label"])
    window = reader._Window(2048)
    filled = window.fill(iter([table.slice(0, 1), table.slice(1)]))
    assert filled is not None and filled["image"].to_pylist() == rows
    assert len(window._memory) == 2**30  # 51 GB by the size of the first
