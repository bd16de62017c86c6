"""Settings of the ablation study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hf_ssl.data.settings import PLACES
from hf_ssl.errors import UserError
from hf_ssl.methods.byol import BYOLForPreTraining
from hf_ssl.settings import check_least, checked
from hf_ssl.studies.ablation_grid import AXES, GRIDS
from hf_ssl.studies.settings import DrawnStudySettings, check_recipe

COMMON = ("dataset", *PLACES, "split", "knn_split")
COMMON += ("knn_images", "recipe", "view_recipe", "encoder", "num_steps", "batch_size", "learning_rate")
COMMON += ("ema_momentum", "mixed_precision")
"""Settings that change the numbers of a cell: one folder holds results of one choice of them."""


@checked
class AblationSettings(DrawnStudySettings):
    """Which cells are trained, and how.

    Args:
        output_dir: Folder of the runs.
        theory_only: Train nothing: show what theory expects and why, and write the forecasts if there is a folder.
        grid: A named grid; `core` if no axis is given.
        ema: Axis: a moving average as the target, or not.
        predictor_lr: Axis: learning rate of the predictor relative to the network's, positive.
        weight_decay: Axis: weight decay of network and predictor, at least 0.
        stop_gradient: Axis: no gradient to the target, or one.
        predictor: Axis: form of the predictor.
        symmetrize: Axis: a linear predictor that is symmetric at all times, or not.
        num_steps: Optimizer steps of each run, at least 1.
        ema_momentum: Fraction of the target that a step keeps, in [0, 1); the recipe's if not given.
        knn_split: Labelled split that k-NN classifies; none for no k-NN.
        knn_images: Images of either split for k-NN, at least 1.
        drawn_from: The ablation.json of one or more studies, of which tables, figures and the scores over all of them
            are made again; nothing is read or trained.
    """

    output_dir: Path | None = None
    theory_only: bool = False
    grid: Literal["core", "symmetry", "decay", "full"] | None = None
    ema: list[bool] | None = None
    predictor_lr: list[float] | None = None
    weight_decay: list[float] | None = None
    stop_gradient: list[bool] | None = None
    predictor: list[Literal["linear", "mlp", "none"]] | None = None
    symmetrize: list[bool] | None = None
    num_steps: int = 300
    ema_momentum: float | None = None
    knn_split: str | None = "test"
    knn_images: int = 5000
    drawn_from: list[Path] | None = None

    def validate_ablation(self) -> None:
        """Check what can be checked without data."""
        if self.output_dir is None and (self.drawn_from or not self.theory_only):
            raise UserError("`output_dir` is needed: the folder of the runs, such as `runs/ablation`.")
        if self.drawn_from is not None and not self.drawn_from:
            raise UserError("`drawn_from` must name at least one file, such as `runs/ablation/ablation.json`.")
        check_least(self, num_steps=1, knn_images=1)
        check_recipe(self.recipe, BYOLForPreTraining.recipes, "byol")
        axis = next((axis for axis in AXES if getattr(self, axis) is not None), None)
        if axis is not None and self.grid is not None:
            raise UserError(f"`grid` and `{axis}` exclude each other. Give one of them.")

    def products(self) -> list[dict[str, Sequence[Any]]]:
        """The grid, as `cells_of` takes it."""
        axes = {axis: getattr(self, axis) for axis in AXES if getattr(self, axis) is not None}
        return [axes] if axes else GRIDS[self.grid or "core"]
