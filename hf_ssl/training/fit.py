"""How many images fit into one forward pass: measured on the device before the first step."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_ssl.data.views.device import Normalize
from hf_ssl.distributed import gather, working_alone
from hf_ssl.errors import UserError
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.checkpoint import random_state, set_random_state
from hf_ssl.training.limits import OUT_OF_MEMORY, SMALLER, optimizer_bytes

logger = logging.getLogger(__name__)

_LARGEST_VALUE = 255  # of a pixel


def images_that_fit(
    accelerator: Accelerator,
    module: nn.Module,
    settings: TrainingSettings,
    check: Callable[[int], None],
    trial: Callable[[int], None],
    smaller: str = SMALLER,
) -> int:
    """Images of one forward pass of each process: what the settings say or, on a GPU, what fits.

    All processes call this; they get the same number. Weights, buffers and random generators stay as they are.

    Args:
        accelerator: The run's accelerator.
        module: What is trained, on its device, without wrapper.
        settings: `images_per_device` and `batch_size`, which it divides.
        check: Raises `UserError` if so many images are too few.
        trial: Forward and backward pass of so many images; see `trial_step`.
        smaller: See `memory_errors_explained`.

    Raises:
        UserError: If the images are too few, or even the fewest do not fit.
    """
    share = settings.batch_size // accelerator.num_processes
    if settings.images_per_device != "auto":
        check(settings.images_per_device)
        return settings.images_per_device
    check(share)
    if accelerator.device.type != "cuda":
        return share
    found = largest_fitting(_usable(share, check), lambda images: _fits(module, settings, trial, images))
    found = int(gather(torch.tensor([found], device=accelerator.device)).min())
    if not found:
        raise UserError(
            f"The memory of {accelerator.device} is not enough for the fewest images that can be used in one forward "
            f"pass. Give {smaller}."
        )
    if found < share:
        logger.info("%d of the %d images of this process in a step fit into one forward pass.", found, share)
    return found


def _usable(share: int, check: Callable[[int], None]) -> Iterator[int]:
    """Numbers of images that make a share of a step and can be used, from the largest on."""
    for images in range(share, 0, -1):
        if share % images:
            continue
        try:
            check(images)
        except UserError:
            continue
        yield images


def largest_fitting(numbers: Iterable[int], fits: Callable[[int], bool]) -> int:
    """The first of descending numbers that fits; 0 if none does.

    After one that does not fit, those above half of it are not tried: a trial takes seconds.
    """
    most = None
    for number in numbers:
        if most is not None and number > most:
            continue
        if fits(number):
            return number
        most = number // 2
    return 0


def _fits(module: nn.Module, settings: TrainingSettings, trial: Callable[[int], None], images: int) -> bool:
    """Whether forward and backward pass of so many images, beside the optimizer's state, fit into the memory."""
    device = next(module.parameters()).device
    try:
        with left_as_it_was(module):
            reserved = torch.empty(optimizer_bytes(module, settings), dtype=torch.uint8, device=device)
            trial(images)
            del reserved
    except (RuntimeError, MemoryError) as error:  # `torch.OutOfMemoryError` is a RuntimeError
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        if settings.compile:
            torch.compiler.reset()  # after two sizes it would compile for any, which is slower, and training keep that
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
    return True


def trial_step(model: SSLPreTrainedModel, settings: TrainingSettings, images: int) -> None:
    """Forward and backward pass of images that show noise, of this process only, whose gradients are dropped."""
    device = next(model.parameters()).device
    config = model.config
    shape = (images, 2, config.image_size, config.image_size, 3)
    views = torch.randint(0, _LARGEST_VALUE + 1, shape, dtype=torch.uint8, device=device)
    normalize = Normalize(config.image_mean, config.image_std, device, settings.channels_last)
    inputs: dict[str, Tensor] = {"pixel_values": normalize(views)}
    if model.needs_indices:
        inputs["indices"] = torch.arange(images, device=device)
    if model.needs_labels:
        inputs["labels"] = torch.zeros(images, dtype=torch.int64, device=device)
    drop_gradients(model, model(**inputs).loss)


def drop_gradients(module: nn.Module, loss: Tensor) -> None:
    """Compute the gradients of a loss and forget them.

    Not by `backward`, on which DistributedDataParallel would send them to processes that do not wait for them.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    torch.autograd.grad(loss, trained, allow_unused=True)


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Undo what a trial does to buffers and random generators, and keep it from asking other processes."""
    device = next(model.parameters()).device
    buffers = {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers()}
    random: Any = random_state(device)
    # torch's own would gather; its memory hardly differs.
    synchronised = [one for one in model.modules() if isinstance(one, nn.SyncBatchNorm) and one.training]
    for one in synchronised:
        one.eval()
    try:
        with working_alone():
            yield
    finally:
        for one in synchronised:
            one.train()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        set_random_state(random, device)
