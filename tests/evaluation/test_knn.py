"""Weighted k-NN against loops, its ties, and labels that are missing."""

import math

import pytest
import torch

from hf_ssl.evaluation import knn
from hf_ssl.evaluation.knn import knn_accuracies, knn_accuracy


def naive_accuracy(train, train_labels, test, test_labels, k, temperature):
    """The definition, in loops and float64."""
    correct = 0
    for query, truth in zip(test.double().tolist(), test_labels.tolist(), strict=True):
        similarities = []
        for key in train.double().tolist():
            dot = sum(a * b for a, b in zip(query, key, strict=True))
            similarities.append(dot / math.hypot(*query) / math.hypot(*key))
        nearest = sorted(range(len(train)), key=lambda index: -similarities[index])[:k]
        votes = {}
        for index in nearest:
            label = int(train_labels[index])
            votes[label] = votes.get(label, 0.0) + math.exp(similarities[index] / temperature)
        correct += max(votes, key=votes.get) == truth
    return correct / len(test)


@pytest.fixture
def data():
    centres = torch.randn(4, 6)
    train_labels, test_labels = torch.randint(4, (90,)), torch.randint(4, (60,))
    train = centres[train_labels] + 1.5 * torch.randn(90, 6)
    test = centres[test_labels] + 1.5 * torch.randn(60, 6)
    return train, train_labels, test, test_labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (30, 0.07), (30, 5.0)])
def test_equals_the_definition(data, k, temperature):
    assert knn_accuracy(*data, k=k, temperature=temperature) == pytest.approx(naive_accuracy(*data, k, temperature))


def test_memory_chunks_do_not_change_the_result(data, monkeypatch):
    whole = knn_accuracy(*data, k=9)
    monkeypatch.setattr(knn, "_SIMILARITIES_PER_CHUNK", 90 * 7)
    assert knn_accuracy(*data, k=9) == whole


def test_uses_all_training_images_where_there_are_fewer_than_k(data):
    assert knn_accuracy(*data, k=200) == knn_accuracy(*data, k=90) == pytest.approx(naive_accuracy(*data, 90, 0.1))


def test_low_temperatures_do_not_overflow(data):
    assert knn_accuracy(*data, k=20, temperature=1e-4) == knn_accuracy(*data, k=1)


def test_of_equally_near_images_the_earlier_counts_and_of_equal_votes_the_lower_class():
    train = torch.tensor([[1.0, 0.0]]).repeat(50, 1)
    labels = torch.arange(50) % 3 + 1
    test = torch.tensor([[2.0, 0.0]])
    for k, answer in ((1, 1), (2, 1), (3, 1), (50, 1)):  # images 0, 1, 2, ... vote 1, 2, 3, 1, 2, 3, ...
        assert knn_accuracy(train, labels, test, torch.tensor([answer]), k=k) == 1.0
    labels[:5] = torch.tensor([7, 5, 5, 9, 9])
    assert knn_accuracy(train, labels, test, torch.tensor([5]), k=3) == 1.0
    assert knn_accuracy(train, labels, test, torch.tensor([5]), k=5) == 1.0  # 5 and 9 have two votes each


def test_images_without_label_take_no_part(data):
    train, train_labels, test, test_labels = data
    gone, unscored = torch.arange(90) % 3 == 0, torch.arange(60) % 4 == 0
    with_gaps = knn_accuracy(
        train, train_labels.masked_fill(gone, -1), test, test_labels.masked_fill(unscored, -1), k=5
    )
    without = knn_accuracy(train[~gone], train_labels[~gone], test[~unscored], test_labels[~unscored], k=5)
    assert with_gaps == without


def test_several_columns_equal_each_alone(data):
    train, train_labels, test, test_labels = data
    columns = {"a": train_labels, "b": (train_labels + 1) % 2, "gaps": train_labels.masked_fill(train_labels == 0, -1)}
    truth = {"a": test_labels, "b": (test_labels + 1) % 2, "gaps": test_labels}
    together = knn_accuracies(train, columns, test, truth, k=5)
    assert list(together) == ["a", "b", "gaps"]
    for column, value in together.items():
        assert value == knn_accuracy(train, columns[column], test, truth[column], k=5)


def test_wrong_input_is_named(data):
    train, train_labels, test, test_labels = data
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        knn_accuracy(*data, k=0)
    with pytest.raises(ValueError, match="`temperature` must be positive, got 0"):
        knn_accuracy(*data, temperature=0)
    with pytest.raises(ValueError, match="59 labels for 60 images"):
        knn_accuracy(train, train_labels, test, test_labels[:-1])
    with pytest.raises(ValueError, match="No image has a label in `label`"):
        knn_accuracy(train, train_labels, test, torch.full((60,), -1))
