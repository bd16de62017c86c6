"""Fine-tuning: the task that trains a classifier, on top of an encoder or with it, and scores it on the way."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from accelerate import Accelerator
from timm.data.mixup import Mixup
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from hf_ssl.data.order.stream import Batch, TrainingStream
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.data.sources.subset import numbers_of_classes
from hf_ssl.data.views.cpu import Views
from hf_ssl.data.views.device import Normalize, send
from hf_ssl.errors import UserError
from hf_ssl.fine_tuning.classifier import RANDOM, Classifier, Score, choose_trained, training_mode
from hf_ssl.fine_tuning.score import ScoreWatch
from hf_ssl.fine_tuning.settings import FineTuningSettings
from hf_ssl.methods.base import SSLOutput
from hf_ssl.training.fit import drop_gradients
from hf_ssl.training.loop import TrainingResult, run_task
from hf_ssl.training.optimizers import LARS
from hf_ssl.training.origin import origin_of_encoder
from hf_ssl.training.plan import Plan
from hf_ssl.training.record import RunRecord, described_data, described_training
from hf_ssl.training.task import Task
from hf_ssl.training.watch.base import Watch
from hf_ssl.training.watch.log import MetricsLog

VIEW_RECIPE = "crop_and_flip"
"""Augmentation of fine-tuning, unless another recipe is named; only the first of its two views is used."""

_OF_CLASSIFIER = ("train", "label_fraction", "layer_decay", "label_smoothing", "mixup", "cutmix")
_ELSEWHERE = ("test_split", "eval_every", "image_size", "model_args", "license", "change")  # in the record, or not


@dataclass(frozen=True)
class FineTuningResult(TrainingResult):
    """How a run ended.

    Args:
        score: Of the weights at the end; None if the run was stopped early, or nothing is scored.
        best: Step and accuracy of the best scoring, which the test split itself chose; None if nothing was scored.
    """

    score: Score | None = None
    best: tuple[int, float] | None = None


class Supervised(nn.Module):
    """What the loop calls: the loss of a batch.

    A module around the classifier, because Accelerate changes the `forward` of what it prepares, and the classifier's
    own must stay the one that is scored and published.
    """

    def __init__(self, classifier: nn.Module, label_smoothing: float):
        super().__init__()
        self.classifier = classifier
        self.label_smoothing = label_smoothing

    def forward(self, pixel_values: Tensor, targets: Tensor) -> SSLOutput:
        """Mean cross-entropy of a batch.

        Args:
            pixel_values: (batch, 3, height, width).
            targets: Classes, (batch,), negative where unknown, which do not count; or, of blended images, the
                probability of each class, (batch, classes), smoothed already.
        """
        logits = self.classifier(pixel_values).float()
        if targets.ndim == 2:
            return SSLOutput(loss=F.cross_entropy(logits, targets))
        total = F.cross_entropy(
            logits, targets, ignore_index=-1, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return SSLOutput(loss=total / (targets >= 0).sum().clamp(min=1))


def fine_tune(
    classifier: Classifier,
    source: Source,
    test: Source | None,
    data: DataSettings,
    settings: FineTuningSettings,
    counts: dict[str, int] | None = None,
    fraction_reached: float | None = None,
) -> FineTuningResult:
    """Train a classifier, from the beginning or from a checkpoint; leaves the trained weights in it.

    All processes call this with classifiers that are equal. Writes `run.json`, `metrics.jsonl` and `checkpoints/` in
    `settings.output_dir`. Ends the process group, so a program with several processes trains once; one with a single
    process trains as often as it likes.

    Args:
        classifier: From `open_classifier`.
        source: The labelled images to train on, a part of the data set if `settings.label_fraction` says so.
        test: The labelled images to score on; None to score nothing.
        data: How images become batches.
        settings: What is trained, and how.
        counts: Class name -> images in `source`, for `run.json`.
        fraction_reached: Share of the labelled images that are in `source`, for `run.json`.

    Returns:
        How the run ended.

    Raises:
        UserError: If settings, data and checkpoint do not fit together.
        UserError: If processes are missing, another run uses the folder, or a loss or weight is not finite.
    """
    task = FineTuning(classifier, source, test, data, settings, counts, fraction_reached)
    result = run_task(task)
    known = {field.name: getattr(result, field.name) for field in fields(result)}
    score = task.scoring.score if task.scoring is not None and result.finished else None
    best = task.scoring.best() if task.scoring is not None and result.is_main_process else None
    return FineTuningResult(**known, score=score, best=best)


class FineTuning(Task):
    """A classifier that is trained on labelled images; same arguments and errors as `fine_tune`.

    Attributes:
        scoring: What scores it, from the first step on; None if nothing is scored.
    """

    smaller = "`--mixed_precision bf16`, `--train last-1`, or a smaller `--image_size` or encoder"

    def __init__(
        self,
        classifier: Classifier,
        source: Source,
        test: Source | None,
        data: DataSettings,
        settings: FineTuningSettings,
        counts: dict[str, int] | None = None,
        fraction_reached: float | None = None,
    ):
        if data.views_on != "cpu" or data.cache != "none":
            raise UserError(
                "`views_on` gpu, `decode_on` gpu and `cache` are for pretraining: fine-tuning makes its views by "
                "workers. Leave them out."
            )
        super().__init__(Supervised(classifier.module, settings.label_smoothing), source, data, settings.training)
        self.classifier, self.test, self.own = classifier, test, settings
        self.counts, self.fraction_reached = counts, fraction_reached
        self.scoring: ScoreWatch | None = None
        choose_trained(classifier.module, settings.train)

    @property
    def settings_classes(self) -> Sequence[type]:
        """`DataSettings` and `FineTuningSettings`."""
        return DataSettings, FineTuningSettings

    def describe(self, plan: Plan, accelerator: Accelerator) -> RunRecord:
        """Classifier, data and training, in the groups that a run of pretraining has."""
        own, classifier = self.own, self.classifier
        given = asdict(own)
        given |= {name: value for name, value in asdict(own.training).items() if name in given}
        given["mixed_precision"] = self.settings.mixed_precision
        parameters = list(classifier.module.parameters())
        return RunRecord.begin(
            "fine-tuning",
            accelerator.device,
            base_model=classifier.base_model,
            origin=self._origin(),
            license=own.license,
            config={
                "encoder": classifier.encoder,
                "architecture": classifier.architecture,
                "model_args": classifier.model_args,
                "image_size": classifier.image_size,
                "num_classes": len(classifier.class_names),
                **{name: given[name] for name in _OF_CLASSIFIER},
            },
            data=described_data(self.data, self.source, VIEW_RECIPE),
            training=described_training(
                {name: value for name, value in given.items() if name not in (*_OF_CLASSIFIER, *_ELSEWHERE)},
                plan,
                accelerator.num_processes,
            ),
            details={
                "num_parameters": sum(one.numel() for one in parameters),
                "num_trained_parameters": sum(one.numel() for one in parameters if one.requires_grad),
                "images_per_class": self.counts,
                "label_fraction_reached": self.fraction_reached,
                "label_column": next(iter(self.source.labels)),
                "evaluation": {
                    "test_split": None if self.test is None else self.test.split,
                    "eval_every": own.eval_every,
                },
            },
        )

    def _origin(self) -> dict[str, Any]:
        """What the encoder is, and the training behind its weights, if these are used."""
        name = self.classifier.encoder
        origin = origin_of_encoder(name.removeprefix(RANDOM))
        return origin | {"former": None} if name.startswith(RANDOM) else origin

    def set_up(self, device: torch.device) -> None:
        """Mode, and memory layout."""
        classifier, settings = self.classifier, self.own
        if settings.channels_last:
            self.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        training_mode(classifier.module, settings.train)
        mean, std = classifier.data_config["mean"], classifier.data_config["std"]
        self.normalize = Normalize(mean, std, device, settings.channels_last)
        self.device = device
        self.blend = None
        if settings.mixup or settings.cutmix:
            self.blend = Mixup(
                mixup_alpha=settings.mixup,
                cutmix_alpha=settings.cutmix,
                label_smoothing=settings.label_smoothing,
                num_classes=len(classifier.class_names),
            )

    def optimizer(self, learning_rate: float) -> Optimizer:
        """Timm's optimizer and groups, with the names that `set_learning_rate` reads."""
        settings = self.own
        is_lars = settings.optimizer == "lars"
        optimizer = create_optimizer_v2(
            self.classifier.module,
            opt="sgd" if is_lars else settings.optimizer,
            lr=learning_rate,
            weight_decay=settings.weight_decay,
            momentum=settings.optimizer_momentum,
            layer_decay=settings.layer_decay if settings.layer_decay < 1 else None,
        )
        if is_lars:  # that of this package, over timm's groups
            names = ("params", "weight_decay", "lr_scale")
            groups = [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]
            for group in groups:
                group["adapt"] = all(parameter.ndim > 1 for parameter in group["params"])
            optimizer = LARS(groups, lr=learning_rate, momentum=settings.optimizer_momentum)
        for group in optimizer.param_groups:
            group["lr_multiplier"] = group.pop("lr_scale", 1.0)
            group["scheduled"] = True
        return optimizer

    def check_images(self, images: int, num_processes: int) -> None:
        """Blending takes pairs."""
        if (self.own.mixup or self.own.cutmix) and images % 2:
            raise UserError(
                f"`mixup` and `cutmix` need an even number of images in one forward pass, got {images}. Give another "
                "`batch_size` or `images_per_device`."
            )

    def trial(self, images: int) -> None:
        """A forward and backward pass of black images of the first class."""
        size, device = self.classifier.image_size, self.device
        pixels = torch.zeros(images, 3, size, size, device=device)
        if self.own.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        drop_gradients(self.module, self.module(pixels, torch.zeros(images, dtype=torch.int64, device=device)).loss)

    def open_stream(
        self, accelerator: Accelerator, position: dict[str, Any] | None, lanes: int, images: int
    ) -> TrainingStream:
        """One view of each image, and its label."""
        data, settings = self.data, self.own
        return TrainingStream(
            self.source,
            Views(data.find_recipe(VIEW_RECIPE), self.classifier.image_size, num_views=1),
            settings.batch_size,
            seed=settings.seed,
            lanes=lanes,
            images_per_device=images,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            num_workers=data.num_workers,
            window_size=data.shuffle_window,
            max_skipped_ratio=data.max_skipped_ratio,
            position=position,
            with_labels=True,
        )

    def forward(self, network: nn.Module, batch: Batch) -> SSLOutput:
        """The loss of normalised images and their classes, blended if the settings say so."""
        pixel_values = self.normalize(send(batch.views, self.device))[:, 0]
        targets = self._classes(batch)
        if self.blend is None:
            return network(pixel_values, send(targets, self.device))
        return network(*self.blend(pixel_values, send(self._all_known(targets), self.device)))

    def _classes(self, batch: Batch) -> Tensor:
        """Class of each image, (batch,), -1 where it is unknown."""
        assert batch.labels is not None
        names = next(iter(self.source.labels.values()))
        labels = batch.labels if names else numbers_of_classes(batch.labels, self.classifier.class_names)
        known = (labels >= 0) & (labels < len(self.classifier.class_names))
        return torch.where(known, labels, -1)

    def _all_known(self, targets: Tensor) -> Tensor:
        """Classes, while they are on the CPU: on a GPU the question would be waited for."""
        if bool((targets < 0).any()):
            raise UserError(
                f"`mixup` and `cutmix` need a label of every image, but some of `{self.source.name}` have none. Leave "
                "them out, or choose labelled images by `label_fraction`."
            )
        return targets

    def watches(
        self, accelerator: Accelerator, plan: Plan, record: RunRecord, log: MetricsLog | None, step: int
    ) -> list[Watch]:
        """Scores on the test split."""
        if self.test is None:
            return []
        every, device = self.own.eval_every, accelerator.device
        options = (next(iter(self.source.labels)), self.own.batch_size, self.data.num_workers)
        self.scoring = ScoreWatch(every, self.classifier, self.test, options, device, log, step)
        return [self.scoring]
