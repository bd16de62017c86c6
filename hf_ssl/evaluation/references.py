"""What a reference to an encoder means: a folder, a run, a repository of the Hub or a name of timm."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_ssl.answers import hub_answers
from hf_ssl.errors import UserError, first_line, near_name
from hf_ssl.settings import of_json

_LOCAL = "local-dir:"


def encoder_folder(name_or_folder: str) -> Path | None:
    """The local folder that holds an encoder's `config.json`.

    Args:
        name_or_folder: What `load_encoder` takes.

    Returns:
        The folder itself, or the `encoder/` of a run's folder; None if this is no local folder.

    Raises:
        UserError: If it is a folder without an encoder.
    """
    path = Path(name_or_folder.removeprefix(_LOCAL))
    if not path.is_dir():
        if name_or_folder.startswith(_LOCAL):
            raise UserError(f"`{name_or_folder}` must name a folder, and there is no folder `{path}`.")
        return None
    for folder in (path / "encoder", path):
        if (folder / "config.json").is_file():
            return folder
    raise UserError(
        f"The folder `{path}` holds no encoder: neither it nor its `encoder` folder has a `config.json`. "
        "Give the folder of a finished run."
    )


def timm_reference(name: str) -> tuple[str, dict[str, Any]] | None:
    """Where timm finds an encoder.

    Args:
        name: A folder, a repo or a timm name, as `load_encoder` takes them.

    Returns:
        What `timm.create_model` takes, such as `local-dir:runs/first/encoder`, and the published `config.json` (empty
        for a timm name); None if the folder or repo holds a model of transformers.

    Raises:
        UserError: If there is no such encoder.
    """
    folder = encoder_folder(name)
    if folder is not None:
        config = read_json(folder / "config.json")
        return (f"{_LOCAL}{folder}", config) if _is_of_timm(config, folder) else None
    on_hub = name.removeprefix("hf_hub:").removeprefix("hf-hub:")
    if on_hub.count("/") == 1:
        config = read_json(hub_file(on_hub, "config.json"))
        return (f"hf-hub:{on_hub}", config) if _is_of_timm(config, on_hub) or on_hub != name else None
    if timm.is_model(name):
        return name, {}
    near = near_name(name, [*timm.list_models(), *timm.list_pretrained()])
    hint = near or " Give a folder, a timm name or a repo as `ORG/NAME`."
    raise UserError(f"There is no folder `{name}` and timm knows no encoder of that name.{hint}")


@dataclass(frozen=True)
class _Published:
    """What is looked up in the `pretrained_cfg` of timm, for the check of its types."""

    input_size: list[int] = field(default_factory=lambda: [3, 224, 224])
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass(frozen=True)
class _Config:
    """What is looked up in the `config.json` of timm, for the check of its types."""

    architecture: str
    pretrained_cfg: _Published = _Published()
    model_args: dict[str, Any] | None = None


def _is_of_timm(config: dict[str, Any], place: Path | str) -> bool:
    """Whether a `config.json` is one of timm; the oldest of them have no `pretrained_cfg`.

    Raises:
        UserError: If it is, and is damaged.
    """
    if "pretrained_cfg" not in config and ("architecture" not in config or "model_type" in config):
        return False
    try:
        if len(of_json(_Config, config).pretrained_cfg.input_size) != 3:
            raise UserError("`pretrained_cfg.input_size` must have three numbers")
    except UserError as error:
        raise UserError(f"The `config.json` of `{place}` is damaged: {error}. Bring back a copy of it.") from error
    return True


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: If there is something else in it.
    """
    try:
        return json_object(path)
    except UserError as error:
        reason = str(error).removeprefix("it ")
        raise UserError(f"`{path}` {reason}. Bring back a copy of it, or make it again.") from error


def json_object(path: Path) -> dict[str, Any]:
    """The same for callers that name the file and the cure themselves.

    Raises:
        UserError: If there is something else in it; a clause without the path and its full stop.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"it cannot be read as JSON, perhaps because it is not complete: {error}") from error
    if not isinstance(content, dict):
        raise UserError("it must hold a JSON object")
    return content


def hub_file(repo: str, filename: str) -> Path:
    """A file of a model repository, downloaded unless it is in the cache.

    Args:
        repo: `ORG/NAME`, or `ORG/NAME@REVISION`.
        filename: Its path in the repository.

    Raises:
        UserError: If it cannot be had; says why.
    """
    name, _, revision = repo.partition("@")
    try:
        with hub_answers():
            return Path(huggingface_hub.hf_hub_download(name, filename, revision=revision or None))
    except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        reason = _why_not(error, name, filename, revision)
        raise UserError(
            f"There is no folder `{name}`, and the Hub gave no `{filename}` of the repository: {reason}"
        ) from error


def _why_not(error: Exception, repo: str, filename: str, revision: str) -> str:
    """Why the Hub gave no file, and what to do."""
    # Offline means not in the cache: `LocalEntryNotFoundError` is an `EntryNotFoundError` too, so it comes first.
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError):
        return "it cannot be reached, and the cache does not have it. Connect, or give a local folder."
    if isinstance(error, GatedRepoError):
        return f"its terms must be accepted first, at https://huggingface.co/{repo}, and you must be logged in."
    if isinstance(error, RepositoryNotFoundError):
        return "it has no such repository, or you may not read it. Check the name, or run `hf auth login`."
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no revision `{revision}`."
    if isinstance(error, EntryNotFoundError):
        other = " Other files of weights are not loaded, because they may hold code."
        return f"the repository has none.{other if filename.endswith('.safetensors') else ''}"
    return f"{first_line(error)}."
