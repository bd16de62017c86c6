"""What becomes of one mode in infinite time: decided by a proof, or by following it until its end is certain.

The equations are those of `hf_ssl.dynamics.eigenmodes` in the weights themselves (Tian et al., 2021, appendix D): the
predictor p, the encoder w with s = w^2 and the target a with tau = a / w. They are polynomials, while tau has a pole
where w passes zero. With the error e = signal a - (signal + noise) p w:

    dp/dt = alpha_p w e - eta_p p
    dw/dt = p e - eta w
    da/dt = beta (w - a)
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.integrate import solve_ivp  # pyright: ignore[reportUnknownVariableType]
from scipy.linalg import solve_continuous_lyapunov

from hf_ssl.errors import UserError

Cause = Literal[
    "no variance",
    "no stop-gradient",
    "no predictor",
    "nothing shrinks",
    "gone before p is 1",
    "above critical",
    "invariant",
    "predictor decays alone",
    "predictor never decays",
    "basin",
]

State = tuple[float, float, float]
"""p, w and a."""

_MOST_DOUBLINGS = 120
# Where decays are so small that rounding is larger than the ball of the proof, a mode counts as arrived this close to
# its stable end, relative to it, if that lasts for so many times of the slowest rate there.
_CLOSE = 1e-6
_SLOWEST_TIMES = 40.0
# A rate that is so much smaller than the fastest one is lost in the rounding of every step.
_LOST_RATE = 1e-15


@dataclass(frozen=True, kw_only=True)
class Mode:
    """Settings of one mode; see `EigenmodeFlow`.

    Args:
        alpha_p: Positive.
        eta: At least 0.
        eta_p: At least 0.
        beta: None for a target that is the online network.
        signal: Positive.
        noise: At least 0.
        stop_gradient: Whether the target receives no gradient.
        predictor: Whether there is a predictor; else p is 1.
    """

    alpha_p: float
    eta: float
    eta_p: float
    beta: float | None
    signal: float
    noise: float
    stop_gradient: bool
    predictor: bool

    def rates(self, _: float, state: Any) -> Any:
        """Time derivatives of p, w and a, as `solve_ivp` asks for them."""
        p, w, a = state
        if self.beta is None:
            a = w
        error = self.signal * a - (self.signal + self.noise) * p * w
        pull = p * error
        if not self.stop_gradient:
            pull = -w * (self.noise * (p * p + 1) + self.signal * (p - 1) ** 2)
        p_rate = self.alpha_p * w * error - self.eta_p * p if self.predictor else 0.0
        w_rate = pull - self.eta * w
        return p_rate, w_rate, w_rate if self.beta is None else self.beta * (w - a)

    @property
    def critical(self) -> float:
        """Weight decay from which on no start survives."""
        if not (self.stop_gradient and self.predictor):
            return 0.0
        return self.signal**2 / (4 * (self.signal + self.noise))

    @cached_property
    def stable_end(self) -> State:
        """The stable fixed point, for weight decays that are positive and below `critical`."""
        total = self.signal + self.noise
        p = (self.signal + (self.signal**2 - 4 * self.eta * total) ** 0.5) / (2 * total)
        w = (self.eta_p / (self.eta * self.alpha_p)) ** 0.5 * p
        return p, w, w

    @cached_property
    def _jacobian(self) -> Any:
        """Derivative of the rates at the stable end, by p and w, and by a where it moves."""
        (p, w, _), total = self.stable_end, self.signal + self.noise
        gap = self.signal - total * p
        if self.beta is None:
            # a is w: dp/dt = alpha_p w^2 (S - T p) - eta_p p and dw/dt = w (p (S - T p) - eta).
            return np.array(
                [
                    [-self.alpha_p * total * w * w - self.eta_p, 2 * self.alpha_p * w * gap],
                    [w * (gap - total * p), 0.0],
                ]
            )
        bend = w * (gap - total * p)
        predictor = [-self.alpha_p * total * w * w - self.eta_p, self.alpha_p * bend, self.alpha_p * self.signal * w]
        online = [bend, -total * p * p - self.eta, self.signal * p]
        return np.array([predictor, online, [0.0, self.beta, -self.beta]])

    @cached_property
    def _ball(self) -> tuple[Any, float]:
        """M and c of a region y^T M y < c around the stable end from which nothing leaves.

        With J^T M + M J = -1, V = y^T M y has dV/dt = -|y|^2 + 2 y^T M R(y), where R holds the terms beyond the linear
        ones. Each is a product of two or three entries of y with the factors below, so |R| <= k |y|^2 + q |y|^3, and
        dV/dt is negative for |y| < r if 2 |M| (k r + q r^2) < 1. V < (smallest eigenvalue of M) r^2 keeps |y| < r.
        """
        (p, w, _), total = self.stable_end, self.signal + self.noise
        matrix = solve_continuous_lyapunov(self._jacobian.T, -np.eye(len(self._jacobian)))
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
        quadratic = (1 + self.alpha_p) * (self.signal + total * (p + w))
        cubic = (1 + self.alpha_p) * total
        radius = 1 / (2 * values[-1] * (quadratic + (quadratic**2 + 2 * cubic / values[-1]) ** 0.5))
        return matrix, float(values[0] * radius**2)

    @cached_property
    def slowest_rate(self) -> float:
        """The smallest rate with which anything comes to one of its ends."""
        rates = [self.eta, self.eta_p, float(-np.linalg.eigvals(self._jacobian).real.max())]
        rates += [] if self.beta is None else [self.beta]
        return min(rate for rate in rates if rate > 0)

    def falls(self, state: State) -> bool:
        """Whether a mode is where everything falls to zero.

        Take a box |p| <= P, |w| <= W, |a| <= W. On its sides w dw/dt <= W^2 (signal P - eta), p dp/dt <= P (alpha_p
        signal W^2 - eta_p P) and a da/dt <= 0. If P < eta / signal and alpha_p signal W^2 < eta_p P, nothing leaves
        the box; the same holds for k P and sqrt(k) W with any k < 1, so all in it ends at zero.
        """
        p, w, a = state
        width = max(abs(w), abs(a))
        if self.eta == 0 or self.eta_p == 0:
            return False
        return max(abs(p), self.alpha_p * self.signal * width**2 / self.eta_p) < self.eta / self.signal

    def stays(self, state: State, time: float) -> bool:
        """Whether a mode is where everything goes to the stable end, after so long a time."""
        if self.eta == 0 or self.eta_p == 0 or not self.eta < self.critical:
            return False
        p, w, a = state if state[1] >= 0 else (state[0], -state[1], -state[2])  # both signs are one
        end = self.stable_end
        away = np.array([p - end[0], w - end[1], a - end[2]][: len(self._jacobian)])
        matrix, limit = self._ball
        if away @ matrix @ away < limit:
            return True
        close = abs(away[0]) < _CLOSE * end[0] and np.abs(away[1:]).max() < _CLOSE * end[1]
        return bool(close) and time > _SLOWEST_TIMES / self.slowest_rate

    def grows_too_fast(self, p: Any, w: Any, a: Any) -> bool:
        """Whether growth is above the alignment bound at any of these states; see `EigenmodeFlow.alignment_bound`."""
        total = self.signal + self.noise
        # Times w^2, which is zero for a mode that is gone.
        growth = p * (self.signal * a * w - total * p * w * w) - self.eta * w * w
        return bool((growth > (self.alpha_p * total * w * w + self.eta_p) * w * w / 2).any())


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What becomes of a mode.

    Args:
        survives: Whether it keeps its variance forever.
        p: What the predictor tends to.
        s: What w^2 tends to; 0 for a mode that collapses, infinity for one that grows forever.
        cause: The rule that decided.
        grows_too_fast: Whether growth was above the alignment bound on the way.
    """

    survives: bool
    p: float
    s: float
    cause: Cause
    grows_too_fast: bool = False


def fate_of(mode: Mode, state: State) -> Fate:
    """Decide what becomes of a mode.

    Only one of the cases needs integration for its verdict: both weight decays positive, below the critical one. It
    goes on until the mode is where it provably stays for good, however long that takes.

    Args:
        mode: Its settings.
        state: Its start: w positive, or w and a zero.

    Raises:
        UserError: If rounding hides the end: a start that is on the edge of the basin to the last digit.
    """
    p, w, _ = state
    if w == 0:
        return Fate(survives=False, p=0.0 if mode.eta_p > 0 else p, s=0.0, cause="no variance")
    if not mode.stop_gradient:
        return _without_stop_gradient(mode, state)
    if not mode.predictor:
        return _without_predictor(mode, state)
    if mode.eta == 0:
        return _without_decay(mode, state)
    if mode.eta_p == 0:
        # Without moving average: d(s - p^2 / alpha_p)/dt = -2 eta s, and p is bounded, so that the integral of s is
        # finite. There is no fixed point with variance in any case.
        end, _ = _follow(mode, state, lambda now, _: _is_gone(mode, now, state))
        return Fate(survives=False, p=end[0], s=0.0, cause="predictor never decays")
    # On the critical one the fixed point is half stable, and the least noise carries modes over it.
    if mode.eta >= mode.critical:
        return Fate(survives=False, p=0.0, s=0.0, cause="above critical")
    end, too_fast = _follow(mode, state, lambda now, time: mode.falls(now) or mode.stays(now, time))
    if mode.falls(end):
        return Fate(survives=False, p=0.0, s=0.0, cause="basin", grows_too_fast=too_fast)
    p, w, _ = mode.stable_end
    return Fate(survives=True, p=p, s=w * w, cause="basin", grows_too_fast=too_fast)


def _without_stop_gradient(mode: Mode, state: State) -> Fate:
    """Theorem 2: dw/dt = -h w with h = noise (p^2 + 1) + signal (p - 1)^2 + eta.

    h is at least noise + eta. With neither, w stops falling only where p is 1, and a decay of the predictor keeps it
    from there. With no decay at all d(s - (p - 1)^2 / alpha_p)/dt is 0: s reaches 0 first if that starts negative.
    """
    p, w, _ = state
    if not mode.predictor:
        p = 1.0
    if mode.noise == 0 and mode.eta == 0 and (not mode.predictor or mode.eta_p == 0):
        left = w * w - (p - 1) ** 2 / mode.alpha_p
        if not mode.predictor or left > 0:
            return Fate(survives=True, p=1.0, s=w * w if not mode.predictor else left, cause="nothing shrinks")
        short = (-mode.alpha_p * left) ** 0.5
        return Fate(survives=False, p=1 - short if p < 1 else 1 + short, s=0.0, cause="gone before p is 1")
    if not mode.predictor:
        return Fate(survives=False, p=1.0, s=0.0, cause="no stop-gradient")
    if mode.eta_p == 0:
        end, _ = _follow(mode, state, lambda now, _: _is_gone(mode, now, state))
        p = end[0]
    return Fate(survives=False, p=0.0 if mode.eta_p > 0 else p, s=0.0, cause="no stop-gradient")


def _without_predictor(mode: Mode, state: State) -> Fate:
    """Theorem 2: w and a follow a linear system, whose determinant beta (noise + eta) is positive unless both are 0.

    If they are, beta w + signal a never changes, and w and a meet.
    """
    _, w, a = state
    if mode.noise + mode.eta > 0:
        return Fate(survives=False, p=1.0, s=0.0, cause="no predictor")
    if mode.beta is not None:
        w = (mode.beta * w + mode.signal * a) / (mode.beta + mode.signal)
    return Fate(survives=w != 0, p=1.0, s=w * w, cause="nothing shrinks")


def _without_decay(mode: Mode, state: State) -> Fate:
    """No weight decay of the encoder.

    If the predictor has none either, c = s - p^2 / alpha_p never changes (theorem 1). For c > 0, s is never below c.
    For c < 0, p keeps its sign and |p| is at least p_c = sqrt(-alpha_p c), with s = 0 there. For positive p, that end
    attracts if p_c is at or above signal / (signal + noise): then dw/dt = p (signal a - (signal + noise) p w) is below
    zero for a = w. If p_c is below, it repels, since w and a raise each other. For negative p it attracts.

    If the predictor alone decays, the only fixed point is zero, where p goes to alpha_p signal w^2 / eta_p and w grows
    with the cube of w: nothing ends there. p tends to signal / (signal + noise) and s grows forever.
    """
    p, w, _ = state
    goal = mode.signal / (mode.signal + mode.noise)
    if mode.eta_p > 0:
        # A mode that a negative p made tiny grows later than any run lasts.
        latest = 1e9 / mode.eta_p
        too_fast = _follow(mode, state, lambda now, time: abs(now[0] - goal) < 1e-2 * goal or time > latest)[1]
        return Fate(survives=True, p=goal, s=float("inf"), cause="predictor decays alone", grows_too_fast=too_fast)
    invariant = w * w - p * p / mode.alpha_p
    if not (invariant > 0 or (p > 0 and -mode.alpha_p * invariant < goal * goal)):
        end = max(-mode.alpha_p * invariant, 0.0) ** 0.5
        return Fate(survives=False, p=end if p > 0 else -end, s=0.0, cause="invariant")
    s = invariant + goal * goal / mode.alpha_p
    # A start beside the end that repels leaves it as late as one likes. The verdict does not wait for it.
    latest = 1e6 / (mode.signal + mode.noise)

    def arrived(now: State, time: float) -> bool:
        return time > latest or (abs(now[0] - goal) < 1e-3 * goal and abs(now[1] ** 2 - s) < 1e-2 * s)

    return Fate(survives=True, p=goal, s=s, cause="invariant", grows_too_fast=_follow(mode, state, arrived)[1])


def _is_gone(mode: Mode, now: State, start: State) -> bool:
    """Whether what is left of w moves p by less than 1e-9 from here: for modes that end at zero."""
    p, w, a = now
    growth = p * (mode.signal - (mode.signal + mode.noise) * p) - mode.eta
    if not mode.stop_gradient:
        growth = -mode.noise * (p * p + 1) - mode.signal * (p - 1) ** 2 - mode.eta
    return growth < 0 and max(w * w, a * a) <= 1e-9 * -growth / (mode.alpha_p * mode.signal) and w * w < start[1] ** 2


def state_after(mode: Mode, start: State, time: float) -> State:
    """Where a mode is after some time.

    Args:
        mode: Its settings.
        start: Its start.
        time: Positive.
    """
    p, w, a = _solve(mode, start, start, time).y[:, -1].tolist()
    return p, w, a


def _solve(mode: Mode, start: State, state: State, time: float) -> Any:
    size = max(abs(start[1]), abs(start[2]))
    scale = np.array([max(abs(start[0]), mode.alpha_p**0.5 * size), size, size])
    # The first is fast, and gives up with a warning on some very stiff modes.
    for method in ("LSODA", "Radau"):
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            path: Any = solve_ivp(mode.rates, (0.0, time), state, method=method, rtol=1e-10, atol=1e-18 * scale)
        if path.success:
            return path
    raise UserError(f"A mode that starts at p = {start[0]:g} could not be followed for a time of {time:g}.")


def _follow(mode: Mode, start: State, arrived: Callable[[State, float], bool]) -> tuple[State, bool]:
    """Integrate over times that double until a mode has arrived.

    Returns:
        The state there, and whether growth was above the alignment bound on the way.
    """
    state, time, too_fast = start, 0.0, False
    step = 1 / (mode.signal + mode.noise + (mode.beta or 0.0) + mode.eta + mode.eta_p)
    # With one decay alone, or one that is not lost, a mode arrives all the same.
    lost = min(mode.eta, mode.eta_p) > 0 and max(mode.eta, mode.eta_p) * step < _LOST_RATE
    for _ in range(0 if lost else _MOST_DOUBLINGS):
        if arrived(state, time):
            return state, too_fast
        path = _solve(mode, start, state, step)
        too_fast = too_fast or mode.grows_too_fast(*path.y)
        p, w, a = path.y[:, -1].tolist()
        state, time, step = (p, w, a), time + step, 2 * step
    raise UserError(
        f"The end of a mode that starts at p = {start[0]:g}, s = {start[1] ** 2:g} could not be found: "
        + (
            "its weight decays are too small for double precision. Set a tiny decay to 0."
            if lost
            else "it starts on the edge of its basin. Change the start a little."
        )
    )
