"""Settings that all studies share."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hf_ssl.data.settings import OF_DATA, DataSettings, PlaceSettings
from hf_ssl.data.sources.open import DataLike
from hf_ssl.errors import UserError, near_name
from hf_ssl.settings import check_least, check_positive, checked, refuse_unused


@checked
class StudySettings(PlaceSettings):
    """What every study trains on, and what its runs have in common.

    Args:
        dataset: `shapes`, `digits`, a folder or file that `datasets.load_dataset` reads (images, parquet, arrow, csv,
            json, webdataset tars, zip archives), an address, or the id of a data set on the Hub, which is streamed.
            From Python also an object of the library `datasets`.
        split: Split to train on.
        seeds: Runs of each kind, with seeds from 0; at least 1.
        recipe: Recipe whose settings the runs have, but for those given here.
        encoder: Architecture; the recipe's if not given.
        view_recipe: Augmentation; the recipe's if not given.
        batch_size: Images of a step; the recipe's if not given.
        learning_rate: For 256 images a step; the recipe's if not given.
        mixed_precision: Precision of the forward and backward pass, as in pretraining; the recipe's if not given.
        num_workers: Worker processes that decode and augment, at least 0.
    """

    dataset: DataLike
    split: str = "train"
    seeds: int = 1
    recipe: str = "quickstart"
    encoder: str | None = None
    view_recipe: str | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] | None = None
    num_workers: int = 2

    @classmethod
    def check_given(cls, given: Mapping[str, Any]) -> None:
        """Refuse what is not used where results are only drawn again."""
        check_drawn_from(cls, given)

    def validate_study(self) -> None:
        """Check the numbers."""
        check_least(self, seeds=1, batch_size=1, num_workers=0)
        check_positive(self, "learning_rate")

    def data_of(self, recipe: Mapping[str, Any]) -> DataSettings:
        """The data of the runs, with the views of a recipe unless others are given.

        Args:
            recipe: Settings of the recipe by name.
        """
        return DataSettings(
            dataset=self.dataset,
            **{name: getattr(self, name) for name in OF_DATA},
            split=self.split,
            view_recipe=self.view_recipe or recipe.get("view_recipe"),
            num_workers=self.num_workers,
        )

    def given_for(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Settings that were given, under the names that a recipe has for them.

        Args:
            names: Name in a recipe by name here.
        """
        values = {there: getattr(self, here) for here, there in names.items()}
        return {name: value for name, value in values.items() if value is not None}


@checked
class DrawnStudySettings(StudySettings):
    """What the studies share whose results can be drawn again.

    Args:
        dataset: `shapes`, `digits`, a folder or file that `datasets.load_dataset` reads (images, parquet, arrow, csv,
            json, webdataset tars, zip archives), an address, or the id of a data set on the Hub, which is streamed.
            From Python also an object of the library `datasets`. Not needed with `drawn_from`.
        drawn_from: The file of results of a study, of which tables and figures are made again; nothing is trained.
    """

    dataset: Any = None
    drawn_from: Any = None

    def validate_images(self) -> None:
        """Ask for images unless results are drawn."""
        if self.dataset is None and self.drawn_from is None:
            raise UserError("`dataset` is needed: the images to train on, such as `uoft-cs/cifar10`.")


def check_splits(settings: Any) -> None:
    """Refuse to measure on the images that are trained on.

    Args:
        settings: A settings object with `split` and `test_split`.

    Raises:
        UserError: If both are the same split.
    """
    if settings.split == settings.test_split:
        raise UserError(
            f"`split` and `test_split` are both `{settings.split}`: measure on other images than those that are "
            "trained on."
        )


def check_recipe(recipe: str, recipes: Mapping[str, Any], method: str) -> None:
    """Refuse a recipe that a method does not have.

    Raises:
        UserError: Names the nearest, or all.
    """
    if recipe not in recipes:
        hint = near_name(recipe, recipes) or f" Known: {', '.join(recipes)}."
        raise UserError(f"`{method}` has no recipe `{recipe}`.{hint}")


def check_drawn_from(kind: type, given: Mapping[str, Any]) -> None:
    """Refuse what is not used where `drawn_from` names results that are only drawn again.

    Args:
        kind: The settings class of the study.
        given: What was given, by name.

    Raises:
        UserError: Names what would not be used.
    """
    if given.get("drawn_from") is not None:
        refuse_unused(kind, given, ("drawn_from", "output_dir"), "`drawn_from` trains nothing and draws what is there")


def chosen_names(names: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    """The names that were given.

    Args:
        names: What was given.
        known: What there is.
        what: What they name, for the message.

    Raises:
        UserError: If one is unknown or given twice, or none is given.
    """
    for name in names:
        if list(names).count(name) > 1:
            raise UserError(f"`{what}s` must name each {what} once, got `{name}` more than once.")
        if name not in known:
            hint = near_name(name, known) or f" Known: {', '.join(known)}."
            raise UserError(f"Unknown {what} `{name}`.{hint}")
    if not names:
        raise UserError(f"`{what}s` must name at least one {what}. Known: {', '.join(known)}.")
    return list(names)
