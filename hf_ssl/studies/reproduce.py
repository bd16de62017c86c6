"""Train the runs of a published table, and print the published number beside the one that comes out here.

    hf-ssl study reproduce directpred-cifar10 --list
    hf-ssl study reproduce directpred-cifar10 --dataset uoft-cs/cifar10 --output_dir runs/directpred-cifar10

TABLE is directpred-cifar10, directpred-stl10, directpred-imagenet, moco-imagenet, mochi or contrastive-clustering.

Each run has the settings of its recipe and is measured by the protocol of the published number. `--runs` chooses some,
`--list` trains nothing and shows what is done and what is missing. A whole table takes days to weeks: `--num_steps`,
`--encoder` and others try it out at a small size, which the table then says.

The study trains in one process. For several GPUs, train a run by `accelerate launch -m hf_ssl pretrain` with the
settings of its row into OUTPUT_DIR/RUN/seed0, or put it there: a finished run is compared with its row and measured.

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

from hf_ssl.data.settings import OF_DATA, PLACES, DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.comparison import compare, shared_labels
from hf_ssl.evaluation.features import encoder_of
from hf_ssl.evaluation.references import read_json
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLConfig
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
    tell_missing_encoders,
    train_run,
    written_text,
)
from hf_ssl.studies.published import TABLES, Row, Table
from hf_ssl.studies.reproduce_report import FinishedRun, table_text
from hf_ssl.studies.reproduce_runs import differences_from, is_trained, state_of, trained_method, wanted_identity
from hf_ssl.studies.reproduce_settings import ReproduceSettings
from hf_ssl.training.files import RUN_FILE, write_json
from hf_ssl.training.plan import make_plan
from hf_ssl.training.record import RunRecord

logger = logging.getLogger(__name__)

_SMALLER = {"encoder": "architecture", "batch_size": "batch_size"}
_CHANGES = (*_SMALLER, "split", "probe_split", "test_split", "eval_images", "augmented_passes")
# Settings that change the numbers of a run: one folder holds results of one choice of them.
_COMMON = ("dataset", *PLACES, "table", "num_epochs", "num_steps", *_CHANGES, "mixed_precision", "compile", "cache")
_EVAL_BATCH = 256
_RESULT = "result.json"


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
        return _listed(settings, table)
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
    tell_missing_encoders(folder)
    # Also those that were made before and are not asked for now.
    done = _finished(settings, [*table.rows])
    text = table_text(table, [*table.rows], done, _begun(settings, [*table.rows]), _given(settings, bench.source.name))
    files = [folder / "reproduction.json", folder / "reproduction.md"]
    write_json(files[0], {"table": settings.table, "runs": [asdict(one) for one in done]})
    files[1].write_text(text)
    return ReproduceResult(done, text, files, exit_code)


def _listed(settings: ReproduceSettings, table: Table) -> ReproduceResult:
    """What is done, begun and missing; refuses a folder of another table, some of which have the same names."""
    folder, names = settings.output_dir, settings.runs or []
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"`output_dir` `{folder}` is not there, so no run is in it. Name the folder of the runs, or leave it out "
            "to see what there is to run."
        )
    given = _given(settings, settings.dataset)
    if folder is not None and (folder / SETTINGS_FILE).is_file():
        given = read_json(folder / SETTINGS_FILE)
        if given.get("table") != settings.table:
            other = f"`{given['table']}`" if given.get("table") else "another study"
            raise UserError(
                f"`{folder}` holds runs of {other}, not of `{settings.table}`. Give another "
                "`output_dir`, or leave it out to see what there is to run."
            )
    done = _finished(settings, names)
    text = table_text(table, names, done, _begun(settings, names), given)
    place = (
        f"- The study trains in one process. A run lies in `{folder or 'OUTPUT_DIR'}/RUN/seed0` (1, ...): one that "
        "`hf-ssl pretrain` finished there with the settings of its row, on several GPUs perhaps, is measured and not "
        "trained again.\n"
    )
    return ReproduceResult(done, text + place)


def _given(settings: ReproduceSettings, dataset: Any) -> dict[str, Any]:
    """What `settings.json` of the runs tells, without a folder."""
    name = str(dataset) if isinstance(dataset, str | Path) else None
    return {name: getattr(settings, name) for name in _COMMON} | {"dataset": name}


def _finished(settings: ReproduceSettings, names: Sequence[str]) -> Sequence[FinishedRun]:
    """The runs that are done, of any seed."""
    if settings.output_dir is None:
        return []
    found = [(name, path) for name in names for path in sorted((settings.output_dir / name).glob(f"seed*/{_RESULT}"))]
    return [finished_run(path, FinishedRun, name=name) for name, path in found]


def _begun(settings: ReproduceSettings, names: Sequence[str]) -> dict[str, list[str]]:
    """How far the runs are that are not done: by name, one text for each seed."""
    if settings.output_dir is None:
        return {}
    found = {name: sorted((settings.output_dir / name).glob(f"seed*/{RUN_FILE}")) for name in names}
    return {
        name: [
            f"{state_of(path.parent)} (seed {path.parent.name.removeprefix('seed')})"
            for path in paths
            if not (path.parent / _RESULT).exists()
        ]
        for name, paths in found.items()
    }


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
        for name in options.runs or []:
            for seed in range(options.seeds):
                folder = self._folder(name, seed)
                if is_trained(folder) and not (folder / _RESULT).exists():  # perhaps not by this study
                    self._differences(name, seed)

    def run(self, name: str, seed: int) -> FinishedRun:
        """The finished run: read, gone on with, or made.

        Raises:
            StoppedError: If a signal ended it.
        """
        folder = self._folder(name, seed)
        result = folder / _RESULT
        if result.exists():
            return finished_run(result, FinishedRun, name=name, seed=seed)
        row = self.table.rows[name]
        if not is_trained(folder):
            set_seed(seed)
            model = METHODS[row.method](self.configs[name])
            train_run(model, self.source, self._data(self._recipe(row)), self._settings(name, seed))
        plan = make_plan(self.source, self._settings(name, seed), 1)
        given = {key: value for key in _CHANGES if (value := getattr(self.options, key))}
        record = RunRecord.read(folder)
        finished = FinishedRun(
            name,
            seed,
            Path(self.source.name).name,
            values=self._measure(trained_method(row.method, folder), f"{name}, seed {seed}", seed),
            epochs=None if plan.steps_per_epoch is None else plan.num_steps / plan.steps_per_epoch,
            steps=plan.num_steps,
            seconds=0.0 if record is None else record.progress.seconds,
            changed=given | self._differences(name, seed),
        )
        write_json(result, asdict(finished))
        return finished

    def _differences(self, name: str, seed: int) -> dict[str, Any]:
        """See `differences_from`."""
        row, source = self.table.rows[name], self.source
        data = self._data(self._recipe(row))
        wanted = wanted_identity(row.method, self.configs[name], source, data, self._settings(name, seed))
        of_data = f"`{source.name}`, split `{source.split}`"
        return differences_from(wanted, self._folder(name, seed), f"`{name}` with seed {seed}", of_data)

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
            cache=options.cache,
            num_workers=options.num_workers,
        )

    def _recipe(self, row: Row) -> dict[str, Any]:
        """All settings of a run, by the names that a recipe has."""
        options = self.options
        recipe = {**METHODS[row.method].recipes[row.recipe], **row.changes}
        if options.num_epochs is not None or options.num_steps is not None:
            recipe |= length_of(recipe, options.num_epochs, options.num_steps)
        given = {there: getattr(options, here) for here, there in _SMALLER.items()}
        given |= {"mixed_precision": options.mixed_precision, "compile": options.compile or None}
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
