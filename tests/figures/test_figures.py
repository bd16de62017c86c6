"""Figures show the numbers that they were given."""

import json

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from hf_ssl.errors import UserError
from hf_ssl.figures import (
    accuracy_bars,
    embedding_map,
    negative_curves,
    neighbour_gallery,
    training_curves,
)
from hf_ssl.figures.metrics_log import read_metrics

PANELS = {
    "weighted k-NN": {"raw pixels": {"shape": 0.25, "row": 0.9}, "first": {"shape": 0.8, "row": 0.4}},
    "linear probe": {"raw pixels": {"shape": 0.12, "row": 0.35}, "first": {"shape": 0.9, "row": 0.5}},
}
CHANCE = dict.fromkeys(PANELS, {"shape": 0.1, "row": 0.34})


def saved(figure, path):
    backend = matplotlib.get_backend(auto_select=False)
    figure.savefig(path)
    assert matplotlib.get_backend(auto_select=False) == backend  # no global state
    with Image.open(path) as image:
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(2**24)) > 10
        return image.size


def test_bars_have_the_heights_of_the_accuracies(tmp_path):
    figure = accuracy_bars(PANELS, CHANCE, "title")
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(PANELS)
    for axis, encoders in zip(figure.axes, PANELS.values(), strict=True):
        heights = [bar.get_height() for bars in axis.containers for bar in bars]
        assert heights == pytest.approx([100 * v for values in encoders.values() for v in values.values()])
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["shape", "row"]
        levels = [line.get_segments()[0][0, 1] for line in axis.collections]
        assert levels == pytest.approx([10, 34])
        assert axis.get_ylabel()
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(names) == ["first", "most frequent class", "raw pixels"]
    saved(figure, tmp_path / "bars.png")


def test_many_labels_stay_within_a_page(tmp_path):
    labels = {f"attribute {number}": 0.5 for number in range(40)}
    width, _ = saved(accuracy_bars({"knn": {"a": labels, "b": labels, "c": labels}}), tmp_path / "many.png")
    assert width <= 16 * 150


def test_nothing_to_draw_is_named():
    with pytest.raises(ValueError, match="no accuracies to draw"):
        accuracy_bars({"knn": {}})


def test_curves_show_what_the_log_holds(tmp_path):
    lines = [
        {"step": 10, "epoch": 0.1, "loss": 2.0, "lr": 0.1, "feature_std": 0.05, "effective_rank": 9.0},
        {"step": 20, "epoch": 0.2, "loss": 1.0, "lr": 0.2, "feature_std": 0.06, "effective_rank": 8.0, "knn": 0.3},
        {"step": 25, "knn": 0.4, "effective_rank": float("nan")},
        {"step": 20, "epoch": 0.2, "loss": 1.5, "lr": 0.2, "feature_std": 0.06, "effective_rank": 8.0},  # resumed
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    figure = training_curves(path)
    drawn = {}
    for axis in figure.axes:
        (line,) = axis.get_lines()
        drawn[axis.get_title(loc="left")] = [tuple(point) for point in line.get_xydata().tolist()]
        assert axis.get_xlabel() == "optimizer step"
    assert drawn["loss"] == [(10, 2.0), (20, 1.5)]
    assert drawn["k-NN accuracy (%)"] == [(20, 30.0), (25, 40.0)]
    assert len(drawn) == 5
    saved(figure, tmp_path / "curves.png")


@pytest.mark.parametrize("steps", [[3], [2, 3], [1, 2, 3, 4], list(range(20, 2001, 20))])
def test_steps_are_whole_and_single_points_are_seen(tmp_path, steps):
    lines = [{"step": step, "loss": 1.0, "match_probability_rank_1": 0.5, "contrast_accuracy": 0.1} for step in steps]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for figure in (training_curves(tmp_path / "metrics.jsonl"), negative_curves(tmp_path / "metrics.jsonl")):
        assert figure is not None
        figure.canvas.draw()
        for axis in figure.axes:
            low, high = axis.get_xlim()
            ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
            assert ticks and all(tick == round(tick) for tick in ticks)
            assert all(len(line.get_xdata()) > 1 or line.get_marker() == "o" for line in axis.lines)


def test_a_log_without_knn_has_no_panel_for_it_and_an_empty_one_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n')
    assert len(training_curves(path).axes) == 1
    path.write_text("")
    with pytest.raises(ValueError, match="holds no numbers to draw"):
        training_curves(path)


def negative_lines(**more: float) -> list[dict]:
    return [
        {
            "step": step,
            "loss": 1.0,
            "match_probability_rank_1": 0.5 / step,
            "match_probability_rank_4": 0.1 / step,
            "match_probability_rank_1024": 0.0,
            "contrast_accuracy": 0.4,
            **more,
        }
        for step in (10, 20)
    ]


def drawn_in(axis) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): [tuple(point) for point in line.get_xydata().tolist()] for line in axis.get_lines()}


def test_negatives_have_a_line_for_each_rank_and_a_panel_for_what_was_logged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = negative_lines(contrast_accuracy_with_mixed=0.3, false_negative_share=0.2)
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    figure = negative_curves(path)
    ranks, task, share = figure.axes
    assert ranks.get_yscale() == "log" and all(axis.get_xlabel() == "optimizer step" for axis in figure.axes)
    drawn = drawn_in(ranks)
    assert list(drawn) == ["1", "4", "1,024"]  # in order of rank, not of the alphabet
    assert drawn["1"] == [(10, 0.05), (20, 0.025)]
    assert all(value > 0 for _, value in drawn["1,024"])  # a logarithm of zero would not be drawn
    assert drawn_in(task) == {
        "keys of the queue": [(10, 40), (20, 40)],
        "queue and mixtures": [(10, 30), (20, 30)],
    }
    assert list(drawn_in(share).values()) == [[(10, 20), (20, 20)]]
    saved(figure, tmp_path / "negatives.png")


def test_a_log_without_labels_has_no_panel_for_them_and_other_methods_have_no_figure(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in negative_lines()) + "\n")
    figure = negative_curves(path)
    assert len(figure.axes) == 2 and list(drawn_in(figure.axes[1])) == ["keys of the queue"]
    path.write_text('{"step": 1, "loss": 0.5, "contrast_accuracy": 0.5}\n')
    assert negative_curves(path) is None


def test_a_gallery_has_a_frame_for_each_neighbour_whose_class_is_known(tmp_path):
    pictures = [np.full((8, 8, 3), 40 * number, dtype=np.uint8) for number in range(6)]
    figure = neighbour_gallery([pictures[:3], pictures[3:]], [[True, False], [None, True]], "shape")
    axes = [axis for axis in figure.axes if axis.images]
    assert [axis.images[0].get_array()[0, 0, 0] for axis in axes] == [0, 40, 80, 120, 160, 200]
    frames = [
        to_hex(axis.spines["left"].get_edgecolor()) if axis.spines["left"].get_visible() else "" for axis in axes
    ]
    assert frames == ["", "#0072b2", "#e69f00", "", "", "#0072b2"]
    assert "same shape" in figure.get_supxlabel()
    saved(figure, tmp_path / "gallery.png")
    assert not neighbour_gallery([pictures[:3]]).get_supxlabel()
    with pytest.raises(ValueError, match="no neighbours to draw"):
        neighbour_gallery([])


def test_a_map_has_a_colour_and_a_name_for_each_of_few_classes(tmp_path):
    positions = np.random.default_rng(0).normal(size=(60, 2))
    classes = np.arange(60) % 4 - 1  # one of them unknown
    figure = embedding_map(positions, classes, ["cat", "dog", "owl"], "pets")
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["cat", "dog", "owl"]
    drawn = {points.get_label(): points.get_offsets() for points in axis.collections}
    np.testing.assert_array_equal(drawn["owl"], positions[classes == 2])
    assert sum(len(points) for points in drawn.values()) == 60
    saved(figure, tmp_path / "map.png")


@pytest.mark.parametrize("classes", [None, np.full(60, -1), np.arange(60) % 30 - 1])
def test_a_map_without_classes_or_with_many_has_no_legend_and_all_points(classes):
    (axis,) = embedding_map(np.random.default_rng(0).normal(size=(60, 2)), classes).axes
    assert axis.get_legend() is None
    assert sum(len(points.get_offsets()) for points in axis.collections) == 60


def test_wrong_shapes_of_a_map_are_named():
    with pytest.raises(ValueError, match=r"`positions` must have shape \(images, 2\), got \(3, 5\)"):
        embedding_map(np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"`classes` must have shape \(3,\).*got \(4,\)"):
        embedding_map(np.zeros((3, 2)), np.zeros(4, dtype=int))


@pytest.mark.parametrize(
    "line",
    ['{"step": 2, "loss": "low"}', '{"step": "two"}', '{"loss": 1}', "[1]", '{"step": 2, "curves": {"a": ["b"]}}'],
)
def test_a_line_of_a_log_with_text_for_a_number_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "loss": 0.5}'
    for lines, number in (((good, line, good), 2), ((good, line), 2)):
        path.write_text("\n".join(lines))
        with pytest.raises(UserError, match=f"Line {number} of `{path}` must hold numbers by name, and `step`, got"):
            training_curves(path)


def test_a_last_line_that_a_kill_cut_off_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}]
