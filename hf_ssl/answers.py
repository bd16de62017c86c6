"""Answers that are not the Hub's: of a proxy, of a network that wants a login first, of a wrong address.

They come with status 200, so huggingface_hub takes them for the Hub's and fails where it reads them, in as many ways
as there are answers. This is the one place that knows them all.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import FileMetadataError, HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

from hf_ssl.errors import UserError

_CLIENT = {"huggingface_hub", "httpx", "httpx2"}
_FAILURES = (ValueError, TypeError, LookupError, AttributeError)
_OF_THE_HUB = (
    "LFS batch API returned errors",
    "Invalid metadata in README.md",
)  # what a `ValueError` says that is true
_OF_DOWNLOADS = ("Consistency check failed",)
_OF_XET = ("error decoding response body", "failed to fill whole buffer")


class ForeignAnswerError(UserError):
    """What answered is not the Hub, or the Hub's answer was changed on its way."""

    def __init__(self) -> None:
        super().__init__(
            f"What answered at {constants.ENDPOINT} is not the Hub: a proxy, the login page of a network, or a wrong "
            "`HF_ENDPOINT`. Log in to the network, or set `HTTPS_PROXY` or `HF_ENDPOINT` right."
        )


@contextmanager
def hub_answers() -> Iterator[None]:
    """Raise `ForeignAnswerError` for what huggingface_hub raises when it cannot read an answer."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_foreign_answer(error):
            raise
        raise ForeignAnswerError from error


def is_foreign_answer(error: BaseException | None) -> bool:
    """Whether an error means that huggingface_hub could not read what a server answered.

    Args:
        error: As it was raised, with its traceback: the same `KeyError` of other code is a bug.
    """
    if error is None or isinstance(error, HTTPError | HFValidationError):
        return False
    if isinstance(error, ForeignAnswerError | FileMetadataError):
        return True
    if isinstance(error, _FAILURES):
        return _raised_by(error) in _CLIENT and not str(error).startswith(_OF_THE_HUB)
    if isinstance(error, OSError) and str(error).startswith(_OF_DOWNLOADS):
        return True
    if isinstance(error, OSError | RuntimeError):  # both ways of uploading wrap what befell them
        return any(words in str(error) for words in _OF_XET) or is_foreign_answer(error.__cause__)
    return False


def _raised_by(error: BaseException) -> str:
    """Package of the innermost code, outside the standard library, that an error comes from."""
    package, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        if name not in sys.stdlib_module_names:
            package = name
        trace = trace.tb_next
    return package
