"""Optimizers, parameter groups and the learning rate as a function of the optimizer step.

The schedule is not a `torch` scheduler: one that Accelerate prepares moves once per process and step.
"""

# pyright: reportPrivateImportUsage=false
# PyTorch's optimizers are built on the same `torch._foreach_*` functions, which have no public name.

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.timm_optimizers import timm_optimizer


class LARS(Optimizer):
    """Momentum SGD with one trust ratio per weight (You et al. 2017), in the order of DeepMind's BYOL code.

    For a weight w with gradient g: g <- g + weight_decay * w, then g <- g * trust * |w| / |g| (unless a norm is 0),
    then v <- momentum * v + g and w <- w - lr * v. Groups with `adapt=False` skip the ratio. `timm.optim.Lars` is
    another: it divides by |g| + weight_decay * |w|, with |g| taken before the decay.

    Args:
        params: Parameters or groups; a group may set `adapt`.
        lr: Learning rate, 0 or more.
        momentum: In [0, 1).
        weight_decay: 0 or more.
        trust_coefficient: Factor of the ratio, positive.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "trust_coefficient": trust_coefficient,
                "adapt": True,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move the parameters once; `closure` may compute the loss again."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._move(weights, [weight.grad for weight in weights], group)
        return loss

    def _move(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
        if group["adapt"]:
            # All norms in one vector: some operations for each weight would keep a GPU waiting for its host.
            w, g = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, gradients))
            ratios = torch.where((w > 0) & (g > 0), group["trust_coefficient"] * w / g, 1.0).unbind()
            if group["weight_decay"]:
                torch._foreach_mul_(gradients, ratios)
            else:
                gradients = list(torch._foreach_mul(gradients, ratios))
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        velocities = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, gradients)
        torch._foreach_add_(weights, velocities, alpha=-group["lr"])


def parameter_groups(model: SSLPreTrainedModel, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Sort the trainable parameters by what the optimizer does with them.

    Parameters with one dimension or none (biases and normalisation weights) never get LARS' trust ratio, and no weight
    decay unless `decay_norm_and_bias`. Those of the submodule `predictor` have their own multiplier and decay.

    Returns:
        Groups for a `torch` optimizer, each with `lr_multiplier` and `scheduled`; see `set_learning_rate`.
    """
    groups: dict[tuple[float, float, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.trainable_parameters().items():
        in_predictor = name.startswith("predictor.")
        is_vector = parameter.ndim <= 1
        decay = settings.weight_decay
        if in_predictor and settings.predictor_weight_decay is not None:
            decay = settings.predictor_weight_decay
        if is_vector and not settings.decay_norm_and_bias:
            decay = 0.0
        multiplier = settings.predictor_lr_multiplier if in_predictor else 1.0
        scheduled = not any(name.startswith(f"{module}.") for module in model.constant_lr_modules)
        group = groups.setdefault(
            (decay, multiplier, scheduled, is_vector),
            {"params": [], "weight_decay": decay, "lr_multiplier": multiplier, "scheduled": scheduled},
        )
        if settings.optimizer == "lars":
            group["adapt"] = not is_vector
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: SSLPreTrainedModel, settings: TrainingSettings, learning_rate: float) -> Optimizer:
    """Create the optimizer that the settings name, over the trainable parameters of a method.

    Args:
        model: The method.
        settings: Optimizer, decay and momentum.
        learning_rate: See `scaled_learning_rate`; the schedule replaces it before the first step.
    """
    groups = parameter_groups(model, settings)
    # A fused optimizer looks for the overflows of fp16 itself, and nobody would learn that it skipped the step.
    fused = settings.mixed_precision != "fp16"
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=settings.optimizer_momentum, fused=fused)
    if settings.optimizer == "lars":
        trust = settings.lars_trust_coefficient
        return LARS(groups, lr=learning_rate, momentum=settings.optimizer_momentum, trust_coefficient=trust)
    return timm_optimizer(groups, settings.optimizer, learning_rate, settings.optimizer_momentum)


def scaled_learning_rate(settings: TrainingSettings) -> float:
    """Peak learning rate: base * N / 256 under linear scaling, N images a step (Goyal et al. 2017)."""
    scale = settings.batch_size / 256 if settings.learning_rate_scaling == "linear" else 1.0
    return settings.base_learning_rate * scale


def learning_rate_factor(
    step: int, num_steps: int, warmup_steps: int, lr_schedule: str, steps_per_epoch: int = 1
) -> float:
    """Fraction of the peak learning rate that one optimizer step uses.

    Linear from 0 during the warm-up, then the schedule over the remaining steps.

    Args:
        step: Optimizer steps done before this one, in [0, `num_steps`).
        num_steps: Optimizer steps of the whole run.
        warmup_steps: Steps of the warm-up, fewer than `num_steps`.
        lr_schedule: `cosine` moves every step, as in BYOL and MoCo v3, and `cosine_by_epoch` at the start of an
            epoch, as in MoCo v2 and SimSiam. `constant`, or `step` (x 0.1 at 60 and again at 80 % of the run, as in
            MoCo v1).
        steps_per_epoch: Optimizer steps of an epoch, for `cosine_by_epoch`.

    Returns:
        In [0, 1].
    """
    if step < warmup_steps:
        return step / warmup_steps
    if lr_schedule == "constant":
        return 1.0
    if lr_schedule == "step":
        return 0.1 ** sum(step >= milestone * num_steps for milestone in (0.6, 0.8))
    if lr_schedule == "cosine_by_epoch":
        step = max(step - step % steps_per_epoch, warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (num_steps - warmup_steps)))


def set_learning_rate(optimizer: Optimizer, learning_rate: float, factor: float) -> None:
    """Give every group its learning rate of the coming step.

    Args:
        optimizer: From `build_optimizer`.
        learning_rate: Peak learning rate.
        factor: From `learning_rate_factor`; groups that are not scheduled ignore it.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_multiplier"] * (factor if group["scheduled"] else 1.0)
