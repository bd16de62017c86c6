"""`run.json`: what was trained on what and how, and how far it came. Only this file knows what stands in it."""

import dataclasses
import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import hf_ssl
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.data.sources.opened import kind_by_name
from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import json_object
from hf_ssl.invocation import command_line
from hf_ssl.private import public_command, public_path, public_places, without_paths
from hf_ssl.settings import of_json
from hf_ssl.tokens import record_without_tokens
from hf_ssl.training.checkpoint import record_in
from hf_ssl.training.files import LISTING, RUN_FILE, storage_errors_explained, write_json
from hf_ssl.training.plan import Plan
from hf_ssl.training.record_parts import check_parts

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "timm", "accelerate", "datasets", "huggingface_hub")
_KEPT = ("command", "started", "skipped", "progress", "collapse")  # of the run that goes on

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
_FREE |= {"hub_timeout", "cpu", "max_hours", "fits_hours"}
_FREE |= {"num_epochs", "num_steps", "warmup_epochs", "warmup_steps"}  # compared as the steps that they come to
_FREE |= {"pretrained", "start_from"}  # where it began
_EXACT_DATA = ("view_recipe", "view_settings", "views_on", "cache", "shuffle_window", "fingerprint")


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Args:
        step: Optimizer steps done.
        epoch: Passes over the data; None where their length is unknown.
        images_seen: Images of these steps, each with all its views.
        seconds: Time of training, without evaluation and saving.
        energy_kwh: Energy used, where the machine tells.
        energy_of: What that is the energy of: `GPU`, `CPU` or both.
    """

    step: int = 0
    epoch: float | None = 0.0
    images_seen: int = 0
    seconds: float = 0.0
    energy_kwh: float | None = None
    energy_of: list[str] | None = None

    def to_json(self) -> dict[str, Any]:
        """What stands in the file: without energy where none is known."""
        told = dataclasses.asdict(self)
        return {name: value for name, value in told.items() if value is not None or not name.startswith("energy")}


@dataclass
class RunRecord:
    """What is known of a run. It is published with the weights, as `public` gives it, and never holds tokens.

    Args:
        method: Name of the method on the command line, such as `directpred`, or `fine-tuning`.
        recipe: Recipe that the settings began with.
        base_model: Hub id of the weights that it started from, for the card.
        origin: Where these come from, and which trainings they have behind them.
        license: Licence of the weights.
        hf_ssl: Version of this package.
        command: What was typed.
        started: Time, ISO 8601 in UTC.
        finished: Time at which the last step was done; None before.
        versions: Of Python and the packages.
        commit: Of this package's source, if it ran from a checkout.
        hardware: Device, processors and memory.
        progress: How far it has come.
        skipped: Images that could not be used, by reason.
        config: Settings of the method, or of the classifier.
        data: Settings of the data, and what was found there.
        training: Settings of the training, with the plan that they came to.
        changes: Settings that changed on the way; see `agreed_changes`.
        collapse: What the collapse alarm saw: `kind`, `step`, `thresholds` (see `Collapse`) and `report`.
        details: What else a task tells, by name; in the file these stand beside the others.
    """

    method: str
    recipe: str | None = None
    base_model: str | None = None
    origin: dict[str, Any] | None = None
    license: str | None = None
    hf_ssl: str | None = None
    command: str | None = None
    started: str | None = None
    finished: str | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    commit: str | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    progress: Progress = Progress()
    skipped: dict[str, int] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    collapse: dict[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(cls, method: str, device: torch.device, **parts: Any) -> "RunRecord":
        """The record of a run that starts now: the parts that are given, command, versions and hardware."""
        record = cls(
            method=method,
            hf_ssl=hf_ssl.__version__,
            command=command_line(),
            started=_now(),
            versions={"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
            commit=_commit(),
            hardware={
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
                "cpu_count": os.cpu_count(),
                "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            },
            **parts,
        )
        return cls.of(record_without_tokens(record.to_json()))

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "RunRecord":
        """A record from what stands in a file; what older versions did not write is at its default.

        Raises:
            UserError: If a part is missing or of another kind.
        """
        lacking = [name for name in ("method", "config", "data", "training", "progress") if name not in content]
        if lacking:
            raise UserError(f"it lacks {', '.join(f'`{name}`' for name in lacking)}")
        names = {one.name for one in dataclasses.fields(cls)} - {"details"}
        details = {name: value for name, value in content.items() if name not in names}
        record = of_json(cls, {**content, "details": details})
        check_parts(content)
        return record

    @classmethod
    def read(cls, folder: Path) -> "RunRecord | None":
        """The record in a folder; None if there is none.

        Where an older version did not record what kind of name the data set has, a list of its files in the run's
        folder says that it is local, else the name, see `kind_by_name`.

        Raises:
            UserError: If it is damaged.
        """
        path = folder / RUN_FILE
        if not path.is_file():
            return None
        try:
            record = cls.of(json_object(path))
        except UserError as error:
            raise UserError(
                f"`{path}` is not the record of a run: {str(error).rstrip('.')}. Bring back a copy of it."
            ) from error
        if "dataset" in record.data:
            record.data.setdefault("dataset_kind", _former_kind(record.data, folder))
        return record

    def to_json(self) -> dict[str, Any]:
        """What stands in the file: without changes and collapse where there are none."""
        written = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        written |= {"progress": self.progress.to_json()} | written.pop("details")
        return {name: value for name, value in written.items() if name not in ("changes", "collapse") or value}

    def public(self) -> "RunRecord":
        """The record as it is published: of every local path the last part, and in the command `FOLDER`."""
        content = json.loads(json.dumps(self.to_json()))
        name, kind, places = self.data.get("dataset"), self.data.get("dataset_kind"), _local_names(content)
        if isinstance(self.command, str):
            content["command"] = public_command(self.command, name, kind, [part[key] for part, key in places])
        if kind == "local":
            content["data"] |= public_places(content["data"])
        for part, key in places:
            part[key] = public_path(part[key])
        return RunRecord.of(without_paths(content))

    def write(self, folder: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            UserError: If the disk refuses it.
        """
        with storage_errors_explained(folder / RUN_FILE):
            write_json(folder / RUN_FILE, self.to_json())

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share to continue bit for bit."""
        training = {name: value for name, value in self.training.items() if name not in _FREE}
        steps = {name: self.training[name] for name in ("num_steps", "warmup_steps")}
        data = {name: self.data[name] for name in _EXACT_DATA}
        data["decode_on"] = self.data.get("decode_on", "cpu")  # older runs had no choice
        return {"method": self.method, **self.config, **training, **steps, **data}

    def flat_settings(self) -> dict[str, str | int | float | bool]:
        """Settings as the flat scalars that every tracker takes, as they are published: many trackers are websites."""
        told = self.public()
        flat = {**told.config, **told.data, **told.training, "method": told.method, "recipe": told.recipe}
        return {
            name: value if isinstance(value, str | int | float | bool) else json.dumps(value)
            for name, value in flat.items()
        }

    def go_on(self, former: "RunRecord", step: int, at_end: bool) -> None:
        """Take over what is known of the part of the run that is done.

        Args:
            former: The record of that part.
            step: Optimizer steps that are done.
            at_end: Whether nothing is left to do.
        """
        for name in _KEPT:
            setattr(self, name, getattr(former, name))
        self.keep_collapse(former.collapse, step)
        self.finished = former.finished if at_end else None

    def keep_collapse(self, collapse: dict[str, Any] | None, step: int) -> None:
        """Take over what the alarm saw, unless the run went back to a step before that."""
        self.collapse = collapse if collapse is not None and collapse["step"] <= step else None

    def end(self) -> None:
        """Note that the run is at its end, if that was not noted before."""
        self.finished = self.finished or _now()


def described_data(data: DataSettings, source: Source, view_recipe: str) -> dict[str, Any]:
    """The part `data` of a record."""
    return {
        **data.described(),
        "dataset_kind": source.kind,
        "view_recipe": data.view_recipe or view_recipe,
        "num_images": source.num_images,
        "fingerprint": source.fingerprint,
        **({"left_out": source.left_out} if source.left_out else {}),
    }


def _local_names(content: Mapping[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where names of local data sets, encoders and folders stand in a record, which may look like names of the Hub."""
    data, origin, training = content["data"], content.get("origin"), content["training"]
    found = [(data, "dataset")] if data.get("dataset_kind") == "local" else []
    found += [(training, name) for name in ("output_dir", "resume") if isinstance(training.get(name), str)]
    encoders: set[str] = set()
    while origin:
        if origin.get("kind") in ("run", "folder"):
            found.append((origin, "encoder"))
            encoders.add(origin["encoder"])
        if origin.get("dataset_kind") == "local":
            found.append((origin, "dataset"))
        origin = origin.get("former")
    for part, name in (("training", "start_from"), ("config", "encoder")):
        given = content[part].get(name)
        if isinstance(given, str) and given.removeprefix("random:") in encoders:
            found.append((content[part], name))
    return found


def _former_kind(data: Mapping[str, Any], folder: Path) -> str | None:
    if data.get("in_memory"):
        return "object"
    if any((place / LISTING).is_file() for place in (folder, folder.parent)):
        return "local"
    return kind_by_name(data["dataset"])


def described_training(settings: Mapping[str, Any], plan: Plan, num_processes: int) -> dict[str, Any]:
    """The part `training` of a record: the settings, and the plan that they came to."""
    planned = {name: value for name, value in dataclasses.asdict(plan).items() if name != "lr_schedule"}
    return {**settings, **planned, "num_processes": num_processes}


def former_record(output_dir: Path, checkpoint: Path) -> RunRecord | None:
    """The record of the run that goes on; where it is damaged or gone, what its checkpoint kept of it.

    Args:
        output_dir: Folder of the run.
        checkpoint: Where it goes on.

    Returns:
        The record; None if a run in another folder begins it, or one of an older version has lost it.
    """
    path = output_dir / RUN_FILE
    if path.exists():
        try:
            return RunRecord.of(json_object(path))
        except (UserError, OSError) as error:
            logger.warning("`%s` is damaged and made again from `%s`: %s", path, checkpoint, error)
    is_own = checkpoint.resolve().parent.parent == output_dir.resolve()
    kept = record_in(checkpoint) if path.exists() or is_own else {}
    return RunRecord.of(kept) if kept else None


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
