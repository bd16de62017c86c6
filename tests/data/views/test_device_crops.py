import cv2
import numpy as np
import pytest
import torch
from view_rows import row_of

from hf_ssl.data.views.cpu import Crops, crop_and_flip
from hf_ssl.data.views.device_crops import CropsOfEach, DeviceCrops
from hf_ssl.data.views.draws import NUM_DRAWS, draw_pairs
from hf_ssl.data.views.recipes import ViewParameters, ViewRecipe

SIZES = [((32, 32), 32), ((96, 96), 32), ((48, 48), 32), ((60, 100), 64), ((8, 8), 28), ((1, 3), 8), ((375, 500), 64)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_crops_are_those_of_the_cpu(interpolation, shape, size):
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (16, 6, 8, 3), dtype=np.uint8)
    smooth = [cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_LINEAR) for picture in coarse]
    pictures = np.concatenate([smooth, generator.integers(0, 256, (16, *shape, 3), dtype=np.uint8)])
    parameters = ViewParameters(interpolation=interpolation, vertical_flip_probability=0.5)
    recipe, sizes = ViewRecipe(parameters, parameters, ""), np.tile(shape, (32, 1)).T
    rows = draw_pairs(*sizes, recipe, generator.random((32, 2, NUM_DRAWS)))
    made = DeviceCrops(recipe, size)(torch.from_numpy(pictures), torch.from_numpy(rows).float())
    expected = [
        [crop_and_flip(picture, parameters, row, size) for row in both]
        for picture, both in zip(pictures, rows.tolist(), strict=True)
    ]
    assert made.dtype == torch.uint8
    difference = np.abs(made.numpy().astype(int) - np.array(expected).astype(int))
    assert difference.max() <= 2
    assert difference.mean() < (0.25 if interpolation == "bilinear" else 0.01)  # OpenCV enlarges without rounding rows


def test_a_crop_of_the_views_size_is_the_picture():
    pictures = torch.randint(0, 256, (6, 12, 12, 3), dtype=torch.uint8)
    parameters = ViewParameters(crop_scale=(1, 1), crop_ratio=(1, 1), flip_probability=0)
    row = row_of((0, 0, 12, 12))
    made = DeviceCrops(ViewRecipe(parameters, parameters, ""), 12)(pictures, torch.tensor(row).expand(6, 2, -1))
    assert torch.equal(made, pictures[:, None].expand(-1, 2, -1, -1, -1))


def test_both_views_have_their_own_filter():
    pictures = torch.randint(0, 256, (6, 12, 12, 3), dtype=torch.uint8)
    first, second = ViewParameters(interpolation="bilinear"), ViewParameters(interpolation="bicubic")
    row = row_of((1, 2, 9, 8))
    made = DeviceCrops(ViewRecipe(first, second, ""), 8)(pictures, torch.tensor(row).expand(6, 2, -1))
    alone = DeviceCrops(ViewRecipe(first, first, ""), 8)(pictures, torch.tensor(row).expand(6, 2, -1))
    assert torch.equal(made[:, 0], alone[:, 0])
    assert not torch.equal(made[:, 1], alone[:, 1])


@pytest.mark.parametrize("size", [24, 8])  # of the second, the largest picture is reduced by matrices
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pictures_of_any_sizes_are_cropped_as_by_workers_and_each_by_itself(interpolation, size):
    generator = np.random.default_rng(0)
    shapes = [(48, 48), (60, 100), (100, 60), (17, 33), (1, 3), (575, 700), (48, 48)]
    coarse = generator.integers(0, 256, (len(shapes), 6, 8, 3), dtype=np.uint8)
    pictures = [cv2.resize(one, shape[::-1]) for one, shape in zip(coarse, shapes, strict=True)]
    there = [torch.from_numpy(picture.transpose(2, 0, 1).copy()).permute(1, 2, 0) for picture in pictures]
    parameters = ViewParameters(interpolation=interpolation, vertical_flip_probability=0.5)
    recipe, numbers = ViewRecipe(parameters, parameters, ""), generator.random((len(shapes), 2, NUM_DRAWS))
    crops, draws = CropsOfEach(recipe, size)(there, numbers)
    expected, expected_draws = Crops(recipe, size)(pictures, numbers)
    assert torch.equal(draws, expected_draws)
    assert (crops.int() - expected.int()).abs().max() <= 2
    for place, picture in enumerate(there):  # alone or in company, a picture has the same crops
        alone, _ = CropsOfEach(recipe, size)([picture], numbers[place : place + 1])
        assert torch.equal(alone[0], crops[place])
