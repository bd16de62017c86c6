"""BatchNorm over parts of a batch or over all processes, with the state of plain BatchNorm.

Which images share their statistics decides what BatchNorm leaks between them, so methods choose it. Both variants keep
names, order and shapes of parameters and buffers: a checkpoint loads into the plain model.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from hf_ssl.distributed import gather, world_size


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
        size, larger = divmod(len(input), num_groups)
        sizes = [size + (number < larger) for number in range(num_groups)]
        # Where it has run; elsewhere the slower way, which is the same to rounding.
        by_parts = input.device.type == "cpu" and not torch.compiler.is_compiling()
        normalise = _NormaliseGroups.apply if by_parts else normalise_groups
        weight, bias = _as_statistics(input, self.weight, self.bias)
        output, means, variances = normalise(input, weight, bias, sizes, self.eps)  # pyright: ignore[reportGeneralTypeIssues]
        _move_running_statistics(self, means.mean(0), variances.mean(0))
        return self.act(self.drop(output))

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions after the channels."""


def normalise_groups(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, sizes: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise runs of neighbouring images, each by its own statistics.

    Args:
        input: (batch, channels, ...).
        weight: (channels,), or None.
        bias: (channels,), or None.
        sizes: Images of each group; their sum is the batch.
        eps: Added to the variances.

    Returns:
        The same shape; mean and unbiased variance of each group, (groups, channels), in float32 or the input's
        float64, without gradient.
    """
    # With a momentum of 1 the "running" statistics become those of the group.
    means = torch.zeros((len(sizes), input.shape[1]), dtype=_dtype_of_statistics(input), device=input.device)
    variances = torch.ones_like(means)
    # Not `tensor_split`, whose backward pass adds up one array of the whole batch's size for each group.
    outputs = [
        F.batch_norm(group, mean, variance, weight, bias, True, 1.0, eps)
        for group, mean, variance in zip(torch.split_with_sizes(input, sizes), means, variances, strict=True)
    ]
    return torch.cat(outputs), means, variances


class _NormaliseGroups(torch.autograd.Function):
    """`normalise_groups` with each group written to its place, where `torch.cat` would copy the batch once more."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, sizes: list[int], eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        output = torch.empty_like(input)
        means, variances, saved_means, saved_inverses = input.new_zeros(
            4, len(sizes), input.shape[1], dtype=_dtype_of_statistics(input)
        ).unbind()
        for number, (group, place) in enumerate(
            zip(torch.split_with_sizes(input, sizes), torch.split_with_sizes(output, sizes), strict=True)
        ):
            torch.ops.aten.native_batch_norm.out(
                group,
                weight,
                bias,
                means[number],
                variances[number],
                True,
                1.0,
                eps,
                out=place,
                save_mean=saved_means[number],
                save_invstd=saved_inverses[number],
            )
        ctx.save_for_backward(input, weight, saved_means, saved_inverses)
        ctx.sizes, ctx.eps = sizes, eps
        ctx.mark_non_differentiable(means, variances)
        return output, means, variances

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        input, weight, means, inverses = ctx.saved_tensors
        of_input = torch.empty_like(input)
        of_weights: list[Tensor] = []
        of_biases: list[Tensor] = []
        parts = (torch.split_with_sizes(whole, ctx.sizes) for whole in (gradient, input, of_input))
        for number, (of_output, group, place) in enumerate(zip(*parts, strict=True)):
            of_group, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                of_output, group, weight, None, None, means[number], inverses[number], True, ctx.eps, [True] * 3
            )
            place.copy_(of_group)
            of_weights.append(of_weight)
            of_biases.append(of_bias)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        of_weight = torch.stack(of_weights).sum(0) if needs_weight else None
        of_bias = torch.stack(of_biases).sum(0) if needs_bias else None
        return of_input, of_weight, of_bias, None, None


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes, where gloo connects them; run on the CPU only.

    PyTorch's own refuses the CPU, where several processes are what tests and small machines have. With any other
    backend, `synchronize_batch_norm` takes PyTorch's.

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
        weight, bias = _as_statistics(input, self._parameters["weight"], self._parameters["bias"])
        if weight is None:
            weight = torch.ones(self.num_features, dtype=_dtype_of_statistics(input), device=input.device)
        bias = torch.zeros_like(weight) if bias is None else bias
        output, mean, variance = _NormaliseTogether.apply(input, weight, bias, self.eps)  # pyright: ignore[reportGeneralTypeIssues]
        _move_running_statistics(self, mean, variance)
        return output


class _NormaliseTogether(torch.autograd.Function):
    """Normalise by the statistics of all processes: one collective forward and one backward, around fused kernels."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values = input.to(_dtype_of_statistics(input))
        axes = [axis for axis in range(input.ndim) if axis != 1]
        own = torch.cat([*torch.var_mean(values, axes, correction=0), values.new_tensor([values[:, 0].numel()])])
        each = gather(own[None])
        variances, means = each[:, :-1].chunk(2, dim=1)
        counts = each[:, -1:]
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        output = F.batch_norm(values, mean, variance, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(values, weight, mean, variance, total)
        ctx.eps, ctx.dtype = eps, input.dtype
        unbiased = variance * total / (total - 1)
        ctx.mark_non_differentiable(mean, unbiased)
        return output.to(input.dtype), mean, unbiased

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, weight, mean, variance, total = ctx.saved_tensors
        # As if mean and variance were constants; what flows through them is taken off below.
        of_values, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient.to(values.dtype), values, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.cat([of_weight, of_bias])
        if world_size() > 1:
            dist.all_reduce(sums)
        by_variance, by_mean = (sums / total).chunk(2)
        inverse = (variance + ctx.eps).rsqrt()
        slope = weight * inverse.square() * by_variance
        shift = weight * inverse * by_mean - slope * mean
        shape = [1, -1] + [1] * (values.ndim - 2)
        of_values.addcmul_(values, slope.view(shape), value=-1).sub_(shift.view(shape))
        return of_values.to(ctx.dtype), of_weight, of_bias, None


def _dtype_of_statistics(input: Tensor) -> torch.dtype:
    """As plain BatchNorm: half precision is too coarse for statistics, float64 stays."""
    return torch.promote_types(input.dtype, torch.float32)


def _as_statistics(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Parameters in the precision of the statistics: kernels refuse others, which a model that was cast has."""
    dtype = _dtype_of_statistics(input)
    return None if weight is None else weight.to(dtype), None if bias is None else bias.to(dtype)


@torch.no_grad()
def _move_running_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    step = norm.momentum
    if step is None:
        step = (1.0 / norm.num_batches_tracked.float()).to(norm.running_mean.dtype)
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
