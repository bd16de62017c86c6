"""The sheet of views: every picture is there once, in its row, under the name of its column."""

import numpy as np
import pytest

from hf_ssl.figures.views import view_sheet


def _given(num_images, num_pairs, size=8):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (size + row, size, 3), np.uint8) for row in range(num_images)]
    return images, [rng.integers(0, 256, (num_pairs, 2, size, size, 3), np.uint8) for _ in images]


def test_rows_hold_an_image_and_its_pairs_and_columns_have_names():
    images, views = _given(3, 2)
    figure = view_sheet(images, views, "photos", ["where from"], ["cat", None, "a very long name of a class"])
    axes = figure.axes
    expected = [
        picture for image, pairs in zip(images, views, strict=True) for picture in (image, *pairs.reshape(4, 8, 8, 3))
    ]
    assert len(axes) == len(expected) == 15
    assert all(
        np.array_equal(axis.images[0].get_array(), picture) for axis, picture in zip(axes, expected, strict=True)
    )
    assert [axis.get_title() for axis in axes[:5]] == ["image", "view 1", "view 2", "view 1", "view 2"]
    assert {axis.get_title() for axis in axes[5:]} == {""}
    assert [axes[row * 5].get_xlabel() for row in range(3)] == ["cat", "", "a very long nam..."]
    assert [text.get_text() for text in figure.texts] == ["pair 1", "pair 2", "photos", "where from"]
    tops = [round(axis.get_position().y1, 6) for axis in axes]
    assert len(set(tops)) == 3 and tops == sorted(tops, reverse=True)


@pytest.mark.parametrize("num_pairs", [1, 4])
@pytest.mark.parametrize("names", [None, ["lion"] * 4])
def test_text_stays_on_the_sheet_and_off_the_pictures(num_pairs, names):
    images, views = _given(4, num_pairs)
    figure = view_sheet(images, views, "A long title of a sheet " * 4, ["a note that goes on " * 12] * 2, names)
    figure.draw_without_rendering()
    pictures = [axis.get_window_extent() for axis in figure.axes]
    boxes = [text.get_window_extent() for text in figure.texts]
    labels = [axis.xaxis.label.get_window_extent() for axis in figure.axes if axis.get_xlabel()]
    for box in boxes + labels:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(picture) for picture in pictures)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


def test_nothing_to_draw_is_an_error():
    images, views = _given(2, 1)
    for wrong in (([], []), (images, views[:1])):
        with pytest.raises(ValueError, match="Give views of at least one image"):
            view_sheet(*wrong, "title")
