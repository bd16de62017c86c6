"""What the hardest negatives of a contrastive loss are: how much of the softmax they hold, and whether they are wrong.

The analysis of MoCHi (Kalantidis et al., 2020, section 3): late in training only a few negatives matter, and many of
these are images of the query's class.
"""

import torch
from torch import Tensor


@torch.no_grad()
def matching_probabilities(positive: Tensor, negatives: Tensor, hardest: Tensor, temperature: float) -> Tensor:
    """Probability that the softmax gives to the hardest negatives, by rank.

    Args:
        positive: Score of each query's positive key, (batch, 1).
        negatives: Scores of all negatives, (batch, keys), in any order; -inf for one that is left out.
        hardest: The largest of these scores, largest first, (batch, ranks).
        temperature: Softmax temperature tau, positive.

    Returns:
        Mean over the queries, (ranks,), float32, in [0, 1] and not increasing. Adding up those of all keys gives what
        the positive lacks to 1.
    """
    of_negatives = torch.logsumexp(negatives.float() / temperature, dim=1, keepdim=True)
    of_all = torch.logaddexp(positive.float() / temperature, of_negatives)
    return (hardest.float() / temperature - of_all).exp().mean(dim=0)


@torch.no_grad()
def false_negative_share(labels: Tensor, negative_labels: Tensor) -> Tensor:
    """Share of negatives that are images of the query's class.

    Args:
        labels: Class of each query, (batch,), int64; -1 if unknown.
        negative_labels: Class of each query's negatives, (batch, negatives), int64; -1 if unknown.

    Returns:
        Scalar in [0, 1], float32, over the pairs whose two classes are known; 0 if there are none.
    """
    own = labels[:, None]
    known = (own >= 0) & (negative_labels >= 0)
    same = known & (own == negative_labels)
    return same.sum().float() / known.sum().clamp(min=1)


@torch.no_grad()
def effective_negatives(scores: Tensor, temperature: float) -> Tensor:
    """How many negatives the softmax really has: one over the sum of the squared weights that it gives them.

    Args:
        scores: Scores of all negatives of each query, (batch, keys); -inf for one that is left out.
        temperature: Softmax temperature tau, positive.

    Returns:
        Mean over the queries, a float32 scalar: the number of keys if all weigh the same, 1 if one of them has all the
        weight. The inverse participation ratio; the positive is not counted.
    """
    weights = torch.softmax(scores.float() / temperature, dim=1)
    return (1 / weights.square().sum(dim=1)).mean()


@torch.no_grad()
def false_negative_weight(scores: Tensor, labels: Tensor, negative_labels: Tensor, temperature: float) -> Tensor:
    """Share of the softmax weight of the negatives that is on images of the query's class.

    Args:
        scores: Scores of all negatives of each query, (batch, keys); -inf for one that is left out.
        labels: Class of each query, (batch,), int64; -1 if unknown.
        negative_labels: Class of each query's negatives, (batch, keys), int64; -1 if unknown.
        temperature: Softmax temperature tau, positive.

    Returns:
        Mean over the queries whose class is known, a float32 scalar in [0, 1]; negatives of unknown class are left
        out. 0 if no class is known.
    """
    own = labels[:, None]
    scores = (scores.float() / temperature).masked_fill(negative_labels < 0, -torch.inf)
    weights = torch.softmax(scores, dim=1).nan_to_num()  # of a query without any known negative
    of_class = (weights * (own == negative_labels)).sum(dim=1)
    known = (labels >= 0) & (negative_labels >= 0).any(dim=1)
    return of_class[known].sum() / known.sum().clamp(min=1)
