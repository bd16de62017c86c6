"""Figures of the class-oracle study show the numbers that they were given."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ssl.figures.negatives import matching_curves
from hf_ssl.figures.oracle_study import StudyRow, plane, spread_apart, study_chart

NUMBERS = {"linear": [0.4, 0.5], "knn": [0.3, 0.2], "view_alignment_h": [0.3, 0.5], "class_alignment_h": [0.9, 0.7]}
NUMBERS |= {"uniformity_h": [-2.0, -3.0]}
PROJECTED = {"view_alignment_z": [0.1, 0.1], "uniformity_z": [-1.0, -1.5]}


def log(folder, share: float, mixed: float):
    return [
        {
            "step": step,
            "false_negative_share": share,
            "contrast_accuracy": 0.5,
            "contrast_accuracy_with_mixed": mixed,
            "match_probability_rank_1": step / 1000,
            "match_probability_rank_16": 0.001,
        }
        for step in range(1, 101)
    ]


@pytest.fixture
def rows(tmp_path):
    logs = [log(tmp_path, 0.2, 0.5), log(tmp_path, 0.4, 0.5)]
    return [
        StudyRow(title="fresh", numbers=NUMBERS | PROJECTED),
        StudyRow(title="moco_v2", numbers=NUMBERS | PROJECTED, logs=logs),
        StudyRow(title="mochi", numbers=NUMBERS | PROJECTED, logs=[log(tmp_path, 0.3, 0.25)]),
        StudyRow(title="supervised", numbers=NUMBERS),
    ]


def lines_of(axis) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in axis.get_lines() if not line.get_label().startswith("_")}


def test_the_plane_has_a_label_and_a_mean_for_each_trained_method(rows):
    figure = plane(rows)
    names = [{text.get_text() for text in axis.texts} for axis in figure.axes]
    assert names == [{"moco_v2", "mochi", "supervised"}] * 2 + [{"moco_v2", "mochi"}]
    seeds, mean = (line.get_xydata().tolist() for line in figure.axes[1].get_lines()[:2])
    assert seeds == [[2.0, -0.9], [3.0, -0.7]] and mean == [pytest.approx([2.5, -0.8])]
    for axis in figure.axes:
        assert "more even" in axis.get_xlabel() and "closer together" in axis.get_ylabel()
        heights = sorted(text.xyann[1] for text in axis.texts)
        assert min(np.diff(heights)) > 0.07  # equal points, but labels do not lie on each other


@settings(deadline=None, max_examples=50)
@given(places=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_labels_are_spread_in_order_within_the_panel(places):
    moved = spread_apart(sorted(places), 0.1)
    assert moved[0] >= -1e-9 and moved[-1] <= 1 + 1e-9
    assert all(after - before >= 0.1 - 1e-9 for before, after in zip(moved, moved[1:], strict=False))
    if all(after - before >= 0.1 for before, after in zip(sorted(places), sorted(places)[1:], strict=False)):
        assert moved == pytest.approx(sorted(places))


def test_the_chart_has_chance_means_over_runs_and_mixtures_where_there_are_some(rows):
    share, task, accuracy = study_chart(rows, 0.1).axes
    assert lines_of(share)["moco_v2"][:, 1] == pytest.approx([30] * 100)
    assert lines_of(share)["chance"][:, 1] == pytest.approx([10, 10])
    assert list(lines_of(task)) == ["moco_v2", "mochi", "mochi, keys and mixtures"]
    assert lines_of(task)["mochi, keys and mixtures"][:, 1] == pytest.approx([25] * 100)
    assert [tick.get_text() for tick in accuracy.get_yticklabels()] == ["moco_v2", "mochi", "supervised"]
    assert lines_of(accuracy)["linear probe, fresh encoder"][:, 0] == pytest.approx([45, 45])
    assert lines_of(accuracy)["k-NN, fresh encoder"][:, 0] == pytest.approx([25, 25])
    drawn = [line.get_xydata().tolist() for line in accuracy.get_lines()]
    assert [[pytest.approx(40), -0.14], [pytest.approx(50), -0.14]] in drawn


def test_matching_probabilities_are_drawn_by_rank_at_moments(tmp_path):
    path = log(tmp_path, 0.2, 0.5)
    figure = matching_curves({"moco_v2": [path, path], "mochi": [path]}, 99)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["moco_v2", "mochi"]
    for axis in figure.axes:
        assert axis.get_xscale() == axis.get_yscale() == "log"
        drawn = lines_of(axis)
        assert list(drawn) == ["3", "10", "25", "50", "100", "all equal"]
        # The last three of a hundred steps, and of the first three the mean.
        assert drawn["100"].tolist() == [[1, pytest.approx(0.099)], [16, pytest.approx(0.001)]]
        assert drawn["3"][0].tolist() == [1, pytest.approx(0.002)]
        assert drawn["all equal"][:, 1] == pytest.approx([0.01, 0.01])
