"""The processes of a `DataLoader`: what happens before they are forked, and in each as it starts."""

import sys
import time

import cv2
import torch.distributed as dist

_REST = 0.1  # seconds; the threads need some milliseconds, or a turn of the scheduler on a busy machine


def let_threads_rest() -> None:
    """Wait a moment before workers are forked, where collectives have threads that may still be at work.

    Those of gloo let go of tensors just after a collective returns, and register with Python for it. Before Python
    3.12, a process that is forked while one of them does so waits for ever for the lock of that registry, which it
    inherits as taken.
    """
    if sys.version_info < (3, 12) and dist.is_available() and dist.is_initialized():
        time.sleep(_REST)


def use_one_core(worker: int) -> None:
    """Start a data worker: OpenCV's threads would compete with the other workers, one to a core."""
    cv2.setNumThreads(0)
