"""What a target network makes of the views of all processes, in BatchNorm groups that betray no positive."""

import torch
from torch import Tensor, nn

from hf_ssl.distributed import gather, rank, shared_permutation, world_size


@torch.no_grad()
def target_outputs(
    view: Tensor, target_encoder: nn.Module, target_projector: nn.Module, *, bn_splits: int, shuffle: bool
) -> tuple[Tensor, Tensor]:
    """Target representations and projections of the views of all processes, in rank order.

    A query and its key from the same BatchNorm group would share a trace of the group's statistics. Shuffling gives
    the keys to the groups of all processes in random order, and puts the outputs back into their places (He et al.,
    2019, section 3.3).

    Args:
        view: One view of the images of this process, (batch, 3, height, width).
        target_encoder: From views to representations.
        target_projector: From representations to projections.
        bn_splits: BatchNorm groups of the batch of all processes, at least 1. With one group in all nothing is
            shuffled: it would only change the order within it.
        shuffle: Whether to shuffle.

    Returns:
        Representations (batch * processes, hidden size) and projections before normalisation (batch * processes,
        projection dim), both float32 and equal on every process.
    """
    order = None
    if shuffle and max(world_size(), bn_splits) > 1:
        images = gather(view)
        order = shared_permutation(len(images), view.device)
        view = images[order.chunk(world_size())[rank()]]
    h = target_encoder(view)
    z = target_projector(h)
    h, z = gather(h.float()), gather(z.float())
    if order is not None:
        place = order.argsort()
        h, z = h[place], z[place]
    return h, z
