"""From settings classes to a command line: flags, help and errors come from names, types and docstrings.

Every flag is read in each of its spellings: `--batch_size 8`, `--batch-size=8`; a switch as `--compile`,
`--no_compile` and `--compile true|false`; what may be absent also as `none`.
"""

import dataclasses
import difflib
import json
import types
from argparse import (
    SUPPRESS,
    Action,
    ArgumentError,
    ArgumentParser,
    ArgumentTypeError,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from hf_ssl.errors import UserError
from hf_ssl.settings import descriptions_of, is_required, rule_of

ALIASES = {"encoder": "architecture"}
"""A second name of a flag -> the field that it sets, in settings without a field of that name."""

_SWITCH = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def parse_flags(
    arguments: Sequence[str],
    groups: Mapping[str, Sequence[dataclasses.Field]],
    *,
    program: str,
    description: str,
    words: Sequence[str] = (),
    first: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Read a command line.

    Args:
        arguments: Words after the command's name.
        groups: Fields by the heading that `--help` gives them, such as those of `flags_of`.
        program: What the user typed before the arguments, for `--help`.
        description: What the command does, for `--help`.
        words: Fields that are given by place instead of by flag; a list takes as many as there are.
        first: Fields that `--help` shows before all groups.
        defaults: Values that `--help` shows instead of the fields' own defaults.

    Returns:
        What was typed, by field name; no defaults.

    Raises:
        UserError: If a flag is unknown or its value cannot be read.
    """
    fields = {field.name: field for group in groups.values() for field in group}
    parser = _Parser(program, description)
    for name in words:
        parser.add_word(fields[name])
    shown_first = [name for name in first if name in fields]
    sections = {"most used": [fields[name] for name in shown_first], **groups} if shown_first else dict(groups)
    for heading, members in sections.items():
        section = parser.add_argument_group(heading)
        for field in members:
            if field.name not in words and (heading == "most used" or field.name not in shown_first):
                _add_flag(section, field, (defaults or {}).get(field.name, _default_of(field)))
    return parser.given(_spelt_out(arguments, fields, words))


def flags_of(kind: type, without: Sequence[str] = ()) -> list[dataclasses.Field]:
    """Fields of a settings class, each with its description as `metadata["help"]`.

    Args:
        kind: A dataclass whose docstring describes its fields.
        without: Names of fields that are left out.

    Raises:
        KeyError: If the docstring does not describe a field.
    """
    descriptions = descriptions_of(kind)
    described = []
    for field in dataclasses.fields(kind):
        if field.name in without:
            continue
        if field.name not in descriptions:
            raise KeyError(f"The docstring of `{kind.__name__}` does not describe `{field.name}`.")
        described.append(_with_help(field, descriptions[field.name]))
    return described


def _with_help(field: dataclasses.Field, text: str) -> dataclasses.Field:
    # `dataclasses.Field` has no `replace`.
    options = {} if field.default is dataclasses.MISSING else {"default": field.default}
    if field.default_factory is not dataclasses.MISSING:
        options["default_factory"] = field.default_factory
    copied = dataclasses.field(metadata={**field.metadata, "help": text}, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]
    copied.name, copied.type = field.name, field.type
    return copied


def _default_of(field: dataclasses.Field) -> Any:
    if is_required(field):
        return None
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()  # pyright: ignore[reportCallIssue]


def _spelt_out(
    arguments: Sequence[str], fields: Mapping[str, dataclasses.Field], words: Sequence[str] = ()
) -> list[str]:
    """The command line in one spelling: `--field_name`, and every switch with `true` or `false`."""
    fields = {name: field for name, field in fields.items() if name not in words}
    spelt, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help") or not word.startswith("--") or word == "--":
            spelt.append(word)
            continue
        flag, equals, value = word[2:].partition("=")
        name = flag.replace("-", "_")
        if name in words:
            raise UserError(f"`--{flag}` is no flag here. Give its value without it, as the usage in `--help` shows.")
        name = ALIASES.get(name, name) if name not in fields else name
        positive = name.removeprefix("no_")
        if name not in fields and positive in fields and _plain(fields[positive].type) is bool:
            if equals:
                raise UserError(f"`--{name}` takes no value. Write `--{positive} {value}` or `--{name}`.")
            _refuse_value(f"`--{name}` takes no value. Write `--{positive} true|false` or `--{name}`.", rest, words)
            spelt.append(f"--{positive}=false")
        elif name not in fields:
            raise UserError(f"Unknown flag `--{flag}`.{_nearest_flag(name, fields)}")
        elif _plain(fields[name].type) is not bool:
            if not equals and rest and _is_negative(rest[0]):
                equals, value = "=", rest.pop(0)
            spelt += [f"--{name}={value}"] if equals else [f"--{name}"]
        elif equals:
            spelt.append(f"--{name}={value}")
        else:
            follows = bool(rest) and rest[0].lower() in (*_SWITCH, "none")
            if not follows:
                _refuse_value(f"`--{name}` must be true or false, got '{''.join(rest[:1])}'.", rest, words)
            spelt.append(f"--{name}={rest.pop(0) if follows else 'true'}")
    return spelt


def _refuse_value(message: str, rest: Sequence[str], words: Sequence[str]) -> None:
    """Raise an error about what follows a switch if it can only be meant as the switch's value."""
    if rest and not rest[0].startswith("-") and not words:
        raise UserError(message)


def _is_negative(word: str) -> bool:
    """Whether a word is a number below zero; argparse takes `-1e-3` for a flag."""
    try:
        return word.startswith("-") and float(word) <= 0
    except ValueError:
        return False


def _nearest_flag(name: str, fields: Mapping[str, Any]) -> str:
    aliases = [alias for alias, meant in ALIASES.items() if meant in fields]
    near = difflib.get_close_matches(name, [*fields, *aliases], n=1, cutoff=0.57)
    return f" Did you mean `--{near[0]}`?" if near else " `--help` lists them all."


def _add_flag(section: Any, field: dataclasses.Field, default: Any) -> None:
    several = get_origin(_plain(field.type)) in (list, tuple)
    shown = "" if default in (None, "", (), []) or is_required(field) else f" [{_as_typed(default)}]"
    needed = " [needed]" if is_required(field) else ""
    shown_as = [f"--{alias}" for alias, name in ALIASES.items() if name == field.name]
    section.add_argument(
        *shown_as,
        f"--{field.name}",
        dest=field.name,
        type=_reader(field.type),
        nargs="+" if several else None,
        default=SUPPRESS,
        metavar=_metavar(field.type),
        help=(field.metadata["help"] + shown + needed).replace("%", "%%"),
    )


def _as_typed(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return json.dumps(value)
    return " ".join(map(_as_typed, value)) if isinstance(value, list | tuple) else str(value)


def _metavar(annotation: Any) -> str:
    kind = _plain(annotation)
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) in (list, tuple):
        return _metavar(get_args(kind)[0])
    names = {bool: "true|false", int: "N", float: "X", dict: "JSON", Path: "PATH"}
    return "|".join([names.get(get_origin(kind) or kind, "TEXT"), *_words(annotation)])


def _words(annotation: Any) -> list[str]:
    """The words that a number may be replaced by, such as `auto`."""
    if get_origin(annotation) not in (Union, types.UnionType) or get_origin(_plain(annotation)) is Literal:
        return []
    return [word for one in get_args(annotation) if get_origin(one) is Literal for word in get_args(one)]


def _plain(annotation: Any) -> Any:
    """What the command line reads for an annotation: the first type of a union that is not None."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(one for one in get_args(annotation) if one is not types.NoneType)
    return annotation


def _reader(annotation: Any) -> Callable[[str], Any]:
    """What turns the text of a value into the value."""
    kind = _plain(annotation)
    if get_origin(kind) in (list, tuple):
        return _reader(get_args(kind)[0])
    optional = kind is not annotation and types.NoneType in get_args(annotation)
    words = _words(annotation)

    def read(text: str) -> Any:
        if optional and text.lower() == "none":
            return None
        if text in words:
            return text
        if (get_origin(kind) or kind) is dict:
            return _read_object(text)
        if kind is bool:
            return _read_switch(text)
        try:
            return kind(text) if kind in (int, float, Path) else text
        except ValueError:
            rule = " or ".join([rule_of(kind), *words])
            raise ArgumentTypeError(f"must be {rule}, got '{text}'") from None

    return read


def _read_switch(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ArgumentTypeError(f"must be true or false, got '{text}'")
    return _SWITCH[text.lower()]


def _read_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"must be a JSON object such as '{{\"name\": 4}}', got '{text}'")
    return value


class _Formatter(RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=118)

    def _format_args(self, action: Action, default_metavar: str) -> str:
        text = super()._format_args(action, default_metavar)
        return f"{action.metavar} ..." if action.nargs == "+" and isinstance(action.metavar, str) else text


class _Parser(ArgumentParser):
    """A parser whose errors are sentences for the user."""

    def __init__(self, program: str, description: str):
        super().__init__(
            prog=program, description=description, allow_abbrev=False, exit_on_error=False, formatter_class=_Formatter
        )
        self._words: list[str] = []
        self._names: set[str] = set()

    def add_word(self, field: dataclasses.Field) -> None:
        """Read a field by its place on the command line."""
        self._names.add(field.name)
        several = get_origin(_plain(field.type)) in (list, tuple)
        word = field.name.rstrip("s").upper() if several else field.name.upper()
        self._words.append(f"[{word} ...]" if several and not is_required(field) else word + " ..." * several)
        kind = _reader(field.type)
        help_text = field.metadata["help"].replace("%", "%%")
        # None of them is required here: the settings class says in its own words what is missing.
        self.add_argument(
            field.name, nargs="*" if several else "?", default=None, type=kind, metavar=word, help=help_text
        )

    def format_help(self) -> str:
        """The help text, whose usage is one line."""
        self.usage = " ".join(["%(prog)s", *self._words, "[--FLAG VALUE ...]"])
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}.")

    def given(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The values that stand on the command line, by field name, without any default."""
        try:
            namespace, unknown = self.parse_known_intermixed_args(arguments)
        except ArgumentError as error:
            message = "needs a value" if error.message.startswith("expected ") else error.message
            raise UserError(f"`{(error.argument_name or '').split('/')[0]}` {message}.") from None
        if unknown:
            hint = ""
            if any("--dataset" in action.option_strings for action in self._actions):
                hint = f" Is it the data set? Then write `--dataset {unknown[0]}`."
            raise UserError(
                f"`{unknown[0]}` belongs to no flag.{hint} Flags start with `--`; quote values with spaces."
            )
        return {name: value for name, value in vars(namespace).items() if name not in self._names or value}
