"""Weighted nearest-neighbour classification: how well a frozen representation groups images, without any training.

Protocol of instance discrimination (Wu et al., 2018, section 3.4; https://arxiv.org/abs/1805.01978): cosine
similarity of the encoder's features (not of the projections), each of the k nearest training images votes with weight
exp(similarity / temperature).
"""

from collections.abc import Iterator, Mapping

import torch.nn.functional as F
from torch import Tensor

from hf_ssl.errors import UserError

_SIMILARITIES_PER_CHUNK = 2**24  # 64 MB of float32 at a time


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 200,
    temperature: float = 0.1,
) -> float:
    """Share of test images that the weighted vote of their nearest training images classifies correctly.

    Ties are deterministic: of equally near training images the earlier counts, of equal votes the lower class.

    Args:
        train_features: (training images, dim).
        train_labels: (training images,), int64; images with a negative label take no part.
        test_features: (test images, dim).
        test_labels: (test images,), int64; images with a negative label take no part.
        k: Number of neighbours that vote, at least 1; all training images where there are fewer.
        temperature: Temperature of the weights, positive.

    Returns:
        Accuracy, fraction in [0, 1].

    Raises:
        UserError: If a number is out of range, shapes disagree, or no labelled image is left.
    """
    return knn_accuracies(
        train_features, {"label": train_labels}, test_features, {"label": test_labels}, k, temperature
    )["label"]


def knn_accuracies(
    train_features: Tensor,
    train_labels: Mapping[str, Tensor],
    test_features: Tensor,
    test_labels: Mapping[str, Tensor],
    k: int = 200,
    temperature: float = 0.1,
) -> dict[str, float]:
    """`knn_accuracy` of several label columns, with one search for the neighbours of columns labelled completely.

    Args:
        train_features: As in `knn_accuracy`.
        train_labels: Labels of each column.
        test_features: As in `knn_accuracy`.
        test_labels: Labels of the same columns.
        k: As in `knn_accuracy`.
        temperature: As in `knn_accuracy`.

    Returns:
        Accuracy of each column, fraction in [0, 1].

    Raises:
        UserError: As `knn_accuracy` does.
    """
    if k < 1:
        raise UserError(f"`k` must be at least 1, got {k}.")
    if temperature <= 0:
        raise UserError(f"`temperature` must be positive, got {temperature}.")
    for features, labels in ((train_features, train_labels), (test_features, test_labels)):
        for column, values in labels.items():
            if len(values) != len(features):
                raise UserError(f"`{column}` has {len(values)} labels for {len(features)} images. Give one each.")
            if not (values >= 0).any():
                raise UserError(f"No image has a label in `{column}`. Choose another column or split.")

    accuracies = {}
    shared = [column for column, labels in train_labels.items() if (labels >= 0).all()]
    for columns in ([shared] if shared else []) + [[column] for column in train_labels if column not in shared]:
        known = train_labels[columns[0]] >= 0
        correct = dict.fromkeys(columns, 0)
        dense = {column: train_labels[column][known].unique(return_inverse=True) for column in columns}
        for rows, similarities, neighbours in _nearest(train_features[known], test_features, k):
            for column in columns:
                classes, numbers = dense[column]  # however large the labels are
                votes = numbers.to(neighbours.device)[neighbours]
                truth = test_labels[column][rows].to(neighbours.device)
                answers = classes.to(neighbours.device)[_vote(similarities, votes, temperature)]
                correct[column] += int((answers == truth).sum())
        for column in columns:
            accuracies[column] = correct[column] / int((test_labels[column] >= 0).sum())
    return {column: accuracies[column] for column in train_labels}


def _nearest(train_features: Tensor, test_features: Tensor, k: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of a chunk of test images, similarities and indices of their neighbours, (chunk, k), nearest first."""
    train = F.normalize(train_features.float(), dim=1)
    k = min(k, len(train))
    chunk_size = max(1, _SIMILARITIES_PER_CHUNK // len(train))
    for start in range(0, len(test_features), chunk_size):
        rows = slice(start, start + chunk_size)
        similarities = F.normalize(test_features[rows].float(), dim=1) @ train.T
        values, indices = similarities.topk(min(k + 1, len(train)), dim=1)
        if values.shape[1] > k:
            # Which of equally near images `topk` returns is unspecified; that matters only at the border of the k.
            tied = values[:, k - 1] == values[:, k]
            values, indices = values[:, :k].clone(), indices[:, :k].clone()
            if tied.any():
                ordered, order = similarities[tied].sort(dim=1, descending=True, stable=True)
                values[tied], indices[tied] = ordered[:, :k], order[:, :k]
        yield rows, values, indices


def _vote(similarities: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Class with the largest sum of weights, (chunk,), from similarities and labels of neighbours, (chunk, k)."""
    # Relative to the nearest neighbour: the same winner, and no overflow at low temperatures.
    weights = ((similarities - similarities[:, :1]).double() / temperature).exp()
    scores = weights.new_zeros(len(labels), int(labels.max()) + 1)
    return scores.scatter_add_(1, labels, weights).argmax(dim=1)
