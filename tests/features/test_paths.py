"""Features know the files that they come from, and never say where these lie on a machine."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
from PIL import Image

from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import encoder_of
from hf_ssl.features.extract import extract_shards
from hf_ssl.features.folder import ExtractionSettings, begin_split, columns_of, describe, finish_split
from hf_ssl.features.paths import path_in_dataset
from hf_ssl.features.search import nearest, open_features

SETTINGS = ExtractionSettings(rows_per_shard=2)
PLACES = ["cat/1.png", "cat/2.png", "dog/deep/1.png"]


@pytest.fixture(scope="module")
def encoder():
    return encoder_of(timm.create_model("test_resnet", num_classes=0), 32, (0.5,) * 3, (0.2,) * 3)


def png(number):
    file = io.BytesIO()
    Image.linear_gradient("L").rotate(40 * number).resize((30, 30)).save(file, "PNG")
    return file.getvalue()


def features_of(folder, encoder, dataset, *, old=False, number=3):
    """Extract; an `old` folder was begun when features had no paths."""
    source = open_source(dataset)
    about = describe(encoder, source, SETTINGS, seed=0, dataset={"dataset": source.name})
    if old:
        del about["paths"]
    complete = begin_split(folder, about, source)
    extract_shards(folder, encoder, source, SETTINGS, complete)
    finish_split(folder, "train", number)
    return datasets.load_dataset(str(folder), split="train")


def image_folder(folder):
    for number, place in enumerate(PLACES):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return folder


def parquet(path, paths):
    rows = {"image": [{"bytes": png(number), "path": path} for number, path in enumerate(paths)]}
    datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()})).to_parquet(path)
    return path


def test_paths_of_a_folder_are_relative_to_it_however_it_is_named(encoder, tmp_path, monkeypatch):
    image_folder(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate([str(tmp_path / "in"), "in", "./in/", str(tmp_path / "x" / ".." / "in")]):
        (tmp_path / "x").mkdir(exist_ok=True)
        table = features_of(tmp_path / f"out{number}", encoder, name)
        assert table["path"][:] == PLACES
        assert table.features["path"] == datasets.Value("string")
    shard = (tmp_path / "out0" / "data" / "train-00000.parquet").read_bytes()
    assert str(tmp_path).encode() not in shard


def test_members_of_a_tar_and_rows_of_parquet_have_their_own_names(encoder, tmp_path):
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for number, place in enumerate(PLACES):
            info = tarfile.TarInfo(place)
            info.size = len(png(number))
            archive.addfile(info, io.BytesIO(png(number)))
    assert features_of(tmp_path / "tar", encoder, str(tmp_path / "in.tar"))["path"][:] == PLACES
    path = parquet(tmp_path / "in.parquet", ["a/1.png", "/home/me/secret/2.png", None])
    assert features_of(tmp_path / "parquet", encoder, str(path))["path"][:] == ["a/1.png", "2.png", None]


def test_a_data_set_without_files_has_no_paths(encoder, tmp_path):
    source = open_source("digits", split="test")
    settings = ExtractionSettings(rows_per_shard=50, max_images=60)
    about = describe(encoder, source, settings, seed=0, dataset={"dataset": "digits"})
    extract_shards(tmp_path, encoder, source, settings, begin_split(tmp_path, about, source))
    finish_split(tmp_path, "test", 60)
    assert datasets.load_dataset(str(tmp_path), split="test")["path"][:] == [None] * 60


def test_a_folder_without_paths_opens_and_goes_on_without(encoder, tmp_path):
    image_folder(tmp_path / "in")
    features_of(tmp_path / "old", encoder, str(tmp_path / "in"), old=True)
    (tmp_path / "old" / "data" / "train-00001.parquet").unlink()  # as if the former version had been interrupted
    record = json.loads((tmp_path / "old" / "features.json").read_text())
    record["splits"]["train"] = {"fingerprint": record["splits"]["train"]["fingerprint"]}
    (tmp_path / "old" / "features.json").write_text(json.dumps(record))
    table = features_of(tmp_path / "old", encoder, str(tmp_path / "in"))
    assert table.column_names == ["row_id", "embedding"]  # images at different depths have no classes
    saved = open_features(str(tmp_path / "old"))
    found = nearest(saved, np.ones((1, encoder.dim), np.float32), 3)
    assert found.paths.tolist() == [[None, None, None]]


def test_neighbours_know_their_files(encoder, tmp_path):
    image_folder(tmp_path / "in")
    table = features_of(tmp_path / "out", encoder, str(tmp_path / "in"))
    found = nearest(open_features(str(tmp_path / "out")), np.array(table["embedding"][:], np.float32), 2)
    assert found.paths[:, 0].tolist() == PLACES
    assert pq.read_schema(tmp_path / "out" / "data" / "train-00000.parquet").names[:2] == ["row_id", "path"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/photos/a/b.jpg", "a/b.jpg"),
        ("/data/photos-2/a/b.jpg", "b.jpg"),
        ("/data/photos/../other/b.jpg", "b.jpg"),
        ("../b.jpg", "b.jpg"),
        ("~me/b.jpg", "b.jpg"),
        ("C:\\Users\\me\\b.jpg", "b.jpg"),
        ("\\\\server\\me\\b.jpg", "b.jpg"),
        ("file:///home/me/b.jpg", "b.jpg"),
        ("/data/photos/a::b:c.jpg", "a::b:c.jpg"),
        ("a/./b.jpg", "a/b.jpg"),
        ("hf://datasets/org/name@0123/train/b.jpg", "train/b.jpg"),
        ("zip://cat/b.jpg::hf://datasets/org/name@0123/photos.zip", "cat/b.jpg"),
        ("zip:///home/me/b.jpg::/home/me/photos.zip", "b.jpg"),
        ("/data/photos/\udcff.jpg", "\ufffd.jpg"),
        ("", None),
        (None, None),
    ],
)
def test_nothing_of_the_machine_is_kept(path, expected):
    assert path_in_dataset(path, Path("/data/photos")) == expected


def test_a_label_column_called_path_is_named():
    with pytest.raises(UserError, match="The label column `path` has the name"):
        columns_of({"path": []}, 4, "float32")
