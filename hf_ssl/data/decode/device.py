"""JPEG files to pictures on the device that trains, many at once; what it cannot decode, the CPU decodes."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from hf_ssl.data.decode.pictures import Jpeg, Picture, SkippedImageError, decode
from hf_ssl.errors import UserError, first_line

_GROUP_BYTES = 2**28  # of pictures that are decoded at once: some hundred usual photos
_FLIPPED = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}  # sides, after rows and columns are swapped
_SWAPPED = (5, 6, 7, 8)

_logger = logging.getLogger(__name__)


class DeviceDecoder:
    """Decodes JPEGs on a device, by nvJPEG on a GPU and by libjpeg on the CPU.

    Args:
        device: Where the pictures will be.

    Raises:
        UserError: If torchvision has no decoder for the device.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._told = False  # that the CPU helps
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        try:
            self._decode = _decoder()
            self._files_to_pictures([_sample()])
        except (ImportError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"`decode_on` gpu needs torchvision's JPEG decoder for `{device}`, which fails here: "
                f"{first_line(error)}. Install a torchvision with `torchvision.io.decode_jpeg` that is built for the "
                "same CUDA as torch (`pip install torchvision`), or set `decode_on` to cpu."
            ) from error

    def __call__(self, found: Iterable[Jpeg | Picture | SkippedImageError]) -> Iterator[Tensor | SkippedImageError]:
        """Decode what `pictures.undecoded` has found.

        Args:
            found: Files, and pictures that are decoded already.

        Yields:
            For each the upright picture, (height, width, 3), uint8, on the device, or why there is none.
        """
        group, num_bytes = [], 0
        for one in found:
            group.append(one)
            num_bytes += 3 * one.num_pixels if isinstance(one, Jpeg) else getattr(one, "nbytes", 0)
            if num_bytes >= _GROUP_BYTES:
                yield from self._decoded(group)
                group, num_bytes = [], 0
        yield from self._decoded(group)

    def _decoded(self, group: list[Any]) -> Iterator[Tensor | SkippedImageError]:
        pictures = iter(self._of_jpegs([one for one in group if isinstance(one, Jpeg)]))
        for one in group:
            if isinstance(one, Jpeg):
                yield next(pictures)
            else:
                yield one if isinstance(one, SkippedImageError) else self._sent(one)

    def _of_jpegs(self, jpegs: list[Jpeg]) -> list[Tensor | SkippedImageError]:
        if not jpegs:
            return []
        try:
            pictures = self._files_to_pictures([jpeg.data for jpeg in jpegs])
            return [_upright(picture, jpeg.orientation) for picture, jpeg in zip(pictures, jpegs, strict=True)]
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except RuntimeError as error:  # one file is enough, and nobody says which; too little memory may be one, too
            if len(jpegs) == 1:
                return [self._by_cpu(jpegs[0], error)]
            return [self._of_jpegs([jpeg])[0] for jpeg in jpegs]

    def _by_cpu(self, jpeg: Jpeg, error: RuntimeError) -> Tensor | SkippedImageError:
        try:
            picture = decode(jpeg.data)
        except SkippedImageError as skipped:
            return skipped
        if not self._told:
            self._told = True
            _logger.warning("The CPU decodes the JPEGs that `%s` cannot, such as: %s", self._device, first_line(error))
        return self._sent(picture)

    def _files_to_pictures(self, files: list[bytes]) -> list[Tensor]:
        """Pictures as they are stored, (height, width, 3)."""
        tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        with torch.cuda.stream(self._stream):  # does nothing without one
            pictures = self._decode(tensors, self._device)
        if self._stream is not None:
            # torchvision writes without waiting for what this stream still has to do, and memory that this stream has
            # freed may be in use until then. So the pictures have a stream of their own, whose memory is free once
            # this one has read them.
            reading = torch.cuda.current_stream(self._device)
            reading.wait_stream(self._stream)
            for picture in pictures:
                picture.record_stream(reading)
        return [picture.permute(1, 2, 0) for picture in pictures]

    def _sent(self, picture: Picture) -> Tensor:
        return torch.tensor(picture).to(self._device)


def _decoder() -> Callable[[list[Tensor], torch.device], list[Tensor]]:
    # Here, since torchvision (0.29) has announced that it will remove it: only who asks for it needs it.
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode_all(files: list[Tensor], device: torch.device) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of that, at each call
            return decode_jpeg(files, ImageReadMode.RGB, device)  # pyright: ignore[reportReturnType]

    return decode_all


def _sample() -> bytes:
    return cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes()


def _upright(picture: Tensor, orientation: int) -> Tensor:
    if orientation in _SWAPPED:
        picture = picture.transpose(0, 1)
    return picture.flip(_FLIPPED[orientation]) if orientation in _FLIPPED else picture
