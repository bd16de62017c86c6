"""What a command says when it cannot go on: one sentence for the user's errors, a traceback for bugs."""

import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hf_ssl.errors import UserError
from hf_ssl.tokens import without_tokens

_SECONDS_FOR_THE_FIRST_PROCESS = 10.0


def user_message(error: BaseException) -> str | None:
    """The text of an error that is meant for the user; None for a bug.

    Beside `UserError` these are settings of a method that its config refuses, and what the operating system or the Hub
    refuses.
    """
    # Not needed by `hf-ssl --help`.
    from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
    from safetensors import SafetensorError

    from hf_ssl.answers import ForeignAnswerError, is_foreign_answer

    if not isinstance(error, UserError) and is_foreign_answer(error):
        error = ForeignAnswerError()
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, StrictDataclassError):
        return _strict_message(error)
    if isinstance(error, HfHubHTTPError):
        return f"The Hub refuses: {' '.join((error.server_message or str(error)).split())}"
    if isinstance(error, SafetensorError):
        return f"A file of weights is damaged or not complete: {error}. Copy or download it again."
    if isinstance(error, OSError):
        place = f": `{error.filename}`" if error.filename else ""
        return f"{error.strerror}{place}." if error.strerror else " ".join(str(error).split())
    return None


@contextmanager
def as_user_errors() -> Iterator[None]:
    """Raise what is meant for the user as `UserError`, for Python; a bug stays what it is."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        raise UserError(without_tokens(message)) from error


@contextmanager
def errors_for_users(debug: bool = False) -> Iterator[None]:
    """Turn an error that is a message to the user into `error: ...` on standard error and its exit code, mostly 2.

    Args:
        debug: Leave the traceback of every error.
    """
    try:
        yield
    except KeyboardInterrupt:
        if debug:
            raise
        print("Interrupted.", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            raise SystemExit(128 + signal.SIGPIPE) from None
        message = user_message(error)
        if message is None or debug:
            raise
        _print_once(without_tokens(message), wait=not getattr(error, "at_once", False))
        raise SystemExit(error.exit_code if isinstance(error, UserError) else 2) from None


def _strict_message(error: BaseException) -> str:
    error = error.__cause__ or error
    while isinstance(error, TypeError) and isinstance(error.__cause__, TypeError):  # of a list: that of its item
        error = error.__cause__
    text = " ".join(str(error).split())
    wrong_type = re.match(r"Field '(\S+)' expected (.*?),? got (.*)", text)
    if wrong_type:
        return f"`{wrong_type.group(1)}` must be {wrong_type.group(2)}, got {wrong_type.group(3)}."
    no_type = re.match(r"Field '(\S+)' with value (.*) doesn't match any type in \((.*?),?\)\. Errors: ", text)
    if no_type:
        kinds = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", no_type.group(3)).replace("NoneType", "none")
        kinds = re.sub(r", (?![^\[]*\])", " or ", kinds)  # not the comma in `tuple[float, ...]`
        return f"`{no_type.group(1)}` must be {kinds}, got {no_type.group(2)}."
    return text


def _reader_has_gone() -> bool:
    """Whether nobody reads standard output any more, as in `hf-ssl methods | head -1`; it is closed then."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if gone:  # what is left in the buffer would raise again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _print_once(message: str, wait: bool) -> None:
    """Print an error that every process may have met: the launcher ends the others once the first one has failed."""
    rank = os.environ.get("RANK", "0")
    if rank != "0" and wait:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # of the launcher; the loop may have left it to itself
        time.sleep(_SECONDS_FOR_THE_FIRST_PROCESS)
    if rank != "0":
        message = f"(process {rank}) {message}"
    print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201
