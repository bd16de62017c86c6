"""Losses between the two views, always in float32: at a temperature of 0.07 bfloat16 logits are off by up to 0.06."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Scores that `info_nce` has in memory at a time. On a CPU they are to stay in its cache; elsewhere few large kernels
# cost least, and the bound only keeps memory from growing with the queue.
_CHUNK_NUMBERS = {"cpu": 2**18}
_CHUNK_NUMBERS_ELSEWHERE = 2**25


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


def info_nce(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of picking the positive key among all keys (He et al., 2019, equation 1).

    The forward pass computes the gradient too, by two matrix products over a part of the keys at a time. So neither
    scores nor keys are held until the backward pass, and the keys may be written right after this call.

    Args:
        query: Normalised queries, (batch, dim).
        positive: Normalised key of each query, (batch, dim); detach it to stop its gradient.
        negatives: Normalised keys of other images, (keys, dim), without gradient.
        temperature: Softmax temperature tau, positive.
        own: Row of `negatives` that each query leaves out because it is its positive, (batch,), int64; None if the
            positives are not among them.

    Returns:
        The loss, a float32 scalar, mean over the batch in nats; and the fraction of queries whose positive key scores
        above every negative, a float32 scalar without gradient.

    Raises:
        ValueError: If `query` and `positive` differ in shape, or `negatives` ask for a gradient.
    """
    if query.shape != positive.shape:
        raise ValueError(
            f"`query` and `positive` must have one shape, got {tuple(query.shape)} and {tuple(positive.shape)}."
        )
    if negatives.requires_grad:
        raise ValueError(
            "`negatives` get no gradient from `info_nce`. Detach them, or use `cross_view_info_nce`, whose keys do."
        )
    with torch.autocast(query.device.type, enabled=False):
        query = query.float()
        own_logit = (query * positive.float()).sum(dim=-1) / temperature
        all_others, largest = _LogSumExp.apply(query, negatives.float(), temperature, own)  # pyright: ignore[reportGeneralTypeIssues]
        loss = -F.logsigmoid(own_logit - all_others).mean()
    return loss, (own_logit.detach() > largest).float().mean()


class _LogSumExp(torch.autograd.Function):
    """Logarithm of the sum over keys of exp(query key / temperature), and the largest of these quotients; (batch,)."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, query: Tensor, keys: Tensor, temperature: float, left_out: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        scaled = query / temperature
        # No key at all: exp(lowest - lowest) would count as one, exp(-inf - lowest) does not.
        largest = query.new_full((len(query), 1), torch.finfo(query.dtype).min)
        total, weighted = torch.zeros_like(largest), torch.zeros_like(query)
        chunk_numbers = _CHUNK_NUMBERS.get(query.device.type, _CHUNK_NUMBERS_ELSEWHERE)
        chunk_size = max(1, chunk_numbers // len(query))
        for start in range(0, len(keys), chunk_size):
            chunk = keys[start : start + chunk_size]
            scores = scaled @ chunk.T
            if left_out is not None:
                row = left_out[:, None] - start
                inside = (row >= 0) & (row < len(chunk))
                row = row.clamp(0, len(chunk) - 1)
                scores.scatter_(1, row, scores.gather(1, row).masked_fill(inside, -torch.inf))
            former, largest = largest, torch.maximum(largest, scores.amax(dim=1, keepdim=True))
            kept = (former - largest).exp_()
            weights = scores.sub_(largest).exp_()
            total.mul_(kept).add_(weights.sum(dim=1, keepdim=True))
            weighted.mul_(kept).addmm_(weights, chunk)
        # The gradient is the mean key under the softmax; no key leaves it at 0.
        ctx.save_for_backward(weighted.div_((total * temperature).clamp_(min=torch.finfo(query.dtype).tiny)))
        largest = largest[:, 0]
        ctx.mark_non_differentiable(largest)
        return largest + total[:, 0].log(), largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (mean_key,) = ctx.saved_tensors
        return gradient[:, None] * mean_key, None, None, None


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


def cross_view_info_nce(query: Tensor, keys: Tensor, temperature: float, first: int = 0) -> tuple[Tensor, Tensor]:
    """Cross-entropy of picking the key of the same image among the keys of a batch (MoCo v3, DirectCLR).

    No query meets another query: vectors of one view are never compared with each other.

    Args:
        query: Normalised vectors of one view of this process's images, (batch, dim).
        keys: Normalised vectors of the other view of all images, (images, dim); they receive gradient
            unless detached.
        temperature: Softmax temperature tau, positive.
        first: Row in `keys` of the first query's image; those of the others follow.

    Returns:
        The loss, a float32 scalar, mean over the batch in nats; and the fraction of queries whose positive key scores
        above every other key, a float32 scalar without gradient.
    """
    with torch.autocast(query.device.type, enabled=False):
        logits = query.float() @ keys.float().T / temperature
        targets = first + torch.arange(len(query), device=logits.device)
        loss = F.cross_entropy(logits, targets)
    accuracy = (logits.detach().argmax(dim=1) == targets).float().mean()
    return loss, accuracy


def nt_xent(first: Tensor, second: Tensor, temperature: float, anchors: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Cross-entropy of picking the other view of the same image among all other vectors (SimCLR, equation 1).

    Args:
        first: Normalised vectors of the first view of all images, (images, dim).
        second: Normalised vectors of the second view, in the same order, (images, dim).
        temperature: Softmax temperature tau, positive.
        anchors: Images of this process, whose vectors of both views have to pick; all others are candidates alone.

    Returns:
        The loss, a float32 scalar, mean over both views of the anchors in nats; and the fraction of anchors whose
        positive scores above all 2 * images - 2 negatives, a float32 scalar without gradient.

    Raises:
        ValueError: If `first` and `second` differ in shape.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"`first` and `second` must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}."
        )
    num_images = len(first)
    rows = torch.arange(num_images, device=first.device)[anchors]
    own = torch.cat([rows, rows + num_images])
    with torch.autocast(first.device.type, enabled=False):
        candidates = torch.cat([first, second]).float()
        logits = candidates[own] @ candidates.T / temperature
        # The positive is never masked, so no row is without a candidate.
        logits = logits.scatter(1, own[:, None], float("-inf"))
        targets = (own + num_images) % (2 * num_images)
        loss = F.cross_entropy(logits, targets)
    accuracy = (logits.detach().argmax(dim=1) == targets).float().mean()
    return loss, accuracy
