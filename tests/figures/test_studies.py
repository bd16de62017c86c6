"""Figures of studies: what lies under another line can still be seen, and a figure names its data."""

from hf_ssl.figures.ablation import AblationRow, ablation_chart
from hf_ssl.figures.curriculum import alignment_curves


def test_equal_curves_can_be_told_apart():
    curves = {"cosine": [0.0, 0.5, 0.9], "alignment": [1.0, 0.5, 0.2], "uniformity": [-2.0, -1.0, -0.5]}
    targets = {name: {"theory": curves, "measured": curves} for name in ("none", "0.9", "0.9-cosine")}
    left, right = alignment_curves({"steps": [0, 1, 2], "targets": targets}).axes
    lines, dots = left.lines[::2], left.lines[1::2]
    paths = [line for line in right.lines if len(line.get_xdata()) > 1]
    for drawn in (lines, paths):
        assert len(drawn) == 3
        assert all(one.get_linewidth() > other.get_linewidth() for one, other in zip(drawn, drawn[1:], strict=False))
    assert all(one.get_markersize() > other.get_markersize() for one, other in zip(dots, dots[1:], strict=False))


def test_an_ablation_names_its_data():
    row = AblationRow(
        title="mlp",
        expected="survives",
        forecast=["survives"],
        found=["survives"],
        agrees=True,
        knn=[0.3],
        projection_rank=[5.0],
        forecast_rank=[6.0],
        representation_rank=[9.0],
    )
    assert ablation_chart([row], title="digits").get_suptitle() == "digits"
