"""A portrait holds the numbers of the features of a sample from all over the split, the same ones each time."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hf_ssl.data.sources.open import open_source
from hf_ssl.diagnostics.alignment import alignment, uniformity
from hf_ssl.diagnostics.spectrum import rank_me
from hf_ssl.evaluation import portrait as module
from hf_ssl.evaluation.features import encoder_of, extract_augmented_features, extract_features
from hf_ssl.evaluation.portrait import map_of, neighbours_of, sample_of, take_portrait
from hf_ssl.modules.encoder import build_encoder


def png(level):
    file = io.BytesIO()
    picture = Image.new("RGB", (12, 10), (level, 255 - level, 7))
    picture.paste((0, 0, 255), (8, 4, 12, 10))
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def sorted_source(tmp_path_factory):
    """100 pictures, ten of each class in a row."""
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    images = [{"bytes": png(2 * number), "path": None} for number in range(100)]
    pq.write_table(pa.table({"image": images, "label": [number // 10 for number in range(100)]}), path)
    return open_source(str(path), label_column="label")


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return encoder_of(build_encoder("test_resnet"), 32, (0.5,) * 3, (0.25,) * 3)


def test_a_sample_comes_from_all_over_a_sorted_split(sorted_source, monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGES", 20)
    sample = sample_of(sorted_source)
    assert [row["label"] for row in sample.records] == [number // 10 for number in range(0, 100, 5)]
    assert sample.num_images == 20
    # Also where the sample is most of the split: the last images are in it.
    assert {row["label"] for row in sample_of(sorted_source, 60).records} == set(range(10))
    unknown = sample_of(replace(sorted_source, num_images=None))
    assert len(list(unknown.records)) == 20


def test_numbers_are_those_of_the_features(sorted_source, encoder):
    taken = take_portrait({"raw": encoder, "this": encoder}, sorted_source, gallery=True)
    features = extract_features(encoder, sorted_source).features
    assert taken.numbers["this"] == taken.numbers["raw"]
    assert taken.numbers["this"]["dim"] == 96
    assert taken.numbers["this"]["rank_me"] == rank_me(features).item()
    assert taken.numbers["this"]["uniformity"] == uniformity(features).item()
    crops = extract_augmented_features(encoder, sorted_source, 2).float()
    assert taken.numbers["this"]["alignment"] == alignment(*crops).item() > 0
    variances = torch.linalg.eigvalsh(features.double().T.cov()).flip(0).numpy()
    np.testing.assert_allclose(taken.spectra["this"], variances / variances.sum(), atol=1e-12)
    assert (taken.num_images, taken.num_pairs, taken.label) == (100, 100, "label")
    assert taken.positions.shape == (100, 2)
    # Each picture of the gallery is the one that its number says.
    for rows, pictures in zip(taken.gallery_rows, taken.gallery, strict=True):
        assert [int(picture[0, 0, 0]) for picture in pictures] == [2 * number for number in rows]
        assert pictures[0].shape == (96, 96, 3)


def test_pictures_of_a_sample_are_those_of_its_images(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGES", 20)
    images = [{"bytes": png(2 * number) if number % 10 != 5 else b"none", "path": None} for number in range(100)]
    pq.write_table(pa.table({"image": images, "label": [0] * 100}), tmp_path / "train.parquet")
    source = open_source(str(tmp_path / "train.parquet"))
    taken = take_portrait({"this": encoder}, source, gallery=True)
    sampled = [images.index({"bytes": row["image"]["bytes"], "path": None}) for row in sample_of(source).records]
    readable = [number for number in sampled if number % 10 != 5]
    assert taken.num_images == len(readable) < 20 and taken.gallery is not None
    for rows, pictures in zip(taken.gallery_rows, taken.gallery, strict=True):
        assert [int(picture[0, 0, 0]) for picture in pictures] == [2 * readable[row] for row in rows]


def test_no_picture_is_kept_unless_asked_for(sorted_source, encoder):
    assert take_portrait({"this": encoder}, sorted_source, gallery=False).gallery is None


def test_neighbours_are_the_nearest_by_cosine():
    features = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    rows = neighbours_of(features, 5, 6).tolist()
    unit = (features / features.norm(dim=1, keepdim=True)).numpy()
    assert [row[0] for row in rows] == [0, 10, 20, 29, 39]
    for query, *nearest in rows:
        order = sorted(range(40), key=lambda one: -float(unit[one] @ unit[query]))
        assert nearest == [one for one in order if one != query][:6]
    assert neighbours_of(features[:3], 5, 6).shape == (3, 3)


def test_the_map_keeps_groups_together_and_is_the_same_each_time():
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3, 16).repeat_interleave(30, dim=0)
    features = centres + 0.05 * torch.randn(90, 16, generator=generator)
    places = map_of(features)
    np.testing.assert_array_equal(places, map_of(features))
    distances = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) // 30 == np.arange(90) // 30).all()
    assert not map_of(torch.ones(50, 8)).any()  # complete collapse
