"""What the files of the study of the curriculum hold, so that other files are refused by a sentence."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import read_json
from hf_ssl.settings import of_json
from hf_ssl.studies.predictions import Entry


@dataclass(frozen=True)
class Curves:
    """The equations of a run.

    Args:
        turns: Step at which the middle one of its directions turns.
        turning_steps: That of each direction.
        s: Along each direction, by step.
        cosine: Of predictor and correlation, by step; None where all directions have collapsed.
    """

    turns: int
    turning_steps: list[int]
    s: list[list[float]]
    cosine: list[float | None]

    @property
    def steps(self) -> int:
        """How often was measured."""
        return len(self.s)

    @property
    def directions(self) -> int:
        """Directions that are followed."""
        return len(self.turning_steps)

    def __post_init__(self) -> None:
        if len(self.cosine) != self.steps or any(len(line) != self.directions for line in self.s):
            raise UserError("`s` and `cosine` must have a number for each step, and `s` one for each direction")


@dataclass(frozen=True)
class SaidEntry(Entry):
    """What predictions.json says of a run."""

    theory: Curves


@dataclass(frozen=True)
class MeasuredRun(Curves):
    """What was measured of a run; its result.json.

    Args:
        alignment: Of the projections, by step.
        uniformity: Of the projections, by step.
    """

    alignment: list[float]
    uniformity: list[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if {len(self.alignment), len(self.uniformity)} != {self.steps}:
            raise UserError("`alignment` and `uniformity` must have a number for each step")


@dataclass(frozen=True)
class Look:
    """What was measured at one step of a run that has not ended; see `MeasuredRun`."""

    s: list[float]
    cosine: float | None
    alignment: float
    uniformity: float


def looks_in(path: Path) -> dict[int, dict[str, Any]]:
    """The looks of a run that has not ended, by step.

    Raises:
        UserError: If the file holds something else.
    """
    content = read_json(path)
    try:
        return {int(step): asdict(of_json(Look, one, f"{step}.")) for step, one in content.items()}
    except ValueError as error:
        raise UserError(
            f"`{path}` does not hold what was measured of a run: {error}. Remove the file, and the same command "
            "begins that run again."
        ) from error


@dataclass(frozen=True)
class Target:
    """Equations and run of a moving average, and the rank correlation of their turns."""

    theory: Curves
    measured: MeasuredRun
    order: float


@dataclass(frozen=True)
class CurriculumResults:
    """What curriculum.json holds."""

    steps: list[int]
    targets: dict[str, Target]
    holds: dict[str, bool]

    def __post_init__(self) -> None:
        counts = {curves.steps for one in self.targets.values() for curves in (one.theory, one.measured)}
        if counts != {len(self.steps)} or set(self.holds) - {"order", "alignment"}:
            raise UserError("`targets` must have curves of as many numbers as `steps`, and `holds` those of the study")
