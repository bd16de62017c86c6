"""Ablations of BYOL's ingredients: the cells of a grid, and the grids that have a name."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hf_ssl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of ingredients, as BYOL's and the training's settings name them.

    Args:
        predictor: `linear`, `mlp` or `none`.
        use_ema: Whether the target is a moving average.
        stop_gradient: Whether the target receives no gradient.
        symmetrize: Whether the predictor is symmetric at all times.
        predictor_lr: Learning rate of the predictor relative to the network's, positive.
        weight_decay: Of network and predictor, at least 0.
    """

    predictor: Literal["linear", "mlp", "none"] = "linear"
    use_ema: bool = True
    stop_gradient: bool = True
    symmetrize: bool = False
    predictor_lr: float = 1.0
    weight_decay: float = 4e-4

    def __post_init__(self):
        if not self.predictor_lr > 0:
            raise UserError(f"`predictor_lr` must be positive, got {self.predictor_lr}.")
        if not self.weight_decay >= 0:
            raise UserError(f"`weight_decay` must be at least 0, got {self.weight_decay}.")

    @property
    def title(self) -> str:
        """The cell in words, such as `linear, EMA, symmetric`; numbers with all digits, so that no two are equal."""
        parts = [
            {"none": "no predictor"}.get(self.predictor, self.predictor),
            "EMA" if self.use_ema else "no EMA",
            "" if self.stop_gradient else "no stop-gradient",
            "symmetric" if self.symmetrize else "",
            f"lr x {self.predictor_lr:.15g}" if self.predictor_lr != 1 else "",
            f"decay {self.weight_decay:.15g}",
        ]
        return ", ".join(part for part in parts if part)

    @property
    def folder(self) -> str:
        """Name of the folder of its runs, different for each cell."""
        return self.title.replace(" x ", "-x-").replace(",", "").replace(" ", "-").lower()

    @property
    def nonsense(self) -> str | None:
        """Why there is no such network; None if there is."""
        if self.use_ema and not self.stop_gradient:
            return "a moving average receives no gradient, so `stop_gradient` false needs `ema` false"
        if self.symmetrize and self.predictor != "linear":
            return "only a linear predictor can be symmetric"
        if self.predictor == "none" and self.predictor_lr != 1:
            return "without predictor there is no `predictor_lr`"
        return None


AXES = ("ema", "predictor_lr", "weight_decay", "stop_gradient", "predictor", "symmetrize")
"""Axes of a grid, in the order in which they vary: the last one fastest."""

_STANDARD: dict[str, Sequence[Any]] = {
    "ema": [True],
    "predictor_lr": [1.0],
    "weight_decay": [4e-4],
    "stop_gradient": [True],
    "predictor": ["linear"],
    "symmetrize": [False],
}

GRIDS: dict[str, list[dict[str, Sequence[Any]]]] = {
    "core": [
        {"symmetrize": [False, True], "ema": [True, False]},
        {"ema": [False], "predictor_lr": [10.0], "symmetrize": [False, True]},
        {"ema": [False], "weight_decay": [0.0, 1.0]},
        {"predictor": ["mlp"]},
        {"predictor": ["none"], "ema": [True, False]},
        {"ema": [False], "stop_gradient": [False]},
    ],
    "symmetry": [{"predictor": ["linear", "mlp"], "ema": [True, False], "symmetrize": [False, True]}],
    "decay": [{"weight_decay": [0.0, 4e-4, 4e-3, 0.04, 0.4], "ema": [True, False]}],
    "full": [
        {
            "ema": [True, False],
            "predictor_lr": [1.0, 10.0],
            "weight_decay": [0.0, 4e-4],
            "stop_gradient": [True, False],
            "predictor": ["linear", "mlp", "none"],
            "symmetrize": [False, True],
        }
    ],
}
"""Named grids, each a union of products of axes. An axis that is not named keeps the standard: a linear predictor that
is free, a moving average, stop-gradient, one learning rate, weight decay 4e-4."""


def cells_of(products: Iterable[Mapping[str, Sequence[Any]]]) -> tuple[list[Cell], dict[str, int]]:
    """All combinations of a grid that make sense, each once.

    Args:
        products: Values of each axis of `AXES`; those not named keep the standard.

    Returns:
        The cells, and the number of combinations that were left out by reason.

    Raises:
        UserError: If a value is out of range, or no cell is left.
    """
    cells: dict[Cell, None] = {}
    left_out: dict[str, int] = {}
    for product in products:
        axes = _STANDARD | dict(product)
        for values in itertools.product(*(axes[axis] for axis in AXES)):
            named = dict(zip(AXES, values, strict=True))
            cell = Cell(use_ema=named.pop("ema"), **named)
            if cell.nonsense is None:
                cells[cell] = None
            else:
                left_out[cell.nonsense] = left_out.get(cell.nonsense, 0) + 1
    if not cells:
        raise UserError(f"The grid has no cell: {'; '.join(left_out)}.")
    return list(cells), left_out
