"""Train the runs of a published table, and print the published number beside the one that comes out here.

    hf-ssl study reproduce directpred-cifar10 --list
    hf-ssl study reproduce directpred-cifar10 --dataset uoft-cs/cifar10 --output_dir runs/directpred-cifar10

TABLE is directpred-cifar10, directpred-stl10, directpred-imagenet, moco-imagenet, mochi or contrastive-clustering.

Each run has the settings of its recipe and is measured by the protocol of the published number. `--runs` chooses some,
`--list` trains nothing and shows what is done and what is missing. A whole table takes days to weeks: `--num_steps`,
`--encoder` and others try it out at a small size, which the table then says.

Killed or stopped? The same command continues. Writes reproduction.json and reproduction.md beside the runs, each of
which has its `encoder` folder.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from hf_ssl.data.settings import OF_DATA, PLACES, DataSettings, PlaceSettings
from hf_ssl.data.sources.open import DataLike, Source
from hf_ssl.errors import UserError, near_name
from hf_ssl.evaluation.comparison import compare, shared_labels
from hf_ssl.evaluation.features import encoder_of
from hf_ssl.evaluation.protocols import AUGMENTED
from hf_ssl.evaluation.references import read_json
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLConfig
from hf_ssl.settings import check_least, check_positive, checked
from hf_ssl.studies.many_runs import (
    SETTINGS_FILE,
    StoppedError,
    check_one_process,
    claim_folder,
    config_of_run,
    finished_run,
    length_of,
    parts_of_recipe,
    settings_of_run,
    train_run,
    written_text,
)
from hf_ssl.studies.published import TABLES, Row, Table
from hf_ssl.studies.reproduce_report import FinishedRun, table_text
from hf_ssl.studies.settings import chosen_names
from hf_ssl.training.files import write_json
from hf_ssl.training.plan import make_plan

logger = logging.getLogger(__name__)

_SMALLER = {"encoder": "architecture", "batch_size": "batch_size"}
_CHANGES = (*_SMALLER, "split", "probe_split", "test_split", "eval_images", "augmented_passes")
# Settings that change the numbers of a run: one folder holds results of one choice of them.
_COMMON = ("dataset", *PLACES, "table", "num_epochs", "num_steps", *_CHANGES)
_EVAL_BATCH = 256


@checked
class ReproduceSettings(PlaceSettings):
    """Which table, on which copy of its data.

    Args:
        table: directpred-cifar10, directpred-stl10, directpred-imagenet, moco-imagenet, mochi or
            contrastive-clustering.
        dataset: Where the table's data are: an id on the Hub, a folder, a file or an address, as for
            `hf-ssl pretrain`; needed unless `list`.
        output_dir: Folder of the runs; needed unless `list`, which looks there for what is done.
        runs: Names of runs of the table, as `list` shows them; all if not given.
        seeds: Runs of each kind, with seeds from 0; at least 1.
        split: Split to train on; the table's if not given.
        probe_split: Labelled split that the probe learns from; the table's if not given.
        test_split: Labelled split to measure on; the table's if not given.
        num_epochs: Epochs of each run, to try it out; those of the table if neither this nor `num_steps` is given.
        num_steps: Optimizer steps of each run, instead of `num_epochs`.
        batch_size: Images of a step, to try it out; the recipe's if not given.
        encoder: Architecture, to try it out; the recipe's if not given.
        eval_images: Images of each labelled split to measure on at most, at least 2; all if not given.
        augmented_passes: Passes of random crops that `linear-sgd` and `linear-byol` learn from, as the papers' do; see
            `hf-ssl evaluate`. 0: images as they are.
        num_workers: Worker processes that decode and augment, at least 0.
        list: Train nothing: show the runs, and the numbers of those that are done.
    """

    table: str
    dataset: DataLike | None = None
    output_dir: Path | None = None
    runs: list[str] | None = None
    seeds: int = 1
    split: str | None = None
    probe_split: str | None = None
    test_split: str | None = None
    num_epochs: float | None = None
    num_steps: int | None = None
    batch_size: int | None = None
    encoder: str | None = None
    eval_images: int | None = None
    augmented_passes: int = 0
    num_workers: int = 2
    list: bool = False

    def validate_table(self) -> None:
        """Check what can be checked without data; runs that were not given become all of the table's."""
        if self.table not in TABLES:
            hint = near_name(self.table, TABLES) or f" Known: {', '.join(TABLES)}."
            raise UserError(f"`study reproduce` knows no table `{self.table}`.{hint}")
        found = TABLES[self.table]
        self._check_numbers()
        self.runs = [*found.rows] if self.runs is None else chosen_names(self.runs, [*found.rows], "run")
        if self.list:
            return
        test = self.test_split or found.test_split
        learnt = [self.split or found.split, self.probe_split or found.probe_split]
        # A clustering has no probe, and is measured on whatever it was trained on.
        if learnt[1] is not None and test in learnt:
            raise UserError(
                f"`test_split` is `{test}`, from which encoder or probe learn (`split` {learnt[0]}, `probe_split` "
                f"{learnt[1]}): measure on other images."
            )
        if self.dataset is None:
            raise UserError(
                f"`dataset` is needed: where {found.data} is, such as `--dataset {found.place}`. `--list` shows the "
                "runs without it."
            )
        if self.output_dir is None:
            raise UserError(f"`output_dir` is needed: the folder of the runs, such as `runs/{self.table}`.")

    def _check_numbers(self) -> None:
        check_least(self, seeds=1, num_steps=1, batch_size=1, eval_images=2, augmented_passes=0, num_workers=0)
        check_positive(self, "num_epochs")
        if self.num_epochs is not None and self.num_steps is not None:
            raise UserError("`num_epochs` and `num_steps` exclude each other. Give one of them.")
        protocol = TABLES[self.table].protocol
        if self.augmented_passes and protocol not in AUGMENTED:
            raise UserError(f"`augmented_passes` is for {' and '.join(AUGMENTED)}, not for {protocol}. Leave it out.")


@dataclass(frozen=True)
class ReproduceResult:
    """A table, with the numbers that were measured here.

    Args:
        runs: The runs that are done.
        text: Published numbers beside those, in Markdown.
        files: What was written.
        exit_code: 0, or 128 plus the number of the signal that stopped the study.
    """

    runs: Sequence[FinishedRun]
    text: str
    files: Sequence[Path] = ()
    exit_code: int = 0

    def __str__(self) -> str:
        return "\n".join([self.text.rstrip(), *written_text(self.files)])


def run(settings: ReproduceSettings) -> ReproduceResult:
    """Train what is missing, measure and write; or only list."""
    table = TABLES[settings.table]
    names = settings.runs or []
    if settings.list:
        _check_table_of(settings)
        done = _finished(settings, names)
        return ReproduceResult(done, table_text(table, names, done))
    check_one_process()
    bench, folder = _Bench(settings, table), settings.output_dir or Path()
    claim_folder(folder, settings, _COMMON, bench.source)
    wanted = [(seed, name) for seed in range(settings.seeds) for name in names]
    runs: list[FinishedRun] = []
    exit_code = 0
    try:
        for seed, name in wanted:
            runs.append(bench.run(name, seed))
            logger.info("%d of %d runs: %s, seed %d, %s", len(runs), len(wanted), name, seed, runs[-1].values)
    except StoppedError as stopped:
        logger.warning(stopped.message(len(runs), len(wanted)))
        exit_code = stopped.exit_code
    # Also those that were made before and are not asked for now.
    done = _finished(settings, [*table.rows])
    text = table_text(table, [*table.rows], done)
    files = [folder / "reproduction.json", folder / "reproduction.md"]
    write_json(files[0], {"table": settings.table, "runs": [asdict(one) for one in done]})
    files[1].write_text(text)
    return ReproduceResult(done, text, files, exit_code)


def _check_table_of(settings: ReproduceSettings) -> None:
    """Refuse to list the runs of another table: some have the same names."""
    record = (settings.output_dir or Path()) / SETTINGS_FILE
    other = read_json(record).get("table") if settings.output_dir is not None and record.is_file() else settings.table
    if other != settings.table:
        raise UserError(
            f"`{settings.output_dir}` holds runs of `{other}`, not of `{settings.table}`. Give another `output_dir`, "
            "or leave it out to see what there is to run."
        )


def _finished(settings: ReproduceSettings, names: Sequence[str]) -> Sequence[FinishedRun]:
    """The runs that are done, of any seed."""
    if settings.output_dir is None:
        return []
    found = [(name, path) for name in names for path in sorted((settings.output_dir / name).glob("seed*/result.json"))]
    return [finished_run(path, FinishedRun, name=name) for name, path in found]


class _Bench:
    """Data and configs of the runs; refuses wrong ones before anything is trained.

    Args:
        options: The settings of the study.
        table: The table.
    """

    def __init__(self, options: ReproduceSettings, table: Table):
        self.options = options
        self.table = table = replace(
            table,
            split=options.split or table.split,
            probe_split=options.probe_split or table.probe_split,
            test_split=options.test_split or table.test_split,
        )
        self.source: Source = self._data({}).open()
        self.test: Source = self._data({}).open(table.test_split)
        self.probe = self.test if table.probe_split is None else self._data({}).open(table.probe_split)
        self.label = shared_labels(self.probe, self.test, options.label_column)[0]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.configs = {name: self._config(name) for name in options.runs or []}

    def run(self, name: str, seed: int) -> FinishedRun:
        """The finished run: read, gone on with, or made.

        Raises:
            StoppedError: If a signal ended it.
        """
        folder = self._folder(name, seed)
        result = folder / "result.json"
        if result.exists():
            return finished_run(result, FinishedRun, name=name, seed=seed)
        row = self.table.rows[name]
        set_seed(seed)
        model = METHODS[row.method](self.configs[name])
        seconds = train_run(model, self.source, self._data(self._recipe(row)), self._settings(name, seed))
        plan = make_plan(self.source, self._settings(name, seed), 1)
        finished = FinishedRun(
            name,
            seed,
            Path(self.source.name).name,
            values=self._measure(model, f"{name}, seed {seed}", seed),
            epochs=None if plan.steps_per_epoch is None else plan.num_steps / plan.steps_per_epoch,
            steps=plan.num_steps,
            seconds=seconds,
            changed={key: value for key in _CHANGES if (value := getattr(self.options, key))},
        )
        write_json(result, asdict(finished))
        return finished

    def _folder(self, name: str, seed: int) -> Path:
        return (self.options.output_dir or Path()) / name / f"seed{seed}"

    def _data(self, recipe: Mapping[str, Any]) -> DataSettings:
        options = self.options
        dataset: Any = options.dataset
        return DataSettings(
            dataset=dataset,
            **{name: getattr(options, name) for name in OF_DATA},
            split=self.table.split,
            view_recipe=recipe.get("view_recipe"),
            num_workers=options.num_workers,
        )

    def _recipe(self, row: Row) -> dict[str, Any]:
        """All settings of a run, by the names that a recipe has."""
        options = self.options
        recipe = {**METHODS[row.method].recipes[row.recipe], **row.changes}
        if options.num_epochs is not None or options.num_steps is not None:
            recipe |= length_of(recipe, options.num_epochs, options.num_steps)
        given = {there: getattr(options, here) for here, there in _SMALLER.items()}
        return recipe | {name: value for name, value in given.items() if value is not None}

    def _settings(self, name: str, seed: int) -> Any:
        _, training = parts_of_recipe(self._recipe(self.table.rows[name]))
        return settings_of_run(training, self._folder(name, seed), seed)

    def _config(self, name: str) -> SSLConfig:
        row = self.table.rows[name]
        of_method, _ = parts_of_recipe(self._recipe(row))
        return config_of_run(row.method, of_method, self.source, self._settings(name, 0))

    def _measure(self, model: Any, title: str, seed: int) -> dict[str, float]:
        config = model.config
        model.to(self.device).eval()
        compared = compare(
            {title: encoder_of(model.encoder, config.image_size, config.image_mean, config.image_std)},
            self.probe,
            self.test,
            [self.label],
            [self.table.protocol],
            seed=seed,
            augmented_passes=self.options.augmented_passes,
            method=model if hasattr(model, "assign") else None,
            batch_size=_EVAL_BATCH,
            num_workers=self.options.num_workers,
            max_images=self.options.eval_images,
        )
        return {one.protocol: one.value for one in compared.own}
