"""What the processes of a run tell each other in a step: on paper from a method's settings, and counted in one."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.modules.batch_norm import SplitBatchNorm

FLOAT, INTEGER = 4, 8  # bytes: what is exchanged is float32 or int64 in every precision of training


@dataclass(frozen=True)
class Collective:
    """Calls of one kind in a step.

    Args:
        kind: `all_reduce`, `all_gather`, `all_to_all` or `broadcast`.
        bytes: Of the tensor that each process gives to a call; of all calls.
        calls: Number of calls; 0 for gradients, whose buckets PyTorch chooses.
        what: What they carry, in words.
    """

    kind: str
    bytes: int
    calls: int
    what: str

    def sent(self, world_size: int) -> float:
        """Bytes that a process sends, mean over processes: by rings, as NCCL does with what is large."""
        others = world_size - 1
        share = {"all_gather": others, "all_reduce": 2 * others / world_size}
        return self.bytes * share.get(self.kind, others / world_size)


def passes(model: SSLPreTrainedModel) -> dict[str, tuple[int, int]]:
    """How often a step runs each part of a method, by its name: with gradient and without."""
    method, config = method_of(model), model.config
    two = 1 if getattr(config, "join_views", False) else 2
    if method in ("moco", "mochi", "memory_bank"):
        two = 2 if config.symmetric else 1
    names = ("encoder", "projector", "predictor", "cluster_head")
    found = {name: (two, 0) for name in names if hasattr(model, name)}
    return found | {name: (0, two) for name in ("target_encoder", "target_projector") if hasattr(model, name)}


def views_seen(model: SSLPreTrainedModel) -> tuple[int, int]:
    """Views of each image that go through the encoder with gradient, and through the target's without."""
    online, target = passes(model)["encoder"][0], passes(model).get("target_encoder", (0, 0))[1]
    return (2 if getattr(model.config, "join_views", False) else online), target


def method_of(model: SSLPreTrainedModel) -> str:
    """Name of the method, as `--method` takes it."""
    return type(model.config).model_type.removeprefix("hf_ssl_")


def traffic(model: SSLPreTrainedModel, images: int, world_size: int, batch_norm: str) -> list[Collective]:
    """All that a step of one forward pass exchanges.

    Args:
        model: The method; may be on the meta device.
        images: Of one process.
        world_size: Processes, at least 2.
        batch_norm: `sync` or `local`.
    """
    gradients = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = [Collective("all_reduce", FLOAT * gradients, 0, "gradients")]
    if batch_norm == "sync":
        found += _batch_norm(model)
    return [one for one in found + _of_method(model, images, world_size) if one.bytes]


def _batch_norm(model: SSLPreTrainedModel) -> list[Collective]:
    """Mean, variance and number of images are gathered in each forward pass; two sums come back in a backward pass."""
    forward = backward = forward_calls = backward_calls = 0
    for name, (with_gradient, without) in passes(model).items():
        norms = [module for module in model.get_submodule(name).modules() if isinstance(module, _BatchNorm)]
        channels = sum(norm.num_features for norm in norms if not isinstance(norm, SplitBatchNorm))
        number = sum(not isinstance(norm, SplitBatchNorm) for norm in norms)
        forward += (with_gradient + without) * FLOAT * (2 * channels + number)
        forward_calls += (with_gradient + without) * number
        backward += with_gradient * FLOAT * 2 * channels
        backward_calls += with_gradient * number
    what = "BatchNorm"
    return [
        Collective("all_gather", forward, forward_calls, what),
        Collective("all_reduce", backward, backward_calls, what),
    ]


def _of_method(model: SSLPreTrainedModel, images: int, world_size: int) -> list[Collective]:
    method, config = method_of(model), model.config
    dim = getattr(config, "projection_dim", 0)
    everybody = images * world_size

    def gathered(width: int, calls: int, what: str, *, gradient: bool, size: int = FLOAT) -> list[Collective]:
        there = Collective("all_gather", calls * images * width * size, calls, what)
        back = Collective("all_reduce", calls * everybody * width * size, calls, f"gradients of {what}")
        return [there, back] if gradient else [there]

    if method == "end_to_end":
        return gathered(dim, 2 if config.symmetric else 1, "features", gradient=True)
    if method == "directclr":
        return gathered(config.subvector_dim, 2, "features", gradient=True)
    if method == "contrastive_clustering":
        return gathered(dim, 2, "features", gradient=True) + gathered(
            config.num_clusters, 2, "assignments", gradient=True
        )
    if method == "moco_v3":
        return gathered(dim, 2, "keys", gradient=False)
    if method == "memory_bank":
        entries = gathered(dim, 1, "features", gradient=False)
        entries += gathered(1, 1, "indices", gradient=False, size=INTEGER)
        queries = 2 if config.symmetric else 1
        return entries + [
            Collective("all_gather", queries * FLOAT, queries, "normaliser") for _ in range(config.objective == "nce")
        ]
    if method == "directpred":
        found = [Collective("all_reduce", FLOAT * (dim + 1) * dim, 1, "correlation")]
        return [*found, Collective("broadcast", FLOAT * dim * dim, 1, "predictor")]
    if method in ("moco", "mochi"):
        return _of_queue(model, images, world_size)
    return []


def _of_queue(model: SSLPreTrainedModel, images: int, world_size: int) -> list[Collective]:
    """Images are shuffled between processes, what the target makes of them comes back, and all get the keys."""
    config: Any = model.config
    calls = passes(model)["encoder"][0]
    everybody, dim = images * world_size, config.projection_dim
    found = [Collective("all_gather", calls * FLOAT * images * dim, calls, "keys")]
    if config.shuffle_keys:
        pixels = calls * FLOAT * images * 3 * config.image_size**2
        made = calls * FLOAT * images * (model.hidden_size + dim)
        found += [
            Collective("broadcast", calls * INTEGER * everybody, calls, "order of images"),
            Collective("all_to_all", pixels, calls, "shuffled images"),
            Collective("all_to_all", made, 2 * calls, "outputs of shuffled images"),
        ]
    if method_of(model) == "mochi":
        numbers = 3 * config.num_mixed_negatives + 2 * config.num_mixed_queries
        found.append(Collective("broadcast", calls * FLOAT * everybody * numbers, calls, "draws"))
        if config.class_oracle != "off":
            found.append(Collective("all_gather", INTEGER * images, 1, "labels"))
    return found


@contextmanager
def counted(network: nn.Module) -> Iterator[Counter[str]]:
    """Count the bytes of each kind that this process gives to collectives, gradients by themselves.

    Args:
        network: The wrapped model; it is given a hook that averages gradients as it would without. Once only.
    """
    count: Counter[str] = Counter()
    given = {"all_reduce": 0, "all_gather": 1, "all_to_all_single": 1, "broadcast": 0}  # place of what is sent
    originals = {name: getattr(dist, name) for name in given}
    of_gradients = False

    def counting(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensor = args[given[name]]
            kind = "gradients" if of_gradients else name.removesuffix("_single")
            count[kind] += tensor.numel() * tensor.element_size()
            return originals[name](*args, **kwargs)

        return call

    def hook(state: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal of_gradients
        of_gradients = True
        try:
            return allreduce_hook(state, bucket)
        finally:
            of_gradients = False

    if isinstance(network, DistributedDataParallel):
        network.register_comm_hook(None, hook)
    try:
        for name in originals:
            setattr(dist, name, counting(name))
        yield count
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
