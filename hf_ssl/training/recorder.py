"""What happens between two optimizer steps: the watches, the log, checkpoints, and the decision to stop."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from tqdm.auto import tqdm

from hf_ssl.data.decode.unavailable import DataUnavailableError
from hf_ssl.data.order.loader import end_workers, killed_workers
from hf_ssl.data.order.stream import Batch
from hf_ssl.errors import LostProcessError
from hf_ssl.methods.base import SSLOutput
from hf_ssl.training.begin import Beginning
from hf_ssl.training.briefing import SpeedCheck
from hf_ssl.training.checkpoint import save_checkpoint
from hf_ssl.training.find import complete_checkpoints, step_of
from hf_ssl.training.plan import UNKNOWN_LENGTH
from hf_ssl.training.record import Progress
from hf_ssl.training.task import Task
from hf_ssl.training.watch.base import Moment, Watch
from hf_ssl.training.watch.clock import Clock
from hf_ssl.training.watch.energy import EnergyMeter, EnergyWatch
from hf_ssl.training.watch.log import MetricsLog
from hf_ssl.training.watch.loss import LossMonitor, check_weights
from hf_ssl.training.watch.signals import StopSignal
from hf_ssl.training.watch.skipped import Skipped

logger = logging.getLogger(__name__)


class Recorder:
    """Writes `run.json`, `metrics.jsonl` and checkpoints of a run; never changes what is trained.

    A context manager: while it is entered, a signal ends the run after the step in hand, with a checkpoint.

    Args:
        task: What is trained.
        beginning: From where.

    Attributes:
        plan: Length and learning rate; `max_hours` sets its length after the first steps.
        stopped_by: Number of the signal that ended the run, 0 for none.
        last_checkpoint: The newest one.
    """

    def __init__(self, task: Task, beginning: Beginning):
        self.task, self.settings, self.module = task, task.settings, task.module
        self.accelerator, self.optimizer = beginning.accelerator, beginning.optimizer
        self.plan, self.record, self.stream = beginning.plan, beginning.record, beginning.stream
        self.last_checkpoint = beginning.checkpoint
        self.output_dir = Path(self.settings.output_dir)
        restored = beginning.restored
        self.position = restored.position
        self.last_step = (restored.step, restored.position)  # that is finished, and what it had read
        self.mid_step = False  # images of a step that is not finished have been through the model
        self.stopped_by = 0
        self.stop = StopSignal(self.settings.grace_seconds, self.where_it_stands)
        self.speed = SpeedCheck(restored.step, self.accelerator.device)
        self.log = None
        if self.accelerator.is_main_process:
            self.log = MetricsLog(self.output_dir / "metrics.jsonl", restored.step)
        if self.settings.report_to != "none":
            options = {"wandb": {"name": self.output_dir.name}, "trackio": {"name": self.output_dir.name}}
            self.accelerator.init_trackers("hf_ssl", config=self.record.flat_settings(), init_kwargs=options)
        self._open_watches(beginning)
        self._write_record(restored.step)
        self.bar = tqdm(
            total=None if self.plan.num_steps == UNKNOWN_LENGTH else self.plan.num_steps,
            initial=restored.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            disable=not self.accelerator.is_main_process or self.stream is None,
        )

    def _open_watches(self, beginning: Beginning) -> None:
        accelerator, restored, every = self.accelerator, beginning.restored, self.settings.log_every
        passes = accelerator.gradient_accumulation_steps
        meter = None
        if self.stream is not None:
            meter = EnergyMeter(accelerator.device, accelerator.is_local_main_process)
        self.losses = LossMonitor(accelerator.device, passes, restored.losses, every)
        self.clock = Clock(restored.seconds, every)
        self.skipped = Skipped(every)
        self.watches: list[Watch] = [
            self.losses,
            self.clock,
            self.skipped,
            EnergyWatch(meter, self.record.progress),
            *self.task.watches(accelerator, self.plan, self.record, self.log, restored.step),
        ]

    def __enter__(self) -> "Recorder":
        self.stop.__enter__()
        self.clock.resume()
        return self

    def __exit__(self, *reason: Any) -> None:
        self.bar.close()
        self.stop.__exit__(*reason)

    def batches(self) -> Iterator[Batch]:
        """The batches that are left, timed and counted; none where the run had already ended."""
        if self.stream is None:
            for watch in self.watches:
                self._guarded(watch, watch.finished)
            return
        batches = self.clock.batches(self.stream)
        try:
            while (batch := self._next(batches)) is not None:
                self.position = batch.position
                self.skipped.note(batch)
                yield batch
        except DataUnavailableError as error:
            raise DataUnavailableError(f"{error} {self._last_words()}") from error
        except (RuntimeError, OSError, EOFError) as error:
            killed = killed_workers()
            if not killed:
                raise
            raise LostProcessError(
                f"A data worker was ended ({killed}), most often because memory ran out: lower `num_workers` or "
                f"`shuffle_window`. {self._last_words()}"
            ) from error

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch; None after a signal that came while it was waited for, with the state in a checkpoint."""
        if self.accelerator.num_processes > 1 or self.mid_step:
            batch = next(batches)
        else:
            batch = self.stop.unless_it_comes(lambda: next(batches))
        self.stop.hold_back_dead_workers()
        if batch is None:
            end_workers()  # which may hang, and would be waited for
            self.stopped_by = self.stop.received
            self._save_if_new()
        return batch

    def where_it_stands(self) -> str:
        """What a run that ends now leaves, and how to go on: for a message."""
        # A process that waits for the others may not know yet that the checkpoint is written.
        newest = next(reversed(complete_checkpoints(self.output_dir)), self.last_checkpoint)
        if newest is None:
            return f"The run stopped after step {self.last_step[0]}, before its first checkpoint."
        return (
            f"The run stopped after step {self.last_step[0]}; its newest checkpoint is {newest}. The same command "
            "with `--resume auto` continues."
        )

    def _last_words(self) -> str:
        """Save what is trained, where no other process is needed for that, and say how to go on."""
        if self.accelerator.num_processes == 1 and not self.mid_step:
            self._save_if_new()
        return self.where_it_stands()

    def _save_if_new(self) -> None:
        """Save the state after the last step that was finished, unless there is a checkpoint of it."""
        step, self.position = self.last_step
        saved_at = None if self.last_checkpoint is None else step_of(self.last_checkpoint)
        if step > (saved_at or 0):
            self._end_of_interval()
            self._save(step, last=False)

    def _end_of_interval(self) -> None:
        """Wait for the steps that a GPU has still to do, which belong to the training, then stop the clock."""
        self.losses.check(self.last_checkpoint)
        self.clock.pause()

    def add_loss(self, output: SSLOutput, step: int) -> None:
        """Take the loss of one forward pass, which belongs to optimizer step `step`."""
        assert output.loss is not None
        self.losses.add(output.loss, step)
        self.mid_step = True

    def after_step(self, step: int, output: SSLOutput, epoch: int) -> bool:
        """Look, log and save what is due after an optimizer step.

        Args:
            step: Optimizer steps done.
            output: Of the last forward pass.
            epoch: Passes over the data so far.

        Returns:
            Whether to stop: at the last step, on a signal, or because a watch asks for it.

        Raises:
            UserError: If a loss or weight was not finite, on all processes.
        """
        self.bar.update()
        self.last_step, self.mid_step = (step, self.position), False
        self._look_at_speed(step)
        plan, last = self.plan, step == self.plan.num_steps
        due = [watch for watch in self.watches if watch.is_due(step, plan)]
        saves = last or step % self.settings.checkpoint_every == 0
        if not (due or saves or self.stop.is_due(step)):
            return False
        self._end_of_interval()
        agreed = self.stop.on_any_process(step, self.accelerator.device)
        known = plan.steps_per_epoch
        moment = Moment(step, round(step / known, 4) if known else epoch, plan, output)
        for watch in due:
            self._look(watch, moment)
        if moment.figures and self.log is not None:
            self._log_line(self.log, moment)
        # A signal that came since the agreement counts where no other process must know of it.
        self.stopped_by = self.stop.received if self.accelerator.num_processes == 1 else agreed
        stops = self.stopped_by != 0 or any(watch.stops for watch in self.watches)
        if saves or stops:
            self._save(step, last)
        self.clock.resume()
        return last or stops

    def _look(self, watch: Watch, moment: Moment) -> None:
        def look() -> None:
            moment.figures.update(watch.look(moment))

        if not watch.interruptible:
            self._guarded(watch, look, moment.step)
            return
        self.bar.set_description(watch.name)
        # The work leaves random generators and modes as they were, whatever ends it.
        alone = self.accelerator.num_processes == 1
        self._guarded(watch, (lambda: self.stop.unless_it_comes(look)) if alone else look, moment.step)

    def _guarded(self, watch: Watch, work: Callable[[], Any], step: int | None = None) -> None:
        """Let a watch work. If it fails and may fail, the log says so and the run goes on."""
        try:
            work()
        except Exception as error:
            if not watch.may_fail:
                raise
            step = self.last_step[0] if step is None else step
            kind = type(error).__name__
            logger.warning("%s failed at step %d; training goes on. %s: %s", watch.name, step, kind, error)

    def _look_at_speed(self, step: int) -> None:
        """Say after the first steps what the run needs, and give it its length if that depends on its speed."""
        if step == self.speed.first_step:
            logger.info(self.speed.memory_text())
        seconds = self.speed.seconds_per_step(step, self.clock.now)
        if seconds is None:
            return
        hours = self.settings.max_hours
        if hours is not None and not self.plan.fits_hours:
            slowest = max(gather_object([seconds]))
            left = hours * 3600 - self.clock.now()
            # All processes take the first one's clock.
            self.plan = self.plan.fitted(step, slowest, gather_object([left])[0])
            changed = {name: getattr(self.plan, name) for name in ("num_steps", "warmup_steps", "fits_hours")}
            self.record.training |= changed
            self.bar.total = self.plan.num_steps
            if self.plan.num_steps == step + 1:
                logger.info("`max_hours` %g is over: the run ends with step %d.", hours, step + 1)
            else:
                warmup = f", {self.plan.warmup_steps:,} of them warm-up" if self.plan.warmup_steps else ""
                logger.info("`max_hours` %g is enough for %s steps%s.", hours, f"{self.plan.num_steps:,}", warmup)
            self._write_record(step)
        logger.info(self.speed.time_text(step, self.plan.num_steps, seconds))

    def _log_line(self, log: MetricsLog, moment: Moment) -> None:
        figures = moment.figures
        log.append({"step": moment.step, **figures})
        self.accelerator.log(figures, step=moment.step)
        if "loss" in figures:
            self.bar.set_description(f"epoch {figures['epoch']:.2f}", refresh=False)
            self.bar.set_postfix_str(
                f"loss {figures['loss']:.4g}, {figures['images_per_second']:.0f} img/s, data wait "
                f"{figures['data_wait']:.0%}"
            )

    def _save(self, step: int, last: bool) -> None:
        check_weights(self.module, step, self.last_checkpoint)
        self.record.skipped = self.skipped.on_all()
        self.last_checkpoint = save_checkpoint(
            self.accelerator,
            self.output_dir,
            model=self.module,
            optimizer=self.optimizer,
            step=step,
            seconds=self.clock.total,
            position=self.position or {},
            identity=self.record.identity(),
            keep=self.settings.keep_checkpoints,
            record=self.record.to_json(),
            losses=self.losses.since_last_line(step),
        )
        self._write_record(step)
        for watch in self.watches if not last else ():
            self._guarded(watch, lambda watch=watch: watch.saved(step), step)

    def finish(self, step: int) -> None:
        """Write the final `run.json`, if the run is at its end."""
        if step == self.plan.num_steps:
            self.record.end()
        self._write_record(step)

    def _write_record(self, step: int) -> None:
        known = self.plan.steps_per_epoch
        told = {name: value for watch in self.watches for name, value in watch.progress().items()}
        self.record.progress = Progress(
            step=step,
            epoch=round(step / known, 4) if known else None,
            images_seen=step * self.settings.batch_size,
            **told,
        )
        if self.accelerator.is_main_process:
            self.record.write(self.output_dir)
