"""Settings of the study of dictionaries."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from hf_ssl.data.settings import PlaceSettings
from hf_ssl.data.sources.open import DataLike
from hf_ssl.errors import UserError
from hf_ssl.methods.moco import MoCoForPreTraining
from hf_ssl.settings import check_least, check_positive, checked
from hf_ssl.studies.dictionaries_runs import METHODS
from hf_ssl.studies.settings import check_drawn_from, check_recipe, chosen_names

BN_SPLITS = 4
"""Groups of BatchNorm in which MoCo shuffles its keys: few, because the batches of a study are small."""


@checked
class DictionariesSettings(PlaceSettings):
    """Which mechanisms are trained, over which axes, and what is foretold.

    Args:
        dataset: `shapes`, `digits`, a folder or file that `datasets.load_dataset` reads (images, parquet, arrow, csv,
            json, webdataset tars, zip archives), an address, or the id of a Hub data set; not with `drawn_from`.
        output_dir: Folder of the runs.
        methods: Of `end_to_end`, `end_to_end-two`, `memory_bank` and `moco`.
        momentum: Axis of `moco`: fraction of the key encoder that a step keeps, in [0, 1].
        queue_size: Axis: keys in the queue of `moco`, and entries that `memory_bank` draws for each image.
        batch_size: Axis: images of a step; multiples of 4, in which MoCo shuffles its keys.
        num_images: Axis: images of the data set, evenly spaced; all if not given.
        learning_rate: Axis: for 256 images a step.
        num_steps: Optimizer steps of each run, at least 2.
        seeds: Runs of each setting, with seeds from 0; at least 1.
        split: Split to train on.
        recipe: Recipe of `moco` whose settings the runs have, but for those given here.
        encoder: Architecture; the recipe's if not given.
        view_recipe: Augmentation; the recipe's if not given.
        temperature: Of the softmax, positive; the recipe's if not given.
        look_every: Steps between two looks at the dictionary, at least 1.
        knn_split: Labelled split that k-NN classifies; none for no k-NN.
        knn_images: Images of either split for k-NN, at least 1.
        num_workers: Worker processes that decode and augment, at least 0.
        fit_from: Folders of studies whose `moco` runs tell the drift of the queries.
        fit_steps: Steps of theirs that are looked at, at least 2.
        bound: Consistency that the oldest keys of the queue that is chosen should keep, below 1: 1 - (1 - cosine) /
            variance of the keys.
        predict_only: Write the predictions and train nothing.
        drawn_from: Results file of a study, of which table and figures are made again; nothing is read or trained.
    """

    output_dir: Path
    dataset: DataLike | None = None
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    momentum: list[float] = field(default_factory=lambda: [0.0, 0.9, 0.99, 0.999, 0.9999])
    queue_size: list[int] = field(default_factory=lambda: [1024])
    batch_size: list[int] = field(default_factory=lambda: [64])
    num_images: list[int] | None = None
    learning_rate: list[float] = field(default_factory=lambda: [0.12])
    num_steps: int = 400
    seeds: int = 1
    split: str = "train"
    recipe: str = "quickstart"
    encoder: str | None = None
    view_recipe: str | None = None
    temperature: float | None = None
    look_every: int = 50
    knn_split: str | None = "test"
    knn_images: int = 5000
    num_workers: int = 2
    fit_from: list[Path] | None = None
    fit_steps: int = 200
    bound: float = 0.9
    predict_only: bool = False
    drawn_from: Path | None = None

    @classmethod
    def check_given(cls, given: Mapping[str, Any]) -> None:
        """Refuse what is not used where results are only drawn again."""
        check_drawn_from(cls, given)

    def validate_dictionaries(self) -> None:
        """Check what can be checked without data."""
        if self.dataset is None and self.drawn_from is None:
            raise UserError("`dataset` is needed: the images to train on, such as `shapes` or `uoft-cs/cifar10`.")
        self.methods = chosen_names(self.methods, METHODS, "method")
        check_least(self, num_steps=2, seeds=1, look_every=1, knn_images=1, num_workers=0, fit_steps=2)
        check_positive(self, "temperature")
        check_recipe(self.recipe, MoCoForPreTraining.recipes, "moco")
        rules = {
            "momentum": ("in [0, 1]", lambda value: 0 <= value <= 1),
            "queue_size": ("at least 1", lambda value: value >= 1),
            "batch_size": (f"a multiple of {BN_SPLITS}", lambda value: value >= 1 and value % BN_SPLITS == 0),
            "num_images": ("at least 1", lambda value: value >= 1),
            "learning_rate": ("positive", lambda value: value > 0),
        }
        for name, (rule, holds) in rules.items():
            values = getattr(self, name)
            if values is not None and not values:
                raise UserError(f"`{name}` must have at least one value.")
            for value in values or ():
                if not holds(value):
                    raise UserError(f"`{name}` must be {rule}, got {value}.")
            if values is not None:
                setattr(self, name, list(dict.fromkeys(values)))
        if not 0 < self.bound < 1:
            raise UserError(f"`bound` must be above 0 and below 1, got {self.bound}.")
        if self.predict_only and not self.fit_from:
            raise UserError("`predict_only` needs `fit_from`, the folder of a finished study such as `runs/fit`.")
