"""Train one encoder under several augmentations, and compare what each loses with what theory said before.

    hf-ssl study augmentation --dataset uoft-cs/cifar10 --output_dir runs/augmentation
    hf-ssl study augmentation --dataset uoft-cs/cifar10 --start_from runs/first --output_dir runs/from-first

Theorem 1 of Jing et al. (2021) is about one linear layer under InfoNCE: it loses the directions in which augmentation
varies more than data. Here it is asked of an encoder: predictions.json, written before anything is trained, has the
share of augmentation in each direction of the features that the encoder starts with. Then `end_to_end` (InfoNCE within
the batch) trains it under each recipe from equal weights. A direction counts as lost as far as a linear map of the
trained features no longer tells it, on held-out images.

`--predict_only` stops after the predictions; `--drawn_from FILE` draws augmentation.json again. Figures show seed 0.
Stopped? The same command continues. One with more `--views` or `--seeds` adds its predictions to the file, before it
trains; those that stand there stay. Writes predictions.json, augmentation.json, augmentation.png, spectra.png.
"""

import itertools
import logging
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.data.views.device import Normalize
from hf_ssl.diagnostics import alignment, effective_rank, uniformity
from hf_ssl.diagnostics.augmentation import variance_along
from hf_ssl.errors import UserError
from hf_ssl.evaluation.augmentation import AS_IT_IS
from hf_ssl.evaluation.encoders import Encoder, encoder_of
from hf_ssl.evaluation.features import extract_features
from hf_ssl.evaluation.knn import knn_accuracy
from hf_ssl.evaluation.view_features import extract_view_features
from hf_ssl.figures.metrics_log import read_metrics
from hf_ssl.invocation import command_line
from hf_ssl.methods.end_to_end import EndToEndConfig, EndToEndForPreTraining
from hf_ssl.private import folders_among, public_command, public_name, public_path
from hf_ssl.studies.augmentation_measures import (
    CLAIMS,
    linear_layer,
    predict,
    principal_directions,
    retained,
    scores_of,
    spectra_of,
    warn_of_few,
)
from hf_ssl.studies.augmentation_report import draw, text_of
from hf_ssl.studies.augmentation_results import AugmentationResults, MeasuredRun, SaidEntry
from hf_ssl.studies.augmentation_settings import COMMON, AugmentationSettings
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
from hf_ssl.training.loop import train
from hf_ssl.training.output import make_results_folder
from hf_ssl.training.start import EncoderStart, find_encoder

logger = logging.getLogger(__name__)

_OF_RECIPE = {
    "encoder": "architecture",
    "batch_size": "batch_size",
    "learning_rate": "base_learning_rate",
    "mixed_precision": "mixed_precision",
}
_WARM_UP = 20  # batches that settle the BatchNorm statistics of fresh weights
_NEIGHBOURS = 20


@dataclass(frozen=True)
class AugmentationResult:
    """Predictions and, if runs were trained, what they lost.

    Args:
        results: What augmentation.json holds; with `predict_only` what predictions.json holds.
        late: A line about predictions that came after their runs had begun.
        files: What was written.
        exit_code: 0, or 128 plus the number of the signal that stopped the study.
    """

    results: dict[str, Any]
    late: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    exit_code: int = 0

    def __str__(self) -> str:
        return "\n".join([*map(text_of, self.results["seeds"]), *self.late, *written_text(self.files)])


def run(settings: AugmentationSettings) -> AugmentationResult:
    """Predict, train what is missing, compare and write."""
    if settings.drawn_from is not None:
        results = results_to_draw(settings.drawn_from, "augmentation", AugmentationResults)
        make_results_folder(settings.output_dir, "output_dir")
        return AugmentationResult(results, files=draw(results, settings.output_dir))
    check_one_process()
    bench = _Bench(settings)
    about = {"study": "augmentation", "command": bench.command(), "claims": CLAIMS}
    predictions = Predictions(settings.output_dir, {**about, "settings": bench.described()}, SaidEntry)
    claim_folder(settings.output_dir, settings, COMMON, bench.source)
    seeds = [bench.predict(seed, predictions) for seed in range(settings.seeds)]
    about["settings"] = bench.described() | {"views": settings.views, "seeds": settings.seeds}
    late = predictions.late_text((recipe, one["seed"]) for one in seeds for recipe in settings.views)
    written = settings.output_dir / FILE
    if settings.predict_only:
        return AugmentationResult({**about, "seeds": seeds}, late, [written])
    try:
        for one in seeds:
            one["runs"] = {}
            for recipe in settings.views:
                one["runs"][recipe] = bench.run(recipe, one["seed"])
            kept = {recipe: measured["kept"] for recipe, measured in one["runs"].items()}
            one["scores"] = scores_of(one["variances"], one["predictions"], kept)
    except StoppedError as stopped:
        done = sum(len(one.get("runs", {})) for one in seeds)
        logger.warning(stopped.message(done, len(seeds) * len(settings.views)))
        return AugmentationResult({**about, "seeds": []}, late, exit_code=stopped.exit_code)
    results = {**about, "seeds": seeds}
    numbers = settings.output_dir / "augmentation.json"
    write_json(numbers, results)
    return AugmentationResult(results, late, [written, numbers, *draw(results, settings.output_dir)])


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]


class _Bench:
    """Data and start that all runs share.

    Args:
        options: The settings of the study.
    """

    def __init__(self, options: AugmentationSettings):
        self.options = options
        recipe = dict(EndToEndForPreTraining.recipes[options.recipe])
        self.config, self.training = parts_of_recipe(recipe | options.given_for(_OF_RECIPE))
        self.training |= {"num_epochs": None, "warmup_epochs": None, "num_steps": options.num_steps}
        self.training |= {"diagnostics_every": 0, "keep_checkpoints": 1}
        self.start: EncoderStart | None = None
        if options.start_from is not None:
            self.start = find_encoder(options.start_from)
            self.config |= {"architecture": self.start.architecture, "model_args": self.start.model_args or None}
            named = {"image_size": self.start.image_size, "image_mean": self.start.image_mean}
            named["image_std"] = self.start.image_std
            self.config |= {name: value for name, value in named.items() if value is not None}
        self.data = options.data_of(recipe)
        self.source: Source = self.data.open()
        self.test: Source = self.data.open(options.test_split)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def command(self) -> str:
        """The command for the file of results, without paths."""
        folders = folders_among([] if self.options.start_from is None else [self.options.start_from])
        return public_command(command_line(), self.source.name, self.source.kind, folders)

    def described(self) -> dict[str, Any]:
        """Settings that all runs have in common, for the files, without paths."""
        names = ("num_steps", "eval_images", "view_images", "num_views", "recipe")
        values = {name: getattr(self.options, name) for name in names}
        batch, rate = self.training["batch_size"], self.training["base_learning_rate"]
        values |= {"batch_size": batch, "base_learning_rate": rate, "architecture": self.config["architecture"]}
        return values | {"dataset": public_name(self.source.name, self.source.kind), "starts_from": self._origin()}

    def _origin(self) -> str:
        start = self.options.start_from
        if start is None:
            return "fresh weights"
        return public_path(start) if folders_among([start]) else start

    def predict(self, seed: int, predictions: Predictions) -> dict[str, Any]:
        """What theory says of the encoder that all runs of a seed start with; adds what the file does not have."""
        encoder = self._encoder(self._model(seed, settled=True))
        images = self._features(encoder)
        directions = principal_directions(images)
        self._before[seed] = images, directions
        warn_of_few(len(images), images.shape[1])
        missing = [recipe for recipe in self.options.views if not predictions.has(recipe, seed)]
        if missing:
            centred = images.double() - images.double().mean(dim=0)
            variances = _rounded(variance_along(centred.T @ centred / (len(images) - 1), directions))
            plain = self._views(encoder, "crop_and_flip", 1)[:, 0]
        for recipe in missing:
            views = self._views(encoder, recipe, self.options.num_views)
            spectra = spectra_of(plain, views, directions)
            said = {
                "directions": directions.shape[1],
                "variances": variances,
                "prediction": predict(plain, views, directions),
                "spectra": {name: _rounded(values) for name, values in spectra.items()},
                "linear_layer": {
                    name: linear_layer(plain, views, two_views=name == "two_views")
                    for name in ("image_and_view", "two_views")
                },
            }
            predictions.add(recipe, seed, said, before_run=not self._folder(recipe, seed).exists())
        return self._said(seed, predictions, directions.shape[1])

    def _said(self, seed: int, predictions: Predictions, directions: int) -> dict[str, Any]:
        """The predictions of a seed as augmentation.json has them."""
        entries = {recipe: predictions.said(recipe, seed) or {} for recipe in self.options.views}
        for recipe, entry in entries.items():
            if entry["directions"] != directions:
                raise UserError(
                    f"The prediction of `{recipe}`, seed {seed}, is about {entry['directions']} directions, but the "
                    f"encoder has {directions}: data or software are others than they were. Give another `output_dir`."
                )
        told = {"predictions": "prediction", "spectra": "spectra", "linear_layer": "linear_layer"}
        by_recipe = {name: {recipe: entry[one] for recipe, entry in entries.items()} for name, one in told.items()}
        first = entries[self.options.views[0]]
        return {"seed": seed, "directions": directions, "variances": first["variances"], **by_recipe}

    def _folder(self, recipe: str, seed: int) -> Path:
        return self.options.output_dir / recipe / f"seed{seed}"

    def run(self, recipe: str, seed: int) -> dict[str, Any]:
        """The finished run of a recipe: read, gone on with, or made.

        Raises:
            StoppedError: If a signal ended it.
        """
        folder = self._folder(recipe, seed)
        result = folder / "result.json"
        before, directions = self._before[seed]
        if result.exists():
            return asdict(finished_run(result, MeasuredRun, directions=directions.shape[1]))
        model = self._model(seed)
        ended = train(model, self.source, self._data_of(recipe), self._settings(folder, seed))
        if ended.signal:
            raise StoppedError(ended.signal)
        encoder = self._encoder(model)
        after = self._features(encoder)
        views = self._views(encoder, recipe, 2)
        measured = {
            "kept": [
                None if math.isnan(value) else round(value, 5)
                for value in retained(before, after, directions).tolist()
            ],
            "loss": read_metrics(folder / "metrics.jsonl")[-1]["loss"],
            "knn": self._knn(after),
            "effective_rank": round(float(effective_rank(after)), 3),
            "alignment": round(float(alignment(views[:, 0], views[:, 1])), 5),
            "uniformity": round(float(uniformity(after[:2000])), 5),
        }
        write_json(result, measured)
        return measured

    def _data_of(self, recipe: str) -> DataSettings:
        return replace(self.data, view_recipe=recipe)

    def _settings(self, folder: Path, seed: int) -> TrainingSettings:
        own = {"output_dir": str(folder), "seed": seed, "resume": "auto" if folder.exists() else None}
        return TrainingSettings(**(self.training | own))

    def _model(self, seed: int, settled: bool = False) -> EndToEndForPreTraining:
        """The method with the weights that all runs of a seed start with.

        Args:
            seed: Of its weights.
            settled: Let BatchNorm see some batches, without which fresh statistics are those of no images.
        """
        set_seed(seed)
        model = EndToEndForPreTraining(EndToEndConfig(**self.config))
        if self.start is not None:
            self.start.load_into(model.encoder)
        elif settled:
            self._settle(model, seed)
        return model

    @torch.no_grad()
    def _settle(self, model: EndToEndForPreTraining, seed: int) -> None:
        model.to(self.device).train()  # pyright: ignore[reportArgumentType]
        config = model.config
        normalize = Normalize(config.image_mean, config.image_std, self.device, channels_last=False)
        data = self._data_of("crop_and_flip")
        stream = open_stream(model, self.source, data, self._settings(Path("not-used"), seed), self.device)
        for batch in itertools.islice(stream, _WARM_UP):
            model(**inputs_of(batch, normalize, self.device))

    def _encoder(self, model: EndToEndForPreTraining) -> Encoder:
        config = model.config
        model.to(self.device).eval()  # pyright: ignore[reportArgumentType]
        return encoder_of(model.encoder, config.image_size, config.image_mean, config.image_std)

    def _features(self, encoder: Encoder) -> Tensor:
        found = extract_features(
            *(encoder, self.test, self.training["batch_size"], self.options.num_workers),
            max_images=self.options.eval_images,
        )
        self._labels = next(iter(found.labels.values()), None)
        return found.features

    def _knn(self, features: Tensor) -> float | None:
        """Accuracy of the second half of the test images by the first; None without labels."""
        half, labels = len(features) // 2, self._labels
        if labels is None or not (labels[:half] >= 0).any() or not (labels[half:] >= 0).any():
            return None
        return knn_accuracy(features[:half], labels[:half], features[half:], labels[half:], k=_NEIGHBOURS)

    def _views(self, encoder: Encoder, recipe: str, num_views: int) -> Tensor:
        """Features of views of an image, (images, views, dim); of one view those of the image as it is."""
        return extract_view_features(
            *(encoder, self.test, recipe, num_views),
            image_size=self.config["image_size"],
            batch_size=self.training["batch_size"],
            num_workers=self.options.num_workers,
            max_images=self.options.view_images,
            view_settings=AS_IT_IS if num_views == 1 else None,
        )
