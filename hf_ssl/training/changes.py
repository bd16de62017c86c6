"""What may differ when a run goes on: nothing by accident, more steps at any time, other settings by `--change`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_ssl.errors import UserError, near_name
from hf_ssl.settings import is_required
from hf_ssl.training.plan import UNKNOWN_LENGTH, Plan

_MAY_DIFFER = {"num_processes", "images_per_device"}  # of an identity: the images of each step stay the same
_LENGTH, _WARM_UP = ("num_steps", "num_epochs", "max_hours"), ("warmup_steps", "warmup_epochs")
_ALSO_NAMED = {
    "num_steps": _LENGTH,
    "warmup_steps": (*_WARM_UP, *_LENGTH),
    "learning_rate": ("base_learning_rate", "learning_rate_scaling"),
}
"""Part of an identity -> the settings that it follows from, of which one is named to change it."""

_IMAGES = "which images a step sees follows from it"
_WEIGHTS = "the weights belong to it"
_OPTIMIZER = "the state of the optimizer is sorted by it"
_FIXED = {
    **dict.fromkeys(("method", "architecture", "model_args", "encoder", "num_classes"), _WEIGHTS),
    **dict.fromkeys(("optimizer", "decay_norm_and_bias", "train", "layer_decay"), _OPTIMIZER),
    **dict.fromkeys(("batch_size", "lanes", "seed", "shuffle_window", "label_fraction", "fingerprint"), _IMAGES),
    "steps_per_epoch": "it follows from the data and `batch_size`",
}
"""Setting that cannot change within a run -> why."""

_OLDER_DEFAULTS: dict[str, Any] = {}
"""Setting -> what a run did before it existed, where that is not the default of today."""


def defaults_of(*kinds: type) -> dict[str, Any]:
    """The default of every field of settings classes, by name."""
    found: dict[str, Any] = {}
    for field in (field for kind in kinds for field in dataclasses.fields(kind) if not is_required(field)):
        is_plain = field.default is not dataclasses.MISSING
        found[field.name] = field.default if is_plain else field.default_factory()  # pyright: ignore[reportCallIssue]
    return found


def plan_going_on(plan: Plan, former: Mapping[str, Any], change: Sequence[str]) -> Plan:
    """The plan of a run that goes on: in a longer one the warm-up stays what it was, unless it is to change.

    Args:
        plan: What the settings come to.
        former: Identity of the checkpoint.
        change: Settings that are to change.
    """
    grows = plan.num_steps > former["num_steps"]
    if grows and not set(change) & set(_WARM_UP):
        return replace(plan, warmup_steps=former["warmup_steps"])
    return plan


def agreed_changes(
    checkpoint: Path,
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    step: int = 0,
    change: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    started: Mapping[str, Any] | None = None,
    version: str | None = None,
) -> list[dict[str, Any]]:
    """Refuse what would make the resumed run another one, except for what was named; more steps need no name.

    Args:
        checkpoint: Named in the message.
        then: Method and settings of the checkpoint. Settings that its version did not have are at their default.
        now: Those of this run.
        step: Optimizer steps done.
        change: Settings that are to change.
        defaults: Of all settings, by name.
        started: Record of the run of the checkpoint: its `command` and version are for the message.
        version: From `version_text`, of this run.

    Returns:
        What changes, for `run.json`: `step`, `name`, `from` and `to` of each.

    Raises:
        UserError: If something else differs, or what was named cannot change.
    """
    now = json.loads(json.dumps(now))
    older = json.loads(json.dumps({**(defaults or {}), **_OLDER_DEFAULTS}, default=str))
    then = {**{name: older[name] for name in now if name in older}, **then}
    another = f"or start another run in another `output_dir`.{_beginning_text(started or {}, version)}"
    if then["method"] != now["method"]:
        raise UserError(
            f"`{checkpoint}` is of method `{then['method']}`, this run trains `{now['method']}`. Resume with what it "
            f"was, {another}"
        )
    _check_names(change, now)
    differing = [name for name in sorted((then.keys() | now.keys()) - _MAY_DIFFER) if then.get(name) != now.get(name)]
    refused = [name for name in differing if name in _FIXED or not _is_agreed(name, then, now, change)]
    if refused:
        told = ", ".join(f"`{name}` was `{then.get(name)}` and is `{now.get(name)}` now" for name in refused)
        fixed = [f"`{name}` cannot change within a run, because {_FIXED[name]}." for name in refused if name in _FIXED]
        names = " ".join(dict.fromkeys(_ALSO_NAMED.get(name, (name,))[0] for name in refused if name not in _FIXED))
        by_change = f"go on with the new value by `--change {names}`, " if names else ""
        raise UserError(
            " ".join(
                [
                    f"These settings changed since `{checkpoint}` was written: {told}.",
                    *fixed,
                    f"Resume with what it was, {by_change}{another}",
                ]
            )
        )
    if now.get("num_steps", step) < step:
        raise UserError(
            f"`{checkpoint}` is of step {step}, and the run is to end with step {now['num_steps']}. Train longer."
        )
    return [
        {"step": step, "name": name, "from": then.get(name), "to": now.get(name)}
        for name in differing
        if name != "learning_rate"
    ]


def version_text(record: Mapping[str, Any]) -> str | None:
    """The version of hf_ssl in a record, with its commit if it ran from a checkout; None where it tells none."""
    commit = f" (commit {str(record['commit'])[:8]})" if record.get("commit") else ""
    return f"hf_ssl {record['hf_ssl']}{commit}" if record.get("hf_ssl") else None


def _beginning_text(started: Mapping[str, Any], version: str | None) -> str:
    """By which command and, if it is not this one, by which version a run was started."""
    text = f" The run was started by `{started['command']}`." if started.get("command") else ""
    former = version_text(started)
    if former is None or version is None or former == version:
        return text
    return f"{text} That was {former}, and this is {version}: its recipe may have other values."


def _check_names(change: Sequence[str], now: Mapping[str, Any]) -> None:
    known = {*now, *_LENGTH, *_WARM_UP} - {"learning_rate", *_MAY_DIFFER}
    for name in change:
        if name in _FIXED:
            raise UserError(
                f"`change` names `{name}`, which cannot change within a run, because {_FIXED[name]}. Start another "
                "run in another `output_dir`; `start_from` gives it these weights."
            )
        if name not in known:
            raise UserError(
                f"`change` must name settings that a run depends on, got `{name}`."
                f"{near_name(name, known) or ' Leave it out.'}"
            )


def _is_agreed(name: str, then: Mapping[str, Any], now: Mapping[str, Any], change: Sequence[str]) -> bool:
    if set(change) & set(_ALSO_NAMED.get(name, (name,))):
        return True
    return name == "num_steps" and then.get(name) is not None and now[name] > then[name]


def change_text(one: Mapping[str, Any]) -> str:
    """A change as a sentence for the log."""
    text = f"Changed after step {one['step']}: `{one['name']}` from `{one['from']}` to `{one['to']}`."
    if one["name"] != "num_steps":
        return text
    if one["to"] == UNKNOWN_LENGTH:
        return f"Changed after step {one['step']}: the length is fitted to `max_hours` again."
    return f"{text[:-1]}; the learning rate and all other schedules follow the new length."
