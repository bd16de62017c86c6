"""What to do when data cannot be read for a while: wait and try again, for a stated time, then stop with a name."""

import contextlib
import logging
import lzma
import re
import tarfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import fsspec
import fsspec.config
import pyarrow as pa
from datasets import config

from hf_ssl.errors import UserError, first_line

_logger = logging.getLogger(__name__)

DATA_TIMEOUT = 300.0
"""Seconds for which reading is tried again, unless the user says otherwise."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between two attempts
_NAMED = re.compile(r"`.*`|\w://|'/")  # a message that names a file or an address
_LONGEST_SILENCE = 30.0  # seconds without a byte after which a connection counts as lost
_ERRORS = (
    OSError,
    EOFError,
    pa.ArrowException,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
# Packages whose own errors come from files and connections, and are not all an `OSError`.
_PACKAGES = {"aiohttp", "botocore", "datasets", "fsspec", "gcsfs", "http", "httpcore", "httpx", "httpx2"}
_PACKAGES |= {"huggingface_hub", "requests", "s3fs", "urllib3"}
_RETRIES = ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES")
_PAUSES = (
    "STREAMING_READ_RETRY_INTERVAL",
    "STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL",
    "STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL",
    "STREAMING_OPEN_RETRY_INTERVAL",
)


class DataUnavailableError(UserError):
    """Data that was there when it was opened, and can no longer be read.

    Args:
        message: What cannot be read, for how long it was tried, and why it failed.
    """

    def __init__(self, message: str):
        # A `DataLoader` raises an error of a worker anew, with its traceback for a message that ends with ours.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def comes_from_reading(error: BaseException) -> bool:
    """Whether an error is one that a file or a connection can cause, and not a fault of the program."""
    if isinstance(error, UserError):
        return False
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, _ERRORS) or not packages.isdisjoint(_PACKAGES)


class Patience:
    """Waits between two attempts to read, longer each time, and gives up when nothing came for a while.

    Args:
        name: What is read, for messages.
        timeout: Seconds without progress after which it gives up, at least 0.
    """

    def __init__(self, name: str, timeout: float):
        self.name, self.timeout = name, timeout
        self._failing_since: float | None = None
        self._pause = _FIRST_PAUSE

    def succeeded(self) -> None:
        """Something was read: the time begins anew with the next failure."""
        if self._failing_since is not None:
            _logger.warning("`%s` can be read again.", self.name)
        self._failing_since, self._pause = None, _FIRST_PAUSE

    def wait(self, error: BaseException, since: float) -> None:
        """Wait after a failed attempt.

        Args:
            error: Why it failed.
            since: When the attempt began, by `time.monotonic`.

        Raises:
            DataUnavailableError: If the time is over.
        """
        reason = reason_in_words(error)
        if self._failing_since is None:
            self._failing_since = since
            if self.timeout > 0:
                text = "`%s` cannot be read: %s. Trying again for up to %g seconds."
                _logger.warning(text, self.name, reason, self.timeout)
        left = self._failing_since + self.timeout - time.monotonic()
        if left <= 0:
            raise self._unavailable(reason) from error
        time.sleep(min(self._pause, left))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _unavailable(self, reason: str) -> DataUnavailableError:
        tried = f"within `data_timeout`, {self.timeout:g} seconds" if self.timeout > 0 else "at the first attempt"
        return DataUnavailableError(
            f"`{self.name}` could not be read {tried}: {reason}. Check the file or the connection, or raise "
            "`data_timeout`."
        )


def reason_in_words(error: BaseException) -> str:
    """The first line of an error with its kind, and the file or address that it is about if that is known."""
    chain = [error]
    while (following := chain[-1].__cause__ or chain[-1].__context__) is not None and following not in chain:
        chain.append(following)
    own = [one for one in chain if comes_from_reading(one)] or [error]
    cause = next((one for one in own if _NAMED.search(first_line(one))), own[-1])
    told = first_line(cause, kind=True)[:300].rstrip(".: ")
    place = None if _NAMED.search(told) else next(filter(None, map(_place_of, chain)), None)
    return f"{told}{f' (`{place}`)' if place else ''}"


def _place_of(error: BaseException) -> str | None:
    """The file or address that was read when an error came, from the request or the readers of `datasets`."""
    with contextlib.suppress(RuntimeError):  # of httpx where an error has no request
        request = getattr(error, "request", None) or getattr(getattr(error, "response", None), "request", None)
        if request is not None and getattr(request, "url", None):
            return str(request.url)
    place = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").startswith("datasets.packaged_modules."):
            found = [frame.f_locals.get(name) for name in ("file", "tar_path", "downloaded_file_path")]
            place = next((one for one in found if isinstance(one, str)), place)
    return place


@contextlib.contextmanager
def impatient_libraries() -> Iterator[None]:
    """Let `datasets` and fsspec report a lost connection soon, since `Patience` is what tries again.

    By itself `datasets` repeats a read twenty times with pauses of up to a minute, and a silent connection to an
    address lasts five minutes.
    """
    former = {name: getattr(config, name) for name in (*_RETRIES, *_PAUSES)}
    of_fsspec = {protocol: fsspec.config.conf.get(protocol, {}) for protocol in ("http", "https")}
    for name in former:
        setattr(config, name, 1 if name in _RETRIES else 0)
    for protocol, options in of_fsspec.items():
        fsspec.config.conf[protocol] = {"get_client": _client, **options}
    try:
        yield
    finally:
        for name, value in former.items():
            setattr(config, name, value)
        fsspec.config.conf.update(of_fsspec)


async def _client(**options: Any) -> Any:
    """What fsspec reads addresses with, but for a limit on silence instead of one on the whole download."""
    import aiohttp  # here, because it takes long and few data sets need it

    silence = aiohttp.ClientTimeout(total=None, sock_connect=_LONGEST_SILENCE, sock_read=_LONGEST_SILENCE)
    return aiohttp.ClientSession(**{"timeout": silence, **options})
