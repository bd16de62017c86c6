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

    def __init__(self, *args: object):
        super().__init__(*record_without_tokens(args))


def near_name(name: str, known: Iterable[str]) -> str:
    """` Did you mean ...?` for a misspelt name, empty if nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean `{near[0]}`?" if near else ""
