"""One uint8 picture to two normalised views, by the recipes of the papers.

Crop and resize come first, so that colour costs the pixels of the view and not those of the photo; everything works on
uint8. All randomness comes from the generator that is passed in, with the distributions of torchvision's transforms.
"""

import difflib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from hf_ssl.data.recipes import VIEW_RECIPES, ViewParameters

Picture = NDArray[Any]  # uint8, (height, width, 3)

_NUM_DRAWS = 40  # more than a view ever uses; drawn at once, since a single draw costs as much as a brightness change
_CROP_ATTEMPTS = 10
_POLICIES = {"randaugment": v2.RandAugment(num_ops=2, magnitude=9), "autoaugment": v2.AutoAugment()}


class Views:
    """Two augmented views of an image; picklable, without state of its own.

    Args:
        recipe: A name in `VIEW_RECIPES`.
        image_size: Height and width of a view, in pixels, at least 1.
        mean: Mean of each channel, subtracted from pixels in [0, 1].
        std: Standard deviation of each channel, positive; pixels are divided by it.

    Raises:
        ValueError: If no recipe has that name.
    """

    def __init__(self, recipe: str, image_size: int, mean: Sequence[float], std: Sequence[float]):
        if recipe not in VIEW_RECIPES:
            close = difflib.get_close_matches(recipe, VIEW_RECIPES, n=1)
            hint = f"Did you mean `{close[0]}`?" if close else f"Known: {', '.join(VIEW_RECIPES)}."
            raise ValueError(f"`view_recipe` must be the name of a recipe, got `{recipe}`. {hint}")
        self.recipe = recipe
        self.image_size = image_size
        self._scale = (1 / (255 * np.asarray(std, np.float64))).astype(np.float32)[:, None, None]
        self._offset = (-np.asarray(mean, np.float64) / np.asarray(std, np.float64)).astype(np.float32)[:, None, None]

    def __call__(self, image: Picture, generator: np.random.Generator) -> Tensor:
        """Make the two views of one image.

        Args:
            image: RGB picture of any size, (height, width, 3).
            generator: Source of all randomness.

        Returns:
            Normalised views, (2, 3, image_size, image_size), float32.
        """
        recipe = VIEW_RECIPES[self.recipe]
        views = np.empty((2, self.image_size, self.image_size, 3), np.uint8)
        views[0] = make_view(image, recipe.first, self.image_size, generator)
        views[1] = make_view(image, recipe.second, self.image_size, generator)
        pixel_values = np.multiply(views.transpose(0, 3, 1, 2), self._scale, dtype=np.float32, order="C")
        pixel_values += self._offset
        return torch.from_numpy(pixel_values)


def make_view(image: Picture, parameters: ViewParameters, image_size: int, generator: np.random.Generator) -> Picture:
    """Make one view, not yet normalised.

    Args:
        image: RGB picture of any size, (height, width, 3).
        parameters: What to do.
        image_size: Height and width of the view, in pixels.
        generator: Source of all randomness.

    Returns:
        (image_size, image_size, 3).
    """
    draws = iter(generator.random(_NUM_DRAWS).tolist())
    top, left, height, width = crop_box(image.shape[0], image.shape[1], parameters, draws)
    view = resize(image[top : top + height, left : left + width], image_size, parameters.interpolation)
    if next(draws) < parameters.flip_probability:
        view = cv2.flip(view, 1)
    if next(draws) < parameters.vertical_flip_probability:
        view = cv2.flip(view, 0)
    if parameters.policy is not None:
        view = _by_policy(view, parameters.policy, generator)
    jittered, grey = next(draws) < parameters.jitter_probability, next(draws) < parameters.grey_probability
    if grey and parameters.grey_first:
        view = to_grey(view)
    if jittered:
        view = jitter(view, parameters.jitter, draws)
    if grey and not parameters.grey_first:
        view = to_grey(view)
    if next(draws) < parameters.blur_probability:
        sigma = _between(parameters.blur_sigma, next(draws))
        view = blur(view, sigma, parameters.blur_kernel_ratio)
    if next(draws) < parameters.solarize_probability:
        view = solarize(view)
    if next(draws) < parameters.invert_probability:
        view = 255 - view
    return view


def crop_box(height: int, width: int, parameters: ViewParameters, draws: Iterator[float]) -> tuple[int, int, int, int]:
    """Place of a random crop, distributed like torchvision's `RandomResizedCrop`.

    Args:
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        parameters: Its `crop_scale` and `crop_ratio` are used.
        draws: Uniform numbers in [0, 1).

    Returns:
        Top, left, height and width of the crop, in pixels.
    """
    lowest, highest = parameters.crop_ratio
    for _ in range(_CROP_ATTEMPTS):
        area = height * width * _between(parameters.crop_scale, next(draws))
        ratio = math.exp(_between((math.log(lowest), math.log(highest)), next(draws)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = int(next(draws) * (height - crop_height + 1)), int(next(draws) * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    # A picture of extreme shape: the largest crop in its middle that has an allowed ratio.
    crop_width, crop_height = width, height
    if width < lowest * height:
        crop_height = max(1, round(width / lowest))
    elif width > highest * height:
        crop_width = max(1, round(height * highest))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resize(picture: Picture, image_size: int, interpolation: Literal["bilinear", "bicubic"]) -> Picture:
    """Resize to a square with antialiasing, as Pillow does.

    Args:
        picture: RGB, (height, width, 3).
        image_size: New height and width, in pixels.
        interpolation: Filter; bilinear enlarging is done by OpenCV, within one grey level of Pillow.

    Returns:
        (image_size, image_size, 3).
    """
    size = (image_size, image_size)
    if picture.shape[:2] == size:
        return picture
    if interpolation == "bilinear" and picture.shape[0] <= image_size and picture.shape[1] <= image_size:
        return cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
    filter_ = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize(size, filter_))


def adjust_brightness(picture: Picture, factor: float) -> Picture:
    """Multiply all pixels by a factor of at least 0."""
    return _blend(picture, factor)


def adjust_contrast(picture: Picture, factor: float) -> Picture:
    """Blend with the mean grey of the picture; factor 0 leaves that grey, 1 the picture."""
    grey = cv2.mean(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))[0]
    return _blend(picture, factor, offset=(1 - factor) * grey)


def adjust_saturation(picture: Picture, factor: float) -> Picture:
    """Blend with the grey picture; factor 0 leaves grey, 1 the picture."""
    return cv2.addWeighted(picture, factor, to_grey(picture), 1 - factor, 0)


def adjust_hue(picture: Picture, shift: float) -> Picture:
    """Turn the hue by a fraction of the colour circle, in [-0.5, 0.5]."""
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV_FULL)
    hsv[:, :, 0] += np.uint8(round(shift * 256) % 256)  # uint8 wraps around, as the circle does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def to_grey(picture: Picture) -> Picture:
    """Replace colours by their luma (ITU-R 601), in three equal channels."""
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur(picture: Picture, sigma: float, kernel_ratio: float | None) -> Picture:
    """Gaussian blur, mirrored at the border.

    Args:
        picture: RGB, (height, width, 3).
        sigma: Standard deviation, in pixels, positive.
        kernel_ratio: Width of the kernel as a fraction of the picture's, made odd; None: three sigma to each side.

    Returns:
        Same shape.
    """
    reach = math.ceil(3 * sigma) if kernel_ratio is None else int(kernel_ratio * picture.shape[1]) // 2
    kernel = 2 * max(1, reach) + 1
    return cv2.GaussianBlur(picture, (kernel, kernel), sigma)


def solarize(picture: Picture) -> Picture:
    """Invert the pixels of at least 128."""
    return np.where(picture < 128, picture, 255 - picture)


def jitter(picture: Picture, strengths: tuple[float, float, float, float], draws: Iterator[float]) -> Picture:
    """Change brightness, contrast, saturation and hue, in random order, like torchvision's `ColorJitter`.

    Args:
        picture: RGB, (height, width, 3).
        strengths: Of the four, as in `ViewParameters.jitter`; 0 leaves one out.
        draws: Eight uniform numbers in [0, 1): the size of the four changes, then the keys that order them.

    Returns:
        Same shape.
    """
    factors = [_between((max(0.0, 1 - strength), 1 + strength), next(draws)) for strength in strengths[:3]]
    shift = _between((-strengths[3], strengths[3]), next(draws))
    keys = [next(draws) for _ in strengths]
    for operation in sorted(range(4), key=keys.__getitem__):
        if strengths[operation] == 0:
            continue
        if operation == 3:
            picture = adjust_hue(picture, shift)
        else:
            picture = _FACTOR_OPERATIONS[operation](picture, factors[operation])
    return picture


_FACTOR_OPERATIONS = (adjust_brightness, adjust_contrast, adjust_saturation)


def _blend(picture: Picture, factor: float, offset: float = 0.0) -> Picture:
    return cv2.addWeighted(picture, factor, picture, 0, offset)


def _by_policy(picture: Picture, policy: str, generator: np.random.Generator) -> Picture:
    # torchvision draws from torch's global generator: lend it a seed of ours and give it back as it was. Seeding the
    # CPU generator alone, since `torch.manual_seed` would also reset the GPU's.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(generator.integers(2**63)))
        return np.asarray(_POLICIES[policy](Image.fromarray(picture)))


def _between(limits: tuple[float, float], draw: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * draw
