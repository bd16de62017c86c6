"""Ordinary differential equations: one run by scipy's solvers, many small runs at once on torch."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from scipy.integrate import solve_ivp  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from hf_ssl.errors import UserError

Rates = Callable[[Tensor], Tensor]
Method = Literal["RK45", "DOP853", "Radau", "BDF", "LSODA"]

# Dormand and Prince (1980): the weights of the earlier stages in each stage; the last row is the step of order 5.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# The step of order 5 less that of order 4.
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def integrate(
    rates: Rates, start: Tensor, times: Tensor, method: Method = "RK45", *, rtol: float = 1e-8, atol: float = 1e-12
) -> Tensor:
    """Follow one system of equations with a solver of `scipy.integrate.solve_ivp`.

    Args:
        rates: Time derivative of a state of the shape of `start`.
        start: State at the first of `times`, any shape.
        times: Increasing times to return, (times,).
        method: RK45 or DOP853 for smooth problems; Radau, BDF or LSODA for stiff ones, such as a large `alpha_p`.
        rtol: Error allowed in a step, relative to each entry of the state, positive.
        atol: Error allowed in a step beside that, in units of the state, positive.

    Returns:
        States, (times, *state), float64.

    Raises:
        UserError: If `times` does not increase.
        UserError: If the solver gives up, as it does when the weights grow without bound.
    """
    times = times.double()
    if times.dim() != 1 or len(times) < 2 or not bool((times.diff() > 0).all()):
        raise UserError("`times` must be at least two increasing numbers.")

    def flat_rates(_: float, state: Any) -> Any:
        return rates(torch.from_numpy(state).reshape(start.shape)).flatten().numpy()

    solution: Any = solve_ivp(
        flat_rates,
        (times[0].item(), times[-1].item()),
        start.detach().double().flatten().numpy(),
        method=method,
        t_eval=times.numpy(),
        rtol=rtol,
        atol=atol,
    )
    if not solution.success:
        raise UserError(
            f"The solver {method} gave up: {solution.message} Take a shorter time, or Radau for a stiff problem."
        )
    return torch.from_numpy(solution.y.T.copy()).reshape(len(times), *start.shape)


def integrate_batch(
    rates: Rates,
    start: Tensor,
    duration: float,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    max_steps: int = 100_000,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Follow many independent runs of a small system at once, each with its own adaptive step (Dormand and Prince).

    Args:
        rates: Time derivative of a state of the shape of `start`; run by run, so that no run sees another.
        start: States at time 0, (variables, runs).
        duration: Time to go, positive, in the unit of 1 / `rates`.
        rtol: Error allowed in a step, relative to each variable, positive.
        atol: Error allowed in a step beside that, in units of the state, positive.
        max_steps: Steps after which a run that has not arrived counts as stiff.
        on_step: Called after each step with the number of runs that have arrived, as for a progress bar.

    Returns:
        States at time `duration`, (variables, runs), float64.

    Raises:
        UserError: If a run is not there after `max_steps` steps.
    """
    state = start.double()
    num_runs = state.shape[1]
    left = torch.full((num_runs,), float(duration), dtype=torch.float64)
    step = torch.full_like(left, 1e-3 * duration)
    weights = [torch.tensor(row, dtype=torch.float64) for row in _STAGES]
    error_weights = torch.tensor(_ERROR, dtype=torch.float64)
    slopes = torch.empty(7, *state.shape, dtype=torch.float64)
    slopes[0] = rates(state)
    for _ in range(max_steps):
        step = torch.minimum(step, left)
        end = state
        for stage, row in enumerate(weights, start=1):
            end = state + step * (row @ slopes[:stage].flatten(1)).view_as(state)
            slopes[stage] = rates(end)
        error = step * (error_weights @ slopes.flatten(1)).view_as(state)
        scale = atol + rtol * torch.maximum(state.abs(), end.abs())
        # A state that is not finite counts as far off, so that its step is taken again, shorter.
        size = (error / scale).square().mean(dim=0).sqrt().nan_to_num(1e9, 1e9)
        accepted = size <= 1
        state = torch.where(accepted, end, state)
        # The last slope of a step is the first of the next.
        slopes[0] = torch.where(accepted, slopes[6], slopes[0])
        left = torch.where(accepted, left - step, left)
        if on_step is not None:
            on_step(int((left <= 0).sum()))
        if not bool((left > 0).any()):
            return state
        step = step * (0.9 * size.clamp(min=1e-9) ** -0.2).clamp(0.2, 5.0)
    raise UserError(
        f"{int((left > 0).sum())} of {num_runs} runs are not at time {duration:g} after {max_steps} steps. Take a "
        "shorter duration or smaller rates, or follow them one by one with the solver Radau."
    )
