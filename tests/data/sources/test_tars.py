"""Webdataset tars: as `datasets` reads them where they are whole, with a count of what is lost where they are not."""

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_ssl.data.decode.pictures import SkippedImageError, decode
from hf_ssl.data.decode.unavailable import DataUnavailableError
from hf_ssl.data.order.patience import patient_tables
from hf_ssl.data.order.stream import TrainingStream
from hf_ssl.data.sources.archive import Damage, Member, pieces
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.views.cpu import Views
from hf_ssl.errors import UserError


def _picture(number, kind="PNG"):
    file = io.BytesIO()
    Image.new("L", (8, 8), number).save(file, kind)
    return file.getvalue()


def _write(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return path


def _members(numbers, name="{:04}"):
    for number in numbers:
        yield name.format(number) + ".png", _picture(number)
        yield name.format(number) + ".cls", str(number % 3).encode()


def _read(path):
    """Numbers of the images, and what was skipped."""
    source = open_source(str(path))
    numbers, skipped = [], Counter()
    for record in source.records:
        try:
            numbers.append(int(decode(record[source.image_column])[0, 0, 0]))
        except SkippedImageError as error:
            skipped[error.reason] += 1
    return numbers, dict(skipped)


def _as_datasets_reads(folder):
    builder = datasets.load_dataset_builder(str(folder))
    records = builder.as_streaming_dataset(split="train")
    return records.cast_column("png", datasets.Image(decode=False))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("name", ["{:04}", "a/b.c/{:04}", "é" * 20 + "/" + "x" * 70 + "/{:04}"])
def test_whole_tars_give_the_records_of_datasets(tmp_path, format, name):
    for shard in range(3):
        members = [*_members(range(shard * 7, shard * 7 + 7), name)]
        members[0:0] = [(".hidden.png", b"x"), ("no_dot", b"x")]
        for number in range(2):
            key = name.format(shard * 7 + 6)
            members.append((f"{key}.{['json', 'input.png'][number]}", [json.dumps({"a": 1}).encode(), b"x"][number]))
        _write(tmp_path / f"train-{shard}.tar", members, format)
    source, expected = open_source(str(tmp_path)), _as_datasets_reads(tmp_path).select_columns(["png", "cls"])
    assert (source.image_column, source.labels) == ("png", {"cls": []})
    assert list(source.records) == list(expected)
    for epoch in (3, 4):  # the order of the shards, and where a reader stands
        source.records.set_epoch(epoch)
        expected.set_epoch(epoch)
        ours, theirs = iter(source.records), iter(expected)
        for _ in range(9):
            assert next(ours) == next(theirs)
        state = source.records.state_dict()
        rest = list(ours)
        assert rest == list(theirs)
        source.records.load_state_dict(state)
        assert list(source.records) == rest
        source.records.load_state_dict(None)


@pytest.mark.parametrize(
    "name", ["img.v1.{:04}", "cat.{}", "a.{:04}.x{}".replace("x{}", "x"), "photos/2021.05.{:02}", "s{0}.t{0}"]
)
def test_names_with_dots(tmp_path, name):
    _write(tmp_path / "a.tar", _members(range(24), name))
    assert _read(tmp_path / "a.tar") == (list(range(24)), {})
    assert [record["cls"] for record in open_source(str(tmp_path / "a.tar")).records] == [n % 3 for n in range(24)]


def test_fields_of_two_words_stay_fields(tmp_path):
    members = [(f"{n:03}.{field}", _picture(n)) for n in range(8) for field in ("input.png", "mask.png")]
    _write(tmp_path / "a.tar", members)
    source = open_source(str(tmp_path / "a.tar"), image_column="input.png")
    assert [decode(record["input.png"])[0, 0, 0] for record in source.records] == list(range(8))


@pytest.mark.parametrize("jpegs", [range(3), range(1, 9, 2), range(6, 9)])
def test_jpg_beside_png_in_one_tar(tmp_path, jpegs):
    kinds = [("jpg", "JPEG") if number in jpegs else ("png", "PNG") for number in range(9)]
    members = [(f"{number}.{kind}", _picture(number, format)) for number, (kind, format) in enumerate(kinds)]
    _write(tmp_path / "a.tar", members)
    assert _read(tmp_path / "a.tar") == (list(range(9)), {})
    source = open_source(str(tmp_path / "a.tar"))
    paths = [record[source.image_column]["path"] for record in source.records]
    assert paths == [name for name, _ in members]


def test_an_empty_first_tar(tmp_path):
    _write(tmp_path / "train-0.tar", [])
    _write(tmp_path / "train-1.tar", _members(range(6)))
    assert _read(tmp_path) == (list(range(6)), {})


def test_joined_tars_are_read_to_the_end(tmp_path):
    parts = [_write(tmp_path / "part", _members(range(n, n + 3))).read_bytes() for n in (0, 3)]
    (tmp_path / "a.tar").write_bytes(parts[0] + parts[1])
    assert _read(tmp_path / "a.tar") == (list(range(6)), {})


def test_classes_as_words_in_a_tar(tmp_path):
    members = [(f"{n}.{field}", data) for n in range(4) for field, data in (("png", _picture(n)), ("cls", b"cat"))]
    _write(tmp_path / "a.tar", members)
    assert _read(tmp_path / "a.tar") == (list(range(4)), {})


BLOCKS = 4  # of a record: two headers, two contents


@pytest.mark.parametrize(("kept", "unread"), [(6 * BLOCKS * 512, 0), (6 * BLOCKS * 512 + 530, 530), (6 * 2048 + 9, 9)])
def test_a_cut_tar_is_counted(tmp_path, caplog, kept, unread):
    _write(tmp_path / "train-0.tar", _members(range(10)))
    whole = _write(tmp_path / "part", _members(range(10, 20))).read_bytes()
    (tmp_path / "train-1.tar").write_bytes(whole[:kept])
    assert _read(tmp_path) == (list(range(16)), {"damaged archive": 1})
    (message,) = [record.getMessage() for record in caplog.records]
    assert "train-1.tar` " in message
    assert f"is damaged: {unread} bytes from byte 12288" in message if unread else "without the end mark" in message
    list(open_source(str(tmp_path)).records)
    assert len(caplog.records) == 1  # once, not in every epoch


def test_garbage_in_a_tar_is_counted_and_the_rest_is_read(tmp_path, caplog):
    whole = _write(tmp_path / "part", _members(range(20))).read_bytes()
    at, size = 8 * BLOCKS * 512, 4 * BLOCKS * 512  # four of twenty records
    (tmp_path / "over.tar").write_bytes(whole[:at] + b"\xa5" * size + whole[at + size :])
    numbers, skipped = _read(tmp_path / "over.tar")
    assert numbers == [*range(8), *range(12, 20)]
    assert 3 <= skipped["damaged archive"] <= 6 and len(skipped) == 1
    assert f"{size} bytes from byte {at} on cannot be read" in caplog.text
    (tmp_path / "between.tar").write_bytes(whole[:at] + b"\xa5" * 777 + whole[at:])  # what follows is moved
    assert _read(tmp_path / "between.tar") == (list(range(20)), {"damaged archive": 1})


def test_an_emptied_tar_and_one_of_garbage_are_counted(tmp_path):
    _write(tmp_path / "train-0.tar", _members(range(6)))
    (tmp_path / "train-1.tar").write_bytes(b"")
    (tmp_path / "train-2.tar").write_bytes(b"not a tar " * 1000)
    assert _read(tmp_path) == (list(range(6)), {"damaged archive": 2})


def test_zeros_where_data_never_came_are_counted(tmp_path):
    whole = _write(tmp_path / "part", _members(range(6))).read_bytes()
    (tmp_path / "hole.tar").write_bytes(whole[:2048] + bytes(2048) + whole[4096:])
    assert _read(tmp_path / "hole.tar") == ([0, 2, 3, 4, 5], {})  # as joined archives
    (tmp_path / "tail.tar").write_bytes(whole[: 3 * 2048] + bytes(2**21))
    numbers, skipped = _read(tmp_path / "tail.tar")
    assert numbers == [0, 1, 2] and skipped["damaged archive"] > 100


def test_a_stream_counts_a_cut_tar_and_stops_above_the_ratio(tmp_path):
    whole = _write(tmp_path / "part", _members(range(20))).read_bytes()
    (tmp_path / "train-0.tar").write_bytes(whole[: 10 * BLOCKS * 512])
    source = open_source(str(tmp_path))

    def batches(ratio):
        return iter(TrainingStream(source, Views("shapes", 8), 4, seed=0, max_skipped_ratio=ratio))

    going_on = batches(0.5)
    for _ in range(6):
        batch = next(going_on)
    assert batch.epoch >= 1 and batch.skipped["damaged archive"] >= 1
    stopping = batches(0.01)
    with pytest.raises(UserError, match=r"\d damaged archive\. Damaged: `.*train-0.tar`\. Repair"):
        for _ in range(6):
            next(stopping)


def test_a_tar_that_goes_away_while_running_is_named(tmp_path):
    for shard in range(2):
        _write(tmp_path / f"train-{shard}.tar", _members(range(4)))
    source = open_source(str(tmp_path), data_timeout=0.0)
    (tmp_path / "train-1.tar").unlink()
    with pytest.raises(DataUnavailableError, match=r"No such file or directory: '.*train-1.tar'"):
        list(patient_tables(source, source.records, 2))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_happens_to_a_tar_it_is_read_or_counted(tmp_path, data):
    whole = _write(tmp_path / "part", _members(range(6))).read_bytes()
    start = data.draw(st.integers(0, 6 * 2048))
    size = data.draw(st.integers(0, 2048))
    garbage = data.draw(st.binary(max_size=64)) * data.draw(st.integers(0, 30))
    damaged = whole[:start] + garbage + whole[start + size :]
    (tmp_path / "a.tar").write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    found = list(pieces(str(tmp_path / "a.tar")))
    for piece in pieces(str(tmp_path / "a.tar")):
        if isinstance(piece, Member):
            assert len(piece.read()) == piece.size
    assert sum(isinstance(piece, Member) for piece in found) == 12 or any(isinstance(p, Damage) for p in found) or size


class _Pickled:
    """What a pickle makes of it runs code: here it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("packed", ["", ".gz"])  # ours; and that of `datasets`, which reads what is packed
def test_no_pickle_of_a_tar_is_loaded(tmp_path, packed):
    (tmp_path / "data").mkdir()
    made = tmp_path / "made"
    pickled = pickle.dumps(_Pickled(made))
    array, arrays, weights = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, np.array([_Pickled(made)], object), allow_pickle=True)
    np.savez(arrays, a=np.array([_Pickled(made)], object))
    torch.save({"a": _Pickled(made)}, weights)
    fields = {"npy": array.getvalue(), "npz": arrays.getvalue(), "pth": weights.getvalue()}
    fields |= dict.fromkeys(("pyd", "pickle", "pkl", "pt", "pth.tar", "joblib"), pickled)
    for field, data in fields.items():
        members = []
        for number in range(3):
            label = (f"{number}.{field}", data), (f"{number}.cls", b"1")
            members += [(f"{number}.png", _picture(number)), *label]
        if packed:
            members.append(("9.txt.gz", gzip.compress(b"packed")))
        path = _write(tmp_path / "data" / "train.tar", members)
        try:
            numbers, skipped = _read(path)
        except UserError:
            assert packed  # `datasets` refuses them
        else:
            assert numbers == [0, 1, 2] and not skipped, field
        assert not made.exists(), field
    with pytest.raises(FileExistsError):  # it would have
        made.mkdir()
        pickle.loads(pickled)


def test_members_with_odd_names_are_read_in_place(tmp_path):
    """Paths of members are names: nothing is written, and links are not followed."""
    (tmp_path / "secret.png").write_bytes(_picture(99))
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "train.tar", "w") as archive:
        for number, name in enumerate(["../../0.png", "/1.png", "x/../2.png", "3.png"]):
            about = tarfile.TarInfo(name)
            about.size = len(_picture(number))
            archive.addfile(about, io.BytesIO(_picture(number)))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            about = tarfile.TarInfo(f"link{kind.decode()}.png")
            about.type, about.linkname = kind, str(tmp_path / "secret.png")
            archive.addfile(about)
    before = sorted(map(str, tmp_path.rglob("*")))
    assert _read(folder / "train.tar") == ([0, 1, 2, 3], {})
    assert sorted(map(str, tmp_path.rglob("*"))) == before


@pytest.mark.parametrize(
    "names, levels", [(["/1.png", "x/../2.png", "3.png"], [1, 3]), (["../../0.png", "1.png"], [])]
)
def test_members_of_a_zip_that_lead_out_of_it_are_no_images(tmp_path, names, levels):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for name in names:
            archive.writestr(name, _picture(int(name[-5])))
    before = sorted(map(str, tmp_path.rglob("*")))
    if levels:
        assert _read(folder) == (levels, {})
    else:
        with pytest.raises(UserError, match="zip files that `datasets` cannot read"):
            _read(folder)
    assert sorted(map(str, tmp_path.rglob("*"))) == before
