"""How this process was asked for what it does: the command line, or the call of a Python function."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import psutil

from hf_ssl.tokens import without_tokens

_CALL: ContextVar[str | None] = ContextVar("call", default=None)


def command_line() -> str:
    """What the user typed, but for folders of programs and secrets: a command line, or the call in Python under way.

    Cards, records and errors repeat it.
    """
    return without_tokens(_command_line())


def _command_line() -> str:
    call = _CALL.get()
    if call is not None:
        return call
    program = Path(sys.argv[0])
    words = sys.argv[1:]
    if program.stem == "hf-ssl":
        own = ["hf-ssl"]
    elif program.name == "__main__.py":
        own = ["python", "-m", program.parent.name]
    else:
        own = ["python", sys.argv[0]]
    try:
        launcher = psutil.Process(os.getppid()).cmdline()
    except (psutil.Error, OSError):
        launcher = []
    for position, word in enumerate(launcher[:3]):
        name = {"accelerate.commands.launch": "accelerate launch"}.get(word, Path(word).name)
        if name.split()[0] in ("accelerate", "accelerate-launch", "torchrun"):
            prefix = "ACCELERATE_USE_CPU=true " if os.environ.get("ACCELERATE_USE_CPU", "") == "true" else ""
            return f"{prefix}{name} {shlex.join(launcher[position + 1 :])}"
    return shlex.join([*own, *words])


@contextmanager
def called_as(call: str) -> Iterator[None]:
    """While it is entered, `command_line` returns the text of a call in Python."""
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)
