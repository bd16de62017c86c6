"""Paths of this machine stay out of what is published: of a local path only the last part is told.

What tells more are the folders above it: names of users, customers and projects. A command shows `FOLDER` where the
absolute path of a folder stood.
"""

import ast
import getpass
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "FOLDER"
"""What a command shows in the place of a folder."""

HOST = "HOST"
"""What a command shows in the place of another machine."""

_HOSTS = ("master_addr", "local_addr", "rdzv_endpoint", "main_process_ip")  # of launchers: machines of a network
_OF_HF_SSL = re.compile(r"(?:encoder|pretraining|classifier)")  # in the folder of a run, whose name says more
_HOME = re.compile(r"~[^/\\]*|/root|/(?:home|Users)/[^/]+|[A-Za-z]:/Users/[^/]+", re.IGNORECASE)
_ABSOLUTE = re.compile(r"(?:/|~|\\\\|[A-Za-z]:[\\/]|file:/)")
_KIND = re.compile(r"^(?:random|raw|local-dir|hf_hub|hf-hub):")  # before the name of an encoder
_PATTERN = re.compile(r"[*?\[]")
_INSIDE = re.compile(r"(?<![\w.:/~-])(?:~[\w.-]*)?/[^\s'\"`,;:(){}\[\]]+")  # a path within a text
_REPOSITORY = ("repo_id", "push", "space")  # settings that name one, which a local folder may be called like
_REPOSITORY_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(?:/pretraining)?(?:@\S+)?")
_REVISIONS = ("dataset_revision", "revision")
_PLACES = (
    "output",
    "output_dir",
    "resume",
    "config_file",
)  # settings that name only files and folders of this machine
_PROGRAM = re.compile(r"\.(?:py|sh|ya?ml|json)$")
_OF_CHECKOUT = re.compile(r"scripts/\w+\.py")  # of hf_ssl itself
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


def public_command(
    command: str, dataset: str | None = None, kind: str | None = None, local: Collection[str] = ()
) -> str:
    """A command without paths of this machine.

    `FOLDER` stands for a private folder and for a local data set whose path reads like a name of the Hub, such as
    `data/c10`; `HOST` for a machine that a launcher was given. Of another relative path the last part stays, and a
    file keeps its name.

    Args:
        command: A line for a shell, or a call of a Python function of hf_ssl.
        dataset: The data set that it names.
        kind: `kind` of its `Source`.
        local: What else it names that was opened as a folder, such as the encoder `runs/first`. Other words of two
            parts are taken for repositories.
    """
    words = _Words(dataset, kind, {_KIND.sub("", name) for name in local})
    if command.startswith("hf_ssl."):

        def in_code(found: re.Match[str]) -> str:
            name, equals, literal = found.groups()
            argument = _ARGUMENT.findall(command, 0, found.end(1) + 1)  # the one that a literal of a dict belongs to
            text = words.without_paths(ast.literal_eval(literal), name or (argument[-1] if argument else ""))
            return name + equals + repr(text)

        return _LITERAL.sub(in_code, command)
    try:
        typed = shlex.split(command)
    except ValueError:  # no line for a shell: every word by itself
        return " ".join(map(words.without_paths, command.split(" ")))
    before = [word[2:] if word.startswith("--") else "" for word in ["", *typed]]
    changed = [words.without_paths(word, former) for former, word in zip(before, typed, strict=False)]
    return command if changed == typed else shlex.join(changed)


@dataclass(frozen=True)
class _Words:
    """What becomes of the words of a command; see `public_command`.

    Args:
        dataset: Name of its data set.
        kind: Its kind.
        local: Names of folders, without words such as `random:` before them.
    """

    dataset: str | None
    kind: str | None
    local: Collection[str]

    def without_paths(self, word: str, setting: str = "") -> str:
        """A word, which may be JSON or `name=value`, of a setting if that is known."""
        name, equals, value = word.partition("=")
        if equals and re.fullmatch(r"[\w-]+", name):
            return f"{name}={self.without_paths(value, name.lstrip('-'))}"
        if word[:1] in ("{", "["):
            try:
                return json.dumps(_mapped(json.loads(word), lambda text: self._text(text, setting)))
            except ValueError:
                pass  # it only looks like JSON
        return self._text(word, setting)

    def _text(self, text: str, setting: str) -> str:
        setting = setting.replace("-", "_")
        if setting in _HOSTS:
            return HOST
        is_path = bool({"/", "\\"} & set(text))
        if setting in _REPOSITORY or not is_path:
            return text if setting in _REPOSITORY else _text_without_paths(text, _shown)
        if self.kind == "local" and (text == self.dataset or setting in _WITHIN):
            return _shown(text)
        is_here = setting not in _WITHIN and not is_private(text) and self._is_here(text, setting)
        return public_path(text) if is_here else _text_without_paths(text, _shown)

    def _is_here(self, text: str, setting: str) -> bool:
        """Whether a relative path is one of this machine, and neither a repository nor an address."""
        path = _KIND.sub("", text)
        if setting in _PLACES or path in self.local:
            return True
        if re.search(r"://|[\s*?\[]", text) or setting in _REVISIONS or _OF_CHECKOUT.fullmatch(text):
            return False
        return not _REPOSITORY_NAME.fullmatch(path) or bool(_PROGRAM.search(text))


def _shown(path: str) -> str:
    """A private path as a command shows it."""
    last = public_path(path)
    kind = _KIND.match(last)
    word = kind.group() if kind else ""
    is_file = re.search(r"(?<!^)\.\w+$|[*?\[]", last[len(word) :])
    return last if is_file else f"{word}{FOLDER}"


def folders_among(names: Iterable[str]) -> list[str]:
    """Those references to encoders that name folders of this machine now, for `public_command`."""
    return [name for name in names if Path(_KIND.sub("", name)).is_dir()]


def public_place(folder: Path) -> str:
    """A folder that was exported, as examples beside it show it: as it was typed, or without the folders above it.

    One such folder stays, as in `runs/first/encoder`: more of them tell customers and projects.
    """
    text = folder.as_posix()
    own = folder.parts[-2:] if _OF_HF_SSL.fullmatch(folder.name) else folder.parts[-1:]
    if not is_private(text) and len(folder.parts) <= 1 + len(own):
        return text
    return "/".join([".", *own])


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
