import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from view_rows import scalar_row

from hf_ssl.data.views.draws import (
    CONTRAST,
    CROP,
    FACTORS,
    NUM_DRAWS,
    PLACES,
    ROW_LENGTH,
    draw_pairs,
    draw_rows,
    numbers_between,
)
from hf_ssl.data.views.recipes import VIEW_RECIPES, ViewParameters

SIZES = [(32, 32), (96, 64), (3, 900), (900, 3), (1, 1), (375, 500)]


def _sizes(*sizes):
    heights, widths = np.array(sizes).T
    return heights, widths


@pytest.mark.parametrize("recipe", sorted(VIEW_RECIPES))
def test_rows_are_those_of_each_picture_drawn_alone(recipe):
    numbers = np.random.default_rng(0).random((200, 2, NUM_DRAWS))
    sizes = list(itertools.islice(itertools.cycle(SIZES), 200))
    pairs = draw_pairs(*_sizes(*sizes), VIEW_RECIPES[recipe], numbers)
    assert pairs.shape == (200, 2, ROW_LENGTH)
    for view, parameters in enumerate((VIEW_RECIPES[recipe].first, VIEW_RECIPES[recipe].second)):
        alone = [scalar_row(*size, parameters, own[view]) for size, own in zip(sizes, numbers.tolist(), strict=True)]
        np.testing.assert_array_equal(pairs[:, view], alone)
        np.testing.assert_array_equal(draw_rows(*_sizes(*sizes), parameters, numbers[:, view]), alone)


def test_no_picture_has_no_row():
    nothing = np.zeros(0, np.int64)
    assert draw_pairs(nothing, nothing, VIEW_RECIPES["byol"], np.zeros((0, 2, NUM_DRAWS))).shape == (0, 2, ROW_LENGTH)


def _quantiles(values):
    return np.quantile(np.asarray(values, np.float64), [0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0)])
@pytest.mark.parametrize("height_width", [(375, 500), (32, 32)])
def test_crops_are_distributed_as_in_torchvision(scale, height_width):
    height, width = height_width
    numbers = np.random.default_rng(0).random((4000, NUM_DRAWS))
    ours = draw_rows(*_sizes(*[height_width] * 4000), ViewParameters(crop_scale=scale), numbers)[:, CROP]
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    crop = v2.RandomResizedCrop(32, scale=scale)
    made = [crop.make_params([image]) for _ in range(4000)]
    theirs = np.array([[crop_["top"], crop_["left"], crop_["height"], crop_["width"]] for crop_ in made])
    assert (ours[:, 0] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    area = height * width
    np.testing.assert_allclose(
        _quantiles(ours[:, 2] * ours[:, 3] / area), _quantiles(theirs[:, 2] * theirs[:, 3] / area), atol=0.03
    )
    np.testing.assert_allclose(_quantiles(ours[:, 3] / ours[:, 2]), _quantiles(theirs[:, 3] / theirs[:, 2]), atol=0.03)
    for side, length in ((0, height), (1, width)):
        np.testing.assert_allclose(_quantiles(ours[:, side]) / length, _quantiles(theirs[:, side]) / length, atol=0.04)


def test_jitter_comes_in_every_order():
    parameters = ViewParameters(jitter=(0.8, 0.8, 0.8, 0.2), jitter_probability=1.0)
    numbers = np.random.default_rng(0).random((300, NUM_DRAWS))
    numbers[:, :4] = 0.5  # the first attempt to crop succeeds, so that the jitter begins with the ninth number
    rows = draw_rows(*_sizes(*[(32, 32)] * 300), parameters, numbers)
    np.testing.assert_array_equal(np.argsort(rows[:, PLACES], axis=1), np.argsort(numbers[:, 12:16], axis=1))
    assert len(np.unique(rows[:, PLACES], axis=0)) == 24
    lowest, range_ = np.array([0.2, 0.2, 0.2, -0.2]), np.array([1.6, 1.6, 1.6, 0.4])
    np.testing.assert_allclose(rows[:, FACTORS], lowest + range_ * numbers[:, 8:12])
    without = draw_rows(*_sizes(*[(32, 32)] * 300), replace(parameters, jitter=(0.8, 0, 0.8, 0)), numbers)
    assert (without[:, PLACES][:, [CONTRAST, 3]] == -1).all()
    assert set(map(tuple, without[:, PLACES][:, [0, 2]])) == {(0, 1), (1, 0)}


def test_each_record_has_numbers_of_its_own():
    seen = set()
    for seed, epoch, lane in itertools.product((0, 1), repeat=3):
        numbers = numbers_between(seed, epoch, lane, 0, 131)
        assert numbers.shape == (131, 2, NUM_DRAWS)
        np.testing.assert_array_equal(numbers_between(seed, epoch, lane, 0, 131), numbers)
        seen.update(map(tuple, numbers.reshape(-1, NUM_DRAWS)))
    assert len(seen) == 8 * 131 * 2
    every = numbers_between(3, 0, 0, 0, 200)
    assert every.min() >= 0 and every.max() < 1
    np.testing.assert_allclose(np.quantile(every, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 64), (63, 65), (100, 300), (64, 128)])
def test_numbers_of_a_record_do_not_depend_on_what_is_asked_for_with_it(start, end):
    every = numbers_between(3, 2, 1, 0, 400)
    np.testing.assert_array_equal(numbers_between(3, 2, 1, start, end), every[start:end])
    alone = [numbers_between(3, 2, 1, place, place + 1)[0] for place in range(start, end)]
    np.testing.assert_array_equal(alone, every[start:end])


def test_numbers_may_be_written_to():
    numbers_between(3, 2, 1, 0, 64)[:] = 0
    assert numbers_between(3, 2, 1, 0, 64).all()


def test_no_view_needs_more_numbers_than_it_has():
    parameters = ViewParameters(crop_scale=(1.0, 1.0), policy="randaugment", jitter=(0.4,) * 4)
    parameters = replace(parameters, jitter_probability=1, blur_probability=1)
    numbers = np.zeros((1, NUM_DRAWS - 1))
    numbers[0, 19] = 0.999  # only the last attempt to crop has a ratio that fits
    assert draw_rows(*_sizes((30, 40)), parameters, numbers)[0, CROP].tolist() == [0, 0, 30, 40]
    with pytest.raises(IndexError, match="index 38 is out of bounds"):
        draw_rows(*_sizes((30, 40)), parameters, numbers[:, :38])
