"""Settings that the commands share which run a frozen encoder over a data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForPreTraining

from hf_ssl.data.sources import Source, open_source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import encoder_folder
from hf_ssl.settings import checked


@checked
class ReadingSettings:
    """Which images an encoder looks at, and where it runs.

    Args:
        dataset: `shapes`, `digits`, a folder of images, a parquet or webdataset tar file or a folder of them, or the
            id of a data set on the Hub, which is streamed.
        dataset_config: Config of a Hub data set that has several.
        dataset_revision: Branch, tag or commit of a Hub data set.
        image_column: Column of the images; found by its type or name if not given.
        label_column: Main label column; found by its type or name if not given.
        batch_size: Images in a forward pass, at least 1.
        num_workers: Processes that decode, at least 0.
        device: Where the encoder runs; `auto` is CUDA if there is a device.
        seed: Seed of everything random, such as `random:ENCODER`, at least 0.
    """

    dataset: Any
    dataset_config: str | None = None
    dataset_revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    batch_size: int = 256
    num_workers: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def check_reading(self) -> None:
        """Check what can be checked without the data; called by each command's `validate_`.

        Raises:
            UserError: If a number is too small or the device is missing.
        """
        check_least(self, batch_size=1, num_workers=0, seed=0)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("`device` cuda needs a CUDA device, but PyTorch sees none. Leave it out.")

    def open(self, split: str) -> Source:
        """Open one split of the data set."""
        return open_source(
            self.dataset,
            config=self.dataset_config,
            split=split,
            revision=self.dataset_revision,
            image_column=self.image_column,
            label_column=self.label_column,
        )

    def torch_device(self) -> str:
        """`device` with `auto` resolved."""
        return self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def titles_of(encoders: Sequence[str]) -> dict[str, str]:
    """What tables and figures call encoders: local ones by their run's name, not its path, if that names only one."""
    short = {}
    for name in encoders:
        folder = encoder_folder(name)
        resolved = folder.resolve() if folder is not None else None
        run = resolved.parent if resolved is not None and resolved.name == "encoder" else resolved
        short[name] = run.name if run is not None else name
    titles = list(short.values())
    return {name: title if titles.count(title) == 1 else name for name, title in short.items()}


def method_of(folder: Path | None, device: str = "cpu") -> nn.Module | None:
    """The method of a run, in evaluation mode, if an encoder folder belongs to a run."""
    pretraining = folder.parent / "pretraining" if folder is not None and folder.name == "encoder" else None
    if pretraining is None or not (pretraining / "config.json").is_file():
        return None
    return AutoModelForPreTraining.from_pretrained(pretraining).to(device).eval()


def check_least(settings: Any, **least: int) -> None:
    """Refuse numbers that are too small; None passes.

    Args:
        settings: A settings object.
        least: The least value of each field, by name.

    Raises:
        UserError: Names the first.
    """
    for name, smallest in least.items():
        value = getattr(settings, name)
        if value is not None and value < smallest:
            raise UserError(f"`{name}` must be at least {smallest}, got {value}.")
