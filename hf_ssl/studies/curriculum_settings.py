"""Settings of the study of the curriculum."""

import re
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path

from hf_ssl.data.settings import PLACES
from hf_ssl.errors import UserError
from hf_ssl.methods.byol import BYOLForPreTraining
from hf_ssl.settings import check_least, checked
from hf_ssl.studies.settings import DrawnStudySettings, check_recipe

COMMON = ("dataset", *PLACES, "split", "recipe", "view_recipe", "encoder", "num_steps", "measurements", "batch_size")
COMMON += ("learning_rate", "mixed_precision", "directions")
"""Settings that change the numbers of a run: one folder holds results of one choice of them. Targets may be added."""


@checked
class CurriculumSettings(DrawnStudySettings):
    """Which moving averages are compared, and how.

    Args:
        output_dir: Folder of the runs, the numbers and the figures.
        targets: Moving averages: `none`, a momentum such as `0.99`, or `0.99-cosine`, which rises from there to 1.
        predict_only: Write what the equations say, and train nothing.
        drawn_from: A curriculum.json that is drawn again instead of training.
        seeds: Stays 1: all runs share one start.
        num_steps: Optimizer steps of each run, at least 2.
        measurements: Steps at which is measured, at least 2.
        directions: Directions that are followed, at least 2.
    """

    output_dir: Path
    targets: list[str] = field(default_factory=lambda: ["none", "0.9", "0.99", "0.9-cosine"])
    predict_only: bool = False
    drawn_from: Path | None = None
    num_steps: int = 240
    measurements: int = 24
    directions: int = 12

    def validate_curriculum(self) -> None:
        """Check what can be checked without data."""
        check_least(self, num_steps=2, measurements=2, directions=2)
        check_recipe(self.recipe, BYOLForPreTraining.recipes, "byol")
        if self.seeds != 1:
            raise UserError(f"`seeds` must be 1 in this study, whose runs share one start, got {self.seeds}.")
        if not self.targets:
            raise UserError("`targets` must name at least one moving average, such as `0.99`.")
        self.targets = same_average(self.targets)


def average_of(target: str) -> tuple[float | None, bool]:
    """Momentum of a target, None for none, and whether it rises.

    Raises:
        UserError: If the text names no moving average.
    """
    if target == "none":
        return None, False
    number = target.removesuffix("-cosine")
    if not re.fullmatch(r"[0-9]+([.][0-9]+)?|[.][0-9]+", number) or not float(number) < 1:
        raise UserError(f"`targets` must be `none`, a momentum in [0, 1), or one with `-cosine`, got `{target}`.")
    return float(number), number != target


def same_average(targets: Sequence[str]) -> list[str]:
    """Targets without those that are written twice.

    Raises:
        UserError: If two name one moving average, such as `0.9` and `0.90`.
    """
    found: dict[tuple[float | None, bool], str] = {}
    for target in targets:
        before = found.setdefault(average_of(target), target)
        if before != target:
            raise UserError(f"`targets` has one moving average twice, as `{before}` and `{target}`. Leave one out.")
    return list(found.values())
