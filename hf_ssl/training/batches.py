"""From a data set to what a method's `forward` takes, by the way that the settings name."""

import logging
from typing import Any

import torch
from torch import Tensor

from hf_ssl.data.decode.device import DeviceDecoder
from hf_ssl.data.order.cache import Cache, CachedDraws, CachedViews, fill_cache
from hf_ssl.data.order.stream import Batch, TrainingStream
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.objects import is_shuffled
from hf_ssl.data.sources.open import Source
from hf_ssl.data.views.cpu import Crops, Views
from hf_ssl.data.views.device import Normalize, send
from hf_ssl.data.views.device_colour import DeviceColour
from hf_ssl.data.views.device_crops import CropsOfEach, check_recipe
from hf_ssl.errors import UserError
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.training.arguments import TrainingSettings

logger = logging.getLogger(__name__)


def open_cache(
    model: SSLPreTrainedModel,
    source: Source,
    data: DataSettings,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Cache | None:
    """All pictures on the device under `cache` uint8, else None; arguments and errors as those of `open_stream`."""
    if data.cache != "uint8":
        return None
    check_recipe(data.find_recipe(model.view_recipe), "`cache` uint8", "`cache` to none")
    return fill_cache(
        source,
        device,
        num_workers=data.num_workers,
        world_size=world_size,
        label_column=next(iter(source.labels), None) if model.needs_labels else None,
        show_progress=rank == 0,
    )


def open_stream(
    model: SSLPreTrainedModel,
    source: Source,
    data: DataSettings,
    settings: TrainingSettings,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    position: dict[str, Any] | None = None,
    lanes: int | None = None,
    images_per_device: int | None = None,
    cache: Cache | None = None,
) -> TrainingStream:
    """Open the batches of one process.

    Args:
        model: Its config says how large views are, and the method what else a batch must bring.
        source: The images.
        data: How they become views, and where.
        settings: Batch size and seed.
        device: The device that trains.
        rank: Number of this process, in [0, world_size).
        world_size: Number of processes.
        position: `Batch.position` after which to go on; None: the beginning.
        lanes: Lanes of the run; see `choose_lanes`.
        images_per_device: Images of a batch; None: all of this process in a step.
        cache: From `open_cache`; None: it is filled here if the settings ask for it.

    Returns:
        The stream.

    Raises:
        UserError: If source, method and settings do not fit together.
    """
    if model.needs_indices and not source.has_indices:
        raise UserError(
            f"`{type(model).__name__}` needs a stable number of each image, which the stream `{source.name}` does not "
            "carry. Name a column of it with `index_column`, or give the images as a folder or as parquet files."
        )
    if rank == 0 and is_shuffled(source.records):
        logger.warning(
            "`%s` was shuffled before it was given, so a run that resumes sees other images than one that was never "
            "stopped. Leave out its `shuffle`: training shuffles by `shuffle_window`.",
            source.name,
        )
    image_size, recipe = model.config.image_size, data.find_recipe(model.view_recipe)
    options: dict[str, Any] = {"num_workers": data.num_workers}
    cache = cache or open_cache(model, source, data, device, rank, world_size)
    if cache is not None:
        source = cache.source
        views = CachedDraws(recipe, cache)
        # Who only draws does it faster without workers, and for a whole batch at once.
        options = {"pictures": views.pictures, "num_workers": 0, "chunk_size": settings.batch_size}
        options["finish"] = CachedViews(recipe, image_size, cache)
    elif data.views_on == "gpu":
        views = Crops(recipe, image_size)
        if data.decode_on == "gpu":
            check_recipe(recipe, "`decode_on` gpu", "`decode_on` to cpu")
            options["decoder"] = decoder_on(device)
            views = CropsOfEach(recipe, image_size)
        options["finish"] = DeviceColour(recipe, image_size, device)
    else:
        views = Views(recipe, image_size)
    return TrainingStream(
        source,
        views,
        settings.batch_size,
        seed=settings.seed,
        lanes=settings.lanes if lanes is None else lanes,
        images_per_device=images_per_device,
        rank=rank,
        world_size=world_size,
        window_size=data.shuffle_window,
        max_skipped_ratio=data.max_skipped_ratio,
        position=position,
        with_labels=model.needs_labels,
        **options,
    )


def decoder_on(device: torch.device) -> DeviceDecoder:
    """What decodes JPEGs on the device that trains.

    Raises:
        UserError: If that is no CUDA device, or torchvision cannot decode there.
    """
    if device.type != "cuda":
        raise UserError(
            f"`decode_on` gpu must have a CUDA device that trains, got `{device}`. Set `decode_on` to cpu, or train "
            "on a machine with a CUDA device."
        )
    return DeviceDecoder(device)


def inputs_of(batch: Batch, normalize: Normalize, device: torch.device) -> dict[str, Tensor]:
    """The arguments of `forward`, on the device; what a batch does not have is left out."""
    tensors = {"pixel_values": batch.views, "indices": batch.indices, "labels": batch.labels}
    inputs = {name: send(tensor, device) for name, tensor in tensors.items() if tensor is not None}
    return inputs | {"pixel_values": normalize(inputs["pixel_values"])}
