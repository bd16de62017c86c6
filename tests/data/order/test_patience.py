"""Reading goes on as it was when a file or a connection fails for a while, and stops with a name when it stays so."""

import io
import os
import random
import time
from functools import partial

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.iterable_dataset import ArrowExamplesIterable, ExamplesIterable
from PIL import Image

from hf_ssl.data.decode.access import Access
from hf_ssl.data.decode.unavailable import DataUnavailableError
from hf_ssl.data.order.ordered import evaluation_batches
from hf_ssl.data.order.patience import patient_tables
from hf_ssl.data.order.rows import RowReader
from hf_ssl.data.order.stream import TrainingStream
from hf_ssl.data.sources.open import Source, open_source
from hf_ssl.data.views.cpu import Views

ROWS, SHARDS = 40, 3


def png(number):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(file, "PNG")
    return file.getvalue()


def table_of(numbers):
    images = [{"bytes": png(number), "path": None} for number in numbers]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return pa.table({"image": images, "label": list(numbers)}, schema=features.arrow_schema)


def tables(failures, shards):
    for shard in shards:
        for start in range(0, ROWS, 16):
            numbers = range(shard * ROWS + start, shard * ROWS + min(start + 16, ROWS))
            error = failures.pop((shard, start), [])
            if error:
                failures[shard, start] = error[1:]
                raise error[0]
            yield (shard, start), table_of(numbers)


def examples(failures, shards):
    for key, table in tables(failures, shards):
        for row in table.to_pylist():
            yield f"{key}-{row['label']}", row


def source_of(kind, failures, timeout=3600.0):
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    read = ArrowExamplesIterable if kind == "tables" else ExamplesIterable
    iterable = read(partial(tables if kind == "tables" else examples, failures), {"shards": list(range(SHARDS))})
    records = datasets.IterableDataset(iterable, info=datasets.DatasetInfo(features=features))
    access = Access(timeout=timeout)
    return Source("some data", "train", records, "image", {"label": []}, SHARDS * ROWS, "0" * 32, access=access)


def labels_of(tables):
    return [label for table, _ in tables for label in table["label"].to_pylist()]


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr("hf_ssl.data.decode.unavailable._FIRST_PAUSE", 0.001)
    monkeypatch.setattr("hf_ssl.data.decode.unavailable._LONGEST_PAUSE", 0.002)


@pytest.mark.parametrize("kind", ["tables", "examples"])
@pytest.mark.parametrize("rows", [1, 7, 16, 64])
def test_every_record_comes_once_and_in_order_whatever_fails_on_the_way(kind, rows, no_pauses):
    errors = [OSError("lost"), pa.ArrowInvalid("odd"), TimeoutError(), EOFError(), ConnectionResetError("reset")]
    chance = random.Random(rows)
    places = [(shard, start) for shard in range(SHARDS) for start in range(0, ROWS, 16)]
    failures = {place: chance.choices(errors, k=chance.randint(1, 3)) for place in places if chance.random() < 0.7}
    assert failures
    source = source_of(kind, failures)
    assert labels_of(patient_tables(source, source.records, rows)) == list(range(SHARDS * ROWS))


@pytest.mark.parametrize("kind", ["tables", "examples"])
def test_reading_begins_after_any_table(kind):
    source = source_of(kind, {})
    read = list(patient_tables(source, source.records, 7))
    done = 0
    for table, state in read:
        done += len(table)
        rest = labels_of(patient_tables(source, source.records, 7, state))
        assert rest == list(range(done, SHARDS * ROWS))


@pytest.mark.parametrize("kind", ["tables", "examples"])
def test_the_order_of_the_shards_is_that_of_the_epoch(kind):
    source = source_of(kind, {})
    orders = set()
    for epoch in range(1, 6):
        source.records.set_epoch(epoch)
        labels = labels_of(patient_tables(source, source.records, 16))
        assert labels == [row["label"] for row in source.records]
        orders.add(tuple(labels))
    assert len(orders) > 1


def test_what_stays_broken_stops_with_name_reason_and_setting(no_pauses, caplog):
    source = source_of("tables", {(1, 0): [OSError("`b.parquet` is cut")] * 10**6}, timeout=0.05)
    read, started = patient_tables(source, source.records, 16), time.monotonic()
    labels = []
    with pytest.raises(
        DataUnavailableError, match=r"`some data` could not be read within `data_timeout`, 0.05 sec.*cut"
    ):
        labels += [labels for table, _ in read for labels in table["label"].to_pylist()]
    assert time.monotonic() - started >= 0.05
    assert "Trying again for up to 0.05 seconds" in caplog.text


def test_a_timeout_of_zero_tries_once(no_pauses):
    failures = {(0, 16): [OSError("lost")]}
    source = source_of("tables", failures, timeout=0.0)
    with pytest.raises(DataUnavailableError, match="at the first attempt: OSError: lost"):
        list(patient_tables(source, source.records, 16))


def test_a_fault_of_the_program_is_not_tried_again():
    failures = {(0, 16): [ZeroDivisionError("bug")]}
    source = source_of("tables", failures)
    with pytest.raises(ZeroDivisionError):
        list(patient_tables(source, source.records, 16))


def test_the_retries_of_datasets_are_its_own_again():
    source = source_of("tables", {})
    for _ in patient_tables(source, source.records, 16):
        assert datasets.config.STREAMING_READ_MAX_RETRIES > 1
        assert datasets.config.STREAMING_READ_RETRY_INTERVAL > 0


# Files on this machine


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(table_of(range(200)), path, row_group_size=50)
    return path


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def replace(path):
    pq.write_table(table_of(range(1000, 1200)), path, row_group_size=50)


def garbage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [truncate, replace, os.remove, garbage])
@pytest.mark.parametrize("reader", ["tables", "rows", "evaluation"])
def test_a_parquet_file_that_changes_under_the_reader_stops_it_by_name(parquet, harm, reader):
    source = open_source(str(parquet), data_timeout=0.0)
    if reader == "tables":
        reading = (table["label"].to_pylist() for table, _ in patient_tables(source, source.records, 10))
    elif reader == "rows":
        rows = RowReader(source)
        reading = (rows.read(first, first + 10)["label"].to_pylist() for first in range(0, 200, 10))
    else:
        batches = evaluation_batches(source, lambda image: torch_of(image), 10)
        reading = (batch.labels["label"].tolist() for batch in batches)
    labels = list(next(reading))
    harm(parquet)
    with pytest.raises(DataUnavailableError, match=r"train\.parquet"):
        for part in reading:
            labels += part
    assert labels == list(range(len(labels)))


def torch_of(image):
    import torch

    return torch.zeros(3, *image.shape[:2])


def test_a_parquet_file_that_comes_back_is_read_on(parquet, no_pauses, monkeypatch):
    source = open_source(str(parquet), data_timeout=3600.0)
    reading = patient_tables(source, source.records, 10)
    labels = next(reading)[0]["label"].to_pylist()
    away = parquet.with_suffix(".away")
    parquet.rename(away)
    waits = iter([None, None, lambda: away.rename(parquet)])
    monkeypatch.setattr("time.sleep", lambda _: (next(waits, None) or (lambda: None))())
    assert labels + labels_of(reading) == list(range(200))


def test_a_file_that_is_only_touched_is_read_on(parquet):
    source = open_source(str(parquet), data_timeout=0.0)
    reading = patient_tables(source, source.records, 10)
    labels = next(reading)[0]["label"].to_pylist()
    os.utime(parquet, ns=(1, 1))
    assert labels + labels_of(reading) == list(range(200))


# The Hub


@pytest.fixture
def on_hub(online, no_pauses, monkeypatch):
    """A data set of two parquet files on the Hub of this machine; returns the Hub's state."""
    import fsspec
    import huggingface_hub
    import huggingface_hub.utils._http
    from hub_server import Repo

    monkeypatch.setattr("datasets.config.HF_ENDPOINT", huggingface_hub.constants.ENDPOINT)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda _: None)
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    repo = online.repos["datasets/org/photos"] = Repo()
    files = {}
    for number in range(2):
        file = io.BytesIO()
        pq.write_table(table_of(range(100 * number, 100 * number + 100)), file, row_group_size=25)
        files[f"data/train-{number:05}-of-00002.parquet"] = file.getvalue()
    repo.add("main", files)
    yield online
    fsspec.get_filesystem_class("hf").clear_instance_cache()


@pytest.mark.parametrize("fault", ["drop", "lost", "truncated", "403", "404", "429", "500", "503"])
def test_faults_of_the_hub_lose_no_record(on_hub, fault):
    source = open_source("org/photos", data_timeout=3600.0)
    assert source.access.remote
    reading = patient_tables(source, source.records, 10)
    labels = next(reading)[0]["label"].to_pylist()
    on_hub.faults = [("GET", "00001-of", fault)] * 8
    assert labels + labels_of(reading) == list(range(200))
    assert len(on_hub.faults) < 8


@pytest.mark.parametrize("fault", ["drop", "403", "404", "429", "500"])
def test_a_hub_that_stays_away_stops_in_time_with_the_address(on_hub, fault):
    source = open_source("org/photos", data_timeout=0.3)
    reading = patient_tables(source, source.records, 10)
    labels = next(reading)[0]["label"].to_pylist()
    on_hub.faults = [("GET", "00001-of", fault)] * 10**5
    with pytest.raises(
        DataUnavailableError, match=r"`org/photos` could not.*within `data_timeout`, 0.3 s.*data/train-00001-of-00002"
    ):
        for table, _ in reading:
            labels += table["label"].to_pylist()
    assert labels == list(range(len(labels)))
    assert on_hub.faults


def test_a_silent_connection_stops_in_time(on_hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    source = open_source("org/photos", data_timeout=0.5)
    reading = patient_tables(source, source.records, 10)
    next(reading)
    on_hub.delay = 2.0
    on_hub.faults = [("GET", "00001-of", "slow")] * 100
    with pytest.raises(DataUnavailableError, match=r"timed out.*train-00001-of-00002"):
        list(reading)
    assert on_hub.faults


def test_training_sees_the_same_images_whatever_fails(on_hub):
    def batches(faults, number, position=None):
        source = open_source("org/photos", data_timeout=3600.0)
        stream = iter(TrainingStream(source, Views("shapes", 8), 8, seed=1, window_size=20, position=position))
        on_hub.faults = faults
        return [next(stream) for _ in range(number)]

    whole = batches([], 50)
    kinds = ["drop", "500", "truncated", "403", "lost", "404"] * 4
    disturbed = batches([("GET", f"0000{number % 2}-of", kind) for number, kind in enumerate(kinds)], 40)
    assert len(on_hub.faults) < len(kinds) - 4
    disturbed += batches([], 10, disturbed[-1].position)
    for one, other in zip(whole, disturbed, strict=True):
        assert one.views.equal(other.views)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_stops_with_the_name_of_what_is_gone(parquet, workers):
    source = open_source(str(parquet), data_timeout=0.0)
    views = Views("shapes", 8)
    stream = iter(TrainingStream(source, views, 8, seed=1, window_size=20, num_workers=workers))
    next(stream)
    os.remove(parquet)
    with pytest.raises(DataUnavailableError, match=r"^`.*train\.parquet` could not be read at the first attempt"):
        for _ in stream:
            pass
