"""Folders, files and archives are read as `datasets.load_dataset` reads them, and what is doubtful is asked."""

import base64
import http.server
import io
import json
import logging
import os
import re
import shlex
import tarfile
import threading
import zipfile
from collections import Counter
from functools import partial

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_ssl.commands import main
from hf_ssl.commands.flags import flags_of, parse_flags
from hf_ssl.data.decode.image_bytes import bytes_of
from hf_ssl.data.settings import PLACES, DataSettings, PlaceSettings
from hf_ssl.data.sources.files import INDEX_COLUMN
from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError


def _png(number):
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


def _images(*files):
    """Writes one image for each file, every one of its own."""

    def write(folder):
        for number, file in enumerate(files):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(_png(number))

    return write


def _classes(*folders, count=2):
    return [
        f"{folder}/{name}/{number}.png" for folder in folders for name in ("cat", "dog") for number in range(count)
    ]


def _rows(numbers, names=("cat", "dog")):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    rows = {
        "image": [{"bytes": _png(number), "path": None} for number in numbers],
        "label": [number % len(names) for number in numbers],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def _parquet(**files):
    """Writes parquet files: name, with `__` for a slash -> numbers of its images."""

    def write(folder):
        for name, numbers in files.items():
            path = folder / f"{name.replace('__', '/').replace('_of_', '-of-').replace('_0', '-0')}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(_rows(numbers).data.table, path)

    return write


def _tar(path, numbers, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for number in numbers:
            for suffix, data in (("png", _png(number)), ("cls", b"%d" % (number % 3))):
                member = tarfile.TarInfo(f"{number:04}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _zip(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number, file in enumerate(files):
            archive.writestr(file, _png(number))


WORDS = ["owl", "ape", "fox"]


def _metadata(kind, splits=("train", "test")):
    def write(folder):
        for start, split in enumerate(splits):
            _images(*[f"{split}/{number}.png" for number in range(4)])(folder)
            rows = [{"file_name": f"{n}.png", "label": WORDS[(n + start) % 3], "id": n} for n in range(3)]
            path = folder / split / f"metadata.{kind}"
            if kind == "csv":
                lines = [",".join(rows[0])] + [",".join(map(str, row.values())) for row in rows]
                path.write_text("\n".join(lines) + "\n")
            elif kind == "jsonl":
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            else:
                datasets.Dataset.from_list(rows).to_parquet(path)

    return write


def _card(text, write):
    def both(folder):
        write(folder)
        (folder / "README.md").write_text(f"---\n{text}---\n# A data set\n")

    return both


def _with_assets(folder):
    _parquet(data__train_00000_of_00001=range(5))(folder)
    _images("assets/0.png", "assets/1.png", "assets/2.png")(folder)


def _text_rows(numbers):
    return [{"image": base64.b64encode(_png(n)).decode(), "label": n % 2, "note": f"n{n}"} for n in numbers]


def _jsonl(folder):
    for split, numbers in (("train", range(5)), ("test", range(5, 8))):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _text_rows(numbers)))


def _csv(folder):
    lines = ["image,label"] + [f"{row['image']},{row['label']}" for row in _text_rows(range(5))]
    (folder / "data.csv").write_text("\n".join(lines) + "\n")


def _arrow(folder):
    for split, numbers in (("train", range(5)), ("test", range(5, 7))):
        _rows(numbers).save_to_disk(folder / "saved")
        os.replace(folder / "saved" / "data-00000-of-00001.arrow", folder / f"{split}.arrow")
        for file in (folder / "saved").iterdir():
            file.unlink()
    (folder / "saved").rmdir()


CONFIGS = """configs:
- config_name: default
  data_files:
  - split: train
    path: data/train/**
  - split: test
    path: data/test/**
"""
TWO_CONFIGS = """configs:
- config_name: large
  data_dir: big
- config_name: small
  data_dir: little
  default: true
"""
STATED = """dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': ant
          '1': bee
  splits:
  - name: train
    num_examples: 4
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
"""
UPPER = [f"{split}/{name}/{n}.png" for split in ("TRAIN", "TEST") for name in ("cat", "dog") for n in range(3)]

LAYOUTS = {
    "class folders": _images(*_classes("pets")),
    "flat": _images("a.png", "b.PNG", "c d.png"),
    "split folders": _images(*_classes("train", "val", "test")),
    "eval": _images(*_classes("train", "eval")),
    "data_dir": _images(*_classes("data/train", "data/test")),
    "docs": _images(*_classes("train", "test"), "figures/f0.png"),
    "docs deeper": _images(*_classes("train", "test"), "docs/figures/f0.png"),
    "flat files": _images(*[f"{split}_{n}.png" for split in ("train", "test") for n in range(6)]),
    "mixed": _images(*_classes("."), "loose0.png"),
    "one class": _images("cat/0.png", "cat/1.png"),
    "stl": _images(*_classes("train", "test"), *[f"unlabeled/{n}.png" for n in range(20)]),
    "upper": _images(*UPPER),
    "classes differ": _images("train/ant/0.png", *_classes("train", "test")),
    "first split has one class": _images("train/cat/0.png", "test/cat/1.png", "test/dog/2.png"),
    "nested classes": _images("birds/owl/0.png", "birds/hawk/1.png", "mammals/fox/2.png"),
    "different depths": _images("cat/0.png", "dog/more/1.png"),
    "split words in names": _images("train-images/cat/0.png", "train-images/dog/1.png", "my_test/cat/2.png"),
    "hidden": _images("cat/0.png", "dog/1.png", ".git/2.png", "__MACOSX/3.png", "cat/.4.png"),
    "metadata csv": _metadata("csv"),
    "metadata jsonl": _metadata("jsonl"),
    "metadata parquet": _metadata("parquet"),
    "configs of a README": _card(CONFIGS, _metadata("csv", ("data/train", "data/test"))),
    "two configs": _card(TWO_CONFIGS, _images(*_classes("big", "little"))),
    "classes of a README": _card(STATED, _parquet(data__train_00000_of_00001=range(4))),
    "assets": _with_assets,
    "parquet shards": _parquet(
        data__train_00000_of_00002=range(4), data__train_00001_of_00002=range(4, 6), data__extra_00000_of_00001=[9]
    ),
    "parquet names": _parquet(train=range(4), test=range(4, 6)),
    "parquet": _parquet(a=range(3), b=range(3, 5)),
    "tar": lambda folder: [_tar(folder / "train-0.tar", range(4)), _tar(folder / "test-0.tar", range(4, 6))],
    "tar.gz": lambda folder: _tar(folder / "all.tar.gz", range(4), "w:gz"),
    "zip": lambda folder: _zip(folder / "train.zip", ["0.png", "1.png"]),
    "zip with a folder": lambda folder: _zip(folder / "train.zip", ["cat/0.png", "cat/1.png"]),
    "jsonl base64": _jsonl,
    "csv base64": _csv,
    "arrow": _arrow,
}


def _labels_of(source):
    """Names of the classes of a record, or its number, or None."""
    if not source.labels:
        return [None] * len(list(source.records))
    column, names = next(iter(source.labels.items()))
    return [
        record[column] if record[column] is None or not names else names[record[column]] for record in source.records
    ]


def _expected(dataset, image, label):
    labels = [None] * len(dataset)
    if label is not None:
        feature = dataset.features[label]
        labels = [
            feature.int2str(value) if isinstance(feature, datasets.ClassLabel) and value is not None else value
            for value in dataset[label]
        ]
    if isinstance(dataset.features[image], datasets.Image):
        cells = dataset.cast_column(image, datasets.Image(decode=False))[image]
        return [(bytes_of(cell), value) for cell, value in zip(cells, labels, strict=True)]
    return [(base64.b64decode(cell), value) for cell, value in zip(dataset[image], labels, strict=True)]


def _compare(place, tmp_path, **load):
    loaded = datasets.load_dataset(str(place), cache_dir=str(tmp_path / "cache"), **load)
    for split, dataset in loaded.items():
        source = open_source(str(place), split=str(split))
        label = next(iter(source.labels), None)
        images = [bytes_of(record[source.image_column]) for record in source.records]
        found = list(zip(images, _labels_of(source), strict=True))
        expected = _expected(dataset, source.image_column, label)
        assert Counter(found) == Counter(expected)
        assert found == expected  # in the same order
        if source.num_images is not None:
            assert source.num_images == len(expected)
        feature = dataset.features.get("label")
        if isinstance(feature, datasets.ClassLabel):
            assert source.labels == {"label": feature.names}
    with pytest.raises(UserError, match=f"has no split `no_such`. It has: {', '.join(map(str, loaded))}"):
        open_source(str(place), split="no_such")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_is_what_load_dataset_makes_of_it(layout, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    LAYOUTS[layout](folder)
    _compare(folder, tmp_path)


NAMES = ("train", "test", "val", "eval", "cat", "dog", "Train", "unlabeled", "train_1", "my test", "data", "x-train-y")
FILES = ("{}.png", "train_{}.png", "test-{}.png", "{}.PNG", "IMG {}.png")


@pytest.mark.parametrize("seed", range(16))
def test_any_folder_is_what_load_dataset_makes_of_it_or_is_asked(seed, tmp_path):
    """Folders and files at random depths, with names of splits and others."""
    random = np.random.default_rng(seed)
    folder, depth = tmp_path / "set", random.integers(4)
    levels = [random.choice(NAMES, random.integers(1, 4), replace=False) for _ in range(depth)]
    pattern = random.choice(FILES)
    files = ["/".join([*(random.choice(level) for level in levels), pattern.format(n)]) for n in range(12)]
    _images(*files)(folder)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    for split, dataset in loaded.items():
        try:
            source = open_source(str(folder), split=str(split))
        except UserError as error:
            assert "can be read in two ways" in str(error) and "--d" in str(error)
            return
        label = next(iter(source.labels), None)
        expected = _expected(dataset, "image", label)
        if "count once" in source.understood:
            expected = list(dict.fromkeys(expected))
        images = [bytes_of(record["image"]) for record in source.records]
        assert list(zip(images, _labels_of(source), strict=True)) == expected
        assert label is not None or "label" not in dataset.features or "--drop_labels false" in source.understood


def test_the_patterns_that_an_error_names_choose_the_same_images(tmp_path):
    names = [f"{word}{n}.png" for word in ("train_", "test-", "photo ") for n in range(15)]
    _images(*names, *[f"more/{n}.png" for n in range(30)])(tmp_path)
    with pytest.raises(UserError, match="by names of files") as caught:
        open_source(str(tmp_path))
    first, everything = re.findall("--data_files '(.*?)'", str(caught.value))
    chosen = DataSettings(dataset=str(tmp_path), data_files=first)
    assert (chosen.open().num_images, chosen.open(split="test").num_images) == (15, 15)
    assert DataSettings(dataset=str(tmp_path), data_files=everything).open().num_images == 75


def test_a_path_may_hold_the_signs_of_patterns(tmp_path):
    folder = tmp_path / "a[x]*{b}?"
    _images(*_classes("train", "test"))(folder)
    source = open_source(str(folder), split="test")
    assert (source.num_images, source.labels) == (4, {"label": ["cat", "dog"]})
    _images("[1].png")(folder / "own")
    assert open_source(str(folder), data_files="own/[1].png").num_images == 1


def test_flat_split_folders_are_no_classes(tmp_path):
    """`load_dataset` makes the classes `test` and `train` of them."""
    _images("train/0.png", "train/1.png", "test/2.png")(tmp_path)
    source = open_source(str(tmp_path))
    assert (source.num_images, source.labels) == (2, {})
    assert "no classes (`test`, `train` are splits; `--drop_labels false` makes them classes)" in source.understood
    assert open_source(str(tmp_path), drop_labels=False).labels == {"label": ["test", "train"]}


def test_zip_archives_have_classes(tmp_path):
    """The labels of the members' folders: `load_dataset` 5.2 stops at them."""
    _zip(tmp_path / "set" / "train.zip", ["cat/0.png", "dog/1.png", "__MACOSX/._0.png", "dog/notes.txt"])
    for place in (tmp_path / "set", tmp_path / "set" / "train.zip"):
        source = open_source(str(place))
        assert (source.num_images, source.labels) == (2, {"label": ["cat", "dog"]})
        records = list(source.records)
        assert [bytes_of(record["image"]) for record in records] == [_png(0), _png(1)]
        assert [record["label"] for record in records] == [0, 1]
        assert records[1]["image"]["path"].endswith("train.zip") and "dog/1.png" in records[1]["image"]["path"]
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match="bad.zip` cannot be read as a zip archive"):
        open_source(str(tmp_path / "bad.zip"))


@pytest.mark.parametrize("ending", ["tgz", "tbz2", "txz"])
def test_short_endings_of_compressed_tars(ending, tmp_path):
    with tarfile.open(tmp_path / f"a.{ending}", f"w:{ {'tgz': 'gz', 'tbz2': 'bz2', 'txz': 'xz'}[ending] }") as archive:
        _images("in/a.png", "in/b.png")(tmp_path)
        archive.add(tmp_path / "in", "in")
    assert len(list(open_source(str(tmp_path / f"a.{ending}")).records)) == 2


def test_endings_in_capitals(tmp_path):
    pq.write_table(_rows(range(5)).data.table, tmp_path / "TRAIN.PARQUET")
    _tar(tmp_path / "tars" / "A.TAR", range(3))
    for place in (tmp_path / "TRAIN.PARQUET", tmp_path):
        assert open_source(str(place), data_files=None if place.is_file() else "*.PARQUET").num_images == 5
    assert len(list(open_source(str(tmp_path / "tars")).records)) == 3


def test_folders_of_save_to_disk(tmp_path):
    both = datasets.DatasetDict({"train": _rows(range(5)), "test": _rows(range(5, 7))})
    both.save_to_disk(tmp_path / "both")
    both["train"].save_to_disk(tmp_path / "one")
    for place, split, numbers in (
        ("both", "train", range(5)),
        ("both", "test", range(5, 7)),
        ("one", "train", range(5)),
    ):
        source = open_source(str(tmp_path / place), split=split)
        assert (source.num_images, source.labels) == (len(numbers), {"label": ["cat", "dog"]})
        assert [bytes_of(record["image"]) for record in source.records] == [_png(n) for n in numbers]
        assert source.has_indices
    with pytest.raises(UserError, match="has no split `val`. It has: train, test"):
        open_source(str(tmp_path / "both"), split="val")
    with pytest.raises(UserError, match="`data_files` is for folders of files and the Hub, but .* `save_to_disk`"):
        open_source(str(tmp_path / "both"), data_files="**")


def test_paths_in_tables_are_relative_to_the_folder(tmp_path, monkeypatch):
    _images("pictures/0.png", "pictures/1.png")(tmp_path)
    rows = [{"image": f"pictures/{n}.png", "label": ["b", "a"][n]} for n in range(2)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path.parent)
    source = open_source(str(tmp_path), data_files="rows.json")
    assert [bytes_of(record["image"]) for record in source.records] == [_png(0), _png(1)]
    assert (source.labels, [record["label"] for record in source.records]) == ({"label": ["a", "b"]}, [1, 0])
    assert [record[INDEX_COLUMN] for record in source.records] == [0, 1]


@pytest.mark.parametrize("kind", ["parquet", "object", "dictionary"])
def test_texts_are_classes_with_one_number_in_all_splits(kind, tmp_path):
    parts = {}
    for split, names in (("train", ["owl", "ape", None]), ("test", ["fox", "owl"])):
        rows = {"image": [{"bytes": _png(n), "path": None} for n in range(len(names))], "label": names, "word": names}
        parts[split] = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        parts[split].to_parquet(tmp_path / f"{split}.parquet")
    data = {"parquet": str(tmp_path), "object": parts["test"], "dictionary": datasets.DatasetDict(parts)}[kind]
    if kind == "object":
        assert open_source(data).labels == {"label": ["fox", "owl"]}
        return
    train, test = open_source(data), open_source(data, split="test")
    assert train.labels == test.labels == {"label": ["ape", "fox", "owl"]}
    assert [record["label"] for record in train.records] == [2, 0, None]
    assert [record["label"] for record in test.records] == [1, 2]
    named = open_source(data, label_column="word")
    assert list(named.labels) == ["word", "label"]
    assert [record["word"] for record in named.records] == [2, 0, None]


def test_texts_of_a_stream_are_no_classes_and_asking_for_them_says_why():
    stream = _rows(range(4)).cast_column("label", datasets.Value("string")).to_iterable_dataset()
    assert open_source(stream).labels == {}
    with pytest.raises(UserError, match="`label_column` must hold integers or class labels where a data set"):
        open_source(stream, label_column="label")


def test_captions_are_no_classes(tmp_path):
    rows = {"image": [{"bytes": _png(0), "path": None}] * 1100, "label": [f"picture {n}" for n in range(1100)]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    assert open_source(str(tmp_path)).labels == {}
    assert len(open_source(str(tmp_path), label_column="label").labels["label"]) == 1100


AMBIGUOUS = {
    "a class named train": (
        ["vehicles/plane/0.png", "vehicles/plane/1.png", "vehicles/train/2.png"],
        "split `train` with 1 image, without the other 2 images .`vehicles/plane`.*all 3 images.*--data_files '..'",
        [({"data_files": "**"}, 3, ["plane", "train"]), ({"data_files": {"train": "vehicles/train/**"}}, 1, None)],
    ),
    "splits below classes": (
        ["cat/train/0.png", "cat/test/1.png", "dog/train/2.png", "dog/test/3.png"],
        "splits `train` .2 images., `test` .2 images. and no classes, by --drop_labels true; .*`test`, `train`.*`cat`",
        [({"drop_labels": True}, 2, None), ({"drop_labels": False}, 2, ["test", "train"])],
    ),
    "an image in two splits": (
        ["train/test/0.png", "train/dog/1.png", "test/dog/2.png"],
        "1 images such as `train/test/0.png` into both splits `train` and `test`.*--data_files",
        [({"data_files": {"train": "train/**", "test": "test/**"}}, 2, ["dog", "test"])],
    ),
    "a folder that holds the word test": (
        ["my test shots/0.png", "beach/1.png", "beach/2.png"],
        "split `test` with 1 image, without the other 2 images .`beach`.",
        [({"data_files": "**"}, 3, ["beach", "my test shots"]), ({"data_files": "beach"}, 2, None)],
    ),
    "words in a few file names": (
        ["photo_eval.png", "dev-1.png", "a.png", "b.png", "c.png"],
        "by names of files, split `validation` with 1 image, split `test` with 1 image, without the other 3 images",
        [({"data_files": "*"}, 5, None)],
    ),
    "splits in capitals, without classes": (
        ["TRAIN/0.png", "TRAIN/1.png", "TEST/2.png"],
        "one split `train` of 3 images with the classes `TEST` .1 images., `TRAIN` .*with the splits test, train",
        [
            ({"data_files": {"train": "TRAIN/**", "test": "TEST/**"}, "drop_labels": True}, 2, None),
            ({"data_files": "**"}, 3, ["TEST", "TRAIN"]),
        ],
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_asked(case, tmp_path):
    files, message, choices = AMBIGUOUS[case]
    _images(*files)(tmp_path)
    with pytest.raises(UserError, match="can be read in two ways.*" + message):
        open_source(str(tmp_path))
    for flags, number, names in choices:
        source = open_source(str(tmp_path), **flags)
        assert source.num_images == number
        assert source.labels == ({} if names is None else {"label": names})


def test_images_and_tables_in_one_folder_are_asked(tmp_path):
    _parquet(rows=range(5))(tmp_path)
    _images("pictures/0.png", "pictures/1.png")(tmp_path)
    (tmp_path / "pictures" / "2.jpg").write_bytes(_png(2))
    with pytest.raises(UserError, match="a folder of images of 3 files without the 1 file of other formats") as caught:
        open_source(str(tmp_path))
    images, tables = re.findall("--data_files '(.*?)'", str(caught.value))
    assert DataSettings(dataset=str(tmp_path), data_files=images).open().num_images == 3
    assert DataSettings(dataset=str(tmp_path), data_files=tables).open().num_images == 5
    assert open_source(str(tmp_path), data_files="**/*.parquet").num_images == 5
    assert open_source(str(tmp_path), data_files="**/*.png").num_images == 2


def test_assets_never_outvote_tables(tmp_path):
    _parquet(rows=range(5))(tmp_path)
    _images("assets/0.png", "assets/1.png")(tmp_path)
    source = open_source(str(tmp_path))
    assert (source.num_images, "2 images beside the parquet files" in source.understood) == (5, True)


def test_what_was_understood_is_said_once(tmp_path, caplog):
    LAYOUTS["stl"](tmp_path)
    with caplog.at_level(logging.INFO, "hf_ssl"):
        sources = [open_source(str(tmp_path), split=split) for split in ("train", "test", "train")]
    line = sources[0].understood
    assert [record.getMessage() for record in caplog.records] == [line]
    assert "splits train (4 images), test (4 images); 2 classes: cat (4), dog (4)." in line
    assert "In no split: 20 images (`unlabeled`)" in line and '{"train": "unlabeled/**"}' in line
    LAYOUTS["upper"](tmp_path / "upper")
    assert "The folders `TEST`, `TRAIN` are no splits" in open_source(str(tmp_path / "upper")).understood
    LAYOUTS["metadata csv"](tmp_path / "meta")
    line = open_source(str(tmp_path / "meta")).understood
    assert "Split train has 3 rows of metadata for 4 images." in line and "`label`, 3 classes" in line
    LAYOUTS["split folders"](tmp_path / "beside")
    (tmp_path / "beside" / "metadata.csv").write_text("file_name,label\ntrain/cat/0.png,1\n")
    assert "in no split: `metadata.csv`." in open_source(str(tmp_path / "beside")).understood
    _images("a.png", "b.png")(tmp_path / "table")
    (tmp_path / "table" / "table.csv").write_text("image,label\na.png,1\n")
    line = open_source(str(tmp_path / "table")).understood
    assert "Not read: the table `table.csv`; `--data_files 'table.csv'` reads images that it names." in line
    (tmp_path / "meta" / "train" / "metadata.csv").write_text("file_name\n0.png\n")
    (tmp_path / "meta" / "test" / "metadata.csv").write_text("file_name\n0.png\n")
    assert open_source(str(tmp_path / "meta")).understood.endswith("No label column.")


def test_an_image_that_two_patterns_match_is_read_once(tmp_path):
    _images("train/train_1/0.png", "train/b/1.png")(tmp_path)
    source = open_source(str(tmp_path))
    assert source.num_images == len(list(source.records)) == 2
    assert "1 image that two patterns of a split match" in source.understood


def test_configs_folders_and_files_that_are_chosen(tmp_path):
    LAYOUTS["two configs"](tmp_path)
    small, large = open_source(str(tmp_path)), open_source(str(tmp_path), config="large")
    assert small.fingerprint != large.fingerprint
    assert {record["image"]["path"].split(os.sep)[-3] for record in large.records} == {"big"}
    assert {record["image"]["path"].split(os.sep)[-3] for record in small.records} == {"little"}
    with pytest.raises(UserError, match="`dataset_config` `huge` must be a config of .*. It has: large, small"):
        open_source(str(tmp_path), config="huge")
    settings = DataSettings(dataset=str(tmp_path), data_files='{"train": "big/cat/**", "test": ["big/dog/0.png"]}')
    assert (settings.open().num_images, settings.open(split="test").num_images) == (2, 1)
    assert settings.described()["data_files"] == {"train": "big/cat/**", "test": ["big/dog/0.png"]}
    assert DataSettings(dataset=str(tmp_path), data_dir="big", drop_labels=True).open().labels == {}


def test_a_choice_is_written_as_flags_and_read_again():
    settings = DataSettings(
        dataset="x", data_files={"train": ["a b/**", "it's.png"]}, drop_labels=False, data_dir="d e"
    )
    words = shlex.split(" ".join(settings.place_flags()))
    read = parse_flags(words, {"data": flags_of(PlaceSettings)}, program="x", description="")
    assert PlaceSettings(**read).places() == PlaceSettings(**{n: getattr(settings, n) for n in PLACES}).places()
    assert DataSettings(dataset="x").place_flags() == []


def test_wrong_choices_get_one_sentence(tmp_path):
    _images(*_classes("train", "test"))(tmp_path / "set")
    place = str(tmp_path / "set")
    for choice, message in (
        ({"data_dir": "images"}, "`data_dir` must be a folder in .*, got `images`. It has: test, train"),
        ({"data_dir": str(tmp_path)}, "`data_dir` must be a folder in .*, relative to it"),
        ({"data_dir": "train/../.."}, "`data_dir` must be a folder in .*, got `train/../..`"),
        ({"data_files": "valid/**"}, "`data_files` `valid/..` matches no image or data file"),
        ({"data_files": "a**b"}, "`data_files` must hold glob patterns|matches no image"),
        ({"data_files": "https://x.org/a.png"}, "`data_files` of a folder must lie on this machine"),
        ({"config": "small"}, "`dataset_config` `small` must be a config of .*states no configs"),
        ({"revision": "main"}, "`dataset_revision` is for data sets on the Hub, but .* is on this machine"),
        (
            {"split": "train[:10%]"},
            r"has no split `train\[:10%\]`. It has: train, test. One split is opened at a time",
        ),
        ({"split": "val"}, "It has: train, test. Choose one of these, or say which files are `val`: `--data_files '{"),
        ({"split": "train+test"}, "One split is opened at a time"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_source(place, **choice)
        assert "\n" not in str(caught.value)
    _parquet(rows=range(3))(tmp_path / "tables")
    with pytest.raises(UserError, match="`drop_labels` is for folders of images, but .* holds parquet files"):
        open_source(str(tmp_path / "tables"), drop_labels=True)
    with pytest.raises(UserError, match="`data_files` is for folders and data sets on the Hub, but .* is a file"):
        open_source(str(tmp_path / "tables" / "rows.parquet"), data_files="**")
    with pytest.raises(UserError, match="`data_files` is for folders of files and the Hub, but `shapes` comes with"):
        open_source("shapes", data_files="**")
    with pytest.raises(UserError, match="`data_files` must name splits by letters, digits and _, got `held out`"):
        DataSettings(dataset=place, data_files='{"held out": "**"}')
    for wrong in ("{", [], '{"train": 3}', {"train": []}, {}, ""):
        with pytest.raises(UserError, match="`data_files` must be a pattern, a list of patterns, or a JSON object"):
            DataSettings(dataset=place, data_files=wrong)
        with pytest.raises(UserError, match="`data_files` must be a pattern, a list of patterns, or a JSON object"):
            open_source(place, data_files=wrong)
    (tmp_path / "set" / "README.md").write_text("---\nconfigs: 3\n---\n")
    with pytest.raises(UserError, match="README.md of .* cannot be read as a data set's"):
        open_source(place)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://bucket/train.parquet", "needs a package that reads `s3://`. Install it: pip install s3fs"),
        ("nothing://bucket/train.parquet", "must be at an address that fsspec knows"),
        ("https://localhost:1/folder", "must be a file at an http address"),
        (
            "https://localhost:1/train.parquet",
            r"cannot be opened: .*train.parquet'\. Check the name",
        ),
        ("hf://datasets/alone", "must have an address such as hf://datasets/uoft-cs/cifar10"),
        ("hf://datasets/org/x@main/a.parquet", "cannot be opened"),
    ],
)
def test_addresses_that_cannot_be_opened_get_one_sentence(address, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(address)
    assert "\n" not in str(caught.value)


def test_addresses_are_read_by_fsspec(tmp_path):
    _parquet(train=range(4), test=range(4, 6))(tmp_path)
    _tar(tmp_path / "tars" / "a.tar", range(3))
    for place, split, number in (
        (f"file://{tmp_path}/train.parquet", "train", 4),
        (f"file://{tmp_path}", "test", 2),
        (f"file://{tmp_path}/tars/*.tar", "train", 3),
    ):
        source = open_source(place, split=split)
        assert len(list(source.records)) == number
        before = source.fingerprint
    _images("classes/cat/a.png", "classes/dog/b.png")(tmp_path)
    assert open_source(f"file://{tmp_path}/classes").labels == {"label": ["cat", "dog"]}
    _tar(tmp_path / "tars" / "a.tar", range(4))
    os.utime(tmp_path / "tars" / "a.tar", (1, 1))
    assert open_source(place).fingerprint != before


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, as servers of data do."""

    def log_message(self, format, *args):
        pass

    def do_HEAD(self):  # noqa: N802
        self.do_GET(head=True)

    def do_GET(self, head=False):  # noqa: N802
        path = self.translate_path(self.path)
        if not os.path.isfile(path):
            self.send_error(404)
            return
        with open(path, "rb") as file:
            content = file.read()
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2] or len(content) - 1)) if wanted else (0, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        if not head:
            self.wfile.write(part)


@pytest.fixture
def site(tmp_path):
    """A folder and its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Ranges, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses_of_the_web(site):
    folder, address = site
    _parquet(train=range(4), test=range(4, 6))(folder)
    _tar(folder / "a.tar", range(3))
    source = open_source(f"{address}/train.parquet")
    assert [bytes_of(record["image"]) for record in source.records] == [_png(n) for n in range(4)]
    assert source.labels == {"label": ["cat", "dog"]}
    files = {"train": "train.parquet", "held_out": "test.parquet"}
    assert len(list(open_source(address, data_files=files, split="held_out").records)) == 2
    assert len(list(open_source(f"{address}/a.tar").records)) == 3
    with pytest.raises(UserError, match="nothing.parquet` cannot be opened"):
        open_source(f"{address}/nothing.parquet")
    with pytest.raises(UserError, match="must be a file at an http address"):
        open_source(address)


def test_the_flags_reach_every_command_that_opens_images(tmp_path, capsys):
    _images(*AMBIGUOUS["a class named train"][0])(tmp_path)
    output = tmp_path / "views.pdf"
    arguments = ["views", "--dataset", str(tmp_path), "--output", str(output), "--num_images", "2"]
    assert main(arguments) != 0
    assert "can be read in two ways" in capsys.readouterr().err
    assert main([*arguments, "--data_files", "**", "--drop_labels"]) == 0
    assert output.is_file()
