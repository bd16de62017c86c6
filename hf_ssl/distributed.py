"""What methods need from other processes: gathering, averaging and one shared random permutation.

Every function is the identity (or its local equivalent) in a single process, so methods call them unconditionally.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_ROWS_PER_GATHER = 65_536  # bounds what a gather puts on a device: 0.5 GB a process at 2,048 features


_alone = False  # inside of `working_alone`


@contextmanager
def working_alone() -> Iterator[None]:
    """Let every function here do for a while what it does in a single process: others do not take part."""
    global _alone
    # A single process is alone anyway, and what was compiled would be compiled again for another value.
    former, _alone = _alone, dist.is_available() and dist.is_initialized()
    try:
        yield
    finally:
        _alone = former


def world_size() -> int:
    """Number of training processes; 1 where no process group exists."""
    return dist.get_world_size() if not _alone and dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, in [0, `world_size()`)."""
    return dist.get_rank() if not _alone and dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """Stack the tensors of all processes along the first dimension, in rank order, without gradient.

    Args:
        tensor: Any shape (batch, ...), the same on every process.

    Returns:
        (batch * processes, ...), equal on every process.
    """
    if world_size() == 1:
        return tensor
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def gather_rows(rows: Tensor, device: torch.device) -> Tensor:
    """Stack the rows of all processes, which may hold different numbers of them, in rank order.

    Args:
        rows: (rows, ...), on the CPU.
        device: Where the processes exchange them.

    Returns:
        (rows of all processes, ...), equal on every process, on the CPU.
    """
    if world_size() == 1:
        return rows
    counts = gather(torch.tensor([len(rows)], device=device)).tolist()
    parts: list[list[Tensor]] = [[] for _ in counts]
    for start in range(0, max(counts), _ROWS_PER_GATHER):
        stop = min(start + _ROWS_PER_GATHER, max(counts))
        padded = torch.zeros(stop - start, *rows.shape[1:], dtype=rows.dtype, device=device)
        own = rows[start:stop]
        padded[: len(own)] = own.to(device)
        for number, chunk in enumerate(gather(padded).cpu().split(stop - start)):
            parts[number].append(chunk[: max(0, min(counts[number], stop) - start)])
    return torch.cat([chunk for part in parts for chunk in part])


class _GatherWithGradient(torch.autograd.Function):
    """All-gather whose backward pass adds up the gradients of all processes and keeps the own part."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.batch_size = len(tensor)
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # A copy: autograd may hand the same tensor to other branches.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.narrow(0, rank() * ctx.batch_size, ctx.batch_size)


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Like `gather`, with gradients flowing back to the process that made each part.

    Each process computes the loss of its own anchors against all candidates. The backward pass adds up what all
    processes send to a candidate; DistributedDataParallel then averages over processes, so the gradient equals that of
    the mean over all anchors computed in one process.

    Args:
        tensor: Any shape (batch, ...), the same on every process.

    Returns:
        (batch * processes, ...), equal on every process.
    """
    return tensor if world_size() == 1 else _GatherWithGradient.apply(tensor)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def mean_over_processes(tensor: Tensor) -> Tensor:
    """Average a tensor of equal shape over all processes, without gradient; equal on every process."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / world_size()


@torch.no_grad()
def shared_permutation(length: int, device: torch.device) -> Tensor:
    """A random permutation of range(`length`), drawn on rank 0 and equal on every process.

    Args:
        length: Number of elements, at least 1.
        device: Where the result lives. It is drawn from that device's global generator.

    Returns:
        Permutation, (length,), int64.
    """
    permutation = torch.randperm(length, device=device)
    if world_size() > 1:
        dist.broadcast(permutation, src=0)
    return permutation


class Shuffle:
    """Rows of all processes in one random order, and back to where they came from.

    Each row travels to one process and not to all, so that the bytes and the memory of a process do not grow with the
    number of processes. How many rows go where depends on the order: drawing it waits for the device, where there are
    several processes.

    Args:
        batch_size: Rows of each process, at least 1.
        device: Where the rows are. The order is drawn from that device's global generator on rank 0.
    """

    def __init__(self, batch_size: int, device: torch.device):
        size, own = world_size(), rank()
        order = shared_permutation(batch_size * size, device)
        if size == 1:
            self._leaving = order
            return
        # Rows are sent and received as those of one process after the other.
        source = order // batch_size
        self._leaving = order[source == own] - own * batch_size
        self._arriving = source[own * batch_size : (own + 1) * batch_size].argsort(stable=True)
        target = torch.arange(size, device=device).repeat_interleave(batch_size)
        counts = torch.bincount(target * size + source, minlength=size * size).view(size, size)
        self._sent, self._received = torch.stack([counts[:, own], counts[own]]).tolist()

    @torch.no_grad()
    def there(self, rows: Tensor) -> Tensor:
        """The rows that the order gives to this process.

        Args:
            rows: (batch, ...), the same shape on every process.
        """
        rows = rows[self._leaving]
        return rows if world_size() == 1 else self._placed(rows, self._sent, self._received, self._arriving)

    @torch.no_grad()
    def back(self, rows: Tensor) -> Tensor:
        """What belongs to the own rows, in their order, from the processes that `there` gave them to.

        Args:
            rows: (batch, ...), one for each row that `there` returned.
        """
        if world_size() == 1:
            return torch.empty_like(rows).index_copy_(0, self._leaving, rows)
        return self._placed(rows[self._arriving], self._received, self._sent, self._leaving)

    @staticmethod
    def _placed(rows: Tensor, sent: list[int], received: list[int], places: Tensor) -> Tensor:
        arrived = torch.empty_like(rows, memory_format=torch.contiguous_format)
        dist.all_to_all_single(arrived, rows.contiguous(), received, sent)
        return torch.empty_like(arrived).index_copy_(0, places, arrived)


@torch.no_grad()
def shared_uniform(num_rows: int, num_columns: int, device: torch.device) -> Tensor:
    """Random numbers drawn on rank 0 and equal on every process.

    A process that uses the rows of its images computes what one process with the whole batch would.

    Args:
        num_rows: Images of all processes, at least 1.
        num_columns: Numbers for each image, at least 0.
        device: Where the result lives. It is drawn from that device's global generator.

    Returns:
        Independent and uniform in [0, 1), (num_rows, num_columns), float32.
    """
    numbers = torch.rand(num_rows, num_columns, dtype=torch.float32, device=device)
    if world_size() > 1:
        dist.broadcast(numbers, src=0)
    return numbers


@torch.no_grad()
def broadcast(tensor: Tensor) -> None:
    """Overwrite a tensor of equal shape on every process with that of the first, in place."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
