"""Train one encoder by every method, with several seeds, on one data set, and compare what they know.

    hf-ssl study methods --dataset uoft-cs/cifar10 --seeds 3 --output_dir runs/methods
    hf-ssl study methods --dataset photos --recipe cifar --methods moco_v2 byol directpred --output_dir runs/three

Each method has the settings of its own recipe, but all see the same images with the same augmentation, as many epochs,
and start from the same encoder. MoCHi mixes after a tenth of the run where its recipe would start after the end.
`supervised` trains the same encoder with the labels, on one of the two views.

The table has the accuracy of k-NN and of a linear probe on the frozen encoder (%) and the seconds of training: means,
with several seeds also standard deviations. Its first row is an encoder with random weights.

Killed or stopped? The same command continues. Writes methods.json, methods.md and methods.png beside the runs, each of
which has its `encoder` folder with a card.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from hf_ssl.data.settings import PLACES
from hf_ssl.data.sources.open import Source
from hf_ssl.data.sources.subset import class_names
from hf_ssl.errors import UserError
from hf_ssl.evaluation.comparison import compare, shared_labels
from hf_ssl.evaluation.encoders import encoder_of, load_encoder
from hf_ssl.evaluation.results import entries_of, update_results
from hf_ssl.hub.model_card import write_model_card
from hf_ssl.invocation import command_line
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLConfig, SSLPreTrainedModel
from hf_ssl.private import public_command, public_name
from hf_ssl.settings import check_least, check_positive, checked
from hf_ssl.studies.many_runs import (
    StoppedError,
    check_one_process,
    claim_folder,
    config_of_run,
    finished_run,
    length_of,
    parts_of_recipe,
    public_settings,
    settings_of_run,
    tell_missing_encoders,
    train_run,
    written_text,
)
from hf_ssl.studies.methods_report import (
    RANDOM,
    SUPERVISED,
    VARIANTS,
    MethodRun,
    differences_of,
    line_of,
    table_of,
    write_report,
)
from hf_ssl.studies.settings import StudySettings, check_recipe, check_splits, chosen_names
from hf_ssl.studies.supervised import train_supervised
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.files import write_json
from hf_ssl.training.origin import sha256_of
from hf_ssl.training.record import RunRecord

logger = logging.getLogger(__name__)

# Settings that change the numbers of a run: one folder holds results of one choice of them.
_COMMON = ("dataset", *PLACES, "split", "test_split")
_COMMON += (
    "recipe",
    "view_recipe",
    "encoder",
    "num_epochs",
    "num_steps",
    "batch_size",
    "learning_rate",
    "mixed_precision",
    "image_size",
    "supervised_learning_rate",
    "eval_images",
)
_OF_RECIPE = {"encoder": "architecture", "batch_size": "batch_size", "learning_rate": "base_learning_rate"}
_OF_RECIPE |= {"mixed_precision": "mixed_precision", "image_size": "image_size"}
_EPOCHS = 5.0
_EVAL_BATCH = 256


@checked
class MethodsSettings(StudySettings):
    """Which methods are trained, and how long.

    Args:
        output_dir: Folder of the runs.
        methods: Methods or variants of them: end_to_end, memory_bank, moco_v1, moco_v2, moco_v3, mochi, byol,
            byol_linear, simsiam, linear (DirectPred's network with a predictor that gradients train), directpred,
            directpred_freq5, directset, directcopy, directclr, contrastive_clustering; or supervised.
        split: Labelled split to train on; its labels are used to measure only.
        test_split: Labelled split to measure on.
        recipe: Recipe of each method.
        view_recipe: Augmentation of all methods; none for that of each recipe.
        num_epochs: Epochs of each run, positive; 5 if `num_steps` is not given either.
        num_steps: Optimizer steps of each run, instead of `num_epochs`.
        image_size: Height and width of a view, in pixels; the recipe's if not given.
        supervised_learning_rate: Of SGD for 256 images a step, positive.
        eval_images: Images of either split to measure on at most, at least 2; all if not given.
    """

    output_dir: Path
    methods: list[str] = field(default_factory=lambda: [SUPERVISED, *VARIANTS])
    test_split: str = "test"
    view_recipe: str | None = "moco_v2"
    num_epochs: float | None = None
    num_steps: int | None = None
    image_size: int | None = None
    supervised_learning_rate: float = 0.1
    eval_images: int | None = None

    def validate_methods(self) -> None:
        """Check what can be checked without data; without a length it becomes 5 epochs."""
        self.methods = chosen_names(self.methods, [SUPERVISED, *VARIANTS], "method")
        if self.methods == [SUPERVISED]:
            raise UserError("`methods` needs one method beside `supervised`, whose encoder it shares.")
        for name in self.trained_without_labels():
            method = VARIANTS[name].method
            check_recipe(self.recipe, METHODS[method].recipes, method)
        check_least(self, num_steps=1, eval_images=2, image_size=8)
        check_positive(self, "num_epochs", "supervised_learning_rate")
        if self.num_epochs is not None and self.num_steps is not None:
            raise UserError("`num_epochs` and `num_steps` exclude each other. Give one of them.")
        if self.num_epochs is None and self.num_steps is None:
            self.num_epochs = _EPOCHS
        check_splits(self)

    def trained_without_labels(self) -> list[str]:
        """The chosen methods but for `supervised`."""
        return [name for name in self.methods if name != SUPERVISED]


@dataclass(frozen=True)
class MethodsResult:
    """What each method came to, with each seed.

    Args:
        runs: The runs that are finished, also of methods that were not asked for now.
        num_runs: How many were asked for now.
        files: What was written: numbers, table and figure; none if the study was stopped.
        exit_code: 0, or 128 plus the number of the signal that stopped the study.
    """

    runs: list[MethodRun]
    num_runs: int
    files: list[Path] = field(default_factory=list)
    exit_code: int = 0

    def __str__(self) -> str:
        return "\n".join([table_of(self.runs), differences_of(self.runs).rstrip(), *written_text(self.files)])


def run(settings: MethodsSettings) -> MethodsResult:
    """Train what is missing, measure and write."""
    check_one_process()
    bench = _Bench(settings)
    claim_folder(settings.output_dir, settings, _COMMON, bench.source)
    wanted = [(seed, name) for seed in range(settings.seeds) for name in (RANDOM, *settings.methods)]
    runs: list[MethodRun] = []
    try:
        for seed, name in wanted:
            runs.append(bench.run(name, seed))
            logger.info("%d of %d runs: %s", len(runs), len(wanted), line_of(runs[-1]))
    except StoppedError as stopped:
        logger.warning(stopped.message(len(runs), len(wanted)))
        return MethodsResult(runs, len(wanted), exit_code=stopped.exit_code)
    tell_missing_encoders(settings.output_dir)
    done = bench.finished()  # also those that were made before and are not asked for now
    return MethodsResult(done, len(wanted), write_report(settings.output_dir, done, bench.facts(done)))


class _Bench:
    """Data and configs that all runs share; refuses wrong ones before anything is trained.

    Args:
        options: The settings of the study.
    """

    def __init__(self, options: MethodsSettings):
        self.options = options
        data = options.data_of({})
        self.source: Source = data.open()
        self.test: Source = data.open(options.test_split)
        self.label = shared_labels(self.source, self.test, None)[0]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.first = options.trained_without_labels()[0]
        self.configs = {name: self._config(name) for name in options.trained_without_labels()}
        shapes = {str((one.architecture, one.model_args, one.image_size)): name for name, one in self.configs.items()}
        if len(shapes) > 1:
            first, second = list(shapes.values())[:2]
            raise UserError(
                f"Recipe `{options.recipe}` has another encoder or image size for {first} than for {second}, so that "
                "they cannot be compared. Give `encoder` or another `recipe`, or compare other `methods`."
            )

    def run(self, name: str, seed: int) -> MethodRun:
        """The finished run of a method: read, gone on with, or made.

        Raises:
            StoppedError: If a signal ended it.
        """
        folder = self._folder(name, seed)
        result = folder / "result.json"
        if result.exists():
            return finished_run(result, MethodRun, method=name, seed=seed)
        model, seconds, exported = self._model(name if name in VARIANTS else self.first, seed), 0.0, None
        module: Any = model.encoder
        if name in VARIANTS:
            data = self.options.data_of(self._recipe(name))
            seconds = train_run(model, self.source, data, self._settings(name, seed))
            exported = folder / "encoder"
        elif name == SUPERVISED:
            module, seconds = self._train_supervised(model, folder, seed)
        config: Any = model.config
        measured = self._measure(module, config, exported, f"{name}, seed {seed}")
        weights = sha256_of(exported / "model.safetensors") if exported else None
        finished = MethodRun(name, seed, **measured, seconds=seconds, weights=weights)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(result, asdict(finished))
        return finished

    def _train_supervised(self, model: SSLPreTrainedModel, folder: Path, seed: int) -> tuple[nn.Module, float]:
        recipe = self._recipe(self.first)
        _, training = parts_of_recipe(recipe)
        return train_supervised(
            *(model, self.source, class_names(self.source), self.options.data_of(recipe), training),
            folder=folder,
            seed=seed,
            learning_rate=self.options.supervised_learning_rate,
        )

    def finished(self) -> list[MethodRun]:
        """All runs in the folder that are done, of any method and seed."""
        found = sorted(self.options.output_dir.glob("*/seed*/result.json"))
        return [finished_run(path, MethodRun, method=path.parent.parent.name) for path in found]

    def facts(self, runs: Sequence[MethodRun]) -> dict[str, Any]:
        """What one must know to repeat the runs, JSON-able."""
        records = [RunRecord.read(self._folder(one.method, one.seed)) for one in runs]
        known = [record.public() for record in records if record is not None]
        module: Any = self._model(self.first, 0).encoder
        config = self.configs[self.first]
        return {
            "study": "methods",
            "dataset": public_name(self.source.name, self.source.kind),
            "train_images": self.source.num_images,
            "test_images": self.test.num_images,
            "encoder": config.architecture,
            "num_parameters": sum(parameter.numel() for parameter in module.parameters()),
            "image_size": config.image_size,
            "settings": public_settings(self.options, [name for name in _COMMON if name != "dataset"], self.source),
            "commands": list(dict.fromkeys(record.command for record in known)),
            "commits": sorted({record.commit for record in known if record.commit}),
            "collapses": [
                {"method": one.method, "seed": one.seed, **{name: record.collapse[name] for name in ("kind", "step")}}
                for one, record in zip(runs, records, strict=True)
                if record is not None and record.collapse
            ],
            "versions": known[0].versions if known else {},
            "hardware": known[0].hardware if known else {},
        }

    def _recipe(self, name: str) -> dict[str, Any]:
        """All settings of a method's runs, by the names that a recipe has."""
        variant = VARIANTS[name]
        recipe = dict(METHODS[variant.method].recipes[self.options.recipe])
        length = length_of(recipe, self.options.num_epochs, self.options.num_steps)
        return recipe | dict(variant.changes) | length | self.options.given_for(_OF_RECIPE)

    def _config(self, name: str) -> SSLConfig:
        of_method, _ = parts_of_recipe(self._recipe(name))
        return config_of_run(VARIANTS[name].method, of_method, self.source, self._settings(name, 0))

    def _settings(self, name: str, seed: int) -> TrainingSettings:
        _, training = parts_of_recipe(self._recipe(name))
        return settings_of_run(training, self._folder(name, seed), seed)

    def _folder(self, name: str, seed: int) -> Path:
        return self.options.output_dir / name / f"seed{seed}"

    def _model(self, name: str, seed: int) -> SSLPreTrainedModel:
        set_seed(seed)
        return METHODS[VARIANTS[name].method](self.configs[name])

    def _measure(self, module: nn.Module, config: SSLConfig, exported: Path | None, title: str) -> dict[str, float]:
        """Accuracy of `knn` and `linear` on the frozen encoder, which also go onto the card of an exported one."""
        if exported is None:
            encoder = encoder_of(module.to(self.device).eval(), config.image_size, config.image_mean, config.image_std)
        else:  # what users will load
            encoder = load_encoder(str(exported), self.device)
        options = self.options
        compared = compare(
            {title: encoder},
            *(self.source, self.test, [self.label], ["knn", "linear"]),
            batch_size=_EVAL_BATCH,
            num_workers=options.num_workers,
            max_images=options.eval_images,
        )
        if exported is not None:
            name, kind = self.test.name, self.test.kind
            about = {"dataset": public_name(name, kind), "dataset_kind": kind, "split": self.test.split}
            about |= {"dataset_config": options.dataset_config, "command": public_command(command_line(), name, kind)}
            entries = entries_of(compared, about, self.source.split)
            update_results(exported / "results.json", entries)
            write_model_card(exported)
        return {one.protocol: one.value for one in compared.own}
