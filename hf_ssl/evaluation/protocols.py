"""The evaluation protocols by name, as the command line, `results.json` and model cards know them."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hf_ssl.data.sources.subset import numbers_of_classes
from hf_ssl.errors import UserError
from hf_ssl.evaluation.clustering import K_MEANS, clustering_scores, k_means
from hf_ssl.evaluation.features import Features
from hf_ssl.evaluation.knn import knn_accuracies
from hf_ssl.evaluation.linear_probe import linear_probes
from hf_ssl.evaluation.probe_protocols import EPOCHS_OF_AUGMENTED

PROTOCOLS = {
    "knn": "weighted k-NN",
    "linear": "linear probe",
    "linear-sgd": "linear probe, MoCo's SGD",
    "linear-byol": "linear probe, BYOL's sweep",
    "linear-luckmatters": "linear probe, luckmatters",
    "clustering": "clustering",
}
"""Protocols and what tables call them; `linear_probe` and `clustering_scores` describe them."""

AUGMENTED = {f"linear-{probe}": epochs for probe, epochs in EPOCHS_OF_AUGMENTED.items()}
"""Protocols whose papers train on augmented images, and for how many epochs: more augmented passes help nothing."""

BEST_EPOCH = "-best"
"""Suffix of a measurement whose epoch was chosen on the test split, as the official code of DirectPred does."""

CLUSTERING_SCORES = {
    "clustering-accuracy": "accuracy",
    "clustering-nmi": "normalised mutual information",
    "clustering-ari": "adjusted Rand index",
    "clustering-f": "Fowlkes-Mallows index",
}
"""Measurements of the protocol `clustering`, and what they measure; all other measurements are accuracies."""


@dataclass(frozen=True)
class Measurement:
    """One number.

    Args:
        protocol: Name in `PROTOCOLS`, perhaps with the suffix `BEST_EPOCH`, or in `CLUSTERING_SCORES`.
        label: Label column.
        value: What `metric_of(protocol)` is on the test images, 1 at best; accuracies are fractions in [0, 1].
        settings: What the number depends on, JSON-able.
        num_images: Test images that have the label.
    """

    protocol: str
    label: str
    value: float
    settings: dict[str, Any] = field(default_factory=dict)
    num_images: int = 0


def measure(
    train: Features,
    test: Features,
    labels: Sequence[str],
    protocols: Sequence[str],
    *,
    k: int = 200,
    temperature: float = 0.1,
    seed: int = 0,
    probabilities: torch.Tensor | None = None,
    augmented: torch.Tensor | None = None,
) -> list[Measurement]:
    """Measure frozen features by each protocol for each label column.

    `clustering` looks at the test split alone: its images are clustered without labels, into as many clusters as there
    are classes, and compared with the labels.

    Args:
        train: Features and labels of the training split.
        test: Features and labels of the test split.
        labels: Label columns.
        protocols: Names in `PROTOCOLS`.
        k: Neighbours of k-NN, at least 1; all training images where there are fewer.
        temperature: Temperature of k-NN, positive.
        seed: Seed of the probes and of k-means.
        probabilities: Probability of each cluster for each test image, (test images, clusters), where a method has
            clusters of its own; otherwise k-means finds them.
        augmented: Features of augmented passes over the training split, (passes, training images, dim), for the
            protocols in `AUGMENTED`.

    Returns:
        Measurements in the order of `protocols`, then of `labels`.

    Raises:
        UserError: If a protocol is unknown, or as the protocols do.
    """
    measurements = []
    for protocol in protocols:
        check_protocol(protocol)
        train_labels = {label: train.labels[label] for label in labels}
        test_labels = {label: test.labels[label] for label in labels}
        counts = {label: int((values >= 0).sum()) for label, values in test_labels.items()}
        train_counts = {label: int((values >= 0).sum()) for label, values in train_labels.items()}
        if protocol == "knn":
            accuracies = knn_accuracies(train.features, train_labels, test.features, test_labels, k, temperature)
            for label, value in accuracies.items():
                settings = {
                    "k": min(k, train_counts[label]),
                    "temperature": temperature,
                    "train_images": train_counts[label],
                }
                measurements.append(Measurement(protocol, label, value, settings, counts[label]))
            continue
        if protocol == "clustering":
            for label, values in test_labels.items():
                measurements += _clustering(test.features, values, label, counts[label], probabilities, seed)
            continue
        probe = protocol.removeprefix("linear-") if protocol != "linear" else "logistic"
        results = linear_probes(train.features, train_labels, test.features, test_labels, probe, seed, augmented)
        for label, result in results.items():
            settings = {**result.settings, "train_images": train_counts[label]}
            measurements.append(Measurement(protocol, label, result.accuracy, settings, counts[label]))
        for label, result in results.items():
            if result.best_over_epochs is not None:
                settings = {**result.settings, "epoch": "best on the test split", "train_images": train_counts[label]}
                measurements.append(
                    Measurement(protocol + BEST_EPOCH, label, result.best_over_epochs, settings, counts[label])
                )
    return measurements


def _clustering(
    features: torch.Tensor,
    labels: torch.Tensor,
    label: str,
    num_labelled: int,
    probabilities: torch.Tensor | None,
    seed: int,
) -> list[Measurement]:
    if probabilities is not None:
        clusters = probabilities.argmax(dim=1)
        settings: dict[str, Any] = {"algorithm": "cluster head", "num_clusters": probabilities.shape[1]}
    else:
        num_classes = len(labels[labels >= 0].unique())
        clusters = k_means(features, num_classes, seed)
        settings = {**K_MEANS, "num_clusters": num_classes, "seed": seed}
    return [
        Measurement(f"clustering-{name}", label, value, settings, num_labelled)
        for name, value in clustering_scores(clusters, labels).items()
    ]


def metric_of(protocol: str) -> str:
    """What a measurement of this name measures, such as `accuracy`."""
    return CLUSTERING_SCORES.get(protocol, "accuracy")


def title_of(protocol: str) -> str:
    """What tables call a measurement of this name."""
    if protocol in CLUSTERING_SCORES:
        name = protocol.removeprefix("clustering-")
        return f"{PROTOCOLS['clustering']}, {name if name == 'accuracy' else name.upper()}"
    title = PROTOCOLS[protocol.removesuffix(BEST_EPOCH)]
    return f"{title}, best epoch*" if protocol.endswith(BEST_EPOCH) else title


def check_protocol(protocol: str) -> None:
    """Refuse a name that is not in `PROTOCOLS`.

    Raises:
        UserError: Names the nearest protocol, or all.
    """
    if protocol not in PROTOCOLS:
        close = difflib.get_close_matches(protocol, PROTOCOLS, n=1)
        hint = f"Did you mean `{close[0]}`?" if close else f"Known: {', '.join(PROTOCOLS)}."
        raise UserError(f"Unknown protocol `{protocol}`. {hint}")


def most_frequent_class_accuracy(train: Features, test: Features, label: str) -> float:
    """Accuracy of always answering the training split's most frequent class, in [0, 1]: the chance level."""
    train_labels, test_labels = train.labels[label], test.labels[label]
    classes, counts = train_labels[train_labels >= 0].unique(return_counts=True)
    answer = classes[counts.argmax()]
    return float((test_labels[test_labels >= 0] == answer).double().mean())


def with_classes_of(test: Features, names: dict[str, list[str]], train_names: dict[str, list[str]]) -> Features:
    """Number the classes of a test split as those of the training split, by name.

    Splits of image folders number the class folders that they have, so the same number may mean another class.

    Args:
        test: Features of the test split.
        names: Class names of its label columns; empty where unknown.
        train_names: Class names of the label columns of the training split.

    Returns:
        The features with labels renumbered; a class that the training split does not have gets a number above its.
    """
    labels = dict(test.labels)
    for column, own in names.items():
        known = train_names.get(column, [])
        if own and known and own != known:
            numbers = [known.index(name) if name in known else len(known) + i for i, name in enumerate(own)]
            values = labels[column]
            labels[column] = torch.where(values >= 0, torch.tensor(numbers)[values.clamp(min=0)], values)
        elif not own and known:
            labels[column] = numbers_of_classes(labels[column], known)
    return replace(test, labels=labels)
