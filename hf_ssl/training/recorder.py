"""What happens between two optimizer steps: log lines, k-NN, checkpoints, and the decision to stop."""

import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor
from tqdm.auto import tqdm

from hf_ssl.data.decode.unavailable import DataUnavailableError
from hf_ssl.data.order.loader import end_workers, killed_workers
from hf_ssl.data.order.stream import Batch, TrainingStream
from hf_ssl.errors import LostProcessError
from hf_ssl.figures.diagnostics import diagnosis_curves
from hf_ssl.figures.metrics_log import read_metrics
from hf_ssl.methods.base import SSLOutput, SSLPreTrainedModel
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.briefing import SpeedCheck
from hf_ssl.training.checkpoint import Restored, save_checkpoint
from hf_ssl.training.files import storage_errors_explained, write_json
from hf_ssl.training.find import step_of
from hf_ssl.training.plan import UNKNOWN_LENGTH, Plan
from hf_ssl.training.processes import averaged_batch_norm
from hf_ssl.training.record import MetricsLog, finish, flat_settings, identity_of
from hf_ssl.training.watch.clock import Clock
from hf_ssl.training.watch.collapse import CollapseAlarm, advice, collapse_figures
from hf_ssl.training.watch.diagnosis import diagnose, steps_between_diagnoses
from hf_ssl.training.watch.energy import EnergyMeter
from hf_ssl.training.watch.knn import KNN
from hf_ssl.training.watch.loss import LossMonitor, check_weights, mean_figures
from hf_ssl.training.watch.ranks import Ranks
from hf_ssl.training.watch.signals import StopSignal, any_process

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ENERGY = ("energy_kwh", "energy_of")  # of `progress`, where a machine tells


class Recorder:
    """Writes `run.json`, `metrics.jsonl` and checkpoints of a run; never changes what is trained.

    A context manager: while it is entered, a signal ends the run after the step in hand, with a checkpoint.

    Args:
        accelerator: The run's accelerator.
        model: The method, without wrapper.
        optimizer: The prepared optimizer.
        plan: Length and learning rate.
        settings: What to write how often.
        run: Content of `run.json`.
        restored: Where the run starts.
        checkpoint: The checkpoint that it resumes from.
        knn: Periodic evaluation.
        on_checkpoint: See `train`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: SSLPreTrainedModel,
        optimizer: Any,
        plan: Plan,
        settings: TrainingSettings,
        run: dict[str, Any],
        restored: Restored,
        checkpoint: Path | None,
        knn: KNN | None,
        on_checkpoint: Callable[[int, SSLPreTrainedModel], None] | None,
    ):
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.plan, self.settings, self.run = plan, settings, run
        self.knn, self.on_checkpoint = knn, on_checkpoint
        self.output_dir = Path(settings.output_dir)
        self.last_checkpoint = checkpoint
        self.position = restored.position
        self.last_step = (restored.step, restored.position)  # that is finished, and what it had read
        self.skipped: Counter[str] = Counter()
        self.losses = LossMonitor(accelerator.device, accelerator.gradient_accumulation_steps, restored.losses)
        self.clock = Clock(restored.seconds)
        self.energy = EnergyMeter(accelerator.device, accelerator.is_local_main_process)
        self.former_energy = {name: run["progress"][name] for name in _ENERGY if name in run["progress"]}
        self.trains = restored.step < plan.num_steps
        self.speed = SpeedCheck(restored.step, accelerator.device)
        self.stop = StopSignal(settings.grace_seconds, self._where_it_stands)
        self.ranks = Ranks(self._where_it_stands)
        self.mid_step = False  # images of a step that is not finished have been through the model
        self.stopped_by = 0
        self.collapse: str | None = None
        self.alarm = CollapseAlarm(plan.warmup_steps)
        self.former_lines: list[dict[str, Any]] = []
        self.diagnostics_every = steps_between_diagnoses(settings.diagnostics_every, plan.num_steps)
        if accelerator.is_main_process:
            self.metrics = MetricsLog(self.output_dir / "metrics.jsonl", restored.step)
            self.diagnostics = MetricsLog(self.output_dir / "diagnostics.jsonl", restored.step)
            if restored.step and self.metrics.path.exists():
                self.former_lines = read_metrics(self.metrics.path)
        if settings.report_to != "none":
            options = {"wandb": {"name": self.output_dir.name}, "trackio": {"name": self.output_dir.name}}
            accelerator.init_trackers("hf_ssl", config=flat_settings(run), init_kwargs=options)
        self._write_run(restored.step)
        self.bar = tqdm(
            total=None if plan.num_steps == UNKNOWN_LENGTH else plan.num_steps,
            initial=restored.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            disable=not accelerator.is_main_process or restored.step == plan.num_steps,
        )

    def __enter__(self) -> "Recorder":
        self.stop.__enter__()
        self.ranks.__enter__()
        self.clock.resume()
        return self

    def __exit__(self, *reason: Any) -> None:
        self.bar.close()
        try:
            self.ranks.__exit__(*reason)
        finally:
            self.stop.__exit__(*reason)

    def batches(self, stream: TrainingStream) -> Iterator[Batch]:
        """The batches of a stream, timed and counted."""
        batches = self.clock.batches(stream)
        try:
            while (batch := self._next(batches)) is not None:
                self.position, self.skipped = batch.position, Counter(batch.skipped)
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

    def _where_it_stands(self) -> str:
        if self.last_checkpoint is None:
            return f"The run stopped after step {self.last_step[0]}, before its first checkpoint."
        return (
            f"The run stopped after step {self.last_step[0]}; its newest checkpoint is {self.last_checkpoint}. The "
            "same command with `--resume auto` continues."
        )

    def _last_words(self) -> str:
        """Save what is trained, where no other process is needed for that, and say how to go on."""
        if self.accelerator.num_processes == 1 and not self.mid_step:
            self._save_if_new()
        return self._where_it_stands()

    def _save_if_new(self) -> None:
        """Save the state after the last step that was finished, unless there is a checkpoint of it."""
        step, self.position = self.last_step
        saved_at = None if self.last_checkpoint is None else step_of(self.last_checkpoint)
        if step > (saved_at or 0):
            self.clock.pause()
            self.losses.check(self.last_checkpoint)
            self._save(step, last=False)

    def add_loss(self, output: SSLOutput, step: int) -> None:
        """Take the loss of one forward pass, which belongs to optimizer step `step`."""
        assert output.loss is not None
        self.losses.add(output.loss, step)
        self.mid_step = True

    def after_step(self, step: int, output: SSLOutput, epoch: int) -> bool:
        """Log, evaluate and save what is due after an optimizer step.

        Args:
            step: Optimizer steps done.
            output: Of the last forward pass.
            epoch: Passes over the data so far.

        Returns:
            Whether to stop: at the last step, on a signal, or on a collapse if the settings say so.

        Raises:
            UserError: If a loss or weight was not finite, on all processes.
        """
        self.bar.update()
        self.last_step, self.mid_step = (step, self.position), False
        self._look_at_speed(step)
        last = step == self.plan.num_steps
        logs = last or step % self.settings.log_every == 0
        saves = last or step % self.settings.checkpoint_every == 0
        evaluates = self.knn is not None and step % self.settings.knn_every == 0
        can_collapse = output.projections is not None  # a classifier that is fine-tuned has none
        diagnoses = can_collapse and self.diagnostics_every > 0 and (last or step % self.diagnostics_every == 0)
        if not (logs or saves or evaluates or diagnoses or self.stop.is_due(step)):
            return False
        self.clock.pause()
        self.losses.check(self.last_checkpoint)
        alone = self.accelerator.num_processes == 1
        agreed = self.stop.on_any_process(step, self.accelerator.device)
        figures = self._figures(step, output, epoch) if logs else {}
        stops = self._stops_on_collapse(figures, output) if logs and can_collapse else False
        if evaluates and self.knn is not None:
            figures |= self._watched(step, "k-NN", self._measure)
        if diagnoses:
            figures |= self._watched(step, "The diagnosis", lambda: self._diagnose(step, output))
        if figures and self.accelerator.is_main_process:
            self._log(step, figures)
        if diagnoses:
            self._show(step)
        # A signal that came since the agreement counts where no other process must know of it.
        self.stopped_by = self.stop.received if alone else agreed
        if saves or self.stopped_by or stops:
            self._save(step, last)
        self.clock.resume()
        return last or self.stopped_by != 0 or stops

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
            self.run["training"] |= changed
            self.diagnostics_every = steps_between_diagnoses(self.settings.diagnostics_every, self.plan.num_steps)
            self.bar.total = self.plan.num_steps
            if self.plan.num_steps == step + 1:
                logger.info("`max_hours` %g is over: the run ends with step %d.", hours, step + 1)
            else:
                warmup = f", {self.plan.warmup_steps:,} of them warm-up" if self.plan.warmup_steps else ""
                logger.info("`max_hours` %g is enough for %s steps%s.", hours, f"{self.plan.num_steps:,}", warmup)
            self._write_run(step)
        logger.info(self.speed.time_text(step, self.plan.num_steps, seconds))

    def interruptible(self, work: Callable[[], T]) -> T | None:
        """Do what only watches the run; a signal ends it, with None, where no other process takes part in it.

        The work must leave random generators and modes as they were, whatever ends it.
        """
        return work() if self.accelerator.num_processes > 1 else self.stop.unless_it_comes(work)

    def _watched(self, step: int, what: str, look: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Figures of something that only watches the run: where it fails, a line in the log."""
        try:
            found = look()
            return {"step": step, **found} if found else {}
        except Exception as error:  # whatever it is, it is no reason to lose a run
            logger.warning("%s failed at step %d; training goes on. %s: %s", what, step, type(error).__name__, error)
            return {}

    def _measure(self) -> dict[str, float]:
        assert self.knn is not None
        knn = self.knn
        measured = self.interruptible(lambda: knn(self.model))
        return {} if measured is None else {"knn": round(measured.value, 6)}

    def _figures(self, step: int, output: SSLOutput, epoch: int) -> dict[str, Any]:
        """One log line; all processes take part in the means."""
        means: dict[str, Tensor] = {"loss": self.losses.mean(), **(output.metrics or {})}
        if output.projections is not None:
            means |= collapse_figures(output)
        known = self.plan.steps_per_epoch
        figures = {
            "step": step,
            "epoch": round(step / known, 4) if known else epoch,
            "lr": self.plan.learning_rate * self.plan.factor(step - 1),
            **mean_figures(means),
            **self.clock.read(self.accelerator.num_processes),
        }
        skipped = self._skipped_on_all()
        return {**figures, **({"skipped": sum(skipped.values())} if skipped else {})}

    def _stops_on_collapse(self, figures: dict[str, Any], output: SSLOutput) -> bool:
        """Give the line to the alarm, which reports a collapse once; whether that ends the run, on all processes."""
        assert output.projections is not None
        root = math.sqrt(output.projections.shape[-1])
        if self.accelerator.is_main_process:
            # A resumed run remembers what it was, and what it has already reported.
            for line in self.former_lines:
                if "feature_std" in line and "effective_rank" in line:
                    self.alarm.add(line["step"], root * line["feature_std"], line["effective_rank"])
            self.former_lines = []
            collapse = self.alarm.add(figures["step"], root * figures["feature_std"], figures["effective_rank"])
            if collapse is not None:
                self.collapse = advice(collapse, self.run)
                self.run["collapse"] = {"kind": collapse.kind, "step": collapse.step, "report": self.collapse}
                logger.warning(self.collapse)
        stops = self.settings.on_collapse == "stop" and self.collapse is not None
        return any_process(stops, self.accelerator.device)

    def _diagnose(self, step: int, output: SSLOutput) -> dict[str, float]:
        found = diagnose(self.model, output, self.settings.predictor_lr_multiplier or 1.0)
        if self.accelerator.is_main_process:
            self.diagnostics.append(found.line(step))
        return {name: float(f"{value:.6g}") for name, value in found.figures.items()}

    def _show(self, step: int) -> None:
        """The diagnoses so far as a picture, for trackers that take pictures."""
        trackers = [tracker for tracker in self.accelerator.trackers if hasattr(tracker, "log_images")]
        figure = diagnosis_curves(self.diagnostics.path) if trackers and self.accelerator.is_main_process else None
        if figure is not None:
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            picture = np.asarray(canvas.buffer_rgba())[..., :3]
            for tracker in trackers:
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"diagnostics": picture[None]}, step=step, **options)

    def _log(self, step: int, figures: dict[str, Any]) -> None:
        self.metrics.append(figures)
        self.accelerator.log({name: value for name, value in figures.items() if name != "step"}, step=step)
        if "loss" in figures:
            self.bar.set_description(f"epoch {figures['epoch']:.2f}", refresh=False)
            self.bar.set_postfix_str(
                f"loss {figures['loss']:.4g}, {figures['images_per_second']:.0f} img/s, data wait "
                f"{figures['data_wait']:.0%}"
            )

    def _save(self, step: int, last: bool) -> None:
        check_weights(self.model, step, self.last_checkpoint)
        self.run["skipped"] = dict(self._skipped_on_all())
        self.last_checkpoint = save_checkpoint(
            self.accelerator,
            self.output_dir,
            model=self.model,
            optimizer=self.optimizer,
            step=step,
            seconds=self.clock.total,
            position=self.position or {},
            identity=identity_of(self.run),
            keep=self.settings.keep_checkpoints,
            record=self.run,
            losses=self.losses.since_last_line(step),
        )
        self._write_run(step)
        if self.on_checkpoint is not None and not last:
            with averaged_batch_norm(self.model):
                if self.accelerator.is_main_process:
                    self.on_checkpoint(step, self.model)
                self.accelerator.wait_for_everyone()

    def finish(self, step: int) -> None:
        """Write the final `run.json`, if the run is at its end."""
        if step == self.plan.num_steps and self.run["finished"] is None:
            finish(self.run)
        self._write_run(step)

    def _write_run(self, step: int) -> None:
        known = self.plan.steps_per_epoch
        self.run["progress"] = {
            "step": step,
            "epoch": round(step / known, 4) if known else None,
            "images_seen": step * self.settings.batch_size,
            "seconds": round(self.clock.total, 2),
            **self._energy_on_all(),
        }
        if self.accelerator.is_main_process:
            with storage_errors_explained(self.output_dir / "run.json"):
                write_json(self.output_dir / "run.json", self.run)

    def _energy_on_all(self) -> dict[str, Any]:
        """Energy of all processes, those before a resume included; empty where no machine tells."""
        if not self.trains:  # the run had finished, perhaps on another machine
            return self.former_energy
        readings = gather_object([(self.energy.kwh(), self.energy.parts)])
        measured = [kwh for kwh, _ in readings if kwh is not None]
        if not measured:
            return {}
        parts = sorted({part for _, parts in readings for part in parts})
        total = self.former_energy.get("energy_kwh", 0.0) + sum(measured)
        return dict(zip(_ENERGY, (round(total, 6), parts), strict=True))

    def _skipped_on_all(self) -> Counter[str]:
        """Images skipped so far by reason, on all processes."""
        return sum((Counter(part) for part in gather_object([dict(self.skipped)])), Counter())
