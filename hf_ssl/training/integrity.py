"""Whether a checkpoint is what was written: every file of it has a checksum in `state.json`, which has its own."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_ssl.training.files import checksum_of

STATE = "state.json"


def file_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file of a folder, by name."""
    return {path.name: {"bytes": path.stat().st_size, "crc32": checksum_of(path)} for path in sorted(folder.iterdir())}


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `state.json` with its own checksum."""
    return {**state, "crc32": _checksum(state)}


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint's `state.json`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is damaged.
    """
    state = json.loads((checkpoint / STATE).read_text())
    if not isinstance(state, dict) or not {"step", "seconds", "identity", "files"} <= state.keys():
        raise ValueError("it is not the state of a run")
    if "crc32" in state and state["crc32"] != _checksum({name: state[name] for name in state if name != "crc32"}):
        raise ValueError("its content does not fit its checksum")
    return state


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint is there, with the size that it had when it was written; reads no weights."""
    try:
        files = read_state(checkpoint)["files"]
        return all((checkpoint / name).stat().st_size == _size(facts) for name, facts in files.items())
    except (OSError, ValueError, TypeError, KeyError):
        return False


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, all of which is read for it; None if it is whole.

    Returns:
        A clause that names the file, such as "`optimizer.pt` has 5 bytes instead of 9".
    """
    try:
        files = read_state(checkpoint)["files"]
    except FileNotFoundError:
        return f"`{STATE}` is missing"
    except OSError as error:
        return f"`{STATE}` cannot be read: {error.strerror}"
    except (ValueError, TypeError) as error:
        return f"`{STATE}` is damaged: {error}"
    return next((damage for name, facts in files.items() if (damage := _damage(checkpoint / name, facts))), None)


def _damage(path: Path, facts: Any) -> str | None:
    try:
        size, wanted = path.stat().st_size, _size(facts)
        if size != wanted:
            return f"`{path.name}` has {size:,} bytes instead of {wanted:,}"
        if isinstance(facts, dict) and checksum_of(path) != facts["crc32"]:
            return f"`{path.name}` is not what was written: its checksum is another"
    except FileNotFoundError:
        return f"`{path.name}` is missing"
    except OSError as error:
        return f"`{path.name}` cannot be read: {error.strerror}"
    return None


def _size(facts: Any) -> int:
    return facts["bytes"] if isinstance(facts, dict) else facts  # before checksums it was the size alone


def _checksum(state: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(state, sort_keys=True).encode()):08x}"
