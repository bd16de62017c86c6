"""Signals that ask for the end of a run."""

import signal
import threading
import time
from types import FrameType
from typing import Any

import torch

from hf_ssl.distributed import gather

_SAME_SIGNAL_SECONDS = 3.0


class StopSignal:
    """Ctrl-C or a cluster's SIGTERM asks for the end of the run after the step in hand; a later Ctrl-C ends it now.

    A launcher passes the signal on that the terminal has already sent, so repetitions within seconds are one request.

    Attributes:
        received: Number of the signal, 0 if none came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._received_at = 0.0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received and number == signal.SIGINT and time.monotonic() > self._received_at + _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._received_at = number, time.monotonic()

    def on_any_process(self, device: torch.device) -> int:
        """The signal that any process received; all processes must call it."""
        return int(gather(torch.tensor([self.received], device=device)).max())


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process; all processes must call it."""
    return bool(gather(torch.tensor([flag], dtype=torch.int64, device=device)).any())
