import itertools
import math
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference
from view_rows import row_of, scalar_row

from hf_ssl.data.views.cpu import (
    Crops,
    Views,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    blur,
    blur_by_boxes,
    make_view,
    resize,
    solarize,
    to_grey,
)
from hf_ssl.data.views.draws import CONTRAST, HUE, NUM_DRAWS
from hf_ssl.data.views.recipes import VIEW_RECIPES, ViewParameters, ViewRecipe

WHOLE = ViewParameters(crop_scale=(1, 1), crop_ratio=(1, 1), flip_probability=0)


def _photo(height=48, width=64, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def _pair(recipe, size, picture, seed):
    """Both views of one picture."""
    (views,) = Views(recipe, size)([picture], np.random.default_rng(seed).random((1, 2, NUM_DRAWS)))
    return views[0]


def _tensor(picture):
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)


def _same(picture, expected, tolerance):
    """Compare with torchvision's result, (3, height, width), in grey levels."""
    difference = (torch.from_numpy(picture.copy()).permute(2, 0, 1).int() - expected.int()).abs()
    assert difference.max() <= tolerance, difference.max()


@pytest.mark.parametrize("recipe", sorted(VIEW_RECIPES))
def test_every_recipe_is_a_function_of_its_numbers_alone(recipe):
    views = pickle.loads(pickle.dumps(Views(recipe, 32)))
    pictures, numbers = [_photo(), _photo(30, 90, 1), _photo()], np.random.default_rng(5).random((3, 2, NUM_DRAWS))
    (first,) = views(pictures, numbers)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    (again,) = views(pictures, numbers)
    assert first.shape == (3, 2, 32, 32, 3)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[0, 0], first[0, 1])


@pytest.mark.parametrize("make", [Views, Crops])
def test_a_view_does_not_depend_on_the_others(make):
    pictures, numbers = [_photo(20 + 9 * n, 64, n) for n in range(6)], np.random.default_rng(5).random((6, 2, 40))
    for recipe in VIEW_RECIPES.values():
        whole = make(recipe, 32)(pictures, numbers)
        alone = [make(recipe, 32)(pictures[n : n + 1], numbers[n : n + 1]) for n in range(6)]
        for place, part in enumerate(whole):
            assert torch.equal(torch.cat([made[place] for made in alone]), part)


@pytest.mark.parametrize("recipe", ["randaugment", "autoaugment"])
def test_policies_leave_the_global_generator_alone(recipe):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    _pair(recipe, 32, _photo(), 0)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("size", [28, 32, 96, 224])
@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 8, 3), (3, 9000, 3), (9000, 3, 3), (300, 200, 3)])
def test_any_picture_fits_any_view(size, shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for recipe in ("byol", "moco_v2"):
        assert _pair(recipe, size, picture, 1).shape == (2, size, size, 3)


def test_read_only_pictures_are_not_written_to():
    picture = _photo()
    picture.setflags(write=False)
    for recipe in VIEW_RECIPES:
        _pair(recipe, 32, picture, 2)
    np.testing.assert_array_equal(picture, _photo())


def test_grey_pictures_stay_grey():
    picture = np.repeat(_photo()[:, :, :1], 3, axis=2)
    for seed in range(20):
        view = _pair("moco_v2", 32, picture, seed)
        assert torch.equal(view[..., 0], view[..., 1])
        assert torch.equal(view[..., 0], view[..., 2])


def test_views_are_those_of_the_recipe():
    picture = _photo(32, 40)
    for name in ("byol", "moco_v1", "autoaugment", "shapes"):
        recipe, numbers = VIEW_RECIPES[name], np.random.default_rng(0).random((2, NUM_DRAWS)).tolist()
        both = zip((recipe.first, recipe.second), numbers, strict=True)
        plain = [make_view(picture, view, scalar_row(32, 40, view, own), 32) for view, own in both]
        np.testing.assert_array_equal(_pair(name, 32, picture, 0).numpy(), np.stack(plain))


def test_one_view_is_the_first_of_two():
    pictures, numbers = [_photo(), _photo(30, 90, 1)], np.random.default_rng(5).random((2, 2, NUM_DRAWS))
    for recipe in ("byol", "randaugment"):
        assert torch.equal(
            Views(recipe, 32, num_views=1)(pictures, numbers)[0], Views(recipe, 32)(pictures, numbers)[0][:, :1]
        )


def test_unknown_recipe_names_a_near_one():
    with pytest.raises(ValueError, match="`moco_v4`. Did you mean `moco_v"):
        Views("moco_v4", 32)
    with pytest.raises(ValueError, match="Known: moco_v1, moco_v2"):
        Views("xyz", 32)


# Pixels against torchvision on uint8. It truncates where this code rounds: one grey level, two where it does so twice.


@pytest.mark.parametrize("factor", [0.0, 0.2, 0.9, 1.0, 1.4, 1.8])
def test_colour_operations_equal_torchvision(factor):
    picture = _photo()
    _same(adjust_brightness(picture, factor), reference.adjust_brightness(_tensor(picture), factor), 1)
    _same(adjust_contrast(picture, factor), reference.adjust_contrast(_tensor(picture), factor), 1)
    _same(adjust_saturation(picture, factor), reference.adjust_saturation(_tensor(picture), factor), 2)


@pytest.mark.parametrize("shift", [-0.5, -0.2, -0.1, 0.0, 0.05, 0.1, 0.4])
def test_hue_equals_torchvision(shift):
    # Hue and saturation have 256 steps here, as in Pillow, and are real numbers in torchvision.
    picture = _photo()
    turned = torch.from_numpy(adjust_hue(picture, shift).copy()).permute(2, 0, 1).int()
    difference = (turned - reference.adjust_hue(_tensor(picture), shift).int()).abs().float()
    assert difference.mean() < 1.5
    assert difference.max() <= 8


def test_grey_and_solarize_equal_torchvision():
    picture = _photo()
    _same(to_grey(picture), reference.rgb_to_grayscale(_tensor(picture), num_output_channels=3), 1)
    _same(solarize(picture), reference.solarize(_tensor(picture), 128), 0)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_torchvision(sigma):
    picture = _photo(96, 96)
    wide = 2 * math.ceil(3 * sigma) + 1
    for kernel_ratio, kernel in ((0.1, 9), (None, wide)):
        expected = reference.gaussian_blur(_tensor(picture), [kernel, kernel], [sigma, sigma])
        _same(blur(picture, sigma, kernel_ratio), expected, 1)


@pytest.mark.parametrize("size", [(96, 80), (1, 7), (2, 2)])
@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 0.9, 1.4, 2.0, 3.7])
def test_the_blur_by_boxes_is_pillows(sigma, size):
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    for picture in (noise, _photo(*size)):
        pillow = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(sigma))).astype(int)
        difference = np.abs(blur_by_boxes(picture, sigma) - pillow)
        assert difference.max() <= 3  # Pillow rounds six times, this three times
        assert difference.mean() < 1.2
    # A Gaussian of this deviation is another one.
    if sigma == 0.3 and size == (96, 80):
        assert np.abs(blur(noise, sigma, None) - pillow).max() > 20


@pytest.mark.parametrize("recipe", ["moco_v2", "moco_v3", "moco_v3_vit", "simsiam", "directclr"])
def test_codes_that_blur_by_pillow_have_its_blur(recipe):
    picture = _photo(40, 40)
    for view in (VIEW_RECIPES[recipe].first, VIEW_RECIPES[recipe].second):
        made = make_view(picture, replace(view, grey_first=False), row_of((0, 0, 40, 40), blur_sigma=0.6), 40)
        np.testing.assert_array_equal(made, blur_by_boxes(picture, 0.6))


def test_the_kernel_of_byol_at_224_pixels_is_23_wide():
    picture = np.zeros((224, 224, 3), np.uint8)
    picture[:, 112] = 255
    wide = blur(picture, 8.0, 0.1)  # a sigma that fills the kernel
    assert np.count_nonzero(wide[112, :, 0]) == 23


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(300, 200), (40, 300), (20, 24), (64, 64)])
def test_resizing_equals_torchvision_on_pillow(interpolation, shape):
    picture = _photo(*shape)
    mode = v2.InterpolationMode(interpolation)
    expected = reference.resize(Image.fromarray(picture), [64, 64], interpolation=mode)
    _same(resize(picture, 64, interpolation), reference.pil_to_tensor(expected), 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(90, 70), (1, 90), (90, 1), (20, 24)])
def test_a_crop_is_resized_like_a_copy_of_it(interpolation, shape):
    picture = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    crop = picture[3 : 3 + shape[0], 5 : 5 + shape[1]]
    planes = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].contiguous()
    expected = F.interpolate(planes, size=(32, 32), mode=interpolation, antialias=True)[0]
    _same(resize(crop, 32, interpolation), expected, 1)


# Distributions against the recipe's own parameters.


def _views(parameters, picture, number=1500):
    numbers = np.random.default_rng(7).random((number, 2, NUM_DRAWS))
    views = Views(ViewRecipe(parameters, parameters, ""), picture.shape[0])
    return list(views([picture] * number, numbers)[0][:, 0].numpy())


def test_brightness_and_contrast_factors_are_uniform():
    half = np.zeros((16, 16, 3), np.uint8)
    half[:, 8:] = 100
    bright = replace(WHOLE, jitter=(0.4, 0, 0, 0), jitter_probability=1)
    factors = [view.max() / 100 for view in _views(bright, half)]
    np.testing.assert_allclose(np.quantile(factors, [0, 0.25, 0.5, 0.75, 1]), [0.6, 0.8, 1, 1.2, 1.4], atol=0.04)
    contrast = replace(WHOLE, jitter=(0, 0.8, 0, 0), jitter_probability=1)
    factors = [(int(view.max()) - int(view.min())) / 100 for view in _views(contrast, half + np.uint8(60))]
    np.testing.assert_allclose(np.quantile(factors, [0, 0.25, 0.5, 0.75, 1]), [0.2, 0.6, 1, 1.4, 1.8], atol=0.06)


def test_saturation_and_hue_are_uniform():
    colour = np.zeros((4, 4, 3), np.uint8) + np.array([150, 100, 100], np.uint8)
    saturation = replace(WHOLE, jitter=(0, 0, 0.4, 0), jitter_probability=1)
    factors = [(int(view[0, 0, 0]) - int(view[0, 0, 1])) / 50 for view in _views(saturation, colour)]
    np.testing.assert_allclose(np.quantile(factors, [0, 0.25, 0.5, 0.75, 1]), [0.6, 0.8, 1, 1.2, 1.4], atol=0.05)
    red = np.zeros((4, 4, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    hue = replace(WHOLE, jitter=(0, 0, 0, 0.1), jitter_probability=1)
    turns = [
        cv2.cvtColor(view[:1, :1].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)[0, 0, 0] / 360
        for view in _views(hue, red)
    ]
    turns = [turn - 1 if turn > 0.5 else turn for turn in turns]
    np.testing.assert_allclose(np.quantile(turns, [0, 0.25, 0.5, 0.75, 1]), [-0.1, -0.05, 0, 0.05, 0.1], atol=0.012)


def test_operations_happen_in_the_order_of_the_draw():
    picture = _photo(16, 16)
    jitter = ((HUE, 0.2), (CONTRAST, 0.5))
    row = row_of((0, 0, 16, 16), jitter, grey=True, blur_sigma=1.0, solarize=True, invert=True)
    turned = adjust_contrast(adjust_hue(picture, 0.2), 0.5)
    expected = 255 - solarize(blur(to_grey(turned), 1.0, None))
    np.testing.assert_array_equal(make_view(picture, WHOLE, row, 16), expected)
    grey = adjust_contrast(adjust_hue(to_grey(picture), 0.2), 0.5)
    first = make_view(picture, replace(WHOLE, grey_first=True), row, 16)
    np.testing.assert_array_equal(first, 255 - solarize(blur(grey, 1.0, None)))


def test_flips_are_those_of_the_draw():
    picture = _photo(16, 16)
    for flip, vertical_flip in itertools.product((False, True), repeat=2):
        view = make_view(picture, WHOLE, row_of((0, 0, 16, 16), flip=flip, vertical_flip=vertical_flip), 16)
        np.testing.assert_array_equal(view, picture[:: -1 if vertical_flip else 1, :: -1 if flip else 1])


@pytest.mark.parametrize(
    ("change", "made"),
    [
        ({"flip_probability": 0.3}, lambda picture: picture[:, ::-1]),
        ({"vertical_flip_probability": 0.3}, lambda picture: picture[::-1]),
        ({"grey_probability": 0.3}, to_grey),
        ({"solarize_probability": 0.3}, solarize),
        ({"invert_probability": 0.3}, lambda picture: 255 - picture),
        ({"blur_probability": 0.3, "blur_sigma": (1.0, 1.0)}, lambda picture: blur(picture, 1.0, None)),
        (
            {"jitter": (0, 0, 0, 0.2), "jitter_probability": 0.3, "grey_probability": 1.0, "grey_first": True},
            lambda picture: adjust_hue(to_grey(picture), 0.1),  # grey has no hue: the jitter is the identity
        ),
    ],
)
def test_operations_happen_as_often_as_stated(change, made):
    picture = _photo(16, 16)
    views = _views(replace(WHOLE, **change), picture, number=2000)
    if "grey_first" in change:
        assert all(np.abs(view.astype(int) - made(picture)).max() <= 1 for view in views)
        return
    changed = [np.array_equal(view, made(picture)) for view in views]
    unchanged = [np.array_equal(view, picture) for view in views]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.04)
    assert sum(changed) + sum(unchanged) == 2000


def test_blur_sigma_is_uniform():
    picture = np.zeros((33, 33, 3), np.uint8)
    picture[:, 16:] = 255  # an edge: its slope tells sigma
    parameters = replace(WHOLE, blur_probability=1, blur_sigma=(0.5, 2.0))
    slopes = np.sort([int(view[16, 16, 0]) - int(view[16, 15, 0]) for view in _views(parameters, picture, 1000)])
    at = [0.5, 0.875, 1.25, 1.625, 2.0]
    expected = [
        int(blur(picture, sigma, None)[16, 16, 0]) - int(blur(picture, sigma, None)[16, 15, 0]) for sigma in at
    ]
    np.testing.assert_allclose(np.quantile(slopes, [1, 0.75, 0.5, 0.25, 0]), expected, rtol=0.08)


def test_the_recipes_are_those_of_the_papers():
    byol = VIEW_RECIPES["byol"]
    assert (byol.first.blur_probability, byol.second.blur_probability) == (1.0, 0.1)
    assert (byol.first.solarize_probability, byol.second.solarize_probability) == (0.0, 0.2)
    assert byol.first.jitter == byol.second.jitter == (0.4, 0.4, 0.2, 0.1)
    for name, recipe in VIEW_RECIPES.items():
        assert recipe.source
        two_kinds = ("byol", "directclr", "moco_v3", "moco_v3_vit", "moco_v3_cifar")
        assert (recipe.first == recipe.second) != (name in two_kinds)
    assert VIEW_RECIPES["moco_v1"].first.jitter_probability == 1.0
    assert VIEW_RECIPES["moco_v1"].first.blur_probability == 0.0
    assert VIEW_RECIPES["moco_v2"].first == VIEW_RECIPES["simsiam"].first
    for name in ("directpred_cifar", "simclr_cifar", "moco_cifar"):
        assert VIEW_RECIPES[name].first.blur_probability == 0.0
        assert VIEW_RECIPES[name].first.crop_scale == (0.08, 1.0)
    assert VIEW_RECIPES["directpred_stl"].first.blur_probability == 1.0
    bank = VIEW_RECIPES["memory_bank_cifar"].first
    assert (bank.crop_scale, bank.jitter, bank.grey_probability) == ((0.2, 1.0), (0.4,) * 4, 0.2)
    assert (bank.flip_probability, bank.jitter_probability, bank.grey_first) == (0.0, 1.0, False)
    for name, smallest in (("moco_v3", 0.2), ("moco_v3_vit", 0.08), ("moco_v3_cifar", 0.08)):
        first, second = VIEW_RECIPES[name].first, VIEW_RECIPES[name].second
        assert first.crop_scale == second.crop_scale == (smallest, 1.0)
        assert first.jitter == second.jitter == (0.4, 0.4, 0.2, 0.1)
        assert (first.solarize_probability, second.solarize_probability) == (0.0, 0.2)
        blurs = (0.0, 0.0) if name == "moco_v3_cifar" else (1.0, 0.1)
        assert (first.blur_probability, second.blur_probability) == blurs
