"""Measure what training in several processes costs: a step together against the same step of each process alone.

    python scripts/benchmarks/processes.py --num_processes 1 2 --batch_size 64 --output processes.json
    python scripts/benchmarks/processes.py --methods moco byol --num_processes 1 2 4 8

Every process has a batch of its own, and a GPU or one thread of the CPU. `alone`, the processes run at the same time
without speaking to each other, so that the cores and the memory that they share count on both sides; `together`, they
average gradients, gather keys or features and synchronise BatchNorm as in training. The slowest process counts, the
median of some rounds in which both have their turn. Images are random numbers. What grows with the number of processes
beyond `alone` is communication: trust the ratio, not the milliseconds.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import step
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from hf_ssl.commands.errors import errors_for_users
from hf_ssl.distributed import world_size
from hf_ssl.errors import UserError
from hf_ssl.modules.batch_norm import synchronize_batch_norm

# Of each way to use the other processes.
METHODS = ("end_to_end", "memory_bank", "moco", "moco_v3", "byol", "directpred")


def main(arguments: list[str]) -> int:
    """Parse, measure, print and keep; returns the exit code."""
    options = parse(arguments)
    rows = []
    cases = [(method, number) for method in options.methods for number in options.num_processes]
    for method, number in tqdm(cases, unit="row", leave=False):
        alone, together = measure(method, number, options)
        row = {"method": method, "processes": number, "alone ms": 1000 * alone, "together ms": 1000 * together}
        rows.append(row | {"x alone": together / alone, "images/s": number * options.batch_size / together})
    step.report(rows, options)
    return 0


def measure(method: str, number: int, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a step of `number` processes, alone and together."""
    barrier = multiprocessing.get_context("spawn").Barrier(number)
    with tempfile.TemporaryDirectory() as folder:
        spawn(_process, (number, barrier, method, options, folder), nprocs=number)
        each = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(number)]
    alone, together = (
        statistics.median(max(rounds) for rounds in zip(*(seconds[kind] for seconds in each), strict=True))
        for kind in ("alone", "together")
    )
    return alone, together


def _process(rank: int, number: int, barrier: Any, method: str, options: argparse.Namespace, folder: str) -> None:
    """Be one of the processes, and write the seconds of every round."""
    cuda = options.device.type == "cuda"
    if cuda:
        options.device = torch.device("cuda", rank)
        torch.cuda.set_device(options.device)
    else:
        torch.set_num_threads(1)
    torch.manual_seed(rank)
    meeting = f"file://{folder}/meeting"
    alone = _step(method, options)
    # The library looks whether there is a process group: alone means that there is none, before and after.
    seconds = {"alone": _timed(alone, barrier, options)}
    dist.init_process_group("nccl" if cuda else "gloo", init_method=meeting, rank=rank, world_size=number)
    seconds["together"] = _timed(_step(method, options), barrier, options)
    dist.destroy_process_group()
    seconds["alone"] += _timed(alone, barrier, options)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(seconds))


def _step(method: str, options: argparse.Namespace) -> step.Stages:
    """The step of this process, by the process group that there is."""
    model, settings = step.build(method, options)
    network = model
    if world_size() > 1:
        if (settings.batch_norm or model.batch_norm) == "sync":
            synchronize_batch_norm(model)
        with warnings.catch_warnings():
            # PyTorch 2.15 renames the argument; the library's oldest PyTorch only knows the old name.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            network = DistributedDataParallel(model, broadcast_buffers=False)
    size = model.config.image_size
    views = torch.randn(options.batch_size, 2, 3, size, size).to(options.device)
    return step.library_step(model, settings, views, options.precision, options, network)


def _timed(stages: step.Stages, barrier: Any, options: argparse.Namespace) -> list[float]:
    """Seconds of each round that counts; all processes begin a round at the same time."""
    seconds = []
    for _ in range(options.warmup + options.rounds):
        barrier.wait()
        began = time.perf_counter()
        for stage in stages.values():
            stage()
        if options.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds[options.warmup :]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; wrong values are a `ValueError` of one sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--num_processes", type=int, nargs="+", default=[1, 2], metavar="N", help="numbers to try, in turn [1 2]"
    )
    step.add_step_options(parser, METHODS)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="[no]")
    options = parser.parse_args(arguments)
    step.check_step_options(options)
    gpus = torch.cuda.device_count()
    for number in options.num_processes:
        if number < 1:
            raise UserError(f"`--num_processes` must be at least 1, got {number}.")
        if options.device.type == "cuda" and number > gpus:
            raise UserError(f"`--num_processes` must be at most the number of GPUs, {gpus}, got {number}.")
    return options


if __name__ == "__main__":
    with errors_for_users():
        sys.exit(main(sys.argv[1:]))
