"""DirectPred (Tian et al., 2021, https://arxiv.org/abs/2102.06810), DirectSet and DirectCopy (arXiv 2110.04947).

Long because a method is one file: its config, its model and what only they use.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F

from hf_ssl.distributed import broadcast, mean_over_processes
from hf_ssl.errors import UserError
from hf_ssl.methods.base import Paper, SSLConfig, SSLOutput, SSLPreTrainedModel
from hf_ssl.modules.description import Description, kind_of_target
from hf_ssl.modules.encoder import build_encoder
from hf_ssl.modules.heads import mlp
from hf_ssl.modules.losses import negative_cosine
from hf_ssl.modules.momentum import cosine_momentum, update_target

# The official code lifts every eigenvalue of the predictor to this floor.
_FLOOR = 1e-4
_POWER_ITERATIONS = 8
# Added to the eigenvalues in units of the largest: lifts above zero what float32 rounds below it.
_SHIFT = 1e-6
# Where eigenvectors make the host wait for the device.
_ITERATES_ON = "cuda"


@strict
class DirectPredConfig(SSLConfig):
    """Settings of DirectPred; widths are those of BYOL, as in the paper's ImageNet runs (section 6.2).

    Args:
        projector_layers: Linear layers of the projector, at least 1.
        projector_hidden_dim: Width of the projector's hidden layers, at least 1.
        projection_dim: Width of projections and predictions, at least 1.
        projector_affine: Scale and shift in the projector's BatchNorm; the authors' CIFAR-10 code has none.
        projector_bias: Bias in the projector's last layer; the authors' CIFAR-10 code has one.
        projector_output_norm: BatchNorm, without scale and shift, after the projector; not in the paper. It takes out
            the mean that the correlation would otherwise be made of, on which small encoders collapse.
        rule: How the predictor follows from the correlation: `directpred` takes the square root of its eigenvalues,
            `directset` the power `exponent`, `directcopy` the correlation itself, without eigenvectors.
        exponent: Power of the eigenvalues under `rule` directset, positive; 0.5 is directpred.
        epsilon: Added to the predictor's eigenvalues, at least 0.
        epsilon_form: `code` divides eigenvalues by the largest first, `paper` scales `epsilon` by the largest instead.
        offset: Taken off the eigenvalues before the power (paper, table 7); negative to lift them.
        copy_norm: Under `rule` directcopy, divide the correlation by its `spectral` norm, or by `none` as the
            official code does.
        rho: Fraction of the correlation that a batch keeps, in [0, 1); None for the plain average since the start.
        freq: Optimizer steps from one setting of the predictor to the next; above 1, gradients train it in between.
            With 0 it is never set: a linear predictor that gradients train, the paper's baseline.
        remove_mean: Use the covariance of projections instead of their correlation; the authors found it worse.
        symmetric: Predict each view from the other and add up both losses; without, the second from the first.
        use_ema: Predict a moving average of the network; without, the network itself behind a stop-gradient.
        ema_momentum: Fraction of the target that an update keeps, in [0, 1].
        ema_schedule: `constant` keeps `ema_momentum`, `cosine` raises it to 1 during the run.
        target_init: `copy` starts the target equal to the online network, `independent` from a draw of its own.
    """

    model_type = "hf_ssl_directpred"

    projector_layers: int = 2
    projector_hidden_dim: int = 4096
    projection_dim: int = 256
    projector_affine: bool = True
    projector_bias: bool = False
    projector_output_norm: bool = False
    rule: Literal["directpred", "directset", "directcopy"] = "directpred"
    exponent: float = 0.5
    epsilon: float = 0.1
    epsilon_form: Literal["code", "paper"] = "code"
    offset: float = 0.0
    copy_norm: Literal["spectral", "none"] = "spectral"
    rho: float | None = 0.3
    freq: int = 1
    symmetric: bool = True
    remove_mean: bool = False
    use_ema: bool = True
    ema_momentum: float = 0.996
    ema_schedule: Literal["constant", "cosine"] = "constant"
    target_init: Literal["copy", "independent"] = "copy"

    def validate_directpred(self) -> None:
        """Check the settings of DirectPred once, when the config is made."""
        for name, least in (("projector_layers", 1), ("projector_hidden_dim", 1), ("projection_dim", 1), ("freq", 0)):
            if getattr(self, name) < least:
                raise UserError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not self.epsilon >= 0:
            raise UserError(f"`epsilon` must be at least 0, got {self.epsilon}.")
        if not self.exponent > 0:
            raise UserError(f"`exponent` must be positive, got {self.exponent}.")
        if self.rho is not None and not 0 <= self.rho < 1:
            raise UserError(f"`rho` must be in [0, 1) or None, got {self.rho}.")
        if not -1 < self.offset < 1:
            raise UserError(f"`offset` must be in (-1, 1), got {self.offset}.")
        if not 0 <= self.ema_momentum <= 1:
            raise UserError(f"`ema_momentum` must be in [0, 1], got {self.ema_momentum}.")

    def validate_rule(self) -> None:
        """Refuse settings that the chosen rule would ignore."""
        if self.rule != "directset" and self.exponent != 0.5:
            raise UserError(f"`exponent` needs `rule` directset, got {self.rule}. Set it, or leave `exponent` at 0.5.")
        if self.rule == "directcopy" and (self.offset != 0 or self.epsilon_form != "code"):
            raise UserError(
                "`rule` directcopy has no eigenvalues: leave `offset` at 0 and `epsilon_form` at code, "
                f"got {self.offset} and {self.epsilon_form}."
            )
        if self.rule != "directcopy" and self.copy_norm != "spectral":
            raise UserError(f"`copy_norm` needs `rule` directcopy, got {self.rule}. Set it, or leave it at spectral.")


_IMAGENET = {
    "architecture": "resnet50",
    "image_size": 224,
    "view_recipe": "byol",
    "rho": 0.3,
    "epsilon": 0.1,
    "ema_momentum": 0.99,
    "ema_schedule": "cosine",
    "batch_size": 4096,
    "num_epochs": 300,
    "optimizer": "lars",
    "base_learning_rate": 0.3,
    "learning_rate_scaling": "linear",
    "weight_decay": 1e-6,
    "optimizer_momentum": 0.9,
    "lars_trust_coefficient": 0.001,
    "decay_norm_and_bias": False,
    "lr_schedule": "cosine",
    "warmup_epochs": 10,
}
# Of its 60-epoch runs the paper says: SGD, 256 images a step, the loss of one direction. The rest is UNVERIFIED: rate
# and decay are those of SimSiam, the target that of BYOL's short runs.
_IMAGENET_60 = {
    "architecture": "resnet50",
    "image_size": 224,
    "view_recipe": "byol",
    "symmetric": False,
    "rho": 0.3,
    "epsilon": 0.1,
    "ema_momentum": 0.99,
    "ema_schedule": "cosine",
    "batch_size": 256,
    "num_epochs": 60,
    "optimizer": "sgd",
    "base_learning_rate": 0.05,
    "learning_rate_scaling": "linear",
    "weight_decay": 1e-4,
    "optimizer_momentum": 0.9,
    "decay_norm_and_bias": True,
    "lr_schedule": "cosine",
    "warmup_epochs": 0,
}
_LUCKMATTERS = {
    "projector_hidden_dim": 512,
    "projection_dim": 128,
    "projector_affine": False,
    "projector_bias": True,
    "rho": 0.3,
    "epsilon": 0.1,
    "ema_momentum": 0.996,
    "target_init": "independent",
    "batch_size": 128,
    "num_epochs": 100,
    "optimizer": "sgd",
    "base_learning_rate": 0.06,
    "learning_rate_scaling": "linear",
    "weight_decay": 4e-4,
    "optimizer_momentum": 0.9,
    "decay_norm_and_bias": True,
    "lr_schedule": "constant",
    "warmup_epochs": 0,
}
_CIFAR = {
    **_LUCKMATTERS,
    "architecture": "resnet18_cifar",
    "image_size": 32,
    "image_mean": (0.4914, 0.4822, 0.4465),
    "image_std": (0.2023, 0.1994, 0.2010),
    "view_recipe": "directpred_cifar",
}
_STL10 = {
    **_LUCKMATTERS,
    "architecture": "resnet18",
    "image_size": 96,
    "image_mean": (0.0, 0.0, 0.0),
    "image_std": (1.0, 1.0, 1.0),
    "view_recipe": "directpred_stl",
}
# Never set, the predictor is the one that gradients train: the baseline of the paper's tables 8 and 9.
_LINEAR = {"freq": 0}


_PAPER_OF_DIRECTSET = Paper(
    title="Towards Demystifying Representation Learning with Non-contrastive Self-supervision",
    authors="Wang, Xiang and Chen, Xinlei and Du, Simon S. and Tian, Yuandong",
    arxiv="2110.04947",
    year=2021,
)


class DirectPredForPreTraining(SSLPreTrainedModel):
    """BYOL's linear predictor is computed from the correlation of the projections instead of being learned.

    Use it when: you want BYOL with a predictor that needs no learning rate of its own, mainly for small images, or
    want to study why training without negatives does not collapse.

    Relations: BYOL with `predictor` linear is the baseline whose training dynamics DirectPred makes a short cut to;
    `rule` directcopy does without the eigendecomposition.

    The correlation follows every micro-batch, as a queue does: with gradient accumulation, `rho` acts more often.
    BatchNorm takes the statistics of each process's own images, so several processes are not equal to one with the
    whole batch; with `--batch_norm sync` they are.

    Recipes: `cifar` and `stl10` are the authors' code (facebookresearch/luckmatters, ssl/real-dataset) with rho 0.3
    and epsilon 0.1 of the paper's table 8 (the README's command has 0.01), learning rate 0.03 with 128 images, 100
    epochs of the table's 100, 300 and 500; on STL-10 the authors train on labelled and unlabelled images together.
    `paper-imagenet` is the paper's 300-epoch run, which takes over BYOL's settings at that length, on 8 GPUs, and
    `paper-imagenet-60` that of 60 epochs. Of these two there is no code: rho and epsilon, those of table 8 here, and
    what `paper-imagenet-60` has beyond SGD, 256 images a step and the loss of one direction, were not found. `-freq5`
    sets the predictor at every fifth step, and `-linear` is the baseline, whose linear predictor gradients train.
    `quickstart` trains a small encoder in minutes on a CPU; its values were tuned on the embedded shapes. Deviations:
    timm starts the last BatchNorm of each residual block at zero, torchvision (and the authors) at one;
    `--model_args '{"zero_init_last": false}'` does so here. The authors' code also trains on the last, smaller batch
    of an epoch (CIFAR-10: 391 steps of 128 images); here every step has the same number of images, so that runs go on
    with another number of processes, and an epoch has 390.
    """

    config_class = DirectPredConfig
    config: DirectPredConfig
    paper = Paper(
        title="Understanding self-supervised Learning Dynamics without Contrastive Pairs",
        authors="Tian, Yuandong and Chen, Xinlei and Ganguli, Surya",
        arxiv="2102.06810",
        year=2021,
    )
    recipes = {
        "paper-imagenet": _IMAGENET,
        "paper-imagenet-linear": _IMAGENET | _LINEAR,
        "paper-imagenet-60": _IMAGENET_60,
        "paper-imagenet-60-linear": _IMAGENET_60 | _LINEAR,
        "cifar": _CIFAR,
        "cifar-freq5": _CIFAR | {"freq": 5},
        "cifar-linear": _CIFAR | _LINEAR,
        "stl10": _STL10,
        "stl10-freq5": _STL10 | {"freq": 5},
        "stl10-linear": _STL10 | _LINEAR,
        "quickstart": {
            "architecture": "test_resnet",
            "image_size": 32,
            "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.25, 0.25, 0.25),
            "view_recipe": "shapes",
            "projector_hidden_dim": 512,
            "projection_dim": 128,
            "projector_affine": False,
            "projector_bias": True,
            "projector_output_norm": True,
            "rho": 0.3,
            "epsilon": 0.1,
            "ema_momentum": 0.9,
            "batch_size": 128,
            "num_epochs": 24,
            "optimizer": "sgd",
            "base_learning_rate": 0.2,
            "learning_rate_scaling": "linear",
            "weight_decay": 4e-4,
            "optimizer_momentum": 0.9,
            "decay_norm_and_bias": True,
            "lr_schedule": "cosine",
            "warmup_epochs": 0,
        },
    }
    view_recipe = "byol"
    batch_norm = "local"
    frozen_modules = ("predictor", "target_encoder", "target_projector")

    correlation: Tensor
    projection_mean: Tensor
    correlation_batches: Tensor
    top_direction: Tensor

    @classmethod
    def described(cls, plain: Description, settings: Mapping[str, Any]) -> Description:
        """By its rule, how often the predictor is set, and the target."""
        whose = {
            "average": "BYOL's",
            "fixed": "With a target that never moves, BYOL's",
            "itself": "Without the moving average, BYOL's",
        }[kind_of_target(settings)]
        freq, rule = settings["freq"], settings["rule"]
        if freq == 0:
            idea = f"{whose} linear predictor is trained by gradients: the baseline of DirectPred, which computes it."
            return replace(plain, name="DirectPred's linear baseline", idea=idea)
        made = {
            "directpred": "computed from the",
            "directset": f"computed from the power {settings['exponent']:g} of the",
            "directcopy": "a copy of the",
        }[rule]
        statistic = "covariance" if settings["remove_mean"] else "correlation"
        often = "instead of being learned"
        if freq > 1:
            often = f"every {freq} optimizer steps, and gradients train it in between"
        return Description(
            {"directpred": "DirectPred", "directset": "DirectSet", "directcopy": "DirectCopy"}[rule]
            + (f" every {freq} steps" if freq > 1 else ""),
            f"{whose} linear predictor is {made} {statistic} of the projections {often}.",
            plain.paper if rule == "directpred" else _PAPER_OF_DIRECTSET,
        )

    def __init__(self, config: DirectPredConfig):
        """Build encoder, heads, target and correlation."""
        super().__init__(config)
        dim = config.projection_dim
        self.projector = self._new_projector()
        self.predictor = nn.Linear(dim, dim, bias=False)
        if config.use_ema and config.target_init == "copy":
            self.target_encoder = copy.deepcopy(self.encoder)
            self.target_projector = copy.deepcopy(self.projector)
        elif config.use_ema:
            self.target_encoder = build_encoder(config.architecture, config.model_args)
            self.target_projector = self._new_projector()
        predictor = ("predictor",) if config.freq == 1 else ()
        self.frozen_modules = predictor + (("target_encoder", "target_projector") if config.use_ema else ())
        self.register_buffer("correlation", torch.zeros(dim, dim))
        self.register_buffer("projection_mean", torch.zeros(dim))
        self.register_buffer("correlation_batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("top_direction", F.normalize(torch.randn(dim), dim=0))
        self.post_init()

    def _new_projector(self) -> nn.Sequential:
        config = self.config
        return mlp(
            self.hidden_size,
            config.projector_hidden_dim,
            config.projection_dim,
            num_layers=config.projector_layers,
            hidden_norm="affine" if config.projector_affine else "plain",
            output_norm="plain" if config.projector_output_norm else "none",
            output_bias=config.projector_bias,
        )

    def forward(self, pixel_values: Tensor, indices: Tensor | None = None, labels: Tensor | None = None) -> SSLOutput:
        """Compute the loss, about 0 at the start and -4 at best (of one direction -2), and update the correlation.

        Without `symmetric`, the second entry of `representations` and `projections` is of the target. The metric
        `correlation_updated` is 0 where a non-finite projection kept the batch out of the correlation, as happens when
        fp16 overflows and the loss scaler skips the step; else 1.

        Args:
            pixel_values: Normalised views, (batch, 2, 3, height, width).
            indices: Not used.
            labels: Not used.
        """
        views = self.split_views(pixel_values)
        symmetric = self.config.symmetric
        h = [self.encode(view) for view in (views if symmetric else views[:1])]
        z = [self.projector(h_i) for h_i in h]
        p = [self.predictor(z_i) for z_i in z]
        if self.config.use_ema or not symmetric:
            target_h, targets = self._targets(views if symmetric else views[1:])
        else:
            target_h, targets = h, [z_i.detach() for z_i in z]
        # Twice each cosine, without the constant of BYOL: the official loss.
        losses = [negative_cosine(p_i, target) for p_i, target in zip(p, reversed(targets), strict=True)]
        loss = 2 * torch.stack(losses).sum()
        metrics = {"correlation_updated": self._update_correlation(torch.cat(z))} if self.training else {}
        if not symmetric:
            h.append(target_h[0].to(h[0].dtype))
            z.append(targets[0].to(z[0].dtype))
        return SSLOutput(
            loss=loss,
            representations=torch.stack(h, dim=1).detach(),
            projections=torch.stack(z, dim=1).detach(),
            metrics=metrics,
        )

    @torch.no_grad()
    def _targets(self, views: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Representations and projections of some views by the target, which without `use_ema` is the network."""
        encoder, projector = self.encode, self.projector
        if self.config.use_ema:
            encoder, projector = self.target_encoder, self.target_projector
        h = [encoder(view) for view in views]
        return h, [projector(h_i) for h_i in h]

    @torch.no_grad()
    def _update_correlation(self, z: Tensor) -> Tensor:
        """Move the correlation towards that of these projections (paper, equation 19); 1.0 if they were finite."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.detach().float()
            moments = mean_over_processes(torch.cat([z.T @ z / len(z), z.mean(dim=0, keepdim=True)]))
            batches = self.correlation_batches
            if self.config.rho is None:
                weight = 1.0 / (batches + 1.0)
            else:
                # The first batch sets the correlation: no start from zero that would need a correction.
                weight = torch.where(batches == 0, 1.0, 1.0 - self.config.rho)
            usable = moments.isfinite().all()
            old = torch.cat([self.correlation, self.projection_mean[None]])
            new = torch.where(usable, old.lerp(moments.to(old.dtype), weight.to(old.dtype)), old)
            self.correlation.copy_(new[:-1])
            self.projection_mean.copy_(new[-1])
            self.correlation_batches.add_(usable)
            if self.config.rule == "directcopy" and self.config.copy_norm == "spectral":
                self._follow_top_direction()
        return usable.float()

    def _follow_top_direction(self) -> None:
        correlation = self._centred_correlation()
        direction = self.top_direction
        for _ in range(_POWER_ITERATIONS):
            product = correlation @ direction
            norm = product.norm()
            direction = torch.where(norm > 0, product / norm, direction)
        self.top_direction.copy_(direction)

    def _centred_correlation(self) -> Tensor:
        if not self.config.remove_mean:
            return self.correlation
        return self.correlation - torch.outer(self.projection_mean, self.projection_mean)

    def after_optimizer_step(self, step: int, num_steps: int) -> None:
        """Set the predictor after steps 1, 1 + freq, 1 + 2 freq, ... (with `freq` 0 never), then move the target.

        Args:
            step: Optimizer steps done so far, at least 1.
            num_steps: Optimizer steps of the whole run.

        Raises:
            UserError: If the correlation is not finite and its eigenvectors are taken.
        """
        config = self.config
        if config.freq and (step - 1) % config.freq == 0:
            self._set_predictor()
        if config.use_ema:
            momentum = config.ema_momentum
            if config.ema_schedule == "cosine":
                # The official code of BYOL counts finished steps from 0.
                momentum = cosine_momentum(momentum, (step - 1) / num_steps)
            update_target(self.target_encoder, self.encoder, momentum)
            update_target(self.target_projector, self.projector, momentum)

    @torch.no_grad()
    def _set_predictor(self) -> None:
        config, correlation = self.config, self._centred_correlation()
        # What `iterated_predictor` does not cover takes the eigenvectors; of a covariance, float32 rounds off more.
        takes_root = config.rule != "directcopy" and config.exponent == 0.5 and not config.offset
        if takes_root and not config.remove_mean and correlation.device.type == _ITERATES_ON:
            weight = iterated_predictor(correlation, config.epsilon, form=config.epsilon_form)
        elif config.rule != "directcopy":
            weight = spectral_predictor(
                correlation, config.exponent, config.epsilon, offset=config.offset, form=config.epsilon_form
            )
        elif config.copy_norm == "spectral":
            norm = self.top_direction @ correlation @ self.top_direction
            weight = copied_predictor(correlation, config.epsilon, norm)
        else:
            weight = copied_predictor(correlation, config.epsilon)
        self.predictor.weight.copy_(weight)
        # Equal input gives equal output on equal hardware; processes on unequal hardware must agree as well.
        broadcast(self.predictor.weight)


def spectral_predictor(
    correlation: Tensor,
    exponent: float,
    epsilon: float,
    *,
    offset: float = 0.0,
    form: Literal["code", "paper"] = "code",
) -> Tensor:
    """Predictor U diag(p) U^T that shares its eigenvectors with the correlation (DirectPred, equation 18).

    With s the eigenvalues, negative ones taken as 0, c the offset and a the exponent, p is max(s - c, 0)^a +
    epsilon max(s) in the form of the paper. The official code takes (s / max(s))^a + epsilon, which does not depend
    on the scale of s; with an offset it replaces s / max(s) by max(s / max(s) - c, 1e-4); and it lifts p to 1e-4.

    Args:
        correlation: Symmetric, (dim, dim).
        exponent: Power a of the eigenvalues, positive.
        epsilon: Floor of the eigenvalues, at least 0.
        offset: Offset c.
        form: `code` or `paper`.

    Returns:
        Symmetric, (dim, dim), float64.

    Raises:
        UserError: If the correlation is not finite.
    """
    # Apple's GPUs have no float64.
    device = "cpu" if correlation.device.type == "mps" else correlation.device
    correlation = correlation.to(device, torch.float64)
    if not correlation.isfinite().all():
        raise UserError(
            "The correlation of the projections is not finite, so no predictor follows from it. Was it loaded from a "
            "run that had diverged? Resume from an earlier checkpoint."
        )
    eigenvalues, eigenvectors = torch.linalg.eigh((correlation + correlation.T) / 2)
    eigenvalues = eigenvalues.clamp(min=0)
    largest = eigenvalues.max()
    if form == "paper":
        spectrum = (eigenvalues - offset).clamp(min=0) ** exponent + epsilon * largest
    else:
        # Collapsed projections have no eigenvalue above zero: the predictor is then a multiple of the identity.
        relative = eigenvalues / largest.clamp(min=torch.finfo(torch.float32).tiny)
        if offset:
            relative = (relative - offset).clamp(min=_FLOOR)
        spectrum = (relative**exponent + epsilon).clamp(min=_FLOOR)
    return (eigenvectors * spectrum) @ eigenvectors.T


def iterated_predictor(correlation: Tensor, epsilon: float, *, form: Literal["code", "paper"] = "code") -> Tensor:
    """`spectral_predictor` of exponent 0.5 by matrix products alone, which a GPU does without anybody waiting for it.

    Newton-Schulz iterations for the square root, their coefficients scaled to the smallest eigenvalue (Chen and Chow,
    2014). Eigenvalues below 1e-6 of the largest count as that, so those of the square root are off by up to 1.1e-3 of
    the largest. On a CPU, eigenvectors are faster.

    Args:
        correlation: Symmetric, positive semi-definite up to the rounding of float32, (dim, dim).
        epsilon: Floor of the eigenvalues, at least 0.
        form: `code` or `paper`.

    Returns:
        Symmetric, (dim, dim), float64; not finite where the correlation is not.
    """
    correlation = correlation.double()
    correlation = (correlation + correlation.T) / 2
    largest = _largest_eigenvalue(correlation)
    identity = torch.eye(len(correlation), dtype=correlation.dtype, device=correlation.device)
    # The estimate is from below; the iterations need eigenvalues of at most 1.
    bound = (1.001 * largest).clamp(min=torch.finfo(torch.float32).tiny)
    # The iterates tend to the root and to its inverse.
    root, inverse = correlation / bound + _SHIFT * identity, identity
    smallest = math.sqrt(_SHIFT / 2)  # of the root, relative to where it is to be
    while smallest < 1 - 1e-7:
        scale = math.sqrt(3 / (1 + smallest + smallest**2))
        factor = torch.addmm(1.5 * scale * identity, inverse, root, alpha=-0.5 * scale**3)
        root, inverse = root @ factor, factor @ inverse
        smallest = 0.5 * scale * smallest * (3 - (scale * smallest) ** 2)
    if form == "paper":
        return bound.sqrt() * root + epsilon * largest * identity
    return math.sqrt(1.001) * root + epsilon * identity


def _largest_eigenvalue(matrix: Tensor) -> Tensor:
    """Largest eigenvalue of a positive semi-definite matrix from below, within 1e-3 of itself up to dim 2048.

    The Rayleigh quotient of the columns of matrix^4096: as after 4096 power iterations from every direction at once.
    """
    tiny = torch.finfo(matrix.dtype).tiny
    power = matrix
    for _ in range(3):
        power = power / power.norm().clamp(min=tiny)
        for _ in range(4):
            power = power @ power
    return (power * (power @ matrix)).sum() / power.square().sum().clamp(min=tiny)


def copied_predictor(correlation: Tensor, epsilon: float, norm: Tensor | None = None) -> Tensor:
    """Predictor F / norm + epsilon I of DirectCopy (Wang et al., 2021).

    Args:
        correlation: F, (dim, dim).
        epsilon: Added to the diagonal, at least 0.
        norm: Scalar that F is divided by; None leaves F as it is, as in the official code.

    Returns:
        (dim, dim).
    """
    if norm is not None:
        correlation = correlation / norm.clamp(min=torch.finfo(correlation.dtype).tiny)
    return correlation + epsilon * torch.eye(len(correlation), dtype=correlation.dtype, device=correlation.device)
