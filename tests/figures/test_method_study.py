"""The figure of compared methods shows every run, its mean and its spread."""

import numpy as np
import pytest

from hf_ssl.figures.method_study import MethodRow, method_chart


def test_runs_means_and_spread_are_drawn_in_percent():
    rows = [
        MethodRow(title="BYOL", knn=[0.3, 0.5], linear=[0.6, 0.8], seconds=[10.0, 14.0]),
        MethodRow(title="MoCo v2", knn=[0.4], linear=[0.7], seconds=[20.0]),
    ]
    random = MethodRow(title="random encoder", knn=[0.1, 0.2], linear=[0.2, 0.4], seconds=[0.0, 0.0])
    figure = method_chart(rows, random, "Frozen encoders on digits")
    knn, linear, seconds = figure.axes
    assert [text.get_text() for text in knn.get_yticklabels()] == ["BYOL", "MoCo v2"]
    assert knn.get_ylim() == (1.5, -0.5)  # from the top
    assert figure.get_suptitle() == "Frozen encoders on digits"
    for axis, runs, single, level in (
        (knn, [30, 50], 40, 15),
        (linear, [60, 80], 70, 30),
        (seconds, [10, 14], 20, None),
    ):
        points = [line.get_xydata() for line in axis.get_lines() if len(line.get_xydata())]
        drawn = [xy[:, 0].tolist() for xy in points]
        assert pytest.approx(runs) in drawn and pytest.approx([np.mean(runs)]) in drawn
        assert pytest.approx([single]) in drawn
        assert (pytest.approx([level, level]) in drawn) == (level is not None)
        (bars,) = [bar for container in axis.containers for bar in container.lines[2]]
        ends = bars.get_segments()[0][:, 0]
        assert (ends[1] - ends[0]) / 2 == pytest.approx(np.std(runs, ddof=1))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random encoder"]
