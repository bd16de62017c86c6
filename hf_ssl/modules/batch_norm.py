"""BatchNorm over parts of a batch or over all processes, with the state of plain BatchNorm.

Which images share their statistics decides what BatchNorm leaks between them, so methods choose it. Both variants keep
names, order and shapes of parameters and buffers: a checkpoint loads into the plain model.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from hf_ssl.distributed import world_size


class SplitBatchNorm(_BatchNorm):
    """BatchNorm whose statistics are those of one group of the batch, as if each group were on a device of its own.

    Groups are runs of neighbouring images, so that one process with several groups computes what several processes
    with one group each compute. Running statistics move towards the mean over the groups of this process.

    Args:
        num_features: Channels.
        num_splits: Groups of the batch of all processes, at least 1. Each process has its share, at least one; where
            its batch does not divide, groups differ by one image.
        eps: Added to the variance.
        momentum: Step of the running statistics; None for the mean of all batches.
        affine: Whether to scale and shift.
        track_running_stats: Whether to keep running statistics.
    """

    def __init__(
        self,
        num_features: int,
        num_splits: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats)  # pyright: ignore[reportUnknownMemberType]
        self.num_splits = num_splits
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each group.

        Args:
            input: (batch, channels, ...).

        Returns:
            The same shape.

        Raises:
            ValueError: If a group would have fewer than two images.
        """
        if not self.training:
            return self.act(self.drop(super().forward(input)))
        num_groups = max(1, self.num_splits // world_size())
        if len(input) < 2 * num_groups:
            raise ValueError(
                f"`bn_splits` makes {num_groups} BatchNorm groups of a batch of {len(input)}, but each needs two "
                "images. Lower `bn_splits` or raise the batch size."
            )
        # Not `tensor_split`, whose backward pass adds up one array of the whole batch's size for each group.
        size, larger = divmod(len(input), num_groups)
        sizes = [size + (number < larger) for number in range(num_groups)]
        # With a momentum of 1 the "running" statistics become those of the group, variance unbiased.
        means = torch.zeros(num_groups, self.num_features, dtype=torch.float32, device=input.device)
        variances = torch.ones_like(means)
        outputs = [
            F.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
            for group, mean, variance in zip(torch.split_with_sizes(input, sizes), means, variances, strict=True)
        ]
        _move_running_statistics(self, means.mean(0), variances.mean(0))
        return self.act(self.drop(torch.cat(outputs)))

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions after the channels."""


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes, written in plain tensor operations.

    PyTorch's own, which is faster, refuses the CPU, where several processes are what tests and small machines have.

    Args:
        num_features: Channels.
        eps: Added to the variance.
        momentum: Step of the running statistics; None for the mean of all batches.
        affine: Whether to scale and shift.
        track_running_stats: Whether to keep running statistics.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats)  # pyright: ignore[reportUnknownMemberType]
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """Normalise with the statistics of all processes.

        Args:
            input: (batch, channels, ...).

        Returns:
            The same shape.
        """
        normalised = self._normalise(input) if self.training else super().forward(input)
        return self.act(self.drop(normalised))

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions after the channels."""

    def _normalise(self, input: Tensor) -> Tensor:
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        values = input.float()
        count = values.new_tensor([values.numel() // values.shape[1]])
        sums = _sum_over_processes(torch.cat([values.sum(axes), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = values - mean.view(shape)
        variance = _sum_over_processes(centred.square().sum(axes)) / total
        with torch.no_grad():
            _move_running_statistics(self, mean, variance * total / (total - 1))
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        scale, shift = self._parameters["weight"], self._parameters["bias"]
        if scale is not None:
            normalised = normalised * scale.view(shape)
        if shift is not None:
            normalised = normalised + shift.view(shape)
        return normalised.to(input.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce whose backward pass adds up the gradients that the processes send to the sum."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def _sum_over_processes(tensor: Tensor) -> Tensor:
    return tensor if world_size() == 1 else _SumOverProcesses.apply(tensor)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def _move_running_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    step = norm.momentum if norm.momentum is not None else 1.0 / norm.num_batches_tracked.float()
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), step)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), step)


def split_batch_norm(model: nn.Module, num_splits: int) -> None:
    """Let every BatchNorm of `model` work on groups of the batch, in place.

    Args:
        model: Network that contains BatchNorm layers, or none.
        num_splits: Groups of the batch of all processes, at least 1; with 1, nothing changes.
    """
    if num_splits > 1:
        _replace(
            model,
            lambda norm: SplitBatchNorm(
                norm.num_features, num_splits, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
            ),
        )


def synchronize_batch_norm(model: nn.Module) -> None:
    """Let every BatchNorm of `model` take its statistics over all processes, in place; with one, nothing changes.

    Split BatchNorm stays as it is: its groups are what the method asks for. Call it after the process group exists and
    before the model is wrapped.

    Args:
        model: Network that contains BatchNorm layers, or none.
    """
    if world_size() > 1:
        _replace(model, _synchronized)


def _synchronized(norm: _BatchNorm) -> _BatchNorm:
    if dist.get_backend() != "gloo":
        return cast(_BatchNorm, convert_sync_batchnorm(norm))
    return SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)


def _replace(model: nn.Module, make: Callable[[_BatchNorm], _BatchNorm]) -> None:
    for name, child in model.named_children():
        if not isinstance(child, _BatchNorm):
            _replace(child, make)
        elif not isinstance(child, (SplitBatchNorm, SyncBatchNorm, nn.SyncBatchNorm)):
            converted = make(child)
            converted.weight, converted.bias = child.weight, child.bias
            converted.running_mean, converted.running_var = child.running_mean, child.running_var
            converted.num_batches_tracked = child.num_batches_tracked
            # timm's BatchNormAct2d carries the activation inside.
            for part in ("drop", "act"):
                if hasattr(child, part):
                    setattr(converted, part, getattr(child, part))
            converted.train(child.training)
            setattr(model, name, converted)
