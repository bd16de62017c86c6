"""Contrast within the batch with gradient on both sides: SimCLR (Chen et al., 2020, https://arxiv.org/abs/2002.05709).

The mechanism is the end-to-end dictionary of He et al., 2019 (arXiv 1911.05722, figure 2a).
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from torch.nn import functional as F

from hf_ssl.distributed import gather_with_gradient, rank
from hf_ssl.errors import UserError
from hf_ssl.methods.base import Paper, SSLConfig, SSLOutput, SSLPreTrainedModel
from hf_ssl.modules.description import MOCO_PAPER, Description
from hf_ssl.modules.heads import mlp
from hf_ssl.modules.losses import cross_view_info_nce, nt_xent


@strict
class EndToEndConfig(SSLConfig):
    """Settings of the end-to-end contrast; the defaults are SimCLR's on a ResNet-50 (paper, section 2.3).

    Args:
        projector_layers: Linear layers of the projector: 2 in the paper, 3 in the official code, 1 for a matrix.
        projector_hidden_dim: Width of the projector's hidden layers, at least 1; as wide as the representation if not
            given.
        projection_dim: Width of projections, at least 1.
        temperature: Softmax temperature, positive.
        symmetric: Let the vectors of both views pick their partner among all others, of both views (SimCLR). Without,
            the first view is the query and the second views of the batch are the keys.
        join_views: Give both views to the network as one batch, so that they share BatchNorm's statistics.
        separate_keys: Give the second view to a network of its own, which starts as a copy and is trained by gradient
            as well (MoCo's paper, figure 2a); not with `join_views`. The encoder that is kept is that of the first.
        projector_norm: BatchNorm within the projector and after it, as in SimCLR (`batch`), or none, as in MoCo.
    """

    model_type = "hf_ssl_end_to_end"

    projector_layers: Literal[1, 2, 3] = 2
    projector_hidden_dim: int | None = None
    projection_dim: int = 128
    temperature: float = 0.1
    symmetric: bool = True
    join_views: bool = True
    separate_keys: bool = False
    projector_norm: Literal["batch", "none"] = "batch"

    def validate_end_to_end(self) -> None:
        """Check the settings of the end-to-end contrast once, when the config is made."""
        for name in ("projector_hidden_dim", "projection_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"`{name}` must be at least 1, got {value}.")
        if not self.temperature > 0:
            raise UserError(f"`temperature` must be positive, got {self.temperature}.")
        if self.separate_keys and self.join_views:
            raise UserError(
                "`separate_keys` and `join_views` exclude each other: two networks cannot take both views as one "
                "batch. Set one of them to false."
            )


class EndToEndForPreTraining(SSLPreTrainedModel):
    """Two views of an image must find each other among the other images of the batch; no second network, no memory.

    Use it when: batches can be large (512 images or more): the other images of the batch are the negatives, so small
    batches learn less. For these take `moco`.

    Relations: MoCo takes its negatives from a queue of keys that a moving average made, where here the batch is the
    dictionary and gradient reaches the keys. `symmetric` off is mechanism (a) of MoCo's paper, with one network for
    queries and keys, or two with `separate_keys`. DirectCLR compares across views alone, and has no projector;
    Contrastive Clustering adds the same loss over clusters.

    Recipes: `paper-imagenet` is the paper's default on 8 GPUs, `cifar` the official code's CIFAR-10 example
    (google-research/simclr), whose projector has a layer more. Deviations: the loss is the mean over both views, as in
    the paper; the official code adds the views up, twice as much, which LARS takes off the weights again, but there
    norms and biases learn at twice the rate and the decay counts half. LARS multiplies by the learning rate after the
    momentum, not before. `paper-imagenet` normalises images, so that its encoder takes what others take; the official
    code (data_util.py) leaves them in [0, 1], as `cifar` does. `quickstart` trains a small encoder in minutes on a
    CPU, with values of its own.
    """

    config_class = EndToEndConfig
    config: EndToEndConfig
    paper = Paper(
        title="A Simple Framework for Contrastive Learning of Visual Representations",
        authors="Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey",
        arxiv="2002.05709",
        year=2020,
    )
    recipes = {
        "paper-imagenet": {
            "architecture": "resnet50",
            "image_size": 224,
            "view_recipe": "simclr",
            "projector_layers": 2,
            "temperature": 0.1,
            "batch_size": 4096,
            "num_epochs": 100,
            "optimizer": "lars",
            "base_learning_rate": 0.3,
            "learning_rate_scaling": "linear",
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
            "image_mean": (0.0, 0.0, 0.0),
            "image_std": (1.0, 1.0, 1.0),
            "view_recipe": "simclr_cifar",
            "projector_layers": 3,
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
    view_recipe = "simclr"
    batch_norm = "sync"
    least_images = 2

    @classmethod
    def described(cls, plain: Description, settings: Mapping[str, Any]) -> Description:
        """SimCLR, or what MoCo's paper compares itself with."""
        separate = settings["separate_keys"]
        if settings["symmetric"] and not separate:
            return replace(plain, name="SimCLR")
        find = "Two views of an image must find each other among the other images of the batch"
        if not settings["symmetric"]:
            find = "A view of an image must find the other view among those of the other images of the batch"
        network = "a second network for the other view learns by gradient as well" if separate else "no second network"
        return replace(plain, name="End-to-end contrast", idea=f"{find}; {network}, no memory.", paper=MOCO_PAPER)

    def __init__(self, config: EndToEndConfig):
        """Build encoder and projector."""
        super().__init__(config)
        # Layers in front of a BatchNorm have no bias, and the last BatchNorm scales without shifting, as in the
        # official code.
        normed = config.projector_norm == "batch"
        self.projector = mlp(
            self.hidden_size,
            config.projector_hidden_dim or self.hidden_size,
            config.projection_dim,
            num_layers=config.projector_layers,
            hidden_norm="affine" if normed else "none",
            output_norm="scale" if normed else "none",
            hidden_bias=not normed,
            output_bias=not normed,
        )
        if config.separate_keys:
            self.key_encoder = copy.deepcopy(self.encoder)
            self.key_projector = copy.deepcopy(self.projector)
        self.post_init()

    def forward(self, pixel_values: Tensor, indices: Tensor | None = None, labels: Tensor | None = None) -> SSLOutput:
        """Compute the loss: at the start about log(2 N - 1) for N images of all processes, log(N) if not symmetric.

        Args:
            pixel_values: Normalised views, (batch, 2, 3, height, width).
            indices: Not used.
            labels: Not used.
        """
        views = self.split_views(pixel_values)
        if self.config.join_views:
            h = list(self.encode(torch.cat(views)).chunk(2))
            z = list(self.projector(torch.cat(h)).chunk(2))
        elif self.config.separate_keys:
            h = [self.encode(views[0]), self.key_encoder(views[1])]
            z = [self.projector(h[0]), self.key_projector(h[1])]
        else:
            h = [self.encode(view) for view in views]
            z = [self.projector(h_i) for h_i in h]
        first, second = (F.normalize(z_i.float(), dim=1) for z_i in z)
        start = rank() * len(pixel_values)
        keys = gather_with_gradient(second)
        if self.config.symmetric:
            own = slice(start, start + len(pixel_values))
            loss, accuracy = nt_xent(gather_with_gradient(first), keys, self.config.temperature, own)
        else:
            loss, accuracy = cross_view_info_nce(first, keys, self.config.temperature, start)
        return SSLOutput(
            loss=loss,
            representations=torch.stack(h, dim=1).detach(),
            projections=torch.stack(z, dim=1).detach(),
            metrics={"contrast_accuracy": accuracy},
        )
