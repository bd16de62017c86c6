"""One way to make a `DataLoader`: its order is the sampler's, and its processes start safely and share the cores."""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import cv2
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

_REST = 0.1  # seconds; the threads need some milliseconds, or a turn of the scheduler on a busy machine
_LOOK_EVERY = 1.0  # seconds
_workers: WeakSet[Any] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.clear)  # they belong to the parent


class _Loader(DataLoader):
    """A `DataLoader` whose processes are known to `end_workers`."""

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        _workers.update(getattr(iterator, "_workers", ()))
        return iterator


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
    return _Loader(
        dataset,
        sampler=sampler,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=num_workers,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its own: the loader draws a seed, and the run's generator must not move
        **options,
    )


@atexit.register  # before the exit of multiprocessing, which waits for workers without a limit
def end_workers() -> None:
    """End the data workers of this process at once, also those that hang."""
    alive = [worker for worker in list(_workers) if worker.is_alive()]
    # PyTorch's handler would take their death for an accident, and raise.
    quiet = bool(alive) and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if quiet else None
    for worker in alive:
        worker.kill()
    if quiet:
        for worker in alive:
            worker.join(_LOOK_EVERY)
        signal.signal(signal.SIGCHLD, former)


def killed_workers(patience: float = 1.0) -> str:
    """Data workers of this process that did not end by themselves, in words; empty if there is none.

    Args:
        patience: Seconds to wait for one: its connection is lost a moment before it has ended.
    """
    end = time.monotonic() + patience
    while True:
        killed = [worker for worker in list(_workers) if not worker.is_alive() and worker.exitcode]
        if killed or time.monotonic() > end:
            return ", ".join(f"process {worker.pid} by {_cause(worker.exitcode)}" for worker in killed)
        time.sleep(0.05)


def _cause(exit_code: int) -> str:
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"


def _let_threads_rest() -> None:
    """Wait a moment before workers are forked, where collectives have threads that may still be at work.

    Those of gloo let go of tensors just after a collective returns, and register with Python for it. Before Python
    3.12, a process that is forked while one of them does so waits for ever for the lock of that registry, which it
    inherits as taken.
    """
    if sys.version_info < (3, 12) and dist.is_available() and dist.is_initialized():
        time.sleep(_REST)


def _start_worker(worker: int) -> None:
    """Prepare a data worker, which its training process alone ends.

    A cluster and a terminal send their signals to all processes of a run. A worker that obeyed would leave its process
    without the batches that it needs for the step in hand.
    """
    cv2.setNumThreads(0)  # OpenCV's threads would compete with the other workers, one to a core
    signal.set_wakeup_fd(-1)  # that of the training process, if it was forked
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker soon after its process has died, whatever it waits for."""
    never = threading.Event()
    while os.getppid() == parent:
        never.wait(_LOOK_EVERY)
    os._exit(1)


def _unchanged(item: Any) -> Any:
    return item
