"""Which directions of an encoder's features augmentation drowns, and what is lost with them.

The theorem of Jing et al. (2021) is about one linear layer on inputs x under InfoNCE; here x are the features of a
frozen encoder, so that it speaks of a linear layer on top of them. That the directions of the features themselves get
lost when the encoder is trained goes beyond it: a nonlinear encoder can learn to resist the augmentation.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_ssl.diagnostics.augmentation import (
    ViewSpreads,
    augmentation_shares,
    directions_of,
    theorem_spreads,
    variance_along,
    view_spreads,
)
from hf_ssl.dynamics.dimensional_collapse import weighted_spreads
from hf_ssl.evaluation.knn import knn_accuracy

AUGMENTATION_NUMBERS = {
    "augmentation_share": "of the variance of a view",
    "dominated": "directions in which augmentation varies more than the data",
    "dominated_variance": "share of the variance between images that these hold",
    "lost_by_theorem": "negative eigenvalues of X: the first view is the image as it is, equal softmax weights",
    "lost_by_softmax": "the same with two augmented views, and the weights of InfoNCE at temperature 0.1",
    "knn": "accuracy of k-NN with all directions",
    "knn_kept": "without the directions that augmentation dominates",
    "knn_dominated": "with these alone",
}
"""Numbers of an encoder under a recipe, and what they say."""

AS_IT_IS = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "flip_probability": 0.0}
"""Settings of views that make of the recipe `crop_and_flip` the image itself, or its middle square. By the path of
views, so that what the encoder's own preprocessing does otherwise does not count as augmentation."""

_TEMPERATURE = 0.1  # of unit vectors, as in most methods that compare by cosine
_BATCH = 256  # images whose softmax weighs them
_MOST_BATCHES = 8
_NEIGHBOURS = 20


def analyse_augmentation(images: Tensor, views: Tensor, labels: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """The numbers of `AUGMENTATION_NUMBERS`, and the curves behind them.

    Accuracies are those of a weighted vote of the 20 nearest of the first half of the images for the second half.
    Directions are taken away by an orthogonal projection of centred features, so that the spread of the others stays.

    Args:
        images: Features of images as they are, (images, dim), at least two.
        views: Features of augmented views of the same images, (images, views, dim), at least two of each.
        labels: Classes of the images by label column, of which the first counts; negative where unknown.

    Returns:
        `numbers`, without accuracies where no label is known in either half, and `curves`: along the principal
        directions of the images as they are, largest first, their own variance `images` and that of views `between`
        images and `within` them; `shares` are those of `augmentation_shares`.
    """
    spreads = view_spreads(views)
    between = spreads.between
    dominated = directions_of(between - spreads.within, spreads.total)
    theorem = theorem_spreads(images, views)
    by_softmax = _softmax_spreads(views)
    lost = directions_of(theorem.between - theorem.within, theorem.total)
    weighted = directions_of(by_softmax.between - by_softmax.within, by_softmax.total)
    variance = between.trace().clamp(min=torch.finfo(between.dtype).tiny)
    numbers = {
        "directions": len(dominated.eigenvalues),
        "augmentation_share": float(spreads.within.trace() / spreads.total.trace().clamp(min=1e-300)),
        "dominated": dominated.negative.shape[1],
        "dominated_variance": float(variance_along(between, dominated.negative).sum() / variance),
        "lost_by_theorem": lost.negative.shape[1],
        "lost_by_softmax": weighted.negative.shape[1],
    }
    numbers |= _accuracies(images, dominated.negative, labels or {})
    # Not the eigenvectors of `between`: the small ones of an estimate lie where it is most uncertain.
    values, vectors = torch.linalg.eigh(theorem.between / 2)
    curves = {
        "images": values.flip(0).tolist(),
        "between": variance_along(between, vectors).flip(0).tolist(),
        "within": variance_along(spreads.within, vectors).flip(0).tolist(),
        "shares": augmentation_shares(spreads).tolist(),
    }
    return {"numbers": numbers, "curves": curves}


def _softmax_spreads(views: Tensor) -> ViewSpreads:
    """Sigma_0 and Sigma_1 with the softmax weights of two augmented views, mean over some batches.

    For unit vectors, cosine / T is minus half the squared distance of vectors of length 1 / sqrt(T), up to a constant:
    InfoNCE by cosine is the loss of the theorem, with W a multiple of the identity.
    """
    unit = F.normalize(views[:, :2].double(), dim=2)
    batches = [batch for batch in unit.split(_BATCH) if len(batch) == min(_BATCH, len(unit))][:_MOST_BATCHES]
    found = []
    for first, second in (batch.unbind(dim=1) for batch in batches):
        logits = first @ first.T
        logits.diagonal().copy_((first * second).sum(dim=1))
        found.append(weighted_spreads((logits / _TEMPERATURE).softmax(dim=1), first, second))
    data = torch.stack([one.data for one in found]).mean(dim=0)
    return ViewSpreads(data, torch.stack([one.augmentation for one in found]).mean(dim=0))


def _accuracies(images: Tensor, dominated: Tensor, labels: Mapping[str, Tensor]) -> dict[str, float]:
    """Accuracy of k-NN with all directions, without the dominated ones and with them alone, where there are labels."""
    half = len(images) // 2
    known = next(iter(labels.values()), torch.full((len(images),), -1))
    if not (known[:half] >= 0).any() or not (known[half:] >= 0).any():
        return {}
    centred = images.double() - images.double().mean(dim=0)
    within = centred @ dominated
    features = {"knn": centred, "knn_kept": centred - within @ dominated.T, "knn_dominated": within}
    if dominated.shape[1] == 0:
        features.pop("knn_dominated")
    if dominated.shape[1] == images.shape[1]:
        features.pop("knn_kept")
    return {
        name: knn_accuracy(one[:half], known[:half], one[half:], known[half:], k=_NEIGHBOURS)
        for name, one in features.items()
    }
