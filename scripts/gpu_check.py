"""Check everything on one GPU, in minutes: tests, benchmarks, and as much of DirectPred on CIFAR-10 as time allows.

    make gpu-check GPU_CHECK="--dataset data/cifar10"
    python scripts/gpu_check.py --dataset data/cifar10 --wheels wheels --minutes 8
    python scripts/gpu_check.py --table

Each step has a share of the time and is written to one JSON file as soon as it ends, so that a kill costs the running
step. The next call goes on with what is missing: it leaves out steps that were done on such a device with the same
code, PyTorch and data set, and tests that have passed, and continues the training runs from their checkpoints. A run
that was trained otherwise is set aside and begins anew. A failed test ends nothing; it is listed.

The package need not be installed. Packages that are missing are named, with the command that gets them; `--wheels`
installs them from a folder, without a network, beside those that are there. lightly, pytest-xdist and pytest-timeout
are installed if their wheels are there: without lightly nothing is compared, without the others the tests take longer.

Without a GPU, `--cpu` does the same in toy size, in files of its own: it shows that the check works, and measures
nothing.
"""

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))

import gpu_packages  # noqa: E402  # pyright: ignore[reportMissingImports]
from gpu_steps import LEAST, ROOT, STEPS, Check, MissingError, Outcome, codes  # noqa: E402  # pyright: ignore[reportMissingImports]
from gpu_table import table  # noqa: E402  # pyright: ignore[reportMissingImports]

OUTPUT = ROOT / "model_cards" / "results" / "gpu_check.json"
_MACHINE = """
import json, shutil, subprocess, torch
from machine import describe_machine
found, driver = torch.cuda.is_available(), None
if found and shutil.which("nvidia-smi"):
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, stdout=subprocess.PIPE, text=True).stdout.strip().partition("\\n")[0]
device = torch.cuda.get_device_properties(0) if found else None
print(json.dumps({
    **describe_machine(), "device": device.name if found else "CPU", "driver": driver,
    "device_gib": round(device.total_memory / 2**30, 1) if found else None,
    "capability": list(torch.cuda.get_device_capability()) if found else None,
    "cuda_version": torch.version.cuda, "cudnn": torch.backends.cudnn.version() if found else None,
}))
"""


def run_steps(check: Check) -> Iterator[str]:
    """Do what is missing, in its order, and keep each step when it has ended; yields their names."""
    for name in check.options.steps:
        former = check.kept["steps"].get(name)
        current = check.is_current(name, former)
        if current and former["status"] == "done":
            continue
        began, seconds = time.monotonic(), min(STEPS[name].seconds, check.left)
        if seconds < LEAST and check.on_gpu:
            outcome: Outcome = ("missing", None, "no time was left; the next call begins with it")
        else:
            try:
                outcome = STEPS[name].work(check, seconds)
            except MissingError as error:
                outcome = ("missing", None, f"{error}.")
            except Exception as error:  # what breaks one step, such as a file that it left, must not cost the others
                traceback.print_exc()
                outcome = ("failed", None, f"{type(error).__name__}: {error}")
        status, result, reason = outcome
        if status == "missing" and current and former["result"]:  # what an earlier call came to is not lost
            check.kept["steps"][name] = former | ({"reason": reason} if former["status"] == "partial" else {})
        else:
            kept = {"status": status, "stamp": check.stamp_of(name), "seconds": round(time.monotonic() - began, 1)}
            check.kept["steps"][name] = kept | {"reason": reason, "result": result}
        check.keep()
        yield name


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--dataset", metavar="FOLDER", help="CIFAR-10, with splits train and test; without it shapes, no DirectPred")
    add("--wheels", type=Path, metavar="FOLDER", help="wheels from which missing packages are installed")
    add("--minutes", type=float, default=8.0, help="for everything [8]")
    add("--work", type=Path, metavar="FOLDER", help="runs and logs [runs/gpu_check; with --cpu runs/gpu_check_cpu]")
    add("--output", type=Path, metavar="FILE", help=f"[{OUTPUT.relative_to(ROOT)}; with --cpu check.json in --work]")
    add("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=f"some of {', '.join(STEPS)}")
    add("--cpu", action="store_true", help="toy size, on the CPU")
    add("--table", action="store_true", help="print the table of the file again, and do nothing")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < math.inf:
        parser.error(f"`--minutes` must be a number above 0, got {options.minutes:g}.")
    work = options.work or ROOT / "runs" / ("gpu_check_cpu" if options.cpu else "gpu_check")
    output = options.output or (work / "check.json" if options.cpu else OUTPUT)
    options.output, options.work = output.resolve(), work.resolve()
    if options.cpu and options.output == OUTPUT:
        parser.error(f"`--output` must be another file with `--cpu`, got {output}: it is for numbers of a GPU.")
    if options.dataset is not None and Path(options.dataset).exists():
        options.dataset = str(Path(options.dataset).resolve())  # its programs run in the clone
    return options


def main(arguments: Sequence[str]) -> int:
    """Do what is missing; returns 0, 1 if a test or step failed, 2 if the check cannot be made."""
    options, began = parse(arguments), time.monotonic()
    kept: dict[str, Any] = {"steps": {}}
    if options.output.exists():
        try:
            kept = json.loads(options.output.read_text())
            if not isinstance(kept, dict) or not isinstance(kept.get("steps"), dict):
                raise ValueError("it has no `steps`")
            if not isinstance(kept.get("code", {}), dict):
                raise ValueError("it is of an earlier version")
        except (OSError, ValueError) as error:
            print(f"error: `{options.output}` cannot be read as a check ({error}). Move it away.")
            return 2
    if options.table:
        print(table(kept) if "machine" in kept else f"error: `{options.output}` holds no check yet.")
        return 0 if "machine" in kept else 2
    for flag, folder in (("--work", options.work), ("--output", options.output.parent)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            print(f"error: `{folder}` cannot be written ({error.strerror}). Give another place by `{flag}`.")
            return 2
    environment = _environment(options)
    if environment is None:
        return 2
    check = Check(options, environment, began + 60 * options.minutes, kept)
    if check.program("machine", ["-c", _MACHINE], min(120.0, check.left)) != 0:
        print(f"error: this machine cannot be described: {check.last_words('machine')}")
        return 2
    kept["machine"], kept["code"] = json.loads(check.last_words("machine", "{")), codes()
    if check.on_gpu and kept["machine"]["device"] == "CPU":
        print("error: PyTorch sees no CUDA device here. `--cpu` does the same steps in toy size.")
        return 2
    for name in run_steps(check):
        done = kept["steps"][name]
        reason = f": {done['reason']}" if done["reason"] else ""
        print(f"{name}: {done['status']} after {done['seconds']:.0f} s{reason}", flush=True)
    print(table(kept))
    failed = [one for one in kept["steps"].values() if one["status"] == "failed"]
    return int(bool(failed or (kept["steps"].get("tests", {}).get("result") or {}).get("failures")))


def _environment(options: argparse.Namespace) -> dict[str, str] | None:
    """Variables of the programs to start; None, with an explanation, if packages are missing."""
    site = options.work / "site"
    if site.is_dir():
        sys.path.insert(0, str(site))  # before what is too old
    missing, helpful = gpu_packages.lacking(gpu_packages.needed(ROOT)), gpu_packages.helpful(ROOT)
    left_out = gpu_packages.lacking(helpful)
    if options.wheels is not None:
        wheels, missing = gpu_packages.choose(missing, options.wheels)
        more, left_out = gpu_packages.choose_some(left_out, options.wheels)
        wheels = list(dict.fromkeys([*wheels, *more]))
        if wheels and not missing:
            failure = gpu_packages.install(wheels, site)
            if failure is not None:
                print(f"error: the wheels of `{options.wheels}` cannot be installed: {failure}")
                return None
            sys.path.insert(0, str(site))
            missing = gpu_packages.lacking(gpu_packages.needed(ROOT))
    if missing or left_out:
        if missing:
            print(f"error: these packages are missing: {', '.join(map(str, missing))}.")
        if left_out:
            print(f"Of use, but not necessary: {', '.join(map(str, left_out))}.")
        print(f"Where there is a network:\n\n    {gpu_packages.how_to_get([*missing, *left_out])}\n")
        print("Then give the folder by `--wheels wheels`.", flush=True)
    if missing:
        return None
    places = [str(ROOT), str(BENCHMARKS), *([str(site)] if site.is_dir() else []), os.environ.get("PYTHONPATH", "")]
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(options.work / "inductor"),  # what is compiled is not compiled again
    }
    if options.cpu:
        variables["CUDA_VISIBLE_DEVICES"] = ""  # a toy is no GPU's, also where there is one
    return os.environ | variables


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
