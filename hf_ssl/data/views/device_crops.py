"""Crops and their resizing, batched on the device that holds the pictures.

To crop, flip and resize is linear in the pixels of a row and of a column: two products with a matrix for each view,
whose rows are the weights of Pillow's filters.
"""

import torch
from torch import Tensor

from hf_ssl.data.views.draws import CROP, FLIP, VERTICAL_FLIP
from hf_ssl.data.views.recipes import ViewRecipe


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


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic filter with -0.5 (Keys, 1981), as Pillow has it."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


_FILTERS = {"bilinear": _triangle, "bicubic": _cubic}
