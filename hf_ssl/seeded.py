"""Random draws on the CPU that depend on a seed alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let the CPU draw from a seed, and leave all generators as they were.

    Args:
        seed: At least 0.
    """
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the generators of GPUs as well
        yield
