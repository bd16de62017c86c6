"""Speed of a run, and how long it waits for data."""

import time
from collections.abc import Iterator
from typing import Any

from hf_ssl.data.order.stream import Batch, TrainingStream
from hf_ssl.distributed import world_size
from hf_ssl.training.watch.base import Moment, Watch


class Clock(Watch):
    """Seconds of training and of waiting for data since the last log line; evaluation and saving do not count.

    Args:
        total: Seconds of training before this process started.
        every: Optimizer steps between two log lines.
    """

    name = "The clock"
    may_fail = False

    def __init__(self, total: float, every: int = 0):
        super().__init__(every)
        self.total = total
        self._seconds = self._waiting = 0.0
        self._images = 0
        self._resumed_at = time.perf_counter()

    def batches(self, stream: TrainingStream) -> Iterator[Batch]:
        """The stream's batches, timing how long each was waited for."""
        batches = iter(stream)
        while True:
            started = time.perf_counter()
            batch = next(batches)
            self._waiting += time.perf_counter() - started
            self._images += len(batch.views)
            yield batch

    def pause(self) -> None:
        """Leave out what follows, until `resume`."""
        elapsed = time.perf_counter() - self._resumed_at
        self._seconds += elapsed
        self.total += elapsed

    def now(self) -> float:
        """Seconds of training so far, those since `resume` included; not to be called while paused."""
        return self.total + time.perf_counter() - self._resumed_at

    def resume(self) -> None:
        """Count again."""
        self._resumed_at = time.perf_counter()

    def look(self, moment: Moment) -> dict[str, Any]:
        """Speed of all processes since the last look, to be made while paused."""
        seconds = max(self._seconds, 1e-9)
        figures = {
            "images_per_second": round(self._images * world_size() / seconds, 1),
            "data_wait": round(min(self._waiting / seconds, 1.0), 4),
        }
        self._seconds = self._waiting = 0.0
        self._images = 0
        return figures

    def progress(self) -> dict[str, Any]:
        """Seconds of training of the whole run."""
        return {"seconds": round(self.total, 2)}
