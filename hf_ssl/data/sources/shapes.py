"""The embedded data set: grey pictures of ten shapes, drawn from an index, with a label for every factor.

It needs no download and costs a second to draw, so that a first run, the documentation and the tests work anywhere.
Every factor that varies is labelled: after pretraining one can see which factors the representation kept (the shape)
and which the augmentation removed (place, brightness).
"""

from functools import cache

import cv2
import datasets
import numpy as np
from numpy.typing import NDArray

from hf_ssl.errors import UserError

IMAGE_SIZE = 48  # pixels; larger than the views of the quickstart, so that random crops lose no sharpness
NUM_IMAGES = {"train": 5000, "test": 2000}

FACTORS: dict[str, list[str]] = {
    "shape": ["disk", "ring", "half_disk", "crescent", "square", "bar", "triangle", "star", "cross", "arrow"],
    "column": ["left", "centre", "right"],
    "row": ["top", "middle", "bottom"],
    "size": ["small", "medium", "large"],
    "rotation": ["anticlockwise", "upright", "clockwise"],
    "polarity": ["dark_on_light", "light_on_dark"],
    "texture": ["plain", "gradient", "stripes", "dots"],
    "noise": ["low", "medium", "high"],
}
"""Factors of a picture and the names of their classes. Rotation shows in no disk and no ring."""

_SUBPIXEL_BITS = 4  # cv2 takes coordinates as integers with this many fractional bits
_LARGEST_ANGLE = np.pi / 4  # to either side
_RADII = {"small": (9.0, 11.0), "medium": (11.0, 13.5), "large": (13.5, 16.5)}  # pixels
_NOISE = {"low": (0.0, 0.015), "medium": (0.015, 0.03), "high": (0.03, 0.05)}  # standard deviation, fraction of white


@cache
def shapes(split: str) -> datasets.Dataset:
    """Draw one split; the same split is always the same, byte for byte.

    Args:
        split: `train` (5,000 pictures) or `test` (2,000 others).

    Returns:
        Columns `image` (PNG, 48 x 48 pixels, grey) and one class label for each of `FACTORS`.

    Raises:
        UserError: If `split` is another.
    """
    if split not in NUM_IMAGES:
        raise UserError(f"`shapes` has no split `{split}`. It has: {', '.join(NUM_IMAGES)}.")
    rows: dict[str, list] = {"image": [], **{factor: [] for factor in FACTORS}}
    for index in range(NUM_IMAGES[split]):
        picture, labels = draw(split, index)
        _, png = cv2.imencode(".png", picture)
        rows["image"].append({"bytes": png.tobytes(), "path": None})
        for factor, label in labels.items():
            rows[factor].append(label)
    labels = {factor: datasets.ClassLabel(names=names) for factor, names in FACTORS.items()}
    return datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image(), **labels}))


def draw(split: str, index: int) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Draw one picture.

    Args:
        split: Name of a split; different splits draw different pictures.
        index: Number of the picture, at least 0.

    Returns:
        Grey levels, (48, 48), and the class of every factor.
    """
    generator = np.random.default_rng([*split.encode(), index])
    labels = {factor: int(generator.integers(len(names))) for factor, names in FACTORS.items()}
    named = {factor: FACTORS[factor][label] for factor, label in labels.items()}

    radius = generator.uniform(*_RADII[named["size"]])
    # Each third of the range of centres that keep the shape inside the picture, by one pixel.
    low, third = radius + 1, (IMAGE_SIZE - 2 * radius - 2) / 3
    centre = np.array(
        [low + (labels["column"] + generator.random()) * third, low + (labels["row"] + generator.random()) * third]
    )
    angle = _LARGEST_ANGLE * (2 * (labels["rotation"] + generator.random()) / 3 - 1)

    difference = generator.uniform(0.35, 0.7)
    darker = generator.uniform(0.05, 0.95 - difference)
    levels = (darker, darker + difference)
    inside, outside = levels if named["polarity"] == "dark_on_light" else levels[::-1]

    mask = _mask(named["shape"], centre, radius, angle)
    background = outside + _texture(named["texture"], generator)
    picture = mask * inside + (1 - mask) * background
    picture += generator.normal(scale=generator.uniform(*_NOISE[named["noise"]]), size=picture.shape)
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8), labels


def _mask(shape: str, centre: NDArray, radius: float, angle: float) -> NDArray:
    """Share of each pixel that the shape covers, in [0, 1]."""
    mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    if shape in ("disk", "ring", "crescent"):
        _disk(mask, centre, radius, 255)
        if shape == "ring":
            _disk(mask, centre, 0.55 * radius, 0)
        elif shape == "crescent":
            _disk(mask, centre + 0.6 * radius * np.array([np.cos(angle), np.sin(angle)]), 0.8 * radius, 0)
        return mask / 255.0
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = centre + radius * _outline(shape) @ rotation.T
    fixed_point = (corners * 2**_SUBPIXEL_BITS).round().astype(np.int32)
    cv2.fillPoly(mask, [fixed_point], 255, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)
    return mask / 255.0


def _disk(mask: NDArray, centre: NDArray, radius: float, value: int) -> None:
    scale = 2**_SUBPIXEL_BITS
    position = (round(centre[0] * scale), round(centre[1] * scale))
    cv2.circle(mask, position, round(radius * scale), value, -1, cv2.LINE_AA, _SUBPIXEL_BITS)


@cache
def _outline(shape: str) -> NDArray:
    """Corners of a polygon inside the unit circle, (corners, 2)."""
    if shape == "half_disk":
        angles = np.linspace(0, np.pi, 24)
        return np.stack([np.cos(angles), np.sin(angles) - 0.4], axis=1)
    if shape == "star":
        angles = np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
        return np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)
    corners = {
        "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
        "bar": [(-0.95, -0.28), (0.95, -0.28), (0.95, 0.28), (-0.95, 0.28)],
        "triangle": [(1.0, 0.0), (-0.5, 0.866), (-0.5, -0.866)],
        "cross": [
            *[(-0.95, -0.28), (-0.28, -0.28), (-0.28, -0.95), (0.28, -0.95), (0.28, -0.28), (0.95, -0.28)],
            *[(0.95, 0.28), (0.28, 0.28), (0.28, 0.95), (-0.28, 0.95), (-0.28, 0.28), (-0.95, 0.28)],
        ],
        "arrow": [(1.0, 0.0), (0.1, 0.85), (0.1, 0.3), (-0.95, 0.3), (-0.95, -0.3), (0.1, -0.3), (0.1, -0.85)],
    }
    return np.array(corners[shape])


def _texture(texture: str, generator: np.random.Generator) -> NDArray:
    """Variation of the background around its level, fraction of white."""
    angle, phase = generator.uniform(0, 2 * np.pi, size=2)
    amplitude = generator.uniform(0.03, 0.07)
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if texture == "plain":
        return np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    if texture == "gradient":
        return amplitude * 2 * (along - along.mean()) / IMAGE_SIZE
    wave = 2 * np.pi / generator.uniform(5, 9)
    if texture == "stripes":
        return amplitude * np.sin(wave * along + phase)
    return amplitude * np.sin(wave * along + phase) * np.sin(wave * across)
