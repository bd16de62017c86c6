"""What a run trains. The loop knows when; a task knows what: pretraining here, fine-tuning in a room above."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from hf_ssl.data.order.stream import Batch, TrainingStream
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.methods.base import SSLOutput
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.limits import SMALLER
from hf_ssl.training.plan import Plan
from hf_ssl.training.processes import with_precision
from hf_ssl.training.record import RunRecord
from hf_ssl.training.watch.base import Watch
from hf_ssl.training.watch.log import MetricsLog


class Task(ABC):
    """What is trained on which images, what its loss is, and what is watched.

    Args:
        module: Everything that is trained or saved, without wrapper.
        source: The images.
        data: How they are read.
        settings: How they are trained on.

    Attributes:
        settings: With the precision that `auto` stands for.
        smaller: What saves memory beside fewer images in a forward pass: flags, within a sentence.
    """

    smaller: str = SMALLER

    def __init__(self, module: nn.Module, source: Source, data: DataSettings, settings: TrainingSettings):
        self.module, self.source, self.data = module, source, data
        self.settings = with_precision(settings)

    @property
    @abstractmethod
    def settings_classes(self) -> Sequence[type]:
        """Classes whose defaults are the settings of a checkpoint that does not know them yet."""

    @abstractmethod
    def describe(self, plan: Plan, accelerator: Accelerator) -> RunRecord:
        """The record of a run that starts now."""

    @abstractmethod
    def set_up(self, device: torch.device) -> None:
        """Bring the module into the form in which it is trained, before it is moved to the device and wrapped."""

    @abstractmethod
    def optimizer(self, learning_rate: float) -> Optimizer:
        """An optimizer whose groups have what `set_learning_rate` reads.

        Args:
            learning_rate: The peak; the loop replaces it before the first step.
        """

    @abstractmethod
    def check_images(self, images: int, num_processes: int) -> None:
        """Refuse forward passes of too few images of each process by a `UserError`."""

    @abstractmethod
    def trial(self, images: int) -> None:
        """Forward and backward pass of images that show nothing, whose gradients are dropped."""

    def bring_data(self, accelerator: Accelerator) -> None:  # noqa: B027 (most tasks bring it batch by batch)
        """Put on the device what stays there during the run, before the memory that is left is measured."""

    @abstractmethod
    def open_stream(
        self, accelerator: Accelerator, position: dict[str, Any] | None, lanes: int, images: int
    ) -> TrainingStream:
        """The batches of this process.

        Args:
            accelerator: The run's accelerator.
            position: `Batch.position` after which to go on; None for the beginning.
            lanes: Lanes of the run.
            images: Images of a batch.
        """

    @abstractmethod
    def forward(self, network: nn.Module, batch: Batch) -> SSLOutput:
        """The forward pass of a batch; buffers may change.

        Args:
            network: The module as several processes share it.
            batch: From the stream, on any device.
        """

    def after_optimizer_step(self, step: int, num_steps: int) -> None:  # noqa: B027 (most tasks do nothing)
        """What follows when the weights have moved; not called where fp16 met an overflow.

        Args:
            step: Optimizer steps done.
            num_steps: Of the whole run.
        """

    def briefing(self, plan: Plan, accelerator: Accelerator, images: int) -> str | None:
        """What the log tells before the first step; nothing by default."""
        return None

    def watches(
        self, accelerator: Accelerator, plan: Plan, record: RunRecord, log: MetricsLog | None, step: int
    ) -> list[Watch]:
        """What looks at the run beside loss, clock, skipped images and energy.

        Args:
            accelerator: The run's accelerator.
            plan: Length and learning rate.
            record: Of the run.
            log: `metrics.jsonl`; None but on the first process.
            step: Optimizer steps that are done.
        """
        return []
