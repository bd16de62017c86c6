"""Record to RGB picture, or a named reason why not.

Real data sets hold truncated files, text named `.jpg`, 16-bit scans and photos that lie on their side. Every kind is
either converted knowingly or refused with a reason that can be counted; none stops a run or passes as noise.
"""

import io
import struct
import warnings
import zlib
from typing import Any

import cv2
import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485
"""Pictures with more pixels are refused: the size above which Pillow suspects a decompression bomb."""

DAMAGED_ARCHIVE = "\0damaged archive"
"""Path of an image that a damaged archive has lost; no file has such a name."""

# Other formats that Pillow knows run external programs (EPS), or are no photos.
_NAMES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
Image.init()  # else Pillow registers some formats only once another has failed
_FORMATS = tuple(name for name in _NAMES if name in Image.OPEN)  # a build of Pillow may lack AVIF or JPEG 2000

# What Pillow's decoders raise on damaged data; anything else is a fault of the program and must stop it.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
)

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class SkippedImageError(ValueError):
    """An image that cannot be used.

    Args:
        reason: Why, in a few words, one of a small set: `null`, `empty`, `missing file`, `unreadable file`,
            `not an image`, `truncated`, `damaged`, `damaged archive`, `too large`.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def decode(record_image: Any) -> NDArray[np.uint8]:
    """Decode one image of a record to upright RGB.

    Alpha is laid on white. 16-bit grey is scaled from its full range. Float grey is taken as [0, 1] or [0, 255],
    32-bit grey as 8 or 16 bits, whichever first holds all values, else from the picture's own lowest to highest value.
    Grey becomes three equal channels. EXIF rotation is applied, and an animation gives its first frame. Pillow is the
    reference; plain JPEGs take OpenCV, which gives the same pixels in a quarter of the time.

    Args:
        record_image: What `datasets.Image(decode=False)` gives (`{"bytes": ..., "path": ...}`), bytes, a path, an
            fsspec address, or None.

    Returns:
        (height, width, 3).

    Raises:
        SkippedImageError: If there is no usable image.
    """
    data = _read(record_image)
    size = _plain_jpeg_size(data)
    if size is not None:
        if size[0] * size[1] > MAX_PIXELS:
            raise SkippedImageError("too large")
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is not None:
            return image  # pyright: ignore[reportReturnType]
    return _decode_by_pillow(data)


def _read(record_image: Any) -> bytes:
    if record_image is None:
        raise SkippedImageError("null")
    if isinstance(record_image, dict):
        data = record_image.get("bytes")
        if data is None:
            data = record_image.get("path")
    else:
        data = record_image
    if data is None:
        raise SkippedImageError("null")
    if data == DAMAGED_ARCHIVE:
        raise SkippedImageError("damaged archive")
    if not isinstance(data, bytes):
        data = _read_file(str(data))
    if not data:
        raise SkippedImageError("empty")
    return data


def _read_file(path: str) -> bytes:
    try:
        if "://" in path:
            with fsspec.open(path, "rb") as file:
                return file.read()  # pyright: ignore[reportAttributeAccessIssue]
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise SkippedImageError("missing file") from None
    except (PermissionError, IsADirectoryError, NotADirectoryError):
        raise SkippedImageError("unreadable file") from None


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a complete 8-bit JPEG of one or three channels without EXIF.

    None for everything else: for CMYK and EXIF OpenCV has rules of its own, and some of its versions fill what is
    missing of a truncated file with grey.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return None
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in (0xC0, 0xC1, 0xC2):  # start of frame
            precision, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            plain = precision == 8 and channels in (1, 3) and height > 0 and width > 0
            return (height, width) if plain else None
        if marker == 0xE1 or marker == 0xDA or not 0xC4 <= marker <= 0xFE:  # EXIF, or not where it should be
            return None
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _decode_by_pillow(data: bytes) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of corrupt EXIF, large pictures and the like, for each of a million files
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise SkippedImageError("too large")
            return _upright_rgb(image)
        except SkippedImageError:
            raise
        except Image.DecompressionBombError:
            raise SkippedImageError("too large") from None
        except UnidentifiedImageError:
            raise SkippedImageError("not an image") from None
        except _DECODER_ERRORS as error:
            raise SkippedImageError("truncated" if "truncated" in str(error).lower() else "damaged") from None


def _upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    image.load()
    orientation = _orientation(image)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode.startswith("I;16"):
        return _three_channels(np.asarray(image).astype(np.float64) / 257)
    if image.mode == "I":
        return _three_channels(_scaled(np.asarray(image), ranges=(255, 65535)))
    if image.mode == "F":
        return _three_channels(_scaled(np.asarray(image), ranges=(1, 255)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("RGBA")
        image = Image.new("RGBA", picture.size, "white")
        image.alpha_composite(picture)
    return np.asarray(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODER_ERRORS:  # unreadable EXIF beside a good picture: it stays as it is stored
        return 1


def _scaled(values: NDArray[Any], ranges: tuple[int, ...]) -> NDArray[np.float64]:
    """Grey values of no declared range, mapped to [0, 255] from the first range that holds them, or their own."""
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise SkippedImageError("damaged")
    low, high = values[finite].min(), values[finite].max()
    values = np.where(finite, values, low)
    for top in ranges:
        if low >= 0 and high <= top:
            return values * (255 / top)
    return (values - low) * (255 / max(high - low, np.finfo(np.float64).tiny))


def _three_channels(grey: NDArray[np.float64]) -> NDArray[np.uint8]:
    levels = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return np.repeat(levels[:, :, None], 3, axis=2)
