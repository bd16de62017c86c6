"""From settings classes to a command line: the flags, their help and their errors come from docstrings and types.

A settings class is a dataclass, or a model config, whose docstring describes every field under `Args:`.
"""

import dataclasses
import difflib
import dis
import inspect
import json
import logging
import os
import re
import sys
import time
import types
from argparse import SUPPRESS, Action, ArgumentError, ArgumentParser, ArgumentTypeError, HelpFormatter, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Union, get_args, get_origin

from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from tqdm import tqdm
from transformers import HfArgumentParser, PreTrainedConfig

from hf_ssl.tokens import without_tokens

ALIASES = {"architecture": "--encoder"}
_INHERITED = {field.name for field in dataclasses.fields(PreTrainedConfig)}
_NOT_GIVEN = object()
_SECONDS_FOR_THE_FIRST_PROCESS = 10.0


def settings_of(settings_class: type, group: str | None = None) -> type:
    """Make a dataclass of a class's own fields that `transformers.HfArgumentParser` understands.

    Fields that a model config inherits from transformers are left out. A `dict` becomes a JSON object on the command
    line, a list or tuple several values.

    Args:
        settings_class: A dataclass or model config; its docstring describes each field.
        group: Heading of these flags in `--help`.

    Raises:
        KeyError: If the docstring does not describe a field.
    """
    descriptions: dict[str, str] = {}
    for parent in reversed(settings_class.__mro__):
        descriptions |= _described_arguments(parent.__doc__ or "")
    own = []
    for field in dataclasses.fields(settings_class):
        if issubclass(settings_class, PreTrainedConfig) and field.name in _INHERITED:
            continue
        if field.name not in descriptions:
            raise KeyError(f"The docstring of `{settings_class.__name__}` does not describe `{field.name}`.")
        metadata: dict[str, Any] = {"help": descriptions[field.name].replace("%", "%%")}
        if field.name in ALIASES:
            metadata["aliases"] = [ALIASES[field.name]]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        copied = dataclasses.field(default_factory=lambda value=default: value, metadata=metadata)
        if default is None or isinstance(default, str | bool | int | float):
            copied = dataclasses.field(default=default, metadata=metadata)
        own.append((field.name, _command_line_type(field.type), copied))
    namespace = {"_argument_group_name": group} if group else {}
    return dataclasses.make_dataclass(settings_class.__name__, own, namespace=namespace)


def _described_arguments(docstring: str) -> dict[str, str]:
    section = re.search(r"^Args:\n((?:(?:[ ]{4}.*)?\n)*)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^    (\w+)(?: \(.*?\))?: ((?:.*\n)(?:^(?:[ ]{5}.*)?\n)*)", section.group(1), re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArgumentTypeError(f"must be a JSON object such as '{{\"patch_size\": 4}}', got {text!r}") from error
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"must be a JSON object such as '{{\"patch_size\": 4}}', got {text!r}")
    return value


def _or_none(kind: type) -> Any:
    """Reader of a number or text that may also be the word `none`."""

    def read(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse names it in its errors
    return read


def _command_line_type(annotation: Any) -> Any:
    """The type that HfArgumentParser needs: one type, or one type and None."""
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        optional = len(members) < len(get_args(annotation))
        first = _command_line_type(members[0])
        return _or_none(first) if optional and first in (int, float, str) else first
    if get_origin(annotation) is dict or annotation is dict:
        return _json_object
    if get_origin(annotation) is tuple:
        return list[get_args(annotation)[0]]
    return annotation


class _Formatter(HelpFormatter):
    """One spelling of each flag, and its default where it has one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=118)

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        flags = [flag for flag in action.option_strings if "_" in flag] or [action.option_strings[0]]
        flags += [flag for flag in action.option_strings if flag in ALIASES.values()]
        metavar = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(dict.fromkeys(flags))} {metavar}"

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        names = {"int": "N", "float": "X", "_json_object": "JSON"}
        return "true|false" if action.nargs == "?" else names.get(getattr(action.type, "__name__", ""), "TEXT")

    def _get_help_string(self, action: Action) -> str | None:
        shown = action.default not in (None, "", SUPPRESS) and action.nargs != 0
        return f"{action.help} [{_as_typed(action.default)}]" if shown and action.help else action.help

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


def _as_typed(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class _Parser(HfArgumentParser):
    """A parser whose errors are `ValueError`s of one sentence."""

    def __init__(self, dataclass_types: Sequence[type] = (), **kwargs: Any):
        super().__init__(
            dataclass_types,  # pyright: ignore[reportArgumentType]
            allow_abbrev=False,
            exit_on_error=False,
            formatter_class=_Formatter,
            **kwargs,
        )
        for action in self._actions:  # `--no_x` beside `--x false` would double the length of the help
            if action.nargs == 0 and action.option_strings[0].startswith("--no_"):
                action.help = SUPPRESS

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[:1].upper()}{message[1:]}.")

    def given(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The values that stand on the command line, by field name, without any default."""
        unset = Namespace(**{action.dest: _NOT_GIVEN for action in self._actions if action.dest != "help"})
        try:
            namespace, unknown = self.parse_known_args(list(arguments), unset)
        except ArgumentError as error:
            raise ValueError(_sentence_about(error)) from None
        for word in unknown:
            if word.startswith("-"):
                raise ValueError(f"Unknown flag `{word.split('=')[0]}`.{self._nearest_flag(word)}")
        if unknown:
            raise ValueError(f"`{unknown[0]}` belongs to no flag. Flags start with `--`; quote values with spaces.")
        return {name: value for name, value in vars(namespace).items() if value is not _NOT_GIVEN}

    def _nearest_flag(self, word: str) -> str:
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        near = difflib.get_close_matches(word.split("=")[0], known, n=1, cutoff=0.55)
        return f" Did you mean `{near[0]}`?" if near else " `--help` lists them all."


def _sentence_about(error: ArgumentError) -> str:
    flag = (error.argument_name or "").split("/")[0]
    choice = re.match(r"invalid choice: '?(.*?)'? \(choose from (.*)\)", error.message)
    if choice:
        known = [option.strip().strip("'") for option in choice.group(2).split(",")]
        return (
            f"`{flag}` must be one of {', '.join(known)}, got `{choice.group(1)}`.{near_name(choice.group(1), known)}"
        )
    number = re.match(r"invalid (\w+) value: (.*)", error.message)
    if number:
        kind = {"int": "a whole number", "float": "a number"}.get(number.group(1), number.group(1))
        return f"`{flag}` must be {kind}, got {number.group(2)}."
    if "Truthy" in error.message:
        return f"`{flag}` must be true or false."
    return f"`{flag}` {error.message}."


def near_name(name: str, known: Sequence[str]) -> str:
    """` Did you mean ...?` for a misspelt name, empty if nothing is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean `{near[0]}`?" if near else ""


def parse_flags(
    parser: ArgumentParser, arguments: Sequence[str], subparser: ArgumentParser | None = None
) -> Namespace:
    """Read a command line by a parser of one's own; flags may stand between words, unless there are commands.

    Args:
        parser: Knows the flags.
        arguments: The command line, without the program's name.
        subparser: The parser of the chosen command, if `parser` has several, for its flags.

    Raises:
        ValueError: If there are words that belong to no flag; names the nearest one.
    """
    read = parser.parse_known_args if subparser else parser.parse_known_intermixed_args
    options, unknown = read(arguments)
    if unknown:
        flags = [flag for flag in (subparser or parser)._option_string_actions if flag.startswith("--")]
        raise ValueError(f"Unknown flag `{unknown[0]}`.{near_name(unknown[0], flags) or ' `--help` lists them all.'}")
    return options


def parse_settings(
    arguments: Sequence[str],
    groups: Mapping[str, type],
    *,
    description: str,
    examples: str = "",
    defaults: Mapping[str, Any] | None = None,
    alternatives: Sequence[tuple[str, str]] = (),
) -> list[dict[str, Any]]:
    """Read a command line into one dictionary of values for each settings class.

    Args:
        arguments: Words after the script's name.
        groups: Settings classes by the heading that `--help` gives them.
        description: What the command does, for `--help`.
        examples: Example commands, for `--help`.
        defaults: Values by field name that replace the classes' own defaults, such as a recipe's.
        alternatives: Pairs of fields of which only one can hold: typing one drops the default of the other.

    Returns:
        Values by field name, in the order of `groups`: what was typed, then `defaults`, then the class's default.

    Raises:
        ValueError: If a flag is unknown or its value has the wrong type; one or two sentences.
    """
    dataclass_types = [settings_of(settings_class, group) for group, settings_class in groups.items()]
    parser = _Parser(
        dataclass_types, usage="%(prog)s [--FLAG VALUE ...]", description=description, epilog=examples or None
    )
    defaults = dict(defaults or {})
    strangers = defaults.keys() - {field.name for kind in dataclass_types for field in dataclasses.fields(kind)}
    if strangers:
        raise KeyError(f"The defaults name no setting: {', '.join(sorted(strangers))}.")
    parser.set_defaults(**defaults)
    given = parser.given(arguments)
    for one, other in (*alternatives, *((other, one) for one, other in alternatives)):
        if one in given and other not in given:
            defaults[other] = None
    values = defaults | given
    return [
        {field.name: values[field.name] for field in dataclasses.fields(dataclass_type) if field.name in values}
        for dataclass_type in dataclass_types
    ]


def parse_pretraining(
    arguments: Sequence[str],
    methods: Mapping[str, Any],
    data_settings: type,
    training_settings: type,
    *,
    default_method: str,
    default_recipe: str,
    alternatives: Sequence[tuple[str, str]] = (),
    examples: str = "",
) -> tuple[Any, Any, Any, Any]:
    """Read the command line of pretraining: first the method and its recipe, then everything else.

    Args:
        arguments: Words after the script's name.
        methods: Method classes by name, each with `config_class` and `recipes`.
        data_settings: Settings class of the data.
        training_settings: Settings class of the training.
        default_method: Method used without `--method`.
        default_recipe: Recipe used without `--recipe`.
        alternatives: See `parse_settings`.
        examples: Example commands, for `--help`.

    Returns:
        The method's class, its config, the data settings and the training settings.

    Raises:
        ValueError: If the method, the recipe or a flag is unknown, or a value is out of range.
    """
    first = _Parser(add_help=False)
    first.add_argument("--method")
    first.add_argument("--recipe")
    chosen, _ = first.parse_known_args(list(arguments))
    method = chosen.method or default_method
    if method not in methods:
        raise ValueError(f"Unknown method `{method}`. Known: {', '.join(methods)}.{near_name(method, list(methods))}")
    recipes = methods[method].recipes
    recipe = chosen.recipe or default_recipe
    if recipe not in recipes:
        raise ValueError(
            f"Method `{method}` has no recipe `{recipe}`. Known: {', '.join(recipes)}."
            f"{near_name(recipe, list(recipes))}"
        )
    choice = dataclasses.make_dataclass("Method", [("method", str, method)])
    choice.__doc__ = (
        f"What to train.\n\nArgs:\n    method: One of {', '.join(methods)}. `--method NAME --help` shows its "
        f"settings; its recipes, each a set of defaults, are {', '.join(recipes)}.\n"
    )
    groups = {
        "method": choice,
        f"settings of {method}": methods[method].config_class,
        "data": data_settings,
        "training": training_settings,
    }
    _, config, data, training = parse_settings(
        arguments,
        groups,
        description="Pretrain an image encoder without labels and export it for transformers and timm.",
        examples=examples,
        defaults={**recipes[recipe], "recipe": recipe},
        alternatives=alternatives,
    )
    return (
        methods[method],
        methods[method].config_class(**config),
        data_settings(**data),
        training_settings(**training),
    )


class _BesideProgressBars(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def show_log() -> None:
    """Print what the package logs, such as where a run resumes, on the first process alone."""
    logger = logging.getLogger(__name__.split(".")[0])
    if not logger.handlers:
        logger.addHandler(_BesideProgressBars())
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)


@contextmanager
def errors_for_users() -> Iterator[None]:
    """Turn an error that is a message to the user into `error: ...` on standard error and exit code 2.

    Messages are what the package's own code raises with a `raise` statement, settings refused by a strict config, and
    what the operating system or the Hub refuses. Everything else is a bug and keeps its traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        _print_once(without_tokens(message))
        raise SystemExit(2) from None


def user_message(error: BaseException) -> str | None:
    """The text of an error that is meant for the user; None for a bug."""
    if isinstance(error, StrictDataclassError):
        return _strict_message(error)
    if isinstance(error, HfHubHTTPError):
        return f"The Hub refuses: {' '.join((error.server_message or str(error)).split())}"
    if isinstance(error, OSError):
        place = f": `{error.filename}`" if error.filename else ""
        return f"{error.strerror}{place}." if error.strerror else " ".join(str(error).split())
    if isinstance(error, ValueError | TypeError | RuntimeError) and _raised_on_purpose(error):
        return " ".join(str(error).split())
    return None


def _strict_message(error: StrictDataclassError) -> str:
    cause = str(error.__cause__ or error)
    wrong_type = re.match(r"Field '(\w+)' expected (.*?),? got (.*)", cause)
    if wrong_type:
        return f"`{wrong_type.group(1)}` must be {wrong_type.group(2)}, got {wrong_type.group(3)}."
    return " ".join(cause.split())


def _raised_on_purpose(error: BaseException) -> bool:
    """Whether a `raise` statement of this package or of the script that runs made the error."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "")
    instruction = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    own = module.split(".")[0] == __name__.split(".")[0] or module == "__main__"
    return own and instruction == dis.opmap["RAISE_VARARGS"]


def _print_once(message: str) -> None:
    """Print an error that every process may have met: the launcher ends the others once the first one has failed."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(_SECONDS_FOR_THE_FIRST_PROCESS)
        message = f"(process {rank}) {message}"
    print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201
