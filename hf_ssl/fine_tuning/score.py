"""Scores of a classifier in training."""

from typing import Any

import torch

from hf_ssl.data.sources.open import Source
from hf_ssl.figures.metrics_log import read_metrics
from hf_ssl.fine_tuning.classifier import Classifier, Score, score
from hf_ssl.training.checkpoint import random_state, set_random_state
from hf_ssl.training.plan import Plan
from hf_ssl.training.processes import averaged_batch_norm
from hf_ssl.training.watch.base import Moment, Watch
from hf_ssl.training.watch.log import MetricsLog


class ScoreWatch(Watch):
    """Scores a classifier on labelled images every so many steps, with what BatchNorm would be at the end.

    Args:
        every: Optimizer steps between two scorings; None for the end of every epoch. The last step is always scored.
        classifier: What is trained.
        test: The images.
        options: Label column, images of a batch, and worker processes; see `score`.
        device: The device that trains.
        log: `metrics.jsonl` of the run; None but on the first process.
        step: Optimizer steps that are done.

    Attributes:
        score: The newest one; None before the first.
    """

    name = "Scoring"
    interruptible = True

    def __init__(
        self,
        every: int | None,
        classifier: Classifier,
        test: Source,
        options: tuple[str, int, int],
        device: torch.device,
        log: MetricsLog | None,
        step: int,
    ):
        super().__init__(every or 0)
        self.score: Score | None = None
        self._by_epoch = every is None
        self._classifier, self._test, self._options = classifier, test, options
        self._device, self._log, self._step = device, log, step

    def is_due(self, step: int, plan: Plan) -> bool:
        """After the last step, and every so many steps or at the end of every epoch."""
        known = plan.steps_per_epoch
        epoch_ends = known is not None and int(step / known) > int((step - 1) / known)
        return super().is_due(step, plan) or (self._by_epoch and epoch_ends)

    def look(self, moment: Moment) -> dict[str, Any]:
        """Accuracy and loss."""
        self.score = self._scored()
        return _figures_of(self.score)

    def finished(self) -> None:
        """Score again: what the result tells is more than the log has, from which a signal may have kept the last."""
        self.score = self._scored()
        if self._log is not None and not any(step == self._step for step, _ in self._logged(self._log)):
            self._log.append({"step": self._step, **_figures_of(self.score)})

    def best(self) -> tuple[int, float] | None:
        """Step and accuracy of the first of the best scorings of the whole run, from its log; None without one."""
        scored = [] if self._log is None else self._logged(self._log)
        return max(scored, key=lambda one: one[1], default=None)

    @staticmethod
    def _logged(log: MetricsLog) -> list[tuple[int, float]]:
        lines = read_metrics(log.path) if log.path.is_file() else []
        return [(line["step"], line["accuracy"]) for line in lines if "accuracy" in line]

    def _scored(self) -> Score:
        self.score = None  # a signal may cut this one short
        label, batch_size, num_workers = self._options
        before = random_state(self._device)
        try:
            with averaged_batch_norm(self._classifier.module):
                return score(self._classifier, self._test, label, batch_size, num_workers)
        finally:
            set_random_state(before, self._device)


def _figures_of(score: Score) -> dict[str, Any]:
    return {"accuracy": score.accuracy, "test_loss": round(score.loss, 6)}
