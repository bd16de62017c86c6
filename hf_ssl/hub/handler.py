"""An encoder as a Hugging Face Inference Endpoint: images in, features out.

The endpoint finds `EndpointHandler` in a repository's `handler.py` and answers an exception with status 400 and its
text. It decodes as hf_ssl does in training, where Pillow's own conversion to RGB would uncover what is transparent and
turn 16-bit grey into white. The decoder is published beside it, and nothing else of hf_ssl is needed.
"""
# pyright: basic
# (timm's types are incomplete)

import base64
import binascii
import contextlib
import importlib.util
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from hf_ssl.data.decode.pillow import (
    FORMATS,
    MAX_PIXELS,
    SkippedImageError,
    decode_by_pillow,
    size_by_pillow,
    upright_rgb,
)

MAX_IMAGES = 64
"""Images of one request."""

MAX_BYTES = 20 * 2**20
"""Size of one image file."""

MAX_REQUEST_PIXELS = 100_000_000
"""Pixels of all images of one request together, which a CPU core decodes in some seconds."""

MAX_REQUEST_PIXELS_VARIABLE = "HF_SSL_MAX_REQUEST_PIXELS"
"""Environment variable that gives another number."""

_CURES = {
    "too large": f"Send it with at most {MAX_PIXELS:,} pixels.",
    "truncated": "Send the whole file.",
    "damaged": "Send the whole file.",
}
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
_PARAMETERS = ("normalize", "batch_size")


class EndpointHandler:
    """Features of images, those that `pipeline("image-feature-extraction", pool=True)` gives for opaque 8-bit ones.

    Args:
        path: Folder of the published encoder.

    Raises:
        ValueError: If `HF_SSL_MAX_REQUEST_PIXELS` is set to something else than a positive integer.
    """

    def __init__(self, path: str = ""):
        folder = Path(path or ".").resolve()
        _register_own_architecture(folder / "resnet_cifar.py")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().to(self.device)
        config: Any = resolve_model_data_config(self.model)
        self.transform: Any = create_transform(**config, is_training=False)
        self._resized_side = math.ceil(max(config["input_size"][1:]) / config["crop_pct"])
        self._max_pixels = _max_request_pixels()

    def __call__(self, data: Mapping[str, Any]) -> list[list[float]]:
        """Answer one request.

        Args:
            data: `inputs` is an image or a list of at most `MAX_IMAGES`, each in base64, perhaps as a data URL, or,
                where the endpoint has read the file already, its bytes or a Pillow image. `parameters` may hold
                `normalize` (false: features as they are; true: of length 1) and `batch_size` (images in a forward
                pass, 32).

        Returns:
            The features, (images, dim), also of a single image.

        Raises:
            ValueError: If the request is not of this form, an image cannot be read, or there is too much of it.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f'The request must be an object such as {{"inputs": "..."}}, got {_kind(data)}.')
        images = data.get("inputs")
        if images is None:
            raise ValueError(
                "The request has no `inputs`. Give an image file in base64 or a list of them as `inputs`."
            )
        if not isinstance(images, list):
            images = [images]
        if not 1 <= len(images) <= MAX_IMAGES:
            raise ValueError(f"`inputs` must hold 1 to {MAX_IMAGES} images, got {len(images)}. Send several requests.")
        normalize, batch_size = _parameters(data.get("parameters"))
        names = [f"Image {place + 1} of `inputs`" for place in range(len(images))]
        files = [_file(image, name) for image, name in zip(images, names, strict=True)]
        self._check_pixels(files, names)
        # One picture at a time: decoded, 64 large ones would not fit into memory.
        pixels = [self.transform(_picture(file, name)) for file, name in zip(files, names, strict=True)]
        features = []
        with torch.inference_mode():
            for first in range(0, len(pixels), batch_size):
                batch = torch.stack(pixels[first : first + batch_size])
                features.append(self.model(batch.to(self.device)).float().cpu())
        answer = torch.cat(features)
        return (torch.nn.functional.normalize(answer, dim=1) if normalize else answer).tolist()

    def _check_pixels(self, files: list[bytes | Image.Image], names: list[str]) -> None:
        """Refuse a request whose images have too many pixels together, by what their headers say."""
        total = 0
        for number, (file, name) in enumerate(zip(files, names, strict=True), start=1):
            with _refusing(name):
                width, height = file.size if isinstance(file, Image.Image) else size_by_pillow(file)
                if width * height > MAX_PIXELS:
                    raise SkippedImageError("too large")
                if width * height < 1:
                    raise SkippedImageError("damaged")
            # A picture that is long and thin is small as a file, and huge once its short side has been enlarged.
            resized = self._resized_side**2 * max(width, height) // max(1, min(width, height))
            total += max(width * height, resized)
            if total > self._max_pixels:
                raise ValueError(
                    f"The images of a request must have at most {self._max_pixels:,} pixels together, before and "
                    f"after their shorter sides are resized to {self._resized_side}, got {total:,} with image "
                    f"{number} of {len(files)} ({width:,} x {height:,}). Send several requests or smaller images, "
                    f"or raise `{MAX_REQUEST_PIXELS_VARIABLE}` in the environment of the endpoint."
                )


def _register_own_architecture(model_code: Path) -> None:
    """Run the model code of an encoder that timm does not know; it registers itself with timm."""
    if model_code.is_file() and model_code.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(model_code.stem, model_code)
        assert spec is not None and spec.loader is not None
        module = sys.modules[model_code.stem] = importlib.util.module_from_spec(spec)  # where timm looks for it
        spec.loader.exec_module(module)


def _parameters(given: Any) -> tuple[bool, int]:
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ValueError(f"`parameters` must be an object such as {{}}, got {_kind(given)}.")
    for name in given:
        if name not in _PARAMETERS:
            raise ValueError(f"There is no parameter `{name}`. Known: {', '.join(_PARAMETERS)}.")
    normalize, batch_size = given.get("normalize", False), given.get("batch_size", 32)
    if not isinstance(normalize, bool):
        raise ValueError(f"`normalize` must be true or false, got {normalize!r}.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= MAX_IMAGES:
        raise ValueError(f"`batch_size` must be an integer from 1 to {MAX_IMAGES}, got {batch_size!r}.")
    return normalize, batch_size


def _max_request_pixels() -> int:
    given = os.environ.get(MAX_REQUEST_PIXELS_VARIABLE, str(MAX_REQUEST_PIXELS))
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(
            f"`{MAX_REQUEST_PIXELS_VARIABLE}` must be a positive integer, got {given!r}. Correct or unset it."
        )
    return int(given)


def _kind(value: Any) -> str:
    """What a value is in JSON."""
    return "null" if value is None else type(value).__name__


def _file(image: Any, name: str) -> bytes | Image.Image:
    """One image of a request, not yet decoded where it was not."""
    if isinstance(image, str):
        image = _from_base64(image, name)
    if not isinstance(image, bytes | Image.Image):
        raise ValueError(f"{name} must be an image file in base64, got {_kind(image)}.")
    if isinstance(image, bytes) and len(image) > MAX_BYTES:
        raise ValueError(f"{name} must be at most {MAX_BYTES:,} bytes, got {len(image):,}. Send it smaller.")
    return image


def _picture(file: bytes | Image.Image, name: str) -> Image.Image:
    """One image of a request as upright RGB."""
    with _refusing(name):
        return decode_by_pillow(file) if isinstance(file, bytes) else upright_rgb(file)


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Say which image of a request cannot be used, and what to do."""
    try:
        yield
    except SkippedImageError as error:
        cure = _CURES.get(error.reason, f"Send RGB or grey in one of these formats: {', '.join(FORMATS)}.")
        raise ValueError(f"{name} cannot be used: {error.reason}. {cure}") from None


def _from_base64(text: str, name: str) -> bytes:
    text = _DATA_URL.sub("", text, count=1) if text.startswith("data:") else text
    if len(text) > 4 * MAX_BYTES // 3 + 1024:
        raise ValueError(f"{name} must be at most {MAX_BYTES:,} bytes, got about {3 * len(text) // 4:,}.")
    if "://" in text[:100]:
        raise ValueError(f"{name} is a URL, and this endpoint fetches nothing. Send the image file in base64.")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name} is text, but no base64. Send the image file in base64, not its path.") from None
