"""Signals that ask for the end of a run, and what happens where a run cannot follow them."""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, TypeVar

import psutil
import torch

from hf_ssl.data.order.loader import end_workers
from hf_ssl.distributed import gather, world_size
from hf_ssl.tokens import without_tokens

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
"""Signals that end a run after the step in hand; those that this system has."""

_SAME_REQUEST_SECONDS = 5.0  # a launcher passes on what the terminal or the cluster has sent to all processes
_MOST_STEPS_BETWEEN_AGREEMENTS = 10  # every step would make GPUs wait for each other
_SECONDS_BETWEEN_AGREEMENTS = 2.0
_LOOK_EVERY = 1.0  # seconds between two looks at the launcher

_T = TypeVar("_T")
_follower: threading.Thread | None = None


class _Interruption(BaseException):
    """What leaves a piece of work that need not be finished; no `except Exception` on the way takes it."""


class StopSignal:
    """Ctrl-C or a signal of a cluster asks for the end of the run after the step in hand.

    A run that cannot follow within `grace_seconds`, such as one whose data hang, is ended then; one that receives a
    second signal at once. Both say which checkpoint is left. A thread does this, which is told of signals by the
    operating system, also while the main thread is in a call that lets no Python code run.

    A signal that was ignored before, as SIGHUP is under `nohup`, stays ignored.

    Args:
        grace_seconds: Longest time from a signal to the end.
        left: What to tell of the run's state when it is ended: a sentence.

    Attributes:
        received: Number of the first signal, 0 if none came.
    """

    def __init__(self, grace_seconds: float = 20.0, left: Callable[[], str] = str) -> None:
        self.received = 0
        self._grace_seconds, self._left = grace_seconds, left
        self._received_at = 0.0
        self._former: dict[int, Any] = {}
        self._interruptible = False
        self._ears: tuple[socket.socket, socket.socket] | None = None
        self._former_fd = -1
        self._next_agreement, self._last_agreement = 0, (0, 0.0)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._former[number] = signal.signal(number, self._receive)
        hears, tells = socket.socketpair()
        tells.setblocking(False)
        self._ears = hears, tells
        self._former_fd = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(hears,), name="signals", daemon=True).start()
        return self

    def __exit__(self, kind: Any = None, *_: object) -> None:
        """Give the signals back; a process that was launched and is at its end keeps them until it has spoken.

        Its launcher sends SIGTERM to all others when the first has ended, and its own death is a SIGTERM too.
        """
        launched = world_size() > 1 or _follower is not None
        if self._ears is None or (launched and (self.received or kind is not None)):
            return
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
        signal.set_wakeup_fd(self._former_fd)
        self._ears[1].close()  # the thread hears the end, closes the other one and ends
        self._ears = None

    def _receive(self, number: int, _: FrameType | None) -> None:
        first = not self.received
        if first:
            self.received, self._received_at = number, time.monotonic()
        if self._interruptible:
            self._interruptible = False
            raise _Interruption
        if not first and number == signal.SIGINT and _in_notebook() and self._is_second(self._received_at):
            raise KeyboardInterrupt

    def unless_it_comes(self, work: Callable[[], _T]) -> _T | None:
        """Do something that a signal interrupts, where no other process takes part in it.

        Returns:
            What the work returns; None if a signal came meanwhile or before.
        """
        try:
            self._interruptible = True
            done = None if self.received else work()
            self._interruptible = False  # here, so that no signal finds its way between this line and the `except`
        except _Interruption:
            return None
        except BaseException:
            self._interruptible = False
            raise
        return done

    def hold_back_dead_workers(self) -> None:
        """Let PyTorch notice a data worker that was killed when it waits for it, and not at any place of a step."""
        child = getattr(signal, "SIGCHLD", None)
        if self._ears is not None and child is not None and child not in self._former:
            self._former[child] = signal.signal(child, signal.SIG_DFL)

    def is_due(self, step: int) -> bool:
        """Whether processes look at each other's signals after this step; the same on all of them."""
        return bool(self.received) if world_size() == 1 else step >= self._next_agreement

    def on_any_process(self, step: int, device: torch.device) -> int:
        """The signal that any process received; all processes must call it, after the same step.

        It also chooses the step of the next agreement, from the time that a step takes on the slowest process.
        """
        (former, then), now = self._last_agreement, time.monotonic()
        took = int(1e6 * (now - then) / max(1, step - former)) if former else 0
        numbers = gather(torch.tensor([[self.received, took]], device=device)).max(dim=0).values.tolist()
        self._last_agreement = step, now
        between = int(_SECONDS_BETWEEN_AGREEMENTS * 1e6 / numbers[1]) if numbers[1] else 1
        self._next_agreement = step + min(max(1, between), _MOST_STEPS_BETWEEN_AGREEMENTS)
        self.received = numbers[0]
        return self.received

    def _watch(self, ear: socket.socket) -> None:
        first, ends_at, number = None, None, 0
        with ear:
            while True:
                wait = None if ends_at is None else max(0.0, ends_at - time.monotonic())
                if not select.select([ear], [], [], wait)[0]:
                    told = f"{_name(number)} came {self._grace_seconds:g} seconds ago (`grace_seconds`), and the run"
                    end_process(f"{told} did not come to the end of what it does. {self._left()}", 128 + number)
                heard = ear.recv(64)
                if not heard:
                    return
                for number_heard in [one for one in heard if one in SIGNALS]:
                    if first is None:
                        first, number = time.monotonic(), number_heard
                        ends_at = None if number == signal.SIGINT and _in_notebook() else first + self._grace_seconds
                    elif self._is_second(first) and not (number_heard == signal.SIGINT and _in_notebook()):
                        told = f"{_name(number_heard)} came after {_name(number)}: the run ends at once."
                        end_process(f"{told} {self._left()}", 128 + number)

    @staticmethod
    def _is_second(first: float) -> bool:
        return time.monotonic() > first + _SAME_REQUEST_SECONDS


def _name(number: int) -> str:
    return signal.Signals(number).name


def _in_notebook() -> bool:
    """Whether a person types into this Python, which must not end then."""
    return hasattr(sys, "ps1")


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process; all processes must call it."""
    return bool(gather(torch.tensor([flag], dtype=torch.int64, device=device)).any())


def end_process(message: str, code: int) -> None:
    """End this process at once, from any thread, with a line on standard error; its data workers too.

    Neither logging nor `sys.exit` would do: the main thread may hang with a lock of the log in hand, and only it can
    leave Python in order.
    """
    os.write(2, f"\nerror: {without_tokens(message)}\n".encode())
    end_workers()
    os._exit(code)


def follow_launcher() -> None:
    """Treat the death of the launcher, if there is one, as a SIGTERM, from now until this process ends.

    `accelerate launch` of one process passes no signal on, and `torchrun` not those that it is not told to; both die
    of them, and leave a process behind that holds the device and the folder.
    """
    global _follower
    parent = os.getppid()
    if _follower is None and _is_launcher(parent):
        _follower = threading.Thread(target=_follow, args=(parent,), name="launcher", daemon=True)
        _follower.start()


def _is_launcher(process: int) -> bool:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return True
    try:
        command = psutil.Process(process).cmdline()
    except psutil.Error:
        return False
    return is_accelerate(command)


def is_accelerate(command: Sequence[str]) -> bool:
    """Whether a command line is that of `accelerate launch`."""
    return any("accelerate" in word.rpartition("/")[2] or word.startswith("accelerate.") for word in command[:3])


def _follow(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_LOOK_EVERY)
    os.write(2, b"\nThe launcher of this process has died, so the run ends too.\n")
    os.kill(os.getpid(), signal.SIGTERM)
