"""Settings of the study of augmentation."""

from dataclasses import field
from pathlib import Path

from hf_ssl.data.settings import PLACES
from hf_ssl.data.views.cpu import chosen_recipes
from hf_ssl.errors import UserError
from hf_ssl.methods.end_to_end import EndToEndForPreTraining
from hf_ssl.settings import check_least, checked
from hf_ssl.studies.settings import DrawnStudySettings, check_recipe, check_splits

COMMON = ("dataset", *PLACES, "split", "test_split", "recipe", "encoder", "start_from", "num_steps", "batch_size")
COMMON += ("learning_rate", "mixed_precision", "eval_images", "view_images", "num_views")
"""Settings that change the numbers of a run: one folder holds results of one choice of them. Recipes may be added."""


@checked
class AugmentationSettings(DrawnStudySettings):
    """Which recipes are compared, and how.

    Args:
        output_dir: Folder of the runs, the numbers and the figure.
        views: Recipes of augmentation, at least one.
        view_recipe: Not of this study; `views` names its recipes.
        start_from: Encoder to start from; fresh weights if not given.
        predict_only: Write the predictions, and train nothing.
        drawn_from: An augmentation.json that is drawn again instead of training.
        test_split: Split to measure on.
        num_steps: Optimizer steps of each run, at least 1.
        eval_images: Images to measure on at most, at least 4.
        view_images: Images of which views are made, at least 2.
        num_views: Views of an image, at least 2.
    """

    output_dir: Path
    views: list[str] = field(default_factory=lambda: ["moco_v2", "autoaugment", "randaugment"])
    start_from: str | None = None
    predict_only: bool = False
    drawn_from: Path | None = None
    test_split: str = "test"
    num_steps: int = 400
    eval_images: int = 5000
    view_images: int = 2000
    num_views: int = 6

    def validate_augmentation(self) -> None:
        """Check what can be checked without data."""
        check_least(self, num_steps=1, eval_images=4, view_images=2, num_views=2)
        check_recipe(self.recipe, EndToEndForPreTraining.recipes, "end_to_end")
        if self.view_recipe is not None:
            raise UserError("`view_recipe` has no place in this study. Name the recipes by `views`.")
        check_splits(self)
        self.views = chosen_recipes(self.views)
