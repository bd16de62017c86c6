"""Train BYOL with a linear predictor under several moving averages, and follow which directions are learnt when.

    hf-ssl study curriculum --dataset uoft-cs/cifar10 --view_recipe moco_v2 --output_dir runs/curriculum

Tian et al. (2021) call the moving average an automatic curriculum: a slow target sets a low goal first. Their
equations say how the eigenvalue s of each direction moves. Here the directions are fixed: eigenvectors of the
correlation F of the fresh network's projections. Runs from equal weights on equal images differ in the momentum of the
target alone (`none` is SimSiam, `cosine` rises to 1 as in BYOL). At each measured step s is taken along these
directions, beside the equations started at the fresh network; so is the cosine of predictor and correlation.

`--predict_only` writes predictions.json, what the equations say, and trains nothing; `--drawn_from FILE` draws
curriculum.json again. Writes predictions.json, curriculum.json, curriculum.png and alignment.png.
"""

import itertools
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from scipy.stats import spearmanr
from torch import Tensor

from hf_ssl.data.settings import PLACES
from hf_ssl.data.sources.open import Source
from hf_ssl.data.views.device import Normalize
from hf_ssl.diagnostics import alignment, uniformity
from hf_ssl.diagnostics.predictor import eigenbasis
from hf_ssl.errors import UserError
from hf_ssl.figures.curriculum import alignment_curves, curriculum_curves
from hf_ssl.invocation import command_line
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.methods.byol import BYOLConfig, BYOLForPreTraining
from hf_ssl.private import public_command, public_name
from hf_ssl.settings import check_least, checked
from hf_ssl.studies.curriculum_report import CLAIMS, text_of
from hf_ssl.studies.curriculum_results import CurriculumResults, MeasuredRun
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
from hf_ssl.studies.settings import StudySettings, check_recipe
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.batches import inputs_of, open_stream
from hf_ssl.training.files import write_json
from hf_ssl.training.loop import train
from hf_ssl.training.output import make_folder

logger = logging.getLogger(__name__)

_COMMON = ("dataset", *PLACES, "split", "recipe", "view_recipe", "encoder", "num_steps", "measurements", "batch_size")
_COMMON += ("learning_rate", "mixed_precision", "directions")
_OF_RECIPE = {
    "encoder": "architecture",
    "batch_size": "batch_size",
    "learning_rate": "base_learning_rate",
    "mixed_precision": "mixed_precision",
}
_BATCHES = 4  # whose views are looked at, of all runs the same
_DIGITS = 5


@checked
class CurriculumSettings(StudySettings):
    """Which moving averages are compared, and how.

    Args:
        dataset: Images to train on; not needed with `drawn_from`.
        output_dir: Folder of the runs, the numbers and the figures.
        targets: Moving averages: `none`, a momentum such as `0.99`, or `0.99-cosine`, which rises from there to 1.
        predict_only: Write what the equations say, and train nothing.
        drawn_from: A curriculum.json that is drawn again instead of training.
        seeds: Stays 1: all runs share one start.
        num_steps: Optimizer steps of each run, at least 2.
        measurements: Steps at which is measured, at least 2.
        directions: Directions that are followed, at least 2.
    """

    dataset: Any = None
    output_dir: Path
    targets: list[str] = field(default_factory=lambda: ["none", "0.9", "0.99", "0.9-cosine"])
    predict_only: bool = False
    drawn_from: Path | None = None
    num_steps: int = 240
    measurements: int = 24
    directions: int = 12

    def validate_curriculum(self) -> None:
        """Check what can be checked without data."""
        check_least(self, num_steps=2, measurements=2, directions=2)
        check_recipe(self.recipe, BYOLForPreTraining.recipes, "byol")
        if self.dataset is None and self.drawn_from is None:
            raise UserError("`dataset` is needed: the images to train on, such as `uoft-cs/cifar10`.")
        if self.seeds != 1:
            raise UserError(f"`seeds` must be 1 in this study, whose runs share one start, got {self.seeds}.")
        self.targets = list(dict.fromkeys(self.targets))
        if not self.targets:
            raise UserError("`targets` must name at least one moving average, such as `0.99`.")
        for target in self.targets:
            average_of(target)


def average_of(target: str) -> tuple[float | None, bool]:
    """Momentum of a target, None for none, and whether it rises.

    Raises:
        UserError: If the text names no moving average.
    """
    if target == "none":
        return None, False
    number, _, schedule = target.partition("-")
    try:
        momentum = float(number)
    except ValueError:
        momentum = -1.0
    if not 0 <= momentum < 1 or schedule not in ("", "cosine"):
        raise UserError(f"`targets` must be `none`, a momentum in [0, 1), or one with `-cosine`, got `{target}`.")
    return momentum, schedule == "cosine"


@dataclass(frozen=True)
class CurriculumResult:
    """The equations and, if runs were trained, the measurements.

    Args:
        results: What curriculum.json holds; with `predict_only` what predictions.json holds.
        files: What was written.
        exit_code: 0, or 128 plus the number of the signal that stopped the study.
    """

    results: dict[str, Any]
    files: list[Path] = field(default_factory=list)
    exit_code: int = 0

    def __str__(self) -> str:
        return "\n".join([text_of(self.results), *written_text(self.files)])


def run(settings: CurriculumSettings) -> CurriculumResult:
    """Follow the equations, train what is missing, compare and write."""
    if settings.drawn_from is not None:
        results = results_to_draw(settings.drawn_from, "curriculum", CurriculumResults)
        make_folder(settings.output_dir, "output_dir")
        return _drawn(results, settings.output_dir, [])
    check_one_process()
    bench = _Bench(settings)
    claim_folder(settings.output_dir, settings, _COMMON, bench.source)
    results = {
        "study": "curriculum",
        "command": public_command(command_line(), bench.source.name, bench.source.kind),
        "settings": bench.described(),
        "claims": CLAIMS,
    }
    results |= {
        "steps": bench.steps,
        "targets": {target: {"theory": bench.expect(target)} for target in settings.targets},
    }
    predictions, numbers = (settings.output_dir / name for name in ("predictions.json", "curriculum.json"))
    if not predictions.exists():
        write_json(predictions, results)
    if settings.predict_only:
        return CurriculumResult(results, [predictions])
    try:
        for target, one in results["targets"].items():
            one["measured"] = bench.run(target)
            found = spearmanr(one["theory"]["turning_steps"], one["measured"]["turning_steps"])[0]
            # Directions that all turn at one step have no order.
            one["order"] = 0.0 if found != found else round(float(found), 4)  # pyright: ignore[reportArgumentType]
    except StoppedError as stopped:
        logger.warning(
            stopped.message(sum("measured" in one for one in results["targets"].values()), len(settings.targets))
        )
        return CurriculumResult(results, exit_code=stopped.exit_code)
    slowest = [
        min(results["targets"], key=lambda target: sum(results["targets"][target][kind]["cosine"]))
        for kind in ("theory", "measured")
    ]
    results["holds"] = {
        "order": all(one["order"] >= 0.5 for one in results["targets"].values()),
        "alignment": slowest[0] == slowest[1],
    }
    write_json(numbers, results)
    return _drawn(results, settings.output_dir, [predictions, numbers])


def _drawn(results: dict[str, Any], folder: Path, files: list[Path]) -> CurriculumResult:
    figures = {"curriculum.png": curriculum_curves(results), "alignment.png": alignment_curves(results)}
    for name, figure in figures.items():
        figure.savefig(folder / name)
    return CurriculumResult(results, [*files, *(folder / name for name in figures)])


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
        self.training |= {"num_steps": options.num_steps, "diagnostics_every": 0, "keep_checkpoints": 1}
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
        """Settings for the file of results, without paths."""
        rate = self.training["base_learning_rate"] * self.training["batch_size"] / 256
        values = {name: getattr(self.options, name) for name in ("targets", "num_steps", "recipe")}
        values |= {"batch_size": self.training["batch_size"], "learning_rate": rate, "noise": self.start.noise}
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
        return {**self._turns(curves), "cosine": [round(value, _DIGITS) for value in cosines]}

    def run(self, target: str) -> dict[str, Any]:
        """The measurements of a run: read, or made from the beginning, as they are kept when it has ended.

        Raises:
            StoppedError: If a signal ended it.
        """
        folder = self.options.output_dir / target
        result = folder / "result.json"
        if result.exists():
            shape = {"steps": len(self.steps), "directions": self.directions.shape[1]}
            return asdict(finished_run(result, MeasuredRun, **shape))
        # What was measured before a stop is gone with the process: begin anew, in a folder of its own.
        attempt = next(
            folder / f"attempt-{number}" for number in itertools.count() if not (folder / f"attempt-{number}").exists()
        )
        model = self._model(target)
        looks = {0: self.first}

        def look(step: int, trained: SSLPreTrainedModel) -> None:
            looks[step] = self._measure(trained)

        ended = train(model, self.source, self.data, self._settings(attempt), on_checkpoint=look)
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
            "cosine": round(moments.cosine(), _DIGITS),
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

    def _settings(self, folder: Path, seed: int = 0) -> TrainingSettings:
        return TrainingSettings(**{**self.training, "output_dir": str(folder), "seed": seed})
