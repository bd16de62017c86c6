"""Cached streams against those that read and decode: the same records in the same batches, and nearly their views."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice

import cv2
import datasets
import numpy as np
import pytest
import torch

from hf_ssl.data.order import cache as module
from hf_ssl.data.order.cache import CachedDraws, CachedViews, fill_cache
from hf_ssl.data.order.stream import TrainingStream
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.views.cpu import Crops, Views
from hf_ssl.data.views.device_colour import DeviceColour
from hf_ssl.data.views.draws import NUM_DRAWS
from hf_ssl.data.views.recipes import VIEW_RECIPES

CPU = torch.device("cpu")
NUM, SIZE = 90, 8
KINDS = ["parquet", "parquet_bad", "folder_bad", "tar_bad", "digits"]


def _png(number, shape=(12, 10)):
    """A picture that tells its number by its colours, wherever it is cropped."""
    picture = np.zeros((*shape, 3), np.uint8)
    picture[:, :, 2], picture[:, :, 1], picture[:, :, 0] = number // 16 * 16 + 8, number % 16 * 16 + 8, 100
    return cv2.imencode(".png", picture)[1].tobytes()


def _data(number, bad):
    is_bad = bad and number % 9 == 4
    return {0: b"", 1: b"text", 2: _png(number)[:-30]}[number // 9 % 3] if is_bad else _png(number)


def _write_parquet(folder, pictures, group=15):
    folder.mkdir()
    rows = {
        "image": [{"bytes": data, "path": None} for data in pictures],
        "label": [n % 3 for n in range(len(pictures))],
    }
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.to_parquet(folder / "train.parquet", batch_size=group)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Sources with shards of unequal size, some with bad images, and a stream without numbers."""
    root = tmp_path_factory.mktemp("cache")
    _write_parquet(root / "parquet", [_data(n, False) for n in range(NUM)], group=14)
    _write_parquet(root / "parquet_bad", [_data(n, True) for n in range(NUM)], group=14)
    (root / "folder_bad").mkdir()
    (root / "tar_bad").mkdir()
    for number in range(NUM):
        (root / "folder_bad" / f"{number:03}.png").write_bytes(_data(number, True))
    for shard, (start, end) in enumerate([(0, 20), (20, 60), (60, NUM)]):
        with tarfile.open(root / "tar_bad" / f"train-{shard}.tar", "w") as archive:
            for number in range(start, end):
                member = tarfile.TarInfo(f"{number:03}.png")
                member.size = len(_data(number, True))
                archive.addfile(member, io.BytesIO(_data(number, True)))
    opened = {kind: open_source(kind if kind == "digits" else str(root / kind)) for kind in KINDS}
    opened["tar_bad"] = replace(opened["tar_bad"], num_images=NUM)  # as the Hub tells it
    return opened


@pytest.fixture(scope="module")
def caches(sources):
    return {
        kind: fill_cache(source, CPU, label_column=next(iter(source.labels), None)) for kind, source in sources.items()
    }


def _options(source, options):
    defaults = {"seed": 3, "window_size": 16, "max_skipped_ratio": 0.5, "with_labels": bool(source.labels)}
    return {**defaults, **options}


def _plain(source, recipe="shapes", batch_size=8, **options):
    return TrainingStream(source, Views(recipe, SIZE), batch_size, **_options(source, options))


def _cached(cache, recipe="shapes", batch_size=8, **options):
    views, finish = CachedDraws(VIEW_RECIPES[recipe], cache), CachedViews(VIEW_RECIPES[recipe], SIZE, cache)
    options = {"finish": finish, "pictures": views.pictures, "chunk_size": batch_size, **options}
    return TrainingStream(cache.source, views, batch_size, **_options(cache.source, options))


def _assert_same_records(one, other):
    for name in ("indices", "labels"):
        values = (getattr(one, name), getattr(other, name))
        assert (values[0] is None) == (values[1] is None)
        assert values[0] is None or torch.equal(*values)
    assert one.epoch == other.epoch
    at = [
        [(place["epoch"], place["window"], place["offset"]) for place in of.position["at"].values()]
        for of in (one, other)
    ]
    assert at[0] == at[1]


def _assert_near(views, expected):
    difference = (views.int() - expected.int()).abs()
    assert difference.float().mean() < 1  # 13 with the next picture, 64 with other draws
    assert difference.max() <= 24  # hues that take the step beside


@pytest.mark.parametrize("parts", [(1, 0), (2, 0), (2, 1), (4, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_changes_neither_order_nor_views(sources, caches, kind, parts):
    world_size, rank = parts
    plain = _plain(sources[kind], world_size=world_size, rank=rank)
    cached = _cached(caches[kind], world_size=world_size, rank=rank)
    batches = list(islice(zip(plain, cached, strict=True), 34 if kind != "digits" else 70))
    assert {batch.epoch for batch, _ in batches} >= ({0, 1, 2} if kind != "digits" else {0})
    size = 8 // world_size
    for expected, batch in batches:
        _assert_same_records(batch, expected)
        assert batch.views.shape == (size, 2, SIZE, SIZE, 3)
        _assert_near(batch.views, expected.views)


@pytest.mark.parametrize("kind", ["parquet_bad", "tar_bad"])
def test_a_cache_counts_bad_images_alike(sources, caches, kind):
    for plain, cached in islice(
        zip(_plain(sources[kind], batch_size=5), _cached(caches[kind], batch_size=5), strict=True), 32
    ):
        assert plain.skipped == cached.skipped
    assert Counter(caches[kind].reasons.values()) == {"empty": 4, "not an image": 3, "truncated": 3}
    assert sum(plain.skipped.values()) > 15
    with pytest.raises(ValueError, match=r"\d+ of \d+ images of `.*` cannot be used: \d empty"):
        list(islice(_cached(caches[kind], max_skipped_ratio=0.1), 40))


@pytest.mark.parametrize("kind", ["parquet_bad", "folder_bad", "tar_bad"])
@pytest.mark.parametrize("stop", [1, 5, 12, 20])
def test_a_cached_stream_resumes_anywhere(caches, sources, kind, stop):
    whole = list(islice(_cached(caches[kind]), 30))
    again = fill_cache(sources[kind], CPU, num_workers=2, label_column=next(iter(sources[kind].labels), None))
    resumed = _cached(again, position=json.loads(json.dumps(whole[stop].position)))
    for batch, expected in zip(islice(resumed, 30 - stop - 1), whole[stop + 1 :], strict=True):
        _assert_same_records(batch, expected)
        assert torch.equal(batch.views, expected.views)
        assert batch.skipped == expected.skipped


@pytest.mark.parametrize("kind", ["parquet_bad", "tar_bad"])
def test_colours_on_the_device_leave_the_stream_as_it_is(sources, kind):
    def stream(**options):
        source = sources[kind]
        finish = DeviceColour(VIEW_RECIPES["shapes"], SIZE, CPU)
        return TrainingStream(
            source, Crops(VIEW_RECIPES["shapes"], SIZE), 8, finish=finish, **_options(source, options)
        )

    expected = list(islice(_plain(sources[kind]), 30))
    whole = list(islice(stream(num_workers=2), 30))
    for batch, plain in zip(whole, expected, strict=True):
        _assert_same_records(batch, plain)
        _assert_near(batch.views, plain.views)
    resumed = stream(position=json.loads(json.dumps(whole[10].position)))
    for batch, before in zip(islice(resumed, 19), whole[11:], strict=True):
        assert torch.equal(batch.views, before.views)


def test_many_shards_keep_their_order():
    source = open_source("digits")
    assert source.records.num_shards == 64  # more than a square's side
    cache = fill_cache(source, CPU)
    rows = [row for batch in source.records.iter(500) for row in batch["__index__"]]
    kept = [row for batch in cache.source.records.iter(500) for row in batch["__index__"]]
    assert kept == rows == list(range(source.num_images))
    assert cache.source.records.num_shards == 64


def test_the_progress_bar_counts_images(sources, capsys):
    fill_cache(sources["parquet_bad"], CPU, show_progress=True)
    assert "90/90" in capsys.readouterr().err
    fill_cache(sources["parquet_bad"], CPU)
    assert capsys.readouterr().err == ""


def test_nothing_is_read_back_from_the_device(caches):
    nowhere = torch.device("meta")  # has shapes but no values: to ask for one is an error
    cache = replace(caches["digits"], pictures=caches["digits"].pictures.to(nowhere))
    views = CachedViews(VIEW_RECIPES["byol"], SIZE, cache)
    numbers = np.random.default_rng(0).random((7, 2, NUM_DRAWS))
    assert views(*CachedDraws(VIEW_RECIPES["byol"], cache)(range(7), numbers)).shape == (7, 2, SIZE, SIZE, 3)


def test_images_of_two_sizes_are_refused(tmp_path):
    _write_parquet(tmp_path / "near", [_png(n, (12, 10) if n else (10, 12)) for n in range(9)])
    with pytest.raises(
        ValueError, match="images of one size, .* of 10 x 12 and some of 12 x 10 pixels .* set `cache`"
    ):
        fill_cache(open_source(str(tmp_path / "near")), CPU)
    _write_parquet(tmp_path / "far", [_png(n, (12, 10) if n < 150 else (9, 9)) for n in range(160)])
    with pytest.raises(ValueError, match="some of 12 x 10 and some of 9 x 9 pixels"):
        fill_cache(open_source(str(tmp_path / "far")), CPU)


def test_what_does_not_fit_is_refused(sources, monkeypatch):
    class Memory:
        available = 50_000

    monkeypatch.setattr(module.psutil, "virtual_memory", Memory)
    assert fill_cache(sources["parquet"], CPU)  # 90 x 12 x 10 x 3 = 32,400 bytes
    with pytest.raises(
        ValueError, match="`cache` uint8 must fit into 80% .* 90 images of 12 x 10 pixels take .* `cache`"
    ):
        fill_cache(sources["parquet"], CPU, world_size=2)


def test_other_data_that_no_cache_can_hold(sources, tmp_path):
    with pytest.raises(
        ValueError, match="`cache` uint8 must know the number of images, which `.*` does not say. Give"
    ):
        fill_cache(replace(sources["tar_bad"], num_images=None), CPU)
    with pytest.raises(ValueError, match="says that it has 80 and has more. Set `cache` to none"):
        fill_cache(replace(sources["tar_bad"], num_images=80), CPU)
    _write_parquet(tmp_path / "bad", [b"text", b"", b"text"])
    with pytest.raises(ValueError, match="holds no usable image: empty, not an image"):
        fill_cache(open_source(str(tmp_path / "bad")), CPU)


@pytest.mark.parametrize("recipe", ["randaugment", "autoaugment"])
def test_policies_are_refused(caches, recipe):
    with pytest.raises(
        ValueError, match="RandAugment and AutoAugment work on single pictures .* another `view_recipe`"
    ):
        CachedDraws(VIEW_RECIPES[recipe], caches["digits"])
