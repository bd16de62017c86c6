"""Gradient descent of a network's last layers over features that a fresh network gave: what real runs have.

The theory of `hf_ssl.dynamics.eigenmodes` takes an unnormalised loss, inputs of covariance I and one noise for all
directions. Here the inputs are pairs of features, measured on two views of images, and the projector and the
predictor learn from them as those of a run do. Each of five terms can be left out:

**Normalised loss.** The loss of a prediction y of a target t is |y/|y| - t/|t||^2 = 2 - 2 c with c their cosine, and

    dloss/dy = -2 (t/|t| - c y/|y|) / |y|

It is orthogonal to y, so sum(W * dloss/dW) = sum(W_p * dloss/dW_p) = 0: the loss does not change with the scale of
either weight, whose norms change by weight decay and by the length of steps alone. Where all y and t have one length,
this is the squared loss at 1 / |y|^2 of the rate, on the directions across y. So without the term, the loss is the
squared one, with the learning rate divided by the mean |z|^2 at the start and the weight decay multiplied by it. That
y is shorter than z in a fresh predictor (by about sqrt(3) with PyTorch's initial weights) is not accounted for.

**Common mean.** Inputs are x = m + d with a mean m and deviations d. While |W m| is large beside |W d|, all targets
have nearly the direction of W m, and dloss/dW = -2 W_p^T (t/|t| - c y/|y|) x^T / |y| is to first order an outer
product with m^T: the predictor learns to map the mean on itself, and W grows by some v m^T / |m|. That adds the
variance |v|^2 var(m . d) / |m|^2 to z along v, the direction of the mean. To first order the loss does not see it,
since deviations along y change |y| alone. So one direction of z gains a variance that nothing limits, and the
effective rank falls although no direction dies.

**Noise by direction.** The pairs themselves have a covariance between images and one within pairs, with eigenvectors
of their own. Without the term, pairs are normal, with the measured mean, the measured covariance B between images, and
noise sigma^2 B, where sigma^2 is the ratio of the traces.

**BatchNorm.** Where the last layer's inputs come from a BatchNorm (and ReLU), its scale and shift learn and decay too.
The shift is the same for all images, so it can learn what all targets share. A normalised loss does not change with a
common factor of both, so that it cannot hold them against the decay exp(-eta t), and a shift that grows takes from the
scale. Both leave images less of z. Without the term, scale and shift are fixed.

**Hidden layers.** The projector's linear layers before the last one learn from the same gradient, taken through what
comes after them. As for the last layer, it is to first order an outer product with the mean of what the layer sees.
Without the term they are fixed, and the theory is that of one layer over fixed inputs.

Two things are heuristic. The encoder does not learn; where it does within a run, directions change. And the pairs are
finitely many: a predictor with hidden layers learns by heart what comes again, and keeps a rank that a run, which sees
new views at each visit, does not keep. So take about as many pairs as the run sees.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hf_ssl.errors import UserError

_EVALUATED = 4  # batches at each look
_DRAWN = 16_384  # normal pairs, at least


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the network has that the paper's theory has not; see the module.

    Args:
        normalised: The loss of unit vectors; else the squared loss.
        common_mean: The mean of the last layer's inputs; else it is taken off.
        directions: The measured pairs; else normal ones with one noise.
        batch_norm: BatchNorms of the projector that learn; else scale and shift are fixed.
        hidden_layers: Layers of the projector before the last one that learn; else fixed ones.
    """

    normalised: bool = True
    common_mean: bool = True
    directions: bool = True
    batch_norm: bool = True
    hidden_layers: bool = True

    @classmethod
    def of(cls, names: list[str]) -> Self:
        """The terms of these names, without the others."""
        return cls(**{one.name: one.name in names for one in fields(cls)})

    @property
    def names(self) -> list[str]:
        """Names of the terms that are in."""
        return [one.name for one in fields(self) if getattr(self, one.name)]


@dataclass(frozen=True, kw_only=True)
class LastLayers:
    """The last layers of a fresh network and what they see.

    Args:
        features: Of two views of each image, (images, 2, width): what the projector sees.
        hidden: The layers of the projector before the last one; they may be none.
        last: The last layer, which gives z.
        predictor: From z to the prediction.
    """

    features: Tensor
    hidden: nn.Module
    last: nn.Linear
    predictor: nn.Module


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How a run descends.

    Args:
        learning_rate: Of the optimizer, positive.
        momentum: Of SGD, in [0, 1).
        weight_decay: At least 0.
        predictor_lr_multiplier: Learning rate of the predictor relative to that of the others, positive.
        ema_momentum: Fraction of the target that a step keeps; None for a target that is the network itself.
        stop_gradient: Whether the target receives no gradient.
        symmetrize: Whether the predictor, a matrix, is made symmetric after every step.
        decay_vectors: Whether BatchNorm's scale and shift decay too.
        batch_size: Images of a step, at least 2.
        num_steps: At least 1.
        seed: Of the order of the images.
    """

    learning_rate: float
    momentum: float
    weight_decay: float
    predictor_lr_multiplier: float = 1.0
    ema_momentum: float | None = None
    stop_gradient: bool = True
    symmetrize: bool = False
    decay_vectors: bool = True
    batch_size: int = 64
    num_steps: int = 300
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Look:
    """z of some batches at one step.

    Args:
        step: Optimizer steps done.
        eigenvalues: Of the covariance of z over images and views, largest first, mean over the batches.
        rank: Effective rank of it, mean over the batches.
        spread: Standard deviation of unit z times the root of their dimension, in [0, 1].
    """

    step: int
    eigenvalues: list[float]
    rank: float
    spread: float


class _Centre(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features - features.mean(dim=0)


def descend(layers: LastLayers, how: Descent, terms: Terms, looks: int = 20) -> list[Look]:
    """Train the last layers; `layers` stay as they are.

    Args:
        layers: Where the network starts.
        how: Settings of the run.
        terms: What it has beyond the paper's theory.
        looks: How often z is looked at, at least 1.

    Returns:
        Looks at the start, in between and at the end; they end early where weights are not finite any more.

    Raises:
        UserError: If there are fewer pairs than images of a step.
    """
    pairs = layers.features.float()
    if len(pairs) < how.batch_size:
        raise UserError(
            f"A step takes {how.batch_size} pairs, got {len(pairs)}. Measure more, or take a smaller batch."
        )
    generator = torch.Generator().manual_seed(how.seed)
    if not terms.directions:
        pairs = normal_pairs(pairs, max(_DRAWN, len(pairs)), generator)
    hidden = copy.deepcopy(layers.hidden)
    for module in hidden.modules():
        learns = terms.batch_norm if isinstance(module, nn.BatchNorm1d) else terms.hidden_layers
        for weight in module.parameters(recurse=False):
            weight.requires_grad_(learns)
    online = nn.Sequential(hidden, *([] if terms.common_mean else [_Centre()]), copy.deepcopy(layers.last)).train()
    if not terms.normalised:
        with torch.no_grad():
            size = float(torch.stack([online(view) for view in pairs.unbind(dim=1)]).square().sum(dim=-1).mean())
        how = replace(how, learning_rate=how.learning_rate / size, weight_decay=how.weight_decay * size)
    target, predictor = copy.deepcopy(online), copy.deepcopy(layers.predictor).train()
    optimizer = _optimizer(online, predictor, how)
    batches = _batches(pairs, how.batch_size, generator)
    every = max(1, how.num_steps // looks)
    found = [_look(online, pairs, how.batch_size, 0)]
    for step in range(1, how.num_steps + 1):
        loss = _loss(online, target if how.ema_momentum is not None else None, predictor, next(batches), how, terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            if how.symmetrize:
                weight = predictor.get_parameter("weight")
                weight.copy_((weight + weight.T) / 2)
            if how.ema_momentum is not None:
                for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                    slow.lerp_(fast, 1 - how.ema_momentum)
        if step % every == 0 or step == how.num_steps:
            look = _look(online, pairs, how.batch_size, step)
            if not all(map(_is_finite, look.eigenvalues)):
                break
            found.append(look)
    return found


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")  # false for NaN


def _loss(
    online: nn.Module, target: nn.Module | None, predictor: nn.Module, batch: Tensor, how: Descent, terms: Terms
) -> Tensor:
    """Sum of both directions, mean over the images."""
    z = [online(view) for view in batch.unbind(dim=1)]
    y = [predictor(one) for one in z]
    if target is not None:
        with torch.no_grad():
            t = [target(view) for view in batch.unbind(dim=1)]
    else:
        t = [one.detach() for one in z] if how.stop_gradient else z
    if terms.normalised:
        y, t = [normalize(one, dim=-1) for one in y], [normalize(one, dim=-1) for one in t]
    return ((y[0] - t[1]).square().sum(dim=-1) + (y[1] - t[0]).square().sum(dim=-1)).mean()


def _optimizer(online: nn.Module, predictor: nn.Module, how: Descent) -> torch.optim.SGD:
    groups = []
    for module, multiplier in ((online, 1.0), (predictor, how.predictor_lr_multiplier)):
        for weight in filter(lambda one: one.requires_grad, module.parameters()):
            decay = how.weight_decay if weight.dim() > 1 or how.decay_vectors else 0.0
            groups.append({"params": [weight], "lr": how.learning_rate * multiplier, "weight_decay": decay})
    return torch.optim.SGD(groups, momentum=how.momentum)


def _batches(pairs: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches without end; each image once before any comes again."""
    while True:
        order = torch.randperm(len(pairs), generator=generator)
        for start in range(0, len(pairs) - size + 1, size):
            yield pairs[order[start : start + size]]


@torch.no_grad()
def _look(online: nn.Module, pairs: Tensor, size: int, step: int) -> Look:
    eigenvalues, ranks, spreads = [], [], []
    for place in range(min(_EVALUATED, len(pairs) // size)):
        batch = pairs[place * size : (place + 1) * size]
        z = torch.stack([online(view) for view in batch.unbind(dim=1)], dim=1).double()
        rows = z.flatten(0, 1)
        if not bool(rows.isfinite().all()):
            return Look(step=step, eigenvalues=[float("nan")], rank=float("nan"), spread=float("nan"))
        rows = rows - rows.mean(dim=0)
        values = torch.linalg.svdvals(rows).square() / len(rows)
        share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
        eigenvalues.append(values)
        ranks.append(torch.special.entr(share).sum().exp() if values.sum() > 1e-12 * z.square().sum() else share.sum())
        unit = normalize(z[:, 0], dim=-1)
        spreads.append(unit.std(dim=0).mean() * z.shape[-1] ** 0.5)
    means = [torch.stack(values).mean(dim=0) for values in (eigenvalues, ranks, spreads)]
    return Look(step=step, eigenvalues=means[0].tolist(), rank=float(means[1]), spread=float(means[2]))


def normal_pairs(pairs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Normal pairs with the mean and the covariance B between images of others, and one noise sigma^2 B.

    Args:
        pairs: Measured, (images, 2, features).
        count: How many to draw.
        generator: Source of the draws.

    Returns:
        (count, 2, features).
    """
    mean = pairs.mean(dim=(0, 1))
    first, second = (pairs - mean).unbind(dim=1)
    between = (first.T @ second + second.T @ first) / (2 * len(pairs))
    values, vectors = torch.linalg.eigh(between)
    values = values.clamp(min=0)
    added = (first - second).square().sum() / (2 * len(pairs))
    ratio = added / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    root = vectors * values.sqrt()
    shared, *noise = (torch.randn(count, len(mean), generator=generator) @ root.T for _ in range(3))
    return torch.stack([mean + shared + ratio.sqrt() * one for one in noise], dim=1)
