"""Train BYOL without each of its ingredients, and print what theory expects of each run beside what came.

    python scripts/ablate.py --dataset uoft-cs/cifar10 --view_recipe moco_v2 --output_dir runs/ablation
    python scripts/ablate.py --dataset shapes --theory_only --predictor linear --ema true false --predictor_lr 1 10 100

The first command runs the grid `core`: what protects from collapse, taken away one by one. The second spans a grid of
its own by the axes' flags (an axis that is not named keeps one standard value) and only follows the theory.

One line a run as it finishes: the collapse that theory expects (linear networks, Tian et al., 2021; started where the
fresh network starts), the collapse that was found, k-NN accuracy, spread of the projections (1 even over the sphere, 0
one point) and effective rank of projections and representations. A run collapsed completely if its spread is below
0.06, and in dimension if the rank of its projections is below 2 or 15 % of the fresh network's.

Started again, it goes on where it was. Writes ablation.json, ablation.md and ablation.png beside the runs.
"""

import argparse
import json
import logging
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from hf_ssl.cli import errors_for_users, parse_flags, show_log
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources import Source
from hf_ssl.figures.ablation import AblationRow, ablation_chart
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.methods.byol import BYOLConfig, BYOLForPreTraining
from hf_ssl.training.ablation import (
    AXES,
    GRIDS,
    Cell,
    Measured,
    Run,
    Start,
    by_cell,
    cells_of,
    measure_start,
    theory_of,
)
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.checkpoint import write_json
from hf_ssl.training.loop import train
from hf_ssl.training.many_runs import StoppedError, claim_folder, mean_text, parts_of_recipe
from hf_ssl.training.monitor import KNN, open_knn

logger = logging.getLogger(__name__)

OUTCOMES = {
    "no": "survives",
    "dimensional": "dimensional",
    "complete": "complete",
    "later": "later",
    "open": "open",
}
# Settings that change the numbers of a cell: one folder holds results of one choice of them.
_COMMON = ("dataset", "dataset_config", "split", "knn_split", "knn_images", "recipe", "view_recipe", "encoder")
_COMMON += ("num_steps", "batch_size", "learning_rate", "ema_momentum")


def main(arguments: list[str]) -> int:
    """Parse, run what is missing, print and write; returns the exit code."""
    options = _parse(arguments)
    cells, left_out = cells_of(_products(options))
    for reason, count in left_out.items():
        logger.info("Left out %d: %s.", count, reason)
    if not options.theory_only:
        claim_folder(options.output_dir, {name: getattr(options, name) for name in _COMMON})
    bench = _Bench(options)
    total = len(cells) * options.seeds
    logger.info("%d cells with %d seeds make %d runs.", len(cells), options.seeds, total)
    print(_line("cell", "theory", "measured", "k-NN %", "spread", "rank z", "rank h"), flush=True)
    runs: list[Run] = []
    try:
        for seed in range(options.seeds):
            for cell in cells:
                runs.append(bench.expect(cell, seed) if options.theory_only else bench.run(cell, seed))
                print(_line_of(runs[-1]), flush=True)
    except StoppedError as stopped:
        print(stopped.message(len(runs), total), file=sys.stderr)
        return stopped.exit_code
    print(_summary(runs))
    if not options.theory_only:
        _write(options.output_dir, runs)
    return 0


class _Bench:
    """Data, baselines and starts that all cells share.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        recipe = dict(BYOLForPreTraining.recipes[options.recipe])
        given = {"architecture": options.encoder, "ema_momentum": options.ema_momentum}
        given |= {"batch_size": options.batch_size, "base_learning_rate": options.learning_rate}
        recipe |= {name: value for name, value in given.items() if value is not None}
        self.config, self.training = parts_of_recipe(recipe)
        self.config["ema_schedule"] = "constant"  # in the theory nothing changes with time
        self.training |= {"num_epochs": None, "warmup_epochs": None, "lr_schedule": "constant", "optimizer": "sgd"}
        self.data = DataSettings(
            dataset=options.dataset,
            dataset_config=options.dataset_config,
            split=options.split,
            view_recipe=options.view_recipe or recipe.get("view_recipe"),
            num_workers=options.num_workers,
        )
        self.source: Source = self.data.open()
        settings = self._settings(Cell(), 0)
        self.knn: KNN | None = None if options.theory_only else open_knn(self.source, self.data, settings)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._starts: dict[tuple[str, int], Start] = {}

    def expect(self, cell: Cell, seed: int) -> Run:
        """What theory says of a cell."""
        settings = self._settings(cell, seed)
        # Everything else of a cell begins only when training does.
        key = (cell.predictor, seed)
        if key not in self._starts:
            model = self._model(cell, seed).to(self.device)  # pyright: ignore[reportArgumentType]
            self._starts[key] = measure_start(model, self.source, self.data, settings)
        scale = settings.batch_size / 256 if settings.learning_rate_scaling == "linear" else 1.0
        theory = theory_of(
            cell,
            self._starts[key],
            learning_rate=settings.base_learning_rate * scale,
            momentum=settings.optimizer_momentum,
            ema_momentum=self.config["ema_momentum"],
            num_steps=self.options.num_steps,
        )
        return Run(cell=cell, seed=seed, start=self._starts[key], theory=theory)

    def run(self, cell: Cell, seed: int) -> Run:
        """The finished run of a cell: read, gone on with, or made.

        Raises:
            StoppedError: If a signal ended it.
        """
        settings = self._settings(cell, seed)
        result = Path(settings.output_dir) / "result.json"
        if result.exists():
            return Run.from_record(json.loads(result.read_text()))
        expected = self.expect(cell, seed)
        model = self._model(cell, seed)
        ended = train(model, self.source, self.data, settings)
        if ended.signal:
            raise StoppedError(ended.signal)
        lines = [json.loads(line) for line in (result.parent / "metrics.jsonl").read_text().splitlines()]
        last = lines[-1]
        measured = Measured(
            knn=None if self.knn is None else self.knn(model).value,
            knn_random=self._random_knn(seed),
            loss=last["loss"],
            spread=last["feature_std"] * math.sqrt(self.config["projection_dim"]),
            projection_rank=last["projection_effective_rank"],
            representation_rank=last["representation_effective_rank"],
            seconds=json.loads((result.parent / "run.json").read_text())["progress"]["seconds"],
        )
        run = Run(cell=cell, seed=seed, start=expected.start, theory=expected.theory, measured=measured)
        write_json(result, run.record())
        return run

    def _random_knn(self, seed: int) -> float | None:
        """k-NN accuracy of the fresh encoder, which all cells of a seed share."""
        if self.knn is None:
            return None
        path = self.options.output_dir / f"random-seed{seed}.json"
        if not path.exists():
            model = self._model(Cell(), seed).to(self.device)  # pyright: ignore[reportArgumentType]
            write_json(path, {"knn": self.knn(model).value})
        return json.loads(path.read_text())["knn"]

    def _model(self, cell: Cell, seed: int) -> SSLPreTrainedModel:
        set_seed(seed)
        config = BYOLConfig(
            **self.config,
            predictor=cell.predictor,
            use_ema=cell.use_ema,
            stop_gradient=cell.stop_gradient,
            symmetrize=cell.symmetrize,
        )
        return BYOLForPreTraining(config)

    def _settings(self, cell: Cell, seed: int) -> TrainingSettings:
        options = self.options
        folder = options.output_dir / cell.folder / f"seed{seed}"
        own = {
            "output_dir": str(folder),
            "resume": "auto" if folder.exists() else None,
            "seed": seed,
            "num_steps": options.num_steps,
            "weight_decay": cell.weight_decay,
            "predictor_lr_multiplier": cell.predictor_lr,
            "diagnostics_every": options.num_steps,
            "keep_checkpoints": 1,
            "knn_split": options.knn_split,
            "knn_images": options.knn_images,
        }
        return TrainingSettings(**(self.training | own))


def _line(*columns: str) -> str:
    widths = (52, 12, 12, 7, 7, 7, 7)
    return "  ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)).rstrip()


def _line_of(run: Run) -> str:
    title = run.cell.title if run.seed == 0 else f"{run.cell.title}, seed {run.seed}"
    expected, found = OUTCOMES[run.theory.expected], run.measured
    if found is None:
        return _line(title, expected, "", "", "", "", "").rstrip() + f"  {run.theory.reason}"
    figures = (f"{found.spread:.3f}", f"{found.projection_rank:.1f}", f"{found.representation_rank:.1f}")
    accuracy = "" if found.knn is None else f"{100 * found.knn:.1f}"
    mark = "  <- not as expected" if run.agrees is False else ""
    return _line(title, expected, OUTCOMES[run.collapse or "no"], accuracy, *figures) + mark


def _summary(runs: list[Run]) -> str:
    """What agreed, and each disagreement with the reason that theory gave."""
    start = runs[0].start
    lines = [
        "",
        f"Start: augmentation adds {start.noise:.2f} times the variance that two views share; "
        f"{len(start.correlation)} modes with s from {start.correlation[0]:.3g} to {start.correlation[-1]:.3g}; "
        f"spread {start.spread:.3f}, rank z {start.projection_rank:.1f}, rank h {start.representation_rank:.1f}.",
    ]
    compared = [run for run in runs if run.agrees is not None]
    if not compared:
        return "\n".join(lines)
    first = runs[0].measured
    if first is not None and first.knn_random is not None:
        lines.append(f"A fresh encoder has {100 * first.knn_random:.1f} % k-NN.")
    agreed = sum(bool(run.agrees) for run in compared)
    complete = sum((run.theory.expected == "complete") == (run.collapse == "complete") for run in compared)
    lines.append(
        f"Theory and measurement agree on whether there is a collapse in {agreed} of {len(compared)} runs, and on "
        f"whether it is complete in {complete}."
    )
    by_reason: dict[str, list[str]] = {}
    for run in compared:
        if not run.agrees:
            found = f"{run.cell.title}, seed {run.seed} ({OUTCOMES[run.collapse or 'no']})"
            by_reason.setdefault(f"{OUTCOMES[run.theory.expected]}. {run.theory.reason}", []).append(found)
    for reason, found in by_reason.items():
        lines += [f"- Not as expected: {'; '.join(found)}.", f"  Theory: {reason}"]
    return "\n".join(lines)


def _write(folder: Path, runs: list[Run]) -> None:
    """The table and the figure, one row a cell."""
    groups = list(by_cell(runs))
    write_json(folder / "ablation.json", {"runs": [run.record() for run in runs]})
    (folder / "ablation.md").write_text(_table(groups))
    rows = [
        AblationRow(
            title=group[0].cell.title,
            expected=OUTCOMES[group[0].theory.expected],
            found=[OUTCOMES[run.collapse or "no"] for run in group],
            agrees=all(run.agrees is not False for run in group),
            knn=_values(group, lambda measured: measured.knn),
            projection_rank=_values(group, lambda measured: measured.projection_rank),
            representation_rank=_values(group, lambda measured: measured.representation_rank),
        )
        for group in groups
    ]
    random = _values(runs, lambda measured: measured.knn_random)
    start = runs[0].start
    figure = ablation_chart(
        rows,
        random_knn=statistics.mean(random) if random else None,
        ranks_at_start=(start.projection_rank, start.representation_rank),
    )
    figure.savefig(folder / "ablation.png")
    print(f"\nWrote ablation.json, ablation.md and ablation.png to {folder}")


def _table(groups: list[list[Run]]) -> str:
    head = "| cell | theory | measured | agree | k-NN (%) | spread | rank z | rank h |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    random = [100 * value for value in _values(groups[0], lambda measured: measured.knn_random)]
    start = [run.start for run in groups[0]]
    fresh = (
        mean_text(random, 1),
        mean_text([one.spread for one in start], 2),
        mean_text([one.projection_rank for one in start], 1),
        mean_text([one.representation_rank for one in start], 1),
    )
    lines.append(f"| fresh network | | | | {' | '.join(fresh)} |")
    for group in groups:
        found = [OUTCOMES[run.collapse or "no"] for run in group]
        most = statistics.mode(found)  # the first of equals
        measured = most if len(set(found)) == 1 else f"{most} in {found.count(most)} of {len(found)}"
        agreed = {run.agrees for run in group}
        agree = "yes" if agreed == {True} else "no" if agreed == {False} else "open" if None in agreed else "in part"
        figures = (
            mean_text([100 * value for value in _values(group, lambda measured: measured.knn)], 1),
            mean_text(_values(group, lambda measured: measured.spread), 2),
            mean_text(_values(group, lambda measured: measured.projection_rank), 1),
            mean_text(_values(group, lambda measured: measured.representation_rank), 1),
        )
        expected = OUTCOMES[group[0].theory.expected]
        lines.append(f"| {group[0].cell.title} | {expected} | {measured} | {agree} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def _values(runs: Sequence[Run], figure: Callable[[Measured], float | None]) -> list[float]:
    values = [figure(run.measured) for run in runs if run.measured is not None]
    return [value for value in values if value is not None]


def _products(options: argparse.Namespace) -> list[dict[str, Sequence[Any]]]:
    axes = {axis: getattr(options, axis) for axis in AXES if getattr(options, axis) is not None}
    if axes and options.grid is not None:
        raise ValueError(f"`--grid` and `--{next(iter(axes))}` exclude each other. Give one of them.")
    return [axes] if axes else GRIDS[options.grid or "core"]


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text.lower() == "true"


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dataset", required=True, help="as for pretrain.py: shapes, digits, a folder, a Hub id")
    parser.add_argument("--dataset_config", help="config of a Hub data set that has several")
    parser.add_argument("--split", default="train", help="split to train on (default: train)")
    parser.add_argument("--output_dir", type=Path, help="folder of the runs; not used with --theory_only")
    parser.add_argument("--theory_only", action="store_true", help="train nothing: print what theory expects, and why")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each cell, with seeds from 0 (default: 1)")
    grid = parser.add_argument_group("grid", "a name, or values of axes")
    grid.add_argument("--grid", choices=GRIDS, help="a named grid (default: core)")
    grid.add_argument("--ema", type=_boolean, nargs="+", metavar="BOOL", help="moving average as the target")
    grid.add_argument("--predictor_lr", type=float, nargs="+", metavar="X", help="its learning rate / the network's")
    grid.add_argument("--weight_decay", type=float, nargs="+", metavar="X", help="of network and predictor")
    grid.add_argument("--stop_gradient", type=_boolean, nargs="+", metavar="BOOL", help="no gradient to the target")
    grid.add_argument("--predictor", nargs="+", choices=("linear", "mlp", "none"), help="form of the predictor")
    grid.add_argument("--symmetrize", type=_boolean, nargs="+", metavar="BOOL", help="symmetric linear predictor")
    run = parser.add_argument_group("each run")
    run.add_argument("--num_steps", type=int, default=300, help="optimizer steps (default: 300)")
    run.add_argument("--recipe", choices=BYOLForPreTraining.recipes, default="quickstart", help="default: quickstart")
    run.add_argument("--encoder", help="architecture; the recipe's if not given")
    run.add_argument("--view_recipe", help="augmentation; the recipe's if not given")
    run.add_argument("--batch_size", type=int, help="images of a step; the recipe's if not given")
    run.add_argument("--learning_rate", type=float, help="for 256 images a step; the recipe's if not given")
    run.add_argument("--ema_momentum", type=float, help="fraction of the target that a step keeps")
    run.add_argument("--num_workers", type=int, default=2, help="processes that decode and augment (default: 2)")
    run.add_argument(
        "--knn_split", default="test", help="labelled split that k-NN classifies, or none (default: test)"
    )
    run.add_argument("--knn_images", type=int, default=5000, help="images of either split for k-NN (default: 5000)")
    options = parse_flags(parser, arguments)
    if options.output_dir is None and not options.theory_only:
        raise ValueError("`--output_dir` is needed: the folder of the runs, such as `--output_dir runs/ablation`.")
    options.output_dir = options.output_dir or Path("not-used")
    for name in ("seeds", "num_steps"):
        if getattr(options, name) < 1:
            raise ValueError(f"`--{name}` must be at least 1, got {getattr(options, name)}.")
    options.knn_split = None if options.knn_split == "none" else options.knn_split
    return options


if __name__ == "__main__":
    with errors_for_users():
        show_log()
        sys.exit(main(sys.argv[1:]))
