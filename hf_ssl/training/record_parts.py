"""What stands in the parts of `run.json` that other rooms look into, for the check of its types.

All of it may be missing: records of older versions know less, and those of other methods have settings of their own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_ssl.errors import UserError
from hf_ssl.settings import of_json


@dataclass(frozen=True)
class _Data:
    """Settings of the data, and what was found there."""

    dataset: str = ""
    dataset_kind: str | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    split: str | None = None
    num_images: int | None = None
    fingerprint: str | None = None
    left_out: dict[str, int] | None = None
    view_recipe: str | None = None
    view_settings: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Training:
    """Settings of the training."""

    num_steps: int | None = None
    batch_size: int | None = None
    num_processes: int | None = None
    repo_id: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class _Config:
    """Settings of the method."""

    image_size: int | None = None


@dataclass(frozen=True)
class _Change:
    """A setting that changed on the way."""

    step: int
    name: str


@dataclass(frozen=True)
class _Thresholds:
    """By what a collapse was judged: by its spread, or by a rank and the best rank of the run."""

    lines: float
    spread: float | None = None
    effective_rank: float | None = None
    best_rank: float | None = None


@dataclass(frozen=True)
class _Collapse:
    """What the alarm saw."""

    step: int
    report: str
    kind: str | None = None
    thresholds: _Thresholds | None = None


@dataclass(frozen=True)
class _FormerCollapse:
    """What is kept of the collapse of a training before."""

    step: int
    kind: str | None = None


@dataclass(frozen=True)
class _Origin:
    """Where weights come from; `former`, the one before, has the same form."""

    encoder: str | None = None
    kind: str | None = None
    method: str | None = None
    dataset: str | None = None
    dataset_kind: str | None = None
    steps: int | None = None
    collapse: _FormerCollapse | None = None


@dataclass(frozen=True)
class _Parts:
    data: _Data = _Data()
    training: _Training = _Training()
    config: _Config = _Config()
    changes: list[_Change] = field(default_factory=list)
    collapse: _Collapse | None = None


_SHOWN = {"data": ("dataset", "split"), "training": ("num_steps", "batch_size", "num_processes")}


def check_parts(content: Mapping[str, Any]) -> None:
    """Check what `run.json` holds but for what the types of `RunRecord` say already.

    Raises:
        UserError: Names the first value of another type.
    """
    of_json(_Parts, content)
    for number, change in enumerate(content.get("changes", ())):
        if not {"from", "to"} <= change.keys():
            raise UserError(f"`changes.{number}` must have `from` and `to`")
    thresholds = (content.get("collapse") or {}).get("thresholds") or {}
    of_rank = [thresholds.get(name) for name in ("effective_rank", "best_rank")]
    if thresholds and thresholds.get("spread") is None and None in of_rank:
        raise UserError("`collapse.thresholds` must have `spread`, or `effective_rank` and `best_rank`")
    seconds = (content.get("progress") or {}).get("seconds", 0.0)
    if isinstance(seconds, float) and not math.isfinite(seconds):
        raise UserError(f"`progress.seconds` must be a finite number, got {seconds}")
    origin, place = content.get("origin"), "origin."
    while origin is not None:
        of_json(_Origin, origin, place)
        origin, place = origin.get("former"), f"{place}former."


def lacking_for_card(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a card shows of a recorded run and its record does not say, such as `training.num_steps`.

    Args:
        parts: `data` and `training`.
    """
    return [f"{part}.{name}" for part, names in _SHOWN.items() for name in names if parts[part].get(name) is None]
