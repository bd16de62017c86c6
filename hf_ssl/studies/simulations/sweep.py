"""Follow one eigenmode from every pair of two settings or starts, thousands of runs at once.

A mode that starts on the parabola s = p^2 / alpha_p survives if p is above p-, which exists only for weight decay
below tau^2 / (4 (1 + noise)); the dashed line of the map is that edge. Off the parabola, or with a moving
average, only the simulation tells.

    hf-ssl simulate sweep --x eta --x_range 0 0.2 --y p --y_range 0.01 0.6 --beta 0.1 --tau 0
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from hf_ssl.dynamics.eigenmodes import EigenmodeFlow
from hf_ssl.errors import UserError
from hf_ssl.figures.dynamics import sweep_map
from hf_ssl.settings import check_least, check_positive, checked
from hf_ssl.studies.simulations.result import SimulationResult, simulate


@checked
class SweepSettings:
    """One eigenmode over two quantities.

    Args:
        x: First quantity: eta, alpha_p, beta, noise, p, s or tau.
        x_range: Its lowest and highest value.
        y: Second quantity.
        y_range: Its lowest and highest value.
        x_log: Space the first quantity's values by equal factors.
        y_log: Space the second quantity's values by equal factors.
        size: Values of each quantity, at least 2.
        duration: Time that each run is followed for, positive.
        eta: Weight decay, at least 0.
        alpha_p: Learning rate of the predictor relative to that of the encoder, positive.
        beta: Speed of the target's moving average; none for SimSiam.
        noise: Variance sigma^2 of the augmentation, at least 0; that of the data is 1.
        p: Eigenvalue of the predictor at the start.
        s: Eigenvalue of the correlation at the start; none for p^2 / alpha_p.
        tau: Target relative to the online network at the start: 1 for a copy, 0 for zeros.
        output_dir: Folder for the figure and sweep.json.
    """

    x: Literal["eta", "alpha_p", "beta", "noise", "p", "s", "tau"] = "eta"
    x_range: tuple[float, ...] = (0.0, 0.2)
    y: Literal["eta", "alpha_p", "beta", "noise", "p", "s", "tau"] = "p"
    y_range: tuple[float, ...] = (0.01, 0.6)
    x_log: bool = False
    y_log: bool = False
    size: int = 64
    duration: float = 500.0
    eta: float = 0.05
    alpha_p: float = 1.0
    beta: float | None = None
    noise: float = 0.5
    p: float = 0.3
    s: float | None = None
    tau: float = 1.0
    output_dir: Path = Path("dynamics")

    def validate_sweep(self) -> None:
        """Check numbers and ranges."""
        check_least(self, size=2)
        check_positive(self, "duration")
        if self.x == self.y:
            raise UserError(f"`x` and `y` are both {self.x}: choose two quantities.")
        for name in ("x", "y"):
            bounds = getattr(self, f"{name}_range")
            if len(bounds) != 2 or not bounds[0] < bounds[1]:
                shown = " ".join(map(str, bounds))
                raise UserError(f"`{name}_range` must be a lower and a higher number, got {shown}.")
            if getattr(self, f"{name}_log") and bounds[0] <= 0:
                raise UserError(f"`{name}_range` must be positive for `{name}_log`, got {bounds[0]:g}.")


def run(settings: SweepSettings) -> SimulationResult:
    """Simulate, and write figures and numbers."""
    return simulate("sweep", settings, sweep)


def sweep(settings: SweepSettings) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Figure and numbers of one eigenmode over two quantities."""
    names = (settings.x, settings.y)
    logarithmic = (settings.x_log, settings.y_log)
    axes = [
        _values(bounds, settings.size, log)
        for bounds, log in zip((settings.x_range, settings.y_range), logarithmic, strict=True)
    ]
    quantities: dict[str, Any] = {
        name: getattr(settings, name) for name in ("eta", "alpha_p", "beta", "noise", "p", "s", "tau")
    }
    quantities |= {names[0]: axes[0][None, :], names[1]: axes[1][:, None]}
    if quantities["s"] is None:
        quantities["s"] = torch.as_tensor(quantities["p"]) ** 2 / quantities["alpha_p"]
    start = {name: quantities.pop(name) for name in ("p", "s", "tau")}
    mode = EigenmodeFlow(**quantities)
    with tqdm(total=settings.size**2, desc="runs that have arrived", unit="run") as bar:
        p, s, tau = mode.final_state(**start, duration=settings.duration, on_step=lambda arrived: _show(bar, arrived))
    # A moving average ends at 1; without one the target stays where it is.
    points = mode.fixed_points(1.0 if mode.beta is not None else start["tau"])
    survives = (torch.as_tensor(start["p"]) > points.p_minus).broadcast_to(p.shape)
    labels = {
        "eta": r"$\eta$, weight decay",
        "alpha_p": r"$\alpha_p$, speed of the predictor",
        "beta": r"$\beta$, speed of the moving average",
        "noise": r"$\sigma^2$, variance of the augmentation",
        "p": "$p(0)$, eigenvalue of $W_p$ at the start",
        "s": "$s(0)$, eigenvalue of $F$ at the start",
        "tau": r"$\tau(0)$, target at the start",
    }
    figure = sweep_map(
        axes[0],
        axes[1],
        s,
        survives,
        x_label=labels[names[0]],
        y_label=labels[names[1]],
        value_label=rf"$s$ at time {settings.duration:g}",
        logarithmic=logarithmic,
    )
    alive = s > 1e-3
    numbers = {
        "x": axes[0].tolist(),
        "y": axes[1].tolist(),
        "p": p.tolist(),
        "s": s.tolist(),
        "tau": tau.tolist(),
        "share_alive": alive.double().mean().item(),
        "share_alive_by_closed_form": survives.double().mean().item(),
        "share_where_they_agree": (alive == survives).double().mean().item(),
    }
    return {"sweep": figure}, numbers


def _values(bounds: Sequence[float], size: int, log: bool) -> Tensor:
    ends = torch.tensor(bounds, dtype=torch.float64)
    spaced = torch.linspace(0, 1, size, dtype=torch.float64)
    return ends[0] * (ends[1] / ends[0]) ** spaced if log else ends[0] + (ends[1] - ends[0]) * spaced


def _show(bar: Any, arrived: int) -> None:
    bar.update(arrived - bar.n)
