"""The protocols of linear probes: how each prepares features, trains a linear classifier on them, and tests it.

Two of them come from papers that train the classifier on augmented images (random crops and flips): with augmented
features of as many passes over the training images as there are epochs they are exact, because the encoder is frozen;
with fewer passes or none the deviation is named in the settings that go with every number. Nothing is ever chosen by
test labels, except the best epoch of the `luckmatters` protocol, which is reported beside the last one and marked.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_ssl.errors import UserError
from hf_ssl.evaluation.logistic_regression import LogisticRegression, rotated
from hf_ssl.seeded import seeded

EPOCHS_OF_AUGMENTED = {"sgd": 100, "byol": 80}
"""Probes whose papers train on augmented images, and for how many epochs."""

_HELD_OUT_RATIO = 0.2
_CHOSEN_ON = "a fifth of the training images, held out"
_AUGMENTATION = "random resized crops (area 0.08 to 1, ratio 3/4 to 4/3) and flips"
_WITHOUT_AUGMENTATION = "features computed once, without the paper's random crops and flips"


@dataclass(frozen=True)
class ProbeResult:
    """What a probe measured and with which settings.

    Args:
        accuracy: Share of test images classified correctly, in [0, 1].
        settings: Everything that the number depends on, JSON-able.
        best_over_epochs: The largest test accuracy of any epoch, where the protocol reports it. It is chosen on the
            test split, hence too high.
    """

    accuracy: float
    settings: dict[str, Any] = field(default_factory=dict)
    best_over_epochs: float | None = None


@dataclass(frozen=True)
class Problem:
    """The classification problem of one label column.

    Args:
        train_x: Prepared training features, (training images, dim), float32.
        train_y: Class of each, (training images,), int64, dense from 0.
        test_x: Prepared test features, (test images, dim), float32.
        test_y: Class of each, (test images,), int64; -1 if the training images have no such class.
        augmented: Features of augmented passes over all images, (passes, images, dim), with or without a label; None
            without augmentation.
        rows: Place of the training images in a pass, (training images,), int64.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    augmented: Tensor | None
    rows: Tensor


def held_out(labels: Tensor, seed: int, ratio: float = _HELD_OUT_RATIO) -> Tensor:
    """Choose training images on which to choose settings: of each class the same share, drawn from a seed.

    Args:
        labels: Class of each image, (images,), at least 0.
        seed: Seed of the draw.
        ratio: Share to hold out, in (0, 1); rounded down for each class.

    Returns:
        True where an image is held out, (images,), bool.

    Raises:
        UserError: If no class has enough images to hold one out.
    """
    generator = np.random.default_rng(seed)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten().numpy()
        mask[generator.permutation(members)[: int(ratio * len(members))]] = True
    if not mask.any():
        raise UserError(
            f"A probe that chooses its settings needs {math.ceil(1 / ratio)} training images of some class, got at "
            f"most {int(torch.bincount(labels).max())}. Use more images, or the probe `sgd`, which chooses nothing."
        )
    return mask


def _unchanged(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    return train, test


def _standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean and divide by the deviation of each training feature; constant features become 0."""
    variance, mean = torch.var_mean(train, dim=0, correction=0)
    deviation = variance.sqrt()
    constant = deviation <= 1e-6 * mean.abs()  # what remains is rounding
    scale = torch.where(constant, 0.0, 1 / deviation)
    return (train - mean) * scale, (test - mean) * scale


def _standardised_and_rotated(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    return rotated(*_standardised(train, test))


_STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


def _logistic(problem: Problem, seed: int) -> ProbeResult:
    train_x, train_y = problem.train_x, problem.train_y
    hold = held_out(train_y, seed)
    model = LogisticRegression(train_x[~hold], train_y[~hold])
    hold_x, hold_y = train_x[hold], train_y[hold]
    accuracies: dict[float, float] = {}
    for l2 in _STRENGTHS:  # from strong to weak, each fit starting at the last one
        accuracies[l2] = model.fit(l2).accuracy(hold_x, hold_y)
        best = max(accuracies, key=lambda strength: accuracies[strength])  # the first, hence strongest, of equals
        if accuracies[best] == 1 or len(accuracies) - list(accuracies).index(best) > 2:
            break  # weaker ones have not helped twice
    model = LogisticRegression(train_x, train_y).fit(best)
    settings = {
        "probe": "logistic",
        "l2": best,
        "l2_grid": list(_STRENGTHS),
        "C": 1 / (best * len(train_x)),
        "chosen_on": _CHOSEN_ON,
        "held_out_accuracy": accuracies[best],
        "converged": model.converged,
        "standardised": True,
        "seed": seed,
        "augmentation": "none",
    }
    return ProbeResult(model.accuracy(problem.test_x, problem.test_y), settings)


# --- Classifiers trained by mini-batches -----------------------------------------------------------------------------


def _sgd(problem: Problem, seed: int) -> ProbeResult:
    num_epochs, batch_size, rate = EPOCHS_OF_AUGMENTED["sgd"], 256, 30.0
    classifier = _classifier(problem, seed)
    nn.init.normal_(classifier.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=rate, momentum=0.9)

    def schedule(epoch: float) -> float:
        return 0.1 ** sum(epoch >= milestone for milestone in (60, 80))

    for _ in _epochs(classifier, optimizer, schedule, problem, batch_size, num_epochs, seed):
        pass
    settings = {
        "probe": "sgd",
        "optimizer": "SGD, momentum 0.9",
        "learning_rate": rate,
        "schedule": "x 0.1 after epochs 60 and 80",
        "weight_decay": 0.0,
        "batch_size": batch_size,
        "num_epochs": num_epochs,
        "standardised": False,
        "seed": seed,
        **_augmentation_settings(problem.augmented, num_epochs),
    }
    return ProbeResult(_accuracy(classifier, problem.test_x, problem.test_y), settings)


def _byol(problem: Problem, seed: int) -> ProbeResult:
    num_epochs, batch_size, rates = EPOCHS_OF_AUGMENTED["byol"], 1024, (0.4, 0.3, 0.2, 0.1, 0.05)

    def train(rate: float, chosen: Tensor | None = None) -> nn.Linear:
        classifier = _classifier(problem, seed)
        optimizer = torch.optim.SGD(classifier.parameters(), lr=rate, momentum=0.9, nesterov=True)
        for _ in _epochs(classifier, optimizer, schedule, problem, batch_size, num_epochs, seed, chosen):
            pass
        return classifier

    def schedule(epoch: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * epoch / num_epochs))

    hold = held_out(problem.train_y, seed)
    hold_x, hold_y = problem.train_x[hold], problem.train_y[hold]
    accuracies = {rate: _accuracy(train(rate, ~hold), hold_x, hold_y) for rate in rates}
    rate = max(accuracies, key=lambda candidate: accuracies[candidate])
    settings = {
        "probe": "byol",
        "optimizer": "SGD, Nesterov momentum 0.9",
        "learning_rate": rate,
        "learning_rate_grid": list(rates),
        "chosen_on": _CHOSEN_ON + (", without augmentation" if problem.augmented is not None else ""),
        "held_out_accuracy": accuracies[rate],
        "schedule": "cosine",
        "weight_decay": 0.0,
        "batch_size": batch_size,
        "num_epochs": num_epochs,
        "standardised": False,
        "seed": seed,
        **_augmentation_settings(problem.augmented, num_epochs),
    }
    return ProbeResult(_accuracy(train(rate), problem.test_x, problem.test_y), settings)


def _luckmatters(problem: Problem, seed: int) -> ProbeResult:
    num_epochs, batch_size, rate, weight_decay = 50, 128, 3e-4, 1e-3
    classifier = _classifier(problem, seed)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=rate, weight_decay=weight_decay)
    accuracies = [
        _accuracy(classifier, problem.test_x, problem.test_y)
        for _ in _epochs(classifier, optimizer, lambda _: 1.0, problem, batch_size, num_epochs, seed)
    ]
    settings = {
        "probe": "luckmatters",
        "optimizer": "Adam",
        "learning_rate": rate,
        "schedule": "constant",
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "num_epochs": num_epochs,
        "standardised": True,
        "seed": seed,
        "augmentation": "none",
        "epoch": "last",
    }
    return ProbeResult(accuracies[-1], settings, best_over_epochs=max(accuracies))


def _augmentation_settings(augmented: Tensor | None, num_epochs: int) -> dict[str, Any]:
    """What the settings say about augmentation; `deviation` only where the probe is not that of its paper."""
    if augmented is None:
        return {"deviation": _WITHOUT_AUGMENTATION}
    settings = {
        "augmentation": _AUGMENTATION,
        "augmented_passes": min(len(augmented), num_epochs),
        "augmented_features": str(augmented.dtype).removeprefix("torch."),
    }
    if len(augmented) >= num_epochs:
        return {**settings, "exact": "every epoch has crops and flips of its own, as in the paper"}
    reused = f"the augmented passes are used again: epoch e of {num_epochs}, from 0, reads pass e mod {len(augmented)}"
    return {**settings, "deviation": reused}


def _classifier(problem: Problem, seed: int) -> nn.Linear:
    with seeded(seed):
        return nn.Linear(problem.train_x.shape[1], int(problem.train_y.max()) + 1)


def _epochs(
    classifier: nn.Linear,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[float], float],
    problem: Problem,
    batch_size: int,
    num_epochs: int,
    seed: int,
    chosen: Tensor | None = None,
) -> Iterator[int]:
    """Train by cross-entropy; yields after every epoch.

    `schedule` maps epochs done to a factor of the rate; `chosen`, (training images,), bool, leaves images out.
    """
    passes, rows, labels = problem.augmented, problem.rows, problem.train_y
    if passes is None:
        passes, rows = problem.train_x[None], torch.arange(len(labels))
    if chosen is not None:
        rows, labels = rows[chosen], labels[chosen]
    generator = torch.Generator().manual_seed(seed)
    rates = [group["lr"] for group in optimizer.param_groups]
    starts = range(0, len(rows), batch_size)
    for epoch in range(num_epochs):
        features = passes[epoch % len(passes)]
        order = torch.randperm(len(rows), generator=generator)
        for number, start in enumerate(starts):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(epoch + number / len(starts))
            places = order[start : start + batch_size]
            loss = F.cross_entropy(classifier(features[rows[places]].float()), labels[places])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield epoch


@torch.no_grad()
def _accuracy(classifier: nn.Linear, features: Tensor, labels: Tensor) -> float:
    return float((classifier(features).argmax(dim=1) == labels).double().mean())


_Prepare = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_Run = Callable[[Problem, int], ProbeResult]
PROBES: dict[str, tuple[_Prepare, _Run]] = {
    "logistic": (_standardised_and_rotated, _logistic),
    "sgd": (_unchanged, _sgd),
    "byol": (_unchanged, _byol),
    "luckmatters": (_standardised, _luckmatters),
}
"""Linear protocols: what each does to the features of all columns, and how it trains and tests one column."""
