"""Protocols by name, chance level, and class numbers that differ between splits."""

import itertools
from dataclasses import replace

import pytest
import torch

from hf_ssl.evaluation.clustering import clustering_scores, k_means
from hf_ssl.evaluation.features import Features
from hf_ssl.evaluation.knn import knn_accuracy
from hf_ssl.evaluation.linear_probe import linear_probe
from hf_ssl.evaluation.protocols import (
    CLUSTERING_SCORES,
    PROTOCOLS,
    measure,
    metric_of,
    most_frequent_class_accuracy,
    title_of,
    with_classes_of,
)


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
    assert first.protocol == ("clustering-accuracy" if protocol == "clustering" else protocol)
    # The rate of luckmatters is too small for so few images.
    assert first.value > (0 if protocol == "linear-luckmatters" else 0.5)


def test_clusters_are_those_of_k_means_or_of_the_method(splits):
    train, test = splits
    test.labels["kind"][:8] = -1
    measurements = measure(train, test, ["kind", "side"], ["clustering"], seed=3)
    assert [(one.label, one.protocol) for one in measurements] == list(
        itertools.product(["kind", "side"], CLUSTERING_SCORES)
    )
    for label, num_classes in (("kind", 4), ("side", 2)):
        scores = clustering_scores(k_means(test.features, num_classes, seed=3), test.labels[label])
        own = [one for one in measurements if one.label == label]
        assert [one.value for one in own] == list(scores.values())
        assert own[0].settings["num_clusters"] == num_classes and own[0].settings["seed"] == 3
        assert own[0].num_images == (32 if label == "kind" else 40)

    clusters = torch.arange(40) % 5
    probabilities = 0.1 + 0.5 * torch.nn.functional.one_hot(clusters, 5)
    measurements = measure(train, test, ["kind"], ["clustering"], probabilities=probabilities)
    assert [one.value for one in measurements] == list(clustering_scores(clusters, test.labels["kind"]).values())
    assert measurements[0].settings == {"algorithm": "cluster head", "num_clusters": 5}


def test_measurements_have_titles_and_metrics():
    assert [metric_of(name) for name in ("knn", "linear-luckmatters-best", "clustering-accuracy")] == ["accuracy"] * 3
    assert metric_of("clustering-ari") == "adjusted Rand index"
    assert title_of("linear-luckmatters-best") == "linear probe, luckmatters, best epoch*"
    assert [title_of(name) for name in CLUSTERING_SCORES] == [
        "clustering, accuracy",
        "clustering, NMI",
        "clustering, ARI",
        "clustering, F",
    ]


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


def test_labels_with_gaps_measure_as_those_without():
    generator = torch.Generator().manual_seed(0)
    parts, gaps = [], torch.tensor([5, 300_000, 10**12])
    for number in (60, 30):
        labels = torch.arange(number) % 3
        features = torch.randn(number, 4, generator=generator) + 2 * torch.eye(4)[labels]
        parts.append(Features(features, {"label": labels}, torch.arange(number)))
    wide = [replace(part, labels={"label": gaps[part.labels["label"]]}) for part in parts]
    protocols = ["knn", "linear", "clustering"]
    plain, other = (measure(*pair, ["label"], protocols, k=5) for pair in (parts, wide))
    assert [one.value for one in plain] == [one.value for one in other]
    chances = [most_frequent_class_accuracy(*pair, "label") for pair in (parts, wide)]
    assert chances[0] == chances[1] == pytest.approx(1 / 3)
