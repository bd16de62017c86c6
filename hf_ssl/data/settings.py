"""The settings of the data set, which the command line turns into flags."""

from dataclasses import dataclass
from typing import Literal

from hf_ssl.data.sources import Source, open_source


@dataclass
class DataSettings:
    """Which images are trained on, and how they are read.

    Args:
        dataset: `shapes` or `digits` (need no files), a folder of images, a parquet or webdataset tar file or a folder
            of them, or the id of a data set on the Hub, such as `uoft-cs/cifar10`, which is streamed.
        dataset_config: Config of a Hub data set that has several.
        dataset_revision: Branch, tag or commit of a Hub data set; its main branch if not given.
        split: Split to train on; a folder without split folders is `train`.
        image_column: Column of the images; found by its type or name if not given.
        label_column: Main label column; found by its type or name if not given. Training needs none.
        index_column: Column with a stable number of each image, from 0 to one less than their number, which memory
            banks need; made for local files and embedded data sets, so only streams from the Hub and tars lack one.
        view_recipe: Augmentation, a name in `hf_ssl/data/recipes.py`; the method's own if not given.
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

    dataset: str = "shapes"
    dataset_config: str | None = None
    dataset_revision: str | None = None
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    index_column: str | None = None
    view_recipe: str | None = None
    views_on: Literal["cpu", "gpu"] = "cpu"
    cache: Literal["none", "uint8"] = "none"
    num_workers: int = 2
    shuffle_window: int = 2048
    max_skipped_ratio: float = 0.01

    def __post_init__(self):
        for name, known in (("views_on", ("cpu", "gpu")), ("cache", ("none", "uint8"))):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be {' or '.join(known)}, got `{getattr(self, name)}`.")
        if self.cache == "uint8":
            self.views_on = "gpu"

    def open(self, split: str | None = None) -> Source:
        """Open the data set.

        Args:
            split: Another split than the one to train on.

        Returns:
            The opened source.

        Raises:
            ValueError: If it cannot be opened.
        """
        return open_source(
            self.dataset,
            config=self.dataset_config,
            split=self.split if split is None else split,
            revision=self.dataset_revision,
            image_column=self.image_column,
            label_column=self.label_column,
            index_column=self.index_column,
        )
