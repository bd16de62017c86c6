"""What chance decides about a view, drawn before a pixel is touched.

A view is a function of its picture and of `NUM_DRAWS` uniform numbers. Whoever makes it, workers on the CPU or a batch
on the GPU, makes the same one.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from hf_ssl.data.views.recipes import ViewParameters

NUM_DRAWS = 40
"""Uniform numbers of a view; no view uses more than 39."""

_CROP_ATTEMPTS = 10
_BLOCK = 64  # records whose numbers are drawn at once: to seed a generator takes as long as to make half a small view
_FOR_VIEWS = 2  # the last number of the seed: the reader's generators have others

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Operations of a colour jitter, in the order of `ViewParameters.jitter`."""

CROP = slice(0, 4)
FLIP, VERTICAL_FLIP = 4, 5
PLACES, FACTORS = slice(6, 10), slice(10, 14)
GREY, BLUR_SIGMA, SOLARIZE, INVERT = range(14, 18)
"""Numbers of a draw as a row: its fields in their order, but of each jitter operation its place (from 0; -1 where it
is not used) and its factor."""

ROW_LENGTH = 18
"""Numbers in such a row."""


def numbers_of(seed: int, epoch: int, rank: int, place: int) -> list[list[float]]:
    """Uniform numbers in [0, 1) for the two views of a record, (2, NUM_DRAWS).

    Args:
        seed: Of the run.
        epoch: Pass over the data.
        rank: Number of the process.
        place: Of the record in the order of its epoch.
    """
    return _block_of_numbers(seed, epoch, rank, place // _BLOCK)[place % _BLOCK]


def numbers_between(seed: int, epoch: int, rank: int, start: int, end: int) -> NDArray[np.float64]:
    """`numbers_of` of the places from `start` to before `end`, (end - start, 2, NUM_DRAWS)."""
    first = start // _BLOCK
    blocks = [_block(seed, epoch, rank, block) for block in range(first, (end - 1) // _BLOCK + 1)]
    return np.concatenate(blocks)[start - first * _BLOCK : end - first * _BLOCK]


@functools.lru_cache(maxsize=2)  # a chunk of records lies in one or two blocks
def _block_of_numbers(seed: int, epoch: int, rank: int, block: int) -> list[list[list[float]]]:
    return _block(seed, epoch, rank, block).tolist()


@functools.lru_cache(maxsize=2)
def _block(seed: int, epoch: int, rank: int, block: int) -> NDArray[np.float64]:
    return np.random.default_rng([seed, epoch, rank, block, _FOR_VIEWS]).random((_BLOCK, 2, NUM_DRAWS))


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


def as_row(draw: ViewDraw) -> list[float]:
    """A draw as `ROW_LENGTH` numbers, without the seed of a policy."""
    places, factors = [-1.0] * 4, [0.0] * 4
    for place, (operation, factor) in enumerate(draw.jitter):
        places[operation], factors[operation] = place, factor
    colour = (draw.grey, draw.blur_sigma, draw.solarize, draw.invert)
    return [*draw[:4], draw.flip, draw.vertical_flip, *places, *factors, *colour]


def draw_rows(
    height: int, width: int, parameters: ViewParameters, numbers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`as_row` of `draw_view` for many pictures of one size: bit for bit the same, at a fraction of the time.

    Args:
        height: Of the pictures, in pixels.
        width: Of the pictures, in pixels.
        parameters: What to do, and how often; a policy's seed is drawn and dropped.
        numbers: Uniform in [0, 1), (pictures, NUM_DRAWS).

    Returns:
        (pictures, ROW_LENGTH).
    """
    draws = _Draws(numbers)
    rows = np.zeros((len(numbers), ROW_LENGTH))
    rows[:, PLACES] = -1
    everyone = np.arange(len(numbers))
    rows[:, CROP] = _crop_boxes(height, width, parameters, draws)
    rows[:, FLIP] = draws.next(everyone) < parameters.flip_probability
    rows[:, VERTICAL_FLIP] = draws.next(everyone) < parameters.vertical_flip_probability
    if parameters.policy is not None:
        draws.next(everyone)
    jittered = np.flatnonzero(draws.next(everyone) < parameters.jitter_probability)
    rows[:, GREY] = draws.next(everyone) < parameters.grey_probability
    rows[jittered, PLACES], rows[jittered, FACTORS] = _draw_jitters(parameters.jitter, draws, jittered)
    blurred = np.flatnonzero(draws.next(everyone) < parameters.blur_probability)
    rows[blurred, BLUR_SIGMA] = between(parameters.blur_sigma, draws.next(blurred))
    rows[:, SOLARIZE] = draws.next(everyone) < parameters.solarize_probability
    rows[:, INVERT] = draws.next(everyone) < parameters.invert_probability
    return rows


class _Draws:
    """Uniform numbers of many pictures, each of which takes its own in turn."""

    def __init__(self, numbers: NDArray[np.float64]):
        self._numbers = numbers
        self._taken = np.zeros(len(numbers), np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def next(self, pictures: NDArray[np.int64]) -> NDArray[np.float64]:
        drawn = self._numbers[pictures, self._taken[pictures]]
        self._taken[pictures] += 1
        return drawn


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
    return _middle_box(height, width, parameters)


def _crop_boxes(height: int, width: int, parameters: ViewParameters, draws: _Draws) -> NDArray[np.float64]:
    """`crop_box` of many pictures."""
    lowest, highest = map(math.log, parameters.crop_ratio)
    boxes = np.empty((len(draws), 4))
    boxes[:] = _middle_box(height, width, parameters)
    missing = np.arange(len(boxes))
    for _ in range(_CROP_ATTEMPTS):
        area = height * width * between(parameters.crop_scale, draws.next(missing))
        # Not numpy's exponential, whose last bit may be another.
        ratio = np.array([math.exp(power) for power in between((lowest, highest), draws.next(missing)).tolist()])
        crop_width, crop_height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (crop_width > 0) & (crop_width <= width) & (crop_height > 0) & (crop_height <= height)
        found, crop_height, crop_width = missing[fits], crop_height[fits], crop_width[fits]
        top = np.floor(draws.next(found) * (height - crop_height + 1))
        left = np.floor(draws.next(found) * (width - crop_width + 1))
        boxes[found] = np.stack([top, left, crop_height, crop_width], axis=1)
        missing = missing[~fits]
        if not len(missing):
            break
    return boxes


def _middle_box(height: int, width: int, parameters: ViewParameters) -> tuple[int, int, int, int]:
    """For a picture of extreme shape, the largest crop in its middle that has an allowed ratio."""
    lowest, highest = parameters.crop_ratio
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


def _draw_jitters(
    strengths: tuple[float, float, float, float], draws: _Draws, pictures: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`draw_jitter` of many pictures: places and factors of the four operations, (pictures, 4) each."""
    limits = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths[:3]]
    limits.append((-strengths[HUE], strengths[HUE]))
    factors = np.stack([between(limit, draws.next(pictures)) for limit in limits], axis=1)
    keys = np.stack([draws.next(pictures) for _ in strengths], axis=1)
    unused = np.array(strengths) == 0
    keys[:, unused], factors[:, unused] = np.inf, 0
    places = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1, kind="stable").astype(np.float64)
    places[:, unused] = -1
    return places, factors


_Number = TypeVar("_Number", float, NDArray[np.float64])


def between(limits: tuple[float, float], draw: _Number) -> _Number:
    """Map a number in [0, 1) to the range between two limits."""
    return limits[0] + (limits[1] - limits[0]) * draw
