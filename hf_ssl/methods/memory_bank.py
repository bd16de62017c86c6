"""Memory bank, or InstDisc (Wu et al., 2018, https://arxiv.org/abs/1805.01978)."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F

from hf_ssl.distributed import gather, world_size
from hf_ssl.errors import UserError
from hf_ssl.methods.base import Paper, SSLConfig, SSLOutput, SSLPreTrainedModel
from hf_ssl.modules.description import Description
from hf_ssl.modules.losses import info_nce


@strict
class MemoryBankConfig(SSLConfig):
    """Settings of the memory bank; the defaults are those of the official code on ImageNet.

    Args:
        bank_size: Entries of the bank, one for each image of the data set; filled in from the data set if not given.
            They take 4 * `bank_size` * `projection_dim` bytes: 656 MB for ImageNet.
        objective: `nce` tells the own entry from `num_negatives` drawn ones by noise-contrastive estimation, `sampled`
            by a softmax; `full` is the softmax over the whole bank. Drawn ones may be the own entry, as in the
            official code: `nce` is made for that, `sampled` leaves them out.
        num_negatives: Entries drawn for each image, uniformly and with replacement, at least 1; they are held until
            the backward pass. `full` draws none.
        bank_momentum: Fraction of an entry that an update keeps, in [0, 1].
        temperature: Softmax temperature, positive.
        projection_dim: Width of an entry, at least 1.
        symmetric: Use both views as queries and add up both losses, where the paper has one view of each image.
    """

    model_type = "hf_ssl_memory_bank"

    bank_size: int | None = None
    objective: Literal["nce", "sampled", "full"] = "nce"
    num_negatives: int = 4096
    bank_momentum: float = 0.5
    temperature: float = 0.07
    projection_dim: int = 128
    symmetric: bool = False

    def validate_memory_bank(self) -> None:
        """Check the settings of the memory bank once, when the config is made."""
        for name in ("bank_size", "num_negatives", "projection_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"`{name}` must be at least 1, got {value}.")
        if not self.temperature > 0:
            raise UserError(f"`temperature` must be positive, got {self.temperature}.")
        if not 0 <= self.bank_momentum <= 1:
            raise UserError(f"`bank_momentum` must be in [0, 1], got {self.bank_momentum}.")

    def adapt_to_data(self, num_images: int | None) -> None:
        """Give every image of the data set an entry.

        Args:
            num_images: Images of the training split; None if only reading them all would tell.

        Raises:
            UserError: If that number is missing, or above a `bank_size` that is set.
        """
        if self.bank_size is None and num_images is None:
            raise UserError(
                "`bank_size` is missing: a memory bank has one entry for each image, and the data set does not say "
                "how many it has. Give their number."
            )
        if self.bank_size is None:
            self.bank_size = num_images
        elif num_images is not None and self.bank_size < num_images:
            raise UserError(
                f"`bank_size` must be at least the number of images, {num_images}, got {self.bank_size}. Raise it, or "
                "leave it out."
            )


class MemoryBankForPreTraining(SSLPreTrainedModel):
    """An image must find the entry that it left in a bank, which has one for every image of the data set.

    Use it when: you need the baseline that came before `moco`, on a fixed data set whose images have stable numbers.
    The negatives are up to one epoch old, and the bank keeps a vector for every image.

    Relations: MoCo takes its keys from a moving average of the network, fresh and in a queue; here the moving average
    is that of each image's own features, which are as old as the last visit to the image, up to one epoch. Every image
    needs a stable number (`indices`), so that data sets without one are refused. The proximal term of the paper is
    left out, as in the official code.

    The paper has one view of each image: the first of the two is used and the second is not looked at in training,
    unless `symmetric` asks for it. BatchNorm takes the statistics of each process's own images, and each process draws
    entries of its own, so several processes are not equal to one with the whole batch; with `--batch_norm sync` and
    `objective` full they are.

    Recipes: `paper-imagenet` is the official code (zhirongw/lemniscate.pytorch, main.py) for ImageNet on 8 GPUs, its
    views those that MoCo v1 took over. `cifar` is its code for CIFAR-10 (cifar.py) with the softmax over the whole
    bank (its `--nce-k 0`); as coded, views are not flipped and the learning rate falls after 120 and 160 of 200
    epochs. `quickstart` trains a small encoder in minutes on a CPU, with values of its own. Deviations: timm starts
    the last BatchNorm of each residual block at zero, the official code at one;
    `--model_args '{"zero_init_last": false}'` does so here. The official code also trains on the last, smaller batch
    of an epoch (CIFAR-10: 391 steps); here every step has the same number of images, and an epoch has 390.
    """

    config_class = MemoryBankConfig
    config: MemoryBankConfig
    paper = Paper(
        title="Unsupervised Feature Learning via Non-Parametric Instance-level Discrimination",
        authors="Wu, Zhirong and Xiong, Yuanjun and Yu, Stella and Lin, Dahua",
        arxiv="1805.01978",
        year=2018,
    )
    recipes = {
        "paper-imagenet": {
            "architecture": "resnet50",
            "image_size": 224,
            "view_recipe": "moco_v1",
            "objective": "nce",
            "num_negatives": 4096,
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
            "view_recipe": "memory_bank_cifar",
            "objective": "full",
            "temperature": 0.1,
            "batch_size": 128,
            "num_epochs": 200,
            "optimizer": "sgd",
            "base_learning_rate": 0.06,
            "learning_rate_scaling": "linear",
            "weight_decay": 5e-4,
            "optimizer_momentum": 0.9,
            "decay_norm_and_bias": True,
            "lr_schedule": "step",
            "warmup_epochs": 0,
        },
        "quickstart": {
            "architecture": "test_resnet",
            "image_size": 32,
            "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.25, 0.25, 0.25),
            "view_recipe": "shapes",
            "objective": "full",
            "temperature": 0.1,
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
            "warmup_epochs": 2,
        },
    }
    view_recipe = "moco_v1"
    batch_norm = "local"
    needs_indices = True

    bank: Tensor
    log_normalizer: Tensor

    @classmethod
    def described(cls, plain: Description, settings: Mapping[str, Any]) -> Description:
        """Its name in words; entries that keep all of themselves never change."""
        idea = plain.idea
        if settings["bank_momentum"] == 1:
            idea = "An image must find its own among random vectors that never change, one for every image."
        return replace(plain, name="Memory bank", idea=idea)

    def __init__(self, config: MemoryBankConfig):
        """Build encoder, projector and bank.

        Raises:
            UserError: If `bank_size` is not known.
        """
        super().__init__(config)
        if config.bank_size is None:
            raise UserError(
                "`bank_size` is missing: a memory bank has one entry for each image. Set it to their number, or call "
                "`adapt_to_data` of the config."
            )
        self.projector = nn.Linear(self.hidden_size, config.projection_dim)
        # Entries are normalised when their image comes for the first time, as in the official code.
        bound = 1.0 / math.sqrt(config.projection_dim / 3)
        self.register_buffer("bank", torch.empty(config.bank_size, config.projection_dim).uniform_(-bound, bound))
        if config.objective == "nce":
            # log Z, of which the first training batch makes a number.
            self.register_buffer("log_normalizer", torch.tensor(-math.inf))
        self.post_init()

    def forward(self, pixel_values: Tensor, indices: Tensor | None = None, labels: Tensor | None = None) -> SSLOutput:
        """Compute the loss against the bank as it is, then move the entries of the images of all processes.

        At the start, `full` gives about log(bank size) and `sampled` about log(1 + negatives). In evaluation mode the
        drawn entries are always the same. In training without `symmetric`, the second entry of `representations` and
        `projections` repeats the first: the network does not see that view.

        Args:
            pixel_values: Normalised views, (batch, 2, 3, height, width).
            indices: Stable number of each image, (batch,), int64, in [0, bank size).
            labels: Not used.

        Raises:
            UserError: If `indices` are missing or, on the CPU, out of range; on an accelerator the check would wait
                for it, and the device's own stops the run.
        """
        views = self.split_views(pixel_values)
        indices = self._checked(indices)
        symmetric = self.config.symmetric
        seen = views if symmetric or not self.training else views[:1]
        h = [self.encode(view) for view in seen]
        z = [self.projector(h_i) for h_i in h]
        queries = [F.normalize(z_i.float(), dim=1) for z_i in (z if symmetric else z[:1])]
        losses, accuracies = zip(*(self._contrast(query, indices) for query in queries), strict=True)
        if self.training:
            self._update_bank(indices, torch.stack(queries).detach().mean(dim=0))
        if len(h) == 1:
            h, z = h * 2, z * 2
        return SSLOutput(
            loss=torch.stack(losses).sum(),
            representations=torch.stack(h, dim=1).detach(),
            projections=torch.stack(z, dim=1).detach(),
            metrics={"contrast_accuracy": torch.stack(accuracies).mean()},
        )

    def _checked(self, indices: Tensor | None) -> Tensor:
        if indices is None:
            raise UserError(
                "`indices` are missing: a memory bank needs the stable number of each image. Give (batch,) integers."
            )
        size = len(self.bank)
        if indices.device.type == "cpu" and not ((indices >= 0) & (indices < size)).all():
            wrong = indices[(indices < 0) | (indices >= size)][0].item()
            raise UserError(
                f"`indices` must be in [0, {size}), one for each entry of the bank, got {wrong}. Raise `bank_size` to "
                "the number of images, or number them from 0."
            )
        return indices

    def _contrast(self, query: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of normalised queries, (batch, dim), and how often the own entry scores above all others."""
        temperature = self.config.temperature
        with torch.autocast(query.device.type, enabled=False):
            if self.config.objective == "full":
                return info_nce(query, self.bank[indices], self.bank, temperature, own=indices)
            drawn = self._draw(len(query))
            entries = torch.cat([indices[:, None], drawn], dim=1)
            scores = torch.einsum("bd,bkd->bk", query, self.bank[entries].to(query.dtype)) / temperature
            accuracy = (scores.detach().argmax(dim=1) == 0).float().mean()
            if self.config.objective == "nce":
                return self._nce(scores), accuracy
            # Deviation: a draw of the own entry is left out, which HobbitLong/CMC counts as a negative although it is
            # the answer. The official code (lemniscate) has no such softmax, and no recipe here takes it.
            own = F.pad(drawn == indices[:, None], (1, 0))
            scores = scores.masked_fill(own, -math.inf)
            return F.cross_entropy(scores, torch.zeros_like(indices)), accuracy

    def _draw(self, batch_size: int) -> Tensor:
        """Entries drawn for each image, (batch, negatives): other ones on every process, the same in evaluation."""
        device = self.bank.device
        generator = None if self.training else torch.Generator(device).manual_seed(0)
        shape = (batch_size, self.config.num_negatives)
        return torch.randint(len(self.bank), shape, generator=generator, device=device)

    def _nce(self, scores: Tensor) -> Tensor:
        """Noise-contrastive estimation (section 3.2) with uniform noise, as coded: sum over entries, mean over images.

        With the model's probability P = exp(score) / Z of an entry, K negatives and n entries in the bank, the own
        entry costs -log(P / (P + K/n + 1e-7)) and each drawn one -log(K/n / (P + K/n + 1e-7)); all in logarithms
        here, where a small temperature cannot overflow.

        Args:
            scores: Cosine / temperature of each image with its own entry and the drawn ones, (batch, 1 + negatives).
        """
        noise = self.config.num_negatives / len(self.bank)
        log_p = scores - self._log_normalizer(scores.detach())
        log_total = torch.logaddexp(log_p, log_p.new_full((), math.log(noise + 1e-7)))
        own = log_p[:, 0] - log_total[:, 0]
        drawn = math.log(noise) - log_total[:, 1:]
        return -(own + drawn.sum(dim=1)).mean()

    @torch.no_grad()
    def _log_normalizer(self, scores: Tensor) -> Tensor:
        """Logarithm of Z, estimated as bank size * mean of exp(score) on the first training batch, then kept."""
        estimate = scores.flatten().logsumexp(dim=0) + math.log(len(self.bank) / scores.numel())
        if self.training:
            estimate = gather(estimate[None]).logsumexp(dim=0) - math.log(world_size())
        # Always computed: to ask whether it is known would wait for the device.
        known = self.log_normalizer.to(estimate.dtype)
        normalizer = torch.where(known.isinf(), estimate, known)
        if self.training:
            self.log_normalizer.copy_(normalizer)
        return normalizer

    @torch.no_grad()
    def _update_bank(self, indices: Tensor, features: Tensor) -> None:
        """Move entries towards features: norm(m old + (1 - m) new).

        The official code does so in its backward pass. An image that comes twice in the batch of all processes takes
        its last feature, in order of process and batch; with `symmetric` a feature is the mean of both views.

        Args:
            indices: Numbers of this process's images, (batch,).
            features: Their normalised projections, (batch, dim).
        """
        indices, features = gather(indices), gather(features)
        momentum = self.config.bank_momentum
        entries = F.normalize(momentum * self.bank[indices] + (1 - momentum) * features, dim=1)
        # Writing one value per image and not several keeps the result the same on every process and device.
        order = indices.argsort(stable=True)
        last = order[torch.searchsorted(indices[order], indices, right=True) - 1]
        self.bank.index_copy_(0, indices, entries[last].to(self.bank.dtype))
