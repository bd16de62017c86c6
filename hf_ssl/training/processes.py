"""Start of the processes that train together, and the checks that they are the ones the user asked for."""

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
)
from torch import Tensor, nn

from hf_ssl.distributed import mean_over_processes
from hf_ssl.errors import UserError
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.watch.signals import follow_launcher, is_accelerate

_SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}
_SHARDING_VARIABLES = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


def with_precision(settings: TrainingSettings) -> TrainingSettings:
    """Settings whose `mixed_precision` is no longer `auto`.

    On the CPU bf16 is not chosen: it pays only on processors with instructions for it. What `accelerate launch` was
    told counts as the user's choice.
    """
    if settings.mixed_precision != "auto":
        return settings
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if told in ("bf16", "fp16"):
        return replace(settings, mixed_precision=told)
    gpu = not settings.cpu and torch.cuda.is_available()
    capable = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return replace(settings, mixed_precision="bf16" if capable else "no")


@contextmanager
def own_accelerate_state() -> Iterator[None]:
    """Leave Accelerate's state in this process as it was found.

    It lives in class attributes: without this, a second run in the same Python could not have another precision, and
    would accumulate gradients as the first one did.
    """
    states = (PartialState, AcceleratorState, GradientState)
    former = [(state, dict(state._shared_state)) for state in states]
    try:
        yield
    finally:
        for state, values in former:
            state._shared_state.clear()
            state._shared_state.update(values)


@contextmanager
def same_bits_every_time(wanted: bool) -> Iterator[None]:
    """Let PyTorch take only kernels that give the same bits every time, if wanted; and as before afterwards.

    Where PyTorch has no such kernel it warns and takes what it has.
    """
    if not wanted:
        yield
        return
    former = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    chosen, benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    # cuBLAS reads it when it is first used, and needs it for sums in one order. It does no harm afterwards.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(former[0], warn_only=former[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = chosen, benchmark


def start_accelerator(settings: TrainingSettings) -> Accelerator:
    """Create the `Accelerator` of a run and refuse set-ups that would train something else than asked for.

    Without an accelerator the CPU is asked for explicitly: otherwise several processes on a machine without GPUs would
    each train alone.

    Raises:
        UserError: If parameters would be sharded, or launcher and settings contradict each other.
        UserError: If fewer processes train together than were launched or requested.
    """
    follow_launcher()
    settings = with_precision(settings)
    _check_launcher(settings, os.environ)
    cpu = settings.cpu or not torch.accelerator.is_available()
    if settings.mixed_precision == "fp16" and cpu:
        raise UserError("`mixed_precision` fp16 needs a GPU. On the CPU give `--mixed_precision bf16` or `no`.")
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=settings.mixed_precision,
        # The loop sets the number of steps, once it knows how many images fit into a forward pass.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
        # Queues and BatchNorm statistics are kept equal, or different, by the methods; DDP must not overwrite them.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        log_with=None if settings.report_to == "none" else settings.report_to,
        project_config=ProjectConfiguration(
            project_dir=settings.output_dir, logging_dir=str(Path(settings.output_dir) / "tracker")
        ),
    )
    if accelerator.distributed_type in _SHARDED:
        raise UserError(_no_sharding(accelerator.distributed_type.value))
    check_num_processes(accelerator.num_processes, os.environ, requested_processes(), sys.argv)
    return accelerator


def _no_sharding(kind: str) -> str:
    return (
        f"{kind} shards parameters, but target networks and queues need whole ones. Launch with `--multi_gpu` (DDP) "
        "instead."
    )


def _check_launcher(settings: TrainingSettings, environment: Mapping[str, str]) -> None:
    for variable, kind in _SHARDING_VARIABLES.items():
        if environment.get(variable, "false").lower() in ("true", "1", "yes"):
            raise UserError(_no_sharding(kind))
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", settings.mixed_precision):
        raise UserError(
            f"`accelerate launch` was told mixed precision {precision}, the script `{settings.mixed_precision}`. Give "
            f"`--mixed_precision {precision}` to the script."
        )
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise UserError("`accelerate launch` was told a dynamo backend. Give `--compile` to the script instead.")


def requested_processes() -> int | None:
    """Processes that `accelerate launch` was asked for; None if it did not start this process or does not say.

    With `--cpu`, and without a GPU, it starts a single process whatever `--num_processes` is. What remains of the
    request is the launcher's command line and the address that it sets for several processes.
    """
    try:
        parent = psutil.Process(os.getppid())
        command, environment = parent.cmdline(), parent.environ()
    except (psutil.Error, OSError):
        return None
    return requested_by(command, environment, os.environ)


def requested_by(
    launcher: Sequence[str], launcher_environment: Mapping[str, str], environment: Mapping[str, str]
) -> int | None:
    """Number of processes that a launcher's command line or config file asks for.

    Args:
        launcher: Command line of the parent process.
        launcher_environment: Its environment variables.
        environment: Environment variables of this process.

    Returns:
        The number; 2 where a config file asks for several without leaving their number; None if unknown.
    """
    words = [word.replace("-", "_").replace("__", "--", 1) for word in launcher]
    if not is_accelerate(launcher):
        return None
    for position, word in enumerate(words):
        if position > 0 and Path(launcher[position]).suffix == ".py" and Path(launcher[position]).stem != "launch":
            break  # what follows belongs to the script
        name, _, value = word.partition("=")
        if name == "--num_processes":
            number = value or "".join(launcher[position + 1 : position + 2])
            return int(number) if number.isdigit() else None
    made_for_several = "MASTER_PORT" in environment and "MASTER_PORT" not in launcher_environment
    return 2 if made_for_several and "WORLD_SIZE" not in environment else None


def check_num_processes(
    num_processes: int, environment: Mapping[str, str], requested: int | None, arguments: Sequence[str]
) -> None:
    """Refuse to run with fewer processes than were launched or requested.

    Args:
        num_processes: Processes that Accelerate connected.
        environment: Environment variables of this process.
        requested: See `requested_processes`.
        arguments: Command line of the script, for the advice.

    Raises:
        UserError: If the numbers differ; says what to type.
    """
    launched = int(environment.get("WORLD_SIZE", "1"))
    expected = max(launched, requested or 1)
    if num_processes >= expected:
        return
    name = Path(arguments[0]).name if arguments else "pretrain.py"
    script = f".../{name}" if name.endswith(".py") and name != "__main__.py" else "-m hf_ssl"
    raise UserError(
        f"At least {expected} processes were requested, but {num_processes} would run. Type "
        f"`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {expected} {script} ...` "
        "(without `ACCELERATE_USE_CPU` on GPUs)."
    )


def prepare(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, object]:
    """Move the model to its device and wrap it for several processes."""
    with warnings.catch_warnings():
        # PyTorch 2.15 renames the argument; Accelerate only knows the old name.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        network, optimizer = accelerator.prepare(model, optimizer)
    return network, optimizer


@torch.no_grad()
def average_batch_norm(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Replace BatchNorm's running statistics by their mean over processes, which is what gets evaluated and published.

    All processes must call it. In a single process nothing changes.

    Returns:
        Buffers that changed, each with its own former value.
    """
    changed = []
    for module in model.modules():
        for name in ("running_mean", "running_var"):
            buffer = getattr(module, name, None)
            if isinstance(buffer, Tensor):
                mean = mean_over_processes(buffer)
                if mean is not buffer:
                    changed.append((buffer, buffer.clone()))
                    buffer.copy_(mean)
    return changed


@contextmanager
def averaged_batch_norm(model: nn.Module) -> Iterator[None]:
    """`average_batch_norm` for a while: training continues with each process's own statistics."""
    changed = average_batch_norm(model)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, former in changed:
                buffer.copy_(former)
