"""What a contrastive method's dictionary is: how old its keys have become, and how much their age tells them apart.

He et al., 2019 (https://arxiv.org/abs/1911.05722), section 3.1, ask of a dictionary that it be large, and consistent:
its keys should come from the same encoder, or from similar ones.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def key_agreement(keys: Tensor, others: Tensor) -> Tensor:
    """Cosine of each key with another one of the same view, mean over the keys: 1 where nothing has changed.

    With keys as they were stored and as the encoder makes them now it is what staleness takes away from 1.

    Args:
        keys: (keys, dim), any scale.
        others: The same views encoded at another time or by another network, (keys, dim).

    Returns:
        Scalar in [-1, 1], float64.
    """
    return F.cosine_similarity(keys.double(), others.double(), dim=1).mean()


@torch.no_grad()
def age_share(keys: Tensor, ages: Tensor) -> Tensor:
    """Share of the variance of the keys that their age explains.

    One-way analysis of variance with the ages as groups. Even if age tells nothing, (groups - 1) / (keys - 1) of the
    variance lies between the means of groups, for each mean is of few keys. What that chance explains is taken off,
    as in the adjusted R^2 of a regression (epsilon squared): of exchangeable keys the expectation is 0, whatever the
    size of the groups, and a single number may be a little below.

    Args:
        keys: (keys, dim).
        ages: Age of each, (keys,), int64.

    Returns:
        Scalar, float64: 1 if the age determines the key, about 0 if it tells nothing. 0 for keys of one age, for keys
        that are all equal, and where no two keys have one age, so that nothing can be said.
    """
    keys = keys.double()
    groups, members, sizes = ages.unique(return_inverse=True, return_counts=True)
    total = (keys - keys.mean(dim=0)).square().sum()
    freedom = len(keys) - len(groups)
    if len(groups) < 2 or freedom == 0 or total <= 1e-12 * keys.square().sum():
        return total.new_zeros(())
    sums = keys.new_zeros(len(groups), keys.shape[1]).index_add_(0, members, keys)
    within = (keys - (sums / sizes[:, None])[members]).square().sum()
    return 1 - (within / freedom) / (total / (len(keys) - 1))
