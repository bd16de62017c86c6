"""What must hold after every blow, and what must be equal in the end."""

import fcntl
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cases import BATCH_SIZE, NUM_STEPS, Blow, Case
from forks import Started
from pictures import Hub
from safetensors.torch import load_file

from hf_ssl.training.find import complete_checkpoints, step_of
from hf_ssl.training.integrity import damage_of

MEASURED = ("images_per_second", "data_wait")  # of a line of metrics.jsonl: how fast it was
ALIKE = ("byol", "simsiam", "directpred")
"""Methods whose steps do not depend on the number of processes, where BatchNorm is over the same images."""

BEFORE_TRAINING = ("start", "cache")
"""Moments at which processes do not look after each other yet: those that are left may end with a traceback."""

CLOSE = 1e-3  # of the norm of all weights, after all steps with sums in another order


def faults_after(start: Started, blow: Blow | None, ended: bool) -> list[str]:
    """What is wrong in the folder of a run, and with the way in which its processes have ended.

    Args:
        start: Of the processes.
        blow: What hit them; None if nothing did.
        ended: Whether all of them came to an end.
    """
    found = [] if ended else ["processes were left"]
    run, text = start.folder / "run", start.log.read_text(errors="replace")
    codes = sorted({code for code in start.codes.values() if code is not None})
    if blow is None and any(codes):
        found.append(f"exit codes {codes}")
    if blow is not None and not set(codes) <= _allowed(start, blow):
        found.append(f"exit codes {codes}")
    # Those of a data worker whose process was killed are Python's own, and those of a launcher are its.
    traceback = start.form == "fork" and re.search(r'^  File ".*/hf_ssl/', text, re.MULTILINE)
    alone = start.num_processes == 1
    if traceback and (alone or blow is None or blow.moment not in BEFORE_TRAINING):
        found.append(f"a traceback in {start.log}")
    stopped = re.findall(r"Stopped by \w+ after step (\d+)", text)
    whole = complete_checkpoints(run)
    if stopped and int(stopped[-1]) not in [step_of(path) for path in whole]:
        found.append(f"no checkpoint of step {stopped[-1]}, at which it stopped")
    found += [f"{path}: {damage}" for path in whole if (damage := damage_of(path))]
    if (run / "run.json").exists() and not _is_json((run / "run.json").read_text()):
        found.append("run.json cannot be read")
    if (run / "metrics.jsonl").exists():
        lines = (run / "metrics.jsonl").read_text().splitlines()
        found += ["metrics.jsonl is damaged"] * (not all(map(_is_json, lines[:-1])))
    if (run / ".lock").exists() and not _is_free(run / ".lock"):
        found.append("the folder is still locked")
    if blow is None or stopped:
        found += [f"{path.relative_to(run)} was left" for path in _leftovers(run)]
    return found


def _allowed(start: Started, blow: Blow) -> set[int]:
    """Exit codes after a blow: of the signal before a run and in it, of those that lost one, of a run that is done."""
    codes = {0, -blow.signal, 75}
    if blow.moment in BEFORE_TRAINING and start.num_processes > 1:
        codes |= {1, -signal.SIGTERM, 128 + signal.SIGTERM}
    if blow.signal != signal.SIGKILL:
        codes.add(128 + blow.signal)
    elif start.form != "fork":
        codes.add(143)  # the launcher has died
    return codes | ({1} if start.form != "fork" else set())


def _leftovers(run: Path) -> Iterator[Path]:
    for path in run.rglob(".*"):
        if path.name != ".lock":
            yield path
    yield from run.glob("checkpoints/*.damaged")


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _is_free(lock: Path) -> bool:
    with lock.open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def differences(case: Case, quiet: Path, hurt: Path, num_starts: int, hub: Hub) -> list[str]:
    """What is not as in the run that nothing disturbed.

    Args:
        case: The case.
        quiet: Where that run was.
        hurt: Where the other one was.
        num_starts: Of the other one.
        hub: Where it has published.
    """
    found = []
    expected = _steps(quiet, 0, case.processes[0])
    seen: dict[int, Any] = {}
    for number in range(num_starts):
        for step, pictures in _steps(hurt, number, case.processes[number % len(case.processes)]).items():
            seen[step] = pictures
            if pictures != expected.get(step):
                found.append(f"start {number + 1} saw other pictures in step {step}")
    if sorted(expected) != list(range(1, NUM_STEPS + 1)) or sorted(seen) != sorted(expected):
        found.append(f"steps {sorted(seen)}")
    same = len(set(case.processes)) == 1
    logs = [[json.loads(line) for line in (one / "run/metrics.jsonl").open()] for one in (quiet, hurt)]
    if [line["step"] for line in logs[0]] != [line["step"] for line in logs[1]]:
        found.append(f"metrics.jsonl has steps {[line['step'] for line in logs[1]]}")
    elif same:
        for one, other in zip(*logs, strict=True):
            other_names = [name for name in one | other if one.get(name) != other.get(name) and name not in MEASURED]
            found += [f"metrics.jsonl: `{name}` differs at step {one['step']}" for name in other_names]
    found += _of_weights(case, quiet / "run", hurt / "run", same)
    if case.publishes:
        for name in ("model.safetensors", "pretraining/model.safetensors"):
            local = hurt / "run" / (name if "/" in name else f"encoder/{name}")
            if hub.file(case.repo_id, name) != local.read_bytes():
                found.append(f"{name} on the Hub is not that of the run")
    return found


def _steps(folder: Path, start: int, num_processes: int) -> dict[int, list[int]]:
    """Pictures of every whole step of a start, over all processes."""
    text = (folder / f"log-{start}.txt").read_text(errors="replace")
    resumed = re.findall(r"Resuming after step (\d+)", text)
    first = int(resumed[-1]) if resumed else 0
    share = BATCH_SIZE // num_processes
    steps: dict[int, list[list[int]]] = {}
    for rank in range(num_processes):
        trace = folder / f"trace-{start}-{rank}.jsonl"
        lines = trace.read_text().splitlines(keepends=True) if trace.exists() else []
        pictures = [one for line in lines if line.endswith("\n") for one in json.loads(line)]
        for number in range(len(pictures) // share):
            steps.setdefault(first + number + 1, []).append(pictures[number * share : (number + 1) * share])
    return {step: sorted(sum(parts, [])) for step, parts in steps.items() if len(parts) == num_processes}


def _of_weights(case: Case, quiet: Path, hurt: Path, same: bool) -> list[str]:
    found = []
    for name in (f"checkpoints/step-{NUM_STEPS:06d}", "encoder", "pretraining"):
        one, other = (load_file(run / name / "model.safetensors") for run in (quiet, hurt))
        if one.keys() != other.keys():
            found.append(f"{name}: weights of other names")
            continue
        if not all(value.isfinite().all() for value in other.values()):
            found.append(f"{name}: weights that are not finite")
        alike = case.method in ALIKE and "--images_per_device" not in case.flags
        if same and not _equal(one, other):
            found.append(f"{name}: other weights than those of the undisturbed run")
        elif alike and (apart := _apart(one, other)) > CLOSE:
            found.append(f"{name}: weights differ by {apart:.2g}")
    if same:
        states = [torch.load(run / f"checkpoints/step-{NUM_STEPS:06d}/optimizer.pt") for run in (quiet, hurt)]
        if not _equal(*states):
            found.append("the optimizer's state differs")
    return found


def _apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Distance of all weights together: single ones, such as a bias before BatchNorm, may be nothing but rounding."""
    pairs = [(one[name].double(), other[name].double()) for name in one]
    squares = [(float((a - b).square().sum()), float(a.square().sum())) for a, b in pairs]
    return (sum(apart for apart, _ in squares) / sum(size for _, size in squares)) ** 0.5


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other
