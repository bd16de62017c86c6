"""How many dimensions features really use: the monitor of dimensional collapse."""

import torch
from torch import Tensor


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """Exponential of the entropy of the covariance spectrum (Roy & Vetterli 2007, on variances).

    The eigenvalues of the centred covariance, divided by their sum, are read as probabilities p; the effective rank is
    exp(-sum p ln p). Equal variance in all directions gives `dim`, variance in one direction gives 1. It cannot exceed
    `images - 1`, so compare numbers from batches of the same size.

    Args:
        features: (images, dim), at least two images.

    Returns:
        Scalar in [1, min(dim, images - 1)], float32; 0 for features without any variance (complete collapse), NaN if
        any is not finite.
    """
    centred = features.double() - features.double().mean(dim=0)
    images, dim = centred.shape
    # The smaller of the two Gram matrices has the same nonzero eigenvalues, and eigvalsh is cheaper than an SVD.
    gram = centred.T @ centred if dim <= images else centred @ centred.T
    if not gram.isfinite().all():
        return torch.full((), torch.nan, device=features.device)
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0)
    total = eigenvalues.sum()
    # Rounding leaves a variance of about 1e-32 of the mean square in features that are all equal.
    if total <= 1e-20 * features.double().square().sum():
        return torch.zeros((), device=features.device)
    probabilities = eigenvalues / total
    entropy = -torch.xlogy(probabilities, probabilities).sum()
    return entropy.exp().float()
