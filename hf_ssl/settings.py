"""Settings classes: dataclasses that check themselves wherever they are made, with one description for every door.

The docstring of a settings class describes each field under `Args:`. Command line, Python function and model card read
names, types, defaults and descriptions from the class alone.
"""

import dataclasses
import functools
import inspect
import math
import re
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin

from huggingface_hub.dataclasses import strict, type_validator
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from hf_ssl.errors import UserError, near_name

HUB_TIMEOUT = 300.0
"""Seconds that a push may lose to failures without `hub_timeout`; the Hub asks for pauses of as much at most."""

_T = TypeVar("_T")


@dataclass_transform(kw_only_default=True)
def checked(kind: type[_T]) -> type[_T]:
    """Make a dataclass with keyword arguments whose fields are checked by their types, when made and when changed.

    A whole number is taken for a `float` and text for a `Path`. Rules beyond types go into methods `validate_*`, which
    run at the end of the construction and raise `UserError`.

    Raises:
        UserError: When an instance is made or changed: names the setting, the rule and the value.
    """
    made = dataclasses.dataclass(kw_only=True)(kind)
    made = strict(made)
    check, construct = made.__setattr__, made.__init__
    kinds = {field.name: field.type for field in dataclasses.fields(made)}  # pyright: ignore[reportArgumentType]

    def set_checked(self: Any, name: str, value: Any) -> None:
        if name in kinds:
            value = as_declared(value, kinds[name])
        try:
            check(self, name, value)
        except StrictDataclassFieldValidationError:
            raise UserError(wrong_value(name, kinds[name], value)) from None
        several = value if isinstance(value, list | tuple) else [value]
        endless = [number for number in several if isinstance(number, float) and not math.isfinite(number)]
        if endless:
            wanted = "finite numbers" if several is value else "a finite number"
            raise UserError(f"`{name}` must be {wanted}, got {endless[0]}.")

    @functools.wraps(construct)
    def construct_checked(self: Any, **values: Any) -> None:
        refuse_unknown(values, kinds, f"`{made.__name__}` has no setting")
        missing = [field.name for field in dataclasses.fields(self) if is_required(field) and field.name not in values]
        if missing:
            others = f" Also needed: {', '.join(f'`{name}`' for name in missing[1:])}." if missing[1:] else ""
            raise UserError(f"`{missing[0]}` is needed: {descriptions_of(made)[missing[0]]}{others}")
        try:
            construct(self, **values)
        except StrictDataclassClassValidationError as error:
            # What a rule refuses is a `UserError`; any other error in a rule is a bug.
            raise (error.__cause__ or error) from None

    made.__setattr__, made.__init__ = set_checked, construct_checked  # pyright: ignore[reportAttributeAccessIssue]
    return made


def check_least(settings: Any, **least: int) -> None:
    """Refuse numbers that are too small; None passes.

    Args:
        settings: A settings object.
        least: The least value of each field, by name.

    Raises:
        UserError: Names the first.
    """
    for name, smallest in least.items():
        value = getattr(settings, name)
        if value is not None and not value >= smallest:
            raise UserError(f"`{name}` must be at least {smallest}, got {value}.")


def check_positive(settings: Any, *names: str) -> None:
    """Refuse numbers that are not above 0; None passes.

    Args:
        settings: A settings object.
        names: Names of its fields.

    Raises:
        UserError: Names the first.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise UserError(f"`{name}` must be positive, got {value}.")


def of_json(kind: type[_T], content: Any, place: str = "") -> _T:
    """A dataclass from what stands in a file, checked by the types of its fields; other names in it are left out.

    Args:
        kind: The dataclass; its fields may be dataclasses too, and lists, tuples or dicts of them.
        content: What was read.
        place: Where it stands in the file, such as `measured.`; for errors.

    Raises:
        UserError: Names the first field that is missing or of another type.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{f'`{place[:-1]}`' if place else 'it'} must be a JSON object, got {content!r:.80}")
    values = {}
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        name, annotation = f"{place}{field.name}", field.type
        if field.name not in content:
            if is_required(field):
                raise UserError(f"it lacks `{name}`")
            continue
        value, inner = content[field.name], _without_none(annotation)
        origin, item = get_origin(inner), next((one for one in reversed(get_args(inner)) if one is not ...), None)
        if dataclasses.is_dataclass(inner) and not (value is None and inner is not annotation):
            value = of_json(inner, value, f"{name}.")  # pyright: ignore[reportArgumentType]
        elif dataclasses.is_dataclass(item) and origin in (list, tuple, dict):
            value = _several_of_json(item, value, origin, name)  # pyright: ignore[reportArgumentType]
        else:
            value = as_typed(name, value, annotation)
        values[field.name] = value
    return kind(**values)


def as_typed(name: str, value: Any, annotation: Any) -> Any:
    """A value from a file as its field wants it, see `as_declared`.

    Raises:
        UserError: If it is of another type; a clause without its full stop.
    """
    value = as_declared(value, annotation)
    if not has_type(value, annotation):
        raise UserError(wrong_value(name, annotation, value).removesuffix("."))
    return value


def has_type(value: Any, annotation: Any) -> bool:
    """Whether a field of this type takes a value."""
    try:
        type_validator("value", value, annotation)
    except (TypeError, ValueError):
        return False
    return True


def _several_of_json(kind: type[_T], content: Any, origin: Any, place: str) -> Any:
    """A list, a tuple or a dict of dataclasses; see `of_json`."""
    if not isinstance(content, dict if origin is dict else (list, tuple)):
        wanted = "JSON object" if origin is dict else "list"
        raise UserError(f"`{place}` must be a {wanted} of JSON objects, got {content!r:.80}")
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    made: dict[Any, Any] = {key: of_json(kind, one, f"{place}.{key}.") for key, one in pairs}
    return made if origin is dict else origin(made.values())


def is_required(field: dataclasses.Field) -> bool:
    """Whether a field of a dataclass has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def refuse_unknown(values: Mapping[str, Any], known: Mapping[str, Any], sentence: str) -> None:
    """Raise `UserError` for the first name that is not known; names the nearest one.

    Args:
        values: What was given, by name.
        known: What there is, by name.
        sentence: What to say before the name.
    """
    for name in values:
        if name not in known:
            raise UserError(f"{sentence} `{name}`.{near_name(name, known) or ' Leave it out.'}")


def refuse_unused(kind: type, given: Mapping[str, Any], used: Collection[str], reason: str) -> None:
    """Raise `UserError` for settings that were given and would not be used.

    Args:
        kind: The settings class; names that it does not have are not looked at.
        given: What was given, by name, also where it equals the default; None is not given.
        used: Names that are used.
        reason: What to say before the names.
    """
    others = [field.name for field in dataclasses.fields(kind) if field.name not in used]
    unused = [name for name in others if given.get(name) is not None]
    if unused:
        names = " and ".join(f"`{name}`" for name in unused)
        it = "it" if len(unused) == 1 else "them"
        raise UserError(f"{reason}, so {names} would not be used. Leave {it} out.")


def descriptions_of(kind: type) -> dict[str, str]:
    """What the docstrings of a class and its parents say under `Args:`, by name, each as one line."""
    described: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        text = inspect.cleandoc(parent.__doc__ or "") + "\n"
        section = re.search(r"^Args:\n((?:(?:[ ]{4}.*)?\n)*)", text, re.MULTILINE)
        if section is not None:
            pattern = r"^    (\w+)(?: \(.*?\))?: ((?:.*\n)(?:^(?:[ ]{5}.*)?\n)*)"
            found = re.findall(pattern, section.group(1), re.MULTILINE)
            described |= {name: " ".join(words.split()) for name, words in found}
    return described


def as_declared(value: Any, annotation: Any) -> Any:
    """What a field wants, where a value can only mean it; else the value as it is.

    That is a whole number as the `float`, text as the `Path`, a path as the text, and one text as a list of texts.
    """
    classes = _classes_of(annotation)
    if isinstance(value, str | Path) and get_origin(_without_none(annotation)) in (list, tuple):
        wanted = _classes_of(get_args(_without_none(annotation))[0])
        value = [value] if {str, Path} & set(wanted) and not {str, Path} & set(classes) else value
    if type(value) is int and float in classes and int not in classes:
        try:
            return float(value)
        except OverflowError:  # what is refused as not finite
            return math.inf if value > 0 else -math.inf
    if isinstance(value, str) and Path in classes and str not in classes:
        return Path(value)
    if isinstance(value, Path) and str in classes and Path not in classes:
        return str(value)
    if isinstance(value, dict) and get_origin(_without_none(annotation)) is dict:
        inner = get_args(_without_none(annotation))[1]
        return {name: as_declared(item, inner) for name, item in value.items()}
    if isinstance(value, list | tuple) and get_origin(_without_none(annotation)) in (list, tuple):
        inner = get_args(_without_none(annotation))[0]
        items = [as_declared(item, inner) for item in value]
        return items if get_origin(_without_none(annotation)) is list else tuple(items)
    return value


def wrong_value(name: str, annotation: Any, value: Any) -> str:
    """The sentence about a value that a field does not take."""
    options = get_args(_without_none(annotation)) if get_origin(_without_none(annotation)) is Literal else ()
    hint = near_name(value, map(str, options)) if options and isinstance(value, str) else ""
    shown = f"`{value}`" if isinstance(value, str) else repr(value)
    return f"`{name}` must be {rule_of(annotation)}, got {shown[:200]}.{hint}"


def rule_of(annotation: Any) -> str:
    """What a field takes, in words: `a whole number`, `one of sgd, lars, adamw`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(rule_of(one) for one in arguments))
    if origin is Literal:
        options = ", ".join(map(str, arguments))
        return f"one of {options}" if len(arguments) > 1 else options
    if origin in (list, tuple) and get_origin(_without_none(arguments[0])) is Literal:
        return f"a list of words, each {rule_of(_without_none(arguments[0]))}"
    if origin in (list, tuple):
        inner = _without_none(arguments[0])
        missing = "" if inner is arguments[0] else " or none values"
        return f"a list of {rule_of(inner).removeprefix('a ')}s{missing}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    names |= {dict: "a JSON object", types.NoneType: "none"}
    kind = origin or annotation
    name = getattr(kind, "__name__", str(kind))
    return names.get(kind) or f"{'an' if name[:1] in 'AEIOU' else 'a'} `{name}`"


def _without_none(annotation: Any) -> Any:
    """The first type of a union that is not None; another annotation as it is."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(one for one in get_args(annotation) if one is not types.NoneType)
    return annotation


def _classes_of(annotation: Any) -> tuple[type, ...]:
    """The plain classes of an annotation, those of a union one by one."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for one in get_args(annotation) for kind in _classes_of(one))
    if get_origin(annotation) is Literal:
        return tuple({type(option) for option in get_args(annotation)})
    kind = get_origin(annotation) or annotation
    return (kind,) if isinstance(kind, type) else (object,)
