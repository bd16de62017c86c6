"""A class-balanced part of a data set: how many, which, and that nothing but seed and row decides."""

import dataclasses

import datasets
import pytest
import torch

from hf_ssl.data.sources.open import open_source
from hf_ssl.data.sources.subset import class_names, labelled_subset, numbers_of_classes

NAMES = ["ant", "bee", "cat"]


def source_of(folder, labels, named=True):
    """A parquet file whose image bytes are the row's number."""
    kind = datasets.ClassLabel(names=NAMES) if named else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(decode=False), "label": kind})
    rows = [{"image": {"bytes": str(row).encode(), "path": None}, "label": label} for row, label in enumerate(labels)]
    path = folder / f"rows-{len(list(folder.iterdir()))}.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return open_source(str(path))


@pytest.fixture
def source(tmp_path):
    return source_of(tmp_path, [0] * 500 + [1] * 300 + [2] * 40)


def test_every_class_gives_the_same_number(source):
    subset = labelled_subset(source, NAMES, 0.1, seed=0)
    assert subset.counts == {"ant": 28, "bee": 28, "cat": 28}  # 840 images, 3 classes
    rows = list(subset.source.records)
    assert subset.source.num_images == len(rows) == 84
    assert [int(row["image"]["bytes"]) for row in rows] == subset.row_ids == sorted(set(subset.row_ids))
    assert [row["label"] for row in rows] == [(row >= 500) + (row >= 800) for row in subset.row_ids]


def test_a_class_gives_one_at_least_and_all_at_most(source):
    assert set(labelled_subset(source, NAMES, 0.0001, seed=0).counts.values()) == {1}
    assert labelled_subset(source, NAMES, 0.5, seed=0).counts == {"ant": 140, "bee": 140, "cat": 40}


def test_the_seed_chooses_and_a_small_part_lies_in_a_larger_one(source):
    small, large = (labelled_subset(source, NAMES, fraction, seed=3) for fraction in (0.01, 0.1))
    assert set(small.row_ids) < set(large.row_ids)
    assert small.row_ids == labelled_subset(source, NAMES, 0.01, seed=3).row_ids
    assert small.row_ids != labelled_subset(source, NAMES, 0.01, seed=4).row_ids
    prints = {labelled_subset(source, NAMES, 0.01, seed=seed).source.fingerprint for seed in (3, 3, 4)}
    assert len(prints) == 2


def test_rows_everywhere_in_the_data_set_are_equally_likely(source):
    chosen = [row for seed in range(60) for row in labelled_subset(source, NAMES, 0.04, seed).row_ids if row < 500]
    assert len(chosen) == 60 * 11
    thirds = [sum(start <= row < start + 167 for row in chosen) for start in (0, 167, 334)]
    assert min(thirds) > 170, thirds  # 220 each, give or take 12


def test_an_unknown_length_is_counted(source):
    unknown = dataclasses.replace(source, num_images=None)
    assert labelled_subset(unknown, NAMES, 0.1, 0).row_ids == labelled_subset(source, NAMES, 0.1, 0).row_ids


def test_rows_without_a_label_are_never_chosen(tmp_path):
    source = source_of(tmp_path, [0, None, 1, -1, 2, 7] * 10, named=False)
    subset = labelled_subset(source, ["0", "1", "2"], 1.0, seed=0)
    assert subset.counts == {"0": 10, "1": 10, "2": 10}
    assert {row % 6 for row in subset.row_ids} == {0, 2, 4}


def test_classes_without_names_are_numbers(tmp_path, source):
    assert class_names(source) == NAMES
    assert class_names(source_of(tmp_path, [0, None, 3], named=False)) == ["0", "3"]


def test_labels_with_gaps_are_numbered_by_the_classes_that_exist(tmp_path):
    source = source_of(tmp_path, [300_000, 10**12, 7, None] * 10, named=False)
    names = class_names(source)
    assert names == ["7", "300000", "1000000000000"]
    subset = labelled_subset(source, names, 0.5, seed=0)
    assert subset.counts == dict.fromkeys(names, 5) and subset.fraction == 0.5
    assert [row["label"] for row in subset.source.records] == [{0: 1, 1: 2, 2: 0}[row % 4] for row in subset.row_ids]
    raw = torch.tensor([7, -1, 10**12, 300_000, 8, 2 * 10**12])
    assert numbers_of_classes(raw, names).tolist() == [0, -1, 2, 1, 3, 3]


def test_half_of_the_images_of_each_class_that_exists(tmp_path):
    from_one = source_of(tmp_path, [1, 2, 3] * 10, named=False)
    assert labelled_subset(from_one, class_names(from_one), 0.5, 0).counts == {"1": 5, "2": 5, "3": 5}
    without_bee = source_of(tmp_path, [0, 2, None] * 10)
    subset = labelled_subset(without_bee, NAMES, 0.5, 0)
    assert subset.counts == {"ant": 5, "bee": 0, "cat": 5} and subset.fraction == 0.5
    assert labelled_subset(source_of(tmp_path, [0] * 90 + [2] * 10), NAMES, 0.5, 0).fraction == 0.35


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 0], "two classes or more, but `label` .* has only `0`"), ([None, None], "`label` .* has no label")],
)
def test_one_class_is_refused(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        class_names(source_of(tmp_path, labels, named=False))


def test_no_label_column_is_refused(source):
    with pytest.raises(ValueError, match="has no label column of integers or classes. Name one with `label_column`"):
        class_names(dataclasses.replace(source, labels={}))


@pytest.mark.parametrize("fraction", [0, -0.1, 2])
def test_a_fraction_out_of_range_is_refused(source, fraction):
    with pytest.raises(ValueError, match="`label_fraction` must be above 0 and at most 1"):
        labelled_subset(source, NAMES, fraction, seed=0)
