"""Which checkpoint a run starts from, and which folders of former processes are to go."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hf_ssl.distributed import rank, world_size
from hf_ssl.errors import UserError
from hf_ssl.training.files import RUN_FILE, storage_errors_explained
from hf_ssl.training.integrity import STATE, damage_of, is_complete, read_state
from hf_ssl.writing import leftovers_of

logger = logging.getLogger(__name__)

LOGS = ("metrics.jsonl", "diagnostics.jsonl")
"""Files of a run with a line for each look at it, which are cut where a run goes on."""


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return output_dir / "checkpoints" / f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done when a checkpoint was written; of a copy with another name its state tells."""
    number = checkpoint.name.removeprefix("step-")
    return int(number) if number.isdigit() else read_state(checkpoint)["step"]


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run whose files are all there, oldest first."""
    return [path for path in _folders(output_dir) if is_complete(path)]


def _folders(output_dir: Path) -> list[Path]:
    found = [path for path in (output_dir / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=step_of)


def find_checkpoint(output_dir: Path, resume: str | None) -> Path | None:
    """The checkpoint that a run starts from, read as a whole by the first process; all processes must call this.

    Damaged checkpoints that are newer than the one found under `auto` are named in a warning and set aside.

    Args:
        output_dir: Folder of the run.
        resume: `auto`, a checkpoint of this run such as `step-000500`, the folder of a checkpoint, the folder of a
            run (its newest), or None.

    Returns:
        None to start from the beginning.

    Raises:
        UserError: If `resume` names no whole checkpoint, or one of another run and `output_dir` holds newer ones.
    """
    if resume is None:
        return None
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = _choose(output_dir, resume)
        except UserError as error:
            found[1] = str(error)
    if world_size() > 1:
        dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise UserError(found[1])
    return found[0]


def _choose(output_dir: Path, resume: str) -> Path | None:
    if resume == "auto":
        chosen = _newest_whole(output_dir, sets_aside=True)
        if chosen is None:
            logger.info("No checkpoint in `%s`: training starts from the beginning.", output_dir)
        return chosen
    of_this_run = output_dir / "checkpoints" / resume
    chosen = of_this_run if Path(resume).name == resume and of_this_run.is_dir() else Path(resume)
    if not (chosen / STATE).is_file() and (newest := _newest_whole(chosen, sets_aside=False)) is not None:
        chosen = newest
    damage = damage_of(chosen)
    if damage is not None:
        is_one = chosen.is_dir() and any(chosen.iterdir())
        known = ", ".join(f"`{path.name}`" for path in complete_checkpoints(output_dir))
        raise UserError(
            f"`resume` must be `auto`, a checkpoint of this run{f' ({known})' if known else ''} or the folder of a "
            f"complete checkpoint, got `{resume}`{f', of which {damage}' if is_one else ''}."
        )
    newer = [path for path in complete_checkpoints(output_dir) if step_of(path) > step_of(chosen)]
    if newer and run_of(chosen).resolve() != output_dir.resolve():
        raise UserError(
            f"`{output_dir}` holds checkpoints after step {step_of(chosen)}, such as `{newer[-1]}`, and `{resume}` is "
            "of another run. Give another `output_dir`."
        )
    return chosen


def run_of(checkpoint: Path) -> Path:
    """Folder of the run that a checkpoint belongs to."""
    return checkpoint.parent.parent


def leave_newer(checkpoint: Path) -> None:
    """Put away what a run has done after a checkpoint to which it goes back, so that `auto` does not find it again.

    Newer checkpoints, and copies of the logs that are cut after it, go into a folder `left-at-step-N` beside it. Does
    nothing for the newest checkpoint.

    Raises:
        UserError: If the disk refuses.
    """
    newer = [path for path in _folders(run_of(checkpoint)) if step_of(path) > step_of(checkpoint)]
    if not newer:
        return
    name, count = f"left-at-{checkpoint.name}", 1
    while (aside := checkpoint.with_name(name if count == 1 else f"{name}.{count}")).exists():
        count += 1
    with storage_errors_explained(aside):
        aside.mkdir()
        for log in LOGS:
            if (run_of(checkpoint) / log).exists():
                shutil.copyfile(run_of(checkpoint) / log, aside / log)
        for path in newer:  # the newest last: a kill in between leaves the rest to the next start
            path.rename(aside / path.name)
    names = ", ".join(f"`{path.name}`" for path in newer)
    logger.warning(
        "The run goes back to step %d: %s and the logs up to there are kept in `%s`.",
        step_of(checkpoint),
        names,
        aside,
    )


def _newest_whole(run_dir: Path, sets_aside: bool) -> Path | None:
    """The newest checkpoint of a run without damage; None if there is no checkpoint at all."""
    damaged: list[tuple[Path, str]] = []
    for path in reversed(_folders(run_dir)):
        damage = damage_of(path)
        if damage is None:
            for bad, why in damaged:
                aside = _set_aside(bad) if sets_aside else bad
                logger.warning("Checkpoint `%s` is damaged: %s. `%s` is used instead.", aside, why, path)
            return path
        damaged.append((path, damage))
    if damaged:
        path, why = damaged[0]
        raise UserError(
            f"`{run_dir}` has no checkpoint to resume from: of `{path}`, {why}. Bring back a copy of it, or start "
            "again in another `output_dir`."
        )
    return None


def _set_aside(checkpoint: Path) -> Path:
    """Keep a damaged checkpoint from being taken for a newer one of this run."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    with storage_errors_explained(aside):
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
    return aside


def remove_leftovers(output_dir: Path) -> None:
    """Remove what a killed process of this run has left half written or half deleted."""
    left = list((output_dir / "checkpoints").glob(".step-*"))
    whole = complete_checkpoints(output_dir)
    newest = step_of(whole[-1]) if whole else -1
    left += [path for path in _folders(output_dir) if step_of(path) < newest and not (path / STATE).exists()]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    for name in (RUN_FILE, "recipe.json", *LOGS):
        for path in leftovers_of(output_dir / name):
            path.unlink(missing_ok=True)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint so that a kill leaves nothing that looks like one."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.partial")
    try:
        shutil.rmtree(doomed, ignore_errors=True)
        checkpoint.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        logger.warning("The old checkpoint `%s` cannot be deleted: %s.", checkpoint, error.strerror)
