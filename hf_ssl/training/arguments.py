"""Settings of a training run: length, optimizer, precision, checkpoints, logging, publishing."""

from typing import Literal

from hf_ssl.errors import UserError
from hf_ssl.settings import HUB_TIMEOUT, checked
from hf_ssl.training.timm_optimizers import check_optimizer

ALTERNATIVES = (("num_epochs", "num_steps"), ("warmup_epochs", "warmup_steps"))


@checked
class TrainingSettings:
    """How a method is trained; what is trained is in its config, on what in `DataSettings`.

    Args:
        output_dir: Folder of this run; empty or absent, or with `resume` the folder of a run.
        recipe: Named defaults of the method, which every other flag overrides; `auto` chooses them from the number and
            size of the images and the device, and says what it chose.
        batch_size: Images of one optimizer step, over all processes. Where they do not fit into one forward pass,
            gradients are accumulated.
        images_per_device: Images of one process in one forward pass; a divisor of its share of `batch_size`. `auto`
            takes all of them, or on a GPU, before the first step, as many as fit into its memory.
        num_epochs: Passes over the data set; needs a data set of known size.
        num_steps: Optimizer steps, instead of `num_epochs`.
        max_hours: Hours of training, to which the run's length is fitted by the speed of its first 20 steps, which it
            always takes; start, k-NN and export come on top. With `num_epochs` or `num_steps` too, the shorter one.
        seed: Seed of weights, order of images, augmentation and everything else that is random, in [0, 2^31).
        optimizer: `sgd` (with momentum), `adamw`, `lars` (as in BYOL's code), or the name of an optimizer of timm,
            such as `lamb`, `lion` or `muon`.
        base_learning_rate: Learning rate for 256 images a step. A recipe's own is for random weights; where weights
            are loaded a tenth of it is taken, with a warm-up over a tenth of the run.
        learning_rate_scaling: `linear` multiplies the learning rate by images a step / 256, `none` takes it as it is.
        weight_decay: Weight decay (decoupled for AdamW).
        optimizer_momentum: Momentum of SGD, LARS and those of timm that have one, in [0, 1).
        lars_trust_coefficient: Factor of LARS' ratio of weight norm to gradient norm.
        decay_norm_and_bias: Apply weight decay to biases and normalisation weights too.
        predictor_lr_multiplier: Factor of the learning rate of a predictor that gradients train.
        predictor_weight_decay: Weight decay of such a predictor; without it `weight_decay`.
        lr_schedule: Learning rate after the warm-up: `cosine` to zero every step or `cosine_by_epoch`, `constant`, or
            `step` (x 0.1 at 60 and 80 %).
        warmup_epochs: Epochs in which the learning rate rises linearly from zero.
        warmup_steps: The same in optimizer steps, instead of `warmup_epochs`.
        max_grad_norm: Largest norm of the gradient, above which it is scaled down.
        batch_norm: BatchNorm statistics over the images of all processes (`sync`) or of each (`local`); the method's
            own choice if not given. Split BatchNorm (MoCo's `bn_splits`) keeps its groups either way.
        mixed_precision: Precision of the forward and backward pass; weights stay float32. `auto` is bf16 on CUDA
            devices that compute in it, else `no`.
        channels_last: Keep images and convolutions in the memory layout that is faster for them.
        compile: Compile the encoder with `torch.compile`; pays for long runs.
        activation_checkpointing: Save memory by computing the encoder's activations twice.
        deterministic: Take only kernels that give the same bits every time, so that a run that resumes on a GPU is bit
            for bit the one that was never stopped. Those of the CPU do so without it; on a GPU it costs speed.
        pretrained: Start from the weights that timm has published for `encoder`. Only a plain timm name needs it:
            everything else that `encoder` can name brings its weights.
        start_from: Start from a method that was trained before: a run, its `pretraining/` folder, or a repository such
            as `org/moco-r50`. The same method takes its heads, target, queue and statistics too, another one its
            encoder; the schedule begins anew.
        cpu: Train on the CPU although there is an accelerator.
        lanes: Parts in which the images are read, each by one process; a step takes the same number from each, so a
            run can go on with any number of processes that divides it. 8 if not given, fewer where `batch_size` is no
            multiple of 8, and as many as processes where these do not divide it.
        log_every: Optimizer steps between two lines of `metrics.jsonl`.
        diagnostics_every: Optimizer steps between two diagnoses of the batch in hand (spectra, alignment, uniformity,
            predictor), also made at the last step; 0 for none. 500 if not given, in long runs a hundredth of the run.
        on_collapse: What to do when the representations collapse: `warn` says so once, with what usually cures it,
            `stop` also ends the run with a checkpoint.
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
        knn_every: Optimizer steps between two k-NN evaluations; 0 for none.
        knn_split: Labelled split that k-NN classifies, with the training split as its memory; at the end of a run
            `test` or `validation` if not given.
        knn_images: Images of either split that this k-NN uses at most, from all over the split.
        gallery: Show images of the data set beside their nearest neighbours on the model card, which is published with
            the encoder; without it only those of `shapes` and `digits` are shown.
        push_to_hub: Publish the encoder to the Hugging Face Hub at the end.
        push_checkpoints: Publish it at the end and at every checkpoint, each of these to a branch of its own.
        repo_id: Hub repository, such as `org/directpred-r50`. Without `push_to_hub` only the model card names it.
        private: Create the repository as a private one.
        license: Licence of the weights for the model card, such as `apache-2.0`; none is assumed.
        hub_timeout: Seconds that a push may lose to failures of the Hub and to pauses after them, all attempts
            together, before it is given up; 0: nothing is tried again.
    """

    output_dir: str
    recipe: str | None = None
    batch_size: int = 64
    images_per_device: int | Literal["auto"] = "auto"
    num_epochs: float | None = None
    num_steps: int | None = None
    max_hours: float | None = None
    seed: int = 0
    optimizer: str = "sgd"
    base_learning_rate: float = 0.03
    learning_rate_scaling: Literal["linear", "none"] = "linear"
    weight_decay: float = 1e-4
    optimizer_momentum: float = 0.9
    lars_trust_coefficient: float = 1e-3
    decay_norm_and_bias: bool = True
    predictor_lr_multiplier: float = 1.0
    predictor_weight_decay: float | None = None
    lr_schedule: Literal["cosine", "cosine_by_epoch", "constant", "step"] = "cosine"
    warmup_epochs: float | None = None
    warmup_steps: int | None = None
    max_grad_norm: float | None = None
    batch_norm: Literal["sync", "local"] | None = None
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    activation_checkpointing: bool = False
    deterministic: bool = False
    pretrained: bool = False
    start_from: str | None = None
    cpu: bool = False
    lanes: int | None = None
    log_every: int = 20
    diagnostics_every: int | None = None
    on_collapse: Literal["warn", "stop"] = "warn"
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    grace_seconds: float = 20.0
    resume: str | None = None
    change: list[str] | None = None
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    knn_every: int = 0
    knn_split: str | None = None
    knn_images: int = 10_000
    gallery: bool = False
    push_to_hub: bool = False
    push_checkpoints: bool = False
    repo_id: str | None = None
    private: bool = False
    license: str | None = None
    hub_timeout: float = HUB_TIMEOUT

    def validate_training(self) -> None:
        """Check every setting that can be checked without data."""
        if not self.output_dir:
            raise UserError("`output_dir` is needed: the folder of this run, such as `runs/first`.")
        self._check_numbers()
        if self.change and self.resume is None:
            raise UserError("`change` is for a run that goes on. Give `--resume auto` too, or leave `change` out.")
        check_optimizer(self.optimizer)
        for one, other in ALTERNATIVES:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise UserError(f"`{one}` and `{other}` exclude each other. Give one of them.")
        if self.knn_every and not self.knn_split:
            raise UserError("`knn_every` needs `knn_split`, a labelled split such as `--knn_split test`.")
        if (self.push_to_hub or self.push_checkpoints) and not self.repo_id:
            wish = "push_to_hub" if self.push_to_hub else "push_checkpoints"
            raise UserError(f"`{wish}` needs `repo_id`, such as `--repo_id org/directpred-r50`.")
        if self.private and not (self.push_to_hub or self.push_checkpoints):
            raise UserError("`private` is for what is published. Add `--push_to_hub`, or leave it out.")

    def _check_numbers(self) -> None:
        at_least_one = ("batch_size", "lanes", "log_every", "checkpoint_every", "keep_checkpoints", "knn_images")
        at_least_one += ("num_steps",) if self.images_per_device == "auto" else ("num_steps", "images_per_device")
        not_negative = ("seed", "knn_every", "weight_decay", "predictor_weight_decay", "warmup_epochs", "warmup_steps")
        not_negative += ("predictor_lr_multiplier", "diagnostics_every", "hub_timeout")
        positive = ("num_epochs", "max_hours", "base_learning_rate", "lars_trust_coefficient", "max_grad_norm")
        positive += ("grace_seconds",)
        for names, rule, holds in (
            (at_least_one, "at least 1", lambda value: value >= 1),
            (not_negative, "0 or more", lambda value: value >= 0),
            (positive, "positive", lambda value: value > 0),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise UserError(f"`{name}` must be {rule}, got {value}.")
        if self.seed >= 2**31:
            raise UserError(f"`seed` must be below 2^31 (2,147,483,648), got {self.seed}.")
        if not 0 <= self.optimizer_momentum < 1:
            raise UserError(f"`optimizer_momentum` must be in [0, 1), got {self.optimizer_momentum}.")
