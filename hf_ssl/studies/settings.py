"""Settings that all studies share."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_ssl.data.decode.unavailable import DATA_TIMEOUT
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import DataLike
from hf_ssl.errors import UserError, near_name
from hf_ssl.settings import check_least, check_positive, checked


@checked
class StudySettings:
    """What every study trains on, and what its runs have in common.

    Args:
        dataset: `shapes`, `digits`, a folder of images, a parquet or webdataset tar file or a folder of them, or the
            id of a data set on the Hub, which is streamed. From Python also an object of the library `datasets`.
        dataset_config: Config of a Hub data set that has several.
        dataset_revision: Branch, tag or commit of a Hub data set.
        split: Split to train on.
        image_column: Column of the images; found by its type or name if not given.
        label_column: Column of the classes; found by its type or name if not given.
        seeds: Runs of each kind, with seeds from 0; at least 1.
        recipe: Recipe whose settings the runs have, but for those given here.
        encoder: Architecture; the recipe's if not given.
        view_recipe: Augmentation; the recipe's if not given.
        batch_size: Images of a step; the recipe's if not given.
        learning_rate: For 256 images a step; the recipe's if not given.
        num_workers: Worker processes that decode and augment, at least 0.
        data_timeout: Seconds, at least 0, for which a file, the Hub or a connection that fails is tried again.
        allow_paths: Read whatever file or address a record names. Without it, data from the Hub or an address gives
            only what belongs to it, and data of this machine files, but no addresses.
    """

    dataset: DataLike
    dataset_config: str | None = None
    dataset_revision: str | None = None
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    seeds: int = 1
    recipe: str = "quickstart"
    encoder: str | None = None
    view_recipe: str | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    num_workers: int = 2
    data_timeout: float = DATA_TIMEOUT
    allow_paths: bool = False

    def validate_study(self) -> None:
        """Check the numbers."""
        check_least(self, seeds=1, batch_size=1, num_workers=0, data_timeout=0)
        check_positive(self, "learning_rate")

    def data_of(self, recipe: Mapping[str, Any]) -> DataSettings:
        """The data of the runs, with the views of a recipe unless others are given.

        Args:
            recipe: Settings of the recipe by name.
        """
        return DataSettings(
            dataset=self.dataset,
            dataset_config=self.dataset_config,
            dataset_revision=self.dataset_revision,
            split=self.split,
            image_column=self.image_column,
            label_column=self.label_column,
            view_recipe=self.view_recipe or recipe.get("view_recipe"),
            num_workers=self.num_workers,
            data_timeout=self.data_timeout,
            allow_paths=self.allow_paths,
        )

    def given_for(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Settings that were given, under the names that a recipe has for them.

        Args:
            names: Name in a recipe by name here.
        """
        values = {there: getattr(self, here) for here, there in names.items()}
        return {name: value for name, value in values.items() if value is not None}


def check_recipe(recipe: str, recipes: Mapping[str, Any], method: str) -> None:
    """Refuse a recipe that a method does not have.

    Raises:
        UserError: Names the nearest, or all.
    """
    if recipe not in recipes:
        hint = near_name(recipe, recipes) or f" Known: {', '.join(recipes)}."
        raise UserError(f"`{method}` has no recipe `{recipe}`.{hint}")


def chosen_names(names: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    """The names that were given, each once.

    Args:
        names: What was given.
        known: What there is.
        what: What they name, for the message.

    Raises:
        UserError: If one is unknown or none is given.
    """
    for name in names:
        if name not in known:
            hint = near_name(name, known) or f" Known: {', '.join(known)}."
            raise UserError(f"Unknown {what} `{name}`.{hint}")
    if not names:
        raise UserError(f"`{what}s` must name at least one {what}. Known: {', '.join(known)}.")
    return list(dict.fromkeys(names))
