"""Evaluation mode for a while, after which each part of a network is in its own mode again."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Generator[None]:
    """Evaluation mode inside; outside, each submodule's own mode again, which may differ from its parent's."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
