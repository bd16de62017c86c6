"""Forecasts of an ablation, which are written before its runs, and how they came out."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_ssl.errors import UserError
from hf_ssl.studies.ablation_forecast import ALL, VARIANTS, Forecast
from hf_ssl.studies.ablation_theory import Run, by_cell
from hf_ssl.studies.predictions import Entry, Predictions

CLOSE = 1.5
"""A rank is called right within this factor."""


@dataclass(frozen=True)
class ForecastEntry(Entry):
    """Forecasts of a run by the names of `VARIANTS`."""

    forecasts: dict[str, Forecast]


class Forecasts(Predictions):
    """Forecasts by run.

    Args:
        folder: Of the study; None keeps everything in memory.
        settings: What all runs have in common, as the study's `settings.json` has it.

    Raises:
        UserError: If the file there was made for other settings, or is none of this study.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]):
        super().__init__(folder, {"settings": dict(settings)}, ForecastEntry)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Forecasts":
        """Forecasts from what `record` gave."""
        made = cls(None, record["settings"])
        made.check(record, ForecastEntry)
        return made

    def forecast(self, title: str, seed: int, forecasts: Mapping[str, Forecast], *, before_run: bool) -> None:
        """Add the forecasts of a run; see `add`."""
        self.add(
            title, seed, {"forecasts": {name: asdict(one) for name, one in forecasts.items()}}, before_run=before_run
        )

    def of(self, run: Run, name: str = ALL) -> Forecast | None:
        """The forecast of a run by its name; None if there is none."""
        entry = self.said(run.cell.title, run.seed)
        return None if entry is None or name not in entry["forecasts"] else Forecast(**entry["forecasts"][name])

    def is_late(self, run: Run) -> bool:
        """Whether a run had begun before it was predicted."""
        entry = self.said(run.cell.title, run.seed)
        return entry is not None and not entry["before_run"]


@dataclass(frozen=True)
class Part:
    """The runs of one study, beside their forecasts.

    Args:
        runs: Finished runs, or with `theory_only` what would be runs.
        predictions: Their forecasts.
    """

    runs: list[Run]
    predictions: Forecasts

    @property
    def title(self) -> str:
        """What its runs were trained on."""
        return str(self.predictions.record()["settings"].get("dataset"))


def joined(parts: Iterable[Part]) -> list[Part]:
    """Studies with equal settings as one, so that the seeds of a cell come together.

    Raises:
        UserError: If a run is in two of them.
    """
    found: list[Part] = []
    for part in parts:
        settings = part.predictions.record()["settings"]
        same = [one for one in found if one.predictions.record()["settings"] == settings]
        if not same:
            found.append(Part([], Forecasts(None, settings)))
        into = (same or found)[-1]
        known = {(run.cell, run.seed) for run in into.runs}
        for run in part.runs:
            if (run.cell, run.seed) in known:
                raise UserError(
                    f"`drawn_from` names files that both have the run `{run.cell.title}` of `{part.title}` with seed "
                    f"{run.seed}. Leave one of them out."
                )
            into.runs.append(run)
            said = part.predictions.said(run.cell.title, run.seed)
            if said is not None:
                into.predictions.take(said)
    return found


@dataclass(frozen=True)
class ForecastRecord:
    """What predictions.json holds."""

    settings: dict[str, Any]
    runs: list[ForecastEntry]


@dataclass(frozen=True)
class AblationResults:
    """What ablation.json holds."""

    runs: list[Run]
    predictions: ForecastRecord

    def __post_init__(self) -> None:
        if not self.runs or any(run.measured is None for run in self.runs):
            raise UserError("`runs` must be finished runs, at least one")

    def part(self) -> Part:
        """The runs with their forecasts."""
        return Part(self.runs, Forecasts.of_record(asdict(self.predictions)))


@dataclass(frozen=True, kw_only=True)
class Score:
    """How forecasts of some runs came out.

    Args:
        called: Runs whose kind of collapse was called: none, dimensional or complete.
        num_runs: Runs that were compared.
        cells_called: Cells of which more than half of the runs were called.
        num_cells: Cells that were compared.
        close: Cells whose rank was called within `CLOSE`, mean of the runs in which z is more than one point.
        num_ranks: Cells with such runs.
        ratio: Median of measured by predicted rank over these cells; None without.
        late: Median of the steps between predicted and measured death, over directions that both lose; None without.
    """

    called: int
    num_runs: int
    cells_called: int
    num_cells: int
    close: int
    num_ranks: int
    ratio: float | None
    late: float | None


def score(parts: Sequence[Part], name: str = ALL) -> Score:
    """Compare the forecasts of one name with what was found.

    Args:
        parts: Finished runs and their forecasts; a parts with equal settings are joined before, see `joined`.
        name: Of `VARIANTS`.
    """
    right: list[list[bool]] = []
    ratios, late = [], []
    for part in parts:
        for cell in by_cell(part.runs):
            pairs = [(part.predictions.of(run, name), run) for run in cell]
            compared = [(one, run, run.measured) for one, run in pairs if one is not None and run.measured is not None]
            right += [[one.expected == run.collapse for one, run, _ in compared]] if compared else []
            ranks = [(found.projection_rank, one.rank) for one, run, found in compared if run.collapse != "complete"]
            measured, expected = (sum(values) for values in zip(*ranks, strict=True)) if ranks else (0.0, 0.0)
            ratios += [measured / expected] if expected > 0 else []
            late += [error for one, _, found in compared for error in death_errors(one.deaths, found.deaths or [])]
    return Score(
        called=sum(map(sum, right)),
        num_runs=sum(map(len, right)),
        cells_called=sum(map(most, right)),
        num_cells=len(right),
        close=sum(1 / CLOSE <= ratio <= CLOSE for ratio in ratios),
        num_ranks=len(ratios),
        ratio=statistics.median(ratios) if ratios else None,
        late=statistics.median(late) if late else None,
    )


def judged(parts: Sequence[Part]) -> tuple[list[Part], list[str]]:
    """The runs that test their forecasts: those that were predicted before they began, or all if none was.

    Args:
        parts: Runs and their forecasts.

    Returns:
        Parts of those runs, and lines about the other ones.
    """
    before = [
        Part([run for run in part.runs if not part.predictions.is_late(run)], part.predictions) for part in parts
    ]
    known, num_runs = (sum(len(part.runs) for part in group) for group in (before, parts))
    if known == num_runs:
        return list(parts), []
    begun = f"{num_runs - known} of these {num_runs} runs had begun before they were predicted"
    if not known:
        return list(parts), [f"{begun}, so they do not test the forecast."]
    return before, [f"{begun} and are not scored."]


def most(values: Sequence[bool]) -> bool:
    """Whether more than half of them are true."""
    return 2 * sum(values) > len(values)


def death_errors(predicted: Sequence[int | None], measured: Sequence[int | None]) -> list[int]:
    """Steps between predicted and measured death of each direction that both lose."""
    both = zip(predicted, measured, strict=False)
    return [abs(one - other) for one, other in both if one is not None and other is not None]


SCORES = {
    "runs called": "runs whose kind of collapse was called: none, dimensional or complete",
    "cells called": "cells of which more than half of the runs, one for each seed, were called",
    "rank of z within 1.5": "cells whose effective rank, mean over the seeds in which z is more than one point, was "
    "called within that factor",
    "measured / forecast rank": "median over these cells",
    "steps beside a death": "median over the directions that die in run and forecast",
}
"""Columns of the table of scores, and what they say."""


def score_table(parts: Sequence[Part]) -> list[str]:
    """Lines of a table: the paper's theory, then the forecast with all terms, without each, and with none."""
    lines = [f"| forecast | {' | '.join(SCORES)} |", "|---" * (1 + len(SCORES)) + "|"]
    right = [
        [run.theory.expected == run.collapse for run in cell if run.measured is not None]
        for part in parts
        for cell in by_cell(part.runs)
    ]
    right = [cell for cell in right if cell]
    called = f"{sum(map(sum, right))} of {sum(map(len, right))} | {sum(map(most, right))} of {len(right)}"
    lines.append(f"| the paper's theory | {called} | | | |")
    for name in VARIANTS:
        one = score(parts, name)
        if one.num_runs:
            ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
            late = "" if one.late is None else f"{one.late:.0f}"
            called = f"{one.called} of {one.num_runs} | {one.cells_called} of {one.num_cells}"
            lines.append(f"| {name} | {called} | {one.close} of {one.num_ranks} | {ratio} | {late} |")
    return lines
