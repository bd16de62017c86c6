"""Train MoCo v2 and MoCHi with and without a class oracle, beside supervised training, and compare them.

    hf-ssl study negatives --dataset uoft-cs/cifar10 --view_recipe moco_v2 --output_dir runs/negatives
    hf-ssl study negatives --dataset shapes --num_steps 300 --methods moco_v2 mochi --output_dir runs/short

Methods: `moco_v2` (MoCHi without mixtures), `mochi`, both also as `-oracle`, which leaves all keys of the query's
class out of the negatives, and `supervised`. All start from the same encoder and see the same images, as many steps,
the same batch size and augmentation; supervised training sees one of the two views and has a learning rate of its own.

One line a run: accuracy of a linear probe and of k-NN (%); share of the query's class among its hardest keys, and
accuracy of picking the positive among the keys and among keys and mixtures (%, mean over the log of the last tenth of
training); of held-out images the squared distance of two views and of two images of a class, and uniformity, of
representations h and projections z. Lower is closer together, and more even. Whether the alignment of the paper is
that of views or of classes is UNVERIFIED: both are given.

Killed or stopped? The same command continues. Writes negatives.json, negatives.md, plane.png, study.png and
matching.png beside the runs; `--drawn_from` makes table and figures again from such a negatives.json.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from hf_ssl.data.settings import PLACES
from hf_ssl.data.sources.open import Source
from hf_ssl.data.sources.subset import class_names
from hf_ssl.evaluation.encoders import Encoder, WithProjection, encoder_of
from hf_ssl.fine_tuning.classifier import check_classes
from hf_ssl.invocation import command_line
from hf_ssl.methods.mochi import MoCHiConfig, MoCHiForPreTraining
from hf_ssl.private import public_command, public_name
from hf_ssl.settings import check_least, check_positive, checked, of_json
from hf_ssl.studies.many_runs import (
    StoppedError,
    check_one_process,
    claim_folder,
    finished_run,
    parts_of_recipe,
    public_settings,
    results_to_draw,
    written_text,
)
from hf_ssl.studies.negatives_measures import (
    CONTRASTIVE,
    FRESH,
    METHODS,
    SUPERVISED,
    Measured,
    Run,
    ends_of_log,
    measure_encoder,
    share_of_own_class,
)
from hf_ssl.studies.negatives_report import HEAD, draw, folder_of, line_of, write_results
from hf_ssl.studies.negatives_results import LoggedRun, NegativesResults, read_log
from hf_ssl.studies.settings import DrawnStudySettings, check_recipe, check_splits, chosen_names
from hf_ssl.studies.supervised import train_supervised
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.files import write_json
from hf_ssl.training.loop import train
from hf_ssl.training.output import make_results_folder

logger = logging.getLogger(__name__)

# Settings that change the numbers of a run: one folder holds results of one choice of them.
_COMMON = ("dataset", *PLACES, "split", "test_split")
_COMMON += ("recipe", "view_recipe", "encoder", "num_steps", "batch_size", "learning_rate", "mixed_precision")
_COMMON += ("supervised_learning_rate", "queue_size", "num_hard_negatives", "num_mixed_negatives")
_COMMON += ("num_mixed_queries", "start_step", "eval_images")
_OF_RECIPE = {
    "encoder": "architecture",
    "batch_size": "batch_size",
    "learning_rate": "base_learning_rate",
    "mixed_precision": "mixed_precision",
    "start_step": "start_step",
    "queue_size": "queue_size",
    "num_hard_negatives": "num_hard_negatives",
    "num_mixed_negatives": "num_mixed_negatives",
    "num_mixed_queries": "num_mixed_queries",
}
_LOG_LINES = 100


@checked
class NegativesSettings(DrawnStudySettings):
    """Which methods are trained, and how.

    Args:
        output_dir: Folder of the runs.
        methods: Of `moco_v2`, `mochi`, `moco_v2-oracle`, `mochi-oracle` and `supervised`.
        split: Labelled split to train on.
        test_split: Labelled split to measure on.
        num_steps: Optimizer steps of each run, at least 1.
        supervised_learning_rate: Of SGD for 256 images a step, positive.
        eval_images: Images of either split to measure on at most, at least 2.
        queue_size: Keys in the queue; MoCHi's recipe's if not given, as are the next three.
        num_hard_negatives: Hardest keys that are counted and mixed (N).
        num_mixed_negatives: Mixtures of two of them for each query (s).
        num_mixed_queries: Mixtures of one of them and the query (s').
        start_step: Steps before mixing starts; a tenth of them if not given.
        drawn_from: A negatives.json of which table and figures are made again; nothing is read or trained.
    """

    output_dir: Path
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    test_split: str = "test"
    num_steps: int = 1000
    supervised_learning_rate: float = 0.1
    eval_images: int = 10_000
    queue_size: int | None = None
    num_hard_negatives: int | None = None
    num_mixed_negatives: int | None = None
    num_mixed_queries: int | None = None
    start_step: int | None = None
    drawn_from: Path | None = None

    def validate_negatives(self) -> None:
        """Check what can be checked without data; without `start_step` it becomes a tenth of the steps."""
        self.methods = chosen_names(self.methods, METHODS, "method")
        check_least(self, num_steps=1, eval_images=2)
        check_positive(self, "supervised_learning_rate")
        check_recipe(self.recipe, MoCHiForPreTraining.recipes, "mochi")
        check_splits(self)
        if self.start_step is None:
            self.start_step = self.num_steps // 10


@dataclass(frozen=True)
class NegativesResult:
    """What became of each run, and which claims about negatives the runs show.

    Args:
        runs: The runs that are finished; the first of each seed is the fresh encoder.
        num_runs: How many were asked for.
        said: Chance level and claims, in sentences; none if the study was stopped.
        files: What was written; none if the study was stopped.
        exit_code: 0, or 128 plus the number of the signal that stopped the study.
    """

    runs: list[Run]
    num_runs: int
    said: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    exit_code: int = 0

    def __str__(self) -> str:
        lines = [HEAD, *map(line_of, self.runs)]
        if self.said:
            lines += ["", *self.said]
        return "\n".join([*lines, *written_text(self.files)])


def run(settings: NegativesSettings) -> NegativesResult:
    """Train what is missing, measure and write."""
    if settings.drawn_from is not None:
        read = of_json(NegativesResults, results_to_draw(settings.drawn_from, "negatives", NegativesResults))
        make_results_folder(settings.output_dir, "output_dir")
        said, files = draw(settings.output_dir, read)
        return NegativesResult([*read.runs], len(read.runs), said, files)
    check_one_process()
    bench = _Bench(settings)
    claim_folder(settings.output_dir, settings, _COMMON, bench.source)
    wanted = [(seed, method) for seed in range(settings.seeds) for method in (FRESH, *settings.methods)]
    runs: list[Run] = []
    try:
        for seed, method in wanted:
            runs.append(bench.run(method, seed))
            logger.info("%d of %d runs: %s", len(runs), len(wanted), line_of(runs[-1]))
    except StoppedError as stopped:
        logger.warning(stopped.message(len(runs), len(wanted)))
        return NegativesResult(runs, len(wanted), exit_code=stopped.exit_code)
    results = bench.results(runs)
    written = write_results(settings.output_dir, bench.about(), results)
    said, files = draw(settings.output_dir, results)
    return NegativesResult(runs, len(wanted), said, [written, *files])


class _Bench:
    """Data and settings that all runs share; refuses wrong ones before anything is trained.

    Args:
        options: The settings of the study.
    """

    def __init__(self, options: NegativesSettings):
        self.options = options
        recipe = dict(MoCHiForPreTraining.recipes[options.recipe])
        self.config, self.training = parts_of_recipe(recipe | options.given_for(_OF_RECIPE))
        self.training |= {"num_epochs": None, "num_steps": options.num_steps, "warmup_epochs": None}
        self.training |= {"log_every": max(1, options.num_steps // _LOG_LINES), "keep_checkpoints": 1}
        self.training["diagnostics_every"] = 0
        self.configs = {method: MoCHiConfig(**self.config | changed) for method, changed in CONTRASTIVE.items()}
        self.data = options.data_of(recipe)
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
            return finished_run(result, Run, method=method, seed=seed)
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

    def about(self) -> dict[str, str]:
        """What the file of results says of itself, without paths."""
        return {"study": "negatives", "command": public_command(command_line(), self.source.name, self.source.kind)}

    def results(self, runs: Sequence[Run]) -> NegativesResults:
        """Runs with their logs."""
        logged = [
            LoggedRun(
                **vars(run),
                log=read_log(self.folder(run.method, run.seed) / "metrics.jsonl") if run.method in CONTRASTIVE else {},
            )
            for run in runs
        ]
        names = [name for name in _COMMON if name != "dataset"]
        common = public_settings(self.options, names, self.source)
        return NegativesResults(
            runs=logged,
            chance=share_of_own_class(self.source),
            queue_size=self.configs["mochi"].queue_size,
            settings=common | {"dataset": public_name(self.source.name, self.source.kind)},
        )

    def folder(self, method: str, seed: int) -> Path:
        """Where a run lies."""
        return folder_of(self.options.output_dir, method, seed)

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
        start = self._model(SUPERVISED, seed)
        rate = self.options.supervised_learning_rate
        encoder, _ = train_supervised(
            *(start, self.source, self.class_names, self.data, self.training),
            folder=folder,
            seed=seed,
            learning_rate=rate,
        )
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
            view_settings=self.data.view_settings,
            image_size=config.image_size,
            batch_size=self.training["batch_size"],
            num_workers=self.options.num_workers,
            max_images=self.options.eval_images,
            description=title,
        )
        return Measured(**numbers, **(log or {}))
