"""Secrets stay out of what others read: logs, cards, run records, error messages."""

import re
from typing import Any

from huggingface_hub import get_token

_HIDDEN = "***"
_TOKEN = re.compile(r"(?:hf_|api_org_)[A-Za-z0-9]{16,}|hf_(?:oauth|jwt)_[\w.-]+")
# With the user's name, in an address; a password may hold `@` itself.
_PASSWORD = re.compile(r"(?<=://)[^/?#\s'\"]+(?=@)")
# Parameters of an address that give access to it, as S3, Azure, Google and others sign their addresses.
_NAMES = r"token|secret|passw|pwd|signature|credential|auth(?!or)|jwt|session|api[-_]?key|access[-_]?key|key[-_]pair"
_PARAMETER = re.compile(
    rf"([?&;#](?:[\w.-]*(?:{_NAMES})[\w.-]*|(?:[\w-]+[-_])?(?:sig|key)|policy)=)[^&;#\s'\"`<>]+", re.IGNORECASE
)
_HEADER = re.compile(r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?)[^\s'\"]+", re.IGNORECASE)
_VARIABLE = re.compile(r"(\b\w*(?:TOKEN|SECRET|PASSWORD|ACCESS_KEY|API_KEY)=)['\"]?[^\s'\"]+")


def has_token(text: str) -> bool:
    """Whether a Hub token, such as the one in use, stands in the text."""
    token = get_token()
    return bool(_TOKEN.search(text)) or bool(token and token in text)


def without_tokens(text: str) -> str:
    """The text with `***` in the place of what gives access.

    Hub tokens, the one in use among them; in addresses passwords and parameters such as `?token=` or
    `X-Amz-Signature`; the value of `Authorization:` and of variables such as `AWS_SECRET_ACCESS_KEY=`.
    """
    token = get_token()
    if token:
        text = text.replace(token, _HIDDEN)
    text = _PASSWORD.sub(_HIDDEN, _TOKEN.sub(_HIDDEN, text))
    for named in (_PARAMETER, _HEADER, _VARIABLE):
        text = named.sub(rf"\1{_HIDDEN}", text)
    return text


def record_without_tokens(value: Any) -> Any:
    """The same for every text in nested dicts, lists and tuples; other values stay as they are."""
    if isinstance(value, str):
        return without_tokens(value)
    if isinstance(value, dict):
        return {key: record_without_tokens(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(record_without_tokens(item) for item in value)
    return value
