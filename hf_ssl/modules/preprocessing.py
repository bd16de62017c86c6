"""How an image becomes the input of a published encoder; the one definition for evaluation, export and model card."""

from collections.abc import Sequence
from typing import Any


def preprocessing(image_size: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Evaluation preprocessing as timm's data config: resize, centre crop, normalise.

    `timm.data.create_transform(**preprocessing(...))` and the image processor that transformers makes from a published
    `config.json` both follow it. Images of 128 pixels and more are resized to `image_size / 0.875` and cropped, as in
    the ImageNet protocols of the papers; smaller ones are used whole, as in their CIFAR protocols.

    Args:
        image_size: Height and width of the encoder's input, in pixels.
        mean: Mean of each channel of images in [0, 1], 3 numbers.
        std: Standard deviation of each channel, 3 positive numbers.

    Returns:
        The keys `input_size`, `interpolation`, `crop_pct`, `crop_mode`, `mean` and `std`.
    """
    return {
        "input_size": (3, image_size, image_size),
        "interpolation": "bicubic",
        "crop_pct": 1.0 if image_size < 128 else 0.875,
        "crop_mode": "center",
        "mean": tuple(mean),
        "std": tuple(std),
    }
