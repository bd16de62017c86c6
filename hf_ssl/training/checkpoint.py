"""Checkpoints from which a run continues bit for bit, and which a kill at any moment cannot spoil.

A checkpoint is written under a hidden name, flushed to the disk and renamed, so that a folder `step-000500` is either
complete or does not exist. It holds the state of every process: the place in the stream, the random generators and
the buffers that differ from the first process's, such as local BatchNorm statistics.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_ssl.data.order.stream import merged_positions
from hf_ssl.distributed import rank, world_size
from hf_ssl.errors import UserError
from hf_ssl.training.changes import agreed_changes
from hf_ssl.training.files import RUN_FILE, flush, refusal_of_storage, storage_error, write_json
from hf_ssl.training.find import checkpoint_folder, complete_checkpoints, leave_newer, remove, run_of
from hf_ssl.training.integrity import STATE, file_facts, read_state, sealed
from hf_ssl.training.limits import check_room
from hf_ssl.training.lock import is_locked


@dataclass(frozen=True)
class Restored:
    """What a run needs from a checkpoint besides the state that was loaded into its objects.

    Args:
        step: Optimizer steps done.
        seconds: Seconds of training so far.
        position: Places of all lanes in the stream; None for its beginning.
        losses: Sum and number of this process's losses since the last log line, and the forward passes of a step.
        changes: Settings that changed, with those that changed before; see `agreed_changes`.
    """

    step: int
    seconds: float
    position: dict[str, Any] | None
    losses: tuple[float, float, int] = (0.0, 0, 1)
    changes: tuple[dict[str, Any], ...] = ()


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
    record: Mapping[str, Any] | None = None,
    losses: tuple[float, float, int] = (0.0, 0, 1),
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
        identity: What a resumed run must share with this one; see `agreed_changes`.
        keep: Newest checkpoints to keep, at least 1.
        record: Content of `run.json`, from which a damaged one is made again.
        losses: Sum and number of the losses of this process since the last log line, and the forward passes of a step.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: If the disk has no room or refuses a file, on all processes. The older checkpoints are left.
    """
    final = checkpoint_folder(output_dir, step)
    partial = final.with_name(f".{final.name}.partial")
    own = {
        "position": json.dumps(position),
        "random": random_state(accelerator.device),
        "buffers": _own_buffers(model),
        "losses": list(losses),
    }
    state = {"step": step, "seconds": seconds, "identity": identity, "record": record}

    def begin() -> None:
        check_room(output_dir, [model.state_dict(), optimizer.state_dict()])
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def complete() -> None:
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, partial / "model.safetensors")
        scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
        _write(partial / "optimizer.pt", {"optimizer": optimizer.state_dict(), "scaler": scaler})
        _complete(partial, final, state)

    is_main = accelerator.is_main_process
    try:
        for work in (
            begin if is_main else None,
            lambda: _write(partial / _process_file(rank()), own),
            complete if is_main else None,
        ):
            _on_all(work, output_dir, step)
    except UserError:
        if is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if is_main:
        for old in complete_checkpoints(output_dir)[:-keep]:
            remove(old)
    accelerator.wait_for_everyone()
    return final


def _on_all(work: Callable[[], None] | None, output_dir: Path, step: int) -> None:
    """Do a part of the writing, and raise on all processes what the disk refuses to any of them."""
    refusal = None
    try:
        if work is not None:
            work()
    except Exception as error:
        cause = storage_error(error)
        if cause is None and not isinstance(error, UserError):
            raise
        newest = complete_checkpoints(output_dir)[-1:]
        way_on = (
            f"the last good checkpoint is `{newest[0]}`, from which the same command with `--resume auto` continues."
            if newest
            else "no checkpoint was written before."
        )
        what = f"The checkpoint of step {step} in `{output_dir}`"
        refusal = str(error) if cause is None else refusal_of_storage(what, cause, way_on)
    refusals = [one for one in gather_object([refusal]) if one is not None]  # also waits for everyone
    if refusals:
        raise UserError(refusals[0])


def _write(path: Path, content: Any) -> None:
    with path.open("wb") as file:  # given a path, torch would hide what the disk says
        torch.save(content, file)
    flush(path)


def _complete(partial: Path, final: Path, state: dict[str, Any]) -> None:
    missing = [number for number in range(world_size()) if not (partial / _process_file(number)).is_file()]
    if missing:
        raise UserError(
            f"The state of process {missing[0]} did not arrive in `{partial}`. `output_dir` must be on a file system "
            "that all machines share."
        )
    flush(partial / "model.safetensors")
    write_json(partial / STATE, sealed(json.loads(json.dumps({**state, "files": file_facts(partial)}))))
    flush(partial)
    shutil.rmtree(final, ignore_errors=True)  # an incomplete folder of the same name
    os.replace(partial, final)
    flush(final.parent)


def load_checkpoint(
    accelerator: Accelerator,
    checkpoint: Path,
    *,
    model: nn.Module,
    optimizer: Any,
    identity: Mapping[str, Any],
    change: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    version: str | None = None,
) -> Restored:
    """Load the state of a checkpoint into this process, also one that another number of processes has written.

    The run that holds its folder then leaves what it has done after that; see `leave_newer`. Buffers that differed
    between processes, such as local BatchNorm statistics, are then those of the process with the same number, or with
    that number less the former number of processes.

    Args:
        accelerator: The run's accelerator.
        checkpoint: From `find_checkpoint`.
        model: The method, without wrapper, on its device.
        optimizer: The prepared optimizer.
        identity: What the checkpoint must share with this run.
        change: Settings that are to change.
        defaults: See `agreed_changes`.
        version: See `agreed_changes`.

    Raises:
        UserError: If the checkpoint belongs to another method, data set or other settings.
    """
    state = read_state(checkpoint)
    changes = agreed_changes(
        checkpoint,
        state["identity"],
        identity,
        step=state["step"],
        change=change or (),
        defaults=defaults,
        started=record_of(checkpoint),
        version=version,
    )
    num_processes = state["identity"]["num_processes"]
    states = [_loaded(checkpoint / _process_file(number)) for number in range(num_processes)]
    process_state = states[rank() % num_processes]
    shared = _loaded(checkpoint / "optimizer.pt")
    _load_weights(model, checkpoint, process_state["buffers"])
    _load_optimizer(optimizer, checkpoint, shared["optimizer"], has_changed=bool(changes))
    if accelerator.scaler and shared["scaler"]:
        accelerator.scaler.load_state_dict(shared["scaler"])
    if num_processes == world_size():
        set_random_state(process_state["random"], accelerator.device)
    else:  # two processes with one state would draw alike: each begins anew, as at the start of the run
        set_seed(identity["seed"] + state["step"], device_specific=True)
    if rank() == 0 and is_locked(run_of(checkpoint)):
        leave_newer(checkpoint)
    return Restored(
        step=state["step"],
        seconds=state["seconds"],
        position=merged_positions(json.loads(one["position"]) for one in states),
        losses=_losses_of([one.get("losses", (0.0, 0, 1)) for one in states]),
        changes=(*record_in(checkpoint).get("changes", ()), *changes),
    )


def _load_weights(model: nn.Module, checkpoint: Path, own_buffers: Mapping[str, Tensor]) -> None:
    saved, wanted = load_file(checkpoint / "model.safetensors"), model.state_dict()
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in saved or name not in wanted or saved[name].shape != wanted[name].shape:
            raise UserError(
                f"`{checkpoint}` holds other weights than this run, such as `{name}`. A setting on which the names "
                "or sizes of weights depend cannot change within a run: resume with what it was."
            )
    model.load_state_dict(saved)
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, value in own_buffers.items():
            buffers[name].copy_(value)


def _load_optimizer(optimizer: Any, checkpoint: Path, saved: dict[str, Any], has_changed: bool) -> None:
    """Load an optimizer's state; its options are those of this run, if settings have changed."""
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(saved)
    except ValueError as error:
        raise UserError(
            f"The optimizer of `{checkpoint}` sorts the weights into other groups. A setting on which they depend "
            "cannot change within a run: resume with what it was."
        ) from error
    if has_changed:
        for group, options in zip(optimizer.param_groups, own, strict=True):
            group.update(options)


def _losses_of(losses: list[Sequence[float]]) -> tuple[float, float, int]:
    """What this process goes on with of the losses of all former ones: its own, or their mean."""
    if len(losses) == world_size():
        total, count, passes = losses[rank()]
    else:
        total, count, passes = (sum(column) / len(losses) for column in zip(*losses, strict=True))
    return total, count, int(passes)


def identity_in(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as the identity of the run."""
    return read_state(checkpoint)["identity"]


def record_in(checkpoint: Path) -> dict[str, Any]:
    """The `run.json` of the run when a checkpoint was written; empty in those of older versions."""
    return read_state(checkpoint).get("record") or {}


def record_of(checkpoint: Path) -> dict[str, Any]:
    """The `run.json` of the run of a checkpoint as it is now, else as it was then; it only helps an error message."""
    try:
        record = json.loads((run_of(checkpoint) / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    return record if isinstance(record, dict) else record_in(checkpoint)


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


def _loaded(path: Path) -> Any:
    """What `_write` wrote; checkpoints of versions without checksums are not known to be whole."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"`{path}` is damaged: it cannot be loaded. Resume from another checkpoint.") from error


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
