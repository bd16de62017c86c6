"""What chance decides about a view, drawn before a pixel is touched.

A view is a function of its picture and of `NUM_DRAWS` uniform numbers. Whoever makes it, workers on the CPU or a batch
on the GPU, makes the same one.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hf_ssl.data.recipes import ViewParameters

NUM_DRAWS = 40
"""Uniform numbers of a view; no view uses more than 39."""

_CROP_ATTEMPTS = 10
_BLOCK = 64  # records whose numbers are drawn at once: to seed a generator takes as long as to make half a small view
_FOR_VIEWS = 2  # the last number of the seed: the reader's generators have others

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Operations of a colour jitter, in the order of `ViewParameters.jitter`."""


def numbers_of(seed: int, epoch: int, rank: int, place: int) -> list[list[float]]:
    """Uniform numbers in [0, 1) for the two views of a record, (2, NUM_DRAWS).

    Args:
        seed: Of the run.
        epoch: Pass over the data.
        rank: Number of the process.
        place: Of the record in the order of its epoch.
    """
    return _block_of_numbers(seed, epoch, rank, place // _BLOCK)[place % _BLOCK]


@functools.lru_cache(maxsize=2)  # a chunk of records lies in one or two blocks
def _block_of_numbers(seed: int, epoch: int, rank: int, block: int) -> list[list[list[float]]]:
    return np.random.default_rng([seed, epoch, rank, block, _FOR_VIEWS]).random((_BLOCK, 2, NUM_DRAWS)).tolist()


class ViewDraw(NamedTuple):
    """One view's share of chance.

    Args:
        top: First row of the crop, in pixels of the picture.
        left: First column of the crop.
        height: Of the crop, in pixels of the picture.
        width: Of the crop.
        flip: Whether to flip left and right.
        vertical_flip: Whether to flip top and bottom.
        policy_seed: Seed of the policy; None without one.
        jitter: Operations and their factors (for `HUE` the shift, in turns), in the order of their use.
        grey: Whether colours are lost.
        blur_sigma: Standard deviation of the blur, in pixels of the view; 0 for none.
        solarize: Whether pixels above half of full brightness are inverted.
        invert: Whether all pixels are inverted.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool
    vertical_flip: bool
    policy_seed: int | None
    jitter: tuple[tuple[int, float], ...]
    grey: bool
    blur_sigma: float
    solarize: bool
    invert: bool


def draw_view(height: int, width: int, parameters: ViewParameters, numbers: Sequence[float]) -> ViewDraw:
    """Decide everything that is random about one view.

    Args:
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        parameters: What to do, and how often.
        numbers: Uniform in [0, 1), (NUM_DRAWS,).

    Returns:
        The draw.
    """
    draws = iter(numbers)
    top, left, crop_height, crop_width = crop_box(height, width, parameters, draws)
    flip = next(draws) < parameters.flip_probability
    vertical_flip = next(draws) < parameters.vertical_flip_probability
    policy_seed = None if parameters.policy is None else int(next(draws) * 2**53)
    jittered, grey = next(draws) < parameters.jitter_probability, next(draws) < parameters.grey_probability
    jitter = draw_jitter(parameters.jitter, draws) if jittered else ()
    blurred = next(draws) < parameters.blur_probability
    blur_sigma = between(parameters.blur_sigma, next(draws)) if blurred else 0.0
    solarize = next(draws) < parameters.solarize_probability
    invert = next(draws) < parameters.invert_probability
    return ViewDraw(
        top,
        left,
        crop_height,
        crop_width,
        flip,
        vertical_flip,
        policy_seed,
        jitter,
        grey,
        blur_sigma,
        solarize,
        invert,
    )


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
        area = height * width * between(parameters.crop_scale, next(draws))
        ratio = math.exp(between((math.log(lowest), math.log(highest)), next(draws)))
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


def draw_jitter(strengths: tuple[float, float, float, float], draws: Iterator[float]) -> tuple[tuple[int, float], ...]:
    """Draw a jitter of brightness, contrast, saturation and hue, in random order, like torchvision's `ColorJitter`.

    Args:
        strengths: Of the four, as in `ViewParameters.jitter`; 0 leaves one out.
        draws: Eight uniform numbers in [0, 1): the size of the four changes, then the keys that order them.

    Returns:
        Operations and their factors, in the order of their use.
    """
    factors = [between((max(0.0, 1 - strength), 1 + strength), next(draws)) for strength in strengths[:3]]
    factors.append(between((-strengths[HUE], strengths[HUE]), next(draws)))
    keys = [next(draws) for _ in strengths]
    order = sorted(range(4), key=keys.__getitem__)
    return tuple((operation, factors[operation]) for operation in order if strengths[operation])


def between(limits: tuple[float, float], draw: float) -> float:
    """Map a number in [0, 1) to the range between two limits."""
    return limits[0] + (limits[1] - limits[0]) * draw
