"""Length of a run and its learning rate, in optimizer steps of all processes together."""

import math
from dataclasses import dataclass, replace

from hf_ssl.data.order.lanes import choose_lanes
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.optimizers import learning_rate_factor, scaled_learning_rate

UNKNOWN_LENGTH = 2**31 - 1
"""`num_steps` of a run whose length follows from `max_hours`, before its speed is known."""

_SHARE_OF_WARMUP = 10  # a run that turns out short warms up for a tenth of it at most
_SPARE = 0.97  # of the hours: speed varies


@dataclass(frozen=True)
class Plan:
    """How long a run is and how its learning rate moves.

    Args:
        num_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of one pass over the data; None if its size is unknown.
        warmup_steps: Optimizer steps of the warm-up.
        lanes: See `choose_lanes`.
        learning_rate: Peak learning rate.
        lr_schedule: See `TrainingSettings`; `cosine` for `cosine_by_epoch` where no one knows when an epoch ends.
        fits_hours: Whether the length was fitted to `max_hours`.
    """

    num_steps: int
    steps_per_epoch: int | None
    warmup_steps: int
    lanes: int
    learning_rate: float
    lr_schedule: str
    fits_hours: bool = False

    def fitted(self, step: int, seconds_per_step: float, seconds_left: float) -> "Plan":
        """The plan with the length that its time allows, at most the length that it had.

        Args:
            step: Optimizer steps done.
            seconds_per_step: Measured speed.
            seconds_left: Until `max_hours` are over.
        """
        possible = step + math.floor(_SPARE * seconds_left / seconds_per_step)
        num_steps = min(self.num_steps, max(step + 1, possible))
        warmup_steps = min(self.warmup_steps, max(step, num_steps // _SHARE_OF_WARMUP))
        return replace(self, num_steps=num_steps, warmup_steps=min(warmup_steps, num_steps - 1), fits_hours=True)

    def factor(self, step: int) -> float:
        """Fraction of the peak learning rate for the step after `step` finished ones."""
        return learning_rate_factor(
            step, self.num_steps, self.warmup_steps, self.lr_schedule, self.steps_per_epoch or 1
        )


def make_plan(source: Source, settings: TrainingSettings, num_processes: int, lanes: int | None = None) -> Plan:
    """Translate epochs into steps and the base learning rate into the one for this batch size.

    Args:
        source: The data set; epochs need its size.
        settings: Length, batch size and learning rate.
        num_processes: Processes that train together.
        lanes: Of the run that is continued, unless the settings name another number.

    Raises:
        UserError: If the length is unknown, the data set smaller than one batch, the warm-up longer than the run, or
            the batch cannot be dealt to lanes, processes and forward passes.
    """
    lanes = choose_lanes(settings.batch_size, num_processes, lanes if settings.lanes is None else settings.lanes)
    check_images_per_device(settings, num_processes)
    steps_per_epoch = None
    if source.num_images is not None:
        if source.num_images < settings.batch_size:
            raise UserError(
                f"Split `{source.split}` of `{source.name}` has {source.num_images} images, fewer than one batch of "
                f"{settings.batch_size}. Lower `batch_size`."
            )
        steps_per_epoch = source.num_images // settings.batch_size
    num_steps = settings.num_steps
    if num_steps is None and settings.num_epochs is None:
        if settings.max_hours is None:
            raise UserError("The length of the run is missing. Give `num_steps`, `num_epochs` or `max_hours`.")
        num_steps = UNKNOWN_LENGTH
    if num_steps is None:
        num_steps = max(1, _steps_of(settings.num_epochs, "num_epochs", "num_steps", steps_per_epoch, source))
    warmup_steps = settings.warmup_steps
    if warmup_steps is None:
        warmup_steps = _steps_of(settings.warmup_epochs, "warmup_epochs", "warmup_steps", steps_per_epoch, source)
    if warmup_steps >= num_steps:
        name = "warmup_epochs" if settings.warmup_steps is None else "warmup_steps"
        raise UserError(
            f"The warm-up of {warmup_steps:,} steps (`{name}` {getattr(settings, name):g}) must be shorter than the "
            f"run of {num_steps:,}. Give a smaller `{name}`, or train longer."
        )
    lr_schedule = settings.lr_schedule
    if lr_schedule == "cosine_by_epoch" and steps_per_epoch is None:
        lr_schedule = "cosine"
    return Plan(
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=warmup_steps,
        lanes=lanes,
        learning_rate=scaled_learning_rate(settings),
        lr_schedule=lr_schedule,
    )


def check_images_per_device(settings: TrainingSettings, num_processes: int) -> None:
    """Refuse forward passes of which no whole number makes a process's share of a step.

    Raises:
        UserError: Names the largest number below that does.
    """
    share, wanted = settings.batch_size // num_processes, settings.images_per_device
    if wanted == "auto" or share % wanted == 0:
        return
    fitting = max(number for number in range(1, min(wanted, share) + 1) if share % number == 0)
    raise UserError(
        f"`images_per_device` must divide the {share} images of one process in a step of {settings.batch_size}, got "
        f"{wanted}. Give {fitting}."
    )


def _steps_of(epochs: float | None, setting: str, instead: str, steps_per_epoch: int | None, source: Source) -> int:
    if not epochs:
        return 0
    if steps_per_epoch is None:
        raise UserError(
            f"`{source.name}` does not say how many images it has, so `{setting}` has no length. Give `{instead}`."
        )
    return int(epochs * steps_per_epoch)
