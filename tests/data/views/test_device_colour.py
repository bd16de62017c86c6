"""Colours in batches on a device (here the CPU) against OpenCV's, one by one."""

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from view_rows import row_of

from hf_ssl.data.views import cpu as views
from hf_ssl.data.views import device_colour
from hf_ssl.data.views.cpu import Crops, Views, make_view
from hf_ssl.data.views.device_colour import DeviceColour
from hf_ssl.data.views.draws import CONTRAST, HUE, NUM_DRAWS
from hf_ssl.data.views.recipes import VIEW_RECIPES, ViewParameters, ViewRecipe

CPU = torch.device("cpu")
PLAIN = ViewParameters(crop_scale=(1, 1), crop_ratio=(1, 1), flip_probability=0)


def _pictures(number=64, size=32):
    """Half of them smooth, half noise."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (number // 2, 6, 8, 3), dtype=np.uint8)
    smooth = [cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR) for picture in coarse]
    return np.concatenate([smooth, generator.integers(0, 256, (number // 2, size, size, 3), dtype=np.uint8)])


def _numbers(number):
    return np.random.default_rng(1).random((number, 2, NUM_DRAWS))


def _crops(recipe, size, pictures):
    return Crops(VIEW_RECIPES[recipe], size)(pictures, _numbers(64))


def _both(parameters):
    return ViewRecipe(parameters, parameters, "")


def _by_device(pictures, parameters, rows):
    """One view each of some pictures, an even number of them."""
    rows = torch.tensor(rows).unflatten(0, (-1, 2))
    crops = torch.from_numpy(pictures).unflatten(0, (-1, 2))
    return DeviceColour(_both(parameters), pictures.shape[1], CPU)(crops, rows).flatten(0, 1).numpy()


def _differences(one, other):
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("recipe", sorted(VIEW_RECIPES))
def test_views_are_those_of_the_cpu(recipe, size):
    pictures = _pictures(size=size + 12)
    crops, draws = _crops(recipe, size, pictures)
    (expected,) = Views(recipe, size)(pictures, _numbers(64))
    made = DeviceColour(VIEW_RECIPES[recipe], size, CPU)(crops, draws)
    assert made.dtype == torch.uint8 and made.shape == expected.shape
    difference = _differences(made, expected)
    assert difference.mean() < 0.1
    assert (difference > 1).mean() < 0.015  # a hue that takes the step beside: 6 levels, and the jitter after it
    assert difference.max() <= 24


@pytest.mark.parametrize(
    ("operation", "limits", "many", "largest"),
    [
        ("adjust_brightness", (0, 1.8), 0.001, 1),
        ("adjust_contrast", (0, 1.8), 0.001, 1),
        ("adjust_saturation", (0, 1.8), 0.08, 1),  # OpenCV's products have few bits
        ("adjust_hue", (-0.5, 0.5), 0.01, 7),  # a step of the hue
        ("to_grey", None, 0.003, 1),
        ("solarize", None, 0, 0),
    ],
)
def test_each_operation_is_that_of_the_cpu(operation, limits, many, largest):
    pictures = _pictures()
    factors = np.random.default_rng(2).uniform(*(limits or (0, 1)), len(pictures))
    arguments = [() if limits is None else (factor,) for factor in factors]
    pixels = torch.from_numpy(pictures).permute(3, 0, 1, 2).float()
    made = getattr(device_colour, operation)(pixels, torch.from_numpy(factors).float()[:, None]).permute(1, 2, 3, 0)
    one_by_one = getattr(views, operation)
    difference = _differences(
        made, [one_by_one(picture, *of) for picture, of in zip(pictures, arguments, strict=True)]
    )
    assert (difference > 0).mean() <= many
    assert difference.max() <= largest


@pytest.mark.parametrize("grey", [0, 1, 77, 255])
def test_grey_has_no_hue_to_turn(grey):
    pixels = torch.full((3, 2, 4, 4), float(grey))
    assert torch.equal(device_colour.adjust_hue(pixels.clone(), torch.tensor([[0.3], [-0.5]])), pixels)


@pytest.mark.parametrize("kernel_ratio", [None, 0.1])
@pytest.mark.parametrize("size", [1, 2, 8, 32, 96])
def test_blurs_have_the_width_of_the_cpus(size, kernel_ratio):
    pictures = _pictures(size=size)
    parameters = replace(PLAIN, blur_probability=1.0, blur_sigma=(0.1, 2.5), blur_kernel_ratio=kernel_ratio)
    sigmas = np.random.default_rng(3).uniform(0.1, 2.5, len(pictures)).tolist()
    made = _by_device(pictures, parameters, [row_of((0, 0, size, size), blur_sigma=sigma) for sigma in sigmas])
    blurred = [views.blur(picture, sigma, kernel_ratio) for picture, sigma in zip(pictures, sigmas, strict=True)]
    difference = _differences(made, blurred)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


@pytest.mark.parametrize("size", [1, 2, 8, 32, 96])
def test_blurs_by_boxes_are_the_cpus(size):
    pictures = _pictures(size=size)
    parameters = replace(PLAIN, blur_probability=1.0, blur_sigma=(0.1, 2.5), blur_filter="boxes")
    sigmas = np.random.default_rng(3).uniform(0.1, 2.5, len(pictures)).tolist()
    rows = [row_of((0, 0, size, size), blur_sigma=sigma) for sigma in sigmas]
    blurred = [views.blur_by_boxes(picture, sigma) for picture, sigma in zip(pictures, sigmas, strict=True)]
    difference = _differences(_by_device(pictures, parameters, rows), blurred)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


def test_each_view_has_its_own_kind_of_blur():
    pictures = _pictures()
    gaussian = replace(PLAIN, blur_probability=1.0)
    recipe = ViewRecipe(replace(gaussian, blur_filter="boxes"), gaussian, "")
    crops = torch.from_numpy(np.stack([pictures, pictures], axis=1))
    rows = torch.tensor([[row_of((0, 0, 32, 32), blur_sigma=0.6)] * 2] * len(pictures))
    made = DeviceColour(recipe, 32, CPU)(crops, rows)
    assert _differences(made[:, 0], [views.blur_by_boxes(one, 0.6) for one in pictures]).max() <= 1
    assert _differences(made[:, 1], [views.blur(one, 0.6, None) for one in pictures]).max() <= 1
    assert _differences(made[:, 0], made[:, 1]).max() > 10


@pytest.mark.parametrize("grey_first", [True, False])
def test_operations_come_in_the_order_of_each_draw(grey_first):
    pictures = _pictures(48)
    parameters = replace(PLAIN, blur_probability=1.0, grey_first=grey_first)
    factors = (1.3, 0.5, 1.6, 0.2)
    rows = [
        row_of(
            (0, 0, 32, 32),
            [(operation, factors[operation]) for operation in order],
            grey=number % 3 == 0,
            blur_sigma=number % 2 * 0.8,
            solarize=number % 5 == 0,
            invert=number % 7 == 0,
        )
        for number, order in enumerate([*itertools.permutations(range(4)), *[(HUE, CONTRAST), ()] * 12])
    ]
    made = _by_device(pictures, parameters, rows)
    expected = [make_view(picture, parameters, row, 32) for picture, row in zip(pictures, rows, strict=True)]
    # Another order differs by 3 levels or more in the mean of a view.
    assert _differences(made, expected).mean(axis=(1, 2, 3)).max() < 0.6


@pytest.mark.parametrize("recipe", ["byol", "moco_v1", "shapes"])
def test_views_do_not_depend_on_their_batch(recipe):
    crops, draws = _crops(recipe, 32, _pictures())
    colour = DeviceColour(VIEW_RECIPES[recipe], 32, CPU)
    whole = colour(crops, draws)
    alone = torch.cat([colour(crops[number : number + 1], draws[number : number + 1]) for number in range(64)])
    assert torch.equal(alone, whole)
    order = torch.randperm(64)
    assert torch.equal(colour(crops[order], draws[order]), whole[order])


def test_crops_are_not_written_to():
    crops, draws = _crops("byol", 32, _pictures())
    before = crops.clone()
    DeviceColour(VIEW_RECIPES["byol"], 32, CPU)(crops, draws)
    assert torch.equal(crops, before)


@pytest.mark.parametrize("recipe", sorted(VIEW_RECIPES))
def test_nothing_is_read_back_from_the_device(recipe):
    crops, draws = _crops(recipe, 32, _pictures())
    nowhere = torch.device("meta")  # has shapes but no values: to ask for one is an error
    made = DeviceColour(VIEW_RECIPES[recipe], 32, nowhere)(crops, draws)
    assert made.device == nowhere and made.shape == crops.shape and made.dtype == torch.uint8
    assert made.transpose(0, 1).is_contiguous()  # as `Normalize` takes them
