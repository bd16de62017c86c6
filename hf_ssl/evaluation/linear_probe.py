"""Linear probes: how much of a label a linear classifier reads from a frozen representation.

The protocols themselves are in `probe_protocols`; they work on features that were computed beforehand.
"""

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor

from hf_ssl.errors import UserError
from hf_ssl.evaluation.probe_protocols import EPOCHS_OF_AUGMENTED, PROBES, ProbeResult, Problem


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    protocol: str = "logistic",
    seed: int = 0,
) -> ProbeResult:
    """Train a linear classifier on frozen features and test it.

    Protocols:

    - `logistic`: logistic regression on standardised features, its strength of regularisation chosen on a fifth of the
      training images that is held out.
    - `sgd`: He et al., 2020 (MoCo): weights from N(0, 0.01), SGD with momentum 0.9, learning rate 30, no weight decay,
      batches of 256, 100 epochs, rate x 0.1 after 60 and 80.
    - `byol`: Grill et al., 2020, appendix C.1: Nesterov SGD with momentum 0.9, batches of 1,024, 80 epochs, cosine
      schedule, learning rate chosen from 0.4, 0.3, 0.2, 0.1, 0.05 on the held-out fifth.
    - `luckmatters`: the official code of DirectPred (facebookresearch/luckmatters): standardised features, Adam with
      learning rate 3e-4 and weight decay 1e-3, batches of 128, 50 epochs.

    Args:
        train_features: (training images, dim), float32.
        train_labels: (training images,), int64; images with a negative label take no part.
        test_features: (test images, dim), float32.
        test_labels: (test images,), int64; images with a negative label take no part.
        protocol: One of the above.
        seed: Seed of the held-out part, the initial weights and the order of batches.

    Returns:
        Accuracy on the test images and the settings that gave it.

    Raises:
        UserError: If the protocol is unknown, shapes disagree, no test image is labelled, or the training images
            are of one class only.
    """
    return linear_probes(
        train_features, {"label": train_labels}, test_features, {"label": test_labels}, protocol, seed
    )["label"]


def linear_probe_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    protocol: str = "logistic",
    seed: int = 0,
) -> float:
    """Accuracy of `linear_probe`, with the same arguments and errors; a fraction in [0, 1]."""
    return linear_probe(train_features, train_labels, test_features, test_labels, protocol, seed).accuracy


def linear_probes(
    train_features: Tensor,
    train_labels: Mapping[str, Tensor],
    test_features: Tensor,
    test_labels: Mapping[str, Tensor],
    protocol: str = "logistic",
    seed: int = 0,
    augmented: Tensor | None = None,
) -> dict[str, ProbeResult]:
    """`linear_probe` of several label columns, which share the preparation of the features.

    Args:
        train_features: As in `linear_probe`.
        train_labels: Labels of each column.
        test_features: As in `linear_probe`.
        test_labels: Labels of the same columns.
        protocol: As in `linear_probe`.
        seed: As in `linear_probe`.
        augmented: Features of augmented passes over the training images, (passes, training images, dim), float16 or
            float32. The probes of `EPOCHS_OF_AUGMENTED` train on them, epoch after epoch on the next pass; what they
            hold out stays as it is. The other probes do not look at them.

    Returns:
        Result of each column.

    Raises:
        UserError: As `linear_probe` does, or if the passes are of other images or features.
    """
    if protocol not in PROBES:
        close = difflib.get_close_matches(protocol, PROBES, n=1)
        hint = f"Did you mean `{close[0]}`?" if close else f"Known: {', '.join(PROBES)}."
        raise UserError(f"Unknown probe `{protocol}`. {hint}")
    if augmented is not None and augmented.shape[1:] != train_features.shape:
        raise UserError(
            f"The augmented features must have shape (passes, {', '.join(map(str, train_features.shape))}), as the "
            f"training features have, got {tuple(augmented.shape)}."
        )
    if protocol not in EPOCHS_OF_AUGMENTED:
        augmented = None
    problems = {}
    for column, labels in train_labels.items():
        train_rows = _labelled(train_features, labels, column, "training")
        test_rows = _labelled(test_features, test_labels[column], column, "test")
        classes = labels[train_rows].unique()
        if len(classes) < 2:
            raise UserError(
                f"A probe of `{column}` needs training images of at least two classes, got one. Choose another label "
                "column, or more images if the data set is sorted by class."
            )
        # Dense numbers for the classes that occur; a test image of any other class counts as wrong.
        train_y = torch.searchsorted(classes, labels[train_rows])
        test_y = test_labels[column][test_rows]
        position = torch.searchsorted(classes, test_y).clamp(max=len(classes) - 1)
        problems[column] = train_rows, train_y, test_rows, torch.where(classes[position] == test_y, position, -1)
    prepare, run = PROBES[protocol]
    train_x, test_x = prepare(train_features.float().cpu(), test_features.float().cpu())
    return {
        column: run(
            Problem(
                train_x[train_rows], train_y, test_x[test_rows], test_y, augmented, train_rows.nonzero().flatten()
            ),
            seed,
        )
        for column, (train_rows, train_y, test_rows, test_y) in problems.items()
    }


def _labelled(features: Tensor, labels: Tensor, column: str, part: str) -> Tensor:
    """Rows of the images that have a label."""
    if features.ndim != 2 or len(features) != len(labels):
        raise UserError(
            f"The {part} features must have shape (images, dim) with one label each, got {tuple(features.shape)} and "
            f"{len(labels)} labels of `{column}`."
        )
    known = labels >= 0
    if not known.any():
        raise UserError(f"No {part} image has a label in `{column}`. Choose another label column or split.")
    return known
