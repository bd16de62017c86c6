"""The embedded data set: the same everywhere, labelled truthfully, hard enough."""

import io

import numpy as np
import pytest
from PIL import Image

from hf_ssl.data.sources.shapes import FACTORS, IMAGE_SIZE, NUM_IMAGES, draw, shapes


def test_a_picture_depends_on_split_and_index_alone():
    first, labels = draw("train", 7)
    again, labels_again = draw("train", 7)
    assert np.array_equal(first, again)
    assert labels == labels_again
    assert not np.array_equal(first, draw("train", 8)[0])
    assert not np.array_equal(first, draw("test", 7)[0])


def test_the_split_holds_the_pictures_that_draw_makes():
    split = shapes("test")
    assert split.num_rows == NUM_IMAGES["test"]
    for index in (0, 1999):
        row = split[index]
        picture, labels = draw("test", index)
        assert np.array_equal(np.asarray(row["image"]), picture)
        assert {factor: row[factor] for factor in FACTORS} == labels
    assert split.features["shape"].names == FACTORS["shape"]


@pytest.mark.parametrize(
    ("split", "index", "expected"),
    [
        (
            "train",
            0,
            [
                [214.9, 212.9, 215.0, 214.9],
                [215.0, 137.1, 151.5, 186.0],
                [215.0, 189.2, 156.3, 195.1],
                [215.0, 215.0, 215.1, 215.0],
            ],
        ),
        (
            "test",
            1999,
            [
                [151.4, 151.4, 150.9, 150.9],
                [138.2, 108.9, 151.3, 152.0],
                [151.8, 92.5, 135.8, 151.1],
                [151.7, 150.7, 151.4, 151.7],
            ],
        ),
    ],
)
def test_pictures_stay_what_published_numbers_were_measured_on(split: str, index: int, expected: list[list[float]]):
    # Results files name the data set only; a silent change of its pictures would make them incomparable. Means over
    # blocks of 12 x 12 pixels leave room for other roundings of OpenCV.
    means = draw(split, index)[0].reshape(4, 12, 4, 12).mean((1, 3))
    np.testing.assert_allclose(means, expected, atol=0.5)


def test_every_class_of_every_factor_is_as_frequent_as_the_others():
    split = shapes("train")
    for factor, names in FACTORS.items():
        counts = np.bincount(split[factor], minlength=len(names))
        expected = NUM_IMAGES["train"] / len(names)
        assert np.all(np.abs(counts - expected) < 4.5 * np.sqrt(expected)), factor


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_picture_appears_twice(split: str):
    pictures = {draw(split, index)[0].tobytes() for index in range(300)}
    assert len(pictures) == 300


def test_labels_of_place_and_polarity_describe_the_picture():
    agreements = []
    for index in range(200):
        picture, labels = draw("train", index)
        if FACTORS["texture"][labels["texture"]] != "plain":
            continue
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]).mean()
        difference = picture - border
        weights = np.abs(difference) > 50
        row, column = (axis.mean() for axis in np.nonzero(weights))
        light = difference[weights].mean() > 0
        agreements.append(
            (FACTORS["polarity"][labels["polarity"]] == "light_on_dark") == light
            and (labels["row"] == 1 or (row < IMAGE_SIZE / 2) == (labels["row"] == 0))
            and (labels["column"] == 1 or (column < IMAGE_SIZE / 2) == (labels["column"] == 0))
        )
    assert len(agreements) > 30
    assert np.mean(agreements) > 0.9  # the centre of mass of an arrow or a half disk is beside its centre


def test_images_are_small_pngs():
    undecoded = shapes("train").data.column("image")[0].as_py()
    image = Image.open(io.BytesIO(undecoded["bytes"]))
    assert image.format == "PNG"
    assert image.size == (IMAGE_SIZE, IMAGE_SIZE)


def test_unknown_split_names_those_that_exist():
    with pytest.raises(ValueError, match="no split `validation`. It has: train, test"):
        shapes("validation")
