"""What a run tells between its GPUs and reads in a step, on paper, and what limits it first on 8, 64 and 512 of them.

    python scripts/benchmarks/scale.py
    python scripts/benchmarks/scale.py --batch recipe --storage_gb 20
    python scripts/benchmarks/scale.py --check 2 4 8 --output check.json

The bytes follow from each method's settings; the seconds from numbers of a machine that the flags give: by default
those of a DGX A100. `--check` trains small batches of the same encoder in gloo processes on this machine, and compares
the bytes on paper with those that each process gives to collectives, and with those that pass the loopback device.
"""

import argparse
import ctypes
import fcntl
import json
import math
import multiprocessing
import os
import socket
import struct
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import step
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm
from traffic import Collective, counted, method_of, traffic, views_seen

from hf_ssl.commands.errors import errors_for_users
from hf_ssl.errors import UserError
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.modules.batch_norm import synchronize_batch_norm

GPUS_PER_NODE = 8
# Microseconds of one collective of a few kilobytes: NCCL's own model, src/graph/tuning.cc, protocol LL, two AMD CPUs.
RING = {"base": 6.6, "inside": 0.6, "inside of several nodes": 2.0, "network": 2.7}
TREE = {"base": 6.8, "inside": 0.6, "network": 5.0}
# Below that much of a step, no cost beside the GPU's own work is named.
SMALL = 0.05


def main(arguments: list[str]) -> int:
    """Parse, compute or check, print and keep; returns the exit code."""
    options = parse(arguments)
    if options.check:
        # A process of its own: only one without threads may leave the network of this machine.
        process = multiprocessing.get_context("fork").Process(target=_check_and_report, args=(options,))
        process.start()
        process.join()
        return process.exitcode or 0
    models = {name: paper_model(name, options) for name in options.methods}
    print(bytes_table(models, options), reading_table(models, options), limits_table(models, options), sep="\n\n")
    return 0


def paper_model(name: str, options: argparse.Namespace) -> SSLPreTrainedModel:
    """The method of a recipe, without memory for its weights."""
    with torch.device("meta"):
        return step.build(name, argparse.Namespace(**{**vars(options), "device": "meta"}))[0]


def images_per_gpu(model: SSLPreTrainedModel, gpus: int, options: argparse.Namespace) -> int:
    """Images of one GPU in a step; 0 where the recipe's batch is smaller than the number of GPUs."""
    if options.batch == "recipe":
        return METHODS[method_of(model)].recipes[options.recipe]["batch_size"] // gpus
    return int(options.batch)


def seconds_of_compute(model: SSLPreTrainedModel, images: int, options: argparse.Namespace) -> float:
    """The encoder's passes alone: a forward pass is a third of a forward and backward pass."""
    online, target = views_seen(model)
    return images * (online + target / 3) / options.gpu_images


def latency(kind: str, gpus: int) -> float:
    """Seconds of a collective that has next to nothing to carry."""
    nodes = math.ceil(gpus / GPUS_PER_NODE)
    if kind == "all_reduce":
        inside = min(gpus, GPUS_PER_NODE) - 1
        return 1e-6 * (TREE["base"] + 2 * (inside * TREE["inside"] + int(math.log2(nodes)) * TREE["network"]))
    hop = RING["inside"] if nodes == 1 else RING["inside of several nodes"]
    return 1e-6 * (RING["base"] + (gpus - nodes) * hop + (nodes - 1) * RING["network"])


def seconds_of(one: Collective, gpus: int, network_gb: float, options: argparse.Namespace) -> float:
    """Seconds of collectives on links that nothing else uses; each node's traffic leaves it once on each ring."""
    nodes = math.ceil(gpus / GPUS_PER_NODE)
    speed = options.nvlink_gb if nodes == 1 else min(options.nvlink_gb, network_gb)
    if one.kind == "all_to_all" and nodes > 1:
        # No ring: each GPU sends straight to all others, those of other nodes through its part of the network.
        speed = min(options.nvlink_gb, network_gb / GPUS_PER_NODE * (gpus - 1) / (gpus - GPUS_PER_NODE))
    return one.calls * latency(one.kind, gpus) + one.sent(gpus) / (1e9 * speed)


def costs(
    model: SSLPreTrainedModel, gpus: int, images: int, network_gb: float, options: argparse.Namespace
) -> dict[str, float]:
    """Seconds of a step by what takes them: the GPU's own work, and what it waits for.

    Gradients travel during the backward pass, two thirds of the trained views' time: only what is longer counts.
    """
    online, _ = views_seen(model)
    found = {"GPU": seconds_of_compute(model, images, options)}
    for one in traffic(model, images, gpus, model.batch_norm):
        seconds = seconds_of(one, gpus, network_gb, options)
        if one.what == "gradients":
            seconds = max(0.0, seconds - images * online * (2 / 3) / options.gpu_images)
        what = one.what.removeprefix("gradients of ")
        found[what] = found.get(what, 0.0) + seconds
    return found


def limit(model: SSLPreTrainedModel, gpus: int, network_gb: float, options: argparse.Namespace) -> str:
    """What limits a step first, and the part of it in which the GPU computes.

    Reading files and making views go on beside the step: they limit it where they take longer than all of it.
    """
    images = images_per_gpu(model, gpus, options)
    if not images:
        return "no image for each"
    found = costs(model, gpus, images, network_gb, options)
    total = sum(found.values())
    largest = max((name for name in found if name != "GPU"), key=lambda name: found[name])
    name = "GPU" if found[largest] < SMALL * total else largest
    beside = {"views": images / (options.core_images * options.cores)}
    if options.storage_gb:
        beside["reading"] = gpus * images * options.image_kb / (1e6 * options.storage_gb)
    slowest = max(beside, key=lambda name: beside[name])
    if beside[slowest] > total:
        name, total = slowest, beside[slowest]
    return f"{name}, {100 * found['GPU'] / total:.0f} %"


def limits_table(models: dict[str, SSLPreTrainedModel], options: argparse.Namespace) -> str:
    """The first limit of each method on each number of GPUs, and on each network where there are several nodes."""
    cases = {
        f"{gpus} GPUs" + (f", {network_gb:g} GB/s" if gpus > GPUS_PER_NODE else ""): (gpus, network_gb)
        for network_gb in options.network_gb
        for gpus in options.gpus
    }
    rows = [
        {"method": f"`{name}`", **{title: limit(model, *case, options) for title, case in cases.items()}}
        for name, model in models.items()
    ]
    return markdown(rows)


def bytes_table(models: dict[str, SSLPreTrainedModel], options: argparse.Namespace) -> str:
    """Megabytes that a GPU sends in a step: gradients, statistics, and what the method itself exchanges."""
    rows = []
    for name, model in models.items():
        row: dict[str, Any] = {"method": f"`{name}`"}
        for gpus in options.gpus:
            images = images_per_gpu(model, gpus, options)
            sent = {"gradients": 0.0, "BatchNorm": 0.0, "own": 0.0}
            for one in traffic(model, images, gpus, model.batch_norm):
                sent[one.what if one.what in sent else "own"] += one.sent(gpus) / 1e6
            row[f"{gpus} GPUs"] = " + ".join(map(number, sent.values()))
        rows.append(row)
    return markdown(rows)


def reading_table(models: dict[str, SSLPreTrainedModel], options: argparse.Namespace) -> str:
    """What a GPU that never waits needs: images, cores that make views, gigabytes a second of files."""
    rows = []
    for name, model in models.items():
        images = 1 / seconds_of_compute(model, 1, options)
        row = {"method": f"`{name}`", "images/s of a GPU": f"{images:,.0f}"}
        row["cores of a GPU"] = f"{images / options.core_images:.1f}"
        for gpus in options.gpus:
            row[f"GB/s, {gpus} GPUs"] = number(gpus * images * options.image_kb / 1e6)
        rows.append(row)
    return markdown(rows)


def number(value: float) -> str:
    """With two digits, or whole."""
    return "0" if value == 0 else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table of a guide."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)])


def _check_and_report(options: argparse.Namespace) -> None:
    options.own_network = enter_a_new_network()
    if not options.own_network:
        print("Bytes on the wire are not counted: this system gives the command no network of its own.")
    rows = check(options)
    step.report(rows, options)
    sys.exit(0 if all(row["equal"] for row in rows) else 1)


def check(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Bytes of a step on paper beside those counted, for each method and number of processes.

    Two counts: what a process gives to collectives, by kind; and what all of them send through the loopback device,
    where this process has a network of its own.
    """
    rows = []
    for size in tqdm(options.check, unit="size", leave=False):
        with tempfile.TemporaryDirectory() as folder:
            barrier = multiprocessing.get_context("fork").Barrier(size)
            start_processes(_process, (size, barrier, options, folder), nprocs=size, start_method="fork")
            rows += json.loads((Path(folder) / "rows.json").read_text())
    return rows


def _process(rank: int, size: int, barrier: Any, options: argparse.Namespace, folder: str) -> None:
    """Be one of the processes; the first writes what each method sent."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    rows = []
    for name in options.methods:
        torch.manual_seed(rank)
        model, settings = step.build(name, options)
        if model.batch_norm == "sync":
            synchronize_batch_norm(model)
        with warnings.catch_warnings():
            # PyTorch 2.15 renames the argument; the library's oldest PyTorch only knows the old name.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            network = DistributedDataParallel(model, broadcast_buffers=False)
        pixels = model.config.image_size
        views = torch.randn(options.batch_size, 2, 3, pixels, pixels)
        stages = step.library_step(model, settings, views, "no", options, network).values()
        with counted(network) as count:
            # The first step also makes the buckets of the gradients.
            for _ in range(2):
                count.clear()
                barrier.wait()
                before = _loopback_bytes() if options.own_network else 0
                barrier.wait()
                for stage in stages:
                    stage()
                barrier.wait()
        found = traffic(model, options.batch_size, size, model.batch_norm)
        paper = Counter[str]()
        for one in found:
            paper["gradients" if one.what == "gradients" else one.kind] += one.bytes
        row: dict[str, Any] = {"method": name, "processes": size, "counted MB": count.total() / 1e6}
        row |= {"equal": paper == count, "sent on paper MB": sum(one.sent(size) for one in found) / 1e6}
        if options.own_network:
            row["loopback MB"] = (_loopback_bytes() - before) / size / 1e6
            row["x paper"] = row["loopback MB"] / row["sent on paper MB"]
        rows.append(row)
    if rank == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(rows))
    del network, stages  # before the group of processes: see `hf_ssl.training.loop.run_task`
    dist.destroy_process_group()


def enter_a_new_network() -> bool:
    """Leave the machine's network for one in which loopback carries only what this process and its children send.

    Returns:
        Whether the system allowed it.
    """
    if sys.platform != "linux":
        return False
    new_user, new_network = 0x10000000, 0x40000000  # the first gives the right to the second
    if ctypes.CDLL(None).unshare(new_user | new_network) != 0:
        return False
    with socket.socket() as one:
        up_and_running = struct.pack("16sh", b"lo", 0x41)
        fcntl.ioctl(one, 0x8914, up_and_running)  # SIOCSIFFLAGS: the device is off at first
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    return True


def _loopback_bytes() -> int:
    """Bytes that loopback has carried."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; wrong values are a `UserError` of one sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add, many = parser.add_argument, {"type": int, "nargs": "+", "metavar": "N"}
    add("--methods", nargs="+", default=list(METHODS), metavar="NAME", help="default: all")
    add("--recipe", default="paper-imagenet", help="settings of each method [paper-imagenet]")
    add("--encoder", default="resnet50", help="timm name [resnet50]")
    add("--image_size", type=int, help="pixels; default: the recipe's")
    add("--gpus", default=[8, 64, 512], help="numbers of GPUs, eight in a node [8 64 512]", **many)
    add("--batch", default="128", help="images of a GPU, or `recipe`: its batch shared by all GPUs [128]")
    add("--gpu_images", type=float, default=2470.0, help="views a second, forward and backward, of a GPU [2470]")
    add("--nvlink_gb", type=float, default=235.0, help="GB/s that a GPU sends inside of a node [235]")
    add("--network_gb", type=float, nargs="+", default=[200, 12.5], help="GB/s that a node sends to others [200 12.5]")
    add("--core_images", type=float, default=400.0, help="images a second of which a core makes both views [400]")
    add("--cores", type=int, default=16, help="cores of a GPU [16]")
    add(
        "--storage_gb", type=float, default=0.0, help="GB/s that all nodes read together; 0 for disks of their own [0]"
    )
    add("--image_kb", type=float, default=110.0, help="kilobytes of an image file [110]")
    add("--check", help="train in so many gloo processes instead, and compare", **many)
    add("--batch_size", type=int, default=8, help="images of a process in the check [8]")
    add("--output", type=Path, metavar="FILE", help="JSON file for the check's table, machine and versions")
    options = parser.parse_args(arguments)
    options.memory_format, options.compile, options.device = "contiguous", False, "cpu"
    options.rounds, options.warmup = 1, 0
    step.check_step_options(options)
    for name in ("gpu_images", "nvlink_gb", "core_images", "cores", "image_kb"):
        if not 0 < getattr(options, name) < math.inf:
            raise UserError(f"`--{name}` must be above 0, got {getattr(options, name)}.")
    if not all(0 < speed < math.inf for speed in options.network_gb):
        raise UserError(f"`--network_gb` must be numbers above 0, got {options.network_gb}.")
    if not 0 <= options.storage_gb < math.inf:
        raise UserError(f"`--storage_gb` must be 0 or more, got {options.storage_gb}.")
    if options.batch != "recipe" and not (options.batch.isdigit() and int(options.batch)):
        raise UserError(f"`--batch` must be a number of images or `recipe`, got `{options.batch}`.")
    for name in ("gpus", "check"):
        if any(size < 2 for size in getattr(options, name) or ()):
            raise UserError(f"`--{name}` must be numbers of 2 or more, got {getattr(options, name)}.")
    return options


if __name__ == "__main__":
    with errors_for_users():
        sys.exit(main(sys.argv[1:]))
