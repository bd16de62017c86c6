"""What the results of `scripts/gpu_check.py` belong to: code and data set."""

import ast
import hashlib
import json
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def code_of(root: Path, *places: str) -> str:
    """Checksum of the package, and of other files with all files of the clone that these import.

    Args:
        root: The clone.
        places: Files and folders besides the package, from there.
    """
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    folders = [root / place for place in settings["tool"]["pytest"]["ini_options"]["pythonpath"]]
    package, files = set(_python_files(root / "hf_ssl")), set()
    queue = [path for place in places for path in _python_files(root / place)]
    while queue:
        path = queue.pop()
        if path not in files:
            files.add(path)
            near = [folder / f"{name}.py" for name in _imported(path) for folder in folders]
            queue += [found for found in near if found.is_file()]
    checksum = hashlib.sha256()
    for path in sorted(package | files):
        checksum.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return checksum.hexdigest()[:16]


def _python_files(place: Path) -> list[Path]:
    return list(place.rglob("*.py")) if place.is_dir() else [place]


def _imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, without what is in them."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (one.name.partition(".")[0] for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def data_of(dataset: str) -> dict[str, str]:
    """The name of a data set, and a checksum of names and sizes of its files; no path, for it is published."""
    place = Path(dataset)
    if not place.exists():
        return {"dataset": dataset}
    checksum = hashlib.sha256()
    for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if path.is_file():
            checksum.update(f"{path.relative_to(place).as_posix()} {path.stat().st_size}\n".encode())
    return {"dataset": place.name, "files": checksum.hexdigest()[:16]}


def begin(note: Path, stamp: Mapping[str, Any], *places: Path) -> str:
    """Set aside what belongs to another stamp than this one, and note the new one.

    Args:
        note: The file with the stamp.
        stamp: Must be of what JSON has.
        places: Files and folders that belong to it. What is set aside is called `NAME.before`; one that was set aside
            earlier is deleted.

    Returns:
        What differs, in words; empty if nothing was set aside.
    """
    try:
        former = json.loads(note.read_text()) if note.exists() else {}
    except ValueError:  # cut off by a kill, so that nobody knows what they belong to
        former = {}
    if former == stamp:
        return ""
    found = [place for place in places if place.exists()]
    for place in found:
        aside = place.with_name(f"{place.name}.before")
        if aside.is_dir():
            shutil.rmtree(aside)
        place.replace(aside)
    note.write_text(json.dumps(stamp) + "\n")
    differing = [key for key in stamp if former.get(key) != stamp[key]] or ["stamp"]
    return f"other {' and '.join(differing)} than before" if found else ""
