"""Crops and their resizing on the device that holds the pictures, of one size together or of any sizes one by one.

To crop, flip and resize is linear in the pixels of a row and of a column: for pictures of one size these are two
products with a matrix for each view, whose rows are the weights of Pillow's filters.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hf_ssl.data.views.device import send
from hf_ssl.data.views.draws import CROP, FLIP, VERTICAL_FLIP, draw_pairs, sizes_of
from hf_ssl.data.views.recipes import ViewRecipe
from hf_ssl.errors import UserError

_LARGEST_SCALE = 40  # above which torch's resizing may need more shared memory than a GPU has; matrices need none


def check_recipe(recipe: ViewRecipe, setting: str, off: str) -> None:
    """Refuse what a device cannot do with whole pictures.

    Args:
        recipe: What to do.
        setting: What was asked for, such as "`cache` uint8".
        off: How to go without, such as "`cache` to none".

    Raises:
        UserError: If the recipe has a policy.
    """
    if recipe.first.policy is not None or recipe.second.policy is not None:
        raise UserError(
            f"{setting} makes views on the device, but RandAugment and AutoAugment work on single pictures on the "
            f"CPU. Set {off}, or choose another `view_recipe`."
        )


class DeviceCrops:
    """Crop, flip and resize a batch of pictures of one size.

    Args:
        recipe: Its filters are used.
        image_size: Height and width of a view, in pixels.
    """

    def __init__(self, recipe: ViewRecipe, image_size: int):
        self._filters = [_FILTERS[parameters.interpolation] for parameters in (recipe.first, recipe.second)]
        self._image_size = image_size

    def __call__(self, pictures: Tensor, draws: Tensor) -> Tensor:
        """Make the crops.

        Args:
            pictures: (batch, height, width, 3), uint8.
            draws: Rows of `draws.py`, (batch, 2, ROW_LENGTH), float32, on the same device.

        Returns:
            (batch, 2, image_size, image_size, 3), uint8; within a grey level of `cpu.resize`.
        """
        top, left, crop_height, crop_width = draws[..., CROP].unbind(dim=2)
        columns = self._weights(left, crop_width, draws[..., FLIP], pictures.shape[2])
        rows = self._weights(top, crop_height, draws[..., VERTICAL_FLIP], pictures.shape[1])
        planes = pictures.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        # One product for both views of a picture, (batch, 3 * height, 2 * image_size), then one for each view.
        narrow = planes.flatten(1, 2) @ columns.flatten(1, 2).transpose(1, 2)
        narrow = narrow.round_().clamp_(0, 255)  # as Pillow, which resizes rows first and to grey levels
        narrow = narrow.unflatten(1, (3, -1)).unflatten(3, (2, -1)).permute(0, 3, 2, 4, 1)  # view, height, size, 3
        crops = rows @ narrow.flatten(3)
        return crops.round_().clamp_(0, 255).to(torch.uint8).unflatten(3, (self._image_size, 3))

    def _weights(self, start: Tensor, length: Tensor, flip: Tensor, size: int) -> Tensor:
        """Share of each pixel of a picture's row or column in each of a view's.

        Args:
            start: First pixel of the crop, (batch, 2).
            length: Pixels of the crop, (batch, 2).
            flip: Whether the view is flipped, (batch, 2).
            size: Pixels of the picture.

        Returns:
            (batch, 2, image_size, size); each row sums to 1.
        """
        pixels = torch.arange(size, device=start.device)
        places = torch.arange(self._image_size, device=start.device)
        places = torch.where(flip[..., None] > 0, self._image_size - 1 - places, places)
        start, length = start[..., None], length[..., None]
        scale = length / self._image_size
        stretch = scale.clamp(min=1)[..., None]  # of the filter where the crop shrinks: antialiasing
        centre = (places + 0.5) * scale + start - 0.5
        distance = ((pixels - centre[..., None]) / stretch).abs_()
        filtered = [filter_(part) for filter_, part in zip(self._filters, distance.unbind(1), strict=True)]
        weights = torch.stack(filtered, dim=1)
        inside = (pixels >= start) & (pixels < start + length)
        weights *= inside[..., None, :]
        return weights / weights.sum(dim=3, keepdim=True)


class CropsOfEach:
    """What `cpu.Crops` does, on the device that holds the pictures, which may be of any sizes.

    Each picture by itself: what comes of one must not depend, by the last bit, on those that it happens to be with.

    Args:
        recipe: What to do.
        image_size: Height and width of a view, in pixels.
    """

    def __init__(self, recipe: ViewRecipe, image_size: int):
        self.recipe = recipe
        self._image_size = image_size
        self._by_matrices = DeviceCrops(recipe, image_size)

    def __call__(self, pictures: Sequence[Tensor], numbers: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Make two crops of each picture, flipped.

        Args:
            pictures: (height, width, 3) each, uint8.
            numbers: Uniform in [0, 1), (pictures, 2, NUM_DRAWS).

        Returns:
            Crops, (pictures, 2, image_size, image_size, 3), uint8, on the device of the pictures and within two grey
            levels of `cpu.Crops`, and rows of `draws.py`, (pictures, 2, ROW_LENGTH), float32, on the CPU.
        """
        draws = torch.from_numpy(draw_pairs(*sizes_of(pictures), self.recipe, numbers)).float()
        there = send(draws, pictures[0].device)
        boxes = draws[..., CROP].int().tolist()
        made = [self._resized(*of) for of in zip(pictures, boxes, there, strict=True)]
        crops = torch.cat(made).unflatten(0, (-1, 2))
        for place, axis in ((FLIP, 4), (VERTICAL_FLIP, 3)):  # of all at once: a picture costs four operations
            crops = torch.where(there[..., place, None, None, None] > 0, crops.flip(axis), crops)
        crops = crops.round_().clamp_(0, 255).permute(0, 1, 3, 4, 2)
        return crops.to(torch.uint8, memory_format=torch.contiguous_format), draws

    def _resized(self, picture: Tensor, boxes: list[list[int]], draws: Tensor) -> Tensor:
        """The crops of a picture, not flipped, (2, 3, image_size, image_size), float32."""
        if max(side for box in boxes for side in box[2:]) > _LARGEST_SCALE * self._image_size:
            draws = draws.clone()
            draws[:, FLIP] = draws[:, VERTICAL_FLIP] = 0
            return self._by_matrices(picture[None], draws[None])[0].permute(0, 3, 1, 2).float()
        resized = []
        for (top, left, height, width), parameters in zip(boxes, (self.recipe.first, self.recipe.second), strict=True):
            crop = picture[top : top + height, left : left + width].permute(2, 0, 1)[None]
            crop = crop.to(torch.float32, memory_format=torch.contiguous_format)
            size = (self._image_size, self._image_size)
            resized.append(F.interpolate(crop, size=size, mode=parameters.interpolation, antialias=True))
        return torch.cat(resized)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic filter with -0.5 (Keys, 1981), as Pillow has it."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


_FILTERS = {"bilinear": _triangle, "bicubic": _cubic}
