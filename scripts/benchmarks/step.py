"""Measure the training step of every method against the encoder passes that its mathematics needs.

    python scripts/benchmarks/step.py --batch_size 128 --precision no bf16 --output step.json
    python scripts/benchmarks/step.py --recipe paper-imagenet --batch_size 16 --methods moco byol
    python scripts/benchmarks/step.py --compare lightly
    python scripts/benchmarks/step.py --part queue
    python scripts/benchmarks/step.py --part predictor

The parts: `step` is forward, loss, backward, optimizer and what follows it, in the recipe's own settings, as a
multiple of the *necessary compute*: forward and backward of the online encoder for every view that the method trains
on, and forward of its target's, in the same precision and memory format. `queue` is the loss against a queue and the
writing of the keys, as a multiple of its two matrix products, over batch, queue size and dim; `ema` the moving
average, of one pass over as many numbers; `predictor` DirectPred's predictor by iterations, of that by eigenvectors.
Images are random numbers.

What is compared runs in turns in one process, and medians are reported: trust the ratios, not the milliseconds. On a
machine that others use too, `--clock cpu` counts the seconds of this process alone. `--compare lightly` needs
`pip install lightly` and composes its parts as its own examples do.
"""

import argparse
import copy
import functools
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from hf_ssl.commands.errors import errors_for_users
from hf_ssl.errors import UserError, first_line, near_name
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.methods.directpred import iterated_predictor, spectral_predictor
from hf_ssl.modules.encoder import build_encoder
from hf_ssl.modules.losses import info_nce
from hf_ssl.modules.momentum import update_target
from hf_ssl.modules.queue import enqueue, random_queue
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.optimizers import build_optimizer, set_learning_rate
from hf_ssl.training.watch.loss import LossMonitor
from hf_ssl.writing import write_whole

# What a data set or a user has to say.
MISSING_SETTINGS = {"memory_bank": {"bank_size": 50_000}, "contrastive_clustering": {"num_clusters": 10}}
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Stages = dict[str, Callable[[], Any]]


def main(arguments: list[str]) -> int:
    """Parse, measure, print and keep; returns the exit code."""
    options = parse(arguments)
    part = {"step": _steps, "queue": _queues, "ema": _moving_averages, "predictor": _predictors}[options.part]
    report(part(options), options)
    return 0


def report(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    """Print the rows, and keep them with machine and settings in the file that was named."""
    print(table(rows))
    keep(rows, options)


def keep(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    """Write the rows so far, with machine and settings, to the file that was named."""
    if options.output is not None:
        settings = {name: value for name, value in vars(options).items() if name != "output"}
        kept = {"machine": describe_machine(), "device": str(options.device), "settings": settings, "rows": rows}
        write_whole(options.output, json.dumps(kept, indent=2, default=str) + "\n")


def _steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    pairs = [(method, precision) for method in options.methods for precision in options.precision]
    for method, precision in tqdm(pairs, unit="row", leave=False):
        model, settings = build(method, options)
        views = torch.randn(options.batch_size, 2, 3, model.config.image_size, model.config.image_size)
        views = views.to(options.device)
        variants = {
            "necessary": necessary_compute(model, views, precision, options),
            "step": library_step(model, settings, views, precision, options),
        }
        pair = [view.contiguous() for view in views.unbind(1)]
        peer = lightly_step(method, model, settings, pair, precision, options)
        if peer is not None:
            variants["lightly"] = peer
        medians = _measure(variants, options)
        needed, step = medians["necessary"]["total"], medians["step"]
        row = {"method": method, "precision": precision, "necessary ms": needed, "step ms": step["total"]}
        row |= {"x necessary": step["total"] / needed, "heads, loss ms": step["forward, backward"] - needed}
        row |= {"optimizer ms": step["optimizer"], "after step ms": step["after step"]}
        if peer is not None:
            row |= {"lightly ms": medians["lightly"]["total"], "lightly x": medians["lightly"]["total"] / needed}
        if options.device.type == "cuda":
            row["waits for the device"] = _waits(variants["step"])
        rows.append(row)
        keep(rows, options)  # a run that is killed leaves what it has
    return rows


def build(method: str, options: argparse.Namespace) -> tuple[SSLPreTrainedModel, TrainingSettings]:
    """A method and the training settings of the recipe, with what the command line overrides."""
    model_class = METHODS[method]
    recipe = {**MISSING_SETTINGS.get(method, {}), **model_class.recipes[options.recipe]}
    if options.encoder is not None:
        recipe |= {"architecture": options.encoder, "model_args": None}
    if options.image_size is not None:
        recipe["image_size"] = options.image_size
    own = model_class.config_class().to_dict().keys()
    model = model_class(model_class.config_class(**{name: value for name, value in recipe.items() if name in own}))
    fields = TrainingSettings.__dataclass_fields__.keys()
    settings = TrainingSettings(
        **{"output_dir": "none", **{name: value for name, value in recipe.items() if name in fields}}
    )
    model.train().to(options.device).to(memory_format=MEMORY_FORMATS[options.memory_format])  # pyright: ignore[reportCallIssue]
    return model, settings


def necessary_compute(model: SSLPreTrainedModel, views: Tensor, precision: str, options: argparse.Namespace) -> Stages:
    """The encoder passes alone: gradient for the views that the online network sees, none for the target's."""
    config = model.config
    encoder = _encoder_like(model, options)
    target = copy.deepcopy(encoder).requires_grad_(False) if hasattr(model, "target_encoder") else None
    # MoCo's loss and the memory bank's are of one view unless `symmetric`; other methods always use both.
    one_view = type(model).__module__.rsplit(".", 1)[1] in ("moco", "mochi", "memory_bank") and not config.symmetric
    online_views = [views.flatten(0, 1)] if getattr(config, "join_views", False) else views.unbind(1)[: 2 - one_view]
    target_views = views.unbind(1)[int(one_view) :] if target is not None else ()

    def run() -> None:
        with _autocast(precision, options.device):
            h = [encoder(view) for view in online_views]
            if target is not None:
                with torch.no_grad():
                    for view in target_views:
                        target(view)
        torch.autograd.backward(h, [torch.ones_like(h_i) for h_i in h])
        encoder.zero_grad()

    return {"passes": run}


def _encoder_like(model: SSLPreTrainedModel, options: argparse.Namespace) -> nn.Module:
    encoder = build_encoder(model.config.architecture, model.config.model_args).to(options.device)
    encoder.to(memory_format=MEMORY_FORMATS[options.memory_format])  # pyright: ignore[reportCallIssue]
    if options.compile:
        encoder.compile()
    return encoder


def library_step(
    model: SSLPreTrainedModel,
    settings: TrainingSettings,
    views: Tensor,
    precision: str,
    options: argparse.Namespace,
    network: nn.Module | None = None,
) -> Stages:
    """One step in the order of `hf_ssl/training/loop.py`, in three stages; `network` wraps the model, if given."""
    network = model if network is None else network
    if options.compile:
        model.encoder.compile()
        if hasattr(model, "target_encoder"):
            model.get_submodule("target_encoder").compile()
    optimizer = build_optimizer(model, settings, settings.base_learning_rate)
    losses = LossMonitor(options.device)
    indices = torch.arange(len(views), device=options.device)

    def forward_and_backward() -> None:
        with _autocast(precision, options.device):
            loss = network(views, indices=indices).loss
        loss.backward()
        losses.add(loss, 1)

    def optimize() -> None:
        # So small that random images cannot lead to weights that are no numbers.
        set_learning_rate(optimizer, 1e-6, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return {
        "forward, backward": forward_and_backward,
        "optimizer": optimize,
        "after step": lambda: model.after_optimizer_step(1, 1000),
    }


def lightly_step(
    method: str,
    model: SSLPreTrainedModel,
    settings: TrainingSettings,
    pair: Sequence[Tensor],
    precision: str,
    options: argparse.Namespace,
) -> Stages | None:
    """The same step out of lightly's parts, composed as in its examples; None for methods that are not compared.

    `pair` has the two views, (batch, 3, height, width) each, whenever the step runs.
    """
    if options.compare is None or method not in ("moco", "byol", "simsiam", "end_to_end"):
        return None
    from lightly.loss import NegativeCosineSimilarity, NTXentLoss  # pyright: ignore[reportMissingImports]
    from lightly.models.modules import heads  # pyright: ignore[reportMissingImports]
    from lightly.models.utils import (  # pyright: ignore[reportMissingImports]
        batch_shuffle,
        batch_unshuffle,
        update_momentum,
    )

    config: Any = model.config
    width, dim = model.hidden_size, config.projection_dim
    hidden = config.projector_hidden_dim or width
    projector_class = {
        "moco": heads.MoCoProjectionHead,
        "end_to_end": heads.SimCLRProjectionHead,
        "byol": heads.BYOLProjectionHead,
        "simsiam": heads.SimSiamProjectionHead,
    }[method]
    if method in ("moco", "end_to_end"):
        memory = (config.queue_size, dim) if method == "moco" else 0
        criterion = NTXentLoss(config.temperature, memory_bank_size=memory)
    else:
        criterion = NegativeCosineSimilarity()
    # Its examples leave the memory format as it is.
    backbone, projector = build_encoder(config.architecture, config.model_args), projector_class(width, hidden, dim)
    predictor = nn.Identity()
    if method in ("byol", "simsiam"):
        head = heads.BYOLPredictionHead if method == "byol" else heads.SimSiamPredictionHead
        predictor = head(dim, config.predictor_hidden_dim, dim)
    online = nn.ModuleList([backbone, projector, predictor, criterion]).to(options.device)
    target_backbone, target_projector = (copy.deepcopy(part).requires_grad_(False) for part in (backbone, projector))
    optimizer = torch.optim.SGD(online.parameters(), lr=1e-6, momentum=0.9, weight_decay=settings.weight_decay)

    def project(view: Tensor) -> Tensor:
        return projector(backbone(view).flatten(start_dim=1))

    @torch.no_grad()
    def target_projection(view: Tensor) -> Tensor:
        return target_projector(target_backbone(view).flatten(start_dim=1))

    def contrast_with_memory(query_view: Tensor, key_view: Tensor) -> Tensor:
        query = project(query_view)
        key_view, shuffle = batch_shuffle(key_view)
        return criterion(query, batch_unshuffle(target_projection(key_view), shuffle))

    def loss_of_views() -> Tensor:
        first, second = pair
        if method == "moco":
            loss = contrast_with_memory(first, second)
            return 0.5 * (loss + contrast_with_memory(second, first)) if config.symmetric else loss
        z = [project(view) for view in (first, second)]
        if method == "end_to_end":
            return criterion(*z)
        p = [predictor(z_i) for z_i in z]
        targets = [z_i.detach() for z_i in z]
        if method == "byol":
            targets = [target_projection(view) for view in (first, second)]
        return 0.5 * (criterion(p[0], targets[1]) + criterion(p[1], targets[0]))

    def run() -> None:
        if method in ("moco", "byol"):
            update_momentum(backbone, target_backbone, m=config.ema_momentum)
            update_momentum(projector, target_projector, m=config.ema_momentum)
        with _autocast(precision, options.device):
            loss = loss_of_views()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"all": run}


def _queues(options: argparse.Namespace) -> list[dict[str, Any]]:
    # One varies, the others are those of MoCo.
    sizes = [(options.batch_size, size, 128) for size in options.queue_sizes]
    sizes += [(options.batch_size, 65_536, dim) for dim in options.dims]
    sizes += [(batch_size, 65_536, 128) for batch_size in options.batch_sizes]
    rows = []
    for batch_size, queue_size, dim in tqdm(sizes, unit="row", leave=False):
        query, key = (F.normalize(torch.randn(batch_size, dim, device=options.device)) for _ in range(2))
        queue = random_queue(dim, queue_size).to(options.device)
        position = torch.zeros((), dtype=torch.int64, device=options.device)
        projection = query.clone().requires_grad_()

        variants: dict[str, Stages] = {
            "products": {"all": functools.partial(_two_products, query, queue)},
            "queue": {"all": functools.partial(_contrast_and_enqueue, projection, key, queue, position)},
        }
        if options.compare:
            from lightly.loss import NTXentLoss  # pyright: ignore[reportMissingImports]

            criterion = NTXentLoss(0.2, memory_bank_size=(queue_size, dim)).to(options.device)
            variants["lightly"] = {"all": functools.partial(_lightly_contrast, criterion, projection, key)}
        rows.append({"batch": batch_size, "queue": queue_size, "dim": dim, **_multiples(variants, options)})
    return rows


def _two_products(query: Tensor, queue: Tensor) -> None:
    torch.mm(query @ queue, queue.T)


def _contrast_and_enqueue(projection: Tensor, key: Tensor, queue: Tensor, position: Tensor) -> None:
    info_nce(projection, key, queue.T, 0.2)[0].backward()
    enqueue(queue, position, key)
    projection.grad = None


def _lightly_contrast(criterion: nn.Module, projection: Tensor, key: Tensor) -> None:
    criterion(projection, key).backward()
    projection.grad = None


def _moving_averages(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for encoder in tqdm([options.encoder] if options.encoder else ["resnet18", "resnet50", "vit_small_patch16_224"]):
        online = build_encoder(encoder).to(options.device)
        target = copy.deepcopy(online)
        numbers = sum(parameter.numel() for parameter in online.parameters())
        flat, source = (torch.randn(numbers, device=options.device) for _ in range(2))
        variants: dict[str, Stages] = {
            "one pass": {"all": functools.partial(flat.lerp_, source, 0.01)},
            "update": {"all": functools.partial(update_target, target, online, 0.99)},
        }
        if options.compare:
            from lightly.models.utils import update_momentum  # pyright: ignore[reportMissingImports]

            variants["lightly"] = {"all": functools.partial(update_momentum, online, target, 0.99)}
        rows.append({"encoder": encoder, "parameters": numbers, **_multiples(variants, options)})
    return rows


def _predictors(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for dim in tqdm(options.dims, unit="row", leave=False):
        z = torch.randn(2 * dim, dim, device=options.device) * torch.logspace(0, -3, dim, device=options.device)
        correlation = z.T @ z / len(z)
        variants: dict[str, Stages] = {
            "eigenvectors": {"all": functools.partial(spectral_predictor, correlation, 0.5, 0.1)},
            "iterations": {"all": functools.partial(iterated_predictor, correlation, 0.1)},
        }
        error = spectral_predictor(correlation, 0.5, 0.1) - iterated_predictor(correlation, 0.1)
        error = torch.linalg.eigvalsh(error).abs().max().item()  # symmetric: an SVD takes a GPU many times as long
        rows.append({"dim": dim, **_multiples(variants, options), "largest error": error})
        keep(rows, options)
    return rows


def _multiples(variants: Mapping[str, Stages], options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of each variant, and of all but the first also the multiple of the first."""
    medians = {name: stages["total"] for name, stages in _measure(variants, options).items()}
    first, *others = medians
    row = {f"{name} ms": value for name, value in medians.items()}
    return row | {f"{name} x" if len(others) > 1 else "x": medians[name] / medians[first] for name in others}


def _measure(variants: Mapping[str, Stages], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median milliseconds of each variant's stages and of all, from rounds in which every variant has its turn."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for number in range(-options.warmup, options.rounds):
        for name, stages in variants.items():
            seconds = _timed(stages, options)
            if number >= 0:
                runs[name].append({**seconds, "total": sum(seconds.values())})
    return {
        name: {stage: 1000 * statistics.median(run[stage] for run in each) for stage in each[0]}
        for name, each in runs.items()
    }


def _timed(stages: Stages, options: argparse.Namespace) -> dict[str, float]:
    if options.device.type != "cuda":
        clock = CLOCKS[options.clock]
        marks = [clock()]
        for stage in stages.values():
            stage()
            marks.append(clock())
        return {name: marks[i + 1] - marks[i] for i, name in enumerate(stages)}
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(stages) + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for stage, event in zip(stages.values(), events[1:], strict=True):
        stage()
        event.record()
    events[-1].synchronize()
    return {name: events[i].elapsed_time(events[i + 1]) / 1000 for i, name in enumerate(stages)}


def _waits(stages: Stages) -> str:
    """`no`, or what in a step makes the host wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        for stage in stages.values():
            stage()
    except RuntimeError as error:
        return first_line(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "no"


def _autocast(precision: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [row.get(name, "-") for name in columns]
        texts = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; wrong values are a `ValueError` of one sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--part", choices=("step", "queue", "ema", "predictor"), default="step", help="[step]")
    add_step_options(parser, METHODS)
    numbers: dict[str, Any] = {"type": int, "nargs": "+", "metavar": "N"}
    several = [2**power for power in range(12, 21, 2)]
    parser.add_argument("--queue_sizes", **numbers, default=several, help=f"of `--part queue` {several}")
    several = [2**power for power in range(6, 12)]
    parser.add_argument("--dims", **numbers, default=several, help=f"of `--part queue` and `predictor` {several}")
    several = [32, 512, 2048]
    parser.add_argument("--batch_sizes", **numbers, default=several, help=f"of `--part queue` {several}")
    parser.add_argument("--precision", nargs="+", choices=("no", "bf16"), default=["no"], help="[no]")
    parser.add_argument("--compare", choices=("lightly",), help="measure this library in the same run")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="on the CPU [wall]; CUDA measures by events")
    options = parser.parse_args(arguments)
    check_step_options(options)
    if options.compare and importlib.util.find_spec(options.compare) is None:
        raise UserError(f"`--compare {options.compare}` needs a package: `pip install {options.compare}`.")
    return options


def add_step_options(parser: argparse.ArgumentParser, methods: Iterable[str]) -> None:
    """Add the flags that say which steps are measured, and how often; `methods` is the default of `--methods`."""
    chosen = list(methods)
    shown = "all" if chosen == list(METHODS) else " ".join(chosen)
    parser.add_argument("--methods", nargs="+", default=chosen, metavar="NAME", help=f"default: {shown}")
    parser.add_argument("--recipe", default="cifar", help="settings of each method [cifar]")
    parser.add_argument("--encoder", help="timm name; default: the recipe's")
    parser.add_argument("--image_size", type=int, help="pixels; default: the recipe's")
    parser.add_argument("--batch_size", type=int, default=128, help="images of a process, two views each [128]")
    parser.add_argument("--memory_format", choices=MEMORY_FORMATS, default="channels_last", help="[channels_last]")
    parser.add_argument("--compile", action="store_true", help="compile the encoders with torch.compile")
    parser.add_argument("--device", help="such as cpu or cuda:1; default: the accelerator, if there is one")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each variant that count [7]")
    parser.add_argument("--warmup", type=int, default=2, help="turns before them [2]")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file for the table, machine and versions")


def check_step_options(options: argparse.Namespace) -> None:
    """Refuse what `add_step_options` reads if it is wrong, and choose the device."""
    for name in ("batch_size", "rounds"):
        if getattr(options, name) < 1:
            raise UserError(f"`--{name}` must be at least 1, got {getattr(options, name)}.")
    if options.warmup < 0:
        raise UserError(f"`--warmup` must be 0 or more, got {options.warmup}.")
    for method in options.methods:
        if method not in METHODS:
            raise UserError(
                f"Unknown method `{method}`. Known: {', '.join(METHODS)}.{near_name(method, list(METHODS))}"
            )
        if options.recipe not in METHODS[method].recipes:
            known = ", ".join(METHODS[method].recipes)
            raise UserError(f"Method `{method}` has no recipe `{options.recipe}`. Known: {known}.")
    if options.output is not None and not options.output.resolve().parent.is_dir():
        raise UserError(f"`--output`: the folder of `{options.output}` does not exist. Create it first.")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    options.device = torch.device(options.device or accelerator or "cpu")


if __name__ == "__main__":
    with errors_for_users():
        sys.exit(main(sys.argv[1:]))
