"""Names that no font of the figure can draw, and names that matplotlib would read as formulas."""

import io
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from hf_ssl.figures.accuracy import accuracy_bars
from hf_ssl.figures.confusion import confusion_matrix
from hf_ssl.figures.diagnostics import spectrum_curves
from hf_ssl.figures.embedding_map import embedding_map
from hf_ssl.figures.names import readable
from hf_ssl.figures.neighbours import neighbour_gallery, picture_sheet

CAT, DOG = "\u732b", "\u72d7"
NAMES = ["caf\u00e9", CAT, DOG, r"$\oops$"]
PICTURE = np.zeros((4, 4, 3), dtype=np.uint8)


def test_what_the_font_lacks_is_marked_or_named_otherwise():
    assert [readable(name) for name in NAMES] == ["caf\u00e9", "?", "?", r"\$\oops\$"]
    assert [readable(name, "class 1") for name in NAMES[:3]] == ["caf\u00e9", "class 1", "class 1"]
    assert readable(f"0.99 {CAT} a\nb_c.jpg") == "0.99 ? a\nb_c.jpg"


def test_a_font_that_the_user_names_counts(monkeypatch: pytest.MonkeyPatch):
    alone = "\U0001d49c"  # a script letter, which the font of formulas alone has
    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["DejaVu Sans Mono"])
    assert readable(alone) == "?"
    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["DejaVu Sans Mono", "STIXGeneral"])
    assert readable(alone) == alone


@pytest.mark.parametrize(
    ("figure", "shown"),
    [
        (embedding_map(np.eye(4, 2), np.arange(4), NAMES, f"{CAT}, label"), {"?, label", "class 1", "class 2"}),
        (confusion_matrix(np.eye(4), NAMES, CAT), {"?", "class 1", "class 2"}),
        (neighbour_gallery([[PICTURE] * 2], [[True]], CAT, [[DOG, NAMES[3]]]), {"?", r"\$\oops\$"}),
        (picture_sheet([[PICTURE]], [[f"{CAT}.jpg"]]), {"?.jpg"}),
        (accuracy_bars({CAT: {DOG: {"knn": 0.5}, "$b$": {"knn": 0.5}}}, title=NAMES[3]), {"?", r"\$b\$"}),
        (spectrum_curves({"features": {CAT: [1.0, 0.5], "$b$": [1.0, 0.4]}}, DOG), {"?", r"\$b\$"}),
    ],
    ids=["map", "confusion", "gallery", "sheet", "bars", "spectra"],
)
def test_figures_are_drawn_without_a_warning(figure: Figure, shown: set[str]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO())
    texts = {text.get_text() for text in figure.findobj(Text)}  # pyright: ignore[reportAttributeAccessIssue]
    assert shown <= texts
