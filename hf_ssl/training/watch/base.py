"""What looks at a run between two optimizer steps: one signature for all, and no influence on what is trained."""

from dataclasses import dataclass, field
from typing import Any

from hf_ssl.methods.base import SSLOutput
from hf_ssl.training.plan import Plan


@dataclass(frozen=True)
class Moment:
    """A run after an optimizer step.

    Args:
        step: Optimizer steps done.
        epoch: Passes over the data; only whole ones where their length is unknown.
        plan: Length and learning rate of the run.
        output: Of the last forward pass.
        figures: The line of the log so far; what a watch returns is added.
    """

    step: int
    epoch: float
    plan: Plan
    output: SSLOutput
    figures: dict[str, Any] = field(default_factory=dict)


class Watch:
    """Looks at a run between two optimizer steps.

    All processes have equal watches and call them after the same steps, because many gather over the processes. A
    watch leaves weights, modes and random generators as they were.

    Args:
        every: Optimizer steps between two looks; 0 for none but the last.
        at_end: Whether it also looks after the last step.

    Attributes:
        name: What the log calls it where it fails.
        may_fail: Whether the run goes on without its figures where it fails.
        interruptible: Whether a signal that ends the run cuts its look short, where no other process takes part.
        stops: Whether the run is to end now, with a checkpoint; the same on all processes.
    """

    name: str = ""
    may_fail: bool = True
    interruptible: bool = False
    stops: bool = False

    def __init__(self, every: int = 0, at_end: bool = True):
        self.every, self.at_end = every, at_end

    def is_due(self, step: int, plan: Plan) -> bool:
        """Whether to look after a step; the same on all processes."""
        return (self.at_end and step == plan.num_steps) or (self.every > 0 and step % self.every == 0)

    def look(self, moment: Moment) -> dict[str, Any]:
        """Numbers for the line of the log, by name."""
        return {}

    def progress(self) -> dict[str, Any]:
        """What it adds to `progress` of `run.json`; see `Progress`."""
        return {}

    def saved(self, step: int) -> None:
        """Called after each checkpoint but the last."""

    def finished(self) -> None:
        """Called once where a run is resumed that had already ended."""
