"""What the equations of the linear network say of a run of BYOL with a linear predictor, direction by direction.

Tian et al. (2021): once predictor W_p and correlation F share their eigenvectors, each direction follows equations of
its own in p, s and the lag tau of the target. A run has a learning rate and a momentum per step; see
`hf_ssl.dynamics.prediction.TrainingSetting` for how they become rates. Two things are taken from the run instead of
the paper: unit vectors make the loss four times that of the theory, and projections are divided by L, the root of
their mean squared length at the start. That leaves no factor in the equation of the predictor. In that of the encoder
it leaves X / L^2, where X is the second moment of what the last layer sees. It is taken as the identity, which was not
measured: for white inputs of variance 1, alpha_p would be L^2 and not 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_ssl.diagnostics.predictor import eigenbasis, eigenvector_cosines
from hf_ssl.dynamics.integrate import integrate
from hf_ssl.dynamics.linear_network import LinearNetworkFlow
from hf_ssl.modules.momentum import cosine_momentum

LOSS_SCALE = 4.0
"""2 - 2 cos of both directions is four times |p - z|^2 / 2 for unit vectors."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Projections of some views of images, and the predictor beside them.

    Args:
        between: F, covariance of what two views share, (dim, dim).
        within: Covariance that augmentation adds to a view, (dim, dim).
        predictor: W_p, (dim, dim).
    """

    between: Tensor
    within: Tensor
    predictor: Tensor

    @property
    def noise(self) -> float:
        """sigma^2 of the theory: variance that augmentation adds, relative to what two views share."""
        return float(self.within.trace() / self.between.trace())

    def cosine(self) -> float | None:
        """Cosine of F's eigenvectors and what the predictor makes of them, mean weighted by the eigenvalues.

        None where F has no positive eigenvalue: all directions have collapsed, and there is nothing to align with.
        """
        return _weighted_cosine(self.between, self.predictor)


def moments_of(projections: Tensor, predictor: Tensor) -> Moments:
    """Moments of projections of two views, (images, 2, dim), whose mean over images is taken off."""
    z = projections.double()
    first, second = (z - z.mean(dim=(0, 1))).unbind(dim=1)
    shared = first.T @ second / len(z)
    both = (first.T @ first + second.T @ second) / (2 * len(z))
    shared = (shared + shared.T) / 2
    return Moments(between=shared, within=both - shared, predictor=predictor.double())


def scaled(moments: Moments, length: float) -> Moments:
    """The same of projections divided by a length."""
    square = length * length
    return Moments(between=moments.between / square, within=moments.within / square, predictor=moments.predictor)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """A run in the terms of the theory.

    Args:
        learning_rate: Of the optimizer, positive.
        optimizer_momentum: Of SGD, in [0, 1).
        weight_decay: Of the optimizer, at least 0.
        ema_momentum: Of the target, in [0, 1); None for no moving average.
        cosine: Whether that rises to 1 along half a cosine.
        num_steps: Steps of the run.
    """

    learning_rate: float
    optimizer_momentum: float
    weight_decay: float
    ema_momentum: float | None
    cosine: bool
    num_steps: int

    @property
    def time_of_step(self) -> float:
        """Time of the theory that passes in a step."""
        return LOSS_SCALE * self.learning_rate / (1 - self.optimizer_momentum)

    def beta(self, step: float) -> float | None:
        """Speed of the target at a step; None without a moving average."""
        if self.ema_momentum is None:
            return None
        momentum = cosine_momentum(self.ema_momentum, step / self.num_steps) if self.cosine else self.ema_momentum
        return (1 - momentum) / self.time_of_step

    @property
    def eta(self) -> float:
        """Weight decay of the theory."""
        return self.weight_decay / LOSS_SCALE


def follow_modes(start: Moments, vectors: Tensor, rates: Rates, steps: Sequence[int]) -> Tensor:
    """S of each direction at some steps, by the equations of decoupled modes.

    In the weights p, w and w_a of predictor, network and target (appendix D of the paper): s = w^2, and the lag
    tau = w_a / w of section 3.2 would grow without bound where a direction dies faster than the target follows.

    Args:
        start: Of the fresh network, scaled.
        vectors: Eigenvectors of its F, as columns, (dim, modes).
        rates: Of the run.
        steps: Ascending, from 0.

    Returns:
        (steps, modes).
    """
    p = (vectors * (start.predictor @ vectors)).sum(dim=0)
    w = (vectors * (start.between @ vectors)).sum(dim=0).clamp(min=0).sqrt()
    state, found = torch.stack([p, w, w]), [w.square()]
    for first, last in zip(steps, steps[1:], strict=False):
        beta = rates.beta((first + last) / 2)

        def of_state(state: Tensor, beta: float | None = beta) -> Tensor:
            p, w, target = state
            error = (w if beta is None else target) - (1 + start.noise) * p * w
            w_rate = p * error - rates.eta * w
            target_rate = w_rate if beta is None else beta * (w - target)
            return torch.stack([w * error - rates.eta * p, w_rate, target_rate])

        times = torch.tensor([0.0, (last - first) * rates.time_of_step], dtype=torch.float64)
        state = integrate(of_state, state, times, "LSODA")[-1]
        found.append(state[1].square())
    return torch.stack(found)


def follow_alignment(start: Moments, rates: Rates, steps: Sequence[int]) -> list[float | None]:
    """Weighted cosine of predictor and correlation at some steps, by the equations of the matrices.

    With white inputs W is any root of F; the target begins as a copy.

    Args:
        start: Of the fresh network, scaled.
        rates: Of the run.
        steps: Ascending, from 0.
    """
    values, vectors = eigenbasis(start.between)
    online = vectors * values.sqrt() @ vectors.T
    weights, found = None, [start.cosine()]
    eye = torch.eye(len(online), dtype=torch.float64)
    for first, last in zip(steps, steps[1:], strict=False):
        beta = rates.beta((first + last) / 2)
        flow = LinearNetworkFlow(between=eye, within=start.noise * eye, eta=rates.eta, beta=beta)
        weights = flow.start(online, start.predictor) if weights is None else weights
        times = torch.tensor([0.0, (last - first) * rates.time_of_step], dtype=torch.float64)
        weights = flow.path(weights, times, "DOP853").at(-1)
        found.append(_weighted_cosine(flow.correlation(weights), weights.predictor))
    return found


def _weighted_cosine(correlation: Tensor, predictor: Tensor) -> float | None:
    values, vectors = eigenbasis(correlation)
    weight = values.sum()
    if not weight > 0:
        return None
    return float((values * eigenvector_cosines(vectors, predictor)).sum() / weight)


def turning_steps(
    steps: Sequence[int], values: Tensor, transform: Callable[[Tensor], Tensor] = torch.log
) -> list[int]:
    """First step at which each curve has gone half of the way from its start to its end.

    Args:
        steps: (steps,).
        values: Positive, (steps, modes).
        transform: Scale on which half is taken.
    """
    scale = transform(values.clamp(min=1e-12))
    whole = scale[-1] - scale[0]
    gone = (scale - scale[0]) / torch.where(whole.abs() > 0, whole, torch.ones_like(whole)) >= 0.5
    return [steps[int(place)] for place in gone.int().argmax(dim=0)]
