"""The images that the page searches: neighbours and places by their formulas, and the same from files."""

import numpy as np
import pytest

from hf_ssl.data.order.ordered import sampled_rows
from hf_ssl.data.sources.open import open_source
from hf_ssl.demo.collection import Collection, collect, name_of_encoder
from hf_ssl.evaluation.encoders import load_encoder


@pytest.fixture(scope="module")
def collection():
    return collect(load_encoder("random:test_resnet"), open_source("shapes"), "tiny", 20)


def test_a_collection_holds_images_from_all_over_the_split(collection):
    source = open_source("shapes")
    assert collection.features.shape == (20, 96)
    assert len(collection.pictures) == len(collection.positions) == 20
    assert collection.picture(0).size == (192, 192)
    labels = [record["shape"] for record in source.records.take(500)]
    rows = sampled_rows(500, 20)
    assert collection.classes.tolist() == [labels[row] for row in rows]
    assert collection.class_of(3) == source.labels["shape"][labels[rows[3]]]


def test_neighbours_and_place_follow_their_formulas(collection):
    feature = np.random.default_rng(0).normal(size=96).astype(np.float32)
    rows = collection.features.astype(np.float64)
    cosines = [row @ feature / np.linalg.norm(row) / np.linalg.norm(feature) for row in rows]
    order = sorted(range(20), key=lambda number: -cosines[number])
    numbers, found = collection.nearest(feature, 6)
    assert numbers.tolist() == order[:6]
    np.testing.assert_allclose(found, [cosines[number] for number in order[:6]], atol=1e-6)
    weights = [1 / (1 - cosines[number]) for number in order[:5]]
    place = sum(w * collection.positions[n] for w, n in zip(weights, order[:5], strict=True)) / sum(weights)
    np.testing.assert_allclose(collection.place(feature), place, rtol=1e-3, atol=1e-3)


def test_an_image_of_the_collection_lies_where_it_is(collection):
    extent = np.ptp(collection.positions, axis=0).max()
    numbers, cosines = collection.nearest(collection.features[7], 100)
    assert numbers[0] == 7 and len(numbers) == 20
    assert cosines[0] == pytest.approx(1, abs=1e-6)
    assert np.abs(collection.place(collection.features[7]) - collection.positions[7]).max() < 0.02 * extent


def test_files_hold_the_whole_collection(collection, tmp_path):
    for name, content in collection.files().items():
        (tmp_path / name).write_bytes(content)
    loaded = Collection.load(tmp_path)
    for name in ("encoder", "dataset", "split", "label", "class_names", "pictures"):
        assert getattr(loaded, name) == getattr(collection, name)
    for name in ("classes", "features", "positions"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(collection, name))


def test_a_single_image_is_refused(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    picture = collect(load_encoder("random:test_resnet"), open_source("shapes"), "tiny", 2).picture(0)
    picture.save(folder / "picture.png")
    with pytest.raises(ValueError, match="A demo needs two images"):
        collect(load_encoder("random:test_resnet"), open_source(str(folder)), "tiny", 20)


def test_a_local_data_set_is_named_without_its_folders(tmp_path):
    assert name_of_encoder(str(tmp_path)) == tmp_path.name
    assert name_of_encoder("org/images") == "org/images"
