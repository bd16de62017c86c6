"""Draw images beside the views that a recipe makes of them.

    hf-ssl views --dataset photos --method moco --output views.png
    hf-ssl views --dataset photos --view_recipe byol --view_settings '{"crop_scale": [0.4, 1.0]}'

The sheet shows the first images of a training run with the same seed. Pair 1 is what the run makes of them in its
first epoch, on one process; the other pairs are drawn in the same way.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_ssl.commands.command import Command
from hf_ssl.commands.encoder_settings import check_output_file, check_picture_ending
from hf_ssl.commands.resolve import DEFAULT_METHOD, auto_choice
from hf_ssl.data.decode.pictures import SkippedImageError, decoded
from hf_ssl.data.order.chunks import parts_in_turns
from hf_ssl.data.order.lanes import Dealing, choose_lanes
from hf_ssl.data.order.stream import CHUNK_SIZE, turn_of
from hf_ssl.data.settings import DataSettings, ViewedDataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.data.views.cpu import Views
from hf_ssl.data.views.draws import numbers_between
from hf_ssl.errors import UserError, near_name
from hf_ssl.figures.views import view_sheet
from hf_ssl.methods import METHODS
from hf_ssl.settings import check_least, checked
from hf_ssl.training.arguments import TrainingSettings

_IMAGE_SIZE = 224  # of a method without recipes
_MOST_PICTURES = 4096  # nobody can look at a larger sheet
_MOST_PIXELS = 2**28  # of all views, which are made in memory: enough for the most pictures in the usual size


@checked
class ViewsSettings(ViewedDataSettings):
    """Which images and views are drawn, and where to.

    Args:
        split: Split whose images are shown; a folder without split folders is `train`.
        label_column: Label column whose classes stand under the images; found by its type or name if not given.
        method: Method whose views are shown, if `view_recipe` is not given.
        num_images: Images on the sheet, at least 1.
        views: Pairs of views of each image, at least 1.
        image_size: Height and width of a view, in pixels; the one that `pretrain` would choose, if not given.
        seed: Seed of order and views, as at pretraining, at least 0.
        output: Picture to write; the ending chooses its format, such as .png, .pdf or .svg.
    """

    method: str = DEFAULT_METHOD
    num_images: int = 8
    views: int = 4
    image_size: int | None = None
    seed: int = 0
    output: Path = Path("views.png")

    def validate_views(self) -> None:
        """Check what can be checked without the data."""
        check_least(self, num_images=1, views=1, image_size=1, seed=0)
        if self.num_images * (1 + 2 * self.views) > _MOST_PICTURES:
            raise UserError(
                f"`num_images` and `views` must not ask for more than {_MOST_PICTURES:,} pictures on a sheet, got "
                f"{self.num_images:,} images with {self.views:,} pairs each. Lower one of them."
            )
        if self.num_images * 2 * self.views * (self.image_size or 1) ** 2 > _MOST_PIXELS:
            raise UserError(
                f"`image_size` must leave at most {_MOST_PIXELS:,} pixels on a sheet, got {self.image_size:,} with "
                f"{self.num_images:,} images and {self.views:,} pairs each. Lower one of them."
            )
        if self.method not in METHODS:
            hint = near_name(self.method, METHODS) or f" It is one of {', '.join(METHODS)}."
            raise UserError(f"`method` must be the name of a method, got `{self.method}`.{hint}")
        check_picture_ending(self.output, "output")


@dataclass(frozen=True)
class ViewsResult:
    """The sheet that was drawn.

    Args:
        figure: The picture.
        recipe: Name of the recipe.
        image_size: Height and width of the views, in pixels.
        num_images: Images on the sheet.
        num_pairs: Pairs of views of each.
        skipped: Reason -> images that could not be used before enough were found.
    """

    figure: Path
    recipe: str
    image_size: int
    num_images: int
    num_pairs: int
    skipped: dict[str, int]

    def __str__(self) -> str:
        text = (
            f"{self.figure}: {_counted(self.num_images, 'image')} with {_counted(self.num_pairs, 'pair')} of views "
            f"of {self.image_size} x {self.image_size} pixels each, recipe {self.recipe}"
        )
        if self.skipped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
            text += f"\nleft out, since they cannot be used: {reasons}"
        return text


@dataclass
class _Shown:
    """An image, its lane and its number in the first epoch of the lane, and its class if known."""

    picture: NDArray[np.uint8]
    lane: int
    place: int
    name: str | None


def run(settings: ViewsSettings) -> ViewsResult:
    """Read the images, make their views, draw."""
    check_output_file(settings.output, "output")
    source = settings.open()
    method = METHODS[settings.method]
    chosen = auto_choice(method, source, {"dataset": settings.dataset}).values  # as `pretrain` does without a recipe
    name = settings.view_recipe or chosen.get("view_recipe", method.view_recipe)
    recipe = settings.find_recipe(name)
    skipped: dict[str, int] = {}
    shown = []
    batch_size = min(chosen.get("batch_size", TrainingSettings.batch_size), source.num_images or sys.maxsize)
    for one in _first_images(source, settings.seed, batch_size, skipped):
        shown.append(one)
        if len(shown) == settings.num_images:
            break
    if not shown:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        raise UserError(f"Split `{source.split}` of `{source.name}` holds no usable image: {reasons}.")
    image_size = settings.image_size or chosen.get("image_size", _IMAGE_SIZE)
    make, pictures, pairs = Views(recipe, image_size), [one.picture for one in shown], []
    for epoch in range(settings.views):
        numbers = [numbers_between(settings.seed, epoch, one.lane, one.place, one.place + 1) for one in shown]
        pairs.append(make(pictures, np.concatenate(numbers))[0].numpy())
    figure = view_sheet(
        pictures,
        list(np.stack(pairs, axis=1)),
        title=f"{_short_name(source)}, split {source.split}: views by {name}, {image_size} x {image_size} pixels",
        notes=_notes(recipe.source, settings.view_settings),
        names=[one.name for one in shown],
    )
    figure.savefig(settings.output)
    return ViewsResult(settings.output, name, image_size, len(shown), settings.views, skipped)


def _first_images(source: Source, seed: int, batch_size: int, skipped: dict[str, int]) -> Iterator[_Shown]:
    """The usable images of the first epoch, in the order in which one process trains on them."""
    label_column = next(iter(source.labels), None)
    class_names = next(iter(source.labels.values()), [])
    lanes = choose_lanes(batch_size, 1)
    dealing = Dealing(source, seed, lanes, batch_size // lanes, DataSettings().shuffle_window, label_column)
    turn = turn_of(dealing.share, lanes, min(CHUNK_SIZE, batch_size))
    for part in parts_in_turns(dealing, turn):
        if part.records is None:  # the end of the epoch
            return
        images, _, labels = part.records.columns
        for offset, (picture, label) in enumerate(
            zip(decoded(images.to_pylist(), source.access.timeout), labels.to_pylist(), strict=True)
        ):
            if isinstance(picture, SkippedImageError):
                skipped[picture.reason] = skipped.get(picture.reason, 0) + 1
                continue
            name = class_names[label] if label is not None and 0 <= label < len(class_names) else None
            yield _Shown(picture, part.lane, part.first + offset, name)


def _short_name(source: Source) -> str:
    """The data set without the folders above it."""
    is_path = source.name.startswith((".", "/", "~")) or Path(source.name).exists()
    return Path(source.name).expanduser().resolve().name if is_path else source.name


def _notes(recipe_source: str, view_settings: dict[str, Any] | None) -> list[str]:
    lines = [f"recipe: {recipe_source}"]
    if view_settings:
        lines.append("changed: " + "; ".join(f"{name} {_as_typed(value)}" for name, value in view_settings.items()))
    return lines


def _as_typed(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_as_typed(one)}" for name, one in value.items()) + ")"
    return " to ".join(map(str, value)) if isinstance(value, list) and len(value) == 2 else str(value)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


COMMAND = Command(
    "views",
    ViewsSettings,
    run,
    __doc__ or "",
    first=(
        "dataset",
        "method",
        "view_recipe",
        "view_settings",
        "output",
        "num_images",
        "views",
        "image_size",
        "split",
    ),
)
