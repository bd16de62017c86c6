"""Two views of a JPEG as other libraries make them, from bytes to normalised tensors; what the benchmarks compare."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from hf_ssl.data.views.recipes import VIEW_RECIPES, ViewParameters
from hf_ssl.errors import UserError

Pipeline = Callable[[bytes], tuple[Tensor, Tensor]]

# The transforms that lightly names after the methods, with the values of our recipes.
_LIGHTLY = {
    "moco_v1": "MoCoV1Transform",
    "moco_v2": "MoCoV2Transform",
    "simsiam": "SimSiamTransform",
    "simclr": "SimCLRTransform",
    "byol": "BYOLTransform",
}


def torchvision_v2(recipe: str, size: int, mean: Sequence[float], std: Sequence[float]) -> Pipeline:
    """The v2 transforms of torchvision on Pillow images: the usual reference."""

    def transform(parameters: ViewParameters) -> Callable[[Any], Tensor]:
        blur = v2.GaussianBlur(_kernel(parameters, size), parameters.blur_sigma)
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, parameters.crop_scale, parameters.crop_ratio, _filter(parameters)),
                v2.RandomHorizontalFlip(parameters.flip_probability),
                v2.RandomApply([v2.ColorJitter(*parameters.jitter)], parameters.jitter_probability),
                v2.RandomGrayscale(parameters.grey_probability),
                v2.RandomApply([blur], parameters.blur_probability),
                v2.RandomSolarize(128, parameters.solarize_probability),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(mean), list(std)),
            ]
        )

    return _of_two(recipe, transform)


def torchvision_v1(recipe: str, size: int, mean: Sequence[float], std: Sequence[float]) -> Pipeline:
    """The first transforms of torchvision with Pillow's blur, as solo-learn composes them."""

    def transform(parameters: ViewParameters) -> Callable[[Any], Tensor]:
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(size, parameters.crop_scale, parameters.crop_ratio, _filter(parameters)),
                transforms.RandomApply([transforms.ColorJitter(*parameters.jitter)], parameters.jitter_probability),
                transforms.RandomGrayscale(parameters.grey_probability),
                transforms.RandomApply([_PillowBlur(parameters.blur_sigma)], parameters.blur_probability),
                transforms.RandomSolarize(128, parameters.solarize_probability),
                transforms.RandomHorizontalFlip(parameters.flip_probability),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    return _of_two(recipe, transform)


def lightly(recipe: str, size: int, mean: Sequence[float], std: Sequence[float]) -> Pipeline:
    """The transform that lightly has for the method.

    Raises:
        ValueError: If lightly is not installed or has no transform for the recipe.
    """
    if recipe not in _LIGHTLY:
        raise UserError(
            f"`--compare lightly` needs a recipe that lightly has ({', '.join(_LIGHTLY)}), got `{recipe}`."
        )
    try:
        from lightly import transforms as theirs  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("`--compare lightly` needs lightly: pip install 'hf_ssl[benchmarks]'.") from error
    normalize = {"mean": list(mean), "std": list(std)}
    if recipe == "byol":
        from lightly.transforms.byol_transform import (  # pyright: ignore[reportMissingImports]
            BYOLView1Transform,
            BYOLView2Transform,
        )

        transform = theirs.BYOLTransform(
            BYOLView1Transform(input_size=size, normalize=normalize),
            BYOLView2Transform(input_size=size, normalize=normalize),
        )
    else:
        transform = getattr(theirs, _LIGHTLY[recipe])(input_size=size, normalize=normalize)

    def views(data: bytes) -> tuple[Tensor, Tensor]:
        first, second = transform(_image(data))
        return first, second

    return views


def _of_two(recipe: str, transform: Callable[[ViewParameters], Callable[[Any], Tensor]]) -> Pipeline:
    first, second = transform(VIEW_RECIPES[recipe].first), transform(VIEW_RECIPES[recipe].second)

    def views(data: bytes) -> tuple[Tensor, Tensor]:
        image = _image(data)
        return first(image), second(image)

    return views


class _PillowBlur:
    """Pillow's blur, which solo-learn and the official MoCo take, with a random sigma."""

    def __init__(self, sigma: tuple[float, float]):
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        sigma = float(torch.empty(()).uniform_(*self.sigma))
        return image.filter(ImageFilter.GaussianBlur(sigma))


def _image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _filter(parameters: ViewParameters) -> transforms.InterpolationMode:
    return transforms.InterpolationMode(parameters.interpolation)


def _kernel(parameters: ViewParameters, size: int) -> int:
    """Width of the blur's kernel in pixels, odd: a tenth of the view unless the recipe says otherwise."""
    return 2 * max(1, int((parameters.blur_kernel_ratio or 0.1) * size) // 2) + 1
