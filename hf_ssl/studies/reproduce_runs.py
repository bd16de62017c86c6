"""The folder of one run of `hf-ssl study reproduce`: how far it has come, and whether it is a row's run."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLConfig, SSLPreTrainedModel, own_settings
from hf_ssl.modules.quiet import quiet_transformers
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.changes import defaults_of
from hf_ssl.training.find import complete_checkpoints, step_of
from hf_ssl.training.lock import is_in_use
from hf_ssl.training.plan import make_plan
from hf_ssl.training.record import RunRecord, described_data, described_training

_METHOD_FOLDER = "pretraining"  # see `export_run`

# How a run was computed: plain values, which need no word. Other values may change its numbers a little.
_PLAIN = {"mixed_precision": "no", "compile": False, "cache": "none", "views_on": "cpu", "decode_on": "cpu"}
_PLAIN |= {"num_processes": 1, "batch_norm": None}
_MAY_DIFFER = {*_PLAIN, "images_per_device", "lanes", "shuffle_window"}
_MAY_DIFFER |= {"channels_last", "activation_checkpointing", "deterministic"}
# Of the method only what timm is told: so the last BatchNorm of a block can start as the authors' does.
_MAY_DIFFER |= {"model_args"}


def is_trained(folder: Path) -> bool:
    """Whether the run in a folder reached its last step and was exported.

    Raises:
        UserError: If its record is damaged.
    """
    record = RunRecord.read(folder)
    return record is not None and record.finished is not None and (folder / _METHOD_FOLDER / "config.json").is_file()


def state_of(folder: Path) -> str:
    """How far a run without a result has come, in words.

    Args:
        folder: Of the run, with a `run.json`.

    Raises:
        UserError: If its record is damaged.
    """
    if is_trained(folder):
        return "trained, not measured"
    record = RunRecord.read(folder)
    total = record.training.get("num_steps", "?") if record is not None else "?"
    checkpoints = complete_checkpoints(folder)
    step = step_of(checkpoints[-1]) if checkpoints else 0
    return f"{'in training, saved' if is_in_use(folder) else 'stopped'} at step {step} of {total}"


def wanted_identity(
    method: str, config: SSLConfig, source: Source, data: DataSettings, training: TrainingSettings
) -> dict[str, Any]:
    """What a run of a row is by its settings, computed in one process in float32.

    Args:
        method: Name in `METHODS`.
        config: Its config.
        source: The images.
        data: How they become batches.
        training: Length, optimizer and seed.
    """
    record = RunRecord(
        method,
        config=own_settings(config),
        data=described_data(data, source, METHODS[method].view_recipe),
        training=described_training(asdict(training), make_plan(source, training, 1), 1),  # pyright: ignore[reportArgumentType]
    )
    return json.loads(json.dumps(record.identity() | _PLAIN))


def differences_from(wanted: Mapping[str, Any], folder: Path, title: str, data: str) -> dict[str, Any]:
    """How a run was computed other than a row's plainest run.

    Args:
        wanted: From `wanted_identity`.
        folder: Of the run.
        title: Which run of the table it should be.
        data: Name of the data set and its split, for the message.

    Returns:
        Setting -> its value in that run, for a table.

    Raises:
        UserError: If it is another run: another method, recipe, length, seed or data set, or it began with weights.
            Names what differs.
    """
    record = RunRecord.read(folder)
    if record is None:
        return {}
    settings = (METHODS[wanted["method"]].config_class, DataSettings, TrainingSettings)
    older = json.loads(json.dumps(defaults_of(*settings), default=str))
    found = {**{name: older[name] for name in wanted if name in older}, **json.loads(json.dumps(record.identity()))}
    share = wanted["batch_size"] // found.get("num_processes", 1)
    wanted = {**wanted, "images_per_device": share}
    for one in (wanted, found):
        one["model_args"] = one.get("model_args") or None  # an empty one is none
    differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    refused = [
        f"its `{name}` is {found.get(name)}, not {wanted.get(name)}"
        for name in differing
        if name not in _MAY_DIFFER and name != "fingerprint"
    ]
    if "fingerprint" in differing:
        refused.append(f"its images are `{record.data['dataset']}`, split `{record.data['split']}`, not {data}")
    if record.origin is not None:
        refused.append(f"it began with the weights of `{record.origin.get('encoder')}`")
    if refused:
        raise UserError(
            f"The run in `{folder}` is not {title} of this table: {'; '.join(refused)}. Move it out of the way, or "
            "give the study what it was trained with."
        )
    on_the_way = {f"{one['name']} until step {one['step']}": one["from"] for one in record.changes}
    return {name: found.get(name) for name in differing if name in _MAY_DIFFER} | on_the_way


def trained_method(method: str, folder: Path) -> SSLPreTrainedModel:
    """The method as a finished run left it.

    Args:
        method: Name in `METHODS`.
        folder: Of the run.
    """
    with quiet_transformers():
        return METHODS[method].from_pretrained(folder / _METHOD_FOLDER)
