"""The steps of `scripts/gpu_check.py`: each runs programs and returns what they measured."""

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gpu_packages
from gpu_stamps import begin, code_of, data_of

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parents[1]
LEAST = 20.0
"""Seconds, below which a step is not begun."""
_GRACE = 30.0  # seconds in which a training that is asked to end may write a checkpoint
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

    def stamp_of(self, name: str) -> dict[str, Any]:
        """What a step's result belongs to: with another one it is done again."""
        machine = self.kept["machine"]
        stamp = {"code": self.kept["code"][name], "device": machine["device"], "torch": machine["versions"]["torch"]}
        return stamp | self._data.get(name, {})

    def is_current(self, name: str, kept: Mapping[str, Any] | None) -> bool:
        """Whether a step's result belongs here. What was measured on a data set is not lost by a call without one."""
        if kept is None:
            return False
        left_out = () if self.options.dataset is not None else ("dataset", "files")
        stamps = [
            {key: value for key, value in stamp.items() if key not in left_out}
            for stamp in (kept["stamp"], self.stamp_of(name))
        ]
        return stamps[0] == stamps[1]

    @functools.cached_property
    def _data(self) -> dict[str, dict[str, str]]:
        """The data set of each step that takes one."""
        if self.options.dataset is not None:
            return dict.fromkeys(_WITHOUT_DATASET, data_of(self.options.dataset))
        return {name: {"dataset": own[self.on_gpu]} for name, own in _WITHOUT_DATASET.items() if own[self.on_gpu]}

    def dataset_of(self, name: str) -> str | None:
        """What a step takes; None if it needs one that is not given."""
        return self.options.dataset or _WITHOUT_DATASET[name][self.on_gpu]

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

    def program(
        self, name: str, words: Sequence[str | Path], seconds: float, *, grace: float = 5.0, **environment: str
    ) -> int | None:
        """Run a Python program with its output in a log.

        Args:
            name: Of the log.
            words: Of the command line.
            seconds: That it may take at most, its end among them.
            grace: Seconds of these that are left for its end, a quarter of them at most.
            environment: Further variables.

        Returns:
            Its exit code; None if its time was over: it was asked to end, and killed after the grace.
        """
        seconds = max(4.0, seconds)
        grace = min(grace, seconds / 4)
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
                return child.wait(seconds - grace)
            except subprocess.TimeoutExpired:
                child.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(grace)
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
    begin(check.work / "tests.stamp", check.stamp_of("tests"), results)
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
    compares = check.on_gpu and gpu_packages.has_lightly(ROOT)
    if compares:
        words += ["--compare", "lightly"]
    if not check.on_gpu:
        words += ["--methods", "directpred", "--recipe", "quickstart", "--batch_size", "8", *_ONCE]
    status, result, reason = _benchmark(check, "step", words, seconds)
    return status, result and {**result, "lightly": compares}, reason


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
    words: list[str | Path] = ["--dataset", check.dataset_of("data") or ""]
    words += ["--num_workers", str(_WORKERS if on_gpu else 0), "--seconds", "2" if on_gpu else "0.01"]
    words += ["--only", "decode", *(("views", "stream") if on_gpu else ())]
    if on_gpu and gpu_packages.has_lightly(ROOT):
        words += ["--compare", "lightly"]
    return _benchmark(check, "data", words, seconds, script="data.py", rows="results")


def directpred(check: Check, seconds: float) -> Outcome:
    """DirectPred on CIFAR-10 by the recipe `cifar`, compiled and not, each as far as it comes."""
    dataset = check.dataset_of("directpred")
    if dataset is None:
        raise MissingError("`--dataset` must name CIFAR-10, such as a folder with its parquet files")
    ends = time.monotonic() + seconds
    kinds = {"eager": (), "compiled": ("--compile",)} if check.on_gpu else {"eager": ()}
    anew = {kind: _begin_run(check, kind, [*_recipe(check), *flags]) for kind, flags in kinds.items()}
    waiting = [kind for kind in kinds if not _is_finished(check, kind)]
    failures = {}
    for place, kind in enumerate(waiting):
        rest = ends - time.monotonic()
        share = rest * (_FIRST_RUN if place + 1 < len(waiting) else 1.0)
        if share < LEAST:
            break
        name, folder = f"directpred-{kind}", check.work / f"directpred-{kind}"
        words = [*_recipe(check), *kinds[kind], "--dataset", dataset, "--output_dir", folder, "--resume", "auto"]
        words += ["--num_workers", str(_WORKERS if check.on_gpu else 0)]
        code = check.program(name, ["-m", "hf_ssl", "pretrain", *words], share, grace=_GRACE)
        if code == 0 and ends - time.monotonic() >= LEAST:
            name, code = f"{name}-evaluate", _evaluate(check, folder, dataset, ends - time.monotonic())
        if code not in (0, None):
            failures[kind] = check.last_words(name)
    result = {kind: _state_of(check.work / f"directpred-{kind}") for kind in kinds}
    for kind, failure in failures.items():
        result[kind]["reason"] = failure
    notes = [f"{kind} began anew: {differs}" for kind, differs in anew.items() if differs]
    if failures:
        return "failed", result, "; ".join([*notes, "see the runs"])
    if all(_is_finished(check, kind) for kind in kinds):
        return "done", result, "; ".join(notes)
    return "partial", result, "; ".join([*notes, "the next call goes on"])


def _begin_run(check: Check, kind: str, recipe: list[str]) -> str:
    """Set a run aside that was trained otherwise; what differs, if there was one."""
    folder = check.work / f"directpred-{kind}"
    # Not the code of the whole step: tests and benchmarks may change while a long training goes on.
    stamp = check.stamp_of("directpred") | {"code": check.kept["code"]["package"], "recipe": recipe}
    return begin(folder.with_suffix(".stamp"), stamp, folder, folder.with_suffix(".json"))


def _is_finished(check: Check, kind: str) -> bool:
    return (check.work / f"directpred-{kind}.json").exists()  # what is measured at the end


def _recipe(check: Check) -> list[str]:
    """Flags of both runs that make them what they are."""
    words = ["--method", "directpred", "--cache", "uint8", "--knn_split", "test"]
    if not check.on_gpu:
        words += ["--recipe", "quickstart", "--num_steps", "3", "--batch_size", "16", "--cpu"]
        return [*words, "--diagnostics_every", "0", "--knn_images", "100"]
    words += ["--recipe", "cifar", "--mixed_precision", "bf16"]
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


class Step(NamedTuple):
    """A step of the check.

    Args:
        work: Does it, in so many seconds.
        seconds: That it may take.
        code: Files and folders that it runs, besides the package.
    """

    work: Callable[[Check, float], Outcome]
    seconds: float
    code: Sequence[str] = ()


STEPS = {
    "tests": Step(tests, 170.0, ("tests/gpu", "tests/conftest.py")),
    "step": Step(step, 90.0, ("scripts/benchmarks/step.py",)),
    "predictor": Step(predictor, 40.0, ("scripts/benchmarks/step.py",)),
    "data": Step(data, 80.0, ("scripts/benchmarks/data.py",)),
    "directpred": Step(directpred, float("inf")),
}
_WITHOUT_DATASET = {"data": ("shapes", "shapes"), "directpred": ("digits", None)}
"""Steps that take a data set -> what they take where none is given, without and with a GPU."""


def codes() -> dict[str, str]:
    """Checksums of the code of the package alone and of each step, with the flags that are given here."""
    here = Path(__file__).resolve().relative_to(ROOT).as_posix()
    return {"package": code_of(ROOT), **{name: code_of(ROOT, here, *one.code) for name, one in STEPS.items()}}
