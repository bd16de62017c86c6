"""Which processes of a run are still there, so that the others need not wait for one that is lost."""

import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psutil
from accelerate.utils import gather_object
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from hf_ssl.distributed import rank, world_size
from hf_ssl.errors import LostProcessError, first_line
from hf_ssl.training.watch.signals import end_process

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
"""Time between two signs of life of a process."""

SILENCE_SECONDS = 20.0
"""Time without one after which a process counts as lost, such as one that was stopped or whose machine is gone."""

_SECONDS_TO_RAISE = 5.0  # for the main thread, which may meet the same error, before the process is ended
_OF_COLLECTIVES = re.compile(
    r"Dist\w*Error|gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out", re.IGNORECASE
)


class Ranks:
    """While it is entered, a process that dies, fails or falls silent ends the others, with a sentence that names it.

    Without this they wait in their next collective until its time limit, many minutes later, or fail with an error
    that names no process. Each process gives signs of life in the store by which the processes found each other. The
    first one listens to all, the others to the first and to what it has found; those of one machine see each other's
    death at once. A process that is alive but slow, such as one that waits for data, is waited for.

    Does nothing in a single process.

    Args:
        left: What to tell of the run's state when it is ended: a sentence. May be replaced while it is entered.
    """

    def __init__(self, left: Callable[[], str] = lambda: "Training had not begun."):
        self.left = left
        self._store: Any = None
        self._ended = threading.Event()
        self._found = threading.Event()
        self._lost: tuple[int, str] = (-1, "")
        self._peers: list[tuple[str, str, int]] = []
        self._heard: dict[int, tuple[bytes, float]] = {}

    def __enter__(self) -> "Ranks":
        if world_size() > 1:
            self._peers = gather_object([(uuid.uuid4().hex, socket.gethostname(), os.getpid())])
            self._store = _open_store()
            if self._store is not None:
                threading.Thread(target=self._watch, name="ranks", daemon=True).start()
        return self

    def __exit__(self, kind: Any = None, error: BaseException | None = None, _: Any = None) -> None:
        """Tell the others why this process leaves them, or name the one by which it was left.

        Raises:
            LostProcessError: If a collective failed because another process is lost.
        """
        if self._store is None or error is None:
            self._ended.set()
            return
        if isinstance(error, RuntimeError) and _OF_COLLECTIVES.search(f"{type(error)} {error}"):
            self._found.wait(SILENCE_SECONDS + 3 * BEAT_SECONDS)
            self._ended.set()
            if not self._found.is_set():
                self._lost = (-1, f"The connection to another process of the run is lost ({first_line(error)}).")
            raise LostProcessError(self._sentence(), at_once=self._speaks()) from error
        self._ended.set()
        try:
            why = first_line(error, kind=not isinstance(error, ValueError))
            self._tell(rank(), f"{self._name(rank())} has failed: {why}.")
        except RuntimeError as unreachable:
            logger.debug("The other processes could not be told: %s", unreachable)

    def _sentence(self) -> str:
        return f"{self._lost[1]} {self.left()}"

    def _speaks(self) -> bool:
        """Whether this process is the first of those that are left, which speaks for all."""
        return rank() == (1 if self._lost[0] == 0 else 0)

    def _name(self, number: int) -> str:
        _, host, process = self._peers[number]
        return f"Process {number} of {len(self._peers)} (pid {process} on {host})"

    def _key(self, name: str) -> str:
        return f"hf_ssl/{self._peers[0][0]}/{name}"  # a store may outlive a run

    def _tell(self, number: int, text: str) -> None:
        """Say which process is lost; the first who says it is right, because others then die of that."""
        told = self._store.compare_set(self._key("lost"), "", f"{number} {text}").decode()
        lost, _, sentence = told.partition(" ")
        self._lost = int(lost), sentence

    def _watch(self) -> None:
        count, closed_at = 0, None
        while not self._ended.wait(BEAT_SECONDS):
            count += 1
            lost = None
            try:
                if closed_at is None:
                    self._store.set(self._key(f"beat/{rank()}"), str(count))
                    lost = self._look(rank())
                else:
                    lost = self._look_without_store(closed_at)
            except RuntimeError:
                closed_at = time.monotonic()  # a connection that is lost stays so
            if lost is not None:
                break
        if self._ended.is_set():
            return
        self._found.set()
        # The main thread may meet the loss too; and the first process speaks before the others do.
        if not self._ended.wait(_SECONDS_TO_RAISE if self._speaks() else 2 * _SECONDS_TO_RAISE):
            end_process(self._sentence(), LostProcessError.exit_code)

    def _look(self, me: int) -> tuple[int, str] | None:
        """The lost process, and what happened to it; None if all are there."""
        if self._store.check([self._key("lost")]):
            self._tell(-1, "")  # which only reads it
            return self._lost
        dead = self._dead()
        if dead is not None:
            self._tell(*dead)
            return self._lost
        silent = next((one for one in (range(1, len(self._peers)) if me == 0 else [0]) if self._is_silent(one)), None)
        if silent is not None:
            text = f"{self._name(silent)} has given no sign of life for {SILENCE_SECONDS:g} seconds."
            self._tell(silent, text)
            return self._lost
        return None

    def _look_without_store(self, closed_at: float) -> tuple[int, str] | None:
        """The same where nobody can be asked: the store is in the launcher, or without one in process 0."""
        lost = self._dead()
        if lost is None and time.monotonic() > closed_at + SILENCE_SECONDS:
            lost = 0, f"The launcher or the machine of process 0 ({self._peers[0][1]}) no longer answers."
        if lost is not None:
            self._lost = lost
        return lost

    def _dead(self) -> tuple[int, str] | None:
        """Another process of this machine that has ended, in words."""
        others = (number for number in range(len(self._peers)) if number != rank())
        return next(((number, f"{self._name(number)} has died.") for number in others if self._has_died(number)), None)

    def _has_died(self, number: int) -> bool:
        """Whether a process of this machine has ended."""
        _, host, process = self._peers[number]
        if host != socket.gethostname():
            return False
        try:
            return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def _is_silent(self, number: int) -> bool:
        key, now = self._key(f"beat/{number}"), time.monotonic()
        beat = self._store.get(key) if self._store.check([key]) else b""
        if number not in self._heard or self._heard[number][0] != beat:
            self._heard[number] = beat, now
        return now > self._heard[number][1] + SILENCE_SECONDS


def _open_store() -> Any:
    """An own connection to the store of the run, whose calls do not wait for those of the main thread."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address is None or port is None:
        return None
    try:
        return TCPStore(address, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
    except RuntimeError as error:
        logger.warning("Lost processes will be noticed late: the store at %s:%s is closed. %s", address, port, error)
        return None
