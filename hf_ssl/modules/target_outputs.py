"""What a target network makes of views, in BatchNorm groups that betray no positive."""

import torch
from torch import Tensor, nn

from hf_ssl.distributed import Shuffle, gather, world_size


@torch.no_grad()
def target_outputs(
    view: Tensor, target_encoder: nn.Module, target_projector: nn.Module, *, bn_splits: int, shuffle: bool
) -> tuple[Tensor, Tensor]:
    """Target representations of the own views, and projections of those of all processes, in rank order.

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
        Representations (batch, hidden size) of this process's images; and projections before normalisation (batch *
        processes, projection dim), equal on every process. Both float32.
    """
    if not shuffle or max(world_size(), bn_splits) == 1:
        h = target_encoder(view)
        return h.float(), gather(target_projector(h).float())
    order = Shuffle(len(view), view.device)
    h = target_encoder(order.there(view))
    z = target_projector(h)
    return order.back(h.float()), gather(order.back(z.float()))
