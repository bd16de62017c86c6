"""The training loop: the only place where the order of forward, backward, step and hook is decided."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.data.views.device import Normalize
from hf_ssl.methods.base import SSLOutput, SSLPreTrainedModel
from hf_ssl.modules.batch_norm import synchronize_batch_norm
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.batches import inputs_of, open_stream
from hf_ssl.training.briefing import briefing
from hf_ssl.training.changes import change_text, defaults_of, plan_going_on
from hf_ssl.training.checkpoint import Restored, identity_in, load_checkpoint, record_in
from hf_ssl.training.find import find_checkpoint
from hf_ssl.training.fit import images_that_fit, trial_step
from hf_ssl.training.limits import check_batch, check_disk, memory_errors_explained
from hf_ssl.training.optimizers import build_optimizer, set_learning_rate
from hf_ssl.training.output import check_tracker, locked_output_dir, prepare_output_dir
from hf_ssl.training.plan import Plan, make_plan
from hf_ssl.training.processes import (
    average_batch_norm,
    own_accelerate_state,
    prepare,
    start_accelerator,
    with_precision,
)
from hf_ssl.training.record import Start, describe_run, former_record, identity_of
from hf_ssl.training.recorder import Recorder
from hf_ssl.training.same_data import check_same_data, keep_listing
from hf_ssl.training.watch.knn import open_knn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Args:
        step: Optimizer steps done.
        num_steps: Optimizer steps of the whole run.
        signal: Number of the signal that ended it early, 0 if none.
        is_main_process: Whether this process is the one that exports.
        last_checkpoint: The newest checkpoint.
        collapse: What the collapse alarm reported, in plain words; None if nothing.
    """

    step: int
    num_steps: int
    signal: int
    is_main_process: bool
    last_checkpoint: Path | None
    collapse: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the run reached its last step."""
        return self.step == self.num_steps


def checkpoint_text(checkpoint: Path | None) -> str:
    """What a run that was stopped leaves, for a sentence."""
    return "before its first checkpoint" if checkpoint is None else f"with a checkpoint in {checkpoint}"


def train(
    model: SSLPreTrainedModel,
    source: Source,
    data: DataSettings,
    settings: TrainingSettings,
    *,
    start: Start | None = None,
    on_checkpoint: Callable[[int, SSLPreTrainedModel], None] | None = None,
) -> TrainingResult:
    """Pretrain a method, from the beginning or from a checkpoint, and leave the trained weights in `model`.

    All processes call this with models that are equal. Writes `run.json`, `metrics.jsonl` and `checkpoints/` in
    `settings.output_dir`. Ends the process group, so a program with several processes trains once.

    Args:
        model: The method; its weights are changed in place. BatchNorm statistics that differ between processes are
            averaged at the end.
        source: The images.
        data: How they become batches.
        settings: How the method is trained.
        start: Where the weights of `model` come from, if not from chance; `run.json` and the card tell it.
        on_checkpoint: Called on the first process with step and model after each checkpoint but the last.

    Returns:
        How the run ended.

    Raises:
        UserError: If settings, data and checkpoint do not fit together.
        UserError: If processes are missing, another run uses the folder, or a loss or weight is not finite.
    """
    check_tracker(settings.report_to)
    prepare_output_dir(settings)
    with locked_output_dir(settings), own_accelerate_state():
        return _train(model, source, data, settings, start, on_checkpoint)


def _train(
    model: SSLPreTrainedModel,
    source: Source,
    data: DataSettings,
    settings: TrainingSettings,
    start: Start | None,
    on_checkpoint: Callable[[int, SSLPreTrainedModel], None] | None,
) -> TrainingResult:
    """`train`, in a folder of its own; long because the order of everything in a run is to be read in one place."""
    settings = with_precision(settings)
    accelerator = start_accelerator(settings)
    checkpoint = find_checkpoint(Path(settings.output_dir), settings.resume)
    former = {} if checkpoint is None else identity_in(checkpoint)
    former_run = {} if checkpoint is None else former_record(Path(settings.output_dir), checkpoint)
    plan = make_plan(source, settings, accelerator.num_processes, former.get("lanes"))
    if checkpoint is not None:
        plan = plan_of_record(plan, record_in(checkpoint) or former_run, settings)
        plan = plan_going_on(plan, former, settings.change or ())
    run = describe_run(model, source, data, settings, plan, accelerator.num_processes, accelerator.device, start)
    network, optimizer = _set_up(accelerator, model, settings, plan.learning_rate)
    restored = Restored(step=0, seconds=0.0, position=None)
    if checkpoint is not None:
        check_same_data(checkpoint, former, run, source)
    if accelerator.is_main_process:
        keep_listing(source, Path(settings.output_dir))
    if checkpoint is not None:
        restored = load_checkpoint(
            accelerator,
            checkpoint,
            model=model,
            optimizer=optimizer,
            identity=identity_of(run),
            change=settings.change,
            defaults=defaults_of(type(model.config), DataSettings, TrainingSettings),
        )
        continue_record(run, former_run, settings.output_dir, restored, plan.num_steps)
    stream, images = None, 0
    if restored.step < plan.num_steps:
        check_disk(model, settings)
        images = forward_images(
            accelerator,
            model,
            settings,
            run,
            former,
            check=lambda images: check_batch(model, settings, accelerator.num_processes, images),
            trial=lambda images: trial_step(model, settings, images),
        )
        logger.info(briefing(model, source, data, settings, plan, accelerator, start, images))
        rank, world_size = accelerator.process_index, accelerator.num_processes
        places = (rank, world_size, restored.position, plan.lanes, images)
        stream = open_stream(model, source, data, settings, accelerator.device, *places)
    knn = open_knn(source, data, settings) if settings.knn_every else None
    recorder = Recorder(accelerator, model, optimizer, plan, settings, run, restored, checkpoint, knn, on_checkpoint)
    config = model.config
    normalize = Normalize(config.image_mean, config.image_std, accelerator.device, settings.channels_last)
    step = restored.step
    with recorder, memory_errors_explained(images):
        for batch in recorder.batches(stream) if stream is not None else ():
            with accelerator.accumulate(network):
                output: SSLOutput = network(**inputs_of(batch, normalize, accelerator.device))  # buffers may change
                accelerator.backward(output.loss)
                if accelerator.sync_gradients and settings.max_grad_norm is not None:
                    accelerator.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
                set_learning_rate(optimizer, plan.learning_rate, recorder.plan.factor(step))
                optimizer.step()
                optimizer.zero_grad()
            recorder.add_loss(output, step + 1)
            if not accelerator.sync_gradients:
                continue
            step += 1
            if not accelerator.optimizer_step_was_skipped:  # fp16 met an overflow
                model.after_optimizer_step(step, recorder.plan.num_steps)
            if recorder.after_step(step, output, batch.epoch):
                break
    average_batch_norm(model)
    model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    recorder.finish(step)
    accelerator.end_training()
    return TrainingResult(
        step=step,
        num_steps=recorder.plan.num_steps,
        signal=recorder.stopped_by,
        is_main_process=accelerator.is_main_process,
        last_checkpoint=recorder.last_checkpoint,
        collapse=recorder.collapse,
    )


def forward_images(
    accelerator: Accelerator,
    module: nn.Module,
    settings: TrainingSettings,
    run: dict[str, Any],
    former: Mapping[str, Any],
    check: Callable[[int], None],
    trial: Callable[[int], None],
) -> int:
    """Images of one process in one forward pass, which are noted in the record; gradients accumulate over the rest.

    Args:
        accelerator: The run's accelerator; learns how many forward passes make a step.
        module: What is trained, on its device, without wrapper.
        settings: How it is trained.
        run: Content of `run.json`.
        former: Identity of the checkpoint from which the run goes on; empty without one.
        check: See `images_that_fit`.
        trial: See `images_that_fit`.
    """
    num_processes = accelerator.num_processes
    if settings.images_per_device == "auto" and former.get("num_processes") == num_processes:
        images = former["images_per_device"]  # what fitted then: another number would add up in another order
    else:
        images = images_that_fit(accelerator, module, settings, check, trial)
    before = (former.get("num_processes", num_processes), former.get("images_per_device", images))
    if before != (num_processes, images):
        logger.warning(
            "The run goes on with %d process(es) and %d images each in a forward pass, after %d and %d. Its steps see "
            "the same images; sums, BatchNorm and losses over the images of one pass may differ.",
            num_processes,
            images,
            *before,
        )
    run["training"]["images_per_device"] = images
    accelerator.gradient_accumulation_steps = settings.batch_size // (num_processes * images)
    return images


def plan_of_record(plan: Plan, former_run: Mapping[str, Any], settings: TrainingSettings) -> Plan:
    """The plan with the length that the run was given when its first steps had been measured, if they had."""
    training = former_run.get("training", {})
    fitted = settings.max_hours is not None and training.get("fits_hours")
    if not fitted or "max_hours" in (settings.change or ()):
        return plan
    return replace(plan, num_steps=training["num_steps"], warmup_steps=training["warmup_steps"], fits_hours=True)


def _set_up(
    accelerator: Accelerator, model: SSLPreTrainedModel, settings: TrainingSettings, learning_rate: float
) -> tuple[nn.Module, Any]:
    """The network that the loop calls, and its optimizer: everything that is not in the model's config."""
    set_seed(settings.seed, device_specific=True)
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
    return prepare(accelerator, model, build_optimizer(model, settings, learning_rate))


def continue_record(
    run: dict[str, Any], former_run: Mapping[str, Any], output_dir: str, restored: Restored, num_steps: int
) -> None:
    """Take over what the record knows about the part of the run that is done, and note what changes from here on."""
    kept = ("command", "started", "skipped", "progress", "collapse")
    run |= {name: former_run[name] for name in kept if name in former_run}
    if former_run:
        run["finished"] = former_run.get("finished") if restored.step == num_steps else None
    if restored.changes:
        run["changes"] = list(restored.changes)
    for one in restored.changes:
        if one["step"] == restored.step:
            logger.info(change_text(one))
    if restored.step == num_steps:
        logger.info("The run in `%s` has already finished: nothing is left to train.", output_dir)
    else:
        logger.info("Resuming after step %d of %d.", restored.step, num_steps)
