"""DirectCLR (Jing, Vincent, LeCun and Tian, 2021, https://arxiv.org/abs/2110.09348)."""

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from torch.nn import functional as F

from hf_ssl.distributed import gather_with_gradient, rank
from hf_ssl.errors import UserError
from hf_ssl.methods.base import Paper, SSLConfig, SSLOutput, SSLPreTrainedModel
from hf_ssl.modules.losses import cross_view_info_nce


@strict
class DirectCLRConfig(SSLConfig):
    """Settings of DirectCLR; the defaults are those of the paper's ResNet-50 (section 6).

    Args:
        subvector_dim: Leading entries of the representation that the loss sees, at least 1 and at most its width.
        temperature: Softmax temperature, positive.
    """

    model_type = "hf_ssl_directclr"

    subvector_dim: int = 360
    temperature: float = 0.1

    def validate_directclr(self) -> None:
        """Check the settings of DirectCLR once, when the config is made."""
        if self.subvector_dim < 1:
            raise UserError(f"`subvector_dim` must be at least 1, got {self.subvector_dim}.")
        if not self.temperature > 0:
            raise UserError(f"`temperature` must be positive, got {self.temperature}.")


class DirectCLRForPreTraining(SSLPreTrainedModel):
    """Contrast the first entries of the representation directly, without a projector; the rest learns by residuals.

    Use it when: you want to do without a projector, or to study dimensional collapse. On ImageNet `end_to_end` with
    its nonlinear projector is more accurate.

    Relations: the end-to-end contrast without a projector and without negatives of the same view. The sub-vector does
    what a low-rank diagonal projector would: it collapses in part, and spares the rest of the representation.

    Recipes: `paper-imagenet` is the official code (facebookresearch/directclr) on 8 GPUs. Deviations: the
    learning rate falls to zero, not to a thousandth of its start; there is no online linear classifier, which the
    official code trains beside the encoder on its detached output. `cifar` has no official reference: it is SimCLR's
    CIFAR-10 example with a sub-vector of a quarter of the representation, on normalised images. `quickstart` trains a
    small encoder in minutes on a CPU, with values of its own.
    """

    config_class = DirectCLRConfig
    config: DirectCLRConfig
    paper = Paper(
        title="Understanding Dimensional Collapse in Contrastive Self-supervised Learning",
        authors="Jing, Li and Vincent, Pascal and LeCun, Yann and Tian, Yuandong",
        arxiv="2110.09348",
        year=2021,
    )
    recipes = {
        "paper-imagenet": {
            "architecture": "resnet50",
            "image_size": 224,
            "view_recipe": "directclr",
            "subvector_dim": 360,
            "temperature": 0.1,
            "batch_size": 4096,
            "num_epochs": 100,
            "optimizer": "lars",
            "base_learning_rate": 4.8,
            "learning_rate_scaling": "none",
            "weight_decay": 1e-6,
            "optimizer_momentum": 0.9,
            "lars_trust_coefficient": 0.001,
            "decay_norm_and_bias": False,
            "lr_schedule": "cosine",
            "warmup_epochs": 10,
        },
        "cifar": {
            "architecture": "resnet18_cifar",
            "image_size": 32,
            "image_mean": (0.4914, 0.4822, 0.4465),
            "image_std": (0.2470, 0.2435, 0.2616),
            "view_recipe": "simclr_cifar",
            "subvector_dim": 128,
            "temperature": 0.5,
            "batch_size": 512,
            "num_epochs": 1000,
            "optimizer": "lars",
            "base_learning_rate": 1.0,
            "learning_rate_scaling": "linear",
            "weight_decay": 1e-6,
            "optimizer_momentum": 0.9,
            "lars_trust_coefficient": 0.001,
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
            "subvector_dim": 48,
            "temperature": 0.2,
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
    view_recipe = "directclr"
    batch_norm = "sync"
    least_images = 2

    def __init__(self, config: DirectCLRConfig):
        """Build the encoder, which is all.

        Raises:
            UserError: If the sub-vector is longer than the representation.
        """
        super().__init__(config)
        if config.subvector_dim > self.hidden_size:
            raise UserError(
                f"`subvector_dim` {config.subvector_dim} is more than the {self.hidden_size} entries that "
                f"`{config.architecture}` gives. Lower it; the paper takes 360 of 2048."
            )
        self.post_init()

    def forward(self, pixel_values: Tensor, indices: Tensor | None = None, labels: Tensor | None = None) -> SSLOutput:
        """Compute the mean of both directions: about log(N) at the start, for N images of all processes.

        `projections` are the sub-vectors.

        Args:
            pixel_values: Normalised views, (batch, 2, 3, height, width).
            indices: Not used.
            labels: Not used.
        """
        h = [self.encode(view) for view in self.split_views(pixel_values)]
        z = [h_i[:, : self.config.subvector_dim] for h_i in h]
        first, second = (F.normalize(z_i.float(), dim=1) for z_i in z)
        start = rank() * len(pixel_values)
        losses: list[Tensor] = []
        accuracies: list[Tensor] = []
        for query, keys in ((first, gather_with_gradient(second)), (second, gather_with_gradient(first))):
            loss, accuracy = cross_view_info_nce(query, keys, self.config.temperature, start)
            losses.append(loss)
            accuracies.append(accuracy)
        return SSLOutput(
            loss=torch.stack(losses).mean(),
            representations=torch.stack(h, dim=1).detach(),
            projections=torch.stack(z, dim=1).detach(),
            metrics={"contrast_accuracy": torch.stack(accuracies).mean()},
        )
