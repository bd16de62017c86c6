"""Spread of unit vectors: the collapse monitor of SimSiam."""

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Standard deviation of each channel of the normalised features, mean over channels (SimSiam, section 4.1).

    Features spread evenly over the sphere give about 1 / sqrt(dim); complete collapse gives 0. Multiply by sqrt(dim)
    for a number that is comparable between widths.

    Args:
        features: (images, dim), at least two images, any scale.

    Returns:
        Scalar in [0, 1 / sqrt(dim)], float32 (the biased estimate, for which the bound holds).
    """
    unit = F.normalize(features.float(), dim=-1)
    return unit.std(dim=0, correction=0).mean()
