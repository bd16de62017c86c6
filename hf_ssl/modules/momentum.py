"""The moving average that target networks follow."""

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_target(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move the parameters of `target` towards those of `online` (BYOL, equation 1; MoCo, equation 2).

    Buffers are left alone, as in the official codes: the target runs in training mode and keeps running statistics of
    its own.

    Args:
        target: Network that is moved, in place.
        online: Network of the same architecture that gradient descent moves.
        momentum: Fraction of the old value that is kept, in [0, 1].

    Raises:
        RuntimeError: If the target is stored in half precision.
    """
    targets: list[Tensor] = list(target.parameters())
    sources: list[Tensor] = list(online.parameters())
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in targets):
        raise RuntimeError(
            "The target network is stored in half precision, in which a moving average stands still. "
            "Keep the model in float32 and use `mixed_precision` instead."
        )
    torch._foreach_lerp_(targets, sources, 1.0 - momentum)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def cosine_momentum(base: float, progress: float) -> float:
    """Momentum that rises from `base` to 1 along half a cosine (BYOL, section 3.3).

    Args:
        base: Momentum at the start, in [0, 1].
        progress: Part of the run that is done, in [0, 1].

    Returns:
        1 - (1 - base) (1 + cos(pi progress)) / 2.
    """
    return 1.0 - (1.0 - base) * 0.5 * (1.0 + math.cos(math.pi * progress))
