"""Settings of fine-tuning: what of an encoder is trained, on how many labels, and how."""

from dataclasses import fields
from typing import Any, Literal

from hf_ssl.errors import UserError
from hf_ssl.settings import HUB_TIMEOUT, checked
from hf_ssl.training.arguments import TrainingSettings

_EPOCHS = 20.0  # length of a run of which nothing is said
_WARM_UP = 20  # its warm-up is one part in so many


@checked
class FineTuningSettings:
    """How a classifier is trained on top of an encoder, and with it all, some or nothing of the encoder.

    Args:
        output_dir: Folder of this run; empty or absent, or with `resume` the folder of a run.
        train: What is trained: `full`, everything; `linear`, only the classifier, on the frozen encoder in evaluation
            mode; `last-N`, such as last-2, the classifier and the last N blocks as timm groups them.
        label_fraction: Fraction of the labelled training images that is used, in (0, 1]: the same number of each
            class, at least one, chosen by `seed`. They stay in memory, undecoded, in each process.
        test_split: Labelled split that is scored; `test` or `validation` if not given, whichever there is.
        eval_every: Optimizer steps between two scorings; once an epoch if not given. The last step is always scored.
        image_size: Height and width of the input, in pixels; what the encoder was published with if not given.
        model_args: Arguments of `timm.create_model` beside those of the encoder, such as `{"drop_path_rate": 0.1}`.
        layer_decay: Factor, in (0, 1], of the learning rate from each block to the one before it, such as 0.75 for
            ViTs; 1 for one learning rate.
        label_smoothing: Share, in [0, 1), of each target that is spread over all classes.
        mixup: Alpha of mixup, which blends pairs of images and of labels; 0 for none. Needs even batches.
        cutmix: Alpha of CutMix, which pastes a part of one image into another; 0 for none. With both, each batch gets
            one of them.
        batch_size: Images of one optimizer step, over all processes. Where they do not fit into one forward pass,
            gradients are accumulated.
        images_per_device: Images of one process in one forward pass; a divisor of its share of `batch_size`. `auto`
            takes all of them, or on a GPU, before the first step, as many as fit into its memory.
        num_epochs: Passes over the labelled images; needs a data set of known size. 20 if neither this nor `num_steps`
            is given.
        num_steps: Optimizer steps, instead of `num_epochs`.
        seed: Seed of the classifier's weights, the labelled images, their order, augmentation and everything random.
        optimizer: `adamw`, `sgd` (Nesterov's), `lars` (as in BYOL's code), or the name of an optimizer of timm, such
            as `lamb`, `lion` or `muon`.
        base_learning_rate: Learning rate for 256 images a step; 0.001 if not given, and 0.03 for `linear`.
        learning_rate_scaling: `linear` multiplies the learning rate by images a step / 256, `none` takes it as it is.
        weight_decay: Weight decay; never on biases, normalisation weights and what timm excludes for the model.
        optimizer_momentum: Momentum of SGD, LARS and those of timm that have one, in [0, 1).
        lr_schedule: Learning rate after the warm-up: `cosine` to zero every step or `cosine_by_epoch`, `constant`, or
            `step` (x 0.1 at 60 and 80 %).
        warmup_epochs: Epochs in which the learning rate rises linearly from zero; a twentieth of the run if neither
            this nor `warmup_steps` is given.
        warmup_steps: The same in optimizer steps, instead of `warmup_epochs`.
        max_grad_norm: Largest norm of the gradient, above which it is scaled down.
        mixed_precision: Precision of the forward and backward pass; weights stay float32, and scoring is in float32.
            `auto` is bf16 on CUDA devices that compute in it, else `no`.
        channels_last: Keep images and convolutions in the memory layout that is faster for them.
        cpu: Train on the CPU although there is an accelerator.
        log_every: Optimizer steps between two lines of `metrics.jsonl`.
        checkpoint_every: Optimizer steps between two checkpoints; the last step always writes one.
        keep_checkpoints: Number of newest checkpoints that are kept.
        grace_seconds: Seconds from a signal that ends the run (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2) until the
            process ends even if data, an evaluation or a checkpoint hangs; less than the cluster waits.
        resume: `auto` for the newest checkpoint of `output_dir` (from the beginning if there is none), or the folder
            of a checkpoint, or the name of one of this run's, such as `step-000500`. More steps or epochs than the run
            had are taken at once; see `change` for other settings.
        change: Names of settings that are to have another value from here on, when a run is resumed, such as
            `base_learning_rate max_grad_norm`; the values are given as always. Without this a changed setting is
            refused.
        report_to: Tracker that receives the log beside `metrics.jsonl`.
        push_to_hub: Publish the classifier to the Hugging Face Hub at the end.
        repo_id: Hub repository, such as `org/directpred-r50-flowers`.
        private: Create the repository as a private one.
        license: Licence of the weights for the card, such as `apache-2.0`; none is assumed.
        hub_timeout: Seconds that a push may lose to failures of the Hub and to pauses after them, all attempts
            together, before it is given up; 0: nothing is tried again.
    """

    output_dir: str
    train: str = "full"
    label_fraction: float = 1.0
    test_split: str | None = None
    eval_every: int | None = None
    image_size: int | None = None
    model_args: dict[str, Any] | None = None
    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    batch_size: int = 64
    images_per_device: int | Literal["auto"] = "auto"
    num_epochs: float | None = None
    num_steps: int | None = None
    seed: int = 0
    optimizer: str = "adamw"
    base_learning_rate: float | None = None
    learning_rate_scaling: Literal["linear", "none"] = "linear"
    weight_decay: float = 0.05
    optimizer_momentum: float = 0.9
    lr_schedule: Literal["cosine", "cosine_by_epoch", "constant", "step"] = "cosine"
    warmup_epochs: float | None = None
    warmup_steps: int | None = None
    max_grad_norm: float | None = None
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    cpu: bool = False
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    grace_seconds: float = 20.0
    resume: str | None = None
    change: list[str] | None = None
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    push_to_hub: bool = False
    repo_id: str | None = None
    private: bool = False
    license: str | None = None
    hub_timeout: float = HUB_TIMEOUT

    def validate_training(self) -> None:
        """Check the settings that every training run has."""
        _ = self.training

    def validate_fine_tuning(self) -> None:
        """Check the others, as far as that needs neither encoder nor data."""
        number = self.train.removeprefix("last-")
        if self.train not in ("full", "linear") and not (self.train != number and number.isdecimal()):
            raise UserError(f"`train` must be full, linear or last-N such as last-2, got `{self.train}`.")
        if not 0 < self.label_fraction <= 1:
            raise UserError(
                f"`label_fraction` must be above 0 and at most 1, such as 0.01 for 1 %, got {self.label_fraction}."
            )
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"`layer_decay` must be above 0 and at most 1, got {self.layer_decay}.")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"`label_smoothing` must be in [0, 1), got {self.label_smoothing}.")
        for name in ("mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise UserError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise UserError(f"`mixup` and `cutmix` need an even `batch_size`, got {self.batch_size}.")
        for name in ("eval_every", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"`{name}` must be at least 1, got {value}.")
        if "num_classes" in (self.model_args or {}):
            raise UserError(
                "`model_args` must not contain `num_classes`: the labels say how many there are. Remove it."
            )

    @property
    def training(self) -> TrainingSettings:
        """The part that every training run has, for what fine-tuning shares with pretraining; with every default."""
        known = {field.name for field in fields(TrainingSettings)}  # pyright: ignore[reportArgumentType]
        given = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        values = {name: value for name, value in given.items() if name in known}
        if self.num_epochs is None and self.num_steps is None:
            values["num_epochs"] = _EPOCHS
        if self.warmup_epochs is None and self.warmup_steps is None:
            if self.num_steps is not None:
                values["warmup_steps"] = self.num_steps // _WARM_UP
            else:
                values["warmup_epochs"] = values["num_epochs"] / _WARM_UP
        if self.base_learning_rate is None:
            values["base_learning_rate"] = 0.03 if self.train == "linear" else 1e-3
        return TrainingSettings(**values)
