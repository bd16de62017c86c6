"""Paths of this machine stay out of what is published: of a local path only the last part is told.

What tells more are the folders above it: names of users, customers and projects. A command shows `FOLDER` where the
path of a folder stood.
"""

import ast
import getpass
import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FOLDER = "FOLDER"
"""What a command shows in the place of a folder."""

_OF_HF_SSL = re.compile(r"(?:encoder|pretraining|classifier)")  # in the folder of a run, whose name says more
_HOME = re.compile(r"~[^/\\]*|/root|/(?:home|Users)/[^/]+|[A-Za-z]:/Users/[^/]+", re.IGNORECASE)
_ABSOLUTE = re.compile(r"(?:/|~|\\\\|[A-Za-z]:[\\/]|file:/)")
_KIND = re.compile(r"^(?:random|raw|local-dir|hf_hub|hf-hub):")  # before the name of an encoder
_PATTERN = re.compile(r"[*?\[]")
_INSIDE = re.compile(r"(?<![\w.:/~-])(?:~[\w.-]*)?/[^\s'\"`,;:(){}\[\]]+")  # a path within a text
_REPOSITORY = ("repo_id", "push", "space")  # settings that name one, which a local folder may be called like
_WITHIN = ("data_dir", "data_files")  # settings that name folders and files of a data set
_ARGUMENT = re.compile(r"[(,] ?(\w+)=")
_LITERAL = re.compile(r"(\w*)(=?)('(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\")")


def is_private(text: str) -> bool:
    """Whether a text is a path that tells about this machine: an absolute one, one that leads up, or by its user."""
    if "\n" in text:
        return False
    path = _KIND.sub("", text)
    if _ABSOLUTE.match(path):
        return True
    parts = re.split(r"[/\\]", path)
    # Two parts may be the name of a repository, and a user may have the same name on the Hub.
    by_user = len(parts) > 2 and " " not in path and "://" not in path and _user() in parts
    return ".." in parts[:-1] or path == ".." or by_user


def public_path(path: str) -> str:
    """The last part of a local path; of a pattern all from its first sign on, of a run's parts the run.

    Args:
        path: A path, also with a word such as `random:` before it.

    Returns:
        Such as `photos` for `/data/photos`, `**/*.jpg` for `/data/**/*.jpg` and `first` for `runs/first/encoder`;
        `FOLDER` for the folder of a user, whose name is all that it tells.
    """
    kind = _KIND.match(path)
    word = kind.group() if kind else ""
    plain = re.sub(r"^file:/+", "/", path[len(word) :]).replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    if not parts or parts[-1] == _user() or _HOME.fullmatch(plain.rstrip("/")):
        return f"{word}{FOLDER}"
    signs = [number for number, part in enumerate(parts) if _PATTERN.search(part)]
    if signs:
        return word + "/".join(parts[signs[0] :])
    if len(parts) > 1 and _OF_HF_SSL.fullmatch(parts[-1]) and not _HOME.fullmatch(plain.rpartition("/")[0]):
        return word + parts[-2]
    return word + parts[-1]


def public_name(dataset: str, kind: str | None) -> str:
    """A data set's name as it is published.

    Args:
        dataset: Its name.
        kind: `kind` of its `Source`.
    """
    return public_path(dataset) if kind == "local" else dataset


def without_paths(value: Any) -> Any:
    """The same with `public_path` of every private path; for nested dicts, lists and tuples, whose keys stay."""
    if isinstance(value, str):
        return _text_without_paths(value, public_path)
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_paths(item) for item in value)
    return value


def public_places(data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a local data set that name folders or files, with the last part of each path.

    They are relative to the data set, which may be the folder that one works in: such a path is as private as an
    absolute one.

    Args:
        data: Settings of the data.
    """
    return {name: _mapped(data[name], public_path) for name in _WITHIN if data.get(name)}


def public_command(command: str, dataset: str | None = None, kind: str | None = None) -> str:
    """A command without private paths: `FOLDER` stands for a folder, and a file keeps its name.

    Args:
        command: A line for a shell, or a call of a Python function of hf_ssl.
        dataset: The data set that it names. A path such as `data/c10`, which reads like a name of the Hub, is replaced
            as well.
        kind: `kind` of its `Source`.
    """
    local = dataset if dataset and kind == "local" and {"/", "\\"} & set(dataset) else None

    def shown(path: str) -> str:
        last = public_path(path)
        kind = _KIND.match(last)
        word = kind.group() if kind else ""
        is_file = re.search(r"(?<!^)\.\w+$|[*?\[]", last[len(word) :])
        return last if is_file else f"{word}{FOLDER}"

    def text_without(text: str, within: bool) -> str:
        is_path = within and bool({"/", "\\"} & set(text))
        return shown(text) if text == local or is_path else _text_without_paths(text, shown)

    def without(word: str, name: str = "") -> str:
        name = name or word.partition("=")[0].lstrip("-")
        return _word_without_paths(word, lambda text: text_without(text, kind == "local" and name in _WITHIN))

    if command.startswith("hf_ssl."):

        def in_code(found: re.Match[str]) -> str:
            name, equals, literal = found.groups()
            if name in _REPOSITORY:
                return found.group()
            argument = _ARGUMENT.findall(command, 0, found.end(1) + 1)  # the one that a literal of a dict belongs to
            return name + equals + repr(without(ast.literal_eval(literal), argument[-1] if argument else ""))

        return _LITERAL.sub(in_code, command)
    try:
        words = shlex.split(command)
    except ValueError:  # no line for a shell: every word by itself
        return " ".join(map(without, command.split(" ")))
    before = [word.lstrip("-") for word in ["", *words]]
    changed = [
        word if former in _REPOSITORY else without(word, former if former in _WITHIN else "")
        for former, word in zip(before, words, strict=False)
    ]
    return command if changed == words else shlex.join(changed)


def public_place(folder: Path) -> str:
    """A folder that was exported, as examples beside it show it: as it was typed, or without the folders above it."""
    text = folder.as_posix()
    if not is_private(text):
        return text
    own = folder.parts[-2:] if _OF_HF_SSL.fullmatch(folder.name) else folder.parts[-1:]
    return "/".join([".", *own])


def _word_without_paths(word: str, without: Callable[[str], str]) -> str:
    """A word of a command, which may be JSON or `name=value`."""
    if word[:1] in ("{", "["):
        try:
            return json.dumps(_mapped(json.loads(word), without))
        except ValueError:
            return without(word)
    name, equals, value = word.partition("=")
    if equals and re.fullmatch(r"[\w-]+", name):
        return f"{name}={_word_without_paths(value, without)}"
    return without(word)


def _mapped(value: Any, without: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return without(value)
    if isinstance(value, dict):
        return {key: _mapped(item, without) for key, item in value.items()}
    return [_mapped(item, without) for item in value] if isinstance(value, list) else value


def _text_without_paths(text: str, shown: Callable[[str], str]) -> str:
    return shown(text) if is_private(text) else _INSIDE.sub(lambda found: shown(found.group()), text)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may have no name for its user
        return Path.home().name or "~"
