"""Protocols by name, chance level, and class numbers that differ between splits."""

import pytest
import torch

from hf_ssl.evaluation.features import Features
from hf_ssl.evaluation.knn import knn_accuracy
from hf_ssl.evaluation.linear_probe import linear_probe
from hf_ssl.evaluation.protocols import PROTOCOLS, measure, most_frequent_class_accuracy, with_classes_of


def features_of(labels, **others):
    labels = torch.as_tensor(labels)
    centres = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    return Features(
        centres[labels] + torch.randn(len(labels), 6), {"kind": labels, **others}, torch.arange(len(labels))
    )


@pytest.fixture
def splits():
    side = torch.arange(80) % 2
    return features_of([0, 1, 2, 3] * 20, side=side), features_of([3, 2, 1, 0] * 10, side=side[:40])


def test_measurements_are_those_of_the_protocols(splits):
    train, test = splits
    protocols = ["knn", "linear", "linear-luckmatters"]
    measurements = {(one.protocol, one.label): one for one in measure(train, test, ["kind", "side"], protocols, k=500)}
    expected = [*protocols, "linear-luckmatters-best"]
    assert set(measurements) == {(protocol, label) for protocol in expected for label in ("kind", "side")}

    for label in ("kind", "side"):
        data = (train.features, train.labels[label], test.features, test.labels[label])
        assert measurements["knn", label].value == knn_accuracy(*data, k=80)
        logistic, luckmatters = linear_probe(*data), linear_probe(*data, protocol="luckmatters")
        assert measurements["linear", label].value == logistic.accuracy
        assert measurements["linear-luckmatters", label].value == luckmatters.accuracy
        assert measurements["linear-luckmatters-best", label].value == luckmatters.best_over_epochs
    assert measurements["knn", "kind"].settings == {"k": 80, "temperature": 0.1, "train_images": 80}
    assert measurements["linear-luckmatters-best", "kind"].settings["epoch"] == "best on the test split"
    assert measurements["linear", "kind"].num_images == 40


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_runs(splits, protocol):
    (first, *_) = measure(*splits, ["kind"], [protocol])
    assert first.protocol == protocol
    # The rate of luckmatters is too small for so few images.
    assert first.value > (0 if protocol == "linear-luckmatters" else 0.5)


def test_an_unknown_protocol_is_named(splits):
    with pytest.raises(ValueError, match=r"Unknown protocol `linaer`. Did you mean `linear`\?"):
        measure(*splits, ["kind"], ["linaer"])


def test_chance_is_the_training_splits_most_frequent_class():
    train = features_of([0, 1, 1, 2, -1, -1, -1])
    test = features_of([0, 0, 2, 1, -1])
    assert most_frequent_class_accuracy(train, test, "kind") == 0.25


def test_classes_are_matched_by_name():
    test = features_of([0, 1, -1, 2], other=torch.tensor([0, 1, 0, 1]))
    names = {"kind": ["cat", "dog", "owl"], "other": []}
    train_names = {"kind": ["ant", "cat", "dog"], "other": []}
    matched = with_classes_of(test, names, train_names)
    assert matched.labels["kind"].tolist() == [1, 2, -1, 5]  # owls are unknown to the training split
    assert matched.labels["other"].tolist() == [0, 1, 0, 1]
    assert test.labels["kind"].tolist() == [0, 1, -1, 2]
