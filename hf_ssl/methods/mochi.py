"""MoCHi (Kalantidis et al., 2020, https://arxiv.org/abs/2010.01028): MoCo with mixtures of its hardest negatives.

Long because a method is one file: its config, its model and what only they use.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F

from hf_ssl.diagnostics.negatives import false_negative_share, matching_probabilities
from hf_ssl.distributed import gather, rank, shared_uniform, world_size
from hf_ssl.errors import UserError
from hf_ssl.methods.base import Paper, SSLConfig, SSLOutput, SSLPreTrainedModel
from hf_ssl.modules.batch_norm import split_batch_norm
from hf_ssl.modules.description import Description
from hf_ssl.modules.heads import mlp
from hf_ssl.modules.losses import contrast
from hf_ssl.modules.momentum import update_target
from hf_ssl.modules.queue import enqueue, random_queue
from hf_ssl.modules.target_outputs import target_outputs

_LOGGED_RANKS = (1, 4, 16, 64, 256, 1024)
# Numbers of one chunk of key pairs: 8 MiB, of which three are alive at a time.
_CHUNK_NUMBERS = 2**21
# A mixture of opposite vectors has no direction; below this length its score is not scaled up any further.
_SHORTEST = 1e-4


@strict
class MoCHiConfig(SSLConfig):
    """Settings of MoCHi; the defaults are those of MoCHi (1024, 512, 256) on a ResNet-50 (UNVERIFIED).

    Args:
        projector: `mlp` with one hidden layer (MoCo version 2), `linear` (version 1).
        projector_hidden_dim: Width of the hidden layer of an `mlp` projector, at least 1; as wide as the
            representation if not given.
        projection_dim: Width of queries and keys, at least 1.
        queue_size: Keys in the queue, at least 1; any batch size up to it works.
        temperature: Softmax temperature, positive.
        ema_momentum: Fraction of the target that an update keeps, in [0, 1].
        symmetric: Use each view as the query of the other and add up both losses.
        shuffle_keys: Give keys to BatchNorm groups in random order, so that statistics do not betray the positive.
        bn_splits: BatchNorm groups of the batch of all processes, at least 1; each process has its share, at least
            one.
        num_hard_negatives: Hardest keys of the queue that mixtures are made of (N), in [1, `queue_size`].
        num_mixed_negatives: Mixtures of two of them for each query (s), 0 or more; one needs two hard negatives.
        num_mixed_queries: Mixtures of one of them and the query itself (s'), 0 or more.
        start_step: Forward passes in training before mixing starts, 0 or more: the hardest keys of a queue that is
            still random are noise.
        class_oracle: `off` looks at no labels, `measure` uses them only to count the hardest negatives that are of
            the query's class, `mask` also leaves all keys of the query's class out, for analysis. Both need labels.
    """

    model_type = "hf_ssl_mochi"

    projector: Literal["linear", "mlp"] = "mlp"
    projector_hidden_dim: int | None = None
    projection_dim: int = 128
    queue_size: int = 65536
    temperature: float = 0.2
    ema_momentum: float = 0.999
    symmetric: bool = False
    shuffle_keys: bool = True
    bn_splits: int = 8
    num_hard_negatives: int = 1024
    num_mixed_negatives: int = 512
    num_mixed_queries: int = 256
    start_step: int = 50_040
    class_oracle: Literal["off", "measure", "mask"] = "off"

    def validate_mochi(self) -> None:
        """Check the settings of MoCHi once, when the config is made."""
        for name in ("projection_dim", "queue_size", "bn_splits", "num_hard_negatives"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("num_mixed_negatives", "num_mixed_queries", "start_step"):
            if getattr(self, name) < 0:
                raise UserError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if self.projector_hidden_dim is not None and self.projector_hidden_dim < 1:
            raise UserError(f"`projector_hidden_dim` must be at least 1, got {self.projector_hidden_dim}.")
        if not self.temperature > 0:
            raise UserError(f"`temperature` must be positive, got {self.temperature}.")
        if not 0 <= self.ema_momentum <= 1:
            raise UserError(f"`ema_momentum` must be in [0, 1], got {self.ema_momentum}.")
        if self.num_hard_negatives > self.queue_size:
            raise UserError(
                f"`num_hard_negatives` must be at most `queue_size`, {self.queue_size}, got "
                f"{self.num_hard_negatives}. Lower it or raise `queue_size`."
            )
        if self.num_mixed_negatives > 0 and self.num_hard_negatives < 2:
            raise UserError(
                f"`num_mixed_negatives` mixes two different hard negatives, but `num_hard_negatives` is "
                f"{self.num_hard_negatives}. Raise it to 2 or more, or set `num_mixed_negatives` to 0."
            )


class Draws(NamedTuple):
    """How the synthetic negatives of each query are made; ranks count its hard negatives from the hardest, 0.

    Args:
        first: Rank of one hard negative of each pair, (batch, s), int64.
        second: Rank of the other, (batch, s), int64.
        pair_share: Share alpha of the first, (batch, s), in [0, 1).
        partner: Rank of the hard negative that the query is mixed with, (batch, s'), int64.
        query_share: Share beta of the query, (batch, s'), in [0, 0.5): the negative always outweighs it.
    """

    first: Tensor
    second: Tensor
    pair_share: Tensor
    partner: Tensor
    query_share: Tensor


def draw_mixtures(uniform: Tensor, num_available: Tensor, num_pairs: int, num_queries: int) -> Draws:
    """Turn uniform numbers into ranks and shares (section 4.1 and 4.2).

    Args:
        uniform: In [0, 1), (batch, 3 s + 2 s').
        num_available: Hard negatives of each query, (batch,), int64. With fewer than two, both ranks of a pair are 0;
            otherwise they differ.
        num_pairs: Mixtures of two hard negatives, s.
        num_queries: Mixtures with the query, s'.
    """
    first, second, pair_share, partner, query_share = uniform.split([num_pairs] * 3 + [num_queries] * 2, dim=1)
    available = num_available.clamp(min=1)[:, None]
    first = (first * available).long()
    further = 1 + (second * (available - 1)).long()
    return Draws(first, (first + further) % available, pair_share, (partner * available).long(), query_share / 2)


def mixed_scores(
    query: Tensor,
    scores: Tensor,
    keys: Tensor,
    hardest: Tensor,
    draws: Draws,
    chunk_numbers: int = _CHUNK_NUMBERS,
) -> Tensor:
    """Cosine of each query and its synthetic negatives, without keeping those vectors (sections 4.1 and 4.2).

    A synthetic negative is h = v / |v| with v = alpha k_i + (1 - alpha) k_j, or v = beta q + (1 - beta) k_j, and a
    constant for the gradient. Its score is linear in the scores of what it is made of: q h = (alpha q k_i +
    (1 - alpha) q k_j) / |v|. With |v| held constant, and the q inside v too, the gradient of this to q is h, exactly.
    Only |v| of two keys needs vectors, and no gradient: it is computed for some pairs at a time.

    Args:
        query: Unit vectors, (batch, dim).
        scores: `query` times all keys, (batch, number of keys); the gradient flows through it.
        keys: Unit vectors, (number of keys, dim).
        hardest: Numbers of each query's own hard negatives among the keys, hardest first, (batch, N), int64.
        draws: What to mix.
        chunk_numbers: Numbers in a chunk of vectors, which bounds the memory and changes no result.

    Returns:
        (batch, s + s'), mixtures of two keys first.
    """
    hard = scores.gather(1, hardest)
    alpha, beta = draws.pair_share, draws.query_share
    length = _pair_lengths(
        keys,
        hardest.gather(1, draws.first),
        hardest.gather(1, draws.second),
        alpha,
        max(1, chunk_numbers // keys.shape[1]),
    )
    pairs = alpha * hard.gather(1, draws.first) + (1 - alpha) * hard.gather(1, draws.second)
    partner = hard.gather(1, draws.partner)
    itself = (query * query.detach()).sum(dim=1, keepdim=True)
    squared_length = beta**2 + (1 - beta) ** 2 + 2 * beta * (1 - beta) * partner.detach()
    queries = beta * itself + (1 - beta) * partner
    return torch.cat(
        [pairs / length.clamp(min=_SHORTEST), queries / squared_length.clamp(min=_SHORTEST**2).sqrt()], dim=1
    )


@torch.no_grad()
def _pair_lengths(keys: Tensor, first: Tensor, second: Tensor, share: Tensor, chunk_size: int) -> Tensor:
    """Length of `share` times the first plus the rest times the second key, (batch, s), `chunk_size` at a time."""
    chunks = zip(*(tensor.flatten().split(chunk_size) for tensor in (first, second, share)), strict=True)
    lengths = [torch.lerp(keys[j], keys[i], alpha[:, None]).norm(dim=1) for i, j, alpha in chunks]
    return torch.cat(lengths).view_as(share)


class MoCHiForPreTraining(SSLPreTrainedModel):
    """MoCo that adds mixtures of each query's hardest negatives, so that the task stays hard late in training.

    Use it when: `moco` works on your images, but its task becomes easy early in training: mixed negatives keep it
    hard, at the price of slower steps.

    Relations: MoCo version 2 and a harder softmax; without mixtures (`num_mixed_negatives` and `num_mixed_queries` 0)
    it is MoCo. Synthetic negatives are made anew for every query, get no gradient and are never stored.
    As with MoCo, several processes equal one with the whole batch where `bn_splits` is a multiple of their number.

    Memory: the synthetic vectors of a batch are never in memory together. Measured on the CPU for 256 queries of width
    128, 65,536 keys and 1,024 mixtures of 1,024 hard negatives, the loss and its backward pass take 285 MB at their
    peak; keeping the vectors for the backward pass would make it 615 MB. MoCo, which keeps no scores, takes far less.

    Recipes: the paper's settings could not be compared with an official code, there is none: everything that mixing
    adds to MoCo version 2 is UNVERIFIED. `paper-imagenet` is MoCHi (1024, 512, 256) for 200 epochs and
    `paper-imagenet100` MoCHi (1024, 1024, 128), both on 8 GPUs, mixing after 10 epochs. `cifar` is the
    CIFAR-10 demo of MoCo's official code with mixtures of our own choice; `quickstart` trains a small encoder in
    minutes on a CPU, with values of its own. As in MoCo, timm starts the last BatchNorm of each residual block at
    zero; `--model_args '{"zero_init_last": false}'` starts it at one; and epochs count from 0 for the cosine.
    """

    config_class = MoCHiConfig
    config: MoCHiConfig
    paper = Paper(
        title="Hard Negative Mixing for Contrastive Learning",
        authors=(
            "Kalantidis, Yannis and Sariyildiz, Mert Bulent and Pion, Noe and Weinzaepfel, Philippe and Larlus, Diane"
        ),
        arxiv="2010.01028",
        year=2020,
    )
    recipes = {
        "paper-imagenet": {
            "architecture": "resnet50",
            "image_size": 224,
            "view_recipe": "moco_v2",
            "projector": "mlp",
            "queue_size": 65536,
            "temperature": 0.2,
            "num_hard_negatives": 1024,
            "num_mixed_negatives": 512,
            "num_mixed_queries": 256,
            "start_step": 50_040,
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
        "paper-imagenet100": {
            "architecture": "resnet50",
            "image_size": 224,
            "view_recipe": "moco_v2",
            "projector": "mlp",
            "queue_size": 16384,
            "temperature": 0.2,
            "num_hard_negatives": 1024,
            "num_mixed_negatives": 1024,
            "num_mixed_queries": 128,
            "start_step": 9_890,
            "batch_size": 128,
            "num_epochs": 200,
            "optimizer": "sgd",
            "base_learning_rate": 0.06,  # 0.03 at 128 images a step
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
            "image_std": (0.2023, 0.1994, 0.2010),
            "view_recipe": "moco_cifar",
            "projector": "linear",
            "queue_size": 4096,
            "temperature": 0.1,
            "ema_momentum": 0.99,
            "symmetric": True,
            "bn_splits": 8,
            "num_hard_negatives": 256,
            "num_mixed_negatives": 256,
            "num_mixed_queries": 64,
            "start_step": 970,
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
            "num_hard_negatives": 128,
            "num_mixed_negatives": 128,
            "num_mixed_queries": 32,
            "start_step": 468,  # half of the run
            "batch_size": 128,
            "num_epochs": 24,
            "optimizer": "sgd",
            "base_learning_rate": 0.03,
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
    queue_labels: Tensor
    training_passes: Tensor

    @classmethod
    def described(cls, plain: Description, settings: Mapping[str, Any]) -> Description:
        """Without mixtures it is MoCo, and its oracle looks at labels."""
        name, idea, mask = plain.name, plain.idea, settings["class_oracle"] == "mask"
        if not settings["num_mixed_negatives"] and not settings["num_mixed_queries"]:
            name, idea = "MoCHi without mixtures", "MoCo, to which no mixtures of hard negatives are added."
        if mask:
            idea += " Keys of the query's class are left out, by their labels: an oracle, for analysis."
        return replace(plain, name=name, idea=idea, uses_labels=mask)

    def __init__(self, config: MoCHiConfig):
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
        self.register_buffer("training_passes", torch.zeros((), dtype=torch.int64))
        self.needs_labels = config.class_oracle != "off"
        if self.needs_labels:
            self.register_buffer("queue_labels", torch.full((config.queue_size,), -1))
        self.post_init()

    def forward(self, pixel_values: Tensor, indices: Tensor | None = None, labels: Tensor | None = None) -> SSLOutput:
        """Compute the loss and store the keys of all processes; in evaluation mode, the loss of MoCo without mixtures.

        Without `symmetric`, the second entry of `representations` and `projections` comes from the target: the
        encoder does not see that view.

        Metrics: `contrast_accuracy`, the fraction of queries whose positive scores above all keys of the queue;
        `contrast_accuracy_with_mixed`, above the synthetic negatives too; `match_probability_rank_R`, the softmax
        probability of the R-th hardest key, without synthetic negatives; with an oracle `false_negative_share`, the
        fraction of the `num_hard_negatives` hardest keys that are of the query's class, before any is left out.

        Args:
            pixel_values: Normalised views, (batch, 2, 3, height, width).
            indices: Not used.
            labels: Class of each image, (batch,), int64, -1 where it has none, which equals no other; only with an
                oracle.

        Raises:
            UserError: If the keys of one step are more than the queue holds, or an oracle gets no labels.
        """
        config = self.config
        if self.needs_labels and labels is None:
            raise UserError(
                f"`class_oracle` {config.class_oracle} looks at labels, but `forward` got none. Pass `labels`, or set "
                "`class_oracle` to off."
            )
        views = self.split_views(pixel_values)
        # Each pair is (view of the queries, view of the keys).
        pairs = [(0, 1), (1, 0)] if config.symmetric else [(0, 1)]
        own = slice(rank() * len(pixel_values), (rank() + 1) * len(pixel_values))
        # A copy: writing the queue below must not change what the backward pass reads. Row by row: keys are picked.
        negatives = self.queue.T.clone(memory_format=torch.contiguous_format)
        h: list[Tensor] = []
        z: list[Tensor] = []
        keys: list[Tensor] = []
        losses: list[Tensor] = []
        metrics: list[dict[str, Tensor]] = []
        for query_view, key_view in pairs:
            h.append(self.encode(views[query_view]))
            z.append(self.projector(h[-1]))
            key_h, key_z = target_outputs(
                views[key_view],
                self.target_encoder,
                self.target_projector,
                bn_splits=config.bn_splits,
                shuffle=self.training and config.shuffle_keys,
            )
            keys.append(F.normalize(key_z, dim=1))
            query = F.normalize(z[-1].float(), dim=1)
            loss, measured = self._contrast(query, keys[-1][own], negatives.to(query.dtype), labels)
            losses.append(loss)
            metrics.append(measured)
        if not config.symmetric:
            h.append(key_h.to(h[0].dtype))
            z.append(key_z[own].to(z[0].dtype))
        if self.training:
            columns = enqueue(self.queue, self.queue_position, torch.cat(keys))
            if self.needs_labels and labels is not None:
                self.queue_labels[columns] = gather(labels).repeat(len(pairs))
            self.training_passes.add_(1)
        return SSLOutput(
            loss=torch.stack(losses).sum(),
            representations=torch.stack(h, dim=1).detach(),
            projections=torch.stack(z, dim=1).detach(),
            metrics={name: torch.stack([each[name] for each in metrics]).mean() for name in metrics[0]},
        )

    def _contrast(
        self, query: Tensor, positive: Tensor, keys: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of one view as the query: unit vectors, (batch, dim), and the queue, (queue size, dim)."""
        config = self.config
        ranks = [r for r in _LOGGED_RANKS if r <= config.queue_size]
        num_sorted = max(config.num_hard_negatives, ranks[-1])
        metrics: dict[str, Tensor] = {}
        with torch.autocast(query.device.type, enabled=False):
            positive_score = (query * positive).sum(dim=1, keepdim=True)
            scores = query @ keys.T
            kept = scores
            sorted_scores, hardest = kept.detach().topk(num_sorted)
            if self.needs_labels and labels is not None:
                metrics["false_negative_share"] = false_negative_share(
                    labels, self.queue_labels[hardest[:, : config.num_hard_negatives]]
                )
                if config.class_oracle == "mask":
                    same_class = (labels[:, None] == self.queue_labels) & (labels[:, None] >= 0)
                    kept = scores.masked_fill(same_class, -torch.inf)
                    sorted_scores, hardest = kept.detach().topk(num_sorted)
            probabilities = matching_probabilities(positive_score, kept.detach(), sorted_scores, config.temperature)
            metrics |= {f"match_probability_rank_{r}": probabilities[r - 1] for r in ranks}
            metrics["contrast_accuracy"] = (positive_score[:, 0] > sorted_scores[:, 0]).float().mean()
            if not self.training:
                return contrast(positive_score, [kept], config.temperature)[0], metrics
            hardest = hardest[:, : config.num_hard_negatives]
            num_available = (sorted_scores[:, : config.num_hard_negatives] > -torch.inf).sum(dim=1)
            mixed = self._mixed_scores(query, scores, keys, hardest, num_available)
            loss, metrics["contrast_accuracy_with_mixed"] = contrast(positive_score, [kept, mixed], config.temperature)
        return loss, metrics

    def _mixed_scores(
        self, query: Tensor, scores: Tensor, keys: Tensor, hardest: Tensor, num_available: Tensor
    ) -> Tensor:
        """Scores of new synthetic negatives, (batch, s + s'); -inf before the start and where keys are missing."""
        num_pairs, num_queries = self.config.num_mixed_negatives, self.config.num_mixed_queries
        batch_size = len(query)
        uniform = shared_uniform(batch_size * world_size(), 3 * num_pairs + 2 * num_queries, query.device)
        uniform = uniform[rank() * batch_size :][:batch_size]
        draws = draw_mixtures(uniform, num_available, num_pairs, num_queries)
        mixed = mixed_scores(query, scores, keys, hardest, draws)
        # Masked rather than skipped: reading the counter would make the device wait for it in every step.
        needed = 1 + (torch.arange(num_pairs + num_queries, device=query.device) < num_pairs).long()
        usable = (num_available[:, None] >= needed) & (self.training_passes >= self.config.start_step)
        return mixed.masked_fill(~usable, -torch.inf)

    def after_optimizer_step(self, step: int, num_steps: int) -> None:
        """Move the target; as in MoCo, nothing happens between this and the next step's keys.

        Args:
            step: Not used: the momentum is constant.
            num_steps: Not used.
        """
        update_target(self.target_encoder, self.encoder, self.config.ema_momentum)
        update_target(self.target_projector, self.projector, self.config.ema_momentum)
