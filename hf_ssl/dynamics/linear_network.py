"""Gradient flow of the linear BYOL and SimSiam networks whose dynamics DirectPred is derived from.

An online network W, a linear predictor W_p and a target W_a see two augmented views of an input (Tian et al., 2021,
section 2, arXiv 2102.06810). The theorems of the paper are functions here, to be checked along any path.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hf_ssl.dynamics.eigenmodes import check_rates
from hf_ssl.dynamics.integrate import Method, integrate
from hf_ssl.errors import UserError


class Weights(NamedTuple):
    """The three matrices at one time, or at several with leading dimensions.

    Args:
        online: W, (..., dim, inputs).
        predictor: W_p, (..., dim, dim).
        target: W_a, (..., dim, inputs).
    """

    online: Tensor
    predictor: Tensor
    target: Tensor

    def at(self, place: int) -> "Weights":
        """The weights at one place of the first dimension."""
        return Weights(*(weight[place] for weight in self))


@dataclass(frozen=True, kw_only=True)
class LinearNetworkFlow:
    """Gradient flow of the three matrices (paper, section 2.1).

    With S the second moment within a view, X + X', and X that between two views:

        dW_p/dt = alpha_p (-W_p W S + W_a X) W^T - eta_p W_p
        dW/dt = W_p^T (-W_p W S + W_a X) - eta W
        dW_a/dt = beta (W - W_a)

    These are the gradients of `objective`. Gradient descent with learning rate a follows them with time a each step:
    the predictor's learning rate is a alpha_p, and a beta = 1 - ema_momentum.

    Args:
        between: X, second moment of the mean view of each input, (inputs, inputs), symmetric.
        within: X', mean covariance of the views of one input, (inputs, inputs), symmetric.
        alpha_p: Learning rate of the predictor relative to that of the online network, positive.
        eta: Weight decay of the online network, at least 0.
        eta_p: Weight decay of the predictor, at least 0; None for `eta`, as in the paper.
        beta: Speed of the target's moving average, at least 0; None for a target that is `tau` times the online
            network at all times.
        tau: Scale of the target without moving average: 1 is SimSiam.
        stop_gradient: Whether the target receives no gradient; without, it is the online network.
        predictor: Whether there is a predictor; without, it is the identity.
        symmetric: Whether the predictor follows the symmetric part of its gradient, so that it stays symmetric if it
            starts so.
    """

    between: Tensor
    within: Tensor
    alpha_p: float = 1.0
    eta: float = 0.0
    eta_p: float | None = None
    beta: float | None = None
    tau: float = 1.0
    stop_gradient: bool = True
    predictor: bool = True
    symmetric: bool = False

    def __post_init__(self):
        check_rates(self.alpha_p, self.eta, self.eta_p, self.beta, self.stop_gradient)
        if self.tau != 1 and (self.beta is not None or not self.stop_gradient):
            raise UserError("`tau` scales a target without moving average, behind a stop-gradient. Leave it at 1.")
        for name, moment in {"between": self.between, "within": self.within}.items():
            if moment.dim() != 2 or not torch.allclose(moment, moment.T):
                raise UserError(f"`{name}` must be a symmetric matrix, got shape {tuple(moment.shape)}.")
            object.__setattr__(self, name, moment.double())  # the class is frozen

    def start(self, online: Tensor, predictor: Tensor | None = None, target: Tensor | None = None) -> Weights:
        """Weights to start from, consistent with the settings.

        Args:
            online: W, (..., dim, inputs).
            predictor: W_p, (..., dim, dim); None for the identity, which it always is without a predictor.
            target: W_a, (..., dim, inputs); None for a copy of W. Without moving average it is `tau` W.
        """
        online = online.double()
        if predictor is None or not self.predictor:
            predictor = torch.eye(online.shape[-2]).expand(*online.shape[:-1], online.shape[-2])
        if self.beta is None:
            target = self.tau * online
        return Weights(online, predictor.double(), online if target is None else target.double())

    def rates(self, weights: Weights) -> Weights:
        """Time derivative of the weights."""
        return self._rates(weights, self.between + self.within, self.between, self.between + self.within)

    def _rates(self, weights: Weights, first: Tensor, cross: Tensor, second: Tensor) -> Weights:
        """Rates from E[x1 x1^T], E[x2 x1^T] and E[x2 x2^T], where x1 is predicted from and x2 is the target's view."""
        online, predictor, target = weights
        error = target @ cross - predictor @ online @ first
        online_rate = predictor.mT @ error - self.eta * online
        if not self.stop_gradient:
            online_rate = online_rate + predictor @ online @ cross.mT - online @ second
        if self.predictor:
            pull = self.alpha_p * error @ online.mT
            if self.symmetric:
                pull = (pull + pull.mT) / 2
            predictor_rate = pull - (self.eta if self.eta_p is None else self.eta_p) * predictor
        else:
            predictor_rate = torch.zeros_like(predictor)
        target_rate = self.tau * online_rate if self.beta is None else self.beta * (online - target)
        return Weights(online_rate, predictor_rate, target_rate)

    def objective(self, weights: Weights) -> Tensor:
        """J = E |W_p W x1 - W_a x2|^2 / 2 over inputs and views, without weight decay."""
        online, predictor, target = weights
        within_view = self.between + self.within
        prediction = predictor @ online
        squares = _trace(prediction @ within_view @ prediction.mT) + _trace(target @ within_view @ target.mT)
        return squares / 2 - _trace(prediction @ self.between @ target.mT)

    def path(self, start: Weights, times: Tensor, method: Method = "RK45") -> Weights:
        """Follow the flow.

        Args:
            start: From `start`.
            times: Increasing times, (times,), the first of them the start's.
            method: Solver of `hf_ssl.dynamics.integrate`.

        Returns:
            Weights at those times, a dimension (times) before the others.
        """
        shapes = [weight.shape for weight in start]
        sizes = [weight.numel() for weight in start]

        def unpack(state: Tensor) -> Weights:
            parts = state.split(sizes, dim=-1)
            leading = state.shape[:-1]
            return Weights(*(part.reshape(*leading, *shape) for part, shape in zip(parts, shapes, strict=True)))

        def rates(state: Tensor) -> Tensor:
            return torch.cat([rate.flatten() for rate in self.rates(unpack(state))])

        return unpack(integrate(rates, torch.cat([weight.flatten() for weight in start]), times, method))

    def descend(
        self,
        start: Weights,
        learning_rate: float,
        num_steps: int,
        *,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        every: int = 1,
    ) -> Weights:
        """Train by gradient descent on drawn views instead of following the flow: what the equations idealise.

        Inputs are normal with covariance X, views add normal noise of covariance X'. Each run of the leading
        dimensions draws its own.

        Args:
            start: From `start`.
            learning_rate: Of the online network, positive: the time that a step stands for.
            num_steps: Steps, at least 1.
            batch_size: Inputs of a step; None for the exact moments.
            generator: Source of the draws.
            every: Steps from one returned time to the next, at least 1.

        Returns:
            Weights at steps 0, `every`, 2 `every`, ..., a dimension (times) before the others.
        """
        weights, kept = start, [start]
        roots = [_root(moment) for moment in (self.between, self.within)]
        runs = start.online.shape[:-2]
        for step in range(1, num_steps + 1):
            if batch_size is None:
                rates = self.rates(weights)
            else:
                shape = (*runs, batch_size, len(self.between))
                draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
                first, second = (draws[0] @ roots[0] + noise @ roots[1] for noise in draws[1:])
                rates = self._rates(
                    weights,
                    first.mT @ first / batch_size,
                    second.mT @ first / batch_size,
                    second.mT @ second / batch_size,
                )
            weights = Weights(*(weight + learning_rate * rate for weight, rate in zip(weights, rates, strict=True)))
            if step % every == 0:
                kept.append(weights)
        return Weights(*(torch.stack(parts) for parts in zip(*kept, strict=True)))

    def correlation(self, weights: Weights) -> Tensor:
        """F = W X W^T, the correlation of the predictor's inputs, (..., dim, dim)."""
        return weights.online @ self.between @ weights.online.mT

    def balance(self, weights: Weights) -> Tensor:
        """W W^T - W_p^T W_p / alpha_p, which decays as exp(-2 eta t) C (theorem 1), (..., dim, dim).

        It holds for any X, X' and target behind a stop-gradient, for a predictor that learns and equal weight decays;
        not in general for a `symmetric` predictor, where it holds as soon as the eigenvectors are aligned.
        """
        predictor = weights.predictor
        return weights.online @ weights.online.mT - predictor.mT @ predictor / self.alpha_p

    def balance_residual(self, path: Weights, times: Tensor) -> Tensor:
        """Frobenius norm of what theorem 1 leaves unexplained along a path, (times,).

        Raises:
            UserError: If the flow does not meet the assumptions of the theorem.
        """
        if not (self.stop_gradient and self.predictor):
            raise UserError("Theorem 1 needs `stop_gradient` and a `predictor` that learns: turn both on.")
        if self.eta_p is not None and self.eta_p != self.eta:
            raise UserError(
                f"Theorem 1 needs equal weight decays: `eta_p` must equal `eta`, got {self.eta_p} and {self.eta}."
            )
        balance = self.balance(path)
        decay = torch.exp(-2 * self.eta * (times - times[0]))[:, None, None]
        return (balance - decay * balance[0]).norm(dim=(-2, -1))

    def decay_operator(self, predictor: Tensor) -> Tensor:
        """H of theorem 2: without stop-gradient, d vec(W)/dt = -H vec(W), so that W decays where H is positive.

        H = X' (x) (W_p^T W_p + I) + X (x) (W_p - I)^T (W_p - I) + eta I, with vec stacking columns.

        Args:
            predictor: W_p, (dim, dim).

        Returns:
            (dim * inputs, dim * inputs), symmetric.
        """
        eye = torch.eye(len(predictor), dtype=predictor.dtype)
        difference = predictor - eye
        operator = torch.kron(self.within, predictor.T @ predictor + eye)
        operator = operator + torch.kron(self.between, difference.T @ difference)
        return operator + self.eta * torch.eye(len(operator), dtype=predictor.dtype)

    def alignment_operator(self, weights: Weights) -> Tensor:
        """K of theorem 3: the commutator L = F W_p - W_p F follows dL/dt = -(K L + L K), (..., dim, dim).

        K = (1 + sigma^2) (alpha_p F / 2 + W_p^2 - tau W_p / (1 + sigma^2)) + (eta + eta_p / 2) I, under the
        assumptions of the theorem: X = I, X' = sigma^2 I, target `tau` W, `symmetric` predictor. The paper has eta_p =
        eta and 3 eta / 2. With {A, B} = A B + B A, the flow is

            dF/dt = -(1 + sigma^2) {W_p^2, F} + tau {W_p, F} - 2 eta F
            dW_p/dt = -alpha_p (1 + sigma^2) {W_p, F} / 2 + alpha_p tau F - eta_p W_p

        and dL/dt = [dF/dt, W_p] + [F, dW_p/dt]. Since [{W_p^2, F}, W_p] = {W_p^2, L}, [{W_p, F}, W_p] = {W_p, L} and
        [F, {W_p, F}] = {F, L}, the decays enter as -2 eta L and -eta_p L alone: half of their sum is their part of K.

        Raises:
            UserError: If flow or weights do not meet the assumptions.
        """
        eye = torch.eye(len(self.between), dtype=torch.float64)
        variance = self.within[0, 0].item()
        isotropic = torch.allclose(self.between, eye) and torch.allclose(self.within, variance * eye)
        if not isotropic or self.beta is not None or not (self.symmetric and self.predictor and self.stop_gradient):
            raise UserError(
                "Theorem 3 needs `between` I, `within` a multiple of I, `beta` None and a `symmetric` predictor."
            )
        predictor = weights.predictor
        if not torch.allclose(predictor, predictor.mT):
            raise UserError("Theorem 3 needs weights whose predictor is symmetric: take (W + W^T) / 2.")
        bracket = self.alpha_p / 2 * self.correlation(weights) + predictor @ predictor
        dim = torch.eye(predictor.shape[-1], dtype=predictor.dtype)
        decay = self.eta + (self.eta if self.eta_p is None else self.eta_p) / 2
        return (1 + variance) * bracket - self.tau * predictor + decay * dim


def commutator(first: Tensor, second: Tensor, *, normalise: bool = False) -> Tensor:
    """The commutator A B - B A, zero where symmetric A and B share their eigenvectors, (..., dim, dim).

    Args:
        first: A, (..., dim, dim).
        second: B, (..., dim, dim).
        normalise: Divide by the Frobenius norms of A and B.
    """
    difference = first @ second - second @ first
    if not normalise:
        return difference
    norms = first.norm(dim=(-2, -1), keepdim=True) * second.norm(dim=(-2, -1), keepdim=True)
    return difference / norms.clamp(min=torch.finfo(difference.dtype).tiny)


def eigenvector_cosines(correlation: Tensor, predictor: Tensor) -> Tensor:
    """Cosine between each eigenvector u of F and W_p u: 1 where it is an eigenvector of the predictor as well.

    Args:
        correlation: F, symmetric, (..., dim, dim).
        predictor: W_p, (..., dim, dim).

    Returns:
        (..., dim), by decreasing eigenvalue of F.
    """
    vectors = torch.linalg.eigh(correlation).eigenvectors.flip(-1)
    images = predictor @ vectors
    return (vectors * images).sum(dim=-2) / images.norm(dim=-2).clamp(min=torch.finfo(images.dtype).tiny)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


def _root(moment: Tensor) -> Tensor:
    """Symmetric square root."""
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
