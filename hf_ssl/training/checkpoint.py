"""Checkpoints from which a run continues bit for bit, and which a kill at any moment cannot spoil.

A checkpoint is written under a hidden name, flushed to the disk and renamed, so that a folder `step-000500` is either
complete or does not exist. It holds the state of every process: the place in the stream, the random generators and
the buffers that differ from the first process's, such as local BatchNorm statistics.
"""

import json
import logging
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_ssl.data.order.stream import merged_positions
from hf_ssl.distributed import rank, world_size
from hf_ssl.errors import UserError

logger = logging.getLogger(__name__)

_STATE = "state.json"
_MAY_DIFFER = {"num_processes", "images_per_device"}  # of an identity: the images of each step stay the same


@dataclass(frozen=True)
class Restored:
    """What a run needs from a checkpoint besides the state that was loaded into its objects.

    Args:
        step: Optimizer steps done.
        seconds: Seconds of training so far.
        position: Places of all lanes in the stream; None for its beginning.
    """

    step: int
    seconds: float
    position: dict[str, Any] | None


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return output_dir / "checkpoints" / f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done when a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """The usable checkpoints of a run, oldest first."""
    found = [path for path in (output_dir / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return sorted((path for path in found if is_complete(path)), key=step_of)


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint is there, with the size that it had when it was written."""
    try:
        files = json.loads((checkpoint / _STATE).read_text())["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def find_checkpoint(output_dir: Path, resume: str | None) -> Path | None:
    """The checkpoint that a run starts from.

    Args:
        output_dir: Folder of the run.
        resume: `auto`, the folder of a checkpoint, the folder of a run (its newest), or None.

    Returns:
        None to start from the beginning.

    Raises:
        UserError: If `resume` names no complete checkpoint, or newer ones than it lie in `output_dir`.
    """
    if resume is None:
        return None
    own = complete_checkpoints(output_dir)
    if resume == "auto":
        if not own:
            logger.info("No checkpoint in `%s`: training starts from the beginning.", output_dir)
        return own[-1] if own else None
    chosen = Path(resume)
    if not is_complete(chosen):
        chosen = next(reversed(complete_checkpoints(chosen)), chosen)
    if not is_complete(chosen):
        raise UserError(f"`resume` must be `auto` or the folder of a complete checkpoint, got `{resume}`.")
    newer = [path for path in own if step_of(path) > step_of(chosen)]
    if newer:
        raise UserError(
            f"`{output_dir}` holds checkpoints after step {step_of(chosen)}, such as `{newer[-1]}`. Delete them, or "
            "resume into another `output_dir`."
        )
    return chosen


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    *,
    model: nn.Module,
    optimizer: Any,
    step: int,
    seconds: float,
    position: Mapping[str, Any],
    identity: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint; all processes must call this after the same step.

    Args:
        accelerator: The run's accelerator.
        output_dir: Folder of the run.
        model: The method, without wrapper.
        optimizer: The prepared optimizer.
        step: Optimizer steps done.
        seconds: Seconds of training so far.
        position: Place of this process in the stream, after the last batch used.
        identity: What a resumed run must share with this one; see `check_identity`.
        keep: Newest checkpoints to keep, at least 1.

    Returns:
        The checkpoint's folder.
    """
    final = checkpoint_folder(output_dir, step)
    partial = final.with_name(f".{final.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    process_state = {
        "position": json.dumps(position),
        "random": random_state(accelerator.device),
        "buffers": _own_buffers(model),
    }
    torch.save(process_state, partial / _process_file(rank()))
    _flush(partial / _process_file(rank()))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, partial / "model.safetensors")
        scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
        torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler}, partial / "optimizer.pt")
        state = {"step": step, "seconds": seconds, "identity": identity}
        _complete(partial, final, state)
        for old in complete_checkpoints(output_dir)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def _complete(partial: Path, final: Path, state: dict[str, Any]) -> None:
    missing = [number for number in range(world_size()) if not (partial / _process_file(number)).is_file()]
    if missing:
        raise UserError(
            f"The state of process {missing[0]} did not arrive in `{partial}`. `output_dir` must be on a file system "
            "that all machines share."
        )
    for name in ("model.safetensors", "optimizer.pt"):
        _flush(partial / name)
    state["files"] = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
    write_json(partial / _STATE, state)
    _flush(partial)
    shutil.rmtree(final, ignore_errors=True)  # an incomplete folder of the same name
    os.replace(partial, final)
    _flush(final.parent)


def load_checkpoint(
    accelerator: Accelerator, checkpoint: Path, *, model: nn.Module, optimizer: Any, identity: Mapping[str, Any]
) -> Restored:
    """Load the state of a checkpoint into this process, also one that another number of processes has written.

    Buffers that differed between processes, such as local BatchNorm statistics, are then those of the process with
    the same number, or with that number less the former number of processes.

    Args:
        accelerator: The run's accelerator.
        checkpoint: From `find_checkpoint`.
        model: The method, without wrapper, on its device.
        optimizer: The prepared optimizer.
        identity: What the checkpoint must share with this run.

    Raises:
        UserError: If the checkpoint belongs to another method, data set or other settings.
    """
    state = json.loads((checkpoint / _STATE).read_text())
    check_identity(checkpoint, state["identity"], identity, command_of(checkpoint))
    num_processes = state["identity"]["num_processes"]
    states = [
        torch.load(checkpoint / _process_file(number), map_location="cpu", weights_only=True)
        for number in range(num_processes)
    ]
    process_state = states[rank() % num_processes]
    shared = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, value in process_state["buffers"].items():
            buffers[name].copy_(value)
    optimizer.load_state_dict(shared["optimizer"])
    if accelerator.scaler and shared["scaler"]:
        accelerator.scaler.load_state_dict(shared["scaler"])
    if num_processes == world_size():
        set_random_state(process_state["random"], accelerator.device)
    else:  # two processes with one state would draw alike: each begins anew, as at the start of the run
        set_seed(identity["seed"] + state["step"], device_specific=True)
    position = merged_positions(json.loads(one["position"]) for one in states)
    return Restored(state["step"], state["seconds"], position)


def identity_in(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as the identity of the run."""
    return json.loads((checkpoint / _STATE).read_text())["identity"]


def command_of(checkpoint: Path) -> str | None:
    """The command that started the run of a checkpoint, if its record tells."""
    record = checkpoint.parent.parent / "run.json"
    try:
        return json.loads(record.read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it only helps an error message


def check_identity(
    checkpoint: Path, then: Mapping[str, Any], now: Mapping[str, Any], command: str | None = None
) -> None:
    """Refuse to continue with anything that would make the resumed run another one.

    Args:
        checkpoint: Named in the message.
        then: Method and settings of the checkpoint.
        now: Those of this run.
        command: What started the run of the checkpoint, for the message.

    Raises:
        UserError: If they differ; names the first difference and the cure.
    """
    now = json.loads(json.dumps(now))
    cure = "Resume with what it was, or start another run in another `output_dir`."
    if command is not None:
        cure += f" The run was started by `{command}`."
    if then["method"] != now["method"]:
        raise UserError(f"`{checkpoint}` is of method `{then['method']}`, this run trains `{now['method']}`. {cure}")
    changed = [
        f"`{name}` was `{then.get(name)}` and is `{now.get(name)}` now"
        for name in sorted((then.keys() | now.keys()) - _MAY_DIFFER)
        if then.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(f"These settings changed since `{checkpoint}` was written: {', '.join(changed)}. {cure}")


def random_state(device: torch.device) -> dict[str, Any]:
    """State of the global random generators that training may use, as tensors and numbers."""
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the global random generators into a state that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    key = np.array(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is always either the old or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    _flush(partial)
    os.replace(partial, path)


@torch.no_grad()
def _own_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers whose values differ from those of the first process, which are saved with the model."""
    own = {}
    for name, buffer in model.named_buffers() if world_size() > 1 else ():
        first = buffer.clone()
        dist.broadcast(first, src=0)
        if not torch.equal(first, buffer):
            own[name] = buffer.cpu().clone()
    return own


def _process_file(number: int) -> str:
    return f"process-{number:05d}.pt"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
