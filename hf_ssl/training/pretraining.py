"""The task of pretraining: a method learns from two views of each image."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from hf_ssl.data.order.stream import Batch, TrainingStream
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.data.views.device import Normalize
from hf_ssl.methods.base import SSLOutput, SSLPreTrainedModel, method_name, own_settings
from hf_ssl.modules.batch_norm import synchronize_batch_norm
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.batches import inputs_of, open_cache, open_stream
from hf_ssl.training.briefing import briefing
from hf_ssl.training.fit import trial_step
from hf_ssl.training.limits import check_batch
from hf_ssl.training.optimizers import build_optimizer
from hf_ssl.training.plan import Plan
from hf_ssl.training.record import RunRecord, described_data, described_training
from hf_ssl.training.start import Start
from hf_ssl.training.task import Task
from hf_ssl.training.watch.base import Watch
from hf_ssl.training.watch.collapse import CollapseWatch
from hf_ssl.training.watch.diagnosis import DiagnosisWatch
from hf_ssl.training.watch.knn import KNNWatch, open_knn
from hf_ssl.training.watch.log import MetricsLog
from hf_ssl.training.watch.publisher import Publisher


class Pretraining(Task):
    """A method that is trained without labels.

    Args:
        model: The method.
        source: The images.
        data: How they become batches.
        settings: How the method is trained.
        start: Where its weights come from; None for chance.
        on_checkpoint: Called on the first process with step and model after each checkpoint but the last.
    """

    def __init__(
        self,
        model: SSLPreTrainedModel,
        source: Source,
        data: DataSettings,
        settings: TrainingSettings,
        start: Start | None = None,
        on_checkpoint: Callable[[int, SSLPreTrainedModel], Any] | None = None,
    ):
        super().__init__(model, source, data, settings)
        self.model, self.start, self.on_checkpoint = model, start, on_checkpoint

    @property
    def settings_classes(self) -> Sequence[type]:
        """The method's config, `DataSettings` and `TrainingSettings`."""
        return type(self.model.config), DataSettings, TrainingSettings

    def describe(self, plan: Plan, accelerator: Accelerator) -> RunRecord:
        """Method, data and training."""
        training = dataclasses.asdict(self.settings)
        for name in ("recipe", "change"):  # what has changed is in `changes`
            del training[name]
        return RunRecord.begin(
            method_name(type(self.model)),
            accelerator.device,
            recipe=self.settings.recipe,
            base_model=self.start.base_model if self.start is not None else None,
            origin=self.start.origin if self.start is not None else None,
            license=self.settings.license,
            config=own_settings(self.model.config),  # pyright: ignore[reportArgumentType]
            data=described_data(self.data, self.source, self.model.view_recipe),
            training=described_training(training, plan, accelerator.num_processes),
        )

    def set_up(self, device: torch.device) -> None:
        """Everything that is not in the model's config: mode, BatchNorm, memory layout, compilation."""
        model, settings = self.model, self.settings
        model.train()
        if settings.activation_checkpointing:
            model.encoder.set_grad_checkpointing(True)  # pyright: ignore[reportCallIssue]
        if (settings.batch_norm or model.batch_norm) == "sync":
            synchronize_batch_norm(model)
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if settings.compile:
            # In place: names of weights stay, and queues and targets are written outside of the compiled graph.
            model.encoder.compile()
            if hasattr(model, "target_encoder"):
                model.get_submodule("target_encoder").compile()
        config = model.config
        self.normalize = Normalize(config.image_mean, config.image_std, device, settings.channels_last)
        self.device = device

    def optimizer(self, learning_rate: float) -> Optimizer:
        """See `build_optimizer`."""
        return build_optimizer(self.model, self.settings, learning_rate)

    def check_images(self, images: int, num_processes: int) -> None:
        """See `check_batch`."""
        check_batch(self.model, self.settings, num_processes, images)

    def trial(self, images: int) -> None:
        """See `trial_step`."""
        trial_step(self.model, self.settings, images)

    def bring_data(self, accelerator: Accelerator) -> None:
        """See `batches.open_cache`."""
        rank, world_size = accelerator.process_index, accelerator.num_processes
        self.cache = open_cache(self.model, self.source, self.data, accelerator.device, rank, world_size)

    def open_stream(
        self, accelerator: Accelerator, position: dict[str, Any] | None, lanes: int, images: int
    ) -> TrainingStream:
        """See `batches.open_stream`."""
        rank, world_size = accelerator.process_index, accelerator.num_processes
        places = (rank, world_size, position, lanes, images, self.cache)
        return open_stream(self.model, self.source, self.data, self.settings, accelerator.device, *places)

    def forward(self, network: nn.Module, batch: Batch) -> SSLOutput:
        """Two normalised views of each image, and what else the method asks for."""
        return network(**inputs_of(batch, self.normalize, self.device))

    def after_optimizer_step(self, step: int, num_steps: int) -> None:
        """The method's own: targets and predictors that no gradient sets."""
        self.model.after_optimizer_step(step, num_steps)

    def briefing(self, plan: Plan, accelerator: Accelerator, images: int) -> str | None:
        """Six lines; see `briefing.briefing`."""
        start = self.start
        return briefing(self.model, self.source, self.data, self.settings, plan, accelerator, start, images)

    def watches(
        self, accelerator: Accelerator, plan: Plan, record: RunRecord, log: MetricsLog | None, step: int
    ) -> list[Watch]:
        """Collapse, k-NN, diagnosis, and publishing where it is wanted."""
        settings, model = self.settings, self.model
        former = log.former if log is not None else []
        curves = MetricsLog(log.path.with_name("diagnostics.jsonl"), step) if log is not None else None
        speed = settings.predictor_lr_multiplier or 1.0
        watches: list[Watch] = [
            CollapseWatch(settings.log_every, plan.warmup_steps, settings.on_collapse, record, former),
            DiagnosisWatch(settings.diagnostics_every, model, speed, curves, accelerator),
        ]
        knn = open_knn(self.source, self.data, settings) if settings.knn_every else None
        if knn is not None:
            watches.append(KNNWatch(settings.knn_every, knn, model))
        if self.on_checkpoint is not None:
            watches.append(Publisher(self.on_checkpoint, model, accelerator))
        return watches
