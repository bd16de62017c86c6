"""The settings of the data set, which the command line turns into flags."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any, Literal

from hf_ssl.data.decode.unavailable import DATA_TIMEOUT
from hf_ssl.data.sources.open import DataLike, Source, name_of, open_source, read_data_files
from hf_ssl.data.views.cpu import find_recipe
from hf_ssl.data.views.recipes import ViewRecipe
from hf_ssl.errors import UserError
from hf_ssl.settings import check_least, checked


@checked
class PlaceSettings:
    """Which files and columns of a data set are read; without them all is found as `datasets.load_dataset` does.

    Args:
        dataset_config: Config of a data set that has several, on the Hub or in the README.md of a folder.
        dataset_revision: Branch, tag or commit of a Hub data set; its main branch if not given.
        data_dir: Folder in the data set that holds the images.
        data_files: Files of the data set: a pattern relative to it, such as `photos/**`, or a JSON object of splits
            with patterns, such as '{"train": "photos/**", "test": ["a.png", "b/*.png"]}'.
        drop_labels: For a folder of images: `true`: its folders are no classes; `false`: they always are. Without it
            they are classes if there are two or more and all images lie equally deep.
        image_column: Column of the images; found by its type or name if not given.
        label_column: Main label column; found by its type or name if not given. Training needs none.
        data_timeout: Seconds, at least 0, for which a file, the Hub or a connection that fails is tried again.
        allow_paths: Read whatever file or address a record names. Without it, data from the Hub or an address gives
            only what belongs to it, and data of this machine files, but no addresses.
    """

    dataset_config: str | None = None
    dataset_revision: str | None = None
    data_dir: str | None = None
    data_files: str | list[str] | dict[str, Any] | None = None
    drop_labels: bool | None = None
    image_column: str | None = None
    label_column: str | None = None
    data_timeout: float = DATA_TIMEOUT
    allow_paths: bool = False

    def validate_place(self) -> None:
        """Read `data_files`: JSON becomes its value, and what a run records must compare equal on resuming."""
        self.data_files = read_data_files(self.data_files)
        check_least(self, data_timeout=0)

    def place_flags(self) -> list[str]:
        """The same choice on a command line, for a shell."""
        given = {name: getattr(self, name) for name in PLACES if getattr(self, name) is not None}
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
        return [f"--{name} {shlex.quote(text)}" for name, text in texts.items()]

    def places(self) -> dict[str, Any]:
        """Arguments of `open_source`."""
        return {
            "config": self.dataset_config,
            "revision": self.dataset_revision,
            "data_dir": self.data_dir,
            "data_files": self.data_files,
            "drop_labels": self.drop_labels,
            "image_column": self.image_column,
            "label_column": self.label_column,
            "data_timeout": self.data_timeout,
            "allow_paths": self.allow_paths,
        }


OF_DATA = tuple(field.name for field in dataclasses.fields(PlaceSettings))  # pyright: ignore[reportArgumentType]
"""Names of these settings."""

PLACES = tuple(name for name in OF_DATA if name not in ("data_timeout", "allow_paths"))
"""Those that decide what the images are."""


@checked
class ViewedDataSettings(PlaceSettings):
    """Which images are looked at, and what is done to them to make views.

    Args:
        dataset: `shapes` or `digits` (need no files), a folder or file that `datasets.load_dataset` reads (images,
            parquet, arrow, csv, json, webdataset tars, zip archives), an address (`hf://`, `https://`, `s3://`), or
            the id of a data set on the Hub, such as `uoft-cs/cifar10`, which is streamed. From Python also a
            `Dataset`, `DatasetDict`, `IterableDataset` or `IterableDatasetDict` of the library `datasets`.
        split: Split to use; a folder without names of splits is `train`.
        view_recipe: Augmentation, such as `moco_v2`, `byol`, `simclr`, `crop_and_flip` or `randaugment`; see it by
            `hf-ssl views`. The method's own if not given.
        view_settings: JSON object of single parameters that replace the recipe's, such as
            '{"crop_scale": [0.4, 1.0], "grey_probability": 0}'; names are those of `ViewParameters` in
            `hf_ssl/data/views/recipes.py`. They hold for both views; under `first` or `second` for one of them.
    """

    dataset: DataLike = "shapes"
    split: str = "train"
    view_recipe: str | None = None
    view_settings: dict[str, Any] | None = None

    def validate_viewed_data(self) -> None:
        """Check the names that can be checked without the data."""
        if isinstance(self.dataset, Path):
            self.dataset = str(self.dataset)
        for name in ("dataset", "split"):
            if getattr(self, name) == "":
                raise UserError(f"`{name}` must not be empty.")
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
        return open_source(self.dataset, split=self.split if split is None else split, **self.places())


@checked
class DataSettings(ViewedDataSettings):
    """Which images are trained on, and how they are read.

    Args:
        split: Split to train on; a folder without names of splits is `train`.
        index_column: Column with a stable number of each image, from 0 to one less than their number, which memory
            banks need; made for local files and embedded data sets, so only streams from the Hub and tars lack one.
        views_on: `cpu`: workers make the views. `gpu`: workers decode, crop and resize, and the device that trains
            does colours and blur in batches, with the same draws; pays where a GPU waits for workers (`data_wait`).
        decode_on: `cpu`: workers decode. `gpu`: workers only read files, and the CUDA device that trains decodes JPEGs
            and makes the views (`views_on` gpu), with the same draws and nearly the same pixels; workers decode other
            formats. Pays for JPEGs where a GPU waits for workers (`data_wait`).
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
    decode_on: Literal["cpu", "gpu"] = "cpu"
    cache: Literal["none", "uint8"] = "none"
    num_workers: int = 2
    shuffle_window: int = 2048
    max_skipped_ratio: float = 0.01

    def validate_data(self) -> None:
        """Check the numbers, and make the views on the device where the pictures are there."""
        for name, least in (("num_workers", 0), ("shuffle_window", 1)):
            if getattr(self, name) < least:
                raise UserError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.max_skipped_ratio <= 1:
            raise UserError(f"`max_skipped_ratio` must be in [0, 1], got {self.max_skipped_ratio}.")
        if self.cache == "uint8" and self.decode_on == "gpu":
            raise UserError(
                "`cache` uint8 is decoded once, by workers, but `decode_on` is gpu. Leave out one of them."
            )
        if self.decode_on == "gpu" or self.cache == "uint8":
            self.views_on = "gpu"

    def described(self) -> dict[str, Any]:
        """The settings as JSON has them: an object of `datasets` by what `name_of` calls it, with `in_memory` true."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        return values | {"dataset": name_of(self.dataset), "in_memory": not isinstance(self.dataset, str)}

    def places(self) -> dict[str, Any]:
        """Arguments of `open_source`."""
        return super().places() | {"index_column": self.index_column}
