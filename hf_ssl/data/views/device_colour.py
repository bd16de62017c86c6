"""The colour part of views, batched on the device that trains.

Each operation gathers the views that need it, in the order of their own draws, so that a view costs what it uses. The
draws are on the CPU, and with them the shapes of all that happens on the device: nothing waits for it. Pixels are
float32 but are rounded to grey levels after each operation, and hue has steps, as in `cpu.py`: nearly all pixels are
those of the CPU to a grey level. A hue that falls between two steps may take the other one.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hf_ssl.data.views.cpu import LUMA, NUM_BOXES, blur_reach, box_kernel
from hf_ssl.data.views.device import send
from hf_ssl.data.views.draws import (
    BLUR_SIGMA,
    BRIGHTNESS,
    CONTRAST,
    FACTORS,
    GREY,
    HUE,
    INVERT,
    PLACES,
    SATURATION,
    SOLARIZE,
)
from hf_ssl.data.views.recipes import ViewRecipe

_Operation = Callable[[Tensor, Tensor], Tensor]  # of pixels, (3, views, height, width), and a row of numbers for each


class DeviceColour:
    """Jitter, grey, blur, solarize and invert of a batch of views.

    Args:
        recipe: What the draws leave open: kind and kernel width of the blur, and the place of grey.
        image_size: Height and width of a view, in pixels.
        device: Where the views are.
    """

    def __init__(self, recipe: ViewRecipe, image_size: int, device: torch.device):
        self._parameters = (recipe.first, recipe.second)
        self._image_size = image_size
        self._device = device
        blurred = [parameters for parameters in self._parameters if parameters.blur_probability]
        reaches = [(one.blur_filter, self._reach_of(one.blur_sigma[1], one.blur_kernel_ratio)) for one in blurred]
        self._reach = max((reach for kind, reach in reaches if kind == "gaussian"), default=0)
        self._mirrored = _mirrored(self._reach, image_size).to(device)
        boxes = [one.blur_sigma[1] for one in blurred if one.blur_filter == "boxes"]
        self._box_reach = len(box_kernel(max(boxes))) // 2 if boxes else 0
        self._repeated = _repeated(self._box_reach, image_size).to(device)

    def __call__(self, crops: Tensor, draws: Tensor) -> Tensor:
        """Carry out the draws.

        Args:
            crops: (batch, 2, image_size, image_size, 3), uint8, anywhere.
            draws: Rows of `draws.py`, (batch, 2, ROW_LENGTH), on the CPU.

        Returns:
            Like `crops`, on the device.
        """
        crops = send(crops, self._device)
        batch_size = len(crops)
        steps = self._steps(draws.transpose(0, 1).flatten(0, 1).double().numpy())
        views = crops.permute(4, 1, 0, 2, 3).to(torch.float32, memory_format=torch.contiguous_format).flatten(1, 2)
        # All numbers in two copies, since a copy to a GPU takes as long as a whole operation.
        chosen = torch.from_numpy(np.concatenate([rows for _, rows, _ in steps] or [np.empty(0, np.int64)]))
        numbers = torch.from_numpy(np.concatenate([of.ravel() for *_, of in steps] or [np.empty(0)])).float()
        chosen = send(chosen, self._device).split([len(rows) for _, rows, _ in steps])
        numbers = send(numbers, self._device).split([of.size for *_, of in steps])
        for (operation, rows, _), rows_there, of_there in zip(steps, chosen, numbers, strict=True):
            made = operation(views.index_select(1, rows_there), of_there.view(len(rows), -1))
            views = made if len(rows) == views.shape[1] else views.index_copy_(1, rows_there, made)
        views = views.unflatten(1, (2, batch_size)).permute(1, 2, 3, 4, 0)
        return views.to(torch.uint8, memory_format=torch.contiguous_format).transpose(0, 1)

    def _steps(self, draws: NDArray[np.float64]) -> list[tuple[_Operation, NDArray[np.int64], NDArray[np.float64]]]:
        """Operations in their order, the views that each is for, and its numbers for each view.

        Args:
            draws: First views, then second ones, (2 * batch, ROW_LENGTH).
        """
        none = np.zeros((len(draws), 1))
        is_grey = draws[:, GREY] > 0
        grey_first = np.repeat([parameters.grey_first for parameters in self._parameters], len(draws) // 2)
        wanted: list[tuple[_Operation, NDArray[np.bool_], NDArray[np.float64]]]
        wanted = [(to_grey, is_grey & grey_first, none)]
        for place in range(4):
            for number, operation in _JITTER.items():
                wanted.append(
                    (operation, draws[:, PLACES][:, number] == place, draws[:, FACTORS][:, number : number + 1])
                )
        wanted.append((to_grey, is_grey & ~grey_first, none))
        sigma = draws[:, BLUR_SIGMA]
        by_boxes = np.repeat([parameters.blur_filter == "boxes" for parameters in self._parameters], len(draws) // 2)
        wanted.append((self._blur, (sigma > 0) & ~by_boxes, self._kernels(sigma)))
        wanted.append((self._blur_by_boxes, (sigma > 0) & by_boxes, self._box_kernels(sigma * by_boxes)))
        wanted.append((solarize, draws[:, SOLARIZE] > 0, none))
        wanted.append((invert, draws[:, INVERT] > 0, none))
        chosen = [(operation, np.flatnonzero(mask), numbers) for operation, mask, numbers in wanted]
        return [(operation, rows, numbers[rows]) for operation, rows, numbers in chosen if len(rows)]

    def _kernels(self, sigma: NDArray[np.float64]) -> NDArray[np.float64]:
        """The blur's kernel of each view, with zeros beyond its own width, (2 * batch, 2 * reach + 1)."""
        ratio_of = np.repeat([parameters.blur_kernel_ratio or 0.0 for parameters in self._parameters], len(sigma) // 2)
        reach = np.array([self._reach_of(*of) for of in zip(sigma.tolist(), ratio_of.tolist(), strict=True)])
        distance = np.abs(np.arange(-self._reach, self._reach + 1))
        sigma = np.where(sigma > 0, sigma, 1)[:, None]
        kernels = np.exp(-0.5 * (distance / sigma) ** 2) * (distance <= reach[:, None])
        return kernels / kernels.sum(axis=1, keepdims=True)

    def _box_kernels(self, sigma: NDArray[np.float64]) -> NDArray[np.float64]:
        """The box of each view that has a sigma, with zeros beyond its own width, (2 * batch, 2 * box reach + 1)."""
        kernels = np.zeros((len(sigma), 2 * self._box_reach + 1))
        for view in np.flatnonzero(sigma):
            kernel = box_kernel(sigma[view])
            start = self._box_reach - len(kernel) // 2
            kernels[view, start : start + len(kernel)] = kernel
        return kernels

    def _reach_of(self, sigma: float, kernel_ratio: float | None) -> int:
        return blur_reach(sigma, kernel_ratio or None, self._image_size)

    def _blur(self, pixels: Tensor, kernels: Tensor) -> Tensor:
        # As two matrix products: a convolution with a kernel for each view would be one in as many groups.
        matrices = (kernels @ self._mirrored.flatten(1)).unflatten(1, self._mirrored.shape[1:])
        return _levels(matrices @ pixels @ matrices.transpose(1, 2))

    def _blur_by_boxes(self, pixels: Tensor, kernels: Tensor) -> Tensor:
        matrices = (kernels @ self._repeated.flatten(1)).unflatten(1, self._repeated.shape[1:])
        for _ in range(NUM_BOXES):
            pixels = _levels(matrices @ pixels @ matrices.transpose(1, 2))
        return pixels


def _mirrored(reach: int, size: int) -> Tensor:
    """Where each weight of a kernel falls for each pixel of a row, mirrored at its ends.

    Returns:
        Ones and zeros, (2 * reach + 1, size, size): of weight, pixel and pixel that it takes.
    """
    period = max(1, 2 * size - 2)
    taken = (torch.arange(size) + torch.arange(-reach, reach + 1)[:, None]).remainder(period)
    return functional.one_hot(torch.where(taken < size, taken, period - taken), size).float()


def _repeated(reach: int, size: int) -> Tensor:
    """Like `_mirrored`, with the pixels at the ends of a row repeated beyond them."""
    taken = (torch.arange(size) + torch.arange(-reach, reach + 1)[:, None]).clamp(0, size - 1)
    return functional.one_hot(taken, size).float()


# What follows takes pixels from 0 to 255, (3, views, height, width), and returns such, rounded.


def adjust_brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Multiply all pixels by a factor of at least 0, (views, 1)."""
    return _levels(pixels * factor[..., None])


def adjust_contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey of the view by a factor, (views, 1)."""
    grey = _luma(pixels.mean(dim=(2, 3)))
    return _levels(pixels * factor[..., None] + ((1 - factor[:, 0]) * grey)[:, None, None])


def adjust_saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey view by a factor, (views, 1)."""
    return _levels(torch.lerp(_luma(pixels), pixels, factor[..., None]))


def adjust_hue(pixels: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by a fraction of the colour circle, (views, 1); hue and saturation have 256 steps, as in OpenCV."""
    red, green, blue = pixels.unbind()
    value, spread = pixels.amax(0), pixels.amax(0) - pixels.amin(0)
    divisor = spread.clamp(min=1)
    turned = torch.where(value == green, 2 * spread + blue - red, 4 * spread + red - green)
    hue = torch.where(value == red, green - blue, turned)
    hue = (torch.floor(hue * (256 / 6) / divisor + 0.5) + torch.round(shift * 256)[..., None]).remainder(256)
    chroma = value * torch.floor(spread * 255 / value.clamp(min=1) + 0.5) / 255
    # Back by distances on the circle from each colour; 255 steps to it are OpenCV's choice for this direction.
    colours = torch.arange(5, 0, -2, device=pixels.device)[:, None, None, None]
    place = (hue * (6 / 255) + colours).remainder(6)
    return _levels(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))


def to_grey(pixels: Tensor, _: Tensor) -> Tensor:
    """Replace colours by their luma, in three equal channels."""
    return _levels(_luma(pixels)).repeat(3, 1, 1, 1)


def solarize(pixels: Tensor, _: Tensor) -> Tensor:
    """Invert the pixels of at least 128."""
    return torch.where(pixels < 128, pixels, 255 - pixels)


def invert(pixels: Tensor, _: Tensor) -> Tensor:
    """Invert all pixels."""
    return 255 - pixels


_JITTER = {
    BRIGHTNESS: adjust_brightness,
    CONTRAST: adjust_contrast,
    SATURATION: adjust_saturation,
    HUE: adjust_hue,
}


def _luma(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind()
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _levels(pixels: Tensor) -> Tensor:
    return pixels.round_().clamp_(0, 255)
