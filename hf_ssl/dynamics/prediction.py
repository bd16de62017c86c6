"""What the theory says about a training run: which eigenmodes survive, where they end, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_ssl.dynamics.eigenmodes import EigenmodeFlow, FixedPoints
from hf_ssl.dynamics.integrate import integrate
from hf_ssl.errors import UserError

PredictorForm = Literal["learned", "symmetric", "none"]

# Times as long as this many of the slowest rate are taken as infinite.
_LONG = 200.0
# Of the s that its fixed point has: a mode of the theory below is collapsed. Its s goes to 0 or to the fixed point, so
# any number well between them does; no limit for the figures of a run, which `hf_ssl.training.watch.collapse` has.
_ALIVE = 1e-2
# Points of the path at which the alignment is looked at.
_NUM_TIMES = 400


@dataclass(frozen=True, kw_only=True)
class TrainingSetting:
    """Settings of a run of gradient descent, in the terms of an optimizer.

    The paper's section 2.1 relates them to the equations: a step is the time `learning_rate`, so that alpha_p is the
    predictor's learning rate relative to that of the encoder, beta = (1 - ema_momentum) / learning_rate, and eta the
    optimizer's weight decay w - lr (g + wd w). An optimizer with one weight decay and two learning rates decays the
    predictor alpha_p times as fast: eta_p = alpha_p eta, where the paper has eta_p = eta.

    Args:
        learning_rate: Of the encoder, positive. With SGD momentum m, that divided by 1 - m.
        predictor_lr_multiplier: Learning rate of the predictor relative to that of the encoder, positive.
        weight_decay: Coefficient in the optimizer, at least 0.
        predictor_weight_decay: The same of the predictor; None for `weight_decay`, `weight_decay /
            predictor_lr_multiplier` for the equations of the paper.
        ema_momentum: Fraction of the target kept in a step, in [0, 1); None for no moving average.
        stop_gradient: Whether the target receives no gradient.
        predictor: `learned` freely, `symmetric` at all times, or `none`.
        noise: Variance sigma^2 of the augmentation in each mode, at least 0, as one number or one a mode.
        signal: Variance of the data in each mode, positive.
        predictor_scale: Eigenvalues p of the predictor at the start.
        encoder_scale: Singular values of the encoder at the start, at least 0; s is their square.
        target_scale: Target at the start relative to the encoder: 1 for a copy, 0 for zeros.
    """

    learning_rate: float
    predictor_lr_multiplier: float = 1.0
    weight_decay: float = 0.0
    predictor_weight_decay: float | None = None
    ema_momentum: float | None = None
    stop_gradient: bool = True
    predictor: PredictorForm = "learned"
    noise: float | Sequence[float] = 0.0
    signal: float | Sequence[float] = 1.0
    predictor_scale: float | Sequence[float] = 1.0
    encoder_scale: float | Sequence[float] = 1.0
    target_scale: float = 1.0

    def __post_init__(self):
        for name in ("learning_rate", "predictor_lr_multiplier"):
            if not getattr(self, name) > 0:
                raise UserError(f"`{name}` must be positive, got {getattr(self, name)}.")
        for name in ("weight_decay", "predictor_weight_decay"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"`{name}` must be at least 0, got {value}.")
        if self.ema_momentum is not None and not 0 <= self.ema_momentum < 1:
            raise UserError(
                f"`ema_momentum` must be in [0, 1), or None for no moving average, got {self.ema_momentum}: a target "
                "that never moves is not in the theory."
            )

    def flow(self) -> EigenmodeFlow:
        """The equations of this setting's modes; time is `learning_rate` a step."""
        decay = self.weight_decay if self.predictor_weight_decay is None else self.predictor_weight_decay
        # A network without stop-gradient is its own target.
        has_average = self.ema_momentum is not None and self.stop_gradient
        return EigenmodeFlow(
            alpha_p=self.predictor_lr_multiplier,
            eta=self.weight_decay,
            eta_p=decay * self.predictor_lr_multiplier,
            beta=(1 - (self.ema_momentum or 0.0)) / self.learning_rate if has_average else None,
            signal=_modes(self.signal),
            noise=_modes(self.noise),
            stop_gradient=self.stop_gradient,
            predictor=self.predictor != "none",
        )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What becomes of the modes of a setting, (modes,) each.

    Args:
        survives: Whether the mode keeps its variance forever.
        p: Eigenvalue of the predictor that it tends to.
        s: Eigenvalue of the correlation that it tends to, 0 for a mode that collapses.
        p_after: Eigenvalue of the predictor after `num_steps`; where it tends to, without `num_steps`.
        s_after: The same of the correlation: what a measurement at that step compares with.
        fixed_points: Edge of the basin of collapse and stable end, for the target's final lag.
        critical_weight_decay: Weight decay above which every start collapses.
        stays_aligned: Whether growth stays below the alignment bound on the whole path. Where it does not, the
            eigenvectors of a `symmetric` predictor may drift from those of the correlation (Obs. 6 to 8), and modes
            that survive here can collapse in a network.
        reason: The decision in words.
    """

    survives: Tensor
    p: Tensor
    s: Tensor
    p_after: Tensor
    s_after: Tensor
    fixed_points: FixedPoints
    critical_weight_decay: Tensor
    stays_aligned: Tensor
    reason: str

    @property
    def collapses(self) -> bool:
        """Whether no mode survives: complete collapse."""
        return not bool(self.survives.any())


def predict_training(setting: TrainingSetting, num_steps: int | None = None) -> Prediction:
    """Say by theory whether a setting collapses, to which fixed point its modes go, and why.

    The eigenmode equations are followed for a time that is long beside every rate in them, and for `num_steps`. They
    are those of a linear network with a squared loss; normalised outputs, BatchNorm, adaptive optimizers and
    nonlinear encoders are outside the theory. Slow collapse is common: at learning rate 0.03 and weight decay 4e-4, a
    mode takes 80,000 steps to fall to 1 / e, so compare measurements with `s_after`.

    Args:
        setting: The run.
        num_steps: Optimizer steps after which `p_after` and `s_after` are wanted, at least 1.
    """
    flow = setting.flow()
    start = flow.start(
        _modes(setting.predictor_scale),
        _modes(setting.encoder_scale).square(),
        setting.target_scale if flow.beta is not None else 1.0,
    )
    start = start.reshape(3, -1)
    shape = start.shape[1:]
    rates = [setting.weight_decay, float(torch.as_tensor(flow.noise).max())]
    rates += [] if flow.beta is None else [float(flow.beta)]
    duration = _LONG / min([rate for rate in rates if rate > 0] + [1.0])
    num_times = torch.linspace(0, 1, _NUM_TIMES, dtype=torch.float64)
    # Dense where modes grow, early, and long enough for the slowest decay.
    path = integrate(flow.rates, start, duration * num_times**4, "LSODA")
    p, s, tau = path.unbind(dim=1)
    after = path[-1]
    if num_steps is not None:
        if num_steps < 1:
            raise UserError(f"`num_steps` must be at least 1, got {num_steps}.")
        time = num_steps * setting.learning_rate
        after = integrate(flow.rates, start, torch.tensor([0.0, time], dtype=torch.float64), "LSODA")[-1]
    points = FixedPoints(*(value.broadcast_to(shape) for value in flow.fixed_points()))
    scale = torch.where(points.s_plus > 0, points.s_plus, start[1]).nan_to_num(nan=1.0, posinf=1.0)
    survives = s[-1] > _ALIVE * scale
    grows_too_fast = (flow.growth(p, tau) > flow.alignment_bound(s)).any(dim=0)
    return Prediction(
        survives=survives,
        p=torch.where(survives | torch.tensor(setting.weight_decay == 0), p[-1], 0.0),
        s=torch.where(survives, s[-1], 0.0),
        p_after=after[0],
        s_after=after[1].clamp(min=0),  # solvers leave -1e-30 of nothing
        fixed_points=points,
        critical_weight_decay=flow.critical_weight_decay().broadcast_to(shape),
        stays_aligned=~grows_too_fast,
        reason=_reason(setting, flow, start, points, survives, ~grows_too_fast),
    )


def _reason(
    setting: TrainingSetting,
    flow: EigenmodeFlow,
    start: Tensor,
    points: FixedPoints,
    survives: Tensor,
    stays_aligned: Tensor,
) -> str:
    """The first rule of the theory that decides, in a sentence or two."""
    count = f"{int(survives.sum())} of {len(survives)} modes survive"
    if not setting.stop_gradient:
        if bool(survives.any()):
            return (
                f"{count}: without stop-gradient, weights decay at a rate of at least the noise and the weight decay "
                "(theorem 2), and both are 0."
            )
        return "All modes collapse: without stop-gradient, W follows -H W with H positive (theorem 2)."
    if setting.predictor == "none":
        if bool(survives.any()):
            return f"{count}: without predictor, W follows -W (X' + eta), and both are 0 (theorem 2)."
        return "All modes collapse: without predictor, W follows -W (X' + eta) (theorem 2)."
    if bool((setting.weight_decay > flow.critical_weight_decay()).all()):
        critical = float(flow.critical_weight_decay().max())
        return (
            f"All modes collapse: weight decay {setting.weight_decay:g} is above the critical {critical:.4g}, so "
            "collapse is the only fixed point (Obs. 5)."
        )
    parts = [f"{count}."]
    if bool(survives.any()):
        lifted = survives & (start[0] < points.p_minus)
        parts.append(
            f"The weight decay is below the critical one, and they tend to p = {_range(points.p_plus[survives])}."
        )
        if bool(lifted.any()):
            parts.append(
                f"{int(lifted.sum())} of them start below the edge p = {_range(points.p_minus[lifted])} of the basin "
                "of collapse; s above p^2 / alpha_p lifts them over it."
            )
    lost = ~survives
    if bool(lost.any()):
        parts.append(_reason_of_loss(setting, start, points, lost))
    if bool((survives & ~stays_aligned).any()):
        parts.append(
            f"{int((survives & ~stays_aligned).sum())} of the survivors grow faster than their alignment allows at "
            "some time: in a network they may collapse all the same."
        )
    return " ".join(parts)


def _reason_of_loss(setting: TrainingSetting, start: Tensor, points: FixedPoints, lost: Tensor) -> str:
    number = int(lost.sum())
    if setting.weight_decay == 0:
        return f"{number} collapse: s(0) is too far below p(0)^2 / alpha_p, and nothing erases that (Obs. 1)."
    if bool((setting.weight_decay > torch.as_tensor(setting.flow().critical_weight_decay())).any()) and bool(
        points.p_plus[lost].isnan().all()
    ):
        return f"{number} collapse: the weight decay is above their critical one (Obs. 5)."
    below = lost & (start[0] < points.p_minus)
    if bool((below == lost).all()):
        return (
            f"{number} collapse: they start below p = {_range(points.p_minus[lost])}, the edge of the basin (Obs. 4)."
        )
    slow = setting.ema_momentum is not None
    why = "the target was small while they started (Obs. 10)" if slow else "s(0) was too far below p(0)^2 / alpha_p"
    return f"{number} collapse although not all start below the edge p = {_range(points.p_minus[lost])}: {why}."


def _range(values: Tensor) -> str:
    low, high = f"{float(values.min()):.4g}", f"{float(values.max()):.4g}"
    return low if low == high else f"{low} to {high}"


def _modes(values: float | Sequence[float]) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)
