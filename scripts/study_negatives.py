"""Train MoCo v2 and MoCHi with and without a class oracle, beside supervised training, and show what became of them.

    python scripts/study_negatives.py --dataset uoft-cs/cifar10 --view_recipe moco_v2 --output_dir runs/negatives
    python scripts/study_negatives.py --dataset shapes --num_steps 300 --methods moco_v2 mochi --output_dir runs/short

Methods: `moco_v2` (MoCHi without mixtures), `mochi`, both also as `-oracle`, which leaves all keys of the query's
class out of the negatives, and `supervised`. All start from the same encoder and see the same images, as many steps,
the same batch size and augmentation; supervised training sees one of the two views and has a learning rate of its own.

One line a run as it finishes: accuracy of a linear probe and of k-NN (%); share of the query's class among its hardest
keys, and accuracy of picking the positive among the keys and among keys and mixtures (%, mean over the log of the last
tenth of training); of held-out images the squared distance of two views and of two images of a class, and uniformity,
of representations h and projections z. Lower is closer together, and more even. Whether the alignment of the paper is
that of views or of classes is UNVERIFIED: both are given.

Started again, it goes on where it was. Writes study.json, study.md, plane.png, study.png and matching.png beside the
runs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from hf_ssl.cli import errors_for_users, near_name, parse_flags, show_log
from hf_ssl.data.labelled_subset import class_names
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources import Source
from hf_ssl.data.views import find_recipe
from hf_ssl.evaluation.encoders import Encoder, WithProjection, encoder_of
from hf_ssl.evaluation.fine_tuning import RANDOM, check_classes, open_classifier
from hf_ssl.figures.negatives import matching_curves
from hf_ssl.figures.oracle_study import StudyRow, plane, study_chart
from hf_ssl.methods.mochi import MoCHiConfig, MoCHiForPreTraining
from hf_ssl.modules.preprocessing import preprocessing
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.checkpoint import write_json
from hf_ssl.training.fine_tuning import fine_tune
from hf_ssl.training.fine_tuning_arguments import FineTuningSettings
from hf_ssl.training.loop import train
from hf_ssl.training.many_runs import StoppedError, claim_folder, mean_text, parts_of_recipe
from hf_ssl.training.oracle_study import (
    CONTRASTIVE,
    FRESH,
    METHODS,
    SUPERVISED,
    Measured,
    Run,
    by_method,
    claims_of,
    ends_of_log,
    measure_encoder,
    share_of_own_class,
    values_of,
)

# Settings that change the numbers of a run: one folder holds results of one choice of them.
_COMMON = ("dataset", "dataset_config", "label_column", "split", "test_split", "recipe", "view_recipe", "encoder")
_COMMON += ("num_steps", "batch_size", "learning_rate", "supervised_learning_rate", "queue_size")
_COMMON += ("num_hard_negatives", "num_mixed_negatives", "num_mixed_queries", "start_step", "eval_images")
_LOG_LINES = 100
_COLUMNS = {
    "linear": ("linear", 100, 1),
    "knn": ("k-NN", 100, 1),
    "false_negative_share": ("own class", 100, 1),
    "contrast_accuracy": ("positive", 100, 1),
    "contrast_accuracy_with_mixed": ("with mixed", 100, 1),
    "view_alignment_h": ("views h", 1, 3),
    "class_alignment_h": ("class h", 1, 3),
    "uniformity_h": ("even h", 1, 2),
    "view_alignment_z": ("views z", 1, 3),
    "uniformity_z": ("even z", 1, 2),
}
"""Numbers of a run in the order of the table: heading, factor, digits."""


def main(arguments: list[str]) -> int:
    """Parse, run what is missing, print and write; returns the exit code."""
    options = _parse(arguments)
    bench = _Bench(options)
    claim_folder(options.output_dir, {name: getattr(options, name) for name in _COMMON})
    wanted = [(seed, method) for seed in range(options.seeds) for method in (FRESH, *options.methods)]
    print(_line("method", *(heading for heading, _, _ in _COLUMNS.values())), flush=True)
    runs: list[Run] = []
    try:
        for seed, method in wanted:
            runs.append(bench.run(method, seed))
            print(_line_of(runs[-1]), flush=True)
    except StoppedError as stopped:
        print(stopped.message(len(runs), len(wanted)), file=sys.stderr)
        return stopped.exit_code
    _write(options, bench, runs)
    return 0


class _Bench:
    """Data and settings that all runs share; refuses wrong ones before anything is trained.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        recipe = dict(MoCHiForPreTraining.recipes[options.recipe])
        given = {"architecture": options.encoder, "batch_size": options.batch_size}
        given |= {"base_learning_rate": options.learning_rate, "start_step": options.start_step}
        given |= {name: getattr(options, name) for name in ("queue_size", "num_hard_negatives")}
        given |= {name: getattr(options, name) for name in ("num_mixed_negatives", "num_mixed_queries")}
        self.training: dict[str, Any]
        self.config, self.training = parts_of_recipe(
            recipe | {name: value for name, value in given.items() if value is not None}
        )
        self.training |= {"num_epochs": None, "num_steps": options.num_steps, "warmup_epochs": None}
        self.training |= {"log_every": max(1, options.num_steps // _LOG_LINES), "keep_checkpoints": 1}
        self.training["diagnostics_every"] = 0
        self.configs = {method: MoCHiConfig(**self.config | changed) for method, changed in CONTRASTIVE.items()}
        self.data = DataSettings(
            dataset=options.dataset,
            dataset_config=options.dataset_config,
            split=options.split,
            label_column=options.label_column,
            view_recipe=options.view_recipe or recipe["view_recipe"],
            num_workers=options.num_workers,
        )
        find_recipe(self.data.view_recipe or "")
        self.source: Source = self.data.open()
        self.class_names = class_names(self.source)
        self.test: Source = self.data.open(options.test_split)
        check_classes(self.class_names, self.test, next(iter(self.source.labels)))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run(self, method: str, seed: int) -> Run:
        """The finished run of a method: read, gone on with, or made.

        Raises:
            StoppedError: If a signal ended it.
        """
        folder = self.folder(method, seed)
        result = folder / "result.json"
        if result.exists():
            return Run.from_record(json.loads(result.read_text()))
        if method == SUPERVISED:
            measured = self._measure(f"{method}, seed {seed}", self._train_supervised(folder, seed))
        else:
            model = self._model(method, seed)
            log = {} if method == FRESH else self._train(model, folder, seed)
            measured = self._measure(f"{method}, seed {seed}", WithProjection(model), model.hidden_size, log)
        run = Run(method=method, seed=seed, measured=measured)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(result, run.record())
        return run

    def folder(self, method: str, seed: int) -> Path:
        """Where a run lies."""
        return self.options.output_dir / method / f"seed{seed}"

    def _model(self, method: str, seed: int) -> MoCHiForPreTraining:
        set_seed(seed)
        return MoCHiForPreTraining(self.configs.get(method, self.configs["mochi"]))

    def _train(self, model: MoCHiForPreTraining, folder: Path, seed: int) -> dict[str, float]:
        """Train a contrastive method; what its log says at the end."""
        settings = TrainingSettings(**self.training | self._own(folder, seed))
        ended = train(model, self.source, self.data, settings)
        if ended.signal:
            raise StoppedError(ended.signal)
        config = model.config
        return ends_of_log(
            folder / "metrics.jsonl", with_mixtures=bool(config.num_mixed_negatives or config.num_mixed_queries)
        )

    def _train_supervised(self, folder: Path, seed: int) -> nn.Module:
        """Train a classifier from the weights that the contrastive methods start from; returns its encoder."""
        config = self.configs["moco_v2"]
        classifier = open_classifier(
            f"{RANDOM}{config.architecture}", self.class_names, model_args=config.model_args, seed=seed
        )
        classifier.data_config = preprocessing(config.image_size, config.image_mean, config.image_std)
        start = self._model(SUPERVISED, seed).encoder.state_dict()
        assert not classifier.module.load_state_dict(start, strict=False).unexpected_keys
        shared = ("num_steps", "batch_size", "log_every", "keep_checkpoints", "weight_decay", "optimizer_momentum")
        given = {name: self.training[name] for name in (*shared, "lr_schedule") if name in self.training}
        given |= {"optimizer": "sgd", "base_learning_rate": self.options.supervised_learning_rate}
        settings = FineTuningSettings(**given | self._own(folder, seed))
        ended = fine_tune(classifier, self.source, None, self.data, settings)
        if ended.signal:
            raise StoppedError(ended.signal)
        encoder: Any = classifier.module
        encoder.reset_classifier(0)
        return encoder

    def _own(self, folder: Path, seed: int) -> dict[str, Any]:
        return {"output_dir": str(folder), "seed": seed, "resume": "auto" if folder.exists() else None}

    def _measure(
        self, title: str, module: nn.Module, width: int | None = None, log: dict[str, float] | None = None
    ) -> Measured:
        """Measure an encoder, or a method whose representation is `width` wide."""
        config = self.configs["moco_v2"]
        inner: Any = module.method.encoder if isinstance(module, WithProjection) else module
        frozen = encoder_of(inner, config.image_size, config.image_mean, config.image_std)
        numbers = measure_encoder(
            Encoder(module.to(self.device), frozen.transform, frozen.dim, frozen.name),
            width or frozen.dim,
            self.source,
            self.test,
            view_recipe=self.data.view_recipe or "",
            image_size=config.image_size,
            batch_size=self.training["batch_size"],
            num_workers=self.options.num_workers,
            max_images=self.options.eval_images,
            description=title,
        )
        return Measured(**numbers, **(log or {}))


def _line(title: str, *columns: str) -> str:
    return (title.ljust(24) + "".join(f"{column:>11}" for column in columns)).rstrip()


def _line_of(run: Run) -> str:
    title = run.method if run.seed == 0 else f"{run.method}, seed {run.seed}"
    values = {name: getattr(run.measured, name) for name in _COLUMNS}
    return _line(
        title,
        *(
            "" if values[name] is None else f"{factor * values[name]:.{digits}f}"
            for name, (_, factor, digits) in _COLUMNS.items()
        ),
    )


def _write(options: argparse.Namespace, bench: _Bench, runs: Sequence[Run]) -> None:
    """The table, the claims and the figures."""
    folder: Path = options.output_dir
    chance = share_of_own_class(bench.source)
    claims = claims_of(runs, chance)
    groups = by_method(runs)
    said = [
        f"Chance for `own class`, computed from all labels of the training split: {100 * chance:.1f} %.",
        *(f"- Claim: {claim}." for claim in claims),
    ]
    record = {"chance": chance, "runs": [run.record() for run in runs]}
    record |= {"claims": [{"text": claim.text, "holds": claim.holds} for claim in claims]}
    write_json(folder / "study.json", record)
    (folder / "study.md").write_text(f"{_table(groups)}\n" + "\n".join(said) + "\n")
    logs = {
        method: [bench.folder(method, run.seed) / "metrics.jsonl" for run in group]
        for method, group in groups.items()
        if method in CONTRASTIVE
    }
    rows = [
        StudyRow(
            title=method,
            numbers={name: values_of(group, name) for name in Measured.__dataclass_fields__},
            logs=logs.get(method, []),
        )
        for method, group in groups.items()
    ]
    figures = {"plane.png": plane(rows), "study.png": study_chart(rows, chance)}
    if logs:
        figures["matching.png"] = matching_curves(
            {method: logs[method] for method in logs if "oracle" not in method} or logs,
            bench.configs["mochi"].queue_size,
        )
    for name, figure in figures.items():
        figure.savefig(folder / name)
    print("\n" + "\n".join(said))
    print(f"\nWrote study.json, study.md, {', '.join(figures)} to {folder}")


def _table(groups: dict[str, list[Run]]) -> str:
    headings = [f"{heading} (%)" if factor == 100 else heading for heading, factor, _ in _COLUMNS.values()]
    lines = [f"| method | {' | '.join(headings)} |", "|---" * (len(headings) + 1) + "|"]
    for method, group in groups.items():
        cells = [
            mean_text([factor * value for value in values_of(group, name)], digits)
            for name, (_, factor, digits) in _COLUMNS.items()
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dataset", required=True, help="as for pretrain.py: shapes, digits, a folder, a Hub id")
    parser.add_argument("--dataset_config", help="config of a Hub data set that has several")
    parser.add_argument("--split", default="train", help="labelled split to train on (default: train)")
    parser.add_argument("--test_split", default="test", help="labelled split to measure on (default: test)")
    parser.add_argument("--label_column", help="column of the classes; found by its type and name otherwise")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD", help="default: all of them")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each method, with seeds from 0 (default: 1)")
    run = parser.add_argument_group("each run")
    run.add_argument("--num_steps", type=int, default=1000, help="optimizer steps (default: 1000)")
    run.add_argument("--recipe", choices=MoCHiForPreTraining.recipes, default="quickstart", help="default: quickstart")
    run.add_argument("--encoder", help="architecture; the recipe's if not given")
    run.add_argument("--view_recipe", help="augmentation; the recipe's if not given")
    run.add_argument("--batch_size", type=int, help="images of a step; the recipe's if not given")
    run.add_argument("--learning_rate", type=float, help="for 256 images a step; the recipe's if not given")
    run.add_argument(
        "--supervised_learning_rate", type=float, default=0.1, help="of SGD for 256 images a step (default: 0.1)"
    )
    run.add_argument("--num_workers", type=int, default=2, help="processes that decode and augment (default: 2)")
    run.add_argument("--eval_images", type=int, default=10_000, help="images of either split to measure on (10000)")
    negatives = parser.add_argument_group("negatives", "MoCHi's settings; the recipe's if not given")
    negatives.add_argument("--queue_size", type=int, help="keys in the queue")
    negatives.add_argument("--num_hard_negatives", type=int, help="hardest keys that are counted and mixed (N)")
    negatives.add_argument("--num_mixed_negatives", type=int, help="mixtures of two of them for each query (s)")
    negatives.add_argument("--num_mixed_queries", type=int, help="mixtures of one and the query (s')")
    negatives.add_argument("--start_step", type=int, help="steps before mixing starts (default: a tenth of them)")
    options = parse_flags(parser, arguments)
    for method in options.methods:
        if method not in METHODS:
            hint = near_name(method, METHODS) or f" Known: {', '.join(METHODS)}."
            raise ValueError(f"Unknown method `{method}`.{hint}")
    options.methods = list(dict.fromkeys(options.methods))
    for name, least in (("seeds", 1), ("num_steps", 1), ("eval_images", 2), ("num_workers", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"`--{name}` must be at least {least}, got {getattr(options, name)}.")
    if not options.supervised_learning_rate > 0:
        raise ValueError(f"`--supervised_learning_rate` must be positive, got {options.supervised_learning_rate}.")
    if options.split == options.test_split:
        raise ValueError(
            f"`--split` and `--test_split` are both `{options.split}`: measure on other images than those that are "
            "trained on."
        )
    if options.start_step is None:
        options.start_step = options.num_steps // 10
    return options


if __name__ == "__main__":
    with errors_for_users():
        show_log()
        sys.exit(main(sys.argv[1:]))
