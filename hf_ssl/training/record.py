"""What a run leaves to read: `run.json` says what was trained and how, `metrics.jsonl` how it went."""

import dataclasses
import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from transformers import PreTrainedConfig

import hf_ssl
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import read_json
from hf_ssl.invocation import command_line
from hf_ssl.methods.base import SSLConfig, SSLPreTrainedModel
from hf_ssl.tokens import record_without_tokens
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.checkpoint import record_in
from hf_ssl.training.files import storage_errors_explained
from hf_ssl.training.plan import Plan

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "timm", "accelerate", "datasets", "huggingface_hub")
_PARTS = ("config", "data", "training", "progress")
_INHERITED = {field.name for field in dataclasses.fields(PreTrainedConfig)}

# Settings that may change when a run resumes: its weights do not depend on them.
_FREE = {
    "output_dir",
    "recipe",
    "log_every",
    "checkpoint_every",
    "grace_seconds",
    "keep_checkpoints",
    "resume",
    "change",
    "report_to",
    "knn_every",
    "diagnostics_every",
    "on_collapse",
}
_FREE |= {"knn_split", "knn_images", "gallery", "push_to_hub", "push_checkpoints", "repo_id", "private", "license"}
_FREE |= {"cpu", "max_hours", "fits_hours"}
_FREE |= {"num_epochs", "num_steps", "warmup_epochs", "warmup_steps"}  # compared as the steps that they come to
_FREE |= {"pretrained", "start_from"}  # where it began
_EXACT_DATA = ("view_recipe", "view_settings", "views_on", "cache", "shuffle_window", "fingerprint")


class Start(Protocol):
    """Where the weights of a run come from: an `EncoderStart` or a `MethodStart`."""

    @property
    def base_model(self) -> str | None:
        """Hub id for the card."""
        ...

    @property
    def origin(self) -> dict[str, Any] | None:
        """What `run.json` says about it."""
        ...


def method_of(model: SSLPreTrainedModel) -> str:
    """The method's name on the command line, such as `directpred`."""
    return model.config_class.model_type.removeprefix("hf_ssl_")


def config_fields(config: SSLConfig) -> dict[str, Any]:
    """A config's own fields, without those of transformers."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)  # pyright: ignore[reportArgumentType]
        if field.name not in _INHERITED
    }


def describe_run(
    model: SSLPreTrainedModel,
    source: Source,
    data: DataSettings,
    settings: TrainingSettings,
    plan: Plan,
    num_processes: int,
    device: torch.device,
    start: Start | None = None,
) -> dict[str, Any]:
    """The content of `run.json` at the start of a run; it is published, so tokens in addresses are not in it."""
    training = dataclasses.asdict(settings)
    for name in ("recipe", "change"):  # what has changed is in `changes`
        del training[name]
    record = {
        "method": method_of(model),
        "recipe": settings.recipe,
        "base_model": start.base_model if start is not None else None,
        "origin": start.origin if start is not None else None,
        "license": settings.license,
        **beginning_of_run(device),
        "config": config_fields(model.config),  # pyright: ignore[reportArgumentType]
        "data": {
            **data.described(),
            "view_recipe": data.view_recipe or model.view_recipe,
            "num_images": source.num_images,
            "fingerprint": source.fingerprint,
            **({"left_out": source.left_out} if source.left_out else {}),
        },
        "training": {
            **training,
            **{name: value for name, value in dataclasses.asdict(plan).items() if name != "lr_schedule"},
            "num_processes": num_processes,
        },
    }
    return record_without_tokens(record)


def beginning_of_run(device: torch.device) -> dict[str, Any]:
    """The part of `run.json` that does not depend on what is trained: command, versions, hardware, no progress yet."""
    return {
        "hf_ssl": hf_ssl.__version__,
        "command": command_line(),
        "started": _now(),
        "finished": None,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "commit": _commit(),
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "cpu_count": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        },
        "progress": {"step": 0, "epoch": 0.0, "images_seen": 0, "seconds": 0.0},
        "skipped": {},
    }


def identity_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `run.json` that a resumed run must share to continue bit for bit."""
    training = {name: value for name, value in run["training"].items() if name not in _FREE}
    steps = {name: run["training"][name] for name in ("num_steps", "warmup_steps")}
    data = {name: run["data"][name] for name in _EXACT_DATA}
    return {"method": run["method"], **run["config"], **training, **steps, **data}


def former_record(output_dir: Path, checkpoint: Path) -> dict[str, Any]:
    """The `run.json` of the run that goes on; where it is damaged or gone, what its checkpoint kept of it.

    Args:
        output_dir: Folder of the run.
        checkpoint: Where it goes on.

    Returns:
        The content; empty if a run in another folder begins it.
    """
    path = output_dir / "run.json"
    if path.exists():
        try:
            record = read_json(path)
            if all(isinstance(record.get(name), dict) for name in _PARTS):
                return record
            reason = f"it lacks {', '.join(f'`{name}`' for name in _PARTS if not isinstance(record.get(name), dict))}"
        except (UserError, OSError) as error:
            reason = str(error)
        logger.warning("`%s` is damaged and made again from `%s`: %s", path, checkpoint, reason)
    is_own = checkpoint.resolve().parent.parent == output_dir.resolve()
    return record_in(checkpoint) if path.exists() or is_own else {}


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line.

    Args:
        path: The file; made with the first line.
        step: Lines after this step are removed, and those that cannot be read: the run resumes from there. 0 empties
            the file.

    Raises:
        UserError: If the disk refuses to write.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        if path.exists():
            with storage_errors_explained(path):
                # What a disk has damaged may be no text at all.
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                kept = [line for line in lines if _step_of(line) <= step and step > 0]
                partial = path.with_name(f".{path.name}.partial")
                partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
                os.replace(partial, path)
            damaged = sum(_step_of(line) == float("inf") for line in lines[:-1])  # a kill may cut the last one
            if damaged and step > 0:
                logger.warning("%d damaged lines of `%s` are left out.", damaged, path)

    def append(self, values: Mapping[str, Any]) -> None:
        """Add one line."""
        with storage_errors_explained(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut off, or a disk damaged


def flat_settings(run: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Settings of `run.json` as the flat scalars that every tracker takes."""
    flat = {name: value for part in ("config", "data", "training") for name, value in run[part].items()}
    flat |= {"method": run["method"], "recipe": run["recipe"]}
    return {
        name: value if isinstance(value, str | int | float | bool) else json.dumps(value)
        for name, value in flat.items()
    }


def finish(run: dict[str, Any]) -> None:
    """Note the time at which a run has ended."""
    run["finished"] = _now()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the package's source, if it runs from a git checkout."""
    folder = Path(hf_ssl.__file__).parent
    try:
        asked = subprocess.run(
            ["git", "log", "-1", "--format=%H", "--", "."], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None
