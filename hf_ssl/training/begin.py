"""How a run begins, anew or where a checkpoint left it: everything before the first forward pass."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from hf_ssl.data.order.stream import TrainingStream
from hf_ssl.training.changes import change_text, defaults_of, plan_going_on, version_text
from hf_ssl.training.checkpoint import Restored, identity_in, load_checkpoint, record_in
from hf_ssl.training.find import find_checkpoint
from hf_ssl.training.fit import images_that_fit
from hf_ssl.training.limits import check_disk
from hf_ssl.training.plan import Plan, make_plan
from hf_ssl.training.processes import prepare
from hf_ssl.training.record import RunRecord, former_record
from hf_ssl.training.same_data import check_same_data, keep_listing
from hf_ssl.training.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """A run before its first step.

    Args:
        accelerator: The run's accelerator, which knows how many forward passes make a step.
        network: What is called: the task's module, as several processes share it.
        optimizer: The prepared optimizer.
        plan: Length and learning rate.
        record: What `run.json` is to say.
        checkpoint: The checkpoint from which the run goes on; None for the start.
        restored: What else was in it.
        stream: The batches; None if nothing is left to train.
        images: Of one process in one forward pass; 0 if nothing is left to train.
    """

    accelerator: Accelerator
    network: nn.Module
    optimizer: Any
    plan: Plan
    record: RunRecord
    checkpoint: Path | None
    restored: Restored
    stream: TrainingStream | None
    images: int


def begin(task: Task, accelerator: Accelerator) -> Beginning:
    """Bring a task to where its run begins; long because the order matters.

    Args:
        task: What is trained; its module is moved to the device, and gets the weights of the checkpoint.
        accelerator: Of the processes that train together.

    Raises:
        UserError: If settings, data, checkpoint and machine do not fit together.
    """
    settings, source, module = task.settings, task.source, task.module
    output_dir = Path(settings.output_dir)
    checkpoint = find_checkpoint(output_dir, settings.resume)
    former = {} if checkpoint is None else identity_in(checkpoint)
    former_run = None if checkpoint is None else former_record(output_dir, checkpoint)
    plan = make_plan(source, settings, accelerator.num_processes, former.get("lanes"))
    if checkpoint is not None:
        plan = _fitted_before(plan, task, record_in(checkpoint) or (former_run.to_json() if former_run else {}))
        plan = plan_going_on(plan, former, settings.change or ())
    record = task.describe(plan, accelerator)
    set_seed(settings.seed, device_specific=True)
    task.set_up(accelerator.device)
    network, optimizer = prepare(accelerator, module, task.optimizer(plan.learning_rate))
    if checkpoint is not None:
        check_same_data(checkpoint, former, record, source)
    if accelerator.is_main_process:
        keep_listing(source, output_dir, begins=checkpoint is None)
    restored = Restored(step=0, seconds=0.0, position=None)
    if checkpoint is not None:
        restored = load_checkpoint(
            accelerator,
            checkpoint,
            model=module,
            optimizer=optimizer,
            identity=record.identity(),
            change=settings.change,
            defaults=defaults_of(*task.settings_classes),
            version=version_text(record.to_json()),
        )
        _go_on(record, former_run, checkpoint, output_dir, restored, plan.num_steps)
    stream, images = None, 0
    if restored.step == plan.num_steps and "images_per_device" in former:
        record.training["images_per_device"] = former["images_per_device"]  # those of the last step, not `auto`
    if restored.step < plan.num_steps:
        check_disk(module, settings)
        task.bring_data(accelerator)
        images = _forward_images(task, accelerator, record, former)
        told = task.briefing(plan, accelerator, images)
        if told is not None:
            logger.info(told)
        stream = task.open_stream(accelerator, restored.position, plan.lanes, images)
    return Beginning(accelerator, network, optimizer, plan, record, checkpoint, restored, stream, images)


def _forward_images(task: Task, accelerator: Accelerator, record: RunRecord, former: Mapping[str, Any]) -> int:
    """Images of one process in one forward pass, which are noted in the record; gradients accumulate over the rest."""
    num_processes, settings = accelerator.num_processes, task.settings
    if settings.images_per_device == "auto" and former.get("num_processes") == num_processes:
        images = former["images_per_device"]  # what fitted then: another number would add up in another order
    else:
        images = images_that_fit(
            accelerator,
            task.module,
            settings,
            check=lambda images: task.check_images(images, num_processes),
            trial=task.trial,
            smaller=task.smaller,
        )
    before = (former.get("num_processes", num_processes), former.get("images_per_device", images))
    if before != (num_processes, images):
        logger.warning(
            "The run goes on with %d process(es) and %d images each in a forward pass, after %d and %d. Its steps see "
            "the same images; sums, BatchNorm and losses over the images of one pass may differ.",
            num_processes,
            images,
            *before,
        )
    record.training["images_per_device"] = images
    accelerator.gradient_accumulation_steps = settings.batch_size // (num_processes * images)
    return images


def _fitted_before(plan: Plan, task: Task, former_run: Mapping[str, Any]) -> Plan:
    """The plan with the length that the run was given when its first steps had been measured, if they had."""
    settings, training = task.settings, former_run.get("training", {})
    fitted = settings.max_hours is not None and training.get("fits_hours")
    if not fitted or "max_hours" in (settings.change or ()):
        return plan
    return replace(plan, num_steps=training["num_steps"], warmup_steps=training["warmup_steps"], fits_hours=True)


def _go_on(
    record: RunRecord,
    former: RunRecord | None,
    checkpoint: Path,
    output_dir: Path,
    restored: Restored,
    num_steps: int,
) -> None:
    """Take over what is known about the part of the run that is done, and note what changes from here on."""
    at_end = restored.step == num_steps
    if former is not None:
        record.go_on(former, restored.step, at_end)
    else:  # a run in another folder begins with these weights, whatever became of them
        record.keep_collapse(record_in(checkpoint).get("collapse"), restored.step)
    record.changes = list(restored.changes)
    for one in restored.changes:
        if one["step"] == restored.step:
            logger.info(change_text(one))
    if at_end:
        logger.info("The run in `%s` has already finished: nothing is left to train.", output_dir)
    else:
        logger.info("Resuming after step %d of %d.", restored.step, num_steps)
