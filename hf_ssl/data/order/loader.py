"""One way to make a `DataLoader`: its order is the sampler's, and its processes start safely and share the cores."""

import sys
import time
from collections.abc import Iterable
from typing import Any

import cv2
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

_REST = 0.1  # seconds; the threads need some milliseconds, or a turn of the scheduler on a busy machine


def make_loader(dataset: Dataset, sampler: Iterable[Any], num_workers: int, **options: Any) -> DataLoader:
    """Make a loader whose items are those of the dataset for what the sampler hands out, one by one, unchanged.

    Args:
        dataset: Maps what the sampler hands out; it runs in the workers.
        sampler: Runs in this process.
        num_workers: Processes that are forked when the loader is iterated; 0 for none.
        options: More of a `DataLoader`, such as `pin_memory`.
    """
    if num_workers:
        _let_threads_rest()
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=num_workers,
        worker_init_fn=_use_one_core,
        generator=torch.Generator(),  # its own: the loader draws a seed, and the run's generator must not move
        **options,
    )


def _let_threads_rest() -> None:
    """Wait a moment before workers are forked, where collectives have threads that may still be at work.

    Those of gloo let go of tensors just after a collective returns, and register with Python for it. Before Python
    3.12, a process that is forked while one of them does so waits for ever for the lock of that registry, which it
    inherits as taken.
    """
    if sys.version_info < (3, 12) and dist.is_available() and dist.is_initialized():
        time.sleep(_REST)


def _use_one_core(worker: int) -> None:
    """Start a data worker: OpenCV's threads would compete with the other workers, one to a core."""
    cv2.setNumThreads(0)


def _unchanged(item: Any) -> Any:
    return item
