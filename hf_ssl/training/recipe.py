"""The recipe `auto`: settings for the images and the machine at hand, from those that the papers give for others.

The papers' settings for ImageNet need a million images and several GPUs. Those for CIFAR-10 are the starting point
for everything smaller; network, size of images, batch and length follow the data and the device. The limits below are
choices, not results: each says what it is for.
"""

import io
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image

from hf_ssl.data.decode.image_bytes import SkippedImageError, bytes_of
from hf_ssl.data.sources.open import Source
from hf_ssl.methods.base import SSLPreTrainedModel

_LARGE = 100_000  # images from which the settings for ImageNet are taken, on a GPU
_SMALL_SIDE = 48  # pixels; smaller images are like those of CIFAR-10
_FEW = 20_000  # images below which a ResNet-50 is not worth its time
_SEEN_PER_CORE, _SEEN_ON_GPU = 40_000, 10_000_000  # images seen in the whole run: of the order of an hour, of hours
_EPOCHS_ON_CPU, _EPOCHS_ON_GPU = (20, 400), (100, 800)
_LARGEST_BATCH_ON_CPU = 128
_BATCHES_PER_EPOCH = 8  # at least: with fewer, statistics of a batch are those of the data set
_SAMPLE = 16


@dataclass(frozen=True)
class Choice:
    """What `auto` came to.

    Args:
        values: Settings by name, which every flag overrides.
        why: Two lines for the user: what was chosen, and why.
    """

    values: Mapping[str, Any]
    why: str


def choose_recipe(
    method: type[SSLPreTrainedModel],
    source: Source,
    given: Mapping[str, Any],
    *,
    gpu_gib: float | None,
    num_processes: int,
    embedded: bool,
    num_cores: int = 8,
) -> Choice:
    """Choose settings from the number and size of the images and the device.

    Args:
        method: Its recipes are the starting point; it need not have any.
        source: The images.
        given: What the user said; it is told apart in the explanation.
        gpu_gib: Memory of each GPU in GiB; None without a GPU.
        num_processes: Processes that train together, at least 1.
        embedded: Whether the data set is one that the package draws itself, for which `quickstart` is made.
        num_cores: Cores of the processor, at least 1; they count where there is no GPU.
    """
    side = _typical_side(source)
    number = source.num_images
    count = "an unknown number of images" if number is None else f"{number:,} images"
    device = "no GPU" if gpu_gib is None else f"a GPU with {gpu_gib:.0f} GiB"
    seen = f"{count} of about {side} px and {device}"
    if embedded and "quickstart" in method.recipes:
        values, base = dict(method.recipes["quickstart"]), "quickstart"
        reason = "the package draws these images itself, and `quickstart` is made for them"
    elif gpu_gib is not None and side > _SMALL_SIDE and (number is None or number >= _LARGE):
        values, base = dict(method.recipes.get("paper-imagenet", {})), "paper-imagenet"
        reason = "this is data of ImageNet's size on a GPU"
    else:
        base = "cifar" if "cifar" in method.recipes else "none"
        values = dict(method.recipes.get(base, {}))
        values |= _scaled_down(method, values, number, side, gpu_gib, num_processes, num_cores)
        reason = "ImageNet's settings need a hundred thousand images and GPUs; `--recipe paper-imagenet` takes them"
    values |= _shorter_warmup(values, given, number)
    shown = {**values, **{name: value for name, value in given.items() if name in values}}
    chosen = (
        f"{shown.get('architecture', 'resnet50')} at {shown.get('image_size', 224)} px, batches of "
        f"{shown.get('batch_size', 64)}, {_length(shown, given)}"
    )
    taken = f" (the rest from the recipe `{base}`)" if base != "none" else ""
    return Choice(values, f"recipe   auto, for {seen}: {chosen}{taken}\n         {reason}")


def _shorter_warmup(recipe: Mapping[str, Any], given: Mapping[str, Any], number: int | None) -> dict[str, Any]:
    """A warm-up of at most a tenth of the run, where the user gave its length."""
    warmup, epochs, steps = recipe.get("warmup_epochs"), given.get("num_epochs"), given.get("num_steps")
    if not warmup:
        return {}
    if epochs is None and steps is not None:
        if number is None:
            return {"warmup_epochs": None, "warmup_steps": steps // 10}
        epochs = steps / max(number // (given.get("batch_size") or recipe["batch_size"]), 1)
    return {} if epochs is None else {"warmup_epochs": min(warmup, epochs / 10)}


def _length(values: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    if given.get("num_steps") is not None:
        return f"{given['num_steps']:,} steps"
    if given.get("max_hours") is not None and given.get("num_epochs") is None:
        return f"{given['max_hours']:g} hours"
    return f"{values.get('num_epochs', 0):g} epochs"


def _scaled_down(
    method: type[SSLPreTrainedModel],
    recipe: Mapping[str, Any],
    number: int | None,
    side: int,
    gpu_gib: float | None,
    num_processes: int,
    num_cores: int,
) -> dict[str, Any]:
    """What the settings for CIFAR-10 become for other images and machines."""
    values: dict[str, Any] = {}
    on_gpu = gpu_gib is not None
    if side <= _SMALL_SIDE:
        values["image_size"] = recipe.get("image_size", 32)
        # Without a GPU the stem of CIFAR ResNets takes ten times as long as ImageNet's.
        values["architecture"] = recipe.get("architecture", "resnet18_cifar") if on_gpu else "resnet18"
    else:
        values["architecture"] = "resnet50" if on_gpu and number is not None and number >= _FEW else "resnet18"
        sizes = (224, 128, 96, 64) if on_gpu else (96, 64)
        values["image_size"] = next((size for size in sizes if size <= side), sizes[-1])
        values["view_recipe"] = method.view_recipe
        defaults = {field.name: field.default for field in fields(method.config_class)}  # pyright: ignore[reportArgumentType]
        values |= {name: defaults[name] for name in ("image_mean", "image_std")}
    batch = recipe.get("batch_size", 128)
    batch = batch if on_gpu else min(batch, _LARGEST_BATCH_ON_CPU)
    if number is not None:
        fitting = max(2, number // _BATCHES_PER_EPOCH)
        batch = min(batch, 2 ** (fitting.bit_length() - 1))
        batch = max(2 * num_processes, batch - batch % num_processes)  # each gets the same number, and two or more
        seen, (fewest, most) = (
            (_SEEN_ON_GPU, _EPOCHS_ON_GPU) if on_gpu else (num_cores * _SEEN_PER_CORE, _EPOCHS_ON_CPU)
        )
        values["num_epochs"] = float(min(max(round(seen / max(number, 1)), fewest), most))
        values["warmup_epochs"] = min(recipe.get("warmup_epochs") or 0, values["num_epochs"] / 10)
        values |= _smaller_queue(method, recipe, number, batch)
        splits = recipe.get("bn_splits", getattr(method.config_class, "bn_splits", 1))
        if splits > batch // 2:
            values["bn_splits"] = max(1, batch // 2)  # a group of BatchNorm needs two images
    values["batch_size"] = batch
    return values


def _smaller_queue(
    method: type[SSLPreTrainedModel], recipe: Mapping[str, Any], number: int, images_at_once: int
) -> dict[str, Any]:
    """A queue that does not hold an image's own former keys as negatives, where the data set is smaller than it."""
    defaults = {field.name: field.default for field in fields(method.config_class)}  # pyright: ignore[reportArgumentType]
    if "queue_size" not in defaults:
        return {}
    queue = recipe.get("queue_size", defaults["queue_size"])
    if queue < number:
        return {}
    queue = max(2 ** (max(number // 2, 1).bit_length() - 1), images_at_once)
    hard = recipe.get("num_hard_negatives", defaults.get("num_hard_negatives"))
    return {"queue_size": queue, **({"num_hard_negatives": min(hard, queue)} if hard is not None else {})}


def _typical_side(source: Source) -> int:
    """Median of the shorter sides of the first images that can be read, in pixels; 224 if none can."""
    sides = []
    for record in source.records.take(_SAMPLE):
        image = record[source.image_column]
        if image["bytes"] is None and not source.access.permits(image["path"] or ""):
            continue
        try:
            with Image.open(io.BytesIO(bytes_of(image))) as opened:
                sides.append(min(opened.size))
        except (SkippedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError, TypeError):
            continue  # counted as unusable when it is trained on
    return round(statistics.median(sides)) if sides else 224
