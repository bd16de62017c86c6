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

from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

BESIDE = ("pytest>=8.3",)
"""What the check itself needs."""
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")  # pip wants each by its name


def needed(root: Path) -> list[Requirement]:
    """What the package and the check need, by `pyproject.toml`."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in (*project["dependencies"], *BESIDE)]


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
        folder: Holds wheels; those for another Python or another machine are left out.

    Returns:
        The wheels, and what no wheel is there for.
    """
    wheels, fitting_tags = {}, set(sys_tags())
    for path in sorted(folder.glob("*.whl")):
        name, version, _, tags = parse_wheel_filename(path.name)
        if tags & fitting_tags:
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
        queue += lacking(_needs_of(chosen[name]))
    return list(chosen.values()), list(absent.values())


def _needs_of(wheel: Path) -> list[Requirement]:
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
