"""Figures of spectra and predictors: what is drawn where."""

import json
from pathlib import Path

import pytest

from hf_ssl.figures.diagnostics import diagnosis_curves, predictor_curves, spectrum_curves


def test_spectra_are_relative_to_their_largest_eigenvalue():
    figure = spectrum_curves({"representation": {"a": [4.0, 2.0, 0.0], "b": [1.0]}, "projection": {}}, "title")
    (axis,) = figure.axes
    first, second = axis.lines
    assert list(first.get_xdata()) == [1, 2, 3] and list(first.get_ydata()) == [1, 0.5, 1e-12]
    assert list(second.get_ydata()) == [1] and first.get_label() == "a"
    assert (
        axis.get_xscale() == axis.get_yscale() == "log" and axis.get_title("left") == "spectrum of the representation"
    )
    with pytest.raises(ValueError, match="no spectra to draw"):
        spectrum_curves({"projection": {}})


def test_a_predictor_that_is_the_root_lies_on_the_line():
    curves = {"correlation": [9.0, 4.0, 1.0], "predictor": [6.0, 4.0, 2.0], "cosine": [1.0, 1.0, 0.5]}
    left, right = predictor_curves({"a": curves}).axes
    assert list(left.lines[0].get_xdata()) == pytest.approx([1, 2 / 3, 1 / 3])
    assert list(left.lines[0].get_ydata()) == pytest.approx([1, 2 / 3, 1 / 3])
    assert list(right.lines[0].get_ydata()) == [1, 1, 0.5]
    with pytest.raises(ValueError, match="no predictor to draw"):
        predictor_curves({})


def line(step: int, predictor: bool = True) -> str:
    curves = {"projection": [2.0, 1.0], "representation": [3.0]}
    if predictor:
        curves |= {"correlation": [2.0, 0.0], "predictor": [1.0, 0.0], "cosine": [1.0, 0.0]}
    ranks = {name: list(range(1, len(values) + 1)) for name, values in curves.items()}
    return json.dumps({"step": step, "curves": curves, "ranks": ranks}) + "\n"


def test_diagnoses_are_drawn_from_the_first_to_the_last(tmp_path: Path):
    path = tmp_path / "diagnostics.jsonl"
    assert diagnosis_curves(path) is None
    path.write_text("".join(line(step) for step in range(1, 31)))
    figure = diagnosis_curves(path)
    assert figure is not None
    projection, representation, predictor, cosine, bar = figure.axes
    assert len(projection.lines) == len(representation.lines) == len(cosine.lines) == 12
    assert len(predictor.lines) == 13  # and the line of equality
    assert bar.get_ylim() == (1, 30)
    path.write_text(line(5, predictor=False))
    figure = diagnosis_curves(path)
    assert figure is not None and len(figure.axes) == 3  # two spectra and the bar of colours
    assert list(figure.axes[2].get_yticks()) == [5]
    assert figure.axes[1].lines[0].get_marker() == "o"  # of one direction
    path.write_text(line(5) + line(6))
    figure = diagnosis_curves(path)
    assert figure is not None and all(tick == round(tick) for tick in figure.axes[-1].get_yticks())


def test_a_collapsed_run_can_be_drawn(tmp_path: Path):
    path = tmp_path / "diagnostics.jsonl"
    curves = {name: [0.0] for name in ("projection", "representation", "correlation", "predictor", "cosine")}
    path.write_text(json.dumps({"step": 1, "curves": curves, "ranks": dict.fromkeys(curves, [1])}) + "\n")
    figure = diagnosis_curves(path)
    assert figure is not None
    figure.savefig(tmp_path / "figure.png")
