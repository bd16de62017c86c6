"""Near-duplicates and outliers: what was planted and nothing else, in chunks, by an index and by a formula."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from hf_ssl.errors import UserError
from hf_ssl.evaluation.features import Features, RowFeatures
from hf_ssl.features import pairs
from hf_ssl.features.duplicates import chosen_threshold, find_duplicates, find_outliers
from hf_ssl.features.folder import begin_split, columns_of, finish_split, shard_path, write_shard
from hf_ssl.features.pairs import nearest_of_each
from hf_ssl.features.search import build_index, open_features

DIM = 16
PER_SHARD = 50


def write(folder, splits, fingerprint="x", with_path=True):
    """Features as `extract` writes them: row `n` is of the file `n.png`; the first row of each shard is unusable."""
    about = {
        "encoder": {"name": f"encoder-{fingerprint}", "seed": 0, "dim": DIM, "fingerprint": fingerprint},
        "dataset": {"dataset": "numbers"},
        "labels": {},
        "paths": with_path,
        "settings": {"dtype": "float32", "bf16": False, "max_images": None, "rows_per_shard": PER_SHARD},
        "splits": {},
    }
    for split, features in splits.items():
        source = type("Source", (), {"split": split, "name": "numbers", "fingerprint": "f", "labels": {}})
        begin_split(folder, about, source)
        borders = [*range(0, len(features), PER_SHARD - 1), len(features)]
        for number, (start, end) in enumerate(pairwise(borders)):
            ids = PER_SHARD * number + 1 + torch.arange(end - start)
            rows = Features(torch.from_numpy(features[start:end]), {}, ids)
            part = RowFeatures(PER_SHARD * number, PER_SHARD, Counter(), rows, [f"{row}.png" for row in ids.tolist()])
            columns = columns_of({}, DIM, "float32", with_path=with_path)
            write_shard(shard_path(folder, split, number), [part], columns)
        finish_split(folder, split, None)
    return str(folder)


def row_of(place):
    return place // (PER_SHARD - 1) * PER_SHARD + place % (PER_SHARD - 1) + 1


def images(number, seed=0):
    return np.random.default_rng(seed).normal(size=(number, DIM)).astype(np.float32)


def near(features, seed=1):
    """The same up to a little, and of other lengths."""
    return 3 * features + 0.02 * images(len(features), seed)


def rows_of(groups):
    return [[one.row_id for one in group] for group in groups]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(pairs, "_QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(pairs, "_ROWS_AT_ONCE", 11)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("index", [None, "Flat", "IVF2,Flat"])
def test_planted_duplicates_are_found_and_nothing_else(tmp_path, index):
    features = images(400)
    for copy, of in [(30, 2), (333, 2), (77, 78)]:
        features[copy] = near(features[of : of + 1], copy)[0]
    folder = write(tmp_path / "features", {"train": features})
    if index:
        build_index(tmp_path / "features", "train", index)
    found = find_duplicates(open_features(folder), exact=index == "IVF2,Flat")
    expected = [sorted(row_of(place) for place in group) for group in ([2, 30, 333], [77, 78])]
    assert sorted(rows_of(found.groups)) == expected
    assert {one.path for group in found.groups for one in group} == {f"{row}.png" for row in sum(expected, [])}
    assert all(found.threshold <= one.similarity <= 1 for group in found.groups for one in group)
    assert found.splits == {"train": 400}
    text = str(found)
    assert "2 groups of near-duplicates: 5 of 400 images of train." in text
    assert f"at least {found.threshold:.6g}, chosen from the data. Without any duplicate, about 0.4 images" in text
    assert text.splitlines()[2].split() == ["group", "similarity", "row_id", "path"]


@pytest.mark.parametrize("scale", [0, 1])
def test_data_without_duplicates_have_hardly_any(tmp_path, scale):
    features = images(1000) * np.linspace(1, 0.2, DIM, dtype=np.float32) + np.float32(scale)
    found = find_duplicates(open_features(write(tmp_path / "features", {"train": features})))
    assert sum(map(len, found.groups)) <= 4
    assert "about 1 images" in str(found)
    assert "about 1,282 images would be listed by chance" in str(replace(found, by_chance=1281.5))


@pytest.mark.parametrize("part", [0, 0.05, 0.4])
@pytest.mark.parametrize("scale", [0.02, 1, 100])
def test_the_threshold_follows_the_distances_whatever_their_scale(part, scale):
    draws = np.random.default_rng(0)
    usual = 1e-2 * scale * draws.weibull(6, 20_000) / 2
    distances = np.where(np.arange(20_000) < part * 20_000, usual / 100, usual)
    threshold = chosen_threshold(1 - distances)
    listed = (1 - distances >= threshold).mean()
    assert abs(listed - part) < 0.004
    # The formula of the distribution, where nothing was planted.
    if part == 0 and scale == 1:
        assert 1 - threshold == pytest.approx(0.005 * 0.001 ** (1 / 6), rel=0.1)


def test_images_that_are_the_same_are_duplicates_whatever_the_data_say(tmp_path):
    spread = np.concatenate([[0], np.logspace(-4, 0, 999)])  # the formula would ask for a distance below rounding
    assert chosen_threshold(1 - spread) == 1 - 1e-5
    features = images(20)
    folder = write(tmp_path / "features", {"train": np.concatenate([features, 2 * features])})
    assert len(find_duplicates(open_features(folder)).groups) == 20
    assert len(find_duplicates(open_features(folder), threshold=1.0).groups) == 20


@pytest.mark.usefixtures("small_chunks")
def test_a_large_group_and_a_chain_are_one_group_each(tmp_path):
    # Two clumps: the nearest images that are kept of each image are all of its own clump.
    centres = np.repeat(images(1, 5) + np.array([[0], [0.1]], np.float32) * images(2, 7), 30, axis=0)
    many = centres + 0.001 * images(60, 6)
    angles = np.arange(30) * 0.1
    chain = np.zeros((30, DIM), np.float32)
    chain[:, 0], chain[:, 1] = np.cos(angles), np.sin(angles)
    features = np.concatenate([many, chain, images(40)])
    folder = write(tmp_path / "features", {"train": features})
    found = find_duplicates(open_features(folder), threshold=0.99)
    assert sorted(map(len, found.groups)) == [30, 60]
    assert found.by_chance is None
    assert "at least 0.99, as given." in str(found)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    best = {row_of(place): cosines[place].max() for place in range(len(features))}
    for one in sum(found.groups, []):
        assert one.similarity == pytest.approx(best[one.row_id], abs=1e-6)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("folders", [1, 2])
def test_images_of_one_split_are_found_in_another(tmp_path, index, folders):
    train, test = images(300), images(120, 2)
    train[9] = train[8]  # a duplicate within one split is none between two
    test[70], test[71], test[100] = near(train[[5, 5, 200]], 3)
    if folders == 1:
        names = [write(tmp_path / "both", {"train": train, "test": test})] * 2
    else:
        names = [write(tmp_path / "one", {"train": train}), write(tmp_path / "two", {"test": test})]
    if index:
        build_index(tmp_path / ("both" if folders == 1 else "two"), "test")
    saved, against = open_features(names[0], "train"), open_features(names[1], "test")
    found = find_duplicates(saved, against)
    titles = ["train", "test"] if folders == 1 else [f"{names[0]} train", f"{names[1]} test"]
    expected = [[(titles[0], 5), (titles[1], 70), (titles[1], 71)], [(titles[0], 200), (titles[1], 100)]]
    wanted = [[(split, row_of(place)) for split, place in group] for group in expected]
    assert sorted([(one.split, one.row_id) for one in group] for group in found.groups) == sorted(wanted)
    assert all(one.similarity >= found.threshold for one in sum(found.groups, []))
    assert f"2 of 300 images of {titles[0]} and 3 of 120 images of {titles[1]}" in str(found)
    assert str(found).splitlines()[2].split() == ["group", "similarity", "row_id", "split", "path"]
    swapped = find_duplicates(against, saved, found.threshold)
    assert sum(map(len, swapped.groups)) == 5


def test_outliers_are_the_farthest(tmp_path):
    features = np.abs(images(200)) + 1
    features[[50, 120]] = -features[[50, 120]] * np.array([[1], [1]], np.float32)
    features[120, :8] *= -1
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    order = np.argsort(cosines.max(axis=1), kind="stable")[:7]
    found = find_outliers(open_features(write(tmp_path / "features", {"train": features})), 7)
    assert [one.row_id for one in found.images] == [row_of(place) for place in order]
    assert {50, 120} <= set(order.tolist())
    np.testing.assert_allclose([one.similarity for one in found.images], cosines.max(axis=1)[order], atol=1e-6)
    assert str(found).splitlines()[0] == "The 7 images of train that are farthest from all others."
    everything = find_outliers(open_features(str(tmp_path / "features")), 1000)
    assert len(everything.images) == 200


def test_outliers_of_one_split_against_another(tmp_path):
    train, test = np.abs(images(80)), np.abs(images(60, 2))
    test[[3, 4]] = -test[[3, 4]] - np.float32(2)  # near each other, far from train
    folder = write(tmp_path / "features", {"train": train, "test": test})
    found = find_outliers(open_features(folder, "test"), 2, open_features(folder, "train"))
    assert {one.row_id for one in found.images} == {row_of(3), row_of(4)}
    assert "images of test that are farthest from all images of train." in str(found)


def test_an_image_whose_neighbours_an_index_misses_is_compared_with_all(tmp_path, monkeypatch):
    class Index:
        def search(self, queries, k):
            return np.full((len(queries), k), -3e38, np.float32), np.full((len(queries), k), -1)

    features = open_features(write(tmp_path / "features", {"train": images(60)}))
    expected = nearest_of_each(features)
    features.record["splits"]["train"]["index"] = "IVF4,Flat"
    monkeypatch.setattr(pairs, "open_index", lambda _: Index())
    similarities, places = nearest_of_each(features)
    assert (places == expected[1]).all()
    assert (similarities == expected[0]).all()


@pytest.mark.parametrize("index", [None, "Flat", "IVF8,Flat"])
def test_nearest_images_are_those_of_the_formula(tmp_path, index, small_chunks):
    features = images(160)
    folder = write(tmp_path / "features", {"train": features})
    if index:
        build_index(tmp_path / "features", "train", index)
    similarities, places = nearest_of_each(open_features(folder), k=3)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    assert (places[:, 0] >= 0).all()
    assert (places != np.arange(160)[:, None]).all()
    if index != "IVF8,Flat":
        assert (places == np.argsort(-cosines, axis=1)[:, :3]).all()
    found = places >= 0
    np.testing.assert_allclose(similarities[found], np.take_along_axis(cosines, places, axis=1)[found], atol=1e-6)


def test_features_without_paths_are_listed_by_row(tmp_path):
    features = images(60)
    features[1] = features[0]
    found = find_duplicates(open_features(write(tmp_path / "features", {"train": features}, with_path=False)))
    assert [(one.row_id, one.path) for one in found.groups[0]] == [(1, None), (2, None)]
    assert str(found).splitlines()[2].split() == ["group", "similarity", "row_id"]


def test_what_cannot_be_compared_is_named(tmp_path):
    one = open_features(write(tmp_path / "one", {"train": images(60)}))
    other = open_features(write(tmp_path / "other", {"train": images(60)}, fingerprint="y"))
    with pytest.raises(UserError, match="are of different encoders .`encoder-x` and `encoder-y`. .* Extract both by"):
        find_duplicates(one, other)
    with pytest.raises(UserError, match="`against` must be other features than `index`, got split `train`"):
        find_outliers(one, 3, open_features(str(tmp_path / "other" / ".." / "one")))
    with pytest.raises(UserError, match="has one image: there are none to compare it to"):
        find_outliers(open_features(write(tmp_path / "single", {"train": images(1)})), 3)
