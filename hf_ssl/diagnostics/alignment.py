"""The two properties that a contrastive loss asks of unit vectors (Wang & Isola, 2020, https://arxiv.org/abs/2005.10242)."""

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def alignment(first: Tensor, second: Tensor, exponent: float = 2.0) -> Tensor:
    """Mean distance between two views of the same image on the unit sphere, to a power (section 4.1.1).

    Args:
        first: Features of one view of each image, (images, dim), any scale.
        second: Features of the other view, same shape and order.
        exponent: Power alpha of the distance, positive.

    Returns:
        Scalar in [0, 2 ** exponent], float32; lower is better, 0 where the views of each image coincide.

    Raises:
        ValueError: If the shapes differ or the exponent is not positive.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            "`first` and `second` must both have shape (images, dim) and belong together row by row, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    if exponent <= 0:
        raise ValueError(f"`exponent` must be positive, got {exponent}.")
    distances = (F.normalize(first.double(), dim=1) - F.normalize(second.double(), dim=1)).norm(dim=1)
    return distances.pow(exponent).mean().float()


@torch.no_grad()
def class_alignment(features: Tensor, labels: Tensor) -> Tensor:
    """Mean squared distance between two images of the same class on the unit sphere.

    What `alignment` is for two views of an image, for all pairs of images of a class. It takes no pairs: with n unit
    vectors u of a class and their sum S, the mean over pairs is (2 n sum |u|^2 - 2 |S|^2) / (n (n - 1)).

    Args:
        features: (images, dim), any scale.
        labels: Class of each image, (images,), int64; images with a negative label take no part.

    Returns:
        Scalar in [0, 4], float32; each pair counts the same, so large classes count more. Lower is better: 0 where
        the images of each class coincide, 2 for pairs that have nothing in common.

    Raises:
        ValueError: If the shapes do not fit, or no class has two images.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            "`features` must have shape (images, dim) and `labels` (images,), got "
            f"{tuple(features.shape)} and {tuple(labels.shape)}."
        )
    known = labels >= 0
    unit = F.normalize(features[known].double(), dim=1)
    _, numbers = labels[known].unique(return_inverse=True)
    counts = numbers.bincount().double()
    sums = unit.new_zeros(len(counts), unit.shape[1]).index_add_(0, numbers, unit)
    squares = unit.new_zeros(len(counts)).index_add_(0, numbers, unit.square().sum(dim=1))
    num_pairs = (counts * (counts - 1)).sum()
    if not num_pairs > 0:
        raise ValueError("`labels` must give two images or more to some class, but no two images share one.")
    distances = 2 * counts * squares - 2 * sums.square().sum(dim=1)
    return (distances.sum() / num_pairs).clamp(min=0).float()


@torch.no_grad()
def uniformity(features: Tensor, t: float = 2.0) -> Tensor:
    """How evenly unit vectors cover the sphere: log of the mean Gaussian potential of pairs (section 4.1.2).

    Every pair of different images counts, so the cost grows with the square of their number; 2,000 images of 512
    features take about a tenth of a second on a CPU.

    Args:
        features: (images, dim), at least two images, any scale.
        t: Factor of the squared distance in the potential, positive.

    Returns:
        Scalar in [-4 t, 0], float32, in nats; lower is more even. Vectors spread evenly in `dim` dimensions give about
        -4 + 8 / dim at t = 2; 0 is complete collapse.

    Raises:
        ValueError: If there are fewer than two images or t is not positive.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"`features` must have shape (images, dim) with at least two images, got {tuple(features.shape)}."
        )
    if t <= 0:
        raise ValueError(f"`t` must be positive, got {t}.")
    squared = torch.pdist(F.normalize(features.double(), dim=1)).square()
    return (torch.logsumexp(-t * squared, dim=0) - squared.new_tensor(len(squared)).log()).float()
