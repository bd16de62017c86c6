"""Optimizers by name: three of this package, and all of timm that take a step from one gradient."""

# pyright: reportPrivateImportUsage=false
# timm does not mark what it exports.

import importlib.util
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from hf_ssl.errors import UserError, near_name

OWN = ("sgd", "adamw", "lars")
"""PyTorch's two, and the LARS of `optimizers.py`; timm's of these names differ (its `sgd` is Nesterov's)."""

_PACKAGES = {"bnb": "bitsandbytes", "fused": "apex"}  # beginning of timm's names -> package that they need


def known_optimizers() -> list[str]:
    """All names that `optimizer` can have."""
    from timm.optim import get_optimizer_info, list_optimizers  # here: the names of this package need no timm

    names: list[Any] = list_optimizers()
    # One of second order needs the graph of the backward pass, which Accelerate frees.
    return sorted({*OWN, *(name for name in names if not get_optimizer_info(name).second_order)})


def check_optimizer(name: str) -> None:
    """Refuse a name that nobody knows, or whose package is missing.

    Raises:
        UserError: Names some that there are.
    """
    if name in OWN:
        return
    known = known_optimizers()
    if name not in known:
        near = near_name(name.lower(), known) or " Such as lamb, lion, muon or adan."
        raise UserError(
            f"`optimizer` must be sgd, adamw, lars or a first-order optimizer of timm, got `{name}`.{near}"
        )
    if name.startswith("kron") and importlib.util.find_spec("opt_einsum") is None:
        raise UserError(
            f"`optimizer` `{name}` needs the package `opt_einsum`: without it a step takes many gigabytes. Install "
            "it, or choose another optimizer, such as muon."
        )
    for beginning, package in _PACKAGES.items():
        if name.startswith(beginning) and importlib.util.find_spec(package) is None:
            raise UserError(
                f"`optimizer` `{name}` needs the package `{package}`. Install it, or give "
                f"`{name.removeprefix(beginning).removesuffix('8bit')}`."
            )


def timm_optimizer(groups: Sequence[dict[str, Any]], name: str, learning_rate: float, momentum: float) -> Optimizer:
    """An optimizer of timm over groups that have their own weight decay.

    Args:
        groups: Parameter groups.
        name: As `timm.optim.list_optimizers` shows it.
        learning_rate: Of all groups at first.
        momentum: For those that have one; betas are timm's.
    """
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(groups, opt=name, lr=learning_rate, momentum=momentum)
