"""MoCo v1 (He et al., 2019, https://arxiv.org/abs/1911.05722) and v2 (Chen et al., 2020, arXiv 2003.04297)."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F

from hf_ssl.distributed import rank
from hf_ssl.errors import UserError
from hf_ssl.methods.base import Paper, SSLConfig, SSLOutput, SSLPreTrainedModel
from hf_ssl.modules.batch_norm import split_batch_norm
from hf_ssl.modules.description import MOCO_PAPER, Description, maker_of_keys
from hf_ssl.modules.heads import mlp
from hf_ssl.modules.losses import info_nce
from hf_ssl.modules.momentum import update_target
from hf_ssl.modules.queue import enqueue, random_queue
from hf_ssl.modules.target_outputs import target_outputs


@strict
class MoCoConfig(SSLConfig):
    """Settings of MoCo; the defaults are those of version 2 on a ResNet-50.

    Args:
        projector: `mlp` with one hidden layer (version 2), `linear` (version 1).
        projector_hidden_dim: Width of the hidden layer of an `mlp` projector, at least 1; as wide as the
            representation if not given.
        projection_dim: Width of queries and keys, at least 1.
        queue_size: Keys in the queue, at least 1; any batch size up to it works.
        temperature: Softmax temperature, positive: 0.2 in version 2, 0.07 in version 1.
        ema_momentum: Fraction of the target that an update keeps, in [0, 1].
        symmetric: Use each view as the query of the other and add up both losses.
        shuffle_keys: Give keys to BatchNorm groups in random order, so that statistics do not betray the positive.
        bn_splits: BatchNorm groups of the batch of all processes, at least 1; each process has its share, at least
            one. The papers trained on 8 GPUs; encoders without BatchNorm are not affected.
    """

    model_type = "hf_ssl_moco"

    projector: Literal["linear", "mlp"] = "mlp"
    projector_hidden_dim: int | None = None
    projection_dim: int = 128
    queue_size: int = 65536
    temperature: float = 0.2
    ema_momentum: float = 0.999
    symmetric: bool = False
    shuffle_keys: bool = True
    bn_splits: int = 8

    def validate_moco(self) -> None:
        """Check the settings of MoCo once, when the config is made."""
        for name in ("projection_dim", "queue_size", "bn_splits"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.projector_hidden_dim is not None and self.projector_hidden_dim < 1:
            raise UserError(f"`projector_hidden_dim` must be at least 1, got {self.projector_hidden_dim}.")
        if not self.temperature > 0:
            raise UserError(f"`temperature` must be positive, got {self.temperature}.")
        if not 0 <= self.ema_momentum <= 1:
            raise UserError(f"`ema_momentum` must be in [0, 1], got {self.ema_momentum}.")


_VERSION_2 = Paper(
    title="Improved Baselines with Momentum Contrastive Learning",
    authors="Chen, Xinlei and Fan, Haoqi and Girshick, Ross and He, Kaiming",
    arxiv="2003.04297",
    year=2020,
)


class MoCoForPreTraining(SSLPreTrainedModel):
    """A query must find the key of its image, made by a moving average of the network, among many past keys.

    Use it when: memory allows only small batches (256 images or fewer): the negatives wait in a queue, so their number
    does not depend on the batch. A safe first choice for a ResNet.

    Relations: BYOL with negatives in place of the predictor. Its batch norm works on small groups and keys are
    shuffled between them, where others synchronise it. Several processes equal one with the whole batch where
    `bn_splits` is a multiple of their number: the groups are the same.

    Recipes: `paper-imagenet` is version 2 and `paper-imagenet-v1` version 1 of the official code
    (facebookresearch/moco, main_moco.py) on 8 GPUs, `cifar` its CIFAR-10 demo (colab/moco_cifar10_demo.ipynb) with the
    symmetric loss. `quickstart` trains a small encoder in minutes on a CPU, with values of its own. Deviations: timm
    starts the last BatchNorm of each residual block at zero, torchvision (and the official code) at one;
    `--model_args '{"zero_init_last": false}'` does so here. The demo counts epochs from 1 for its cosine, so that its
    last epoch has learning rate zero; here all count from 0, as in main_moco.py.
    """

    config_class = MoCoConfig
    config: MoCoConfig
    paper = MOCO_PAPER
    recipes = {
        "paper-imagenet": {
            "architecture": "resnet50",
            "image_size": 224,
            "view_recipe": "moco_v2",
            "projector": "mlp",
            "temperature": 0.2,
            "batch_size": 256,
            "num_epochs": 200,
            "optimizer": "sgd",
            "base_learning_rate": 0.03,
            "learning_rate_scaling": "linear",
            "weight_decay": 1e-4,
            "optimizer_momentum": 0.9,
            "decay_norm_and_bias": True,
            "lr_schedule": "cosine_by_epoch",
            "warmup_epochs": 0,
        },
        "paper-imagenet-v1": {
            "architecture": "resnet50",
            "image_size": 224,
            "view_recipe": "moco_v1",
            "projector": "linear",
            "temperature": 0.07,
            "batch_size": 256,
            "num_epochs": 200,
            "optimizer": "sgd",
            "base_learning_rate": 0.03,
            "learning_rate_scaling": "linear",
            "weight_decay": 1e-4,
            "optimizer_momentum": 0.9,
            "decay_norm_and_bias": True,
            "lr_schedule": "step",
            "warmup_epochs": 0,
        },
        "cifar": {
            "architecture": "resnet18_cifar",
            "image_size": 32,
            "image_mean": (0.4914, 0.4822, 0.4465),
            "image_std": (0.2023, 0.1994, 0.2010),
            "view_recipe": "moco_cifar",
            "projector": "linear",
            "queue_size": 4096,
            "temperature": 0.1,
            "ema_momentum": 0.99,
            "symmetric": True,
            "bn_splits": 8,
            "batch_size": 512,
            "num_epochs": 200,
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
            "queue_size": 2048,
            "temperature": 0.2,
            "ema_momentum": 0.99,
            "symmetric": True,
            "batch_size": 128,
            "num_epochs": 24,
            "optimizer": "sgd",
            "base_learning_rate": 0.06,
            "learning_rate_scaling": "linear",
            "weight_decay": 4e-4,
            "optimizer_momentum": 0.9,
            "decay_norm_and_bias": True,
            "lr_schedule": "cosine",
            "warmup_epochs": 0,
        },
    }
    view_recipe = "moco_v2"
    batch_norm = "local"
    frozen_modules = ("target_encoder", "target_projector")

    queue: Tensor
    queue_position: Tensor

    @classmethod
    def described(cls, plain: Description, settings: Mapping[str, Any]) -> Description:
        """Version 2 by its nonlinear projector, else version 1."""
        both = "; each view is once the query and once the key" if settings["symmetric"] else ""
        idea = f"A query must find the key of its image, {maker_of_keys(settings)}, among many past keys{both}."
        if settings["projector"] == "mlp":
            return replace(plain, name="MoCo v2", idea=idea, paper=_VERSION_2)
        return replace(plain, name="MoCo v1", idea=idea)

    def __init__(self, config: MoCoConfig):
        """Build encoder, head, target and queue."""
        super().__init__(config)
        split_batch_norm(self.encoder, config.bn_splits)
        self.projector: nn.Module = nn.Linear(self.hidden_size, config.projection_dim)
        if config.projector == "mlp":
            width = config.projector_hidden_dim or self.hidden_size
            self.projector = mlp(self.hidden_size, width, config.projection_dim, hidden_norm="none")
        self.target_encoder = copy.deepcopy(self.encoder)
        self.target_projector = copy.deepcopy(self.projector)
        self.register_buffer("queue", random_queue(config.projection_dim, config.queue_size))
        self.register_buffer("queue_position", torch.zeros((), dtype=torch.int64))
        self.post_init()

    def forward(self, pixel_values: Tensor, indices: Tensor | None = None, labels: Tensor | None = None) -> SSLOutput:
        """Compute the loss, about log(1 + queue size) at the start, and store the keys of all processes.

        Without `symmetric`, the second entry of `representations` and `projections` comes from the target: the
        encoder does not see that view.

        Args:
            pixel_values: Normalised views, (batch, 2, 3, height, width).
            indices: Not used.
            labels: Not used.

        Raises:
            UserError: If the keys of one step are more than the queue holds.
        """
        views = self.split_views(pixel_values)
        # Each pair is (view of the queries, view of the keys).
        pairs = [(0, 1), (1, 0)] if self.config.symmetric else [(0, 1)]
        h: list[Tensor] = []
        z: list[Tensor] = []
        keys: list[Tensor] = []
        losses: list[Tensor] = []
        accuracies: list[Tensor] = []
        for query_view, key_view in pairs:
            h.append(self.encode(views[query_view]))
            z.append(self.projector(h[-1]))
            key_h, key_z = target_outputs(
                views[key_view],
                self.target_encoder,
                self.target_projector,
                bn_splits=self.config.bn_splits,
                shuffle=self.training and self.config.shuffle_keys,
            )
            keys.append(F.normalize(key_z, dim=1))
            own = slice(rank() * len(pixel_values), (rank() + 1) * len(pixel_values))
            query = F.normalize(z[-1].float(), dim=1)
            loss, accuracy = info_nce(query, keys[-1][own], self.queue.T, self.config.temperature)
            losses.append(loss)
            accuracies.append(accuracy)
        if not self.config.symmetric:
            h.append(key_h.to(h[0].dtype))
            z.append(key_z[own].to(z[0].dtype))
        if self.training:
            enqueue(self.queue, self.queue_position, torch.cat(keys))
        return SSLOutput(
            loss=torch.stack(losses).sum(),
            representations=torch.stack(h, dim=1).detach(),
            projections=torch.stack(z, dim=1).detach(),
            metrics={"contrast_accuracy": torch.stack(accuracies).mean()},
        )

    def after_optimizer_step(self, step: int, num_steps: int) -> None:
        """Move the target.

        The official code does so at the start of the next step, before that step's keys. Nothing happens in between,
        so every key is made by the same weights (its first update averages a copy with itself); only a saved target
        is one update ahead of the official one.

        Args:
            step: Not used: the momentum is constant.
            num_steps: Not used.
        """
        update_target(self.target_encoder, self.encoder, self.config.ema_momentum)
        update_target(self.target_projector, self.projector, self.config.ema_momentum)
