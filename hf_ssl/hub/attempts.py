"""Attempts of a push under one budget: ours, and those that huggingface_hub makes within each of them.

huggingface_hub sends content and most questions up to six times, with pauses, and does so in each of our attempts. All
of it goes through one client, whose `send` counts here what failures cost and lets it try again only while the budget
lasts. Time in which data go through costs nothing, so a large push over a slow line is not ended.
"""

import functools
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from time import monotonic
from typing import Any

from huggingface_hub import get_session
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
from huggingface_hub.utils import hf_raise_for_status

from hf_ssl.answers import ForeignAnswerError
from hf_ssl.hub.refusals import asked_pause, asked_pause_in, may_pass, reason

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 1.0  # seconds; doubled after each attempt
_LONGEST_PAUSE = 60.0
_SILENCE = 60.0  # seconds without a sign of life after which a request has failed
_CLIENT_PAUSE = 8.0  # the longest that huggingface_hub waits between two attempts of its own
_PASSING = (408, 429, 500, 502, 503, 504)  # what it tries again after
_LISTS = re.compile(r"/api/\w+/[^/]+/[^/]+/(tree|commits|paths-info)/")

_active: list["Budget"] = []
_failed = threading.local()  # `.at`: the last failed request of this thread, and when it failed


class Budget:
    """Seconds that one push may lose to failures: to requests that fail, and to the pauses after them.

    Args:
        seconds: How many; 0: nothing is tried again.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._spent = 0.0
        self._lock = threading.Lock()

    @property
    def left(self) -> float:
        """Seconds that are left; 0 if none."""
        return max(0.0, round(self.seconds - self._spent, 3))

    def spend(self, seconds: float) -> None:
        """Take off what a failure cost, of any thread."""
        with self._lock:
            self._spent += seconds


def repeat(push: Callable[[], str], budget: Budget) -> str:
    """Call `push` until it succeeds, fails for good, or the budget is spent; the last error is raised."""
    _bound_xet(budget)
    pause = _FIRST_PAUSE
    while True:
        prepare_client()
        _active.append(budget)
        try:
            return push()
        except Exception as error:
            asked = asked_pause(error)
            if not may_pass(error) or not budget.left or asked > budget.left:
                raise
            wait = max(asked, min(pause, budget.left))
            logger.warning("The push failed (%s); trying again in %.0f s.", reason(error), wait)
        finally:
            _active.remove(budget)
        time.sleep(wait)
        budget.spend(wait)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _bound_xet(budget: Budget) -> None:
    """Have hf_xet, which sends by itself, make five more attempts at most within a minute, or none in a small budget.

    It reads these variables once in a process. Its own longest pause is of six minutes.
    """
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_DURATION", "12s")
    if budget.seconds < _SILENCE:
        os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "0")


def prepare_client() -> None:
    """Have the Hub's client keep to the budgets, and to this process.

    The client is wrapped as it is: `set_client_factory` would take the place of a factory that the user has set, and
    event hooks do not see requests that fail.

    It closes itself in each process that is forked, such as a data worker, and would wait there for ever if a thread
    held a lock of its connections at that moment.
    """
    _failed.at = None
    client, owner = get_session(), os.getpid()
    if "send" not in vars(client):  # a client is replaced after some errors
        close = client.close
        client.send = functools.partial(_send, client.send)
        client.close = lambda: close() if os.getpid() == owner else None


def _send(send: Callable[..., Any], request: Any, *args: Any, **values: Any) -> Any:
    """Send a request; one of a push costs its budget what it loses."""
    # Content goes to addresses of their own, without the headers of this package, in threads of the client's.
    ours = request.method in ("PUT", "POST", "DELETE") or "hf_ssl/" in request.headers.get("User-Agent", "")
    if not ours or not _active:
        return send(request, *args, **values)
    budgets, key, started = list(_active), (request.method, str(request.url)), monotonic()
    last = getattr(_failed, "at", None)
    if last is not None and last[0] == key:  # the pause that the client made
        _spend(budgets, started - last[1])
    limits = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {
        name: _SILENCE if limits.get(name) is None else limits[name] for name in ("connect", "read", "write", "pool")
    }
    _failed.at = None
    try:
        response = send(request, *args, **values)
    except HTTPError as error:
        _note_failure(budgets, key, started)
        # After this one the client would replace itself by one that keeps to no budget.
        if type(error).__name__ == "ConnectError" or not _has_room(budgets, _CLIENT_PAUSE):
            raise ConnectionError(str(error)) from error
        raise
    if response.status_code in _PASSING:
        _note_failure(budgets, key, started)
        if not _has_room(budgets, max(_CLIENT_PAUSE, asked_pause_in(response.headers) + 1)):
            response.read()
            hf_raise_for_status(response)
    elif response.is_success and _LISTS.search(request.url.path) and not isinstance(response.json(), list):
        raise ForeignAnswerError  # the client would take it for a list without entries
    return response


def _note_failure(budgets: list[Budget], key: tuple[str, str], started: float) -> None:
    now = monotonic()
    _spend(budgets, min(now - started, _SILENCE))
    _failed.at = key, now


def _spend(budgets: list[Budget], seconds: float) -> None:
    for budget in budgets:
        budget.spend(seconds)


def _has_room(budgets: list[Budget], pause: float) -> bool:
    return all(budget.left >= pause for budget in budgets)
