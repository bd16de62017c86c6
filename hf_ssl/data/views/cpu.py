"""uint8 pictures to two views each, by the recipes of the papers.

Crop and resize come first, so that colour costs the pixels of the view and not those of the photo; everything works on
uint8, and the loop normalises on its device. All that is random comes from the numbers passed in (`draws.py`), with
the distributions of torchvision's transforms.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from hf_ssl.data.views.draws import (
    BLUR_SIGMA,
    BRIGHTNESS,
    CONTRAST,
    CROP,
    FACTORS,
    FLIP,
    GREY,
    HUE,
    INVERT,
    PLACES,
    POLICY_SEED,
    SATURATION,
    SOLARIZE,
    VERTICAL_FLIP,
    draw_pairs,
    sizes_of,
)
from hf_ssl.data.views.recipes import VIEW_RECIPES, ViewParameters, ViewRecipe, changed_recipe
from hf_ssl.errors import UserError
from hf_ssl.seeded import seeded

Picture = NDArray[Any]  # uint8, (height, width, 3)

NUM_BOXES = 3
"""Box blurs in place of a Gaussian one, as in Pillow."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R 601)."""

_POLICIES = {"randaugment": v2.RandAugment(num_ops=2, magnitude=9), "autoaugment": v2.AutoAugment()}
_SOLARIZED = np.array([level if level < 128 else 255 - level for level in range(256)], np.uint8)
_TO_GREY = np.tile(LUMA, (3, 1))
_TO_COLOUR = np.eye(3) - _TO_GREY


class Views:
    """Augmented views of each of some pictures; picklable, without state of its own.

    Args:
        recipe: A recipe, or its name in `VIEW_RECIPES`.
        image_size: Height and width of a view, in pixels, at least 1.
        num_views: 2, or 1 for the recipe's first view alone.

    Raises:
        UserError: If no recipe has that name.
    """

    def __init__(self, recipe: ViewRecipe | str, image_size: int, num_views: Literal[1, 2] = 2):
        self.recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
        self.image_size = image_size
        self.num_views = num_views

    def __call__(self, pictures: Sequence[Picture], numbers: NDArray[np.float64]) -> tuple[Tensor]:
        """Make the views.

        Args:
            pictures: RGB, each of any size, (height, width, 3).
            numbers: Uniform in [0, 1), (pictures, 2, NUM_DRAWS).

        Returns:
            (pictures, num_views, image_size, image_size, 3), uint8.
        """
        rows = draw_pairs(*sizes_of(pictures), self.recipe, numbers)[:, : self.num_views]
        return (_by_each(make_view, pictures, self.recipe, rows, self.image_size),)


class Crops:
    """What remains of `Views` for the CPU where the device does the colours: crops of pictures, and their draws.

    Args:
        recipe: What to do.
        image_size: Height and width of a view, in pixels, at least 1.
    """

    def __init__(self, recipe: ViewRecipe, image_size: int):
        self.recipe = recipe
        self.image_size = image_size

    def __call__(self, pictures: Sequence[Picture], numbers: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Make two crops of each picture, flipped and changed by a policy.

        Args:
            pictures: RGB, each of any size, (height, width, 3).
            numbers: Uniform in [0, 1), (pictures, 2, NUM_DRAWS).

        Returns:
            Crops, (pictures, 2, image_size, image_size, 3), uint8, and rows of `draws.py`, (pictures, 2, ROW_LENGTH),
            float32.
        """
        rows = draw_pairs(*sizes_of(pictures), self.recipe, numbers)
        crops = _by_each(crop_and_flip, pictures, self.recipe, rows, self.image_size)
        return crops, torch.from_numpy(rows).float()


def _by_each(
    make: Callable[[Picture, ViewParameters, Sequence[float], int], Picture],
    pictures: Sequence[Picture],
    recipe: ViewRecipe,
    rows: NDArray[np.float64],
    image_size: int,
) -> Tensor:
    made = np.empty((*rows.shape[:2], image_size, image_size, 3), np.uint8)
    for place, (picture, own) in enumerate(zip(pictures, rows.tolist(), strict=True)):
        for view, (parameters, row) in enumerate(zip((recipe.first, recipe.second), own, strict=False)):
            made[place, view] = make(picture, parameters, row, image_size)
    return torch.from_numpy(made)


def find_recipe(name: str, view_settings: Mapping[str, Any] | None = None) -> ViewRecipe:
    """The recipe of a name.

    Args:
        name: A name in `VIEW_RECIPES`.
        view_settings: Single parameters to change; see `recipes.changed_recipe`.

    Returns:
        The recipe.

    Raises:
        UserError: If there is no such recipe (names the nearest, or all) or a parameter cannot be changed so.
    """
    _check_known(name, "view_recipe")
    return changed_recipe(VIEW_RECIPES[name], view_settings or {})


def chosen_recipes(names: Sequence[str]) -> list[str]:
    """The recipes that a setting `views` names, each once.

    Args:
        names: What was given.

    Raises:
        UserError: If there is none, or one is unknown.
    """
    if not names:
        raise UserError("`views` must name at least one recipe, such as `moco_v2`.")
    for name in names:
        if name.isdigit():
            raise UserError(f"`views` must name recipes, got {name}. The number of views is `num_views`.")
        _check_known(name, "views")
    return list(dict.fromkeys(names))


def _check_known(name: str, setting: str) -> None:
    if name not in VIEW_RECIPES:
        close = difflib.get_close_matches(name, VIEW_RECIPES, n=1)
        hint = f"Did you mean `{close[0]}`?" if close else f"Known: {', '.join(VIEW_RECIPES)}."
        wanted = "be the name of a recipe" if setting == "view_recipe" else "name recipes"
        raise UserError(f"`{setting}` must {wanted}, got `{name}`. {hint}")


def make_view(picture: Picture, parameters: ViewParameters, row: Sequence[float], image_size: int) -> Picture:
    """Make one view.

    Args:
        picture: RGB, of any size, (height, width, 3).
        parameters: What the row leaves open: filters, kernel width, policy and the place of grey.
        row: What chance decided, a row of `draws.py`, (ROW_LENGTH,).
        image_size: Height and width of the view, in pixels.

    Returns:
        (image_size, image_size, 3).
    """
    view = crop_and_flip(picture, parameters, row, image_size)
    if row[GREY] and parameters.grey_first:
        view = to_grey(view)
    places, factors = row[PLACES], row[FACTORS]
    for operation in sorted(_JITTER, key=places.__getitem__):
        if places[operation] >= 0:
            view = _JITTER[operation](view, factors[operation])
    if row[GREY] and not parameters.grey_first:
        view = to_grey(view)
    if row[BLUR_SIGMA]:
        if parameters.blur_filter == "boxes":
            view = blur_by_boxes(view, row[BLUR_SIGMA])
        else:
            view = blur(view, row[BLUR_SIGMA], parameters.blur_kernel_ratio)
    if row[SOLARIZE]:
        view = solarize(view)
    return 255 - view if row[INVERT] else view


def crop_and_flip(picture: Picture, parameters: ViewParameters, row: Sequence[float], image_size: int) -> Picture:
    """The part of `make_view` that changes places and not colours, and the policy, which does both.

    Args:
        picture: RGB, of any size, (height, width, 3).
        parameters: Its `interpolation` and `policy` are used.
        row: What chance decided, a row of `draws.py`, (ROW_LENGTH,).
        image_size: Height and width of the view, in pixels.

    Returns:
        (image_size, image_size, 3).
    """
    top, left, height, width = map(int, row[CROP])
    view = resize(picture[top : top + height, left : left + width], image_size, parameters.interpolation)
    if row[FLIP] or row[VERTICAL_FLIP]:
        view = cv2.flip(view, (1 if row[FLIP] else 0) if row[FLIP] != row[VERTICAL_FLIP] else -1)
    if parameters.policy is not None:
        view = _by_policy(view, parameters.policy, int(row[POLICY_SEED]))
    return view


def resize(picture: Picture, image_size: int, interpolation: Literal["bilinear", "bicubic"]) -> Picture:
    """Resize to a square with antialiasing, as Pillow does.

    Args:
        picture: RGB, (height, width, 3).
        image_size: New height and width, in pixels.
        interpolation: Filter. torch has Pillow's filters, within one grey level (bicubic: two) and in a quarter of
            its time; bilinear enlarging, which needs no antialiasing, is OpenCV's.

    Returns:
        (image_size, image_size, 3).
    """
    size = (image_size, image_size)
    if picture.shape[:2] == size:
        return picture
    if interpolation == "bilinear" and picture.shape[0] <= image_size and picture.shape[1] <= image_size:
        return cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
    # Pillow's pictures are read-only, of which torch warns.
    pixels = torch.from_numpy(picture if picture.flags.writeable else picture.copy())
    # As a batch of one before the axes move: only so torch sees the channels last and keeps them there, or it would
    # write planes, which take as long to interleave as to resize.
    resized = F.interpolate(pixels[None].permute(0, 3, 1, 2), size=size, mode=interpolation, antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1)[0].numpy())


def adjust_brightness(picture: Picture, factor: float) -> Picture:
    """Multiply all pixels by a factor of at least 0."""
    return cv2.addWeighted(picture, factor, picture, 0, 0)


def adjust_contrast(picture: Picture, factor: float) -> Picture:
    """Blend with the mean grey of the picture; factor 0 leaves that grey, 1 the picture."""
    red, green, blue, _ = cv2.mean(picture)
    grey = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return cv2.addWeighted(picture, factor, picture, 0, (1 - factor) * grey)


def adjust_saturation(picture: Picture, factor: float) -> Picture:
    """Blend with the grey picture; factor 0 leaves grey, 1 the picture."""
    return cv2.transform(picture, _TO_GREY + factor * _TO_COLOUR)


def adjust_hue(picture: Picture, shift: float) -> Picture:
    """Turn the hue by a fraction of the colour circle, in [-0.5, 0.5]."""
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV_FULL)
    turn = np.zeros((picture.shape[1], 3), np.uint8)  # of a whole row: faster than one channel of three
    turn[:, 0] = round(shift * 256) % 256
    hsv += turn  # uint8 wraps around, as the circle does
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
    reach = blur_reach(sigma, kernel_ratio, picture.shape[1])
    # Not `cv2.GaussianBlur`: its fixed-point filter takes up to five times as long for the same grey levels.
    kernel = cv2.getGaussianKernel(2 * reach + 1, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(picture, -1, kernel, kernel)


def blur_reach(sigma: float, kernel_ratio: float | None, image_size: int) -> int:
    """Pixels to each side that a blur's kernel covers; see `blur`."""
    return max(1, math.ceil(3 * sigma) if kernel_ratio is None else int(kernel_ratio * image_size) // 2)


def blur_by_boxes(picture: Picture, sigma: float) -> Picture:
    """Blur three times by a box, as Pillow's `GaussianBlur` does (within three grey levels: it rounds more often).

    Args:
        picture: RGB, (height, width, 3).
        sigma: Standard deviation, in pixels, positive.

    Returns:
        Same shape.
    """
    kernel = box_kernel(sigma).astype(np.float32)
    for _ in range(NUM_BOXES):
        picture = cv2.sepFilter2D(picture, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return picture


def box_kernel(sigma: float) -> NDArray[np.float64]:
    """A box of which `NUM_BOXES` one after another have the variance of a Gaussian (Gwosdek et al., 2011).

    Args:
        sigma: Standard deviation of the Gaussian, in pixels, positive.

    Returns:
        Weights, (2 * reach + 1,): equal ones, and smaller ones at both ends where the width is no whole number.
    """
    variance = sigma * sigma / NUM_BOXES
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)  # pixels to each side with full weight
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return np.array([part, *[1.0] * (2 * whole + 1), part]) / (2 * (whole + part) + 1)


def solarize(picture: Picture) -> Picture:
    """Invert the pixels of at least 128."""
    return cv2.LUT(picture, _SOLARIZED)


_JITTER = {
    BRIGHTNESS: adjust_brightness,
    CONTRAST: adjust_contrast,
    SATURATION: adjust_saturation,
    HUE: adjust_hue,
}


def _by_policy(picture: Picture, policy: str, seed: int) -> Picture:
    # torchvision draws from torch's global generator: lend it a seed of ours and give it back as it was. Seeding the
    # CPU generator alone, since `torch.manual_seed` would also reset the GPU's.
    with seeded(seed):
        return np.array(_POLICIES[policy](Image.fromarray(picture)))  # a copy: Pillow lends pixels that are read-only
