"""Figures of the study of dictionaries: what is drawn is what was given."""

import pytest

from hf_ssl.figures.dictionaries import (
    AgingCurve,
    NegativesRow,
    accuracy_grid,
    aging,
    foretold_against_measured,
    negatives_and_memory,
)


def test_aging_draws_measured_dots_and_foretold_lines():
    measured, foretold = {1: 0.99, 8: 0.9, 64: -0.2}, {1: 0.98, 8: 0.8, 64: 0.1}
    curves = [
        AgingCurve(title="m = 0", measured=measured, foretold=foretold),
        AgingCurve(title="m = 1", measured={1: 1.0}),
    ]
    figure = aging({"queue": curves, "bank": [AgingCurve(title="512", measured=measured)]})
    left, right = figure.axes
    lines = [line for line in left.lines if len(line.get_xdata()) in (1, 3)]
    assert [list(line.get_ydata()) for line in lines] == [list(measured.values()), list(foretold.values()), [1.0]]
    assert [line.get_linestyle() for line in lines] == ["None", "--", "-"]
    assert left.get_title(loc="left") == "queue" and right.get_title(loc="left") == "bank"
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["m = 0", "m = 1"]


def test_foretold_against_measured_has_a_diagonal_and_every_point():
    figure = foretold_against_measured({"0": [(0.1, 0.2), (0.3, 0.4)], "0.9": [(0.9, 0.8)]}, 0.75)
    (axis,) = figure.axes
    assert [len(points.get_offsets()) for points in axis.collections] == [2, 1]
    assert list(axis.lines[0].get_xdata()) == [0.1, 1] and "0.750" in axis.get_title(loc="left")


def test_the_grid_names_means_choice_and_best():
    values = {(0.0, 64): [0.3, 0.4], (0.9, 64): [0.5], (0.9, 256): [0.2]}
    figure = accuracy_grid(values, choice=(0.9, 256), best=(0.9, 64))
    axis = figure.axes[0]
    assert sorted(text.get_text() for text in axis.texts) == ["20.0", "35.0", "50.0"]
    places = {patch.get_label(): (round(patch.get_x() + 0.5), round(patch.get_y() + 0.5)) for patch in axis.patches}
    assert places == {"best": (0, 1), "foretold choice": (1, 1)}
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0", "0.9"]


def test_negatives_are_joined_by_kind():
    rows = [
        NegativesRow(kind="queue", negatives=256, effective=100, held=2e6, kept=1e6),
        NegativesRow(kind="queue", negatives=64, effective=30, held=2e6, kept=0),
        NegativesRow(kind="end to end", negatives=63, effective=20, held=9e6, kept=0),
    ]
    left, right = negatives_and_memory(rows).axes
    assert [list(line.get_ydata()) for line in left.lines[:2]] == [[20], [30, 100]]
    assert [list(line.get_ydata()) for line in right.lines] == [pytest.approx([9]), pytest.approx([2, 3])]
