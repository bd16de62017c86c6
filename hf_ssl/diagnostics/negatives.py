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
