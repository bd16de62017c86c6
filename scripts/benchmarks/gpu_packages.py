"""Packages that a bare machine lacks, and their installation from wheels without a network."""

import importlib.metadata
import platform
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from email import message_from_string
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

_BESIDE = ("pytest",)  # what the check itself needs
_HELPFUL = ("lightly", "pytest-timeout", "pytest-xdist")
# What they need besides. Lightly says that it needs more, for its own commands, and some of that has no wheel.
_NEEDS = {"lightly": ("lightning-utilities",), "pytest-xdist": ("execnet",)}
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")  # pip wants each by its name


def needed(root: Path) -> list[Requirement]:
    """What the package and the check need, by `pyproject.toml`."""
    return [*map(Requirement, _project(root)["dependencies"]), *_of_extras(root, _BESIDE)]


def helpful(root: Path) -> list[Requirement]:
    """What the check can do without: lightly to compare with, and what makes the tests shorter."""
    return [*_of_extras(root, _HELPFUL), *(Requirement(name) for needs in _NEEDS.values() for name in needs)]


def has_lightly(root: Path) -> bool:
    """Whether lightly is there, with what the comparison needs of it."""
    return not lacking([*_of_extras(root, ("lightly",)), *map(Requirement, _NEEDS["lightly"])])


def _project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def _of_extras(root: Path, names: Sequence[str]) -> list[Requirement]:
    """Packages in the version that the extras ask for."""
    texts = [text for extra in _project(root)["optional-dependencies"].values() for text in extra]
    return [one for one in map(Requirement, texts) if one.name in names]


def lacking(wanted: Iterable[Requirement]) -> list[Requirement]:
    """Those that are not installed, or in a version that does not do."""
    return [one for one in wanted if not _is_there(one)]


def _is_there(wanted: Requirement) -> bool:
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return True
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return wanted.specifier.contains(version, prereleases=True)


def choose(missing: Sequence[Requirement], folder: Path) -> tuple[list[Path], list[Requirement]]:
    """Wheels of a folder for what is missing, and for what these need in turn.

    Args:
        missing: From `lacking`.
        folder: Holds wheels; those for another Python or another machine, and those that are cut off, are left out.

    Returns:
        The wheels, and what no wheel is there for.
    """
    wheels, fitting_tags = {}, set(sys_tags())
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if tags & fitting_tags and zipfile.is_zipfile(path):
            wheels.setdefault(name, []).append((version, path))
    chosen, absent, queue = {}, {}, list(missing)
    while queue:
        wanted = queue.pop(0)
        name = canonicalize_name(wanted.name)
        if name in chosen or name in absent:
            continue
        fitting = [one for one in wheels.get(name, ()) if wanted.specifier.contains(one[0], prereleases=True)]
        if not fitting:
            absent[name] = wanted
            continue
        chosen[name] = max(fitting)[1]
        queue += lacking(_needs_of(name, chosen[name]))
    return list(chosen.values()), list(absent.values())


def choose_some(missing: Sequence[Requirement], folder: Path) -> tuple[list[Path], list[Requirement]]:
    """The same for packages that are of use one by one: each with all that it needs, or not at all."""
    chosen, absent = {}, {}
    for one in missing:
        wheels, lacks = choose([one], folder)
        chosen |= {} if lacks else dict.fromkeys(wheels)
        absent |= dict.fromkeys(lacks)
    return list(chosen), list(absent)


def _needs_of(name: str, wheel: Path) -> list[Requirement]:
    if name in _NEEDS:
        return [Requirement(text) for text in _NEEDS[name]]
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = message_from_string(archive.read(metadata).decode()).get_all("Requires-Dist") or []
    return [Requirement(line) for line in lines]


def install(wheels: Sequence[Path], target: Path) -> str | None:
    """Install wheels, and nothing else, into a folder of their own.

    Returns:
        Why it could not be done; None if it was.
    """
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", *options, *map(str, wheels)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return (done.stdout.strip() or f"pip ended with code {done.returncode}") if done.returncode else None


def how_to_get(missing: Sequence[Requirement]) -> str:
    """The command that downloads wheels for this machine, on one with a network."""
    version, machine = f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine()
    platforms = " ".join(f"--platform {name}_{machine}" for name in _PLATFORMS)
    names = " ".join(f"'{one.name}{one.specifier}'" for one in missing)
    return (
        f"python3 -m pip download --no-deps --only-binary=:all: --python-version {version} {platforms} -d wheels "
        f"{names}"
    )
