"""What a machine must offer a run: checked before it begins, and explained when it runs out."""

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_ssl.errors import UserError
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.modules.queue import check_fits
from hf_ssl.training.arguments import TrainingSettings

_STATES = {"sgd": 1, "lars": 1, "adamw": 2}  # numbers that an optimizer keeps for each weight
_MOST_STATES = 3  # of others; few of timm keep more
SMALLER = "`--activation_checkpointing`, `--mixed_precision bf16`, or a smaller `--image_size` or `--encoder`"
OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)


def check_batch(model: SSLPreTrainedModel, settings: TrainingSettings, num_processes: int, images: int) -> None:
    """Refuse forward passes that are too small for the method's loss or for BatchNorm, or too large for its queue.

    Args:
        model: The method.
        settings: How it is trained.
        num_processes: Processes that train together.
        images: Of one process in one forward pass.

    Raises:
        UserError: Names the least number of images, or the size of the queue.
    """
    everywhere = images * num_processes
    name = "`batch_size`" if settings.images_per_device == "auto" else "`images_per_device`"
    if everywhere < model.least_images:
        raise UserError(
            f"{name} must give {type(model).__name__} at least {model.least_images} images in one forward pass "
            f"of all processes, because its loss compares images of one batch, got {everywhere}. Raise it."
        )
    if hasattr(model, "queue_position"):  # as `enqueue` takes it
        check_fits(model.config.queue_size, everywhere * (2 if model.config.symmetric else 1))
    splits = getattr(model.config, "bn_splits", 1)
    if splits > 1 and images < 2 * max(1, splits // num_processes):
        raise UserError(
            f"`bn_splits` {splits} makes BatchNorm groups of {images} images on each of {num_processes} "
            f"process{'es' * (num_processes > 1)}, and each group needs two. Lower `bn_splits`, or raise {name}."
        )
    synchronised = (settings.batch_norm or model.batch_norm) == "sync"
    together = everywhere if synchronised else images
    if together < 2 and any(_normalises_batch(module) for module in model.modules()):
        raise UserError(
            f"{name} must give BatchNorm at least 2 images in one forward pass, over which it takes statistics, got "
            f"{together}. Raise it, or choose an encoder without BatchNorm."
        )


def _normalises_batch(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and any(True for _ in module.parameters())


def optimizer_bytes(model: nn.Module, settings: TrainingSettings) -> int:
    """Bytes that the optimizer keeps between two steps."""
    trained = sum(value.numel() * value.element_size() for value in model.parameters() if value.requires_grad)
    return _STATES.get(settings.optimizer, _MOST_STATES) * trained


def check_disk(model: nn.Module, settings: TrainingSettings) -> None:
    """Refuse a run whose checkpoints the disk has no room for.

    Raises:
        UserError: Names the space needed and the space there is.
    """
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    checkpoint = weights + optimizer_bytes(model, settings)
    # One more while the newest is written, and the exported method and encoder.
    needed = (settings.keep_checkpoints + 1) * checkpoint + 2 * weights
    free = shutil.disk_usage(Path(settings.output_dir)).free
    if free < needed:
        raise UserError(
            f"`output_dir` `{settings.output_dir}` needs about {needed / 2**30:.1f} GiB for "
            f"{settings.keep_checkpoints} checkpoints and the export, but its disk has {free / 2**30:.1f} GiB free. "
            "Give another folder, or lower `keep_checkpoints`."
        )


def check_room(output_dir: Path, states: list[Mapping[str, Any]]) -> None:
    """Refuse to begin a checkpoint for which the disk has no room.

    Args:
        output_dir: Folder of the run.
        states: What is to be written; nested, with tensors in it.

    Raises:
        OSError: Says what is needed and what there is.
    """
    needed = sum(_tensor_bytes(state) for state in states)
    free = shutil.disk_usage(output_dir).free
    if free < needed:
        told = f"it needs {needed / 2**20:,.1f} MiB, and {free / 2**20:,.1f} MiB are free"
        raise OSError(errno.ENOSPC, told)


def _tensor_bytes(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(map(_tensor_bytes, state.values()))
    return sum(map(_tensor_bytes, state)) if isinstance(state, list | tuple) else 0


@contextmanager
def memory_errors_explained(images: int, smaller: str = SMALLER) -> Iterator[None]:
    """Turn an allocation that failed, on a GPU or on the CPU, into one sentence with the flags that help.

    Args:
        images: Of one process in one forward pass.
        smaller: What else saves memory: flags, within a sentence.

    Raises:
        UserError: In the place of such an error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # `torch.OutOfMemoryError` is a RuntimeError, as is the CPU's
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
            words in str(error) for words in OUT_OF_MEMORY
        )
        if not is_memory:
            raise
        fewer = max(number for number in range(1, max(2, images // 2 + 1)) if images % number == 0)
        raise UserError(
            f"The memory is not enough for {images} images in one forward pass. Give `--images_per_device {fewer}`, "
            f"with which a step has the same images, {smaller}."
        ) from error
