"""Train BYOL without each of its ingredients, and compare each run with what theory expects of it.

    hf-ssl study ablation --dataset uoft-cs/cifar10 --view_recipe moco_v2 --output_dir runs/ablation
    hf-ssl study ablation --dataset shapes --theory_only --predictor linear --ema true false --predictor_lr 1 10 100

The first command runs the grid `core`: what protects from collapse, taken away one by one. The second spans a grid of
its own by the axes ema, predictor_lr, weight_decay, stop_gradient, predictor and symmetrize (an axis that is not given
keeps one standard value), and only follows the theory.

One line a run: the collapse that theory expects (linear networks, Tian et al., 2021; started where the fresh network
starts), the collapse of the forecast (the last layers, trained on the fresh network's features), the collapse that
was found, k-NN accuracy, spread of the projections (1 even over the sphere, 0 one point), and effective rank of
projections (beside it the forecast's) and representations. A spread near 0 is complete collapse; a rank of the
projections that is a small part of the fresh network's is dimensional collapse. The limits are those of pretraining's
alarm.

All forecasts are written to predictions.json before the first run starts, and never changed. Runs are scored one by
one, and by cell: the kind of collapse that most of its seeds show, and the mean of their ranks.

Killed or stopped? The same command continues. Writes ablation.json, ablation.md and ablation.png beside the runs.
`--drawn_from FILE...` makes table and figure again from such an ablation.json, and of several one score over all.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import set_seed

from hf_ssl.data.sources.open import Source
from hf_ssl.dynamics.last_layers import LastLayers
from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import read_json
from hf_ssl.figures.metrics_log import read_metrics
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.methods.byol import BYOLConfig, BYOLForPreTraining
from hf_ssl.private import public_name
from hf_ssl.settings import of_json
from hf_ssl.studies.ablation_forecast import (
    ALL,
    LOOKS,
    VARIANTS,
    Forecast,
    deaths_of,
    descent_of,
    forecast,
    measure_layers,
)
from hf_ssl.studies.ablation_grid import Cell, cells_of
from hf_ssl.studies.ablation_predictions import AblationResults, Forecasts, Part, joined
from hf_ssl.studies.ablation_report import HEAD, draw, line_of, scores_text, summary, write_results
from hf_ssl.studies.ablation_settings import COMMON, AblationSettings
from hf_ssl.studies.ablation_theory import Look, Measured, Run, Start, measure_start, theory_of
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
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.files import write_json
from hf_ssl.training.loop import train
from hf_ssl.training.optimizers import scaled_learning_rate
from hf_ssl.training.output import make_results_folder
from hf_ssl.training.watch.knn import KNN, open_knn

logger = logging.getLogger(__name__)

_OF_RECIPE = {
    "encoder": "architecture",
    "ema_momentum": "ema_momentum",
    "batch_size": "batch_size",
    "learning_rate": "base_learning_rate",
    "mixed_precision": "mixed_precision",
}
_RESULT = "result.json"


@dataclass(frozen=True)
class AblationResult:
    """Theory, forecast and measurement of each run.

    Args:
        runs: The runs that are finished; with `theory_only` what would be runs.
        num_runs: How many the grid asks for.
        predictions: Their forecasts.
        files: What was written: the numbers, the table and the figure; none if the study was stopped.
        exit_code: 0, or 128 plus the number of the signal that stopped the study.
    """

    runs: list[Run]
    num_runs: int
    predictions: Forecasts
    files: list[Path] = field(default_factory=list)
    exit_code: int = 0

    def __str__(self) -> str:
        lines = [HEAD, *(line_of(run, self.predictions.of(run)) for run in self.runs)]
        if self.exit_code == 0:
            lines.append(summary(Part(self.runs, self.predictions)))
        return "\n".join([*lines, *written_text(self.files)])


@dataclass(frozen=True)
class AblationScores:
    """Runs of one or more studies beside their forecasts, and the scores over all of them.

    Args:
        parts: The studies.
        files: What was written.
    """

    parts: list[Part]
    files: list[Path]
    exit_code: int = 0

    def __str__(self) -> str:
        lines: list[str] = []
        for part in self.parts:
            lines += [f"{part.title}:", HEAD, *(line_of(run, part.predictions.of(run)) for run in part.runs), ""]
        return "\n".join([*lines, *scores_text(self.parts), *written_text(self.files)])


def run(settings: AblationSettings) -> AblationResult | AblationScores:
    """Train what is missing, compare and write."""
    if settings.drawn_from is not None:
        read = [results_to_draw(path, "ablation", AblationResults) for path in settings.drawn_from]
        parts = joined(of_json(AblationResults, one).part() for one in read)
        assert settings.output_dir is not None
        make_results_folder(settings.output_dir, "output_dir")
        return AblationScores(parts, draw(settings.output_dir, parts))
    check_one_process()
    cells, left_out = cells_of(settings.products())
    for reason, count in left_out.items():
        logger.info("Left out %d: %s.", count, reason)
    bench = _Bench(settings)
    wanted = [(cell, seed) for seed in range(settings.seeds) for cell in cells]
    names = [name for name in COMMON if name != "dataset"]
    common = public_settings(settings, names, bench.source) | {
        "dataset": public_name(bench.source.name, bench.source.kind)
    }
    predictions = Forecasts(settings.output_dir, common)
    if settings.output_dir is not None:
        claim_folder(settings.output_dir, settings, COMMON, bench.source)
    bench.predict(wanted, predictions, [ALL] if settings.output_dir is None else VARIANTS)
    if settings.theory_only:
        return AblationResult([bench.expect(cell, seed) for cell, seed in wanted], len(wanted), predictions)
    logger.info("%d cells with %d seeds make %d runs.", len(cells), settings.seeds, len(wanted))
    runs: list[Run] = []
    try:
        for cell, seed in wanted:
            runs.append(bench.run(cell, seed))
            line = line_of(runs[-1], predictions.of(runs[-1]))
            logger.info("%d of %d runs: %s", len(runs), len(wanted), line)
    except StoppedError as stopped:
        logger.warning(stopped.message(len(runs), len(wanted)))
        return AblationResult(runs, len(wanted), predictions, exit_code=stopped.exit_code)
    part = Part(runs, predictions)
    files = [write_results(bench.folder, part), *draw(bench.folder, [part])]
    return AblationResult(runs, len(wanted), predictions, files)


class _Bench:
    """Data, baselines and starts that all cells share.

    Args:
        options: The settings of the study.
    """

    def __init__(self, options: AblationSettings):
        self.options = options
        self.folder = options.output_dir or Path("not-used")
        recipe = dict(BYOLForPreTraining.recipes[options.recipe])
        self.config, self.training = parts_of_recipe(recipe | options.given_for(_OF_RECIPE))
        self.config["ema_schedule"] = "constant"  # in the theory nothing changes with time
        self.training |= {"num_epochs": None, "warmup_epochs": None, "lr_schedule": "constant", "optimizer": "sgd"}
        self.data = options.data_of(recipe)
        self.source: Source = self.data.open()
        settings = self._settings(Cell(), 0)
        self.knn: KNN | None = None if options.theory_only else open_knn(self.source, self.data, settings)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._starts: dict[tuple[str, int], Start] = {}
        self._layers: dict[tuple[str, int], LastLayers] = {}

    def start(self, cell: Cell, seed: int) -> Start:
        """What a cell's fresh network makes of views."""
        # Everything else of a cell begins only when training does.
        key = (cell.predictor, seed)
        if key not in self._starts:
            model = self._model(cell, seed).to(self.device)  # pyright: ignore[reportArgumentType]
            self._starts[key] = measure_start(model, self.source, self.data, self._settings(cell, seed))
        return self._starts[key]

    def expect(self, cell: Cell, seed: int) -> Run:
        """What theory says of a cell."""
        settings = self._settings(cell, seed)
        theory = theory_of(
            cell,
            self.start(cell, seed),
            learning_rate=scaled_learning_rate(settings),
            momentum=settings.optimizer_momentum,
            ema_momentum=self.config["ema_momentum"],
            num_steps=self.options.num_steps,
        )
        return Run(cell=cell, seed=seed, start=self.start(cell, seed), theory=theory)

    def forecasts(self, cell: Cell, seed: int, names: Iterable[str]) -> dict[str, Forecast]:
        """Forecasts of a cell by name."""
        settings, key = self._settings(cell, seed), (cell.predictor, seed)
        if key not in self._layers:
            model = self._model(cell, seed).to(self.device)  # pyright: ignore[reportArgumentType]
            self._layers[key] = measure_layers(model, self.source, self.data, settings)
        how = descent_of(
            cell,
            settings,
            learning_rate=scaled_learning_rate(settings),
            ema_momentum=self.config["ema_momentum"],
        )
        start = self.start(cell, seed)
        return {name: forecast(self._layers[key], how, start, VARIANTS[name]) for name in names}

    def predict(self, wanted: Sequence[tuple[Cell, int]], predictions: Forecasts, names: Iterable[str]) -> None:
        """Add the forecasts of all runs that have none."""
        for cell, seed in wanted:
            if predictions.has(cell.title, seed):
                continue
            begun = Path(self._settings(cell, seed).output_dir).exists()
            predictions.forecast(cell.title, seed, self.forecasts(cell, seed, names), before_run=not begun)
            logger.info("Predicted %s, seed %d.", cell.title, seed)

    def run(self, cell: Cell, seed: int) -> Run:
        """The finished run of a cell: read, gone on with, or made.

        Raises:
            StoppedError: If a signal ended it.
        """
        settings = self._settings(cell, seed)
        result = Path(settings.output_dir) / _RESULT
        if result.exists():
            return finished_run(result, Run, cell=cell, seed=seed)
        expected = self.expect(cell, seed)
        model = self._model(cell, seed)
        ended = train(model, self.source, self.data, settings)
        if ended.signal:
            raise StoppedError(ended.signal)
        last = read_metrics(result.parent / "metrics.jsonl")[-1]
        curves = read_metrics(result.parent / "diagnostics.jsonl")
        spectra = [(line["step"], line["curves"]["projection"]) for line in curves]
        measured = Measured(
            knn=None if self.knn is None else self.knn(model).value,
            knn_random=self._random_knn(seed),
            loss=last["loss"],
            spread=last["feature_std"] * math.sqrt(self.config["projection_dim"]),
            projection_rank=last["projection_effective_rank"],
            representation_rank=last["representation_effective_rank"],
            seconds=ended.seconds,
            deaths=deaths_of([(0, expected.start.eigenvalues), *spectra]),
            looks=[Look(step=step, eigenvalues=values[:4]) for step, values in spectra],
        )
        run = Run(cell=cell, seed=seed, start=expected.start, theory=expected.theory, measured=measured)
        write_json(result, run.record())
        return run

    def _random_knn(self, seed: int) -> float | None:
        """k-NN accuracy of the fresh encoder, which all cells of a seed share."""
        if self.knn is None:
            return None
        path = self.folder / f"random-seed{seed}.json"
        if not path.exists():
            model = self._model(Cell(), seed).to(self.device)  # pyright: ignore[reportArgumentType]
            write_json(path, {"knn": self.knn(model).value})
        knn = read_json(path).get("knn")
        if not isinstance(knn, int | float):
            raise UserError(f"`{path}` must hold the accuracy `knn`. Remove the file, and it is measured again.")
        return knn

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
        folder = self.folder / cell.folder / f"seed{seed}"
        own = {
            "output_dir": str(folder),
            "resume": "auto" if folder.exists() else None,
            "seed": seed,
            "num_steps": options.num_steps,
            "weight_decay": cell.weight_decay,
            "predictor_lr_multiplier": cell.predictor_lr,
            "diagnostics_every": max(1, options.num_steps // LOOKS),
            "keep_checkpoints": 1,
            "knn_split": options.knn_split,
            "knn_images": options.knn_images,
        }
        return TrainingSettings(**(self.training | own))
