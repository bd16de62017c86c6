"""The training loop: the only place where the order of forward, backward, step and hook is decided."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.begin import Beginning, begin
from hf_ssl.training.limits import memory_errors_explained
from hf_ssl.training.lock import locked_output_dir
from hf_ssl.training.optimizers import set_learning_rate
from hf_ssl.training.output import check_tracker, prepare_output_dir
from hf_ssl.training.pretraining import Pretraining
from hf_ssl.training.processes import (
    average_batch_norm,
    own_accelerate_state,
    same_bits_every_time,
    start_accelerator,
)
from hf_ssl.training.recorder import Recorder
from hf_ssl.training.start import Start
from hf_ssl.training.task import Task
from hf_ssl.training.watch.ranks import Ranks


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Args:
        step: Optimizer steps done.
        num_steps: Optimizer steps of the whole run.
        signal: Number of the signal that ended it early, 0 if none.
        is_main_process: Whether this process is the one that exports.
        last_checkpoint: The newest checkpoint.
        seconds: Time of training, in all parts of the run, without evaluation and saving.
        collapse: What the collapse alarm reported, in plain words; None if nothing.
    """

    step: int
    num_steps: int
    signal: int
    is_main_process: bool
    last_checkpoint: Path | None
    seconds: float
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
    return run_task(Pretraining(model, source, data, settings, start, on_checkpoint))


def run_task(task: Task) -> TrainingResult:
    """Train what a task says, from the beginning or from a checkpoint; see `train`, which says what is written."""
    settings = task.settings
    check_tracker(settings.report_to)
    prepare_output_dir(settings)
    with locked_output_dir(settings), own_accelerate_state(), same_bits_every_time(settings.deterministic):
        accelerator = start_accelerator(settings)
        with Ranks() as ranks:
            beginning = begin(task, accelerator)
            recorder = Recorder(task, beginning)
            ranks.left = recorder.where_it_stands
            with recorder, memory_errors_explained(beginning.images, task.smaller):
                step = _steps(task, beginning, recorder)
            average_batch_norm(task.module)
            task.module.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
            recorder.finish(step)
        is_main_process = accelerator.is_main_process  # asking later would make a process group again
        record = beginning.record
        # What shares gradients goes before the group of processes: as its last owner it would end the threads of the
        # group with Python's lock in hand, for which one of them may wait (a deadlock seen with PyTorch 2.9).
        del beginning
        if accelerator.num_processes > 1:
            accelerator.free_memory()
        accelerator.end_training()
    return TrainingResult(
        step=step,
        num_steps=recorder.plan.num_steps,
        signal=recorder.stopped_by,
        is_main_process=is_main_process,
        last_checkpoint=recorder.last_checkpoint,
        seconds=record.progress.seconds,
        collapse=record.collapse["report"] if record.collapse else None,
    )


def _steps(task: Task, beginning: Beginning, recorder: Recorder) -> int:
    """Everything that is trained, in its order; returns the optimizer steps that are done."""
    accelerator, network, optimizer = beginning.accelerator, beginning.network, beginning.optimizer
    step, max_grad_norm = beginning.restored.step, task.settings.max_grad_norm
    for batch in recorder.batches():
        with accelerator.accumulate(network):
            output = task.forward(network, batch)
            accelerator.backward(output.loss)
            if accelerator.sync_gradients and max_grad_norm is not None:
                accelerator.clip_grad_norm_(network.parameters(), max_grad_norm)
            set_learning_rate(optimizer, recorder.plan.learning_rate, recorder.plan.factor(step))
            optimizer.step()
            optimizer.zero_grad()
        recorder.add_loss(output, step + 1)
        if not accelerator.sync_gradients:
            continue
        step += 1
        if not accelerator.optimizer_step_was_skipped:  # fp16 met an overflow
            task.after_optimizer_step(step, recorder.plan.num_steps)
        if recorder.after_step(step, output, batch.epoch):
            break
    return step
