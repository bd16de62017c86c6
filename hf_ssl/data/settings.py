"""The settings of the data set, which the command line turns into flags."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from hf_ssl.data.decode.unavailable import DATA_TIMEOUT
from hf_ssl.data.sources.open import DataLike, Source, name_of, open_source
from hf_ssl.data.views.cpu import find_recipe
from hf_ssl.data.views.recipes import ViewRecipe
from hf_ssl.errors import UserError
from hf_ssl.settings import check_least, checked


@checked
class ViewedDataSettings:
    """Which images are looked at, and what is done to them to make views.

    Args:
        dataset: `shapes` or `digits` (need no files), a folder of images, a parquet or webdataset tar file or a folder
            of them, or the id of a data set on the Hub, such as `uoft-cs/cifar10`, which is streamed. From Python also
            a `Dataset`, `DatasetDict`, `IterableDataset` or `IterableDatasetDict` of the library `datasets`.
        dataset_config: Config of a Hub data set that has several.
        dataset_revision: Branch, tag or commit of a Hub data set; its main branch if not given.
        split: Split to use; a folder without split folders is `train`.
        image_column: Column of the images; found by its type or name if not given.
        label_column: Main label column; found by its type or name if not given. Training needs none.
        view_recipe: Augmentation, such as `moco_v2`, `byol`, `simclr`, `crop_and_flip` or `randaugment`; see it by
            `hf-ssl views`. The method's own if not given.
        view_settings: JSON object of single parameters that replace the recipe's, such as
            '{"crop_scale": [0.4, 1.0], "grey_probability": 0}'; names are those of `ViewParameters` in
            `hf_ssl/data/views/recipes.py`. They hold for both views; under `first` or `second` for one of them.
        data_timeout: Seconds, at least 0, for which a file, the Hub or a connection that fails is tried again.
        allow_paths: Read whatever file or address a record names. Without it, data from the Hub or an address gives
            only what belongs to it, and data of this machine files, but no addresses.
    """

    dataset: DataLike = "shapes"
    dataset_config: str | None = None
    dataset_revision: str | None = None
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    view_recipe: str | None = None
    view_settings: dict[str, Any] | None = None
    data_timeout: float = DATA_TIMEOUT
    allow_paths: bool = False

    def validate_viewed_data(self) -> None:
        """Check the names that can be checked without the data."""
        if isinstance(self.dataset, Path):
            self.dataset = str(self.dataset)
        for name in ("dataset", "split"):
            if getattr(self, name) == "":
                raise UserError(f"`{name}` must not be empty.")
        check_least(self, data_timeout=0)
        self.find_recipe("crop_and_flip")  # what can be changed is the same in all recipes
        # Tuples and lists are one, and so are none and nothing: what a run records must compare equal on resuming.
        self.view_settings = json.loads(json.dumps(self.view_settings or None))

    def find_recipe(self, default: str) -> ViewRecipe:
        """The recipe of the views, with `view_settings`.

        Args:
            default: Name of the recipe if `view_recipe` is not given.

        Raises:
            UserError: If there is no such recipe or parameter.
        """
        return find_recipe(self.view_recipe or default, self.view_settings)

    def open(self, split: str | None = None) -> Source:
        """Open the data set.

        Args:
            split: Another split than `split`.

        Returns:
            The opened source.

        Raises:
            UserError: If it cannot be opened.
        """
        return open_source(self.dataset, split=self.split if split is None else split, **self._places())

    def _places(self) -> dict[str, Any]:
        return {
            "config": self.dataset_config,
            "revision": self.dataset_revision,
            "image_column": self.image_column,
            "label_column": self.label_column,
            "data_timeout": self.data_timeout,
            "allow_paths": self.allow_paths,
        }


@checked
class DataSettings(ViewedDataSettings):
    """Which images are trained on, and how they are read.

    Args:
        split: Split to train on; a folder without split folders is `train`.
        index_column: Column with a stable number of each image, from 0 to one less than their number, which memory
            banks need; made for local files and embedded data sets, so only streams from the Hub and tars lack one.
        views_on: `cpu`: workers make the views. `gpu`: workers decode, crop and resize, and the device that trains
            does colours and blur in batches, with the same draws; pays where a GPU waits for workers (`data_wait`).
        cache: `uint8` decodes the split once and keeps it on the device that trains, which then makes the views
            (`views_on` gpu) without workers; for data sets of one image size that fit. Each process keeps all of it.
        num_workers: Worker processes of each training process that decode and augment, at least 0. The order of
            images does not depend on it.
        shuffle_window: Number of undecoded images that are shuffled together, at least 1; they stay in memory. Raise
            it for a streamed data set that is sorted by class.
        max_skipped_ratio: Fraction of images, in [0, 1], that may be unusable before the run stops.
    """

    index_column: str | None = None
    views_on: Literal["cpu", "gpu"] = "cpu"
    cache: Literal["none", "uint8"] = "none"
    num_workers: int = 2
    shuffle_window: int = 2048
    max_skipped_ratio: float = 0.01

    def validate_data(self) -> None:
        """Check the numbers, and let a cache make its views on the device."""
        for name, least in (("num_workers", 0), ("shuffle_window", 1)):
            if getattr(self, name) < least:
                raise UserError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.max_skipped_ratio <= 1:
            raise UserError(f"`max_skipped_ratio` must be in [0, 1], got {self.max_skipped_ratio}.")
        if self.cache == "uint8":
            self.views_on = "gpu"

    def described(self) -> dict[str, Any]:
        """The settings as JSON has them: an object of `datasets` by what `name_of` calls it, with `in_memory` true."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        return values | {"dataset": name_of(self.dataset), "in_memory": not isinstance(self.dataset, str)}

    def _places(self) -> dict[str, Any]:
        return super()._places() | {"index_column": self.index_column}
