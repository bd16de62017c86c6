"""Lanes against an order that is computed record by record, and every place from which they can go on."""

import io
import json
import tarfile
from itertools import islice

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_ssl.data.order import lanes as module
from hf_ssl.data.order.chunks import LaneReader
from hf_ssl.data.order.lanes import FOR_SHARDS, FOR_WINDOW, Dealing, Place, placed_examples
from hf_ssl.data.sources import files
from hf_ssl.data.sources.files import INDEX_COLUMN
from hf_ssl.data.sources.open import open_source

SEED, EPOCHS = 3, 2
IMAGES = [None, {"bytes": None, "path": None}, {"bytes": b"", "path": "a"}]
IMAGES += [{"bytes": bytes([number]) * (number % 7 * 50 + 1), "path": None} for number in range(97)]
LABELS = [None if number % 10 == 3 else number % 4 for number in range(100)]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("lanes")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = pa.table({"image": IMAGES, "label": LABELS}, schema=features.arrow_schema)
    (root / "parquet").mkdir()
    for file, group in ((0, 13), (1, 50)):
        pq.write_table(table.slice(50 * file, 50), root / "parquet" / f"train-{file}.parquet", row_group_size=group)
    (root / "folder").mkdir()
    for number in range(100):
        (root / "folder" / f"{number:03}.png").touch()
    (root / "tars").mkdir()
    for shard in range(24):
        with tarfile.open(root / "tars" / f"train-{shard:02}.tar", "w") as archive:
            for number in range(shard * 3, shard * 3 + 3 + shard % 2):
                _add(archive, f"{number:03}.png", b"%d" % number)
    with tarfile.open(root / "one.tar", "w") as archive:
        for number, label in enumerate(LABELS):
            _add(archive, f"{number:03}.png", b"%d" % number)
            _add(archive, f"{number:03}.cls", b"%d" % (label or 0))
    return root


def _add(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _open(places, kind):
    if kind == "object":
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        rows = pa.table({"image": IMAGES, "label": LABELS}, schema=features.arrow_schema)
        return open_source(datasets.Dataset(rows))
    if kind == "stream":
        rows = [{"image": image, "label": label} for image, label in zip(IMAGES[3:], LABELS[3:], strict=True)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        return open_source(datasets.Dataset.from_list(rows, features=features).to_iterable_dataset(num_shards=16))
    return open_source(kind if kind == "digits" else str(places / kind))


def _epoch_in_order(source, dealing, epoch):
    """All records of an epoch before lanes and windows: of rows, the shards in another order, turned round."""
    placed = placed_examples(source.records)
    if placed is None:
        records = source.records
        records.set_epoch(dealing._shard_order(epoch))
        return list(records)
    everything = list(source.records)
    generator = np.random.default_rng([SEED, epoch, FOR_SHARDS])
    order = [placed.places[number] for number in generator.permutation(len(placed.places))]
    rows = [row for *_, start, end in order for row in range(start, end)]
    turn = int(generator.integers(len(rows)))
    return [everything[row] for row in rows[turn:] + rows[:turn]]


def _expected(source, dealing, lane, epoch):
    """Records of a lane in training order: number in the lane's epoch, undecoded image, index and label."""
    records = _epoch_in_order(source, dealing, epoch)
    if placed_examples(source.records) is not None:
        length = len(records) // dealing.lanes
        own = records[lane * length :][: length // dealing.share * dealing.share]
    elif source.records.num_shards % dealing.lanes == 0:
        own = records  # the caller gives the records of the lane's shards
    else:
        own = records[lane :: dealing.lanes]
    size = -(-dealing.window_size // dealing.lanes)
    for window in range(-(-len(own) // size)):
        part = own[window * size :][:size]
        order = np.random.default_rng([SEED, epoch, lane, window, FOR_WINDOW]).permutation(len(part))
        for place, row in enumerate(order):
            image = part[row][source.image_column] or {"bytes": None, "path": None}
            label = part[row].get(dealing.label_column)
            yield window * size + place, image, part[row].get(INDEX_COLUMN), label


def _read(dealing, lane, starts, number):
    """Epoch and record of the next records of a lane, whose places are given back too."""
    windows = dealing.windows(starts)
    reader = LaneReader(lane, windows[lane], dealing.lane_window, starts[lane].offset)
    found = []
    while len(found) < number:
        for part in reader.take(3):
            if part.records is None:
                continue
            columns = [column.to_pylist() for column in part.records.columns]
            for offset, (image, index, label) in enumerate(zip(*columns, strict=True)):
                place = Place(part.place.epoch, part.place.window, part.place.offset + offset, part.place.state)
                image = image or {"bytes": None, "path": None}
                found.append((place, (part.first + offset, image, index, label)))
    return found[:number]


KINDS = ["parquet", "folder", "one.tar", "digits", "object", "stream"]


@pytest.mark.parametrize("table_rows", [4, 128])
@pytest.mark.parametrize(("lanes", "share"), [(1, 1), (4, 3), (5, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_records_and_their_order_are_those_of_rows(places, monkeypatch, kind, lanes, share, table_rows):
    monkeypatch.setattr(module, "_TABLE_ROWS", table_rows)
    monkeypatch.setattr(files, "_PARQUET_BATCH_BYTES", 1000)
    source = _open(places, kind)
    label = next(iter(source.labels), None)
    dealing = Dealing(source, SEED, lanes, share, 24, label)
    if source.records.num_shards % lanes == 0 and placed_examples(source.records) is None and lanes > 1:
        return  # shards of their own: the next test
    for lane in {0, lanes - 1}:
        expected = [list(_expected(source, dealing, lane, epoch)) for epoch in range(EPOCHS)]
        starts = dict.fromkeys(range(lanes), Place())
        found = _read(dealing, lane, starts, sum(map(len, expected)))
        assert [record for _, record in found] == expected[0] + expected[1]
        assert [place.epoch for place, _ in found] == [0] * len(expected[0]) + [1] * len(expected[1])


@pytest.mark.parametrize("lanes", [8, 3])
def test_lanes_of_many_shards_have_shards_of_their_own(places, lanes):
    """24 tars of three and four records each."""
    dealing = Dealing(open_source(str(places / "tars")), SEED, lanes, 1, 16)
    starts = dict.fromkeys(range(lanes), Place())
    tars = []
    for lane in range(lanes):
        found = _read(dealing, lane, starts, 84 // lanes + 8)
        first = [record[1]["bytes"] for place, record in found if place.epoch == 0]
        tars.append({int(data) // 3 for data in first})
    assert set.union(*tars) >= set(range(24))
    assert sum(map(len, tars)) <= 24 + 12  # four records of an odd tar: the last has the number of the next tar


@pytest.mark.parametrize("lanes", [1, 3, 4])
@pytest.mark.parametrize("kind", [*KINDS, "tars"])
def test_reading_goes_on_from_every_place(places, monkeypatch, kind, lanes):
    monkeypatch.setattr(module, "_TABLE_ROWS", 4)
    monkeypatch.setattr(files, "_PARQUET_BATCH_BYTES", 1000)
    dealing = Dealing(_open(places, kind), SEED, lanes, 2, 24)
    lane = lanes - 1
    starts = dict.fromkeys(range(lanes), Place())
    number = 60 if lanes > 1 else 150
    whole = _read(dealing, lane, starts, number)
    for at in range(0, number - 4, 7):
        place = Place(**json.loads(json.dumps(vars(whole[at][0]))))
        # The others may be elsewhere.
        found = _read(dealing, lane, {**starts, lane: place}, 4)
        assert [record for _, record in found] == [record for _, record in whole[at : at + 4]]


def test_a_chunk_keeps_no_window_in_memory(tmp_path):
    images = [{"bytes": bytes(100_000), "path": None}] * 256
    features = datasets.Features({"image": datasets.Image()})
    pq.write_table(pa.table({"image": images}, schema=features.arrow_schema), tmp_path / "a.parquet")
    dealing = Dealing(open_source(str(tmp_path / "a.parquet")), SEED, 1, 1, 256)
    windows = dealing.windows({0: Place()})[0]
    reader = LaneReader(0, windows, 256, 0)
    before = pa.total_allocated_bytes()
    kept = [part for _ in range(4) for part in reader.take(4)]
    windows.close()  # pyright: ignore[reportAttributeAccessIssue]
    del reader, windows
    assert 1.6e6 <= pa.total_allocated_bytes() - before < 3e6
    assert sum(part.size for part in kept) == 16


def test_a_lane_that_runs_ahead_fills_no_memory_and_the_others_miss_nothing(tmp_path):
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        for number in range(64):
            _add(archive, f"{number:02}.png", bytes([number]) * 50_000)
    dealing = Dealing(open_source(str(tmp_path / "one.tar")), SEED, 2, 1, 16)
    starts = dict.fromkeys(range(2), Place())
    expected = [image for _, (_, image, *_) in _read(dealing, 1, starts, 40)]
    windows = dealing.windows(starts)
    ahead, behind = (LaneReader(lane, windows[lane], dealing.lane_window, 0) for lane in (0, 1))

    def images_of(reader, number):
        parts = [part.records for part in reader.take(number) if part.records is not None]
        return [image for records in parts for image in records["image"].to_pylist()]

    found, before = images_of(behind, 3), pa.total_allocated_bytes()
    for _ in range(5 * 4):
        images_of(ahead, 8)
    # An epoch has 3.2 MB, a window 0.8 MB.
    assert pa.total_allocated_bytes() - before < 4e6
    assert found + images_of(behind, 37) == expected


def test_rows_of_a_single_shard_are_left_over_by_turns(tmp_path):
    images = [{"bytes": b"%d" % number, "path": None} for number in range(20)]
    features = datasets.Features({"image": datasets.Image()})
    pq.write_table(pa.table({"image": images}, schema=features.arrow_schema), tmp_path / "a.parquet")
    dealing = Dealing(open_source(str(tmp_path / "a.parquet")), SEED, 8, 2, 256)
    used = []
    for epoch in range(12):
        starts = dict.fromkeys(range(8), Place(epoch))
        used.append({index for lane in range(8) for _, (_, _, index, _) in _read(dealing, lane, starts, 2)})
    assert all(len(rows) == 16 for rows in used)
    assert set.union(*used) == set(range(20))


def test_windows_are_read_as_they_are_needed(places, monkeypatch):
    """The memory is that of one window of each lane, and no lane reads ahead."""
    dealing = Dealing(open_source(str(places / "parquet")), SEED, 4, 1, 16)
    sizes = []
    joined = module._joined

    def counting(tables):
        batch = joined(tables)
        sizes.append(0 if batch is None else batch.num_rows)
        return batch

    monkeypatch.setattr(module, "_joined", counting)
    windows = dealing.windows(dict.fromkeys(range(4), Place()))
    for lane in range(4):
        next(windows[lane])
    assert sizes == [4, 4, 4, 4]
    assert [window.records.num_rows for window in islice(windows[2], 2)] == [4, 4]
    assert sizes == [4] * 6
