"""A command: a settings class and `run(settings)`, behind the command line and behind a Python function."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from textwrap import fill
from typing import Any, get_args

from hf_ssl.commands.errors import as_user_errors
from hf_ssl.commands.flags import flags_of, parse_flags
from hf_ssl.commands.log import show_log
from hf_ssl.errors import UserError, near_name
from hf_ssl.invocation import called_as
from hf_ssl.settings import descriptions_of


@dataclass(frozen=True)
class Command:
    """What every door needs to know of a command.

    Args:
        name: What the user types, such as `evaluate`.
        settings: The settings class, made by `hf_ssl.settings.checked`.
        run: Does the work and returns a result. A result is printed on the command line as `str` of it, and ends the
            program with its `exit_code`, if it has one.
        text: What `--help` says first: one sentence, examples, notes. By custom the module's docstring.
        words: Settings that are given by place instead of by flag.
        first: The flags that most people need, at most ten; `--help` shows them first.
        groups: Headings in `--help` of the remaining flags; what no group names is under `more`.
        function: Name of the Python function, if it is another.
    """

    name: str
    settings: type
    run: Callable[[Any], Any]
    text: str
    words: Sequence[str] = ()
    first: Sequence[str] = ()
    groups: Mapping[str, Sequence[str]] | None = None
    function: str | None = None

    def parse(self, arguments: Sequence[str]) -> Any:
        """The settings that a command line gives.

        Raises:
            UserError: If a flag is unknown or a value refused.
        """
        known = {field.name: field for field in flags_of(self.settings)}
        named = {name for group in (self.groups or {}).values() for name in group}
        groups = {heading: [known[name] for name in names] for heading, names in (self.groups or {}).items()}
        groups["more" if self.first or named else "settings"] = [
            field for name, field in known.items() if name not in named
        ]
        values = parse_flags(
            arguments,
            {heading: members for heading, members in groups.items() if members},
            program=f"hf-ssl {self.name}",
            description=self.text,
            words=self.words,
            first=self.first,
        )
        return self.settings_of(values)

    def settings_of(self, given: Mapping[str, Any]) -> Any:
        """The settings that were given, by whichever door, with the defaults of the others.

        Settings that depend on which others were given, also with the value of their default, have `check_given`.

        Raises:
            UserError: If a value is refused, or would not be used beside another.
        """
        check = getattr(self.settings, "check_given", None)
        if check is not None:
            check(given)
        return self.settings(**given)

    def main(self, arguments: Sequence[str]) -> int:
        """Run the command line, print the result on the first process, return the exit code."""
        show_log()
        result = self.run(self.parse(arguments))
        text = str(result)
        if text and os.environ.get("RANK", "0") == "0":
            print(text)  # noqa: T201
        return getattr(result, "exit_code", 0)


def python_function(command: Command) -> Callable[..., Any]:
    """The Python door of a command: its settings as keyword arguments, those given by place also by position.

    Errors that the user can put right are raised as `UserError`.
    """
    name = command.function or command.name
    # A command of a group is called by the group's function: `study("ablation", ...)`.
    function, *kind = name.split()

    def call(*args: Any, **values: Any) -> Any:
        bound = dict(zip(command.words, args, strict=False)) | values
        if len(args) > len(command.words):
            raise TypeError(f"`{name}` takes {len(command.words)} arguments by position, got {len(args)}.")
        twice = [word for word, _ in zip(command.words, args, strict=False) if word in values]
        if twice:
            raise TypeError(f"`{name}` got `{twice[0]}` by position and by name.")
        show_log(in_python=True)
        with as_user_errors(), called_as(call_text(function, bound, *kind)):
            return command.run(command.settings_of(bound))

    call.__name__ = call.__qualname__ = name
    call.__module__ = "hf_ssl"
    call.__doc__ = _docstring(command)
    call.__signature__ = _signature(command)  # pyright: ignore[reportFunctionMemberAccess]
    return call


def call_text(name: str, values: Mapping[str, Any], *places: Any) -> str:
    """A call as it stands in Python code; objects that no code can write down as the name of their class.

    Args:
        name: Name of the function.
        values: Its keyword arguments.
        places: Its arguments by position.
    """
    words = [*map(_in_code, places), *(f"{key}={_in_code(value)}" for key, value in values.items())]
    return f"hf_ssl.{name}({', '.join(words)})"


def _in_code(value: Any) -> str:
    if isinstance(value, Path):
        return repr(str(value))
    if type(value) is dict:
        return f"{{{', '.join(f'{key!r}: {_in_code(item)}' for key, item in value.items())}}}"
    if type(value) is list:
        return f"[{', '.join(map(_in_code, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(_in_code, value))}{',' if len(value) == 1 else ''})"
    return repr(value) if isinstance(value, str | int | float | type(None)) else f"<{type(value).__name__}>"


def _in_order(command: Command) -> list[Field]:
    """The settings as a reader wants them: those given by place, those that most people need, the others."""
    order = [*command.words, *command.first]
    return sorted(
        fields(command.settings), key=lambda field: order.index(field.name) if field.name in order else len(order)
    )


def _signature(command: Command) -> inspect.Signature:
    parameters = []
    for field in _in_order(command):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        kind = inspect.Parameter.KEYWORD_ONLY
        if field.name in command.words:
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        default = inspect.Parameter.empty if default is MISSING else default
        parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=field.type))
    return inspect.Signature(parameters)


def _docstring(command: Command) -> str:
    summary = command.text.strip().split("\n\n")[0]
    described = descriptions_of(command.settings)
    texts = [f"{field.name}: {described[field.name]}" for field in _in_order(command)]
    lines = [fill(text, 100, initial_indent=" " * 4, subsequent_indent=" " * 8) for text in texts]
    returns = inspect.get_annotations(command.run).get("return")
    kinds = get_args(returns) or ((returns,) if returns else ())  # of several, each
    described_kinds = [f"\n    {kind.__name__}: {(kind.__doc__ or '').splitlines()[0]}" for kind in kinds]
    about = f"\n\nReturns:{''.join(described_kinds)}" if kinds else ""
    return (
        f"{summary}\n\nThe same as `hf-ssl {command.name}`.\n\nArgs:\n" + "\n".join(lines) + about
        + "\n\nRaises:\n    UserError: If a setting or an input cannot be used; says which, why and what to do."
    )  # fmt: skip


@dataclass(frozen=True)
class CommandGroup:
    """Commands that share a name, such as `study ablation` and `study negatives`.

    Args:
        name: What the user types first.
        text: What `--help` says first.
        kinds: The commands by the word that chooses one; each is called `NAME KIND`.
    """

    name: str
    text: str
    kinds: Mapping[str, Command]

    def find(self, kind: str) -> Command:
        """The command of a word.

        Raises:
            UserError: If there is none.
        """
        word = kind.replace("-", "_")
        if word not in self.kinds:
            hint = near_name(word, self.kinds) or f" It is one of {', '.join(self.kinds)}."
            raise UserError(f"`{self.name}` knows no `{kind}`.{hint}")
        return self.kinds[word]

    def main(self, arguments: Sequence[str]) -> int:
        """Run the command line, print the result, return the exit code."""
        if not arguments or arguments[0] in ("-h", "--help"):
            print(self._overview())  # noqa: T201
            return 0
        return self.find(arguments[0]).main(arguments[1:])

    def _overview(self) -> str:
        width = max(map(len, self.kinds))
        lines = [f"  {kind.ljust(width)}  {one.text.strip().splitlines()[0]}" for kind, one in self.kinds.items()]
        head = f"usage: hf-ssl {self.name} KIND [ARGUMENT ...]\n\n{self.text.strip()}\n"
        return "\n".join([head, *lines, f"\n`hf-ssl {self.name} KIND --help` explains one."])


def python_group(group: CommandGroup) -> Callable[..., Any]:
    """The Python door of a group: `study("ablation", ...)`."""
    functions = {kind: python_function(command) for kind, command in group.kinds.items()}

    def call(kind: str, *args: Any, **values: Any) -> Any:
        with as_user_errors():
            group.find(kind)
        return functions[kind.replace("-", "_")](*args, **values)

    call.__name__ = call.__qualname__ = group.name
    call.__module__ = "hf_ssl"
    listed = "\n".join(f"    {kind}: {one.text.strip().splitlines()[0]}" for kind, one in group.kinds.items())
    call.__doc__ = (
        f"{group.text.strip()}\n\nThe same as `hf-ssl {group.name} KIND`; its flags are the keyword arguments.\n\n"
        f"Kinds:\n{listed}\n"
    )
    return call
