"""SimSiam (Chen and He, 2020, https://arxiv.org/abs/2011.10566)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from hf_ssl.errors import UserError
from hf_ssl.methods.base import Paper, SSLConfig, SSLOutput, SSLPreTrainedModel
from hf_ssl.modules.description import Description
from hf_ssl.modules.heads import mlp
from hf_ssl.modules.losses import negative_cosine


@strict
class SimSiamConfig(SSLConfig):
    """Settings of SimSiam; the defaults are those of the paper's ResNet-50 (section 3).

    Args:
        projector_layers: Linear layers of the projector, at least 1; 3 on ImageNet and 2 on CIFAR-10.
        projector_hidden_dim: Width of the projector's hidden layers, at least 1.
        projection_dim: Width of projections and predictions, at least 1.
        predictor_layers: Linear layers of the predictor, at least 1.
        predictor_hidden_dim: Width of the predictor's bottleneck, at least 1.
        constant_predictor_lr: Keep the predictor's learning rate at its start value (paper, section 4.2).
        stop_gradient: Stop the gradient of the projection that is predicted; without, the network collapses.
    """

    model_type = "hf_ssl_simsiam"

    projector_layers: int = 3
    projector_hidden_dim: int = 2048
    projection_dim: int = 2048
    predictor_layers: int = 2
    predictor_hidden_dim: int = 512
    constant_predictor_lr: bool = True
    stop_gradient: bool = True

    def validate_simsiam(self) -> None:
        """Check the settings of SimSiam once, when the config is made."""
        widths = ("projector_hidden_dim", "projection_dim", "predictor_hidden_dim")
        for name in (*widths, "projector_layers", "predictor_layers"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, got {getattr(self, name)}.")


class SimSiamForPreTraining(SSLPreTrainedModel):
    """One network predicts its own projection of another view, which is held constant by a stop-gradient.

    Use it when: memory is scarce or training short: one network, no negatives, no queue, and batches of 64 to 512
    images suffice. Watch the collapse warning on unusual data.

    Relations: BYOL without the moving average, with BatchNorm at the projector's output and a bottleneck in the
    predictor; needs neither negatives (MoCo) nor a second network.

    Recipes: `paper-imagenet` is the official code (facebookresearch/simsiam, main_simsiam.py) on 8 GPUs, `cifar` the
    paper's appendix D, of which there is no code: the width of its bottleneck and its schedule, which were not found,
    are those of ImageNet, and pixels are normalised by CIFAR-10's own mean and deviation. `quickstart` trains a small
    encoder in minutes on a CPU, with values of its own.
    """

    config_class = SimSiamConfig
    config: SimSiamConfig
    paper = Paper(
        title="Exploring Simple Siamese Representation Learning",
        authors="Chen, Xinlei and He, Kaiming",
        arxiv="2011.10566",
        year=2020,
    )
    recipes = {
        "paper-imagenet": {
            "architecture": "resnet50",
            "image_size": 224,
            "view_recipe": "simsiam",
            "batch_size": 512,
            "num_epochs": 100,
            "optimizer": "sgd",
            "base_learning_rate": 0.05,
            "learning_rate_scaling": "linear",
            "weight_decay": 1e-4,
            "optimizer_momentum": 0.9,
            "decay_norm_and_bias": True,
            "lr_schedule": "cosine_by_epoch",
            "warmup_epochs": 0,
        },
        "cifar": {
            "architecture": "resnet18_cifar",
            "image_size": 32,
            "image_mean": (0.4914, 0.4822, 0.4465),
            "image_std": (0.2470, 0.2435, 0.2616),
            "view_recipe": "simsiam_cifar",
            "projector_layers": 2,
            "batch_size": 512,
            "num_epochs": 800,
            "optimizer": "sgd",
            "base_learning_rate": 0.03,
            "learning_rate_scaling": "linear",
            "weight_decay": 5e-4,
            "optimizer_momentum": 0.9,
            "decay_norm_and_bias": True,
            "lr_schedule": "cosine_by_epoch",
            "warmup_epochs": 0,
        },
        "quickstart": {
            "architecture": "test_resnet",
            "image_size": 32,
            "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.25, 0.25, 0.25),
            "view_recipe": "shapes",
            "projector_layers": 2,
            "projector_hidden_dim": 512,
            "projection_dim": 512,
            "predictor_hidden_dim": 128,
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
    }
    view_recipe = "simsiam"
    batch_norm = "sync"

    @classmethod
    def described(cls, plain: Description, settings: Mapping[str, Any]) -> Description:
        """Without the stop-gradient it is what the paper shows to collapse."""
        if settings["stop_gradient"]:
            return plain
        idea = "One network predicts its own projection of another view, through which the gradient flows as well."
        return replace(plain, name="SimSiam without the stop-gradient", idea=idea)

    def __init__(self, config: SimSiamConfig):
        """Build encoder and heads."""
        super().__init__(config)
        # The official last layer has a bias that is frozen and that the BatchNorm behind it takes off again.
        self.projector = mlp(
            self.hidden_size,
            config.projector_hidden_dim,
            config.projection_dim,
            num_layers=config.projector_layers,
            output_norm="plain",
            hidden_bias=False,
            output_bias=False,
        )
        self.predictor = mlp(
            config.projection_dim,
            config.predictor_hidden_dim,
            config.projection_dim,
            num_layers=config.predictor_layers,
            hidden_bias=False,
        )
        if config.constant_predictor_lr:
            self.constant_lr_modules = ("predictor",)
        self.post_init()

    def forward(self, pixel_values: Tensor, indices: Tensor | None = None, labels: Tensor | None = None) -> SSLOutput:
        """Compute the negative cosine similarity, mean of both directions: about 0 at the start, -1 at best.

        Args:
            pixel_values: Normalised views, (batch, 2, 3, height, width).
            indices: Not used.
            labels: Not used.
        """
        h = [self.encode(view) for view in self.split_views(pixel_values)]
        z = [self.projector(h_i) for h_i in h]
        p = [self.predictor(z_i) for z_i in z]
        targets = [z_i.detach() for z_i in z] if self.config.stop_gradient else z
        loss = (negative_cosine(p[0], targets[1]) + negative_cosine(p[1], targets[0])) / 2
        return SSLOutput(
            loss=loss,
            representations=torch.stack(h, dim=1).detach(),
            projections=torch.stack(z, dim=1).detach(),
            metrics={},
        )
