"""Record to RGB picture, or a named reason why not.

Real data sets hold truncated files, text named `.jpg`, 16-bit scans and photos that lie on their side. Every kind is
either converted knowingly or refused with a reason that can be counted; none stops a run or passes as noise.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hf_ssl.data.decode.image_bytes import bytes_of
from hf_ssl.data.decode.pillow import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    SkippedImageError,
    decode_by_pillow,
    orientation_by_pillow,
)
from hf_ssl.data.decode.unavailable import DATA_TIMEOUT

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "Jpeg", "SkippedImageError", "decode", "decoded", "in_groups", "undecoded"]

Picture = NDArray[np.uint8]  # (height, width, 3)

_GROUP_BYTES = 2**26  # 64 usual photos, but few of those that would fill the memory


@dataclass(frozen=True)
class Jpeg:
    """The file of a JPEG that every decoder reads alike.

    Args:
        data: The file.
        num_pixels: By its header.
        orientation: By its EXIF, from 1 to 8; 1 where the picture is upright.
    """

    data: bytes
    num_pixels: int
    orientation: int = 1


def decode(record_image: Any, timeout: float = DATA_TIMEOUT) -> NDArray[np.uint8]:
    """Decode one image of a record to upright RGB.

    Alpha is laid on white. EXIF rotation is applied, and an animation gives its first frame. Grey becomes three equal
    channels. More than 8 bits become 8 by these rules, over all channels of a picture together:

    - Unsigned integers of up to 16 bits: from the full range of the bits that the file declares. What has 12 bits and
      is stored and declared as 16 stays dark, as in ImageMagick.
    - Other integers: as 8 or 16 bits, whichever first holds all values. Else unsigned ones with a value of 2^24 or
      more from their full range, all others from the picture's own lowest to highest value.
    - Floats: as [0, 1] or [0, 255], whichever first holds all values, else from lowest to highest value.

    Where a TIFF of integers says that white is zero, it is. Pillow is the reference; plain JPEGs take OpenCV, which
    gives the same pixels in a quarter of the time.

    Args:
        record_image: What `datasets.Image(decode=False)` gives (`{"bytes": ..., "path": ...}`), bytes, a path, an
            fsspec address, or None.
        timeout: Seconds for which an address is tried again that cannot be read.

    Returns:
        (height, width, 3).

    Raises:
        SkippedImageError: If there is no usable image.
        DataUnavailableError: If an address could not be read in time.
    """
    data = bytes_of(record_image, timeout)
    frame = _frame_of(data)
    if frame is not None and not frame.has_exif:
        if frame.num_pixels > MAX_PIXELS:
            raise SkippedImageError("too large")
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is not None:
            return image  # pyright: ignore[reportReturnType]
    return np.asarray(decode_by_pillow(data))


def decoded(record_images: Iterable[Any], timeout: float = DATA_TIMEOUT) -> Iterator[Picture | SkippedImageError]:
    """The picture of each image, or why there is none; see `decode`."""
    for record_image in record_images:
        try:
            yield decode(record_image, timeout)
        except SkippedImageError as error:
            yield error


def undecoded(record_images: Iterable[Any], timeout: float) -> Iterator[Jpeg | Picture | SkippedImageError]:
    """Like `decoded`, but what a device can decode stays a file: a JPEG of usual colours."""
    for record_image in record_images:
        try:
            data = bytes_of(record_image, timeout)
            frame = _frame_of(data)
            if frame is None or not frame.has_usual_colours or frame.num_pixels > MAX_PIXELS:
                yield decode(data, timeout)
            else:
                yield Jpeg(data, frame.num_pixels, orientation_by_pillow(data) if frame.has_exif else 1)
        except SkippedImageError as error:
            yield error


def in_groups(pictures: Iterable[Any], skip: Callable[[int, str], None]) -> Iterator[tuple[list[int], list[Any]]]:
    """Take usable pictures together, at once only as many as fit into some memory.

    Args:
        pictures: From `decoded`, or anything else that may come in the place of a picture.
        skip: Called with place and reason of each that there is not.

    Yields:
        Places of the next usable pictures, and these; at least one.
    """
    places, group, num_bytes = [], [], 0
    for place, picture in enumerate(pictures):
        if isinstance(picture, SkippedImageError):
            skip(place, picture.reason)
            continue
        size = getattr(picture, "nbytes", 0)
        if group and num_bytes + size > _GROUP_BYTES:
            yield places, group
            places, group, num_bytes = [], [], 0
        places.append(place)
        group.append(picture)
        num_bytes += size
    if group:
        yield places, group


@dataclass(frozen=True)
class _Frame:
    """What the header of a JPEG says; usual colours are YCbCr in three channels, of which no decoder is in doubt."""

    num_pixels: int
    has_exif: bool
    has_usual_colours: bool


def _frame_of(data: bytes) -> _Frame | None:
    """The header of a complete 8-bit JPEG of one or three channels.

    None for everything else: for CMYK OpenCV has rules of its own (as for EXIF), and some of its versions fill what is
    missing of a truncated file with grey.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return None
    position, has_exif, is_ycbcr = 2, False, True
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in (0xC0, 0xC1, 0xC2):  # start of frame
            precision, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            if precision != 8 or channels not in (1, 3) or height == 0 or width == 0:
                return None
            names = data[position + 10 : position + 10 + 3 * channels : 3]
            return _Frame(height * width, has_exif, channels == 3 and is_ycbcr and names != b"RGB")
        if marker == 0xDA or not 0xC4 <= marker <= 0xFE:  # not where it should be
            return None
        if marker == 0xE1:
            has_exif = True
        elif marker == 0xEE and data[position + 4 : position + 9] == b"Adobe":
            is_ycbcr = data[position + 15 : position + 16] == b"\x01"
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None
