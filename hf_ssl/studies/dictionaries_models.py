"""What the mechanisms of a dictionary have in common: vectors of a batch, entries that outlive a step, and bytes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_ssl.methods.base import SSLOutput, SSLPreTrainedModel
from hf_ssl.methods.end_to_end import EndToEndForPreTraining
from hf_ssl.methods.memory_bank import MemoryBankForPreTraining
from hf_ssl.methods.moco import MoCoForPreTraining


def vectors_of(output: SSLOutput) -> tuple[Tensor, Tensor]:
    """Unit vectors that the query encoder and the key encoder made of a batch, each (batch, dim)."""
    if output.projections is None:
        raise ValueError("A method whose dictionary is looked at must return `projections`.")
    queries, keys = F.normalize(output.projections.float(), dim=2).unbind(dim=1)
    return queries, keys


@torch.no_grad()
def copy_queries(model: SSLPreTrainedModel) -> None:
    """Give the network of the keys the weights of that of the queries, where they are two."""
    for network in ("encoder", "projector"):
        for kind in ("target", "key"):
            if hasattr(model, f"{kind}_{network}"):
                parameters = model.get_submodule(f"{kind}_{network}").parameters()
                for copied, source in zip(parameters, model.get_submodule(network).parameters(), strict=True):
                    copied.copy_(source)


def entries_of(model: SSLPreTrainedModel) -> int:
    """Keys that outlive a step; 0 where the batch is the dictionary."""
    if isinstance(model, MemoryBankForPreTraining):
        return len(model.bank)
    return model.queue.shape[1] if isinstance(model, MoCoForPreTraining) else 0


def bytes_of(model: SSLPreTrainedModel) -> int:
    """Bytes of the keys that outlive a step, and of a second network."""
    parts: Sequence[Any] = ()
    if isinstance(model, MemoryBankForPreTraining):
        parts = [model.bank]
    elif isinstance(model, MoCoForPreTraining):
        parts = [model.queue, *model.target_encoder.parameters(), *model.target_projector.parameters()]
    elif isinstance(model, EndToEndForPreTraining) and model.config.separate_keys:
        parts = [*model.key_encoder.parameters(), *model.key_projector.parameters()]
    return sum(part.numel() * part.element_size() for part in parts)


def bytes_held(model: SSLPreTrainedModel, inputs: dict[str, Tensor]) -> int:
    """Bytes that a forward pass holds for its backward pass, each once, without weights and images.

    Unlike the peak of a device it is the same everywhere, and does not depend on what else is in memory.

    Args:
        model: In training mode; its buffers change.
        inputs: Of `forward`.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *inputs.values())}
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**inputs).loss
    return sum(held.values()) if loss is not None else 0
