"""What the theory says about a training run: which eigenmodes survive, where they end, and why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hf_ssl.dynamics.eigenmodes import EigenmodeFlow, FixedPoints
from hf_ssl.dynamics.fate import Cause, Fate, Mode, State, fate_of, state_after
from hf_ssl.errors import UserError

PredictorForm = Literal["learned", "symmetric", "none"]
_OF_MODES = ("signal", "noise", "predictor_scale", "encoder_scale")
"""Settings with one number for each mode; the flow refuses signals and noises that are none."""


@dataclass(frozen=True, kw_only=True)
class TrainingSetting:
    """Settings of a run of gradient descent, in the terms of an optimizer.

    The paper's section 2.1 relates them to the equations: a step is the time `learning_rate`, so that alpha_p is the
    predictor's learning rate relative to that of the encoder, beta = (1 - ema_momentum) / learning_rate, and eta the
    optimizer's weight decay w - lr (g + wd w). An optimizer with one weight decay and two learning rates decays the
    predictor alpha_p times as fast: eta_p = alpha_p eta, where the paper has eta_p = eta. The loss of the equations is
    |W_p z - t|^2 / 2; for c times that, multiply `learning_rate` by c and divide both weight decays by c. For unit
    vectors and both directions, 2 - 2 cos each, c is 4.

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
        numbers = (
            "learning_rate",
            "predictor_lr_multiplier",
            "weight_decay",
            "predictor_weight_decay",
            "target_scale",
        )
        for name in numbers:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UserError(f"`{name}` must be finite, got {value}.")
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
        if self.predictor not in get_args(PredictorForm):
            raise UserError(f"`predictor` must be one of {', '.join(get_args(PredictorForm))}, got {self.predictor}.")
        self._check_modes()

    def _check_modes(self) -> None:
        """Refuse numbers of modes that are none, or that are not of the same modes."""
        counts = {}
        for name in _OF_MODES:
            values = _modes(getattr(self, name))
            if values.ndim > 1 or not values.numel():
                raise UserError(
                    f"`{name}` must be one number, or a list with one for each mode, got {values.tolist()}."
                )
            if not values.isfinite().all():
                raise UserError(f"`{name}` must be finite, got {values.tolist()}.")
            if name == "encoder_scale" and bool((values < 0).any()):
                raise UserError(f"`{name}` must be at least 0, got {values.tolist()}.")
            if values.numel() > 1:
                counts[name] = values.numel()
        if len(set(counts.values())) > 1:
            told = ", ".join(f"`{name}` {count}" for name, count in counts.items())
            raise UserError(f"What is given for each mode must be of as many modes, got {told}.")

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
        s: Eigenvalue of W W^T that it tends to (that of the correlation is `signal` times it), 0 for a mode that
            collapses, infinity for one that grows forever (a predictor that decays alone).
        p_after: Eigenvalue of the predictor after `num_steps`; where it tends to, without `num_steps`.
        s_after: The same of W W^T: what a measurement at that step compares with.
        fixed_points: Edge of the basin of collapse and stable end, for the target's final lag.
        critical_weight_decay: Weight decay above which every start collapses; modes just at it count as collapsed.
        stays_aligned: Whether growth stays below the alignment bound until the mode's end is certain. Where not, the
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

    Each mode is decided by `hf_ssl.dynamics.fate`, whose one computation gives verdict, end and reason: by a proof,
    or by following the mode until it is where it stays for good. The equations are those of a linear network with a
    squared loss; normalised outputs, BatchNorm, adaptive optimizers and nonlinear encoders are outside the theory.
    Slow collapse is common: at learning rate 0.03 and weight decay 4e-4, s takes 42,000 steps to fall to 1 / e, so
    compare measurements with `s_after`.

    Args:
        setting: The run.
        num_steps: Optimizer steps after which `p_after` and `s_after` are wanted, at least 1.
    """
    if num_steps is not None and num_steps < 1:
        raise UserError(f"`num_steps` must be at least 1, got {num_steps}.")
    flow = setting.flow()
    start = flow.start(
        _modes(setting.predictor_scale),
        _modes(setting.encoder_scale).square(),
        setting.target_scale if flow.beta is not None else 1.0,
    )
    start = start.reshape(3, -1)
    shape = start.shape[1:]
    modes = _modes_of(flow, shape[0])
    states = [(p, s**0.5, tau * s**0.5) for p, s, tau in zip(*start.tolist(), strict=True)]
    fates = [fate_of(mode, state) for mode, state in zip(modes, states, strict=True)]
    ends = torch.tensor([(fate.p, fate.s) for fate in fates], dtype=torch.float64).T
    after = ends
    if num_steps is not None:
        time = num_steps * setting.learning_rate
        reached = [state_after(mode, state, time) for mode, state in zip(modes, states, strict=True)]
        after = torch.tensor([(p, w * w) for p, w, _ in reached], dtype=torch.float64).T
    points = FixedPoints(*(value.broadcast_to(shape) for value in flow.fixed_points()))
    return Prediction(
        survives=torch.tensor([fate.survives for fate in fates]),
        p=ends[0],
        s=ends[1],
        p_after=after[0],
        s_after=after[1],
        fixed_points=points,
        critical_weight_decay=flow.critical_weight_decay().broadcast_to(shape),
        stays_aligned=torch.tensor([not fate.grows_too_fast for fate in fates]),
        reason=_reason(setting, fates, states, points),
    )


def _modes_of(flow: EigenmodeFlow, count: int) -> list[Mode]:
    """The settings of each mode."""
    signal, noise = (torch.as_tensor(value).broadcast_to((count,)).tolist() for value in (flow.signal, flow.noise))
    rates = {"alpha_p": float(flow.alpha_p), "eta": float(flow.eta), "eta_p": float(flow.predictor_decay)}
    beta = None if flow.beta is None else float(flow.beta)
    others = {"beta": beta, "stop_gradient": flow.stop_gradient, "predictor": flow.predictor}
    return [Mode(signal=one, noise=other, **rates, **others) for one, other in zip(signal, noise, strict=True)]


def _reason(setting: TrainingSetting, fates: list[Fate], states: list[State], points: FixedPoints) -> str:
    """A sentence for each rule that decided a mode."""
    count = sum(fate.survives for fate in fates)
    groups: dict[tuple[Cause, bool], list[int]] = {}
    for place, fate in enumerate(fates):
        groups.setdefault((fate.cause, fate.survives), []).append(place)
    parts = []
    if len(groups) > 1:
        parts.append(f"{count} of {len(fates)} modes survive." if count else "All modes collapse.")
    for (cause, survives), places in groups.items():
        if len(groups) == 1:
            verb = f"{len(fates)} of {len(fates)} modes survive" if survives else "All modes collapse"
        else:
            verb = f"{len(places)} {'survive' if survives else 'collapse'}{'s' if len(places) == 1 else ''}"
        starts, ends = (
            torch.tensor(values) for values in zip(*((states[i][0], fates[i].p) for i in places), strict=True)
        )
        parts.append(f"{verb}: {_rule(cause, survives, setting, points.p_minus[places], starts, ends)}")
    loose = sum(fate.survives and fate.grows_too_fast for fate in fates)
    if loose:
        parts.append(
            f"{loose} of the survivors grow faster than their alignment allows at some time: in a network they may "
            "collapse all the same."
        )
    return " ".join(parts)


_RULES: dict[tuple[Cause, bool], str] = {
    ("no variance", False): "nothing makes variance where there is none at the start.",
    ("no stop-gradient", False): "without stop-gradient, W follows -H W with H positive (theorem 2).",
    ("no predictor", False): "without predictor, W follows -W (X' + eta) (theorem 2).",
    ("nothing shrinks", True): "noise and weight decay, which would shrink them, are both 0 (theorem 2).",
    ("nothing shrinks", False): "nothing makes variance where there is none at the start.",
    ("gone before p is 1", False): "without stop-gradient, s(0) below (1 - p(0))^2 / alpha_p is gone before p is 1, "
    "where it would stay.",
    (
        "invariant",
        False,
    ): "s(0) is too far below p(0)^2 / alpha_p, and without weight decay nothing erases that (Obs. 1).",
    ("predictor never decays", False): "the encoder decays and the predictor does not, so that no fixed point has "
    "variance.",
}


def _rule(cause: Cause, survives: bool, setting: TrainingSetting, edges: Tensor, starts: Tensor, ends: Tensor) -> str:
    """Why a rule decides as it does, for the modes that it decided: their edges of the basin, start and end of p."""
    if cause == "invariant" and survives:
        return (
            f"without weight decay s keeps its distance from p^2 / alpha_p (theorem 1), and p tends to {_range(ends)}."
        )
    if cause == "predictor decays alone":
        return f"the predictor decays and the encoder does not, so that p tends to {_range(ends)} and s grows forever."
    if cause == "above critical":
        critical = setting.flow().critical_weight_decay().reshape(-1)
        critical = critical[critical <= setting.weight_decay]
        return (
            f"weight decay {setting.weight_decay:.6g} is not below the critical {_range(critical, 6)}, so that "
            "collapse is the only stable fixed point (Obs. 5)."
        )
    if cause != "basin":
        return _RULES[cause, survives]
    below = starts < edges
    if survives:
        text = f"the weight decay is below the critical one, and p tends to {_range(ends)}."
        if bool(below.any()):
            text += (
                f" {int(below.sum())} of these start below the edge p = {_range(edges[below])} of the basin of "
                "collapse; s above p^2 / alpha_p lifts them over it."
            )
        return text
    if bool(below.all()):
        return f"they start below p = {_range(edges)}, the edge of the basin (Obs. 4)."
    slow = setting.ema_momentum is not None
    why = "the target was small while they started (Obs. 10)" if slow else "s(0) was too far below p(0)^2 / alpha_p"
    return f"not all start below the edge p = {_range(edges)}, but {why}."


def _range(values: Tensor, digits: int = 4) -> str:
    low, high = f"{float(values.min()):.{digits}g}", f"{float(values.max()):.{digits}g}"
    return low if low == high else f"{low} to {high}"


def _modes(values: float | Sequence[float]) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)
