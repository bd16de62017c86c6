"""What augmentation is expected to do to the directions of an encoder's features, and what training did to them.

The prediction is that of Jing et al. (2021, section 4) for one linear layer, taken to the features of an encoder: the
larger the share of augmentation in the variance of a direction, the more of it is lost. Training is measured by what a
linear map of the trained features still tells of a direction, so that a rotation of the features loses nothing.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from hf_ssl.diagnostics.augmentation import directions_of, theorem_spreads, variance_along, view_spreads
from hf_ssl.dynamics.dimensional_collapse import weighted_spreads

logger = logging.getLogger(__name__)

LEAST_CORRELATION = 0.5
LEAST_DIFFERENCE = 0.3
"""Rank correlations that the claims ask for; chosen before the first run."""

CLAIMS = {
    "directions": "In each run, directions with a larger share of augmentation lose more: rank correlation of at "
    f"least {LEAST_CORRELATION}, and above that of small variance alone.",
    "differences": "Between two recipes, the directions that one of them augments more lose more by it: rank "
    f"correlation of the differences of at least {LEAST_DIFFERENCE} for each pair.",
    "recipes": "A recipe by which theorem 1 loses more directions loses more of the features.",
}
"""What the study asks of the theory."""

_USED = 1e-6  # of the largest variance
_SMALL = 0.01  # of the linear layer at its start
_LAYER_STEPS, _LAYER_IMAGES, _LAYER_RATE = 200, 500, 0.02
_LEAST_A_FEATURE = 4  # images of the fit
_CONSTANT = 1e-12  # of the largest: rounding
_RIDGE = 1e-6  # of the mean variance: keeps the fit of unused features finite


def principal_directions(images: Tensor) -> Tensor:
    """Directions of the features of images that are used, largest variance first, as columns.

    Args:
        images: (images, dim).
    """
    centred = images.double() - images.double().mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(images) - 1))
    return vectors[:, values > _USED * values[-1]].flip(1)


def predict(images: Tensor, views: Tensor, directions: Tensor) -> dict[str, Any]:
    """What theory says of the directions of features under a recipe.

    Args:
        images: Features of images as they are, (images, dim).
        views: Features of their views, (images, views, dim).
        directions: Unit vectors as columns, (dim, directions).

    Returns:
        `shares` of augmentation in the variance of a view, by direction; `lost_by_theorem` and `dominated`, the
        numbers of negative eigenvalues of X and of between less within.
    """
    spreads, theorem = view_spreads(views), theorem_spreads(images, views)
    within = variance_along(spreads.within, directions)
    shares = within / variance_along(spreads.total, directions)
    lost = directions_of(theorem.between - theorem.within, theorem.total)
    dominated = directions_of(spreads.between - spreads.within, spreads.total)
    return {
        "lost_by_theorem": lost.negative.shape[1],
        "dominated": dominated.negative.shape[1],
        "shares": [round(share, 5) for share in shares.tolist()],
    }


def spectra_of(images: Tensor, views: Tensor, directions: Tensor) -> dict[str, Tensor]:
    """Variance along directions: `images` as they are, what views share (`between`) and augmentation (`within`).

    Args:
        images: Features of images as they are, (images, dim).
        views: Features of their views, (images, views, dim).
        directions: Unit vectors as columns, (dim, directions).
    """
    spreads, theorem = view_spreads(views), theorem_spreads(images, views)
    found = {"images": theorem.between / 2, "between": spreads.between, "within": spreads.within}
    return {name: variance_along(covariance, directions) for name, covariance in found.items()}


def retained(before: Tensor, after: Tensor, directions: Tensor) -> Tensor:
    """How much of each direction a linear map of the trained features tells: R squared on held-out images.

    Args:
        before: Features of the images before training, (images, dim).
        after: Features of the same images afterwards; the first half fits the map, the second judges it.
        directions: Of the features before, as columns, (dim, directions).

    Returns:
        (directions,), from 1 for what is kept to 0 for what is lost; a fit worse than the mean counts as 0. NaN for a
        direction in which the second half does not vary: there is nothing to tell.
    """
    half = len(before) // 2
    targets, inputs = before.double() @ directions, after.double()
    targets, inputs = targets - targets[:half].mean(dim=0), inputs - inputs[:half].mean(dim=0)
    gram = inputs[:half].T @ inputs[:half]
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    fitted = inputs[half:] @ torch.linalg.solve(gram, inputs[:half].T @ targets[:half])
    errors = (targets[half:] - fitted).square().sum(dim=0)
    spread = (targets[half:] - targets[half:].mean(dim=0)).square().sum(dim=0)
    kept = (1 - errors / spread).clamp(min=0)
    return kept.where(spread > _CONSTANT * spread.max(), torch.nan)


def warn_of_few(images: int, width: int) -> None:
    """Warn where the linear map of `retained` has so few images that it fits them by heart.

    Args:
        images: Number of images.
        width: Of the features.
    """
    if images // 2 < _LEAST_A_FEATURE * width:
        logger.warning(
            f"A linear map of {width} features is fitted to {images // 2} images, half of those that are measured on: "
            f"directions look more lost than they are. Measure on {2 * _LEAST_A_FEATURE * width} or more "
            "(`eval_images`)."
        )


def scores_of(
    variances: list[float], predictions: Mapping[str, Mapping[str, Any]], kept: Mapping[str, Sequence[float | None]]
) -> dict[str, Any]:
    """Predictions beside what was kept, and whether the claims hold.

    Args:
        variances: Of the directions before training.
        predictions: From `predict`, by recipe.
        kept: From `retained`, by recipe, of those that were trained. A direction that is None in one of them counts in
            none.

    Returns:
        `by_recipe`: rank correlations of share and loss, and of small variance and loss (None where nothing varies),
        and the mean loss;
        `differences`: by pair of recipes; `claims`: by name, true or false.
    """
    by_recipe, differences = {}, {}
    known = _known(kept, kept)
    shares = _known({recipe: predictions[recipe]["shares"] for recipe in kept}, kept)
    (small,) = _known({"": [-value for value in variances]}, kept).values()
    for recipe, values in known.items():
        loss = [-value for value in values]
        by_recipe[recipe] = {
            "share_and_loss": _rank_correlation(shares[recipe], loss),
            "variance_and_loss": _rank_correlation(small, loss),
            "mean_loss": 1 - sum(values) / len(values) if values else None,
        }
    for first, second in combinations(kept, 2):
        differences[f"{first} - {second}"] = _rank_correlation(
            _differences(shares[first], shares[second]), _differences(known[second], known[first])
        )
    counts = sorted(kept, key=lambda recipe: predictions[recipe]["lost_by_theorem"])
    losses = sorted(kept, key=lambda recipe: by_recipe[recipe]["mean_loss"] or 0.0)
    claims = {
        "directions": all(
            _at_least(one["share_and_loss"], LEAST_CORRELATION)
            and one["share_and_loss"] > (one["variance_and_loss"] or 0.0)
            for one in by_recipe.values()
        ),
        "differences": all(_at_least(value, LEAST_DIFFERENCE) for value in differences.values()),
        "recipes": counts == losses,
    }
    return {"by_recipe": by_recipe, "differences": differences, "claims": claims}


def _known(
    values: Mapping[str, Sequence[float | None]], kept: Mapping[str, Sequence[float | None]]
) -> dict[str, list[float]]:
    """Values by direction, of the directions whose loss every run tells."""
    told = [None not in row for row in zip(*kept.values(), strict=True)]
    return {
        name: [value for value, known in zip(row, told, strict=True) if known and value is not None]
        for name, row in values.items()
    }


def _differences(first: list[float], second: list[float]) -> list[float]:
    return [one - other for one, other in zip(first, second, strict=True)]


def _rank_correlation(first: list[float], second: list[float]) -> float | None:
    """None where one of them does not vary, so that there are no ranks to compare."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return round(float(spearmanr(first, second)[0]), 4)  # pyright: ignore[reportArgumentType]


def _at_least(value: float | None, least: float) -> bool:
    return value is not None and value >= least


def linear_layer(images: Tensor, views: Tensor, *, two_views: bool, seed: int = 0) -> dict[str, Any]:
    """Train one linear layer on frozen features by the loss of the theorem: its own setting, beside its prediction.

    Features are whitened, so that all directions move in a few hundred steps; the number of directions with negative
    eigenvalues of X stays the same. The layer starts as a small multiple of the identity, where softmax weights are
    equal.

    Args:
        images: Features of images as they are, (images, dim).
        views: Features of their views, (images, views, dim), at least three of each.
        two_views: Compare two augmented views, as methods do, instead of the image and a view of it.
        seed: Of the draws.

    Returns:
        `negative`: eigenvalues of X below 0, which for two views are errors of the estimate; `shrunk`: its
        eigenvectors v for which v^T W v has become smaller; `agree`: share of the directions in which the sign is as
        foretold; `rank_correlation` of eigenvalue and growth. All but the first are None where training diverged: with
        few images some eigenvalues are too large for the steps.
    """
    generator = torch.Generator().manual_seed(seed)
    spreads = view_spreads(views)
    variances, basis = torch.linalg.eigh(spreads.total)
    used = variances > _USED * variances[-1]
    white = basis[:, used] / variances[used].sqrt()
    x, augmented = images.double() @ white, views.double() @ white
    found = view_spreads(augmented) if two_views else theorem_spreads(x, augmented)
    growth = 2 * found.between if two_views else found.between - found.within
    eigenvalues, vectors = torch.linalg.eigh(growth)
    weight = _SMALL * torch.eye(x.shape[1], dtype=torch.float64)
    x, augmented = x[:_LAYER_IMAGES], augmented[:_LAYER_IMAGES]
    rows = torch.arange(len(x))
    for _ in range(_LAYER_STEPS):
        # Two different views of each image.
        chosen = torch.rand(len(x), views.shape[1], generator=generator).argsort(dim=1)
        second = augmented[rows, chosen[:, 1]]
        first = augmented[rows, chosen[:, 0]] if two_views else x
        weights = _softmax_weights(first @ weight.T, second @ weight.T)
        weight = weight + _LAYER_RATE * weight @ weighted_spreads(weights, first, second).growth
    negative = int((eigenvalues < 0).sum())
    if not weight.isfinite().all():
        return {"negative": negative, "shrunk": None, "agree": None, "rank_correlation": None}
    grown = ((vectors * (weight @ vectors)).sum(dim=0) / _SMALL).clamp(min=1e-12).log()
    return {
        "negative": negative,
        "shrunk": int((grown < 0).sum()),
        "agree": round(float(((grown < 0) == (eigenvalues < 0)).double().mean()), 4),
        "rank_correlation": _rank_correlation(eigenvalues.tolist(), grown.tolist()),
    }


def _softmax_weights(z: Tensor, positive: Tensor) -> Tensor:
    """Those of `distance_info_nce`, by products instead of differences of pairs: many steps, and z is small."""
    squares = z.square().sum(dim=1) / 2
    logits = z @ z.T - squares[:, None] - squares
    logits.diagonal().copy_(-(z - positive).square().sum(dim=1) / 2)
    return logits.softmax(dim=1)
