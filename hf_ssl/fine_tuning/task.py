"""Fine-tuning: the loop that trains a classifier, on top of an encoder or with it, and scores it on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.data.mixup import Mixup
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch.nn import functional as F

from hf_ssl.data.order.stream import Batch, TrainingStream
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.data.sources.subset import numbers_of_classes
from hf_ssl.data.views.cpu import Views
from hf_ssl.data.views.device import Normalize, send
from hf_ssl.errors import UserError
from hf_ssl.fine_tuning.classifier import Classifier, Score, choose_trained, score, training_mode
from hf_ssl.fine_tuning.record import VIEW_RECIPE, FineTuningRecorder, describe_run
from hf_ssl.fine_tuning.settings import FineTuningSettings
from hf_ssl.methods.base import SSLOutput
from hf_ssl.training.changes import defaults_of, plan_going_on
from hf_ssl.training.checkpoint import Restored, identity_in, load_checkpoint, random_state, set_random_state
from hf_ssl.training.find import find_checkpoint
from hf_ssl.training.fit import drop_gradients
from hf_ssl.training.loop import continue_record, forward_images
from hf_ssl.training.optimizers import set_learning_rate
from hf_ssl.training.output import check_tracker, locked_output_dir, prepare_output_dir
from hf_ssl.training.plan import Plan, make_plan
from hf_ssl.training.processes import (
    average_batch_norm,
    averaged_batch_norm,
    own_accelerate_state,
    prepare,
    start_accelerator,
    with_precision,
)
from hf_ssl.training.record import former_record, identity_of
from hf_ssl.training.same_data import check_same_data, keep_listing


@dataclass(frozen=True)
class FineTuningResult:
    """How a run ended.

    Args:
        step: Optimizer steps done.
        num_steps: Optimizer steps of the whole run.
        signal: Number of the signal that ended it early, 0 if none.
        is_main_process: Whether this process is the one that exports.
        last_checkpoint: The newest checkpoint.
        score: Of the weights at the end; None if the run was stopped early, or nothing is scored.
        best: Step and accuracy of the best scoring, which the test split itself chose; None if nothing was scored.
    """

    step: int
    num_steps: int
    signal: int
    is_main_process: bool
    last_checkpoint: Path | None
    score: Score | None
    best: tuple[int, float] | None


class _Supervised(nn.Module):
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
    if data.views_on != "cpu" or data.cache != "none":
        raise UserError("`views_on` gpu and `cache` are for pretraining: fine-tuning makes its views by workers.")
    check_tracker(settings.report_to)
    training = with_precision(settings.training)
    prepare_output_dir(training)
    with locked_output_dir(training), own_accelerate_state():
        return _fine_tune(classifier, source, test, data, settings, counts, fraction_reached)


def _fine_tune(
    classifier: Classifier,
    source: Source,
    test: Source | None,
    data: DataSettings,
    settings: FineTuningSettings,
    counts: dict[str, int] | None,
    fraction_reached: float | None,
) -> FineTuningResult:
    training = with_precision(settings.training)
    accelerator = start_accelerator(training)
    checkpoint = find_checkpoint(Path(settings.output_dir), settings.resume)
    former = {} if checkpoint is None else identity_in(checkpoint)
    former_run = {} if checkpoint is None else former_record(Path(settings.output_dir), checkpoint)
    plan = make_plan(source, training, accelerator.num_processes, former.get("lanes"))
    if checkpoint is not None:
        plan = plan_going_on(plan, former, settings.change or ())
    set_seed(settings.seed, device_specific=True)
    choose_trained(classifier.module, settings.train)
    run = describe_run(classifier, source, test, data, settings, plan, accelerator, counts, fraction_reached)
    model = _Supervised(classifier.module, settings.label_smoothing)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    network, prepared = prepare(accelerator, model, _optimizer(classifier.module, settings, plan.learning_rate))
    optimizer: Any = prepared
    restored = Restored(step=0, seconds=0.0, position=None)
    if checkpoint is not None:
        check_same_data(checkpoint, former, run, source)
    if accelerator.is_main_process:
        keep_listing(source, Path(settings.output_dir))
    if checkpoint is not None:
        restored = load_checkpoint(
            accelerator,
            checkpoint,
            model=model,
            optimizer=optimizer,
            identity=identity_of(run),
            change=settings.change,
            defaults=defaults_of(DataSettings, FineTuningSettings),
        )
        continue_record(run, former_run, settings.output_dir, restored, plan.num_steps)
    stream = None
    if restored.step < plan.num_steps:
        check, trial = _check_of(settings), _trial_of(model, classifier, settings)
        images = forward_images(accelerator, model, training, run, former, check, trial)
        places = (restored.position, plan.lanes, images)
        stream = _open_stream(classifier, source, data, settings, accelerator, *places)
    recorder = FineTuningRecorder(accelerator, model, optimizer, plan, training, run, restored, checkpoint, None, None)  # pyright: ignore[reportArgumentType]
    blend = _mixup(classifier, settings)
    mean, std = classifier.data_config["mean"], classifier.data_config["std"]
    normalize = Normalize(mean, std, accelerator.device, settings.channels_last)
    scored: Score | None = None
    step = restored.step
    training_mode(classifier.module, settings.train)
    with recorder:
        for batch in recorder.batches(stream) if stream is not None else ():
            with accelerator.accumulate(network):
                pixel_values = normalize(send(batch.views, accelerator.device))[:, 0]
                targets = send(_classes(batch, classifier, source), accelerator.device)
                if blend is not None:
                    pixel_values, targets = blend(pixel_values, _all_known(targets, source))
                output: SSLOutput = network(pixel_values, targets)
                accelerator.backward(output.loss)
                if accelerator.sync_gradients and settings.max_grad_norm is not None:
                    accelerator.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
                set_learning_rate(optimizer, plan.learning_rate, plan.factor(step))
                optimizer.step()
                optimizer.zero_grad()
            recorder.add_loss(output, step + 1)
            if not accelerator.sync_gradients:
                continue
            step += 1
            if test is not None and _is_due(step, plan, settings):
                scored = _scored(recorder, classifier, source, test, data, settings, step)
            if recorder.after_step(step, output, batch.epoch):
                break
        if step == plan.num_steps and scored is None and test is not None and not recorder.stop.received:
            # It was resumed after its end.
            scored = _scored(recorder, classifier, source, test, data, settings, step)
    average_batch_norm(model)
    model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    recorder.finish(step)
    best = recorder.best()
    accelerator.end_training()
    return FineTuningResult(
        step=step,
        num_steps=plan.num_steps,
        signal=recorder.stopped_by,
        is_main_process=accelerator.is_main_process,
        last_checkpoint=recorder.last_checkpoint,
        score=scored if step == plan.num_steps else None,
        best=best,
    )


def _optimizer(module: nn.Module, settings: FineTuningSettings, learning_rate: float) -> torch.optim.Optimizer:
    """Timm's optimizer and groups, with the names that `set_learning_rate` reads."""
    optimizer = create_optimizer_v2(
        module,
        opt=settings.optimizer,
        lr=learning_rate,
        weight_decay=settings.weight_decay,
        momentum=settings.optimizer_momentum,
        layer_decay=settings.layer_decay if settings.layer_decay < 1 else None,
    )
    for group in optimizer.param_groups:
        group["lr_multiplier"] = group.pop("lr_scale", 1.0)
        group["scheduled"] = True
    return optimizer


def _open_stream(
    classifier: Classifier,
    source: Source,
    data: DataSettings,
    settings: FineTuningSettings,
    accelerator: Accelerator,
    position: dict[str, Any] | None,
    lanes: int,
    images_per_device: int,
) -> TrainingStream:
    return TrainingStream(
        source,
        Views(data.find_recipe(VIEW_RECIPE), classifier.image_size, num_views=1),
        settings.batch_size,
        seed=settings.seed,
        lanes=lanes,
        images_per_device=images_per_device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=data.num_workers,
        window_size=data.shuffle_window,
        max_skipped_ratio=data.max_skipped_ratio,
        position=position,
        with_labels=True,
    )


def _check_of(settings: FineTuningSettings) -> Callable[[int], None]:
    """What refuses forward passes of too few images."""

    def check(images: int) -> None:
        if (settings.mixup or settings.cutmix) and images % 2:
            raise UserError(
                f"`mixup` and `cutmix` need an even number of images in one forward pass, got {images}. Give another "
                "`batch_size` or `images_per_device`."
            )

    return check


def _trial_of(model: nn.Module, classifier: Classifier, settings: FineTuningSettings) -> Callable[[int], None]:
    """A forward and backward pass of images that show nothing; see `images_that_fit`."""

    def trial(images: int) -> None:
        training_mode(classifier.module, settings.train)
        device = next(model.parameters()).device
        pixels = torch.zeros(images, 3, classifier.image_size, classifier.image_size, device=device)
        if settings.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        drop_gradients(model, model(pixels, torch.zeros(images, dtype=torch.int64, device=device)).loss)

    return trial


def _mixup(classifier: Classifier, settings: FineTuningSettings) -> Mixup | None:
    if not settings.mixup and not settings.cutmix:
        return None
    return Mixup(
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        label_smoothing=settings.label_smoothing,
        num_classes=len(classifier.class_names),
    )


def _classes(batch: Batch, classifier: Classifier, source: Source) -> Tensor:
    """Class of each image, (batch,), -1 where it is unknown."""
    assert batch.labels is not None
    names = next(iter(source.labels.values()))
    labels = batch.labels if names else numbers_of_classes(batch.labels, classifier.class_names)
    known = (labels >= 0) & (labels < len(classifier.class_names))
    return torch.where(known, labels, -1)


def _all_known(targets: Tensor, source: Source) -> Tensor:
    if bool((targets < 0).any()):
        raise UserError(
            f"`mixup` and `cutmix` need a label of every image, but some of `{source.name}` have none. Leave them "
            "out, or choose labelled images by `label_fraction`."
        )
    return targets


def _is_due(step: int, plan: Plan, settings: FineTuningSettings) -> bool:
    """Whether to score after a step: at the last, and every `eval_every` steps or at the end of every epoch."""
    if step == plan.num_steps:
        return True
    if settings.eval_every is not None:
        return step % settings.eval_every == 0
    known = plan.steps_per_epoch
    return known is not None and int(step / known) > int((step - 1) / known)


def _scored(
    recorder: FineTuningRecorder,
    classifier: Classifier,
    source: Source,
    test: Source,
    data: DataSettings,
    settings: FineTuningSettings,
    step: int,
) -> Score | None:
    """Score on all processes, with what BatchNorm would be if training ended here; training does not notice.

    A signal interrupts it in a single process; the score is then None.
    """
    device = recorder.accelerator.device
    recorder.clock.pause()
    recorder.losses.check(recorder.last_checkpoint)
    recorder.bar.set_description("scoring")
    before = random_state(device)

    def work() -> Score:
        with averaged_batch_norm(classifier.module):
            return score(classifier, test, next(iter(source.labels)), settings.batch_size, data.num_workers)

    measured = recorder.interruptible(work)
    set_random_state(before, device)
    if measured is not None:
        recorder.add_score(step, measured)
    recorder.clock.resume()
    return measured
