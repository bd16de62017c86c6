"""The ring of past keys that MoCo takes its negatives from."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_ssl.errors import UserError


def random_queue(dim: int, size: int) -> Tensor:
    """Keys to start from: random directions.

    Args:
        dim: Width of a key, at least 1.
        size: Keys that the queue holds, at least 1.

    Returns:
        (dim, size), each column of unit length.
    """
    return F.normalize(torch.randn(dim, size), dim=0)


def check_fits(size: int, num_keys: int) -> None:
    """Refuse a queue that the keys of one forward pass do not fit into.

    Raises:
        UserError: If the keys are more than the queue holds.
    """
    if num_keys > size:
        raise UserError(
            f"The queue holds {size} keys but one step brings {num_keys} (batch size times processes, twice that if "
            "symmetric). Raise `queue_size` or lower the batch size."
        )


@torch.no_grad()
def enqueue(queue: Tensor, position: Tensor, keys: Tensor) -> Tensor:
    """Write keys over the oldest ones, in place, going on at the front when the end is reached.

    The official code asserts that the queue size is a multiple of the batch size; writing around the end lifts that.

    Args:
        queue: (dim, size).
        position: Column that is written next, (), int64, in [0, size).
        keys: New keys of all processes, (batch, dim).

    Returns:
        The columns that were written, (batch,), int64: where whatever belongs to the keys goes.

    Raises:
        UserError: If the keys are more than the queue holds.
    """
    size, batch_size = queue.shape[1], keys.shape[0]
    check_fits(size, batch_size)
    columns = (position + torch.arange(batch_size, device=queue.device)) % size
    queue.index_copy_(1, columns, keys.T.to(queue.dtype))
    position.copy_((position + batch_size) % size)
    return columns
