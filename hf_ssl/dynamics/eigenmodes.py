"""One eigenmode of the linear network: the scalar system that decides whether a direction survives or collapses.

Once the eigenvectors of the correlation F = W W^T and of the predictor W_p agree (theorem 3), the equations of the
matrices fall apart into one system for each shared eigenvector (Tian et al., 2021, section 3.2, arXiv 2102.06810).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from hf_ssl.dynamics.integrate import Method, integrate, integrate_batch
from hf_ssl.errors import UserError

Number = float | Tensor

# A mode with less variance than this is gone, and what its target lags behind means nothing: when weight decay is
# faster than the target, the lag of a vanishing mode would grow beyond what a float64 holds.
_GONE = 1e-200


class FixedPoints(NamedTuple):
    """Where a mode with variance stays: the edge of the basin of collapse and the stable end; NaN where there is none.

    Args:
        p_minus: Eigenvalue of the predictor at the unstable point.
        s_minus: Eigenvalue of the correlation there.
        p_plus: Eigenvalue of the predictor at the stable point.
        s_plus: Eigenvalue of the correlation there.
    """

    p_minus: Tensor
    s_minus: Tensor
    p_plus: Tensor
    s_plus: Tensor


@dataclass(frozen=True, kw_only=True)
class EigenmodeFlow:
    """Gradient flow of the eigenvalues p of the predictor and s of the correlation, and of the target's lag tau.

    With the gap g = tau signal - (signal + noise) p, the rates are those of the paper's section 3.2, there with
    signal 1, noise sigma^2 and eta_p = eta:

        dp/dt = alpha_p s g - eta_p p
        ds/dt = 2 s (p g - eta)
        dtau/dt = beta (1 - tau) - tau (p g - eta)

    Without stop-gradient the online network follows the gradient through both branches, p g becomes
    -noise (p^2 + 1) - signal (p - 1)^2 (theorem 2); without predictor p stays 1. All numbers may be tensors that
    broadcast with the states, which makes a sweep.

    tau leaves [0, 1] where a mode shrinks: a target that lags behind a falling weight is larger than it.

    Args:
        alpha_p: Learning rate of the predictor relative to that of the online network, positive.
        eta: Weight decay of the online network, at least 0.
        eta_p: Weight decay of the predictor, at least 0; None for `eta`, as in the paper.
        beta: Speed of the target's moving average, at least 0; None for a target that is `tau` times the online
            network at all times, with tau 1 SimSiam.
        signal: Second moment between two views in this mode, positive (lambda_d of appendix D; X).
        noise: Variance that augmentation adds, at least 0 (lambda_s - lambda_d; X'; sigma^2).
        stop_gradient: Whether the target receives no gradient.
        predictor: Whether there is a predictor.
    """

    alpha_p: Number = 1.0
    eta: Number = 0.0
    eta_p: Number | None = None
    beta: Number | None = None
    signal: Number = 1.0
    noise: Number = 0.0
    stop_gradient: bool = True
    predictor: bool = True

    def __post_init__(self):
        check_rates(self.alpha_p, self.eta, self.eta_p, self.beta, self.stop_gradient)
        if not bool((torch.as_tensor(self.signal) > 0).all()):
            raise UserError(f"`signal` must be positive, got {self.signal}.")
        if not bool((torch.as_tensor(self.noise) >= 0).all()):
            raise UserError(f"`noise` must be at least 0, got {self.noise}.")

    @property
    def total(self) -> Number:
        """Second moment within one view, signal + noise (lambda_s of appendix D)."""
        return self.signal + self.noise

    @property
    def predictor_decay(self) -> Number:
        """Weight decay of the predictor."""
        return self.eta if self.eta_p is None else self.eta_p

    def rates(self, state: Tensor) -> Tensor:
        """Time derivative of p, s and tau, (3, ...), at a state of the same shape."""
        p, s, tau = state
        if not self.predictor:
            p = torch.ones_like(p)
        gap = self.signal * tau - self.total * p
        relative = self._growth(p, gap) - self.eta
        p_rate = self.alpha_p * s * gap - self.predictor_decay * p if self.predictor else torch.zeros_like(p)
        if self.beta is None:
            tau_rate = torch.zeros_like(tau)
        else:
            tau_rate = torch.where(s > _GONE, self.beta * (1 - tau) - tau * relative, 0.0)
        return torch.stack(torch.broadcast_tensors(p_rate, 2 * s * relative, tau_rate))

    def _growth(self, p: Tensor, gap: Tensor) -> Tensor:
        if self.stop_gradient:
            return p * gap
        return -self.noise * (p.square() + 1) - self.signal * (p - 1).square()

    def growth(self, p: Number, tau: Number = 1.0) -> Tensor:
        """Relative rate Delta of the weight of a mode, half that of s: the mode grows where it is positive."""
        p = torch.as_tensor(p, dtype=torch.float64)
        return self._growth(p, self.signal * tau - self.total * p) - self.eta

    def alignment_bound(self, s: Number) -> Tensor:
        """What `growth` must stay below for aligned eigenvectors, (alpha_p (signal + noise) s + eta_p) / 2.

        Where an eigenvalue of K of theorem 3 is positive; see `LinearNetworkFlow.alignment_operator`.
        """
        return (self.alpha_p * self.total * torch.as_tensor(s, dtype=torch.float64) + self.predictor_decay) / 2

    def invariant(self, p: Number, s: Number) -> Tensor:
        """Distance s - p^2 / alpha_p from the parabola.

        It decays as exp(-2 eta t) if both weight decays are equal, with a predictor and a stop-gradient (theorem 1).
        """
        p = torch.as_tensor(p, dtype=torch.float64)
        return s - p.square() / self.alpha_p

    def critical_weight_decay(self, tau: Number = 1.0) -> Tensor:
        """Weight decay above which collapse is the only fixed point, (tau signal)^2 / (4 (signal + noise))."""
        if not (self.stop_gradient and self.predictor):
            return torch.zeros((), dtype=torch.float64)
        return (torch.as_tensor(tau, dtype=torch.float64) * self.signal).square() / (4 * self.total)

    def fixed_points(self, tau: Number = 1.0) -> FixedPoints:
        """Solutions of p g = eta with variance, and the s = eta_p p^2 / (eta alpha_p) that belongs to them.

        Without weight decay s is what the invariant leaves; the value here is the one on the parabola.

        Args:
            tau: Lag of the target; 1, where a moving average ends.
        """
        goal = torch.as_tensor(tau, dtype=torch.float64) * self.signal
        total, eta = (torch.as_tensor(value, dtype=torch.float64) for value in (self.total, self.eta))
        # The square root of a negative number is NaN: no such point.
        root = (goal.square() - 4 * eta * total).sqrt()
        if not (self.stop_gradient and self.predictor):
            root = torch.full_like(root, torch.nan)
        eta_p = torch.as_tensor(self.predictor_decay, dtype=torch.float64)
        ratio = torch.where(eta_p == eta, 1.0, eta_p / eta)
        p_minus, p_plus = (goal - root) / (2 * total), (goal + root) / (2 * total)
        return FixedPoints(
            p_minus, ratio * p_minus.square() / self.alpha_p, p_plus, ratio * p_plus.square() / self.alpha_p
        )

    def jacobian(self, p: float, s: float, tau: float = 1.0) -> Tensor:
        """Derivative of the rates by the state, (2, 2) of p and s, or (3, 3) with tau where it moves."""
        size = 2 if self.beta is None else 3
        state = torch.tensor([p, s, tau], dtype=torch.float64)
        rows = torch.autograd.functional.jacobian(self.rates, state)
        return torch.as_tensor(rows)[:size, :size]

    def stability(self, p: float, s: float, tau: float = 1.0) -> Tensor:
        """Real parts of the Jacobian's eigenvalues, largest first: a fixed point is stable where all are negative."""
        return torch.linalg.eigvals(self.jacobian(p, s, tau)).real.sort(descending=True).values

    def start(self, p: Number, s: Number, tau: Number = 1.0) -> Tensor:
        """A state (3, ...) from eigenvalues and lag, which may be tensors of any shapes that broadcast."""
        values = [torch.as_tensor(value, dtype=torch.float64) for value in (p, s, tau)]
        if not bool((values[1] >= 0).all()):
            raise UserError(f"`s` is an eigenvalue of W W^T and must be at least 0, got {values[1].min().item():g}.")
        if not self.stop_gradient and not bool((values[2] == 1).all()):
            raise UserError("`tau` must be 1 without `stop_gradient`: the target is the online network.")
        if not self.predictor:
            values[0] = torch.ones_like(values[0])
        return torch.stack(torch.broadcast_tensors(*values, *self._numbers().values())[:3])

    def _numbers(self) -> dict[str, Tensor]:
        """The settings that are numbers, by name."""
        values = {name: value for name, value in vars(self).items() if isinstance(value, float | int | Tensor)}
        return {
            name: torch.as_tensor(value, dtype=torch.float64)
            for name, value in values.items()
            if not isinstance(value, bool)
        }

    def trajectory(
        self, p: Number, s: Number, tau: Number = 1.0, *, times: Tensor, method: Method = "RK45"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Follow modes over time.

        Args:
            p: Eigenvalue of the predictor at the first time.
            s: Eigenvalue of the correlation there, at least 0.
            tau: Lag of the target there: 1 for a copy of the online network, 0 for a target of zeros.
            times: Increasing times, (times,), the first of them the start's.
            method: Solver of `hf_ssl.dynamics.integrate`; LSODA or Radau for long times.

        Returns:
            p, s and tau, (times, ...) each.
        """
        path = integrate(self.rates, self.start(p, s, tau), times, method)
        return path[:, 0], path[:, 1], path[:, 2]

    def final_state(
        self,
        p: Number,
        s: Number,
        tau: Number = 1.0,
        *,
        duration: float,
        rtol: float = 1e-6,
        on_step: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where modes are after some time, all at once: for sweeps over starts and settings.

        Args:
            p: Eigenvalues of the predictor at the start.
            s: Eigenvalues of the correlation at the start, at least 0.
            tau: Lags of the target at the start.
            duration: Time to go, positive.
            rtol: Relative error allowed in a step, positive.
            on_step: See `integrate_batch`.

        Returns:
            p, s and tau, each of the shape to which starts and settings broadcast.
        """
        start = self.start(p, s, tau)
        # Settings and states in one row of runs.
        rows = {name: value.broadcast_to(start.shape[1:]).flatten() for name, value in self._numbers().items()}
        flow = replace(self, **rows)
        end = integrate_batch(flow.rates, start.reshape(3, -1), duration, rtol=rtol, atol=1e-3 * rtol, on_step=on_step)
        p_end, s_end, tau_end = end.reshape(start.shape)
        return p_end, s_end, tau_end


def check_rates(alpha_p: Number, eta: Number, eta_p: Number | None, beta: Number | None, stop_gradient: bool) -> None:
    """Check the settings that modes and matrices share.

    Raises:
        UserError: If a number is out of range, or a moving average is asked for where nothing stops the gradient.
    """
    if not bool((torch.as_tensor(alpha_p) > 0).all()):
        raise UserError(f"`alpha_p` must be positive, got {alpha_p}.")
    for name, value in {"eta": eta, "eta_p": eta_p, "beta": beta}.items():
        if value is not None and not bool((torch.as_tensor(value) >= 0).all()):
            raise UserError(f"`{name}` must be at least 0, got {value}.")
    if beta is not None and not stop_gradient:
        raise UserError(
            "`beta` needs `stop_gradient`: a moving average receives no gradient. Leave `beta` at None, or keep the "
            "stop-gradient."
        )


def target_lag(times: Tensor, p: Tensor, beta: float) -> Tensor:
    """Lag tau of a target that started at zero, from the path of p along the parabola s = p^2 / alpha_p.

    tau(t) = beta exp(-beta t) / p(t) times the integral of p exp(beta t') over t' from 0 to t: the automatic
    curriculum of a moving average (paper, section 3.3). By the trapezoidal rule.

    Args:
        times: Increasing times from 0, (times,).
        p: Positive eigenvalue of the predictor at those times, (times,).
        beta: Speed of the moving average, positive.

    Returns:
        tau, (times,).
    """
    lag = torch.zeros_like(p)
    for place in range(1, len(times)):
        step = times[place] - times[place - 1]
        kept = torch.exp(-beta * step)
        lag[place] = kept * lag[place - 1] + beta * step * (kept * p[place - 1] + p[place]) / 2
    return lag / p
