"""Train BYOL with a linear predictor under several moving averages, and follow which directions are learnt when.

    hf-ssl study curriculum --dataset uoft-cs/cifar10 --view_recipe moco_v2 --output_dir runs/curriculum

Tian et al. (2021) call the moving average an automatic curriculum: a slow target sets a low goal first. Their
equations say how the eigenvalue s of each direction moves. Here the directions are fixed: eigenvectors of the
correlation F of the fresh network's projections. Runs from equal weights on equal images differ in the momentum of the
target alone (`none` is SimSiam, `cosine` rises to 1 as in BYOL). At each measured step s is taken along these
directions, beside the equations started at the fresh network; so is the cosine of predictor and correlation.

`--predict_only` writes predictions.json, what the equations say, and trains nothing; `--drawn_from FILE` draws
curriculum.json again. Killed or stopped? The same command continues. One with more `--targets` adds its predictions to
the file before it trains. Writes predictions.json, curriculum.json, curriculum.png and alignment.png.
"""

import itertools
import logging
import shutil
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor

from hf_ssl.data.sources.open import Source
from hf_ssl.data.views.device import Normalize
from hf_ssl.diagnostics import alignment, uniformity
from hf_ssl.diagnostics.predictor import eigenbasis
from hf_ssl.figures.curriculum import alignment_curves, curriculum_curves
from hf_ssl.invocation import command_line
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.methods.byol import BYOLConfig, BYOLForPreTraining
from hf_ssl.private import public_command, public_name
from hf_ssl.studies.curriculum_report import CLAIMS, claims_of, order_of, text_of
from hf_ssl.studies.curriculum_results import CurriculumResults, MeasuredRun, SaidEntry, looks_in
from hf_ssl.studies.curriculum_settings import COMMON, CurriculumSettings, average_of
from hf_ssl.studies.curriculum_theory import (
    Moments,
    Rates,
    follow_alignment,
    follow_modes,
    moments_of,
    scaled,
    turning_steps,
)
from hf_ssl.studies.many_runs import (
    StoppedError,
    check_one_process,
    claim_folder,
    finished_run,
    parts_of_recipe,
    results_to_draw,
    written_text,
)
from hf_ssl.studies.predictions import FILE, Predictions
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.batches import inputs_of, open_stream
from hf_ssl.training.files import write_json
from hf_ssl.training.find import complete_checkpoints, step_of
from hf_ssl.training.loop import train
from hf_ssl.training.output import make_results_folder

logger = logging.getLogger(__name__)

_OF_RECIPE = {
    "encoder": "architecture",
    "batch_size": "batch_size",
    "learning_rate": "base_learning_rate",
    "mixed_precision": "mixed_precision",
}
SEED = 0
"""Of all runs, which share one start."""
LOOKS = "looks.json"
"""What was measured of a run that has not ended yet."""
_BATCHES = 4  # whose views are looked at, of all runs the same
_DIGITS = 5


@dataclass(frozen=True)
class CurriculumResult:
    """The equations and, if runs were trained, the measurements.

    Args:
        results: What curriculum.json holds; without `measured` for targets whose run is missing.
        late: A line about predictions that came after their runs had begun.
        files: What was written.
        exit_code: 0, or 128 plus the number of the signal that stopped the study.
    """

    results: dict[str, Any]
    late: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    exit_code: int = 0

    def __str__(self) -> str:
        lines = [text_of(self.results), *self.late, *written_text(self.files)]
        if self.exit_code:
            missing = [target for target, one in self.results["targets"].items() if "measured" not in one]
            lines.append(f"Not finished: {', '.join(missing)}. The same command continues.")
        return "\n".join(lines)


def run(settings: CurriculumSettings) -> CurriculumResult:
    """Follow the equations, train what is missing, compare and write."""
    if settings.drawn_from is not None:
        results = results_to_draw(settings.drawn_from, "curriculum", CurriculumResults)
        make_results_folder(settings.output_dir, "output_dir")
        return CurriculumResult(results, files=_draw(results, settings.output_dir))
    check_one_process()
    bench = _Bench(settings)
    about = {"study": "curriculum", "command": public_command(command_line(), bench.source.name, bench.source.kind)}
    about |= {"claims": CLAIMS, "steps": bench.steps}
    predictions = Predictions(settings.output_dir, {**about, "settings": bench.described()}, SaidEntry)
    claim_folder(settings.output_dir, settings, COMMON, bench.source)
    bench.predict(predictions)
    late = predictions.late_text((target, SEED) for target in settings.targets)
    # What was measured is no setting: it has other last digits on another machine, which may go on.
    measured = {"noise": bench.start.noise, "targets": settings.targets}
    results: dict[str, Any] = {**about, "settings": bench.described() | measured}
    said = {target: predictions.said(target, SEED) or {} for target in settings.targets}
    targets = results["targets"] = {target: {"theory": one["theory"]} for target, one in said.items()}
    written, numbers = settings.output_dir / FILE, settings.output_dir / "curriculum.json"
    if settings.predict_only:
        return CurriculumResult(results, late, [written])
    try:
        for target, one in targets.items():
            one["measured"] = bench.run(target)
            one["order"] = order_of(one["theory"]["turning_steps"], one["measured"]["turning_steps"])
    except StoppedError as stopped:
        done = sum("measured" in one for one in targets.values())
        logger.warning(stopped.message(done, len(targets)))
        return CurriculumResult(results, late, exit_code=stopped.exit_code)
    results["holds"] = claims_of(targets)
    write_json(numbers, results)
    return CurriculumResult(results, late, [written, numbers, *_draw(results, settings.output_dir)])


def _draw(results: dict[str, Any], folder: Path) -> list[Path]:
    figures = {"curriculum.png": curriculum_curves(results), "alignment.png": alignment_curves(results)}
    for name, figure in figures.items():
        figure.savefig(folder / name)
    return [folder / name for name in figures]


def newest_measured(folder: Path, steps: Sequence[int], looks: Container[int]) -> str | None:
    """The newest checkpoint of a run up to which nothing is missing; None without one.

    A look comes after its checkpoint, so that a process that is killed between them leaves one without the other.

    Args:
        folder: Of the run.
        steps: At which is measured.
        looks: Steps that were measured.
    """
    usable = [
        path.name
        for path in complete_checkpoints(folder)
        if all(step in looks for step in steps if step <= step_of(path))
    ]
    return usable[-1] if usable else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


class _Bench:
    """Data, start and looks that all runs share.

    Args:
        options: The settings of the study.
    """

    def __init__(self, options: CurriculumSettings):
        self.options = options
        recipe = dict(BYOLForPreTraining.recipes[options.recipe])
        self.config, self.training = parts_of_recipe(recipe | options.given_for(_OF_RECIPE))
        self.every = max(1, options.num_steps // options.measurements)
        # In the theory nothing but the target changes with time.
        self.training |= {"num_epochs": None, "warmup_epochs": None, "lr_schedule": "constant", "optimizer": "sgd"}
        self.training |= {"num_steps": options.num_steps, "diagnostics_every": 0, "keep_checkpoints": 2}
        self.training["checkpoint_every"] = self.every
        self.steps = [*range(0, options.num_steps, self.every), options.num_steps]
        self.data = options.data_of(recipe)
        self.source: Source = self.data.open()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        fresh = self._model("none")
        self.views = self._look_at(fresh)
        first = self.projections(fresh)
        self.length = float(first.double().square().sum(dim=2).mean().sqrt())
        self.start = scaled(self._moments(fresh), self.length)
        values, vectors = eigenbasis(self.start.between)
        shown = min(options.directions, int((values > 0).sum()))
        self.directions = vectors[:, :shown]
        self.first = self._measure(fresh)

    def described(self) -> dict[str, Any]:
        """Settings that all runs have in common, for the files, without paths."""
        rate = self.training["base_learning_rate"] * self.training["batch_size"] / 256
        values = {name: getattr(self.options, name) for name in ("num_steps", "recipe")}
        values |= {"batch_size": self.training["batch_size"], "learning_rate": rate}
        values["view_recipe"] = self.data.view_recipe or BYOLForPreTraining.view_recipe
        dataset = public_name(self.source.name, self.source.kind)
        return values | {"dataset": dataset, "architecture": self.config["architecture"]}

    def expect(self, target: str) -> dict[str, Any]:
        """What the equations say of a run."""
        momentum, cosine = average_of(target)
        rates = Rates(
            learning_rate=self.training["base_learning_rate"] * self.training["batch_size"] / 256,
            optimizer_momentum=self.training["optimizer_momentum"],
            weight_decay=self.training["weight_decay"],
            ema_momentum=momentum,
            cosine=cosine,
            num_steps=self.options.num_steps,
        )
        curves = follow_modes(self.start, self.directions, rates, self.steps)
        cosines = follow_alignment(self.start, rates, self.steps)
        return {**self._turns(curves), "cosine": [_rounded(value) for value in cosines]}

    def predict(self, predictions: Predictions) -> None:
        """Add what the equations say of targets that have no prediction."""
        for target in self.options.targets:
            if not predictions.has(target, SEED):
                begun = (self.options.output_dir / target).exists()
                predictions.add(target, SEED, {"theory": self.expect(target)}, before_run=not begun)

    def run(self, target: str) -> dict[str, Any]:
        """The measurements of a run: read, gone on with, or made.

        Raises:
            StoppedError: If a signal ended it.
        """
        folder = self.options.output_dir / target
        result = folder / "result.json"
        if result.exists():
            shape = {"steps": len(self.steps), "directions": self.directions.shape[1]}
            return asdict(finished_run(result, MeasuredRun, **shape))
        kept, looks, newest = folder / LOOKS, {0: self.first}, None
        if kept.exists():
            looks |= looks_in(kept)
            newest = newest_measured(folder / "run", self.steps, looks)
        if newest is None and (folder / "run").exists():
            shutil.rmtree(folder / "run")
        model = self._model(target)
        folder.mkdir(exist_ok=True)

        def look(step: int, trained: SSLPreTrainedModel) -> None:
            if step in self.steps:  # a signal makes a checkpoint between them
                looks[step] = self._measure(trained)
                write_json(kept, {str(step): one for step, one in looks.items()})

        settings = self._settings(folder / "run", resume=newest)
        ended = train(model, self.source, self.data, settings, on_checkpoint=look)
        if ended.signal:
            raise StoppedError(ended.signal)
        look(self.options.num_steps, model)
        found = [looks[step] for step in self.steps]
        numbers = {name: [one[name] for one in found] for name in ("cosine", "alignment", "uniformity")}
        measured = {**self._turns(torch.tensor([one["s"] for one in found])), **numbers}
        write_json(result, measured)
        return measured

    def _turns(self, curves: Tensor) -> dict[str, Any]:
        """Curves of s as plain numbers, the step at which each turns, and the middle one of these."""
        turning = turning_steps(self.steps, curves)
        middle = sorted(turning)[len(turning) // 2]
        rounded = [[float(f"{value:.{_DIGITS}g}") for value in line] for line in curves.tolist()]
        return {"turns": middle, "turning_steps": turning, "s": rounded}

    def _measure(self, model: SSLPreTrainedModel) -> dict[str, Any]:
        """S along the fixed directions, the cosine, and where the projections lie on the plane."""
        moments = scaled(self._moments(model), self.length)
        along = (self.directions * (moments.between @ self.directions)).sum(dim=0)
        z = self.projections(model)
        return {
            "s": along.tolist(),
            "cosine": _rounded(moments.cosine()),
            "alignment": round(float(alignment(z[:, 0], z[:, 1])), _DIGITS),
            "uniformity": round(float(uniformity(z[:, 0])), _DIGITS),
        }

    def _moments(self, model: SSLPreTrainedModel) -> Moments:
        return moments_of(self.projections(model), model.get_parameter("predictor.weight").detach().cpu())

    @torch.no_grad()
    def projections(self, model: SSLPreTrainedModel) -> Tensor:
        """Z of the views that all runs are looked at with, (images, 2, dim); BatchNorm takes each batch's statistics.

        Running statistics are put back: a look leaves the run as it was.
        """
        kept = {name: value.clone() for name, value in model.named_buffers()}
        was_training = model.training
        model.train()
        parts = [model(pixel_values=batch).projections.float().cpu() for batch in self.views]
        model.train(was_training)
        for name, value in model.named_buffers():
            value.copy_(kept[name])
        return torch.cat(parts)

    def _look_at(self, model: SSLPreTrainedModel) -> list[Tensor]:
        normalize = Normalize(model.config.image_mean, model.config.image_std, self.device, channels_last=False)
        settings = self._settings(Path("not-used"), seed=1)  # other views than those of the runs' first steps
        stream = open_stream(model, self.source, self.data, settings, self.device)
        batches = itertools.islice(stream, _BATCHES)
        return [inputs_of(batch, normalize, self.device)["pixel_values"] for batch in batches]

    def _model(self, target: str) -> BYOLForPreTraining:
        momentum, cosine = average_of(target)
        average: dict[str, Any] = {"use_ema": momentum is not None, "ema_schedule": "cosine" if cosine else "constant"}
        if momentum is not None:
            average["ema_momentum"] = momentum
        set_seed(0)
        config = BYOLConfig(**{**self.config, **average, "predictor": "linear"})
        return BYOLForPreTraining(config).to(self.device)  # pyright: ignore[reportArgumentType]

    def _settings(self, folder: Path, seed: int = SEED, resume: str | None = None) -> TrainingSettings:
        return TrainingSettings(**{**self.training, "output_dir": str(folder), "seed": seed, "resume": resume})
