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

from hf_ssl.data.order.stream import TrainingStream, merged_positions
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.views.cpu import Views

BATCH, WINDOW = 8, 16


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
    """In place of views: the number that the picture shows, and the first of the random ones."""

    def __call__(self, pictures, numbers):
        shown = [int(picture[3, 3, 0]) // 16 * 16 + int(picture[3, 3, 1]) // 16 for picture in pictures]
        return (torch.tensor(list(zip(shown, numbers[:, 0, 0], strict=True)), dtype=torch.float64),)


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
    at = {lane: {**place, "state": place["state"] is None} for lane, place in position["at"].items()}
    return {**position, "at": at}


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


def test_what_fills_no_batch_at_the_end_of_an_epoch_is_dropped(places):
    for batch_size, whole in ((7, 84), (8, 88), (12, 84)):  # one lane, eight, four
        steps = whole // batch_size
        batches = list(islice(_stream(places, "folder", views=_Numbers(), batch_size=batch_size), 3 * steps))
        assert [batch.epoch for batch in batches] == [epoch for epoch in range(3) for _ in range(steps)]
        left_over = []
        for epoch in range(3):
            numbers = {int(n) for batch in batches[epoch * steps :][:steps] for n in batch.views[:, 0]}
            assert len(numbers) == whole
            left_over.append(set(range(90)) - numbers)
        assert left_over[0] != left_over[1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_shows_every_good_image_once_and_the_batches_are_full(places, kind):
    good = [n for n in range(90) if not (kind.endswith("bad") and _is_bad(n))]
    stream = _stream(places, kind, views=_Numbers(), batch_size=5)  # one lane
    per_epoch = len(good) // 5
    batches = list(islice(stream, 3 * per_epoch))
    for epoch in range(3):
        own = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert {batch.epoch for batch in own} == {epoch}
        assert all(batch.views.shape == (5, 2) for batch in own)
        assert sorted(int(n) for batch in own for n in batch.views[:, 0]) == good
    bad = Counter()
    for n in range(90):
        if kind.endswith("bad") and _is_bad(n):
            bad[{0: "empty", 1: "not an image", 2: "truncated"}[n // 9 % 3]] += 3
    assert Counter(batches[-1].skipped) <= bad
    assert sum(batches[-1].skipped.values()) >= sum(bad.values()) - 5


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
        sum(_numbers(_stream(places, kind, views=_Numbers(), batch_size=45, seed=s), 4), []) for s in (0, 1)
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


PLACED = ["parquet", "parquet_bad", "folder", "folder_bad", "object", "object_bad"]


def _steps(places, kind, world_size, num_steps, *, batch_size=16, position=None, **options):
    """What all processes together see in each step: pictures with what was drawn for them, and where they stand."""
    seen, positions = [[] for _ in range(num_steps)], [[] for _ in range(num_steps)]
    for rank in range(world_size):
        own = {"rank": rank, "world_size": world_size, "batch_size": batch_size, **options}
        stream = _stream(places, kind, views=_Numbers(), position=position, **own)
        passes = stream.images // stream.images_per_device
        for number, batch in enumerate(islice(stream, num_steps * passes)):
            seen[number // passes] += map(tuple, batch.views.tolist())
            if number % passes == passes - 1:
                positions[number // passes].append(json.loads(json.dumps(batch.position)))
    return [sorted(step) for step in seen], [merged_positions(step) for step in positions]


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_of_every_step_are_the_same_on_any_number_of_processes_and_workers(places, kind):
    steps, positions = _steps(places, kind, 1, 20)
    for world_size, num_workers, images in ((2, 1, 4), (4, 0, 2), (8, 0, 1), (1, 2, 8)):
        found = _steps(places, kind, world_size, 20, num_workers=num_workers, images_per_device=images)
        assert found[0] == steps
        assert list(map(_counted, found[1])) == list(map(_counted, positions))


def _counted(position):
    """What a merged position says but for the number of processes and the states of `datasets`."""
    return {**_without_state(position), "world_size": None}


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(KINDS), stop=st.integers(0, 18), world_size=st.sampled_from([1, 2, 4, 8]))
def test_a_run_goes_on_with_another_number_of_processes(places, whole_runs, kind, stop, world_size):
    steps, positions = whole_runs(kind)
    found = _steps(places, kind, world_size, 3, position=positions[stop])
    assert found[0] == steps[stop + 1 :][:3]
    again = _steps(places, kind, 2, 2, position=found[1][0])
    assert again[0] == steps[stop + 2 :][:2]


@pytest.fixture(scope="module")
def whole_runs(places):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = _steps(places, kind, 1, 23)
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_no_image_comes_twice_in_an_epoch_of_all_lanes(places, kind):
    shown = {}
    for rank in range(4):
        options = {"rank": rank, "world_size": 4, "batch_size": 8, "images_per_device": 1}
        for batch in islice(_stream(places, kind, views=_Numbers(), **options), 72):
            # The epoch of a single image is that of its lane, which the position tells.
            lane = [place for place in batch.position["at"].values()][(batch.position["taken"] + 1) % 2]
            shown.setdefault(lane["epoch"], []).append(int(batch.views[0, 0]))
    for numbers in shown.values():
        assert len(numbers) == len(set(numbers))
    good = {n for n in range(90) if not (kind.endswith("bad") and _is_bad(n))}
    assert set(shown[0]) <= good and len(shown[0]) > len(good) - 8


def test_shards_of_a_stream_are_dealt_out_if_there_are_enough(tmp_path):
    """Nine of eighteen tars to each of two processes, and none is read by both."""
    for shard in range(18):
        with tarfile.open(tmp_path / f"train-{shard:02}.tar", "w") as archive:
            for number in range(shard * 5, shard * 5 + 5):
                member = tarfile.TarInfo(f"{number:03}.png")
                member.size = len(_png(number))
                archive.addfile(member, io.BytesIO(_png(number)))
    source, seen = open_source(str(tmp_path)), []
    for rank in range(2):
        stream = TrainingStream(source, _Numbers(), 2, seed=0, rank=rank, world_size=2, window_size=WINDOW)
        seen.append({int(batch.views[0, 0]) for batch in islice(stream, 45)})
    assert seen[0] | seen[1] == set(range(90))
    assert {number // 5 for number in seen[0]}.isdisjoint(number // 5 for number in seen[1])


def test_bad_images_of_one_lane_let_no_views_of_the_others_pile_up(tmp_path):
    """The images of a lane are every eighth of a stream: all bad ones are in one."""
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for number in range(800):
            data = b"text" if number % 8 == 3 and number % 16 != 3 else _png(number % 256)
            member = tarfile.TarInfo(f"{number:04}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    stream = TrainingStream(
        open_source(str(tmp_path)), _Numbers(), 8, seed=0, window_size=64, max_skipped_ratio=1, num_workers=1
    )
    batches, waiting = iter(stream), []
    for _ in range(300):
        next(batches)
        lanes = batches.gi_frame.f_locals["lanes"]
        waiting.append(max(one.num_ready for one in lanes.values()))
    assert max(waiting) <= 40
    epochs = [one.place.epoch for one in lanes.values()]
    assert epochs[3] > max(epochs[:3])  # it has gone ahead, and no lane waits for it


def test_augmentation_is_new_in_each_epoch_place_lane_and_seed(places):
    draws = []
    for options in ({"seed": 0}, {"seed": 1}):
        for batch in islice(_stream(places, views=_Numbers(), **options), 24):
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
    message = r"\d+ of \d+ images of `.*parquet_bad` cannot be used: \d empty, \d not an image, \d truncated"
    message += r", such as row \d+ \(\D+\), row \d+ \(\D+\), row \d+ \(\D+\)\. Repair"
    with pytest.raises(ValueError, match=message):
        list(islice(stream, 40))
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
    with pytest.raises(ValueError, match="`batch_size` must not exceed .* has 90 and the batch size is 92"):
        _stream(places, batch_size=92, world_size=2)
    with pytest.raises(ValueError, match="`batch_size` must not exceed the usable images .* it is 85 .* about 7[5-9]"):
        next(iter(_stream(places, "parquet_bad", batch_size=85)))
    with pytest.raises(ValueError, match="`batch_size` must not exceed the usable images .* it is 91 .* about 90"):
        next(iter(_stream(places, "tar", batch_size=91)))  # a stream that does not know its length
    with pytest.raises(ValueError, match="too few images: lane 95 would get none"):
        next(iter(_stream(places, "tar", batch_size=96, rank=95, world_size=96)))


def test_a_lane_without_a_usable_image_is_named_with_what_helps(tmp_path):
    for number in range(16):
        (tmp_path / f"{number:02}.png").write_bytes(_png(number) if number else b"text")
    source = open_source(str(tmp_path))
    with pytest.raises(
        ValueError, match="of its 16 lanes, one has 0, and a step takes 1 from each.*or give fewer `lanes`"
    ):
        for _ in TrainingStream(source, _Numbers(), 16, seed=0, lanes=16, max_skipped_ratio=1):
            pass


def test_a_bad_image_is_named_once(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(_png(number) if number else b"text")
    stream = iter(TrainingStream(open_source(str(tmp_path)), _Numbers(), 1, seed=0, max_skipped_ratio=0.1))
    while next(stream).epoch < 2:
        pass
    (tmp_path / "1.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"such as `[^`]*0.png` .not an image., `[^`]*1.png` .not an image.\. Repair"):
        while next(stream).epoch < 9:
            pass


def test_a_data_set_without_a_usable_image_says_why(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(b"text")
    stream = TrainingStream(open_source(str(tmp_path)), _Numbers(), 8, seed=0, max_skipped_ratio=0.5)
    with pytest.raises(ValueError, match="of 24 images of .* cannot be used: 24 not an image"):
        next(iter(stream))


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
        ({"batch_size": 16}, "`batch_size` must be the same on resuming: it was 8 and is 16"),
        ({"lanes": 4}, "`lanes` must be the same on resuming: it was 8 and is 4"),
        ({"window_size": 32}, "`shuffle_window` must be the same"),
        ({"kind": "folder"}, "`dataset` or its `split` or `dataset_revision` must be the same"),
    ],
)
def test_a_position_of_another_run_is_refused(places, uninterrupted, options, message):
    position = uninterrupted("parquet")[5].position
    with pytest.raises(ValueError, match=message):
        _stream(places, position=position, **options)


def test_an_incomplete_position_is_refused(places):
    with pytest.raises(ValueError, match="position lacks `at`. Was it saved by another version"):
        _stream(places, position={"seed": 3})
    position = next(iter(_stream(places, world_size=2))).position
    with pytest.raises(ValueError, match="position was saved by another process"):
        _stream(places, position=position, world_size=2, rank=1)
    middle = next(iter(_stream(places, images_per_device=2))).position
    assert next(iter(_stream(places, images_per_device=2, position=middle)))
    with pytest.raises(ValueError, match="in the middle of a step by another number of processes"):
        _stream(places, position=middle, world_size=2)
