"""Random crops of a row: where they come from, what they depend on, and that the encoder's own pixels come out."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv
from transformers import CLIPImageProcessor, ConvNextImageProcessor, ViTImageProcessor
from view_rows import scalar_row

from hf_ssl.evaluation.encoders import Encoder, ImageTransform, ProcessorTransform
from hf_ssl.evaluation.random_crops import PARAMETERS, RandomCrops
from hf_ssl.modules.preprocessing import preprocessing

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def encoder_with(transform):
    return Encoder(torch.nn.Flatten(), transform, 0, "any")


def photo(index, size=(150, 90)):
    generator = np.random.default_rng(index)
    small = Image.fromarray(generator.integers(256, size=(6, 8, 3), dtype=np.uint8))
    return np.array(small.resize(size, Image.Resampling.BICUBIC))


TIMM = encoder_with(ImageTransform(preprocessing(160, MEAN, STD)))  # of a size whose evaluation cuts the borders off
TRANSFORMERS = {
    "square": (ViTImageProcessor(size={"height": 32, "width": 24}), (32, 24), InterpolationMode.BILINEAR),
    "edge and crop": (
        CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        (32, 32),
        InterpolationMode.BICUBIC,
    ),
    "share": (ConvNextImageProcessor(size={"shortest_edge": 32}), (32, 32), InterpolationMode.BICUBIC),
}


def expected(picture, row, size, filter_, mean, std, seed=3, pass_number=1):
    """By torchvision, from the same draws."""
    numbers = np.random.default_rng([seed, pass_number, row]).random(40).tolist()
    image = Image.fromarray(picture)
    drawn = scalar_row(image.height, image.width, PARAMETERS, numbers)
    crop = tv.resized_crop(image, *map(int, drawn[:4]), size, interpolation=filter_)
    crop = tv.hflip(crop) if drawn[4] else crop
    return tv.normalize(tv.to_tensor(crop), mean, std)


def test_the_crops_are_those_of_the_papers():
    assert PARAMETERS.crop_scale == (0.08, 1) and PARAMETERS.crop_ratio == (3 / 4, 4 / 3)
    assert PARAMETERS.flip_probability == 0.5


def test_timms_preprocessing_gets_the_whole_crop():
    crops = RandomCrops(TIMM, 3, 1)
    for row in range(8):
        pixels = crops([photo(row)], [row])[0]
        reference = expected(photo(row), row, (160, 160), InterpolationMode.BICUBIC, MEAN, STD)
        torch.testing.assert_close(pixels, reference, atol=1.5 / 255 / min(STD), rtol=0)  # one grey level


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_so_does_that_of_transformers(name):
    processor, size, filter_ = TRANSFORMERS[name]
    crops = RandomCrops(encoder_with(ProcessorTransform(processor)), 3, 1)
    for row in range(8):
        pixels = crops([photo(row)], [row])[0]
        reference = expected(photo(row), row, size, filter_, processor.image_mean, processor.image_std)
        torch.testing.assert_close(pixels, reference, atol=1.5 / 255 / min(processor.image_std), rtol=0)


def test_seed_pass_and_row_decide_and_nothing_else():
    image = photo(0)
    first = RandomCrops(TIMM, 3, 1)([image], [7])[0]
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(pickle.loads(pickle.dumps(RandomCrops(TIMM, 3, 1)))([image], [7])[0], first)
    for other in (
        RandomCrops(TIMM, 4, 1)([image], [7])[0],
        RandomCrops(TIMM, 3, 2)([image], [7])[0],
        RandomCrops(TIMM, 3, 1)([image], [8])[0],
    ):
        assert not torch.allclose(other, first, atol=0.1)


def test_half_of_the_crops_are_flipped():
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    crops = RandomCrops(TIMM, 0, 0)
    flipped = [bool(pixels[0, 0, 0] > pixels[0, 0, -1]) for pixels in crops([ramp] * 200, range(200))]
    assert 70 < sum(flipped) < 130  # more than four standard deviations on either side


def test_pictures_of_any_shape_are_cropped():
    for encoder, size in ((TIMM, 160), (encoder_with(ProcessorTransform(TRANSFORMERS["share"][0])), 32)):
        crops = RandomCrops(encoder, 0, 0)
        for shape in ((1, 1, 3), (2, 300, 3), (300, 2, 3), (size, size, 3)):
            assert crops([np.zeros(shape, np.uint8)], [0])[0].shape == (3, size, size)
