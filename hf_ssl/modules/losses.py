"""Losses between the two views, always in float32: at a temperature of 0.07 bfloat16 logits are off by up to 0.06."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Negative cosine similarity, mean over the batch (SimSiam, equation 1).

    Args:
        prediction: (batch, dim).
        target: (batch, dim); detach it to stop its gradient.

    Returns:
        Scalar in [-1, 1], float32.

    Raises:
        ValueError: If the shapes differ.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"`prediction` and `target` must have one shape, got {tuple(prediction.shape)} and {tuple(target.shape)}."
        )
    with torch.autocast(prediction.device.type, enabled=False):
        prediction = F.normalize(prediction.float(), dim=-1)
        target = F.normalize(target.float(), dim=-1)
        return -(prediction * target).sum(dim=-1).mean()


def regression_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance of normalised vectors, mean over the batch (BYOL, equation 2): 2 - 2 cosine.

    Args:
        prediction: (batch, dim).
        target: (batch, dim); detach it to stop its gradient.

    Returns:
        Scalar in [0, 4], float32.
    """
    return 2.0 + 2.0 * negative_cosine(prediction, target)


def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of picking the positive key among all keys (He et al., 2019, equation 1).

    Args:
        query: Normalised queries, (batch, dim).
        positive: Normalised key of each query, (batch, dim); detach it to stop its gradient.
        negatives: Normalised keys of other images, (keys, dim).
        temperature: Softmax temperature tau, positive.

    Returns:
        The loss, a float32 scalar, mean over the batch in nats; and the fraction of queries whose positive key scores
        above every negative, a float32 scalar without gradient.

    Raises:
        ValueError: If `query` and `positive` differ in shape.
    """
    if query.shape != positive.shape:
        raise ValueError(
            f"`query` and `positive` must have one shape, got {tuple(query.shape)} and {tuple(positive.shape)}."
        )
    with torch.autocast(query.device.type, enabled=False):
        query = query.float()
        positive_score = (query * positive.float()).sum(dim=-1, keepdim=True)
        return contrast(positive_score, [query @ negatives.float().T], temperature)


def contrast(positive: Tensor, negatives: Sequence[Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of picking the positive key, from the scores of all keys; `info_nce` is that of cosines.

    Args:
        positive: Score of each query's positive key, (batch, 1), float32.
        negatives: Scores of other keys, each (batch, any number), float32; a score of -inf is left out.
        temperature: Softmax temperature tau, positive.

    Returns:
        The loss, a float32 scalar, mean over the batch in nats; and the fraction of queries whose positive key scores
        above every negative, a float32 scalar without gradient.
    """
    logits = torch.cat([positive, *negatives], dim=1) / temperature
    loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
    accuracy = (logits.detach().argmax(dim=1) == 0).float().mean()
    return loss, accuracy
