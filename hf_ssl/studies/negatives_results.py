"""What the file of results of the study of negatives holds, so that other files are refused by a sentence."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_ssl.errors import UserError
from hf_ssl.figures.metrics_log import curve_of, read_metrics
from hf_ssl.studies.negatives_measures import FRESH, METHODS, Run

_LOGGED = ("false_negative_share", "contrast_accuracy")  # beginnings of the names


@dataclass(frozen=True, kw_only=True)
class LoggedRun(Run):
    """A run as negatives.json has it.

    Args:
        log: What its log says at each `step`, by name; empty if it is not contrastive.
    """

    log: dict[str, list[float | None]]

    def __post_init__(self) -> None:
        if self.log and {len(values) for values in self.log.values()} != {len(self.log.get("step", ()))}:
            raise UserError(f"`log` of `{self.method}`, seed {self.seed}, must have a number for each `step`")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log, line by line."""
        lines = [dict(zip(self.log, values, strict=True)) for values in zip(*self.log.values(), strict=True)]
        return [{**line, "step": int(line["step"] or 0)} for line in lines]


@dataclass(frozen=True, kw_only=True)
class NegativesResults:
    """What negatives.json holds.

    Args:
        settings: What all runs have in common.
        chance: From `share_of_own_class`.
        queue_size: Keys in the queue.
        runs: Finished runs.
    """

    settings: dict[str, Any]
    chance: float
    queue_size: int
    runs: list[LoggedRun]

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("`runs` is empty")
        for run in self.runs:
            if run.method not in (FRESH, *METHODS):
                raise UserError(f"`runs` has a method `{run.method:.40}`, which the study does not know")


def read_log(metrics_path: Path) -> dict[str, list[float | None]]:
    """What the log of a contrastive run says of its negatives, by name, at each `step`.

    Args:
        metrics_path: Its `metrics.jsonl`.
    """
    lines = read_metrics(metrics_path)
    names = [name for name in lines[-1] if name.startswith((*_LOGGED, "match_probability_rank_"))] if lines else []
    steps = sorted({int(line["step"]) for line in lines})
    curves = {name: dict(zip(*curve_of(lines, name), strict=True)) for name in names}
    found = {name: [_short(curve.get(step)) for step in steps] for name, curve in curves.items()}
    return {"step": [*steps], **found}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
