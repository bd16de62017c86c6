"""Which trainings some weights have behind them, and from which file and commit they are."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import encoder_folder, hub_file
from hf_ssl.training.files import RUN_FILE
from hf_ssl.training.record import RunRecord

logger = logging.getLogger(__name__)


def hub_record(place: str) -> RunRecord | None:
    """The record of a run in a repository that hf_ssl published; None, with a warning, if it is damaged."""
    try:
        folder = hub_file(place, RUN_FILE).parent
    except UserError:
        return None  # most repositories are not of hf_ssl
    try:
        return RunRecord.read(folder)
    except UserError as error:
        logger.warning("What the card tells of the weights of `%s` lacks their training: %s", place, error)
        return None


def training_of(record: RunRecord | None) -> dict[str, Any] | None:
    """The training that made some weights, from its record: method, data set, steps, and what it started from in turn.

    Args:
        record: Of the run; None if there is none.

    Returns:
        `method`, `dataset`, `dataset_kind` and `steps`; `kind` and `step` of a `collapse` that was reported; of a
        training that did not start from random weights also what its `origin` said, with the one before as `former`.
        None without a record.
    """
    if record is None:
        return None
    return {
        **(record.origin or {}),
        "method": record.method,
        "dataset": record.data.get("dataset"),
        "dataset_kind": record.data.get("dataset_kind"),
        "steps": record.progress.step,
        **({"collapse": {name: record.collapse.get(name) for name in ("kind", "step")}} if record.collapse else {}),
    }


def origin_of_encoder(reference: str) -> dict[str, Any]:
    """What the record of a run that uses an encoder tells of it: `encoder`, `kind` and `former`; see `EncoderStart`.

    Args:
        reference: A timm name, a repository, an encoder folder or the folder of a run; there is such an encoder.
    """
    folder = encoder_folder(reference)
    if folder is not None:
        kind = "run" if folder != Path(reference.removeprefix("local-dir:")) else "folder"
        return {"encoder": reference, "kind": kind, "former": training_of(RunRecord.read(folder))}
    repo = reference.removeprefix("hf_hub:").removeprefix("hf-hub:")
    if repo.count("/") != 1:
        return {"encoder": reference, "kind": "timm", "former": None}
    return {"encoder": reference, "kind": "hub", "former": training_of(hub_record(repo))}


def commit_of(file: Path) -> str | None:
    """Commit of a file in the cache of the Hub, where each lies below `snapshots/COMMIT`."""
    parts = file.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def sha256_of(file: Path) -> str:
    """Hexadecimal digest of a file, as the Hub shows it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
