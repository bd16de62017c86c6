"""The error that is a message to the user: every room raises it, and the commands print its text alone."""

import difflib
from collections.abc import Iterable

from hf_ssl.tokens import record_without_tokens


class UserError(ValueError):
    """Something that the user can put right: a setting, a file, a name, a machine that lacks something.

    The text names the setting, the rule, the value got and the cure, in one or two sentences. A bug is never a
    `UserError`, so that it keeps its traceback. The text repeats what the user gave, such as an address: what gives
    access to it is hidden, see `without_tokens`.
    """

    exit_code = 2  # of a command

    def __init__(self, *args: object):
        super().__init__(*record_without_tokens(args))


class NotPublishedError(UserError):
    """The Hub did not take what was to be published; all of it is still here, and the text says how to try again."""

    exit_code = 4


class LostProcessError(UserError):
    """A run lost one of its processes: the same command with `--resume auto` may well succeed.

    Args:
        message: Which process, and what is left.
        at_once: Whether this process speaks for all, although it may not be the first.
    """

    exit_code = 75  # by custom, a failure after which trying again may help

    def __init__(self, message: str, *, at_once: bool = False):
        super().__init__(message)
        self.at_once = at_once


def first_line(error: BaseException, *, kind: bool = False) -> str:
    """What another package says in an error, as part of a sentence: the first line of its text, without a full stop.

    Args:
        error: The error. Its class stands for a text that is empty.
        kind: Whether the class is named before the text.
    """
    name = type(error).__name__
    line = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    return line if line and not kind else f"{name}: {line}" if line else name


def near_name(name: str, known: Iterable[str]) -> str:
    """` Did you mean ...?` for a misspelt name, empty if nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean `{near[0]}`?" if near else ""
