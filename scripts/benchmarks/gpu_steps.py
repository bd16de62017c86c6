"""The steps of `scripts/gpu_check.py`: each runs programs and returns what they measured."""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parents[1]
LEAST = 20.0
"""Seconds, below which a step is not begun."""
_GRACE = 30.0  # seconds in which a program that is asked to end may save what it has
_WORKERS = min(16, os.cpu_count() or 1)
_FIRST_RUN = 0.6  # of the rest of the time, for the first of two training runs


class MissingError(Exception):
    """What a step needs and does not have, in a sentence."""


@dataclass
class Check:
    """One call of the check.

    Args:
        options: The command line.
        environment: Of the programs that it starts.
        ends: When the time is over, by `time.monotonic`.
        kept: What the file holds, changed in place.
    """

    options: argparse.Namespace
    environment: dict[str, str]
    ends: float
    kept: dict[str, Any]

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    @property
    def stamp(self) -> dict[str, str]:
        """What a result belongs to: steps with another one are done again."""
        return {"code": self.kept["code"], "device": self.kept["machine"]["device"]}

    @property
    def work(self) -> Path:
        """Folder of runs and logs."""
        return self.options.work

    @property
    def on_gpu(self) -> bool:
        """Whether this is no toy."""
        return not self.options.cpu

    def keep(self) -> None:
        """Write the file; whoever reads it finds the old or the new one."""
        partial = self.options.output.with_suffix(".partial")
        partial.write_text(json.dumps(self.kept, indent=2) + "\n")
        os.replace(partial, self.options.output)

    def program(self, name: str, words: Sequence[str | Path], seconds: float, **environment: str) -> int | None:
        """Run a Python program with its output in a log, for so many seconds.

        Returns:
            Its exit code; None if its time was over. It was then asked to end, and killed after a while.
        """
        with (self.work / f"{name}.log").open("w") as log:
            child = subprocess.Popen(
                [sys.executable, *map(str, words)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=self.environment | environment,
                start_new_session=True,
            )
            try:
                return child.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                child.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_GRACE)
                return None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # what is left of it, such as data workers
                child.wait()

    def last_words(self, name: str, start: str = "") -> str:
        """The last line of a program's log that says something and starts so: libraries warn until the very end."""
        log = (self.work / f"{name}.log").read_text(errors="replace")
        lines = [line for line in log.splitlines() if line.strip() and line.startswith(start)]
        return lines[-1] if lines else "it said nothing"


Outcome = tuple[str, Any, str]  # status, result, reason


def tests(check: Check, seconds: float) -> Outcome:
    """The tests marked `gpu`; those that have passed before are left out."""
    results = check.work / "tests.jsonl"
    if check.kept["steps"].get("tests", {}).get("stamp") != check.stamp:
        results.unlink(missing_ok=True)
    words: list[str | Path] = ["-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider"]
    words += ["-o", "addopts=--import-mode=importlib --continue-on-collection-errors", "-o", "timeout=150"]
    words += ["-m", "gpu"] if check.on_gpu else ["-k", "iterations and cpu and paper"]
    if check.on_gpu and importlib.util.find_spec("xdist") is not None:
        words += ["-n", "4"]
    words += [f"--deselect={one['test']}" for one in _lines_of(results) if one["outcome"] == "passed"]
    code = check.program("tests", words, seconds, GPU_CHECK_RESULTS=str(results))
    last = {one["test"]: one for one in _lines_of(results)}.values()
    outcomes = [one["outcome"] for one in last]
    result = {
        "counts": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        "failures": [one for one in last if one["outcome"] == "failed"],
        "seconds": round(sum(one["seconds"] for one in last), 1),
    }
    if code is None:
        return "partial", result, "the time of this step was over; the next call goes on"
    if code in (0, 1, 5):  # 5: none was left to run
        return "done", result, ""
    return "failed", result, check.last_words("tests")


def _lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a log without those that a kill cut off; a line that was written after one may be joined to it."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]


def step(check: Check, seconds: float) -> Outcome:
    """The training step of every method against the encoder passes that it needs."""
    words: list[str | Path] = ["--precision", *(("bf16", "no") if check.on_gpu else ("no",))]
    has_lightly = importlib.util.find_spec("lightly") is not None
    if check.on_gpu and has_lightly:
        words += ["--compare", "lightly"]
    if not check.on_gpu:
        words += ["--methods", "directpred", "--recipe", "quickstart", "--batch_size", "8", *_ONCE]
    status, result, reason = _benchmark(check, "step", words, seconds)
    return status, result and {**result, "lightly": has_lightly and check.on_gpu}, reason


def predictor(check: Check, seconds: float) -> Outcome:
    """DirectPred's predictor by iterations against eigenvectors."""
    words = ["--part", "predictor", *(() if check.on_gpu else ("--dims", "64", *_ONCE))]
    return _benchmark(check, "predictor", words, seconds)


_ONCE = ("--rounds", "1", "--warmup", "0", "--device", "cpu")


def _benchmark(
    check: Check,
    name: str,
    words: Sequence[str | Path],
    seconds: float,
    *,
    script: str = "step.py",
    rows: str = "rows",
) -> Outcome:
    """A benchmark, which writes its rows as they come."""
    output = check.work / f"{name}.json"
    output.unlink(missing_ok=True)
    code = check.program(name, [BENCHMARKS / script, *words, "--output", output], seconds)
    result = {rows: json.loads(output.read_text())[rows]} if output.exists() else None
    if code is None:
        return "partial", result, "the time of this step was over; the next call begins it again"
    return ("done", result, "") if code == 0 else ("failed", result, check.last_words(name))


def data(check: Check, seconds: float) -> Outcome:
    """Decoding, views and batches from workers."""
    on_gpu = check.on_gpu
    words: list[str | Path] = ["--dataset", check.options.dataset or "shapes"]
    words += ["--num_workers", str(_WORKERS if on_gpu else 0), "--seconds", "2" if on_gpu else "0.01"]
    words += ["--only", "decode", *(("views", "stream") if on_gpu else ())]
    if on_gpu and importlib.util.find_spec("lightly") is not None:
        words += ["--compare", "lightly"]
    return _benchmark(check, "data", words, seconds, script="data.py", rows="results")


def directpred(check: Check, seconds: float) -> Outcome:
    """DirectPred on CIFAR-10 by the recipe `cifar`, compiled and not, each as far as it comes."""
    dataset = check.options.dataset or ("digits" if check.options.cpu else None)
    if dataset is None:
        raise MissingError("`--dataset` must name CIFAR-10, such as a folder with its parquet files")
    ends = time.monotonic() + seconds
    kinds = {"eager": (), "compiled": ("--compile",)} if check.on_gpu else {"eager": ()}
    waiting = [kind for kind in kinds if not _is_finished(check, kind)]
    failures = {}
    for place, kind in enumerate(waiting):
        rest = ends - time.monotonic()
        share = rest * (_FIRST_RUN if place + 1 < len(waiting) else 1.0)
        if share < LEAST:
            break
        name, folder = f"directpred-{kind}", check.work / f"directpred-{kind}"
        words = [*_recipe(check, dataset), "--output_dir", folder, "--resume", "auto", *kinds[kind]]
        code = check.program(name, ["-m", "hf_ssl", "pretrain", *words], share - _GRACE / 2)
        if code == 0 and ends - time.monotonic() >= LEAST:
            name, code = f"{name}-evaluate", _evaluate(check, folder, dataset, ends - time.monotonic())
        if code not in (0, None):
            failures[kind] = check.last_words(name)
    result = {kind: _state_of(check.work / f"directpred-{kind}") for kind in kinds}
    for kind, failure in failures.items():
        result[kind]["reason"] = failure
    if failures:
        return "failed", result, "see the runs"
    reason = "" if all(_is_finished(check, kind) for kind in kinds) else "the next call goes on"
    return "partial" if reason else "done", result, reason


def _is_finished(check: Check, kind: str) -> bool:
    return (check.work / f"directpred-{kind}.json").exists()  # what is measured at the end


def _recipe(check: Check, dataset: str) -> list[str]:
    """Flags of both runs."""
    words = ["--method", "directpred", "--dataset", dataset, "--cache", "uint8", "--knn_split", "test"]
    if not check.on_gpu:
        words += ["--recipe", "quickstart", "--num_steps", "3", "--batch_size", "16", "--num_workers", "0", "--cpu"]
        return [*words, "--diagnostics_every", "0", "--knn_images", "100"]
    words += ["--recipe", "cifar", "--mixed_precision", "bf16", "--num_workers", str(_WORKERS)]
    return [*words, "--checkpoint_every", "1000", "--log_every", "100", "--knn_every", "3900"]


def _evaluate(check: Check, folder: Path, dataset: str, seconds: float) -> int | None:
    """k-NN and linear probe of a finished encoder; where time is over, the next call makes up for it."""
    words = ["evaluate", folder, "--dataset", dataset, "--output", folder.with_suffix(".json"), "knn"]
    words += ["linear", "--bf16"] if check.on_gpu else ["--max_images", "100", "--device", "cpu"]
    return check.program(f"{folder.name}-evaluate", ["-m", "hf_ssl", *words], seconds)


def _state_of(folder: Path) -> dict[str, Any]:
    """How far a run has come, how fast, and what it has learnt."""
    if not (folder / "run.json").exists():
        return {"step": 0}
    run = json.loads((folder / "run.json").read_text())
    path, measured = folder / "metrics.jsonl", folder.with_suffix(".json")
    lines = _lines_of(path)
    losses = [line for line in lines if "loss" in line]
    # The first line has the choice of kernels and the compiler in it.
    speeds = [line["images_per_second"] for line in losses[1:] or losses]
    knn = [line["knn"] for line in lines if "knn" in line]
    evaluation = json.loads(measured.read_text())["results"] if measured.exists() else []
    return {
        "step": run["progress"]["step"],
        "num_steps": run["training"]["num_steps"],
        "seconds": run["progress"]["seconds"],
        "images_per_second": statistics.median(speeds) if speeds else None,
        "data_wait": statistics.median(line["data_wait"] for line in losses) if losses else None,
        "loss": losses[-1]["loss"] if losses else None,
        "knn": knn[-1] if knn else None,
        "evaluation": [{"name": one["protocol"], "value": one["value"]} for one in evaluation],
    }


Step = Callable[[Check, float], Outcome]
STEPS: dict[str, tuple[Step, float]] = {
    "tests": (tests, 170.0),
    "step": (step, 90.0),
    "predictor": (predictor, 40.0),
    "data": (data, 80.0),
    "directpred": (directpred, float("inf")),
}
"""Name -> the step, and the seconds that it may take."""
