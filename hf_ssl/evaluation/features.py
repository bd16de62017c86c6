"""The features that a frozen encoder computes for a data set, as images are or augmented."""

import logging
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_ssl.data.order.ordered import batches_of_ranges, evaluation_batches
from hf_ssl.data.sources.open import Source
from hf_ssl.distributed import gather_rows, rank, world_size
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import Encoder, encoder_folder, encoder_of, load_encoder
from hf_ssl.evaluation.finite import check_finite
from hf_ssl.evaluation.random_crops import RandomCrops
from hf_ssl.modules.evaluation_mode import evaluation_mode

__all__ = [
    "Encoder",
    "Features",
    "RowFeatures",
    "encoder_folder",
    "encoder_of",
    "extract_augmented_features",
    "extract_features",
    "features_of_ranges",
    "load_encoder",
]

_Batch = TypeVar("_Batch")

_logger = logging.getLogger(__name__)
# Half the memory. On 5,000 images of CIFAR-10 it moves MoCo's probe by up to 0.3 % of the test images, which is what
# changing the last bits of float32 does at a rate of 30, and BYOL's by up to 0.01 %.
_AUGMENTED_DTYPE = torch.float16


@dataclass
class Features:
    """Features of a split, in the order of its rows.

    Args:
        features: (images, dim), float32, on the CPU.
        labels: Every label column, (images,), int64; negative where a label is unknown.
        row_ids: Row of each image in the split, (images,), int64, ascending; unreadable images are left out.
    """

    features: Tensor
    labels: dict[str, Tensor]
    row_ids: Tensor


@dataclass
class RowFeatures:
    """Features of consecutive rows of a split.

    Args:
        first: The first row.
        num_rows: Number of rows, usable or not.
        skipped: Images that cannot be used, by reason.
        features: Features of the others.
        paths: File or address of each of the others as its record names it; None where it names none.
    """

    first: int
    num_rows: int
    skipped: Counter[str]
    features: Features
    paths: list[str | None] = field(default_factory=list)


def _num_images(source: Source, max_images: int | None) -> int | None:
    """Images to read, usable or not; None if unknown."""
    return min((number for number in (source.num_images, max_images) if number is not None), default=None)


def _progress_bar(source: Source, max_images: int | None, description: str | None, num_passes: int = 1) -> tqdm:
    """A bar of the images of this process in all passes; hidden without a description."""
    num_images = _num_images(source, max_images)
    total = num_passes * -(-num_images // world_size()) if num_images is not None else None
    return tqdm(total=total, desc=description, unit="img", disable=description is None or rank() != 0)


def _batches(
    encoder: Encoder,
    source: Source,
    batch_size: int,
    num_workers: int,
    max_images: int | None,
    bf16: bool,
    bar: tqdm,
    crops: RandomCrops | None = None,
) -> Iterator[Features]:
    """Features of this process's share of a source, batch by batch: of whole images, or of random crops of them."""
    batches = evaluation_batches(
        source,
        crops or encoder.transform,
        batch_size,
        with_rows=crops is not None,
        rank=rank(),
        world_size=world_size(),
        num_workers=num_workers,
        max_images=max_images,
    )
    num_images = 0
    for batch, features in _computed(encoder, ((batch, batch.pixel_values) for batch in batches), bf16):
        num_images += len(features)
        bar.update(len(features))
        yield Features(features, batch.labels, batch.row_ids)
    if batches.skipped:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in batches.skipped.most_common())
        reasons += f"; such as {', '.join(batches.named)}" if batches.named else ""
        if num_images == 0 and world_size() == 1:
            raise UserError(f"Split `{source.split}` of `{source.name}` has no usable image ({reasons}).")
        _logger.warning("Left out images of split `%s` of `%s` (%s).", source.split, source.name, reasons)


def features_of_ranges(
    encoder: Encoder,
    source: Source,
    ranges: Iterable[tuple[int, int]],
    batch_size: int = 256,
    num_workers: int = 0,
    *,
    bf16: bool = False,
) -> Generator[RowFeatures, None, None]:
    """Features of some of the rows of a source, batch by batch, in constant memory.

    Args:
        encoder: The encoder.
        source: The images.
        ranges: First row and the one after the last, ascending; the last may lie beyond the end of the source.
        batch_size: Images a batch, at least 1; a batch never goes beyond a range.
        num_workers: Worker processes that decode images, at least 0.
        bf16: Compute in bfloat16 where autocast does so; CUDA only. The features are float32 in any case.

    Yields:
        Features of at most `batch_size` rows, of which none may be usable.

    Raises:
        UserError: If a feature is not finite, or `bf16` is asked for on another device than CUDA.
    """
    pin_memory = device_of(encoder.module).type == "cuda"
    batches = batches_of_ranges(
        source, encoder.transform, batch_size, ranges, num_workers=num_workers, pin_memory=pin_memory
    )
    pixels = ((read, read.images.pixel_values if read.images is not None else None) for read in batches)
    empty = torch.zeros(0, dtype=torch.int64)
    for read, computed in _computed(encoder, pixels, bf16):
        labels, row_ids, paths = dict.fromkeys(source.labels, empty), empty, []
        if read.images is not None:
            labels, row_ids, paths = read.images.labels, read.images.row_ids, read.images.paths
        check_finite(computed, encoder.name)
        yield RowFeatures(read.first, read.num_rows, read.skipped, Features(computed, labels, row_ids), paths)


def _computed(
    encoder: Encoder, batches: Iterable[tuple[_Batch, Tensor | None]], bf16: bool
) -> Iterator[tuple[_Batch, Tensor]]:
    """Features of each batch of pixels, float32, on the CPU; no rows where there are no pixels."""
    device = device_of(encoder.module)
    if bf16 and device.type != "cuda":
        raise UserError(f"`bf16` needs a CUDA device, got `{device.type}`. Leave it out.")
    num_ahead = 1 if device.type == "cuda" else 0
    in_flight: deque[tuple[_Batch, Tensor, torch.cuda.Event | None]] = deque()
    with evaluation_mode(encoder.module):
        for batch, pixel_values in batches:
            # Not around the `yield`: the consumer's own operations must not run in inference mode.
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                features = torch.zeros(0, encoder.dim)
                if pixel_values is not None:
                    features = encoder.module(pixel_values.to(device, non_blocking=True)).float()
                in_flight.append((batch, *_fetched(features)))
            if len(in_flight) > num_ahead:
                yield _arrived(*in_flight.popleft())
        while in_flight:
            yield _arrived(*in_flight.popleft())


def _fetched(features: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Features on their way to the CPU, and what says that they have arrived.

    The device computes the next batch meanwhile: waiting for each would leave it idle between them.
    """
    if features.device.type != "cuda":
        return features.cpu(), None
    on_host = torch.empty(features.shape, pin_memory=True).copy_(features, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return on_host, copied


def _arrived(batch: _Batch, features: Tensor, copied: torch.cuda.Event | None) -> tuple[_Batch, Tensor]:
    if copied is not None:
        copied.synchronize()
    # A copy made outside of inference mode is an ordinary tensor: probes may train on it.
    return batch, features.clone()


def extract_features(
    encoder: Encoder,
    source: Source,
    batch_size: int = 256,
    num_workers: int = 0,
    *,
    max_images: int | None = None,
    bf16: bool = False,
    description: str | None = None,
) -> Features:
    """Features and labels of a whole source, equal on every process and independent of their number.

    Under several processes each computes its share, and all must call this function. The module runs in evaluation
    mode without gradients; the mode of each of its parts is restored at the end.

    Args:
        encoder: The encoder.
        source: The images.
        batch_size: Images a batch, at least 1.
        num_workers: Worker processes that decode images, at least 0.
        max_images: Use a sample of so many images from all over the source, at least 1; None for all.
        bf16: Compute in bfloat16 where autocast does so; CUDA only. The features are float32 in any case.
        description: Text of the progress bar of the main process; None for no bar.

    Returns:
        Features of all usable images, ordered by row.

    Raises:
        UserError: If the source has no usable image, a feature is not finite, or `bf16` is asked for on another device
            than CUDA.
    """
    with _progress_bar(source, max_images, description) as bar:
        return _together(encoder, source, _batches(encoder, source, batch_size, num_workers, max_images, bf16, bar))


def extract_augmented_features(
    encoder: Encoder,
    source: Source,
    num_passes: int,
    batch_size: int = 256,
    num_workers: int = 0,
    *,
    seed: int = 0,
    max_images: int | None = None,
    bf16: bool = False,
    description: str | None = None,
) -> Tensor:
    """Features of random resized crops and flips of the images of a source, drawn anew in every pass over it.

    Equal on every process, and what is drawn for an image depends on `seed`, the pass and its row alone. Takes the
    other arguments of `extract_features`.

    Args:
        encoder: The encoder.
        source: The images.
        num_passes: How often to go through the images, at least 1; each pass costs what `extract_features` does.
        batch_size: Images a batch, at least 1.
        num_workers: Worker processes that decode images, at least 0.
        seed: Of all crops and flips, at least 0.
        max_images: Use a sample of so many images from all over the source, at least 1; None for all.
        bf16: Compute in bfloat16; CUDA only.
        description: Text of the progress bar, which covers all passes; None for no bar.

    Returns:
        (num_passes, images, dim), float16, on the CPU; the images are those of `extract_features`, in its order.

    Raises:
        UserError: If the features would not fit into free memory, which is tried before hours are spent on them, a
            feature is too large for float16, or as `extract_features` does.
    """
    num_images = _num_images(source, max_images)
    if num_images is not None:
        _check_memory(num_passes, num_images, encoder.dim)
    passes = None
    with _progress_bar(source, max_images, description, num_passes) as bar:
        for number in range(num_passes):
            crops = RandomCrops(encoder, seed, number)
            batches = _batches(encoder, source, batch_size, num_workers, max_images, bf16, bar, crops)
            features = _together(encoder, source, batches).features
            if passes is None:
                _check_memory(num_passes, *features.shape)
                passes = torch.empty(num_passes, *features.shape, dtype=_AUGMENTED_DTYPE)
            passes[number] = features
            largest = float(features.abs().max())
            if largest > torch.finfo(_AUGMENTED_DTYPE).max:
                raise UserError(
                    f"Features of augmented images must fit into float16, but `{encoder.name}` gives {largest:.3g}. "
                    "Normalise its features, or evaluate without augmentation."
                )
    assert passes is not None
    return passes


def _check_memory(num_passes: int, num_images: int, dim: int) -> None:
    one_pass = num_images * dim * _AUGMENTED_DTYPE.itemsize
    free = psutil.virtual_memory().available
    if num_passes * one_pass > free:
        raise UserError(
            f"`augmented_passes` must fit into memory, but {num_passes} passes over {num_images:,} images with "
            f"{dim:,} features need {num_passes * one_pass / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free. "
            f"Lower it to {int(0.8 * free / one_pass)}, or lower `max_images`."
        )


def _together(encoder: Encoder, source: Source, batches: Iterable[Features]) -> Features:
    """Stack the batches of all processes, ordered by row."""
    device = device_of(encoder.module)
    parts = _on_all(batches, source)
    empty = torch.zeros(0, dtype=torch.int64)
    row_ids = gather_rows(torch.cat([part.row_ids for part in parts] or [empty]), device)
    if len(row_ids) == 0:
        raise UserError(f"Split `{source.split}` of `{source.name}` has no usable image. Check its files.")
    features = gather_rows(torch.cat([part.features for part in parts] or [torch.zeros(0, encoder.dim)]), device)
    check_finite(features, encoder.name)
    labels = {
        column: gather_rows(torch.cat([part.labels[column] for part in parts] or [empty]), device)
        for column in source.labels
    }
    order = row_ids.argsort(stable=True)
    return Features(features[order], {column: values[order] for column, values in labels.items()}, row_ids[order])


def _on_all(batches: Iterable[Features], source: Source) -> list[Features]:
    """The batches of this process; where those of any process fail all raise, for the others would wait for it."""
    if world_size() == 1:
        return list(batches)
    parts, failure = [], None
    try:
        parts = list(batches)
    except Exception as error:
        failure = error
    told: list[str | None] = [None] * world_size()
    dist.all_gather_object(told, None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for number, reason in enumerate(told):
        if reason is not None:
            raise UserError(f"Process {number} could not read split `{source.split}` of `{source.name}`: {reason}")
    return parts


def device_of(module: nn.Module) -> torch.device:
    """Where the weights of a module are; the CPU if it has none."""
    return next((tensor.device for tensor in chain(module.parameters(), module.buffers())), torch.device("cpu"))
