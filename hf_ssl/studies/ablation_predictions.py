"""The file of forecasts of an ablation, written before its runs, and how they came out."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import read_json
from hf_ssl.settings import of_json
from hf_ssl.studies.ablation_forecast import ALL, VARIANTS, Forecast
from hf_ssl.studies.ablation_theory import Run
from hf_ssl.training.files import write_json

FILE = "predictions.json"
CLOSE = 1.5
"""A rank is called right within this factor."""


@dataclass(frozen=True)
class _Entry:
    """What the file says of a run."""

    title: str
    seed: int
    before_run: bool
    forecasts: dict[str, Forecast]


@dataclass(frozen=True)
class _Content:
    """What the file holds."""

    settings: dict[str, Any]
    runs: list[_Entry]


class Predictions:
    """Forecasts by run, in a file that is only added to: what was predicted once stays.

    Args:
        folder: Of the study; None keeps everything in memory.
        settings: What all runs have in common, as the study's `settings.json` has it.

    Raises:
        UserError: If the file there was made for other settings.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]):
        self._path = None if folder is None else folder / FILE
        self._settings = dict(settings)
        self._entries: dict[tuple[str, int], dict[str, Any]] = {}
        if self._path is not None and self._path.exists():
            try:
                known = of_json(_Content, read_json(self._path))
            except UserError as error:
                raise UserError(
                    f"`{self._path}` does not hold the predictions of a study: {error}. Bring back a copy of it, or "
                    "give another `output_dir`."
                ) from error
            for name, value in self._settings.items():
                if known.settings.get(name) != value:
                    raise UserError(
                        f"The predictions in `{self._path}` were made for `{name}` {known.settings.get(name)}, got "
                        f"{value}. Predictions are not changed: give another `output_dir`."
                    )
            self._entries = {(entry.title, entry.seed): asdict(entry) for entry in known.runs}

    def has(self, title: str, seed: int) -> bool:
        """Whether a run has been predicted."""
        return (title, seed) in self._entries

    def add(self, title: str, seed: int, forecasts: Mapping[str, Forecast], *, before_run: bool) -> None:
        """Predict a run that has not been predicted.

        Args:
            title: Of its cell.
            seed: Its seed.
            forecasts: By the names of `VARIANTS`.
            before_run: Whether it has no result yet.
        """
        assert not self.has(title, seed)
        found = {name: asdict(one) for name, one in forecasts.items()}
        self._entries[title, seed] = {"title": title, "seed": seed, "before_run": before_run, "forecasts": found}

    def write(self) -> None:
        """Write the file."""
        if self._path is not None:
            write_json(self._path, {"settings": self._settings, "runs": list(self._entries.values())})

    def of(self, run: Run, name: str = ALL) -> Forecast | None:
        """The forecast of a run by its name; None if there is none."""
        entry = self._entries.get((run.cell.title, run.seed))
        return None if entry is None or name not in entry["forecasts"] else Forecast(**entry["forecasts"][name])

    def made_late(self, runs: Iterable[Run]) -> int:
        """How many of these runs had a result before they were predicted."""
        entries = (self._entries.get((run.cell.title, run.seed)) for run in runs)
        return sum(entry is not None and not entry["before_run"] for entry in entries)


@dataclass(frozen=True, kw_only=True)
class Score:
    """How forecasts of some runs came out.

    Args:
        called: Runs whose kind of collapse was called: none, dimensional or complete.
        num_runs: Runs that were compared.
        close: Runs whose rank was called within `CLOSE`, of those where z is more than one point.
        num_ranks: How many those are.
        ratio: Median of measured by predicted rank over them; None without.
        late: Median of the steps between predicted and measured death, over directions that both lose; None without.
    """

    called: int
    num_runs: int
    close: int
    num_ranks: int
    ratio: float | None
    late: float | None


def score(predictions: Predictions, runs: Sequence[Run], name: str = ALL) -> Score:
    """Compare the forecasts of one name with what was found.

    Args:
        predictions: Of the runs.
        runs: Finished runs.
        name: Of `VARIANTS`.
    """
    pairs = [(predictions.of(run, name), run) for run in runs]
    compared = [(one, run, run.measured) for one, run in pairs if one is not None and run.measured is not None]
    ranks = [(measured.projection_rank, one.rank) for one, run, measured in compared if run.collapse != "complete"]
    ratios = [found / expected for found, expected in ranks if expected > 0]
    late = [error for one, _, measured in compared for error in death_errors(one.deaths, measured.deaths or [])]
    return Score(
        called=sum(one.expected == run.collapse for one, run, _ in compared),
        num_runs=len(compared),
        close=sum(1 / CLOSE <= ratio <= CLOSE for ratio in ratios),
        num_ranks=len(ratios),
        ratio=statistics.median(ratios) if ratios else None,
        late=statistics.median(late) if late else None,
    )


def death_errors(predicted: Sequence[int | None], measured: Sequence[int | None]) -> list[int]:
    """Steps between predicted and measured death of each direction that both lose."""
    both = zip(predicted, measured, strict=False)
    return [abs(one - other) for one, other in both if one is not None and other is not None]


def score_table(predictions: Predictions, runs: Sequence[Run]) -> list[str]:
    """Lines of a table: the paper's theory, then the forecast with all terms, without each, and with none."""
    lines = ["| forecast | collapse called | rank of z within 1.5 | measured / forecast rank | steps beside a death |"]
    lines.append("|---|---|---|---|---|")
    found = [run for run in runs if run.measured is not None]
    paper = sum(run.theory.expected == run.collapse for run in found)
    lines.append(f"| the paper's theory | {paper} of {len(found)} | | | |")
    for name in VARIANTS:
        one = score(predictions, runs, name)
        if one.num_runs:
            ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
            late = "" if one.late is None else f"{one.late:.0f}"
            called, close = f"{one.called} of {one.num_runs}", f"{one.close} of {one.num_ranks}"
            lines.append(f"| {name} | {called} | {close} | {ratio} | {late} |")
    return lines
