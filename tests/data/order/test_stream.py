import io
import json
import tarfile
from collections import Counter
from itertools import islice

import cv2
import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ssl.data.order.stream import TrainingStream
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.views.cpu import Views

BATCH, WINDOW = 7, 16


def _png(number):
    """A picture that tells its number, whatever part of it is cropped: red and green are its digits."""
    picture = np.zeros((6, 6, 3), np.uint8)
    picture[:, :, 2], picture[:, :, 1] = number // 16 * 16 + 8, number % 16 * 16 + 8
    return cv2.imencode(".png", picture)[1].tobytes()


def _is_bad(number):
    return number % 9 == 4


def _data(number, bad):
    return {0: b"", 1: b"text", 2: _png(number)[:-30]}[number // 9 % 3] if bad and _is_bad(number) else _png(number)


def _rows(numbers, bad=False):
    rows = {"image": [{"bytes": _data(n, bad), "path": None} for n in numbers], "label": [n % 3 for n in numbers]}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def _object(kind):
    """The 90 pictures as an object of `datasets`: rows put in order by `select`, or a stream of six shards."""
    if kind == "stream":
        return _rows(range(90)).to_iterable_dataset(num_shards=6)
    return _rows(range(89, -1, -1), bad=kind == "object_bad").select(range(89, -1, -1))


def _write_parquet(folder, count, files, group, bad=False):
    folder.mkdir()
    for file in range(files):
        numbers = range(count * file // files, count * (file + 1) // files)
        _rows(numbers, bad).to_parquet(folder / f"train-{file}.parquet", batch_size=group)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same 90 pictures from every kind of source, one in nine of them bad in those named `*_bad`."""
    root = tmp_path_factory.mktemp("stream")
    _write_parquet(root / "parquet", 90, files=2, group=15)
    _write_parquet(root / "parquet_bad", 90, files=2, group=15, bad=True)
    for name in ("folder", "folder_bad"):
        (root / name).mkdir()
        for number in range(90):
            (root / name / f"{number:03}.png").write_bytes(_data(number, name == "folder_bad"))
    for name in ("tar", "tar_bad"):
        (root / name).mkdir()
        for shard in range(3):
            with tarfile.open(root / name / f"train-{shard}.tar", "w") as archive:
                for number in range(shard * 30, shard * 30 + 30):
                    member = tarfile.TarInfo(f"{number:03}.png")
                    data = _data(number, name == "tar_bad")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return root


_opened = {}


def _stream(places, kind="parquet", *, views=None, batch_size=BATCH, seed=3, num_workers=0, **options):
    if kind not in _opened:
        found = _object(kind) if kind in OBJECTS else kind if kind == "digits" else str(places / kind)
        _opened[kind] = open_source(found)
    options = {"window_size": WINDOW, "max_skipped_ratio": 0.5, **options}
    views = views or Views("shapes", 8)
    return TrainingStream(_opened[kind], views, batch_size, seed=seed, num_workers=num_workers, **options)


class _Numbers:
    """In place of views: the number that each picture shows, and the first of its random ones."""

    def __call__(self, pictures, numbers):
        shown = [int(picture[3, 3, 0]) // 16 * 16 + int(picture[3, 3, 1]) // 16 for picture in pictures]
        return (torch.tensor(np.stack([shown, numbers[:, 0, 0]], axis=1)),)


def _numbers(stream, count):
    return [batch.views[:, 0].int().tolist() for batch in islice(stream, count)]


def _assert_same(batch, expected):
    assert torch.equal(batch.views, expected.views)
    assert (batch.indices is None) == (expected.indices is None)
    if batch.indices is not None:
        assert torch.equal(batch.indices, expected.indices)
    assert (batch.epoch, batch.skipped) == (expected.epoch, expected.skipped)
    assert _without_state(batch.position) == _without_state(expected.position)


def _without_state(position):
    """`datasets` may describe the same place in several ways, by the table from which it counts."""
    return {**position, "reader": {**position["reader"], "state": position["reader"]["state"] is None}}


OBJECTS = ["object", "object_bad", "stream"]
KINDS = ["parquet", "parquet_bad", "folder", "folder_bad", "tar", "tar_bad", *OBJECTS]
NUM_BATCHES = 34  # three epochs of 90 (or 80 good) pictures and some


@pytest.fixture(scope="module")
def uninterrupted(places):
    made = {}

    def get(kind, world_size=1, rank=0):
        if (kind, world_size, rank) not in made:
            stream = _stream(places, kind, world_size=world_size, rank=rank)
            made[kind, world_size, rank] = list(islice(stream, NUM_BATCHES))
        return made[kind, world_size, rank]

    return get


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    stops=st.lists(st.integers(1, 11), min_size=1, max_size=3),
    parts=st.sampled_from([(1, 0), (2, 0), (2, 1), (4, 3)]),
)
def test_resuming_anywhere_and_again_changes_nothing(places, uninterrupted, kind, stops, parts):
    world_size, rank = parts
    expected = iter(uninterrupted(kind, *parts))
    position = None
    for stop in stops:
        stream = _stream(places, kind, position=position, world_size=world_size, rank=rank)
        for batch, whole in zip(islice(stream, stop), expected, strict=False):
            _assert_same(batch, whole)
        position = json.loads(json.dumps(batch.position))
    stream = _stream(places, kind, position=position, world_size=world_size, rank=rank)
    _assert_same(next(iter(stream)), next(expected))


@pytest.mark.parametrize("kind", ["parquet_bad", "folder_bad", "object_bad"])
def test_resuming_with_another_number_of_workers_changes_nothing(places, uninterrupted, kind):
    expected = uninterrupted(kind)
    for num_workers, stop in ((2, 16), (1, 3)):
        position = json.loads(json.dumps(expected[stop].position))
        resumed = _stream(places, kind, num_workers=num_workers, position=position)
        for batch, whole in zip(resumed, expected[stop + 1 :], strict=False):
            _assert_same(batch, whole)


def test_workers_do_not_change_the_order_and_their_positions_belong_to_the_batch(places, uninterrupted):
    batches = list(islice(_stream(places, "tar_bad", num_workers=2), NUM_BATCHES))
    for batch, whole in zip(batches, uninterrupted("tar_bad"), strict=True):
        _assert_same(batch, whole)


def test_resuming_with_another_batch_size_goes_on_with_the_next_image(places):
    stream = _stream(places, "parquet_bad", views=_Numbers(), batch_size=8)
    whole = sum(_numbers(stream, 9), [])
    for stop in range(8):
        position = list(islice(stream, stop + 1))[-1].position
        rest = sum(_numbers(_stream(places, "parquet_bad", views=_Numbers(), batch_size=3, position=position), 2), [])
        if stop < 7:
            assert rest == whole[(stop + 1) * 8 :][:6]


def test_what_fills_no_batch_at_the_end_of_an_epoch_is_dropped(places):
    batches = list(islice(_stream(places, "folder", views=_Numbers(), batch_size=7), 36))
    assert [batch.epoch for batch in batches] == [0] * 12 + [1] * 12 + [2] * 12
    for epoch in range(3):
        numbers = [int(n) for batch in batches[epoch * 12 : epoch * 12 + 12] for n in batch.views[:, 0]]
        assert len(set(numbers)) == 84


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_shows_every_good_image_once_and_the_batches_are_full(places, kind):
    good = [n for n in range(90) if not (kind.endswith("bad") and _is_bad(n))]
    stream = _stream(places, kind, views=_Numbers(), batch_size=10)
    per_epoch = len(good) // 10
    batches = list(islice(stream, 3 * per_epoch))
    for epoch in range(3):
        own = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert {batch.epoch for batch in own} == {epoch}
        assert all(batch.views.shape == (10, 2) for batch in own)
        assert sorted(int(n) for batch in own for n in batch.views[:, 0]) == good
    bad = Counter()
    for n in range(90):
        if kind.endswith("bad") and _is_bad(n):
            bad[{0: "empty", 1: "not an image", 2: "truncated"}[n // 9 % 3]] += 3
    assert Counter(batches[-1].skipped) <= bad
    assert sum(batches[-1].skipped.values()) >= sum(bad.values()) - 10


def test_indices_are_the_places_in_the_data_set(places):
    for kind in ("parquet_bad", "folder_bad", "object_bad"):
        for batch in islice(_stream(places, kind, views=_Numbers()), 15):
            assert batch.indices.dtype == torch.int64
            assert batch.indices.tolist() == batch.views[:, 0].int().tolist()
    assert next(iter(_stream(places, "tar"))).indices is None


@pytest.mark.parametrize(
    ("kind", "num_workers"), [("parquet", 0), ("parquet", 2), ("parquet_bad", 0), ("object", 2), ("stream", 0)]
)
def test_labels_come_along_if_asked_for(places, kind, num_workers):
    assert next(iter(_stream(places, kind))).labels is None
    stream = _stream(places, kind, views=_Numbers(), num_workers=num_workers, with_labels=True)
    for batch in islice(stream, 9):
        numbers = batch.views[:, 0].int().tolist()
        assert batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == [number % 3 for number in numbers]


def test_resuming_with_the_labels_of_another_column_is_refused(tmp_path):
    rows = {"image": [{"bytes": _png(n), "path": None} for n in range(9)], "label": [0] * 9, "category": [1] * 9}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    first, other = (open_source(str(tmp_path), label_column=column) for column in ("label", "category"))
    position = next(iter(TrainingStream(first, _Numbers(), 3, seed=0, with_labels=True))).position
    assert next(iter(TrainingStream(first, _Numbers(), 3, seed=0, with_labels=True, position=position)))
    with pytest.raises(ValueError, match="`label_column` must be the same on resuming: it was label and is category"):
        TrainingStream(other, _Numbers(), 3, seed=0, with_labels=True, position=position)


def test_labels_that_are_not_there_are_refused(places):
    with pytest.raises(ValueError, match="has no labels, which this method is set to look at"):
        _stream(places, "folder", with_labels=True)


def test_an_index_column_that_does_not_number_the_images_is_refused(tmp_path):
    rows = {"image": [{"bytes": _png(n), "path": None} for n in range(9)], "id": [*range(8), 12]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    source = open_source(str(tmp_path), index_column="id")
    stream = TrainingStream(source, _Numbers(), 9, seed=0)
    with pytest.raises(ValueError, match=r"`index_column` must number the images .* \(9\), but holds 12"):
        next(iter(stream))


@pytest.mark.parametrize("kind", ["parquet", "folder", "tar", "object", "stream"])
def test_order_depends_on_epoch_and_seed_and_is_shuffled(places, kind):
    first, second = (
        sum(_numbers(_stream(places, kind, views=_Numbers(), batch_size=90, seed=s), 2), []) for s in (0, 1)
    )
    orders = [first[:90], first[90:], second[:90], second[90:]]
    assert all(sorted(order) == list(range(90)) for order in orders)
    for number, order in enumerate(orders):
        assert all(order != other for other in orders[number + 1 :])
        neighbours = np.abs(np.diff(order))
        assert (neighbours == 1).mean() < 0.2
    shards = {tuple(n // 15 for n in order[:WINDOW]) for order in orders}
    assert len(shards) == 4  # not the windows alone, the shards too have a new order
    assert {frozenset(order[:WINDOW]) for order in orders} != {frozenset(range(WINDOW))}


@pytest.mark.parametrize(
    ("kind", "world_size"),
    [("parquet", 2), ("parquet", 3), ("folder", 2), ("tar", 3), ("tar", 2), ("object", 3), ("stream", 2)],
)
def test_ranks_are_disjoint_and_complete_in_every_epoch(places, kind, world_size):
    shown = [[] for _ in range(3)]
    for rank in range(world_size):
        for batch in _stream(places, kind, views=_Numbers(), batch_size=1, rank=rank, world_size=world_size):
            if batch.epoch == 3:
                break
            shown[batch.epoch].append(int(batch.views[0, 0]))
    for numbers in shown:
        assert sorted(numbers) == list(range(90))
    assert shown[0] != shown[1]


def test_many_shards_are_dealt_out_though_they_do_not_divide_evenly(tmp_path):
    _write_parquet(tmp_path / "many", 85, files=1, group=5)  # 17 shards
    seen = []
    for rank in range(2):
        source = open_source(str(tmp_path / "many"))
        stream = TrainingStream(source, _Numbers(), 1, seed=0, rank=rank, world_size=2, window_size=WINDOW)
        for batch in stream:
            if batch.epoch == 1:
                break
            seen.append(int(batch.views[0, 0]))
    assert sorted(seen) == list(range(85))
    assert {number // 5 for number in seen[:45]}.isdisjoint(number // 5 for number in seen[45:])


def test_augmentation_is_new_in_each_epoch_place_rank_and_seed(places):
    draws = []
    for options in ({"seed": 0}, {"seed": 1}, {"seed": 0, "rank": 1, "world_size": 2}):
        for batch in islice(_stream(places, views=_Numbers(), **options), 12):
            draws += batch.views[:, 1].tolist()
    assert len(set(draws)) == len(draws)


def test_the_global_generators_are_neither_used_nor_moved(places):
    first = next(iter(_stream(places, num_workers=2)))
    torch.manual_seed(77)
    before = torch.get_rng_state()
    again = next(iter(_stream(places, num_workers=2)))
    assert torch.equal(torch.get_rng_state(), before)
    _assert_same(again, first)


def test_two_iterations_of_one_stream_do_not_disturb_each_other(places, uninterrupted):
    stream = _stream(places)
    one, two = iter(stream), iter(stream)
    for whole in uninterrupted("parquet")[:20]:
        _assert_same(next(one), whole)
        _assert_same(next(two), whole)


def test_real_views_of_digits_fill_batches_larger_than_a_chunk():
    stream = _stream(None, "digits", views=Views("moco_v2", 28), batch_size=150)
    batches = list(islice(stream, 10))
    assert batches[0].views.shape == (150, 2, 28, 28, 3)
    assert [batch.epoch for batch in batches] == [0] * 9 + [1]
    resumed = _stream(None, "digits", views=stream.views, batch_size=150, position=batches[4].position)
    for batch, whole in zip(resumed, batches[5:], strict=False):
        _assert_same(batch, whole)


def test_too_many_bad_images_stop_the_stream_with_the_reasons(places):
    stream = _stream(places, "parquet_bad", max_skipped_ratio=0.1)
    message = "10 of 90 images of `.*parquet_bad` cannot be used: 4 empty, 3 not an image, 3 truncated. Repair"
    with pytest.raises(ValueError, match=message):
        list(islice(stream, 12))
    assert len(list(islice(_stream(places, "parquet_bad", max_skipped_ratio=0.12), 12))) == 12


def test_bad_images_are_judged_after_a_thousand_records(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(1200):
        (folder / f"{number:04}.png").write_bytes(b"text" if number % 2 else _png(number % 256))
    stream = TrainingStream(open_source(str(folder)), _Numbers(), 10, seed=0)
    with pytest.raises(ValueError, match=r"\d+ of 10\d\d images .* cannot be used: \d+ not an image"):
        for _ in stream:
            pass


def test_too_few_images_for_a_batch_are_an_error_and_no_endless_loop(places):
    with pytest.raises(ValueError, match="`batch_size` must not exceed .* has 90 for 2 process.* batch size is 46"):
        _stream(places, batch_size=46, world_size=2)
    with pytest.raises(ValueError, match="`batch_size` must not exceed the usable images .* it is 85 .* has 80"):
        next(iter(_stream(places, "parquet_bad", batch_size=85)))
    with pytest.raises(ValueError, match="`batch_size` must not exceed the usable images .* it is 91 .* has 90"):
        next(iter(_stream(places, "tar", batch_size=91)))  # a stream that does not know its length
    with pytest.raises(ValueError, match="too few images: process 95 would get none"):
        next(iter(_stream(places, "tar", batch_size=1, rank=95, world_size=96)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"num_workers": -1}, "`num_workers` must be at least 0, got -1"),
        ({"window_size": 0}, "`shuffle_window` must be at least 1, got 0"),
        ({"max_skipped_ratio": 1.5}, r"`max_skipped_ratio` must be in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_arguments(places, options, message):
    with pytest.raises(ValueError, match=message):
        _stream(places, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 4}, "`seed` must be the same on resuming: it was 3 and is 4"),
        ({"rank": 1, "world_size": 2}, "`rank` must be the same"),
        ({"world_size": 2}, "`world_size` must be the same on resuming: it was 1 and is 2"),
        ({"window_size": 32}, "`shuffle_window` must be the same"),
        ({"kind": "folder"}, "`dataset` or its `split` or `dataset_revision` must be the same"),
    ],
)
def test_a_position_of_another_run_is_refused(places, uninterrupted, options, message):
    position = uninterrupted("parquet")[5].position
    with pytest.raises(ValueError, match=message):
        _stream(places, position=position, **options)


def test_an_incomplete_position_is_refused(places):
    with pytest.raises(ValueError, match="position lacks `batches`"):
        _stream(places, position={"seed": 3})
    position = next(iter(_stream(places))).position
    reader = {name: value for name, value in position["reader"].items() if name != "table_rows"}
    with pytest.raises(ValueError, match="position lacks `table_rows`. Was it saved by another version?"):
        _stream(places, position={**position, "reader": reader})


def test_large_pictures_are_not_all_in_memory_at_once(places, monkeypatch):
    made = []

    class Views(_Numbers):
        def __call__(self, pictures, numbers):
            made.append([picture.nbytes for picture in pictures])
            return super().__call__(pictures, numbers)

    expected = _numbers(_stream(places, views=Views(), batch_size=30), 9)
    largest = max(map(max, made))
    for limit, most, least_most in ((1, largest, 1), (4 * largest, 4 * largest, 3 * largest)):
        made.clear()
        monkeypatch.setattr("hf_ssl.data.decode.pictures._GROUP_BYTES", limit)
        assert _numbers(_stream(places, views=Views(), batch_size=30), 9) == expected
        assert least_most < max(map(sum, made)) <= most
