"""Accuracies of several encoders side by side."""

from collections.abc import Mapping
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure

from hf_ssl.figures.names import readable

# Okabe and Ito's colours: distinct for colour-blind readers, and of different lightness in print. The last encoder is
# the one that the figure is about and gets the strong blue.
_OTHERS = ("#BBBBBB", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
_MAIN = "#0072B2"
_CHANCE = "#000000"


def accuracy_bars(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]],
    chance: Mapping[str, Mapping[str, float]] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw grouped bars: one panel below the other, in each a group for every label, in each group the encoders.

    Args:
        panels: Title of the panel -> encoder -> label -> accuracy in [0, 1]; the last encoder is drawn strongest.
        chance: Title of the panel -> label -> accuracy that needs no picture, drawn as a line across its group.
        title: Title of the figure.

    Returns:
        The figure; save it by `figure.savefig(path)`.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if not panels or not all(panels.values()):
        raise ValueError("There are no accuracies to draw. Give at least one panel with one encoder.")
    num_bars = max(sum(len(values) for values in encoders.values()) for encoders in panels.values())
    width = min(max(6.0, 1.5 + 0.42 * num_bars), 16.0)  # inches
    crowded = num_bars > 40
    figure = Figure(figsize=(width, 1.2 + 2.4 * len(panels)), dpi=150, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, (name, encoders) in zip(axes, panels.items(), strict=True):
        labels = list(next(iter(encoders.values())))
        bar_width = 0.84 / len(encoders)
        for place, (encoder, values) in enumerate(encoders.items()):
            main = place == len(encoders) - 1
            colour = _MAIN if main else _OTHERS[place % len(_OTHERS)]
            heights = [100 * values[label] for label in labels]
            where = np.arange(len(labels)) - 0.42 + (place + 0.5) * bar_width
            bars = axis.bar(where, heights, 0.94 * bar_width, color=colour, label=readable(encoder))
            if not crowded:
                axis.bar_label(bars, fmt="%.0f", fontsize=7, fontweight="bold" if main else "normal", padding=1)
        for place, label in enumerate(labels):
            level = (chance or {}).get(name, {}).get(label)
            if level is not None:
                line = axis.hlines(100 * level, place - 0.46, place + 0.46, colors=_CHANCE, linestyles="--", lw=1)
                line.set_label("most frequent class" if place == 0 else None)
        axis.set_title(readable(name), fontsize=10, loc="left")
        axis.set_xticks(range(len(labels)), labels if crowded else [fill(label, 14) for label in labels])
        if crowded:
            axis.tick_params(axis="x", rotation=90)
        axis.set_ylabel("test accuracy (%)")
        axis.set_ylim(0, 108)
        axis.set_yticks(range(0, 101, 20))
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
        axis.grid(axis="y", alpha=0.3, lw=0.6)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=max(1, int(width / 2.5)), frameon=False, fontsize=9
    )
    if title:
        figure.suptitle(readable(title), fontsize=11)
    return figure
