"""What chance decides about views, drawn for many pictures at once before a pixel is touched.

A view is a function of its picture and of `NUM_DRAWS` uniform numbers, from which its row of `ROW_LENGTH` numbers is
drawn here. Workers on the CPU and a batch on the GPU make the same view of it.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_ssl.data.views.recipes import ViewParameters, ViewRecipe

NUM_DRAWS = 40
"""Uniform numbers of a view; no view uses more than 39."""

_CROP_ATTEMPTS = 10
_BLOCK = 64  # records whose numbers are drawn at once: to seed a generator takes as long as to make half a small view
_KEPT_BLOCKS = 16  # lanes take turns, and each goes on in its own block
_FOR_VIEWS = 2  # the last number of the seed: the reader's generators have others

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Operations of a colour jitter, in the order of `ViewParameters.jitter`."""

CROP = slice(0, 4)
FLIP, VERTICAL_FLIP = 4, 5
PLACES, FACTORS = slice(6, 10), slice(10, 14)
GREY, BLUR_SIGMA, SOLARIZE, INVERT, POLICY_SEED = range(14, 19)
"""Numbers of a row. Crop: top, left, height and width, in pixels of the picture. Flips, grey, solarize, invert: 1 for
yes. Of each jitter operation its place (from 0; -1 where it is not used) and its factor (for `HUE` the shift, in
turns). Blur: standard deviation, in pixels of the view; 0 for none. Policy: its seed, which float32 cannot hold."""

ROW_LENGTH = 19
"""Numbers in a row."""


def numbers_between(seed: int, epoch: int, lane: int, start: int, end: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) for the two views of consecutive records.

    Args:
        seed: Of the run.
        epoch: Pass over the data.
        lane: Number of the records' lane.
        start: Place of the first record in the order of its lane's epoch.
        end: Place after the last one, larger than `start`.

    Returns:
        (end - start, 2, NUM_DRAWS).
    """
    first = start // _BLOCK
    blocks = [_block(seed, epoch, lane, block) for block in range(first, (end - 1) // _BLOCK + 1)]
    return np.concatenate(blocks)[start - first * _BLOCK : end - first * _BLOCK]


@functools.lru_cache(maxsize=_KEPT_BLOCKS)
def _block(seed: int, epoch: int, lane: int, block: int) -> NDArray[np.float64]:
    return np.random.default_rng([seed, epoch, lane, block, _FOR_VIEWS]).random((_BLOCK, 2, NUM_DRAWS))


def sizes_of(pictures: Sequence[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Heights and widths of arrays or tensors of pixels, (pictures,) each."""
    heights, widths = np.array([picture.shape[:2] for picture in pictures], np.int64).reshape(-1, 2).T
    return heights, widths


def draw_pairs(
    heights: NDArray[np.int64], widths: NDArray[np.int64], recipe: ViewRecipe, numbers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Decide everything that is random about the two views of some pictures; see `draw_rows`.

    Args:
        heights: Of the pictures, in pixels, (pictures,).
        widths: Of the pictures, in pixels, (pictures,).
        recipe: What to do, and how often.
        numbers: Uniform in [0, 1), (pictures, 2, NUM_DRAWS).

    Returns:
        (pictures, 2, ROW_LENGTH).
    """
    both = (recipe.first, recipe.second)
    rows = [draw_rows(heights, widths, parameters, numbers[:, view]) for view, parameters in enumerate(both)]
    return np.stack(rows, axis=1)


def draw_rows(
    heights: NDArray[np.int64], widths: NDArray[np.int64], parameters: ViewParameters, numbers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Decide everything that is random about one view of each of some pictures.

    A picture's row depends on its own size and numbers alone, which it takes in turn: how many depends on how many
    attempts its crop needs.

    Args:
        heights: Of the pictures, in pixels, (pictures,).
        widths: Of the pictures, in pixels, (pictures,).
        parameters: What to do, and how often.
        numbers: Uniform in [0, 1), (pictures, NUM_DRAWS).

    Returns:
        (pictures, ROW_LENGTH).
    """
    draws = _Draws(numbers)
    rows = np.zeros((len(numbers), ROW_LENGTH))
    rows[:, PLACES] = -1
    everyone = np.arange(len(numbers))
    rows[:, CROP] = _crop_boxes(heights, widths, parameters, draws)
    rows[:, FLIP] = draws.next(everyone) < parameters.flip_probability
    rows[:, VERTICAL_FLIP] = draws.next(everyone) < parameters.vertical_flip_probability
    if parameters.policy is not None:
        rows[:, POLICY_SEED] = np.floor(draws.next(everyone) * 2**53)
    jittered = np.flatnonzero(draws.next(everyone) < parameters.jitter_probability)
    rows[:, GREY] = draws.next(everyone) < parameters.grey_probability
    rows[jittered, PLACES], rows[jittered, FACTORS] = _jitters(parameters.jitter, draws, jittered)
    blurred = np.flatnonzero(draws.next(everyone) < parameters.blur_probability)
    rows[blurred, BLUR_SIGMA] = _between(parameters.blur_sigma, draws.next(blurred))
    rows[:, SOLARIZE] = draws.next(everyone) < parameters.solarize_probability
    rows[:, INVERT] = draws.next(everyone) < parameters.invert_probability
    return rows


class _Draws:
    """Uniform numbers of many pictures, each of which takes its own in turn."""

    def __init__(self, numbers: NDArray[np.float64]):
        self._numbers = numbers
        self._taken = np.zeros(len(numbers), np.int64)

    def next(self, pictures: NDArray[np.int64]) -> NDArray[np.float64]:
        drawn = self._numbers[pictures, self._taken[pictures]]
        self._taken[pictures] += 1
        return drawn


def _crop_boxes(
    heights: NDArray[np.int64], widths: NDArray[np.int64], parameters: ViewParameters, draws: _Draws
) -> NDArray[np.float64]:
    """Random crops, distributed like torchvision's `RandomResizedCrop`: top, left, height and width, (pictures, 4)."""
    lowest, highest = map(math.log, parameters.crop_ratio)
    boxes = _middle_boxes(heights, widths, parameters)
    missing = np.arange(len(boxes))
    for _ in range(_CROP_ATTEMPTS):
        height, width = heights[missing], widths[missing]
        area = height * width * _between(parameters.crop_scale, draws.next(missing))
        # Not numpy's exponential, whose last bit depends on the processor.
        ratio = np.array([math.exp(power) for power in _between((lowest, highest), draws.next(missing)).tolist()])
        crop_width, crop_height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (crop_width > 0) & (crop_width <= width) & (crop_height > 0) & (crop_height <= height)
        found, crop_height, crop_width = missing[fits], crop_height[fits], crop_width[fits]
        top = np.floor(draws.next(found) * (height[fits] - crop_height + 1))
        left = np.floor(draws.next(found) * (width[fits] - crop_width + 1))
        boxes[found] = np.stack([top, left, crop_height, crop_width], axis=1)
        missing = missing[~fits]
        if not len(missing):
            break
    return boxes


def _middle_boxes(
    heights: NDArray[np.int64], widths: NDArray[np.int64], parameters: ViewParameters
) -> NDArray[np.float64]:
    """For pictures of extreme shape, the largest crops in their middle that have an allowed ratio."""
    lowest, highest = parameters.crop_ratio
    narrow, wide = widths < lowest * heights, widths > highest * heights
    crop_height = np.where(narrow, np.maximum(1, np.rint(widths / lowest)), heights)
    crop_width = np.where(~narrow & wide, np.maximum(1, np.rint(heights * highest)), widths)
    top, left = (heights - crop_height) // 2, (widths - crop_width) // 2
    return np.stack([top, left, crop_height, crop_width], axis=1).astype(np.float64)


def _jitters(
    strengths: tuple[float, float, float, float], draws: _Draws, pictures: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Jitters like torchvision's `ColorJitter`: places and factors of the four operations, (pictures, 4) each.

    Each takes eight numbers: the size of the four changes, then the keys that order them.
    """
    limits = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths[:3]]
    limits.append((-strengths[HUE], strengths[HUE]))
    factors = np.stack([_between(limit, draws.next(pictures)) for limit in limits], axis=1)
    keys = np.stack([draws.next(pictures) for _ in strengths], axis=1)
    unused = np.array(strengths) == 0
    keys[:, unused], factors[:, unused] = np.inf, 0
    places = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1, kind="stable").astype(np.float64)
    places[:, unused] = -1
    return places, factors


def _between(limits: tuple[float, float], draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map numbers in [0, 1) to the range between two limits."""
    return limits[0] + (limits[1] - limits[0]) * draws
