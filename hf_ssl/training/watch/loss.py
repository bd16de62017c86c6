"""The loss of a run: its mean for the log, and the first one that is no number."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_ssl.distributed import gather, mean_over_processes
from hf_ssl.errors import UserError
from hf_ssl.training.watch.base import Moment, Watch


class LossMonitor(Watch):
    """Mean loss since the last log line, and the first step with a loss that is no number, kept on the device.

    Args:
        device: Where losses live. Nothing is copied from it between two log lines.
        passes: Forward passes of a step on this process.
        former: What `since_last_line` gave for a checkpoint, so that the first mean is that of its whole interval.
        every: Optimizer steps between two log lines.
    """

    name = "The log of the loss"
    may_fail = False

    def __init__(
        self,
        device: torch.device,
        passes: int = 1,
        former: tuple[float, float, int] = (0.0, 0, 1),
        every: int = 0,
    ):
        super().__init__(every)
        total, count, former_passes = former
        scale = passes / former_passes  # on another number of processes
        self._passes = passes
        self._sum = torch.full((), total * scale, device=device)
        self._count = count * scale
        self._step, self._at_step = 0, (self._sum, self._count)
        self._first_bad = torch.full((1,), -1, dtype=torch.int64, device=device)

    def add(self, loss: Tensor, step: int) -> None:
        """Take the loss of one forward pass.

        Args:
            loss: Scalar.
            step: Optimizer step that it belongs to, from 1.
        """
        loss = loss.detach().float()
        if step != self._step:
            self._step, self._at_step = step, (self._sum, self._count)
        self._sum = self._sum + loss
        self._count += 1
        is_first = (self._first_bad < 0) & ~loss.isfinite()
        self._first_bad = torch.where(is_first, step, self._first_bad)

    def mean(self) -> Tensor:
        """Mean loss since the last call on this process, a scalar."""
        mean = self._sum / max(self._count, 1)
        self._sum, self._count = torch.zeros_like(self._sum), 0
        return mean

    def look(self, moment: Moment) -> dict[str, Any]:
        """Where the run is, its mean loss, and what the method tells of the last batch; over all processes."""
        plan = moment.plan
        return {
            "epoch": moment.epoch,
            "lr": plan.learning_rate * plan.factor(moment.step - 1),
            **_mean_figures({"loss": self.mean(), **(moment.output.metrics or {})}),
        }

    def since_last_line(self, step: int) -> tuple[float, float, int]:
        """Sum and number of the losses since the last mean, for a checkpoint of `step`, and the passes of a step."""
        total, count = self._at_step if self._step > step else (self._sum, self._count)
        return total.item(), count, self._passes

    def check(self, last_good: Path | None) -> None:
        """Stop all processes together if any had a loss that is not finite.

        Raises:
            UserError: Names step, process and the last checkpoint.
        """
        found = [(step, number) for number, step in enumerate(gather(self._first_bad).tolist()) if step >= 0]
        if found:
            step, number = min(found)
            raise UserError(f"The loss was not finite at step {step} on process {number}. {_advice(last_good)}")


def check_weights(model: nn.Module, step: int, last_good: Path | None) -> None:
    """Refuse to save weights or buffers that are no numbers, on all processes together.

    Raises:
        UserError: If any process has some.
    """
    finite = [value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point()]
    bad = gather((~torch.stack(finite).all()).long()[None])
    if bad.any():
        raise UserError(
            f"Weights were not finite after step {step} on process {int(bad.argmax())}. {_advice(last_good)}"
        )


def _advice(last_good: Path | None) -> str:
    if last_good is None:
        return "No checkpoint was written before. Lower `base_learning_rate`, or give `max_grad_norm`."
    return (
        f"The last good checkpoint is `{last_good}`. Go on from it with a lower learning rate or clipped gradients: "
        "the same command with `--resume auto --change base_learning_rate max_grad_norm` and their new values."
    )


def _mean_figures(figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean of each scalar over processes, copied from the device at once."""
    stacked = torch.stack([value.detach().float().reshape(()) for value in figures.values()])
    return dict(zip(figures, mean_over_processes(stacked).tolist(), strict=True))
