"""Contrastive Clustering (Li et al., 2020, https://arxiv.org/abs/2009.09687)."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from torch.nn import functional as F

from hf_ssl.distributed import gather_with_gradient, rank
from hf_ssl.errors import UserError
from hf_ssl.methods.base import Paper, SSLConfig, SSLOutput, SSLPreTrainedModel
from hf_ssl.modules.description import Description
from hf_ssl.modules.heads import mlp
from hf_ssl.modules.losses import nt_xent


@strict
class ContrastiveClusteringConfig(SSLConfig):
    """Settings of Contrastive Clustering; the defaults are those of the paper's ResNet-34 (section 4).

    Args:
        architecture: timm name of the encoder.
        image_mean: Mean of each channel, subtracted from images in [0, 1]; the official code subtracts none.
        image_std: Standard deviation of each channel, positive; the official code divides by none.
        num_clusters: Clusters that the images fall into, at least 2; needed to build the model. One forward pass of
            all processes must bring at least as many images, better many more.
        projector_hidden_dim: Width of the hidden layer of both heads, at least 1; as wide as the representation if not
            given.
        projection_dim: Width of the projections that tell instances apart, at least 1.
        temperature: Softmax temperature between instances, positive.
        cluster_temperature: Softmax temperature between clusters, positive.
        entropy_weight: Weight of the term that keeps clusters equally large, 0 or more.
    """

    model_type = "hf_ssl_contrastive_clustering"

    architecture: str = "resnet34"
    image_mean: list[float] | tuple[float, ...] = (0.0, 0.0, 0.0)
    image_std: list[float] | tuple[float, ...] = (1.0, 1.0, 1.0)
    num_clusters: int | None = None
    projector_hidden_dim: int | None = None
    projection_dim: int = 128
    temperature: float = 0.5
    cluster_temperature: float = 1.0
    entropy_weight: float = 1.0

    def validate_contrastive_clustering(self) -> None:
        """Check the settings of Contrastive Clustering once, when the config is made."""
        if self.num_clusters is not None and self.num_clusters < 2:
            raise UserError(f"`num_clusters` must be at least 2, got {self.num_clusters}.")
        for name in ("projector_hidden_dim", "projection_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"`{name}` must be at least 1, got {value}.")
        for name in ("temperature", "cluster_temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if not self.entropy_weight >= 0:
            raise UserError(f"`entropy_weight` must be 0 or more, got {self.entropy_weight}.")


class ContrastiveClusteringForPreTraining(SSLPreTrainedModel):
    """Contrast images with each other and clusters with each other: rows and columns of one table of assignments.

    Use it when: you want groups instead of features, and know roughly how many there are (`--num_clusters`). Each
    batch should hold several images of each group.

    Relations: the end-to-end contrast between images, and the same loss once more between the columns of the table
    (image, cluster), which describe a cluster by the images in it. `assign` puts images into clusters; the other
    methods leave that to k-means on their representations.

    Recipes: `paper-imagenet` is the official code (Yunfan-Li/Contrastive-Clustering) for ImageNet-10, on one process;
    `num_clusters` is not part of it (10 there, 15 for ImageNet-Dogs). Its Adam without weight decay is AdamW with a
    decay of zero. Deviations: the official code trains and evaluates on all splits joined, and assigns whole images
    where the exported preprocessing takes the centre of large ones; timm starts the last BatchNorm of each residual
    block at zero, the official code at one (`--model_args '{"zero_init_last": false}'`).
    `cifar` has no official reference: the paper enlarges CIFAR-10 to 224 pixels for a ResNet-34
    (`--encoder resnet34 --image_size 224`), here a ResNet-18 sees 32. `quickstart` trains a small encoder in minutes
    on a CPU, with values of its own.
    """

    config_class = ContrastiveClusteringConfig
    config: ContrastiveClusteringConfig
    paper = Paper(
        title="Contrastive Clustering",
        authors="Li, Yunfan and Hu, Peng and Liu, Zitao and Peng, Dezhong and Zhou, Joey Tianyi and Peng, Xi",
        arxiv="2009.09687",
        year=2020,
    )
    recipes = {
        "paper-imagenet": {
            "architecture": "resnet34",
            "image_size": 224,
            "image_mean": (0.0, 0.0, 0.0),
            "image_std": (1.0, 1.0, 1.0),
            "view_recipe": "simclr",
            "temperature": 0.5,
            "cluster_temperature": 1.0,
            "batch_size": 256,
            "num_epochs": 1000,
            "optimizer": "adamw",
            "base_learning_rate": 3e-4,
            "learning_rate_scaling": "none",
            "weight_decay": 0.0,
            "lr_schedule": "constant",
            "warmup_epochs": 0,
        },
        "cifar": {
            "architecture": "resnet18_cifar",
            "image_size": 32,
            "image_mean": (0.0, 0.0, 0.0),
            "image_std": (1.0, 1.0, 1.0),
            "view_recipe": "simclr_cifar",
            "num_clusters": 10,
            "batch_size": 256,
            "num_epochs": 1000,
            "optimizer": "adamw",
            "base_learning_rate": 3e-4,
            "learning_rate_scaling": "none",
            "weight_decay": 0.0,
            "lr_schedule": "constant",
            "warmup_epochs": 0,
        },
        "quickstart": {
            "architecture": "test_resnet",
            "image_size": 32,
            "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.25, 0.25, 0.25),
            "view_recipe": "shapes",
            "num_clusters": 10,
            "batch_size": 128,
            "num_epochs": 24,
            "optimizer": "adamw",
            "base_learning_rate": 2e-3,
            "learning_rate_scaling": "none",
            "weight_decay": 0.0,
            "lr_schedule": "cosine",
            "warmup_epochs": 0,
        },
    }
    view_recipe = "simclr"
    # The official code trains on one GPU: statistics over all processes keep that with several.
    batch_norm = "sync"
    least_images = 2

    @classmethod
    def described(cls, plain: Description, settings: Mapping[str, Any]) -> Description:
        """Its name in words."""
        return replace(plain, name="Contrastive Clustering")

    def __init__(self, config: ContrastiveClusteringConfig):
        """Build encoder and heads.

        Raises:
            UserError: If the number of clusters is not given.
        """
        super().__init__(config)
        if config.num_clusters is None:
            raise UserError(
                "`num_clusters` is needed: how many clusters the images fall into, such as `--num_clusters 10`."
            )
        width = config.projector_hidden_dim or self.hidden_size
        self.projector = mlp(self.hidden_size, width, config.projection_dim, hidden_norm="none")
        self.cluster_head = mlp(self.hidden_size, width, config.num_clusters, hidden_norm="none")
        self.post_init()

    def forward(self, pixel_values: Tensor, indices: Tensor | None = None, labels: Tensor | None = None) -> SSLOutput:
        """Compute the loss between instances plus that between clusters, with what keeps clusters equally large.

        At the start about log(2 N - 1) + log(2 M - 1) for N images of all processes and M clusters; with the default
        temperature the second part stays near its start.

        Args:
            pixel_values: Normalised views, (batch, 2, 3, height, width).
            indices: Not used.
            labels: Not used.

        Raises:
            UserError: If there are more clusters than images.
        """
        config = self.config
        h = [self.encode(view) for view in self.split_views(pixel_values)]
        z = [self.projector(h_i) for h_i in h]
        rows = [gather_with_gradient(F.normalize(z_i.float(), dim=1)) for z_i in z]
        # The probabilities of all images, (images, clusters): a cluster is a column.
        tables = [gather_with_gradient(self._probabilities(h_i)) for h_i in h]
        num_images, num_clusters = tables[0].shape
        if num_clusters > num_images:
            raise UserError(
                f"`num_clusters` {num_clusters} is more than the {num_images} images of a forward pass (batch size "
                "times processes). Raise the batch size well above it."
            )
        start = rank() * len(pixel_values)
        own = slice(start, start + len(pixel_values))
        instance_loss, accuracy = nt_xent(rows[0], rows[1], config.temperature, own)
        columns = [F.normalize(table.T, dim=1) for table in tables]
        cluster_loss, _ = nt_xent(columns[0], columns[1], config.cluster_temperature)
        entropies = torch.stack([_entropy_of_sizes(table) for table in tables])
        imbalance = (math.log(num_clusters) - entropies).sum()
        return SSLOutput(
            loss=instance_loss + cluster_loss + config.entropy_weight * imbalance,
            representations=torch.stack(h, dim=1).detach(),
            projections=torch.stack(z, dim=1).detach(),
            metrics={
                "contrast_accuracy": accuracy,
                "instance_loss": instance_loss.detach(),
                "cluster_loss": cluster_loss.detach(),
                "cluster_entropy": entropies.detach().mean(),
            },
        )

    @torch.no_grad()
    def assign(self, view: Tensor) -> Tensor:
        """Probability of each cluster; the largest one is where an image belongs.

        Args:
            view: Normalised images, (batch, 3, height, width).

        Returns:
            (batch, clusters), float32, rows sum to 1.

        Raises:
            UserError: If the model is in training mode, where an image's cluster depends on the other images.
        """
        if self.training:
            raise UserError("`assign` needs the model in evaluation mode. Call `model.eval()` first.")
        return self._probabilities(self.encode(view))

    def _probabilities(self, h: Tensor) -> Tensor:
        # In bfloat16, a softmax would round small probabilities of whole columns.
        return self.cluster_head(h).float().softmax(dim=1)


def _entropy_of_sizes(table: Tensor) -> Tensor:
    """Entropy of the clusters' expected sizes in nats (paper, section 3.3): log of their number if all are equal.

    Args:
        table: Probability of each cluster for each image, (images, clusters).
    """
    sizes = table.mean(dim=0)
    # An empty cluster adds nothing; its logarithm must not be infinite.
    return -(sizes * sizes.clamp_min(1e-8).log()).sum()
