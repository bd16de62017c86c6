"""What a run tells before its first step, and after its first steps: what it does, needs, and how long it takes."""

from collections.abc import Callable

import psutil
import torch
from accelerate import Accelerator

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.methods.base import SSLPreTrainedModel, method_name
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.plan import UNKNOWN_LENGTH, Plan
from hf_ssl.training.start import Start

_WARM_UP_STEPS = 3  # the first ones allocate memory and choose kernels
_MEASURED_STEPS = 17


def briefing(
    model: SSLPreTrainedModel,
    source: Source,
    data: DataSettings,
    settings: TrainingSettings,
    plan: Plan,
    accelerator: Accelerator,
    start: Start | None,
    images: int,
) -> str:
    """The block before the first step, six lines.

    Args:
        model: The method.
        source: The images.
        data: How they are read.
        settings: How the method is trained, its precision resolved.
        plan: Length and learning rate.
        accelerator: The run's accelerator.
        start: Where the weights come from; None for chance.
        images: Of one process in one forward pass.
    """
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    everything = sum(parameter.numel() for parameter in model.parameters())
    config, recipe = model.config, data.view_recipe or model.view_recipe
    count = "unknown number of images" if source.num_images is None else f"{source.num_images:,} images"
    num_processes = accelerator.num_processes
    precision = {"no": "float32"}.get(settings.mixed_precision, settings.mixed_precision)
    layout = "channels last" if settings.channels_last else "contiguous"
    rows = {
        "method": method_name(type(model)) + (f", recipe {settings.recipe}" if settings.recipe else ""),
        "encoder": f"{config.architecture}, {_millions(encoder)} parameters ({_millions(everything)} with all heads "
        f"and targets), {_weights(start)}",
        "images": f"{count} of {source.name}, split {source.split}; {config.image_size} px views by {recipe}"
        + (" with `view_settings`" if data.view_settings else "")
        + _labels(source),
        "batch": f"{settings.batch_size:,} images = {images} per device x "
        f"{num_processes} process{'es' * (num_processes > 1)} x "
        f"{settings.batch_size // (images * num_processes)} accumulated"
        + _compared(model, settings, images * num_processes),
        "steps": f"{_length(plan, settings)}; learning rate {plan.learning_rate:.4g}, {plan.lr_schedule}"
        + (f" after a warm-up of {plan.warmup_steps:,} steps" if plan.warmup_steps else ""),
        "device": f"{_device_name(accelerator.device)}, {precision}, {layout}, "
        + ("compiled" if settings.compile else "eager"),
    }
    return "\n".join(f"{name:<8} {text}" for name, text in rows.items())


def _labels(source: Source) -> str:
    if not source.labels:
        return "; no labels"
    known = ", ".join(
        f"`{name}` ({len(names)} classes)" if names else f"`{name}`" for name, names in source.labels.items()
    )
    return f"; labels {known} are for k-NN and figures only"


def _compared(model: SSLPreTrainedModel, settings: TrainingSettings, images: int) -> str:
    """What a loss that compares the images of a batch does not see."""
    if model.least_images == 1 or images == settings.batch_size:
        return ""
    return f"; the loss compares the {images:,} images of one forward pass, not all of a step"


def _weights(start: Start | None) -> str:
    if start is None or start.origin is None:
        return "random weights"
    return f"weights of {start.origin.get('encoder') or start.origin.get('method')}"


def _length(plan: Plan, settings: TrainingSettings) -> str:
    if plan.num_steps == UNKNOWN_LENGTH:
        return f"as many as fit into {settings.max_hours:g} hours"
    if plan.steps_per_epoch:
        return f"{plan.num_steps:,} ({plan.num_steps / plan.steps_per_epoch:.3g} epochs)"
    return f"{plan.num_steps:,}"


def _millions(number: int) -> str:
    return f"{number / 1e6:.3g} M"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


class SpeedCheck:
    """Memory of the first step and speed of the steps after it, of this process.

    Args:
        step: Optimizer steps that were done before this process began.
        device: The device that trains.
    """

    def __init__(self, step: int, device: torch.device):
        self.first_step = step + 1
        self._device = device
        self._begins, self._ends = step + _WARM_UP_STEPS, step + _WARM_UP_STEPS + _MEASURED_STEPS
        self._started = 0.0

    def seconds_per_step(self, step: int, clock: Callable[[], float]) -> float | None:
        """Call after every step; None but for the step at which the speed is known.

        Args:
            step: Optimizer steps done.
            clock: Tells the seconds of training so far.
        """
        if step not in (self._begins, self._ends):
            return None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if step == self._begins:
            self._started = clock()
            return None
        return (clock() - self._started) / _MEASURED_STEPS

    def memory_text(self) -> str:
        """What the first step needed."""
        if self._device.type == "cuda":
            used, whole = torch.cuda.max_memory_allocated(self._device), torch.cuda.mem_get_info(self._device)[1]
            return f"memory   {used / 2**30:.1f} of {whole / 2**30:.0f} GiB of the device in the first step"
        used, whole = psutil.Process().memory_info().rss, psutil.virtual_memory().total
        return f"memory   {used / 2**30:.1f} of {whole / 2**30:.0f} GiB after the first step, without data workers"

    def time_text(self, step: int, num_steps: int, seconds: float) -> str:
        """How long the rest of the run takes at this speed."""
        left = duration((num_steps - step) * seconds)
        return f"time     {seconds:.3g} s a step: the remaining {num_steps - step:,} steps take about {left}"


def duration(seconds: float) -> str:
    """A time span in the two units that matter, such as `2 h 10 min`."""
    parts: list[tuple[int, str]] = []
    rest = round(seconds)
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        number, rest = divmod(rest, size)
        if number or parts:
            parts.append((number, unit))
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number) or "0 s"
