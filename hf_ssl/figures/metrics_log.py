"""A run's `metrics.jsonl` as curves over its steps."""

import json
import math
from collections.abc import Sized
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

_FEW = 30  # points whose curve shows where they are


def read_metrics(metrics_path: Path) -> list[dict[str, Any]]:
    """The lines of a log, one dictionary each."""
    return [json.loads(line) for line in metrics_path.read_text(encoding="utf-8").splitlines() if line.strip()]


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
