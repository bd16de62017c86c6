"""MoCo v3 (Chen et al., 2021, https://arxiv.org/abs/2104.02057)."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from hf_ssl.distributed import gather, rank
from hf_ssl.errors import UserError
from hf_ssl.methods.base import Paper, SSLConfig, SSLOutput, SSLPreTrainedModel
from hf_ssl.modules.description import Description, maker_of_keys
from hf_ssl.modules.heads import mlp
from hf_ssl.modules.losses import cross_view_info_nce
from hf_ssl.modules.momentum import cosine_momentum, update_target


@strict
class MoCoV3Config(SSLConfig):
    """Settings of MoCo v3; the defaults are those of the official code for a ResNet-50.

    Args:
        projector_layers: Linear layers of the projector, at least 1: 2 for a ResNet, 3 for a ViT.
        projector_hidden_dim: Width of the projector's hidden layers, at least 1.
        projection_dim: Width of queries and keys, at least 1.
        projector_output_norm: BatchNorm without scale and shift at the projector's output.
        predictor_layers: Linear layers of the predictor, at least 1.
        predictor_hidden_dim: Width of the predictor's hidden layers, at least 1.
        predictor_output_norm: BatchNorm without scale and shift at the predictor's output, as the official ViTs have.
        temperature: Softmax temperature, positive: 1.0 for a ResNet, 0.2 for a ViT.
        ema_momentum: Fraction of the target that an update keeps, in [0, 1]; 0.996 in runs of 1000 epochs.
        ema_schedule: `cosine` raises `ema_momentum` to 1 during the run, `constant` keeps it.
        freeze_patch_embed: Keep the random projection of patches that a ViT starts from, drawn as in the official
            code (paper, section 4); for encoders with a patch embedding.
        sincos_position_embedding: Replace a ViT's learned position embedding by fixed sines and cosines.
    """

    model_type = "hf_ssl_moco_v3"

    projector_layers: int = 2
    projector_hidden_dim: int = 4096
    projection_dim: int = 256
    projector_output_norm: bool = True
    predictor_layers: int = 2
    predictor_hidden_dim: int = 4096
    predictor_output_norm: bool = False
    temperature: float = 1.0
    ema_momentum: float = 0.99
    ema_schedule: Literal["cosine", "constant"] = "cosine"
    freeze_patch_embed: bool = False
    sincos_position_embedding: bool = False

    def validate_moco_v3(self) -> None:
        """Check the settings of MoCo v3 once, when the config is made."""
        widths = ("projector_hidden_dim", "projection_dim", "predictor_hidden_dim")
        for name in ("projector_layers", "predictor_layers", *widths):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not self.temperature > 0:
            raise UserError(f"`temperature` must be positive, got {self.temperature}.")
        if not 0 <= self.ema_momentum <= 1:
            raise UserError(f"`ema_momentum` must be in [0, 1], got {self.ema_momentum}.")


class MoCoV3ForPreTraining(SSLPreTrainedModel):
    """A predicted query must find the key of its image, made by a moving average of the network, within the batch.

    Use it when: the encoder is a vision transformer, or batches of a thousand images and more are possible: it has no
    queue, so its negatives come from the batch.

    Relations: MoCo without the queue, so that batches are large, and with BYOL's predictor; BYOL with negatives.
    Statistics of BatchNorm are those of all processes, where MoCo shuffles keys.

    Recipes: `paper-imagenet` is the 100-epoch ResNet-50 of the official code (facebookresearch/moco-v3) on 8
    GPUs, `paper-imagenet-vit` its ViT-Small, which has 12 heads where timm's has 6. `cifar` has no official
    values: it is the benchmark of vturrisi/solo-learn, 1000 epochs. Deviation: solo-learn's LARS caps the rate of each
    weight at the learning rate, which makes it SGD where the cap holds; here it is SGD throughout. `quickstart` and
    `quickstart-vit` train a small encoder in minutes on a CPU, with values of their own.
    """

    config_class = MoCoV3Config
    config: MoCoV3Config
    paper = Paper(
        title="An Empirical Study of Training Self-Supervised Vision Transformers",
        authors="Chen, Xinlei and Xie, Saining and He, Kaiming",
        arxiv="2104.02057",
        year=2021,
    )
    recipes = {
        "paper-imagenet": {
            "architecture": "resnet50",
            "image_size": 224,
            "view_recipe": "moco_v3",
            "ema_momentum": 0.99,
            "batch_size": 4096,
            "num_epochs": 100,
            "optimizer": "lars",
            "base_learning_rate": 0.6,
            "learning_rate_scaling": "linear",
            "weight_decay": 1e-6,
            "optimizer_momentum": 0.9,
            "lars_trust_coefficient": 0.001,
            "decay_norm_and_bias": False,
            "lr_schedule": "cosine",
            "warmup_epochs": 10,
        },
        "paper-imagenet-vit": {
            "architecture": "vit_small_patch16_224",
            "model_args": {"num_heads": 12, "weight_init": "moco"},
            "image_size": 224,
            "view_recipe": "moco_v3_vit",
            "projector_layers": 3,
            "predictor_output_norm": True,
            "temperature": 0.2,
            "ema_momentum": 0.99,
            "freeze_patch_embed": True,
            "sincos_position_embedding": True,
            "batch_size": 4096,
            "num_epochs": 300,
            "optimizer": "adamw",
            "base_learning_rate": 1.5e-4,
            "learning_rate_scaling": "linear",
            "weight_decay": 0.1,
            "decay_norm_and_bias": True,
            "lr_schedule": "cosine",
            "warmup_epochs": 40,
        },
        "cifar": {
            "architecture": "resnet18_cifar",
            "image_size": 32,
            "image_mean": (0.4914, 0.4822, 0.4465),
            "image_std": (0.2470, 0.2435, 0.2616),
            "view_recipe": "moco_v3_cifar",
            "temperature": 0.2,
            "ema_momentum": 0.99,
            "batch_size": 256,
            "num_epochs": 1000,
            "optimizer": "sgd",
            "base_learning_rate": 0.3,
            "learning_rate_scaling": "linear",
            "weight_decay": 1e-6,
            "optimizer_momentum": 0.9,
            "decay_norm_and_bias": False,
            "lr_schedule": "cosine",
            "warmup_epochs": 10,
        },
        "quickstart": {
            "architecture": "test_resnet",
            "image_size": 32,
            "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.25, 0.25, 0.25),
            "view_recipe": "shapes",
            "projector_hidden_dim": 512,
            "projection_dim": 128,
            "predictor_hidden_dim": 512,
            "temperature": 0.2,
            "ema_momentum": 0.9,
            "ema_schedule": "constant",
            "batch_size": 128,
            "num_epochs": 24,
            "optimizer": "sgd",
            "base_learning_rate": 0.4,
            "learning_rate_scaling": "linear",
            "weight_decay": 4e-4,
            "optimizer_momentum": 0.9,
            "decay_norm_and_bias": True,
            "lr_schedule": "cosine",
            "warmup_epochs": 0,
        },
        "quickstart-vit": {
            "architecture": "test_vit",
            "model_args": {"img_size": 32, "patch_size": 8},
            "image_size": 32,
            "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.25, 0.25, 0.25),
            "view_recipe": "shapes",
            "projector_layers": 3,
            "projector_hidden_dim": 512,
            "projection_dim": 128,
            "predictor_hidden_dim": 512,
            "predictor_output_norm": True,
            "temperature": 0.2,
            "ema_momentum": 0.9,
            "ema_schedule": "constant",
            "freeze_patch_embed": True,
            "sincos_position_embedding": True,
            "batch_size": 128,
            "num_epochs": 24,
            "optimizer": "adamw",
            "base_learning_rate": 1e-3,
            "learning_rate_scaling": "none",
            "weight_decay": 0.1,
            "decay_norm_and_bias": True,
            "lr_schedule": "cosine",
            "warmup_epochs": 2,
        },
    }
    view_recipe = "moco_v3"
    batch_norm = "sync"
    least_images = 2
    frozen_modules = ("target_encoder", "target_projector")

    @classmethod
    def described(cls, plain: Description, settings: Mapping[str, Any]) -> Description:
        """As the paper writes its name; the target may be no moving average."""
        maker = maker_of_keys(settings)
        idea = f"A predicted query must find the key of its image, {maker}, within the batch."
        return replace(plain, name="MoCo v3", idea=idea)

    def __init__(self, config: MoCoV3Config):
        """Build encoder, heads and target.

        Raises:
            UserError: If the encoder has no patch embedding to freeze, or no position embedding to replace.
        """
        super().__init__(config)
        if config.freeze_patch_embed:
            _draw_patch_embed(self.encoder, config.architecture)
            self.frozen_modules = ("encoder.patch_embed.proj", *self.frozen_modules)
        if config.sincos_position_embedding:
            _set_position_embedding(self.encoder, config.architecture)
            self.frozen_parameters = ("encoder.pos_embed",)
        self.projector = mlp(
            self.hidden_size,
            config.projector_hidden_dim,
            config.projection_dim,
            num_layers=config.projector_layers,
            output_norm="plain" if config.projector_output_norm else "none",
            hidden_bias=False,
            output_bias=False,
        )
        self.predictor = mlp(
            config.projection_dim,
            config.predictor_hidden_dim,
            config.projection_dim,
            num_layers=config.predictor_layers,
            output_norm="plain" if config.predictor_output_norm else "none",
            hidden_bias=False,
            output_bias=False,
        )
        self.target_encoder = copy.deepcopy(self.encoder)
        self.target_projector = copy.deepcopy(self.projector)
        self.post_init()

    def forward(self, pixel_values: Tensor, indices: Tensor | None = None, labels: Tensor | None = None) -> SSLOutput:
        """Compute the loss of both directions, added up: about 4 T log(images of all processes) at the start.

        Args:
            pixel_values: Normalised views, (batch, 2, 3, height, width).
            indices: Not used.
            labels: Not used.
        """
        views = self.split_views(pixel_values)
        h = [self.encode(view) for view in views]
        z = [self.projector(h_i) for h_i in h]
        p = [self.predictor(z_i) for z_i in z]
        with torch.no_grad():
            keys = [self.target_projector(self.target_encoder(view)) for view in views]
        loss, accuracy = self._contrast(p[0], keys[1])
        other_loss, other_accuracy = self._contrast(p[1], keys[0])
        return SSLOutput(
            loss=loss + other_loss,
            representations=torch.stack(h, dim=1).detach(),
            projections=torch.stack(z, dim=1).detach(),
            metrics={"contrast_accuracy": (accuracy + other_accuracy) / 2},
        )

    def _contrast(self, prediction: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """2 T times the cross-entropy of picking the own key among those of all processes (paper, algorithm 1).

        The factor makes the size of the gradient depend less on the temperature T.

        Args:
            prediction: Queries before normalisation, (batch, dim).
            key: Keys before normalisation, (batch, dim), without gradient.

        Returns:
            The loss, and how often the own key scores above all others; two scalars.
        """
        temperature = self.config.temperature
        query = F.normalize(prediction.float(), dim=1)
        keys = gather(F.normalize(key.float(), dim=1))
        loss, accuracy = cross_view_info_nce(query, keys, temperature, rank() * len(query))
        return 2 * temperature * loss, accuracy

    def after_optimizer_step(self, step: int, num_steps: int) -> None:
        """Move the target.

        The official code does so in the next step, between its queries and its keys, by the same weights and with the
        momentum of the same fraction of the run, `step` / `num_steps`; its update in the very first step averages a
        copy with itself. Every key is thus made by the same target. The update after the last step, which the
        official code does not have, keeps all of the target under `cosine`; under `constant` a saved target is one
        update ahead.

        Args:
            step: Optimizer steps done so far, at least 1.
            num_steps: Optimizer steps of the whole run.
        """
        momentum = self.config.ema_momentum
        if self.config.ema_schedule == "cosine":
            momentum = cosine_momentum(momentum, step / num_steps)
        update_target(self.target_encoder, self.encoder, momentum)
        update_target(self.target_projector, self.projector, momentum)


@torch.no_grad()
def _draw_patch_embed(encoder: nn.Module, architecture: str) -> None:
    """Draw the projection of patches, uniform after Glorot as the matrix that it is, with biases of zero."""
    patch_embed = getattr(encoder, "patch_embed", None)
    if not isinstance(patch_embed, PatchEmbed):
        raise UserError(
            "`freeze_patch_embed` needs an encoder with a patch embedding, such as vit_small_patch16_224, got "
            f"{architecture}."
        )
    nn.init.xavier_uniform_(patch_embed.proj.weight.flatten(1))
    if patch_embed.proj.bias is not None:
        nn.init.zeros_(patch_embed.proj.bias)


@torch.no_grad()
def _set_position_embedding(encoder: nn.Module, architecture: str) -> None:
    """Replace the position embedding by sin and cos of the row, then of the column, at falling frequencies.

    Of a width of 4 w, each of the four has w frequencies, 10000^(-i/w); the class token has zeros. The class token
    itself starts near zero (standard deviation 1e-6) in timm as in the official code.
    """
    patch_embed, embedding = getattr(encoder, "patch_embed", None), getattr(encoder, "pos_embed", None)
    if not isinstance(patch_embed, PatchEmbed) or not isinstance(embedding, nn.Parameter) or embedding.ndim != 3:
        raise UserError(
            "`sincos_position_embedding` needs an encoder with a learned position embedding, such as "
            f"vit_small_patch16_224, got {architecture}."
        )
    num_tokens, width = embedding.shape[1:]
    if width % 4:
        raise UserError(
            f"`sincos_position_embedding` needs a width that is a multiple of 4, and {architecture} has {width}. "
            "Choose another encoder."
        )
    rows, columns = patch_embed.grid_size
    frequencies = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    row = torch.arange(rows).repeat_interleave(columns)[:, None] * frequencies
    column = torch.arange(columns).repeat(rows)[:, None] * frequencies
    embedding.zero_()
    embedding[0, num_tokens - rows * columns :] = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)
