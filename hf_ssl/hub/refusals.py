"""What may go wrong in a push: what another attempt may change, and what to say of the rest."""

import re
from collections.abc import Mapping

from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from hf_ssl.answers import ForeignAnswerError, is_foreign_answer

_STATUS_OF_XET = re.compile(r"HTTP status client error \((\d{3})")


class CannotPushError(Exception):
    """A sentence about what no other attempt would change."""


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, RevisionNotFoundError) or is_foreign_answer(error):
        return True  # a branch just made, or one removed meanwhile; a garbled answer
    status = status_of(error)
    if status is not None:
        # 409 and 412: something else changes the repository at the same time.
        return status in (408, 409, 412, 429) or status >= 500
    # A local file that cannot be read is an OSError too; only connections are worth another attempt.
    if isinstance(error, OfflineModeIsEnabled):
        return False
    # A file that cannot be downloaded is reported as one that the cache does not have.
    return isinstance(error, HTTPError | ConnectionError | TimeoutError | LocalEntryNotFoundError)


def status_of(error: BaseException) -> int | None:
    """Status of the answer that an error comes from; None without one, or where nothing says it.

    hf_xet has no errors of its own for a refusal: it calls it a lost connection, and names the status in the text.
    """
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code
    found = _STATUS_OF_XET.search(str(error)) if isinstance(error, OSError | RuntimeError) else None
    if found is not None:
        return int(found.group(1))
    return 401 if type(error).__name__ == "XetAuthenticationError" else None


def asked_pause(error: BaseException) -> float:
    """Seconds that the Hub asks to wait."""
    return asked_pause_in(error.response.headers) if isinstance(error, HfHubHTTPError) else 0.0


def asked_pause_in(headers: Mapping[str, str]) -> float:
    """Seconds that the headers of an answer ask to wait."""
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    asked = headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0


def reason(error: BaseException) -> str:
    """An error in a few words."""
    status = status_of(error)
    if status is not None:
        return f"status {status}"
    if is_foreign_answer(error):
        return "an answer that is not the Hub's"
    return type(error.__cause__ or error).__name__


def sentence_about(error: BaseException, repo_id: str, repo_type: str) -> str:
    """What went wrong and what to do; the server's own words only where there is nothing better."""
    if isinstance(error, OfflineModeIsEnabled):
        return "`HF_HUB_OFFLINE` is set, so nothing can be pushed. Unset it."
    if isinstance(error, GatedRepoError):
        return f"`{repo_id}` is gated, and the token's user has no access to it. Ask for access on its page."
    if isinstance(error, DisabledRepoError):
        return f"The Hub has disabled `{repo_id}`. Its page says why."
    if isinstance(error, RepositoryNotFoundError) and error.response.status_code == 404:
        return (
            f"The name `{repo_id}` is taken, but not by a {repo_type} that the token may see. "
            "Choose another `--repo_id`, or a token with access to it."
        )
    if is_foreign_answer(error):
        return str(ForeignAnswerError())
    status = status_of(error)
    if status == 401:
        return "The Hub does not accept the token. Run `hf auth login` with a valid one that may write."
    if status == 403:
        return f"The token may not write to `{repo_id}`. Use one with write access to that account."
    if status is not None:
        words = one_line((error.server_message or "") if isinstance(error, HfHubHTTPError) else str(error))
        return f"The Hub refuses the push to `{repo_id}` with status {status}{f': {words}' if words else ''}."
    if may_pass(error):
        return f"The Hub cannot be reached ({reason(error)}). Check the network."
    return f"The push failed: {one_line(str(error))}."


def one_line(text: str) -> str:
    """The text in one line without a full stop."""
    return " ".join(text.split()).rstrip(".")
