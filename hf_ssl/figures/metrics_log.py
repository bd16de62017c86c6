"""A run's `metrics.jsonl` as curves over its steps."""

import json
import math
from collections.abc import Sized
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hf_ssl.errors import UserError

_FEW = 30  # points whose curve shows where they are


def read_metrics(metrics_path: Path) -> list[dict[str, Any]]:
    """The lines of a log, one dictionary each; without a last one that a kill cut off.

    Raises:
        UserError: If another line is not what a run writes.
    """
    texts = metrics_path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [(number, logged_line(text), text) for number, text in enumerate(texts, start=1) if text.strip()]
    for number, line, text in lines:
        if line is None and (number < len(texts) or _is_json(text)):
            raise UserError(
                f"Line {number} of `{metrics_path}` must hold numbers by name, and `step`, got {text[:80]!r}. Remove "
                "the line."
            )
    return [line for _, line, _ in lines if line is not None]


def logged_line(text: str) -> dict[str, Any] | None:
    """What a line of a log says; None for one that is cut off or damaged, or has text where a number belongs."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    is_line = isinstance(line, dict) and type(line.get("step")) in (int, float) and not _has_text(line)
    return line if is_line else None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _has_text(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_text, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str)


def curve_of(lines: list[dict[str, Any]], name: str, scale: float = 1.0) -> tuple[list[int], list[float]]:
    """Steps and values of one metric; a resumed run may have logged a step twice, then the later one counts.

    Args:
        lines: From `read_metrics`.
        name: Name of the metric.
        scale: Factor of the values.

    Returns:
        Steps in order and the values times `scale`, without values that are not finite; both empty if there are none.
    """
    logged = {line["step"]: line[name] for line in lines if "step" in line and line.get(name) is not None}
    points = {step: value for step, value in logged.items() if math.isfinite(value)}
    steps = sorted(points)
    return steps, [scale * points[step] for step in steps]


def marker_of(points: Sized) -> str | None:
    """Marker of a curve's points: of few ones, for a line through a single point cannot be seen."""
    return "o" if len(points) < _FEW else None


def over_steps(axis: Axes, label: str = "optimizer step") -> None:
    """Name the axis of the steps, and set its ticks at whole ones."""
    axis.set_xlabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
