"""The collapse alarm: recognises from two figures of each log line that a run has collapsed, and says what cures it.

Complete collapse gives every image nearly the same projection; dimensional collapse leaves the representation a few
directions. Both are judged against the run's own course, because healthy figures differ between methods: those
without negatives lose most of their rank in the first steps and win it back later.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hf_ssl.diagnostics import effective_rank, feature_std
from hf_ssl.distributed import gather, rank
from hf_ssl.methods.base import SSLOutput
from hf_ssl.training.record import RunRecord
from hf_ssl.training.watch.base import Moment, Watch
from hf_ssl.training.watch.signals import any_process

logger = logging.getLogger(__name__)

# Quickstart runs that learn stay above 0.2, with a linear predictor above 0.08: there all projections share a large
# mean. A BYOL without predictor falls to 0.03.
LEAST_SPREAD = 0.06
"""Complete collapse is a spread below; 1 is even over the sphere."""
# Healthy representations stay above 4, a SimSiam without stop-gradient falls to 1.3.
LEAST_RANK = 2.0
"""Dimensional collapse is an effective rank below this, ..."""
# Healthy representations keep 0.3 of the run's best, also in the dip at their start.
LEAST_RANK_RATIO = 0.15
"""... or below this fraction of what it was."""

_ROWS_FOR_RANK = 1024  # the spectrum of more rows costs seconds and says the same
_LINES = 4  # log lines that must agree: a dip is no collapse
_SETTLING_STEPS = 100  # after the warm-up: where a network starts says nothing
_RISE = 1.1  # over the lines that must agree: figures that rise are those of a start


def least_rank(best: float) -> float:
    """The rank below which a collapse is dimensional, where `best` is what it was."""
    return max(LEAST_RANK, LEAST_RANK_RATIO * best)


def collapse_figures(output: SSLOutput) -> dict[str, Tensor]:
    """Spread of the projections and effective rank of the representations of one batch of all processes.

    Takes the first view of each image. All processes must call it.
    """
    assert output.projections is not None and output.representations is not None
    projections = gather(output.projections[:, 0].contiguous())
    representations = gather(output.representations[:, 0].contiguous())[:_ROWS_FOR_RANK]
    return {"feature_std": feature_std(projections), "effective_rank": effective_rank(representations)}


@dataclass(frozen=True)
class Collapse:
    """What the alarm saw.

    Args:
        kind: `complete` or `dimensional`.
        step: Optimizer step of the log line that made it certain.
        seen: The evidence, a clause.
        thresholds: By which it was judged: `lines` of the log that had to agree, and `spread`, or `effective_rank`
            with the run's `best_rank`, of which it follows.
    """

    kind: str
    step: int
    seen: str
    thresholds: dict[str, float]


class CollapseAlarm:
    """Follows the log lines of a run and reports the first collapse, once.

    Args:
        warmup_steps: Steps of the warm-up. At a learning rate near zero a network stays what chance made it, so no
            collapse is reported until 100 steps later.
    """

    def __init__(self, warmup_steps: int = 0):
        self._first_step = warmup_steps + _SETTLING_STEPS
        self._spreads: list[float] = []
        self._ranks: list[float] = []
        self._rung = False

    def add(self, step: int, spread: float, rank: float) -> Collapse | None:
        """Take one log line.

        Args:
            step: Its optimizer step.
            spread: Standard deviation of the normalised projections times the root of their dimension, in [0, 1].
            rank: Effective rank of the representations.

        Returns:
            The collapse, with the first line that shows it; None for every other line.
        """
        if self._rung:
            return None
        self._spreads.append(spread)
        self._ranks.append(rank)
        if step < self._first_step:
            return None
        collapse = self._complete(step) or self._dimensional(step)
        self._rung = collapse is not None
        return collapse

    def _complete(self, step: int) -> Collapse | None:
        if not _stays_below(self._spreads, LEAST_SPREAD):
            return None
        spread = self._spreads[-1]
        return Collapse(
            "complete",
            step,
            f"all images get nearly the same projection (their spread is {spread:.2f}, where 1 is even over the "
            "sphere and 0 a single point)",
            {"lines": _LINES, "spread": LEAST_SPREAD},
        )

    def _dimensional(self, step: int) -> Collapse | None:
        best = max(self._ranks)
        if not _stays_below(self._ranks, least_rank(best)) or best < 2 * self._ranks[-1]:
            return None
        return Collapse(
            "dimensional",
            step,
            f"the representations have shrunk to about {self._ranks[-1]:.1f} dimensions (their effective rank was "
            f"{best:.1f} in this run)",
            {"lines": _LINES, "effective_rank": least_rank(best), "best_rank": best},
        )


class CollapseWatch(Watch):
    """Spread and rank for each line of the log, and the alarm that follows them.

    A run that resumes remembers the lines before, and what was reported of them.

    Args:
        every: Optimizer steps between two log lines.
        warmup_steps: See `CollapseAlarm`.
        on_collapse: See `TrainingSettings`.
        record: Of the run; takes the report.
        former: Lines of the log before a resume.
    """

    name = "The collapse alarm"

    def __init__(
        self,
        every: int,
        warmup_steps: int,
        on_collapse: Literal["warn", "stop"],
        record: RunRecord,
        former: Iterable[Mapping[str, Any]],
    ):
        super().__init__(every)
        self._alarm, self._record = CollapseAlarm(warmup_steps), record
        self._ends_run = on_collapse == "stop"
        self._former = [line for line in former if "feature_std" in line and "effective_rank" in line]

    def look(self, moment: Moment) -> dict[str, Any]:
        """The two figures; nothing for a method that shows no projections. May report a collapse."""
        projections = moment.output.projections
        if projections is None:
            return {}
        tensors = collapse_figures(moment.output)
        values = torch.stack([value.float() for value in tensors.values()]).tolist()
        figures = dict(zip(tensors, values, strict=True))
        found = None
        try:
            if rank() == 0:
                found = self._ring({"step": moment.step, **figures}, projections.shape[-1])
            if found is not None:
                report = advice(found, self._record)
                told = {"kind": found.kind, "step": found.step, "thresholds": found.thresholds}
                self._record.collapse = {**told, "report": report}
                logger.warning(report)
        finally:  # the others wait for the answer, whatever happens here
            if self._ends_run:
                self.stops = any_process(found is not None, projections.device)
        return figures

    def _ring(self, line: Mapping[str, Any], projection_dim: int) -> Collapse | None:
        """Give the alarm a line, after those before a resume, of which it reports nothing again."""
        root, found = math.sqrt(projection_dim), None
        for one in (*self._former, line):
            found = self._alarm.add(one["step"], root * one["feature_std"], one["effective_rank"])
        self._former = []
        return found if self._record.collapse is None else None  # that of a former part of the run stays


def _stays_below(values: list[float], limit: float) -> bool:
    last = values[-_LINES:]
    return len(last) == _LINES and max(last) < limit and last[-1] <= _RISE * last[0]  # both may be zero


def advice(collapse: Collapse, run: RunRecord) -> str:
    """What happened and what usually cures it, in plain words and with this run's values.

    Args:
        collapse: What the alarm saw.
        run: The record of the run.
    """
    cures = "; ".join(_cures(collapse.kind, run.config, run.training, run.data))
    return (
        f"{collapse.kind.capitalize()} collapse at step {collapse.step}: {collapse.seen}. "
        f"What usually cures it, with this run's values: {cures}."
    )


def _cures(kind: str, config: Mapping[str, Any], training: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    cures = []
    if config.get("predictor") == "none":
        cures.append("a predictor (`--predictor mlp`, now none)")
    if config.get("stop_gradient") is False:
        cures.append("the stop-gradient (`--stop_gradient true`, now false)")
    if config.get("projector_output_norm") is False:
        cures.append("BatchNorm at the projector's output (`--projector_output_norm true`, now false)")
    if config.get("symmetrize") and not config.get("use_ema"):
        cures.append("a predictor that is free to be asymmetric (`--symmetrize false`, now true)")
    learns_predictor = config.get("predictor", "mlp") != "none" and any(
        name in config for name in ("predictor", "predictor_layers")
    )
    if learns_predictor:
        decay = training["predictor_weight_decay"]
        decay = training["weight_decay"] if decay is None else decay
        cures.append(f"another weight decay of the predictor (`--predictor_weight_decay`, now {decay:g})")
        multiplier = training["predictor_lr_multiplier"]
        cures.append(f"a faster predictor (`--predictor_lr_multiplier 10`, now {multiplier:g})")
    if config.get("use_ema") is False:
        cures.append("a moving average as the target (`--use_ema true`, now false)")
    elif "ema_momentum" in config:
        cures.append(f"a slower target (`--ema_momentum` closer to 1, now {config['ema_momentum']:g})")
    cures.append(f"a lower learning rate (`--base_learning_rate`, now {training['base_learning_rate']:g})")
    cures.append(f"larger batches (`--batch_size`, now {training['batch_size']} images a step)")
    if kind == "dimensional":
        cures.append(f"weaker augmentation (`--view_recipe`, now {data['view_recipe']})")
    return cures
