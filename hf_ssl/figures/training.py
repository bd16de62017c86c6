"""How a run went: its log as curves."""

from pathlib import Path

from matplotlib.figure import Figure

from hf_ssl.errors import UserError
from hf_ssl.figures.metrics_log import curve_of, marker_of, over_steps, read_metrics

_COLOUR = "#0072B2"
_PANELS = {
    "loss": "loss",
    "lr": "learning rate",
    "knn": "k-NN accuracy (%)",
    "accuracy": "test accuracy (%)",
    "feature_std": "std of normalised features",
    "effective_rank": "effective rank",
}


def training_curves(metrics_path: Path) -> Figure:
    """Draw loss, learning rate, k-NN accuracy and the figures that show a collapse, against the step.

    Args:
        metrics_path: A run's `metrics.jsonl`: one object a line, with `step` and any of `loss`, `lr`, `knn`,
            `accuracy`, `feature_std`, `effective_rank`. What no line has gets no panel.

    Returns:
        The figure; save it by `figure.savefig(path)`.

    Raises:
        UserError: If the file holds none of these numbers.
    """
    lines = read_metrics(metrics_path)
    curves = {name: curve_of(lines, name, scale=100 if name in ("knn", "accuracy") else 1) for name in _PANELS}
    curves = {name: curve for name, curve in curves.items() if curve[0]}
    if not curves:
        raise UserError(f"`{metrics_path}` holds no numbers to draw. Train for at least one log step.")
    num_columns = min(3, len(curves))
    num_rows = -(-len(curves) // num_columns)
    figure = Figure(figsize=(3.6 * num_columns, 2.6 * num_rows), dpi=150, layout="constrained")
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axis, (name, (steps, values)) in zip(axes, curves.items(), strict=False):
        axis.plot(steps, values, color=_COLOUR, lw=1.4, marker=marker_of(steps), markersize=3)
        axis.set_title(_PANELS[name], fontsize=10, loc="left")
        over_steps(axis)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3, lw=0.6)
        if name not in ("loss", "lr"):  # zero means chance or collapse: keep it in sight
            axis.set_ylim(0, 1.08 * max(values) or 1)
    for axis in axes[len(curves) :]:
        axis.remove()
    return figure
