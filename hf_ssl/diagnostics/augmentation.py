"""How features vary between images and within the views of an image, and in which directions augmentation wins.

Jing et al. (2021, https://arxiv.org/abs/2110.09348, section 4) call X = Sigma_0 - Sigma_1 the difference of the spread
between images and that between the views of an image. One linear layer W that learns by InfoNCE with half the negative
squared distance as similarity follows dW/dt = W X; where X is negative, augmentation exceeds data, and W shrinks to
zero. These functions estimate both spreads of any features. What the theorem proves ends with the linear layer.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_UNUSED = 1e-6  # of the largest variance: directions that the features do not use, where signs are rounding


class ViewSpreads(NamedTuple):
    """Two covariances, whose sum is that of a single view, (dim, dim) each.

    Args:
        between: Of what the views of an image have in common, between images. An unbiased estimate, so small
            eigenvalues may be estimated as negative.
        within: Of the views of an image about their mean: augmentation.
    """

    between: Tensor
    within: Tensor

    @property
    def total(self) -> Tensor:
        """Covariance of one view of each image."""
        return self.between + self.within


@torch.no_grad()
def view_spreads(views: Tensor) -> ViewSpreads:
    """Unbiased covariances between images and within them, as in an analysis of variance.

    With V views of each of n images, the mean of an image's views still holds a V-th of the augmentation's covariance;
    that part is taken off. Unbiased for views that are drawn independently from one distribution. Where a recipe's two
    views differ, the difference of their means counts as augmentation, V / (V - 1) times.

    Args:
        views: Features, (images, views, dim), at least two images and two views.

    Raises:
        ValueError: If the shape is another, or there are too few images or views.
    """
    if views.ndim != 3 or views.shape[0] < 2 or views.shape[1] < 2:
        raise ValueError(
            "`views` must have shape (images, views, dim) with at least 2 images and 2 views, got "
            f"{tuple(views.shape)}. Augment each image several times."
        )
    views = views.double()
    num_images, num_views, dim = views.shape
    means = views.mean(dim=1)
    around = (views - means[:, None]).reshape(-1, dim)
    within = around.T @ around / (num_images * (num_views - 1))
    centred = means - means.mean(dim=0)
    return ViewSpreads(centred.T @ centred / (num_images - 1) - within / num_views, within)


@torch.no_grad()
def theorem_spreads(images: Tensor, views: Tensor) -> ViewSpreads:
    """Sigma_0 and Sigma_1 of Jing et al. at equal softmax weights, where the first view is the image as it is.

    Sigma_0 is the mean of (x_j - x_i)(x_j - x_i)^T over pairs of different images, twice their covariance; Sigma_1
    that of (x' - x)(x' - x)^T over views. Equal weights are those of small embeddings, and of many images. With two
    augmented views, as runs have them, Sigma_0 - Sigma_1 becomes twice `view_spreads(...).between`: without negative
    eigenvalues, so that at equal weights the theorem then foretells no loss at all.

    Args:
        images: Features of images as they are, (images, dim), at least two.
        views: Features of views of the same images, (images, views, dim).

    Returns:
        Sigma_0 as `between` and Sigma_1 as `within`; their difference is X.
    """
    images, views = images.double(), views.double()
    centred = images - images.mean(dim=0)
    shifts = (views - images[:, None]).flatten(0, 1)
    return ViewSpreads(2 * centred.T @ centred / (len(images) - 1), shifts.T @ shifts / len(shifts))


class Directions(NamedTuple):
    """Directions of features, by what a symmetric matrix does along them.

    Args:
        eigenvalues: Smallest first, (directions,).
        vectors: Unit vectors as columns, (dim, directions).
    """

    eigenvalues: Tensor
    vectors: Tensor

    @property
    def negative(self) -> Tensor:
        """Directions with a negative eigenvalue, (dim, negative ones)."""
        return self.vectors[:, self.eigenvalues < 0]


@torch.no_grad()
def directions_of(growth: Tensor, total: Tensor) -> Directions:
    """Eigenvectors of X, or of another difference of spreads, in the directions that the features use.

    How many eigenvalues are negative does not change if the features pass an invertible linear layer (Sylvester's law
    of inertia); which directions these are does.

    Args:
        growth: Difference of two spreads, symmetric, (dim, dim).
        total: Covariance of the features, whose directions above 1e-6 of the largest variance are used.
    """
    variances, basis = torch.linalg.eigh(total)
    basis = basis[:, variances > _UNUSED * variances[-1].clamp(min=torch.finfo(variances.dtype).tiny)]
    eigenvalues, inner = torch.linalg.eigh(basis.T @ growth @ basis)
    return Directions(eigenvalues, basis @ inner)


@torch.no_grad()
def augmentation_shares(spreads: ViewSpreads) -> Tensor:
    """Share of the augmentation in the variance of a view, in the directions where it is largest, then next largest.

    Generalised eigenvalues of `within` relative to `total`: they do not depend on the scale or basis of the features.
    Above one half augmentation varies more than data.

    Args:
        spreads: From `view_spreads`.

    Returns:
        (directions that are used,), float64, largest first.
    """
    variances, basis = torch.linalg.eigh(spreads.total)
    used = variances > _UNUSED * variances[-1].clamp(min=torch.finfo(variances.dtype).tiny)
    white = basis[:, used] / variances[used].sqrt()
    return torch.linalg.eigvalsh(white.T @ spreads.within @ white).flip(0)


def variance_along(covariance: Tensor, vectors: Tensor) -> Tensor:
    """Variance along unit vectors, (directions,).

    Args:
        covariance: (dim, dim).
        vectors: As columns, (dim, directions).
    """
    return (vectors * (covariance @ vectors)).sum(dim=0)
