import errno
import io
import os
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from hf_ssl.data.decode.pictures import decode
from hf_ssl.data.order.ordered import evaluation_batches
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources import files as local
from hf_ssl.data.sources import listing, remote
from hf_ssl.data.sources import open as sources
from hf_ssl.data.sources.files import INDEX_COLUMN
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.sources.opened import Opened, kind_by_name
from hf_ssl.errors import UserError
from hf_ssl.settings import descriptions_of


def _png(number):
    file = io.BytesIO()
    Image.new("L", (4, 3), number).save(file, "PNG")
    return file.getvalue()


def _number(record, column="image"):
    return int(decode(record[column])[0, 0, 0])


def _write_parquet(path, numbers, column="image", label="label", **options):
    features = datasets.Features({column: datasets.Image(), label: datasets.ClassLabel(names=["even", "odd"])})
    rows = {column: [{"bytes": _png(n), "path": None} for n in numbers], label: [n % 2 for n in numbers]}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path, **options)


def _write_tar(path, numbers):
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            for suffix, data in (("png", _png(number)), ("cls", str(number % 2).encode())):
                member = tarfile.TarInfo(f"{number:04}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _write_images(folder, files):
    for number, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(_png(number))


@pytest.fixture
def parquet_folder(tmp_path):
    _write_parquet(tmp_path / "pets" / "train-00000-of-00002.parquet", range(10), batch_size=4)
    _write_parquet(tmp_path / "pets" / "train-00001-of-00002.parquet", range(10, 16), batch_size=4)
    _write_parquet(tmp_path / "pets" / "test-00000-of-00001.parquet", range(50, 55))
    return tmp_path / "pets"


def test_parquet_folder_with_splits(parquet_folder):
    source = open_source(str(parquet_folder))
    assert (source.image_column, source.labels, source.num_images) == ("image", {"label": ["even", "odd"]}, 16)
    records = list(source.records)
    assert [_number(record) for record in records] == list(range(16))
    assert [record["label"] for record in records] == [n % 2 for n in range(16)]
    assert [record[INDEX_COLUMN] for record in records] == list(range(16))
    assert source.records.num_shards == 5  # row groups, not files
    assert [_number(record) for record in open_source(str(parquet_folder), split="test").records] == [
        50,
        51,
        52,
        53,
        54,
    ]


def test_rows_are_numbered_through_batches_files_and_row_groups(parquet_folder, monkeypatch):
    monkeypatch.setattr(local, "_PARQUET_BATCH", 3)
    records = list(open_source(str(parquet_folder)).records)
    assert [record[INDEX_COLUMN] for record in records] == [_number(record) for record in records] == list(range(16))


def test_columns_that_are_not_used_are_not_read(tmp_path):
    rows = 12
    images = pa.array([{"bytes": _png(n), "path": None} for n in range(rows)])
    table = pa.table({"image": images, "caption": ["a long text " * 40] * rows, "label": list(range(rows))})
    path = tmp_path / "captions.parquet"
    pq.write_table(table, path, row_group_size=5, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        column = metadata.row_group(group).column(2)
        assert column.path_in_schema == "caption"
        begin = column.data_page_offset
        content[begin : begin + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    with pytest.raises(OSError):
        pq.read_table(path, columns=["caption"])
    records = list(open_source(str(path)).records)
    assert [_number(record) for record in records] == [record["label"] for record in records] == list(range(rows))


def test_single_parquet_file_under_any_name(tmp_path):
    _write_parquet(tmp_path / "test-data.parquet", range(5), column="img")
    source = open_source(str(tmp_path / "test-data.parquet"))
    assert (source.image_column, source.num_images) == ("img", 5)
    with pytest.raises(ValueError, match="has no split `test`. It has: train"):
        open_source(str(tmp_path / "test-data.parquet"), split="test")


def test_the_streaming_path_of_the_hub_on_a_local_folder(parquet_folder):
    """The same calls as for a Hub id: the builder of `datasets`, streaming."""
    where = {"path": str(parquet_folder), "name": None, "revision": None}
    opened = remote._streamed("org/pets", "train", where)
    source = sources._with_columns(opened, "org/pets", None, "train", None, None)
    assert source.num_images is None
    assert INDEX_COLUMN not in source.records.column_names
    assert [_number(record) for record in source.records] == list(range(16))
    assert [record["label"] for record in source.records] == [n % 2 for n in range(16)]
    with pytest.raises(ValueError, match="`org/pets` has no split `val`. It has: train, test"):
        remote._streamed("org/pets", "val", where)


def test_a_named_column_numbers_the_images_of_a_stream(tmp_path, monkeypatch):
    numbers = [5, 3, 4, 0, 1, 2]
    rows = {"image": [{"bytes": _png(n), "path": None} for n in numbers], "label": numbers, "text": ["a"] * 6}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    local = open_source(str(tmp_path), index_column="label")
    assert local.fingerprint != open_source(str(tmp_path)).fingerprint
    monkeypatch.setattr(sources, "open_local", lambda name, path, split, choice: remote.open_hub(name, split, choice))
    for source in (local, open_source(str(tmp_path), index_column="label")):
        assert source.has_indices and source.labels == {}
        assert [record[INDEX_COLUMN] for record in source.records] == numbers
        assert [_number(record) for record in source.records] == numbers
    assert not open_source(str(tmp_path)).has_indices
    with pytest.raises(ValueError, match="`index_column` must hold integers, but `text`"):
        open_source(str(tmp_path), index_column="text")
    with pytest.raises(ValueError, match="`index_column` `id` must be a column of .* has: `image`, `label`, `text`"):
        open_source(str(tmp_path), index_column="id")


def test_webdataset_file_and_folder(tmp_path):
    _write_tar(tmp_path / "train-000.tar", range(6))
    _write_tar(tmp_path / "train-001.tar", range(6, 10))
    source = open_source(str(tmp_path))
    assert (source.image_column, source.labels, source.num_images) == ("png", {"cls": []}, None)
    records = list(source.records)
    assert [_number(record, "png") for record in records] == list(range(10))
    assert [record["cls"] for record in records] == [n % 2 for n in range(10)]
    assert source.records.num_shards == 2
    assert len(list(open_source(str(tmp_path / "train-001.tar")).records)) == 4


def test_webdataset_whose_first_image_is_broken(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in (("0.png", b"text"), ("1.png", _png(1))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert [record["png"]["bytes"] for record in open_source(str(tmp_path / "a.tar")).records] == [b"text", _png(1)]


def test_flat_folder_has_no_labels(tmp_path):
    _write_images(tmp_path, ["b.png", "a.PNG", "c d.png"])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._b.png").write_bytes(b"resource fork")
    source = open_source(str(tmp_path))
    assert (source.labels, source.num_images) == ({}, 3)
    assert [os.path.basename(record["image"]["path"]) for record in source.records] == ["a.PNG", "b.png", "c d.png"]
    assert [_number(record) for record in source.records] == [1, 0, 2]
    assert [record[INDEX_COLUMN] for record in source.records] == [0, 1, 2]


def test_class_folders_nested_become_labels(tmp_path):
    _write_images(tmp_path, ["pets/cat/1.png", "pets/cat/2.png", "pets/dog/3.png", "wild/ant/4.png"])
    source = open_source(str(tmp_path))
    assert source.labels == {"label": ["ant", "cat", "dog"]}
    assert {_number(record): record["label"] for record in source.records} == {0: 1, 1: 1, 2: 2, 3: 0}
    _write_images(tmp_path, ["pets/cat/more/5.png"])
    assert open_source(str(tmp_path)).labels == {}


def test_images_beside_class_folders_have_no_labels(tmp_path):
    _write_images(tmp_path, ["cat/1.png", "dog/2.png", "3.png"])
    assert open_source(str(tmp_path)).labels == {}


def test_split_folders(tmp_path):
    _write_images(tmp_path, ["train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png", "cover.png"])
    train, validation = open_source(str(tmp_path)), open_source(str(tmp_path), split="validation")
    assert [_number(record) for record in train.records] == [0, 1]
    assert [_number(record) for record in validation.records] == [2, 3]
    assert train.labels == validation.labels == {"label": ["cat", "dog"]}
    assert train.fingerprint != validation.fingerprint
    with pytest.raises(ValueError, match="has no split `test`. It has: train, validation"):
        open_source(str(tmp_path), split="test")


def test_a_class_named_like_a_split_is_a_class_when_chosen(tmp_path):
    _write_images(tmp_path, ["train/1.png", "plane/2.png", "car/3.png"])
    with pytest.raises(UserError, match="can be read in two ways.*--data_files"):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path), data_files="**").labels == {"label": ["car", "plane", "train"]}


def test_linked_folders_are_read_once(tmp_path):
    _write_images(tmp_path / "real", ["1.png", "2.png"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "data")
    assert open_source(str(tmp_path / "data")).num_images == 2


def test_pictures_that_cannot_be_read_are_counted_and_named_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(listing, "IMAGE_SUFFIXES", listing.IMAGE_SUFFIXES - {".heic", ".jxl"})
    _write_images(tmp_path, ["cat/1.png", "cat/2.ico", "dog/3.J2K", "dog/4.mpo", "dog/5.pfm"])
    healthy = open_source(str(tmp_path))
    assert (healthy.left_out, healthy.num_images, caplog.text) == ({}, 5, "")  # what is complete is only told
    _write_images(tmp_path, ["a.HEIC", "cat/b.heic", "cat/c.svg", "dog/d.dng", "dog/e.txt", ".f.heic"])
    with open(os.fsencode(tmp_path / "cat") + b"/\xff.png", "wb") as file:
        file.write(_png(9))
    source = open_source(str(tmp_path))
    assert source.left_out == {
        "format not supported: .heic": 2,
        "format not supported: .svg": 1,
        "format not supported: .dng": 1,
        "name is not UTF-8": 1,
    }
    assert source.fingerprint == healthy.fingerprint and source.labels == {"label": ["cat", "dog"]}
    assert [_number(record) for record in source.records] == [0, 1, 2, 3, 4]
    open_source(str(tmp_path))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"`{tmp_path}` is read as a folder of images: split train (5 images); 2 classes: cat (2),")
    assert "Left out: 2 format not supported: .heic, 1 format" in line
    assert line.endswith("HEIC and JPEG XL can be read after: pip install 'hf_ssl[formats]'")


def test_a_folder_of_nothing_else_says_so(tmp_path):
    _write_images(tmp_path, ["a.svg", "b.svg"])
    with pytest.raises(ValueError, match="holds no images that can be read: 2 format not supported: .svg"):
        open_source(str(tmp_path))


def test_folders_without_permission_are_counted(tmp_path, monkeypatch):
    _write_images(tmp_path, ["a.png", "closed/b.png"])
    scandir = os.scandir

    def closed(place):  # tests may run as root, who may read everything
        if os.path.basename(place) == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", closed)
    source = open_source(str(tmp_path))
    assert (source.num_images, source.left_out) == (1, {"no permission": 1})


def test_pipes_and_links_in_a_folder_stop_nothing(tmp_path):
    _write_images(tmp_path, ["a.png", "z.png"])
    os.mkfifo(tmp_path / "b.png")
    os.mkfifo(tmp_path / "b.parquet")
    os.mkfifo(tmp_path / "b.tar")
    (tmp_path / "c.png").symlink_to(tmp_path / "c.png")
    (tmp_path / "d.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "e.png").symlink_to(tmp_path)
    source = open_source(str(tmp_path))
    assert source.left_out == {"not a regular file": 3, "link loop": 1, "missing file": 1}
    batches = evaluation_batches(source, lambda picture: torch.tensor(picture.shape), 8)
    assert [batch.row_ids.tolist() for batch in batches] == [[0, 1]]
    assert batches.skipped == {}


def test_pictures_beside_parquet_files_are_no_part_of_the_data(parquet_folder, caplog):
    _write_images(parquet_folder, ["assets/logo.svg", "assets/a.heic"])
    os.mkfifo(parquet_folder / "train-00002-of-00002.parquet")
    source = open_source(str(parquet_folder))
    assert (source.num_images, source.left_out) == (16, {"not a regular file": 1})
    assert "1 not a regular file." in caplog.text and "svg" not in caplog.text


def test_paths_that_cannot_be_opened_get_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UserError, match="must be a folder or a regular file, but `.*pipe.tar` is a pipe"):
        open_source(str(tmp_path / "pipe.tar"))
    with pytest.raises(UserError, match="cannot be opened: path too long. Check its path"):
        open_source(str(tmp_path / ("a" * 300)))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="there is no file or folder"):
        open_source(str(tmp_path / "loop"))


def test_a_folder_without_permission_gets_one_sentence(tmp_path, monkeypatch):
    _write_images(tmp_path, ["a.png"])
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", _refuse)
        with pytest.raises(UserError, match="holds no images that can be read: 1 no permission"):
            open_source(str(tmp_path))


def _refuse(place):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_the_name_of_a_data_set_is_utf8(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(folder)
    with pytest.raises(ValueError, match="`dataset` must have a name in UTF-8, got '.*udcff'"):
        open_source(folder)


def test_large_folders_have_many_shards_and_every_image_once(tmp_path):
    _write_images(tmp_path, [f"{n:03}.png" for n in range(130)])
    source = open_source(str(tmp_path))
    assert source.records.num_shards == 8
    assert [record[INDEX_COLUMN] for record in source.records] == list(range(130))


def test_digits_are_those_of_scikit_learn():
    pictures, labels = load_digits(return_X_y=True)
    train, test = open_source("digits"), open_source("digits", split="test")
    assert (train.num_images, test.num_images) == (1437, 360)
    assert train.labels == {"label": [str(n) for n in range(10)]}
    records = [*train.records, *test.records]
    assert [record["label"] for record in records] == labels.tolist()
    picture = decode(records[5]["image"])[:, :, 0]
    np.testing.assert_allclose(picture / 255 * 16, pictures[5].reshape(8, 8), atol=0.04)


def test_shapes_have_a_label_for_every_factor():
    source = open_source("shapes")
    assert next(iter(source.labels)) == "shape"
    assert len(source.labels) > 3
    assert source.num_images == len(list(source.records))
    assert open_source("shapes", label_column="size").labels.keys() == source.labels.keys()
    assert next(iter(open_source("shapes", label_column="size").labels)) == "size"


def test_columns_of_bytes_and_paths(tmp_path):
    (tmp_path / "7.png").write_bytes(_png(7))
    rows = {"payload": [_png(3)], "file": [str(tmp_path / "7.png")], "label": [1], "id": [5]}
    datasets.Dataset.from_dict(rows, features=None).cast_column("payload", datasets.Value("binary")).to_parquet(
        tmp_path / "a.parquet"
    )
    source = open_source(str(tmp_path / "a.parquet"))
    assert (source.image_column, source.labels) == ("payload", {"label": []})
    assert [_number(record, "payload") for record in source.records] == [3]
    source = open_source(str(tmp_path / "a.parquet"), image_column="file", label_column="id")
    assert source.labels == {"id": [], "label": []}
    assert [_number(record, "file") for record in source.records] == [7]


def test_labels_out_of_range_and_missing_images_stop_nothing(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = pa.table(
        {"image": [{"bytes": _png(1), "path": None}, None], "label": [7, None]}, schema=features.arrow_schema
    )
    pq.write_table(table, tmp_path / "a.parquet")
    records = list(open_source(str(tmp_path / "a.parquet")).records)
    assert [record["label"] for record in records] == [7, None]
    assert not (records[1]["image"] or {}).get("bytes")


def test_a_stream_that_declares_no_columns():
    records = datasets.IterableDataset.from_generator(_undeclared, gen_kwargs={"numbers": [3, 4, 5]})
    assert records.features is None
    opened = Opened(records, None, "undeclared")
    source = sources._with_columns(opened, "org/undeclared", None, "train", None, None)
    assert (source.image_column, source.labels) == ("img", {"label": []})
    assert [(_number(record, "img"), record["label"]) for record in source.records] == [(3, 1), (4, None), (5, 1)]


def _undeclared(numbers):
    for number in numbers:
        yield {"img": _png(number), "label": 1 if number % 2 else None, "note": "x"}


def test_labels_out_of_range_stop_no_stream_of_rows():
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a"]), "note": datasets.Value("string")}
    )
    records = datasets.IterableDataset.from_generator(_undeclared, features, gen_kwargs={"numbers": [3, 4]})
    source = sources._with_columns(Opened(records, None, ""), "org/rows", None, "train", None, None)
    assert source.labels == {"label": ["a"]}
    assert [record["label"] for record in source.records] == [1, None]


def test_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    for place in ("one", "two"):
        _write_images(tmp_path / place, ["1.png", "2.png"])
        _write_parquet(tmp_path / f"{place}-p" / "train.parquet", range(4))
    for suffix in ("", "-p"):
        first = open_source(str(tmp_path / f"one{suffix}")).fingerprint
        assert first == open_source(str(tmp_path / f"two{suffix}")).fingerprint
    before = [open_source(str(tmp_path / name)).fingerprint for name in ("two", "two-p")]
    _write_images(tmp_path / "two", ["1.png", "2.png", "3.png"])
    _write_parquet(tmp_path / "two-p" / "train.parquet", range(5))
    after = [open_source(str(tmp_path / name)).fingerprint for name in ("two", "two-p")]
    assert not set(before) & set(after)
    assert int(after[0], 16)
    assert open_source("digits").fingerprint != open_source("digits", split="test").fingerprint


def test_wrong_columns_name_the_columns_found(parquet_folder, tmp_path):
    with pytest.raises(ValueError, match="`image_column` `picture` must be a column of .* has: `image`, `label`."):
        open_source(str(parquet_folder), image_column="picture")
    with pytest.raises(ValueError, match="must name images, bytes or paths, but `label`"):
        open_source(str(parquet_folder), image_column="label")
    with pytest.raises(ValueError, match="`label_column` `species` must be a column of .* has: `image`, `label`."):
        open_source(str(parquet_folder), label_column="species")
    with pytest.raises(ValueError, match="must hold integers or class labels, but `image`"):
        open_source(str(parquet_folder), label_column="image")
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="has no column of images. It has: `text`, `label`. Name one"):
        open_source(str(tmp_path / "text.parquet"))


def test_wrong_data_sets_get_one_sentence(tmp_path, parquet_folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images, parquet, arrow, csv, json, tar or zip files"):
        open_source(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="there is no file or folder `.*nowhere`"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="there is no file or folder `nowhere.parquet`"):
        open_source("nowhere.parquet")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="must be a folder, a parquet, arrow, csv, json, tar or zip file or a Hub id"):
        open_source(str(tmp_path / "notes.txt"))
    _write_parquet(tmp_path / "none.parquet", [])
    with pytest.raises(ValueError, match="Split `train` of .* holds no images"):
        open_source(str(tmp_path / "none.parquet"))
    _write_tar(tmp_path / "none.tar", [])
    with pytest.raises(ValueError, match="Split `train` of .* holds no images"):
        open_source(str(tmp_path / "none.tar"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is not parquet")
    with pytest.raises(ValueError, match="bad.parquet` cannot be read as parquet"):
        open_source(str(tmp_path / "bad.parquet"))
    (tmp_path / "bad.tar").write_bytes(b"this is no archive" * 100)
    with pytest.raises(ValueError, match="bad.tar` cannot be opened: OSError: .* is damaged, and nothing in it can"):
        open_source(str(tmp_path / "bad.tar"))
    with pytest.raises(ValueError, match="has no split `validation`. It has: train, test"):
        open_source(str(parquet_folder), split="validation")
    for embedded in ("shapes", "digits"):
        with pytest.raises(ValueError, match=f"`{embedded}` has no split `val`. It has: train, test"):
            open_source(embedded, split="val")


def test_unknown_hub_names_get_one_sentence():
    with pytest.raises(ValueError, match="`dataset` `org/nothing-there` cannot be opened: .*$") as caught:
        open_source("org/nothing-there")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="Did you mean `shapes`"):
        open_source("shape")


def test_settings_open_what_they_name(parquet_folder):
    settings = DataSettings(dataset=str(parquet_folder))
    assert settings.open().num_images == 16
    assert settings.open(split="test").num_images == 5
    for name in DataSettings.__dataclass_fields__:
        assert descriptions_of(DataSettings)[name]


def test_a_class_has_one_number_in_all_splits_of_a_folder(tmp_path):
    _write_images(
        tmp_path, ["train/ant/0.png", "train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/dog/4.png"]
    )
    _write_images(tmp_path, ["val/dog/5.png"])
    expected = {"train": [0, 1, 2], "test": [1, 2], "validation": [2]}
    for split, labels in expected.items():
        source = open_source(str(tmp_path), split=split)
        assert source.labels == {"label": ["ant", "cat", "dog"]}
        assert [record["label"] for record in source.records] == labels


def test_bools_are_two_classes(tmp_path):
    rows = {"image": [{"bytes": _png(n), "path": None} for n in range(3)], "label": [True, False, None]}
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(rows).to_parquet(path)
    source = open_source(str(path))
    assert source.labels == {"label": ["False", "True"]}
    assert [record["label"] for record in source.records] == [1, 0, None]


@pytest.mark.parametrize("label", [[1, 2], {"a": 1}])
def test_several_labels_for_an_image_are_refused_only_when_asked_for(tmp_path, label):
    rows = {"image": [{"bytes": _png(n), "path": None} for n in range(3)], "label": [label] * 3}
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(rows).to_parquet(path)
    assert open_source(str(path)).labels == {}
    with pytest.raises(ValueError, match="`label` of .* Several labels for one image are not supported"):
        open_source(str(path), label_column="label")


def test_a_source_knows_what_its_name_is(tmp_path, monkeypatch, parquet_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").symlink_to(parquet_folder)
    (tmp_path / "shapes").mkdir()  # the embedded ones come first
    for dataset, kind in [
        ("org/name", "local"),
        (f"file://{parquet_folder}", "local"),
        ("shapes", "embedded"),
        ("digits", "embedded"),
        (datasets.Dataset.from_dict({"image": [Image.new("L", (4, 3))]}), "object"),
    ]:
        assert open_source(dataset).kind == kind
    datasets.load_dataset("parquet", data_files=str(parquet_folder / "test*"))["train"].save_to_disk("org/saved")
    assert open_source("org/saved").kind == "local"
    records = datasets.Dataset.from_dict({"image": [Image.new("L", (4, 3))]}).to_iterable_dataset()
    doors = {"open_hub": ("org/other", "hub"), "open_address": ("hf://datasets/org/name", "address")}
    for door, (dataset, kind) in doors.items():
        monkeypatch.setattr(sources, door, lambda *arguments: Opened(records, None, ""))
        assert open_source(dataset).kind == kind


def test_what_a_name_tells_of_older_records(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "c10").mkdir(parents=True)
    told = {"data/c10": "local", "org/name": "hub", "data": "local", "mnist": None, "a/b/c": "local", "~/a": "local"}
    told |= {"digits": "embedded", "in-memory data set (a/b)": "object", "s3://a/b": "address", "file:///a/b": "local"}
    told |= {"C:\\photos": "local", "a/b.parquet": "local", "/data": "local"}
    assert {name: kind_by_name(name) for name in told} == told
