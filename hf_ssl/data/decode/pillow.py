"""The bytes of an image file to an upright RGB picture, by Pillow alone, or a reason why not.

This file is also published beside an encoder's weights, where hf_ssl is not installed: it imports nothing of hf_ssl.
"""

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

MAX_PIXELS = 89_478_485
"""Pictures with more pixels are refused: the size above which Pillow suspects a decompression bomb."""

# The formats of Pillow that hold a picture; of several pictures in a file the first one is taken (MPO is a kind of
# JPEG). Left out are EPS (runs Ghostscript), WMF (only on Windows), MPEG, HDF5, GRIB, BUFR and IPTC (Pillow gets no
# pixels from them), FITS (Pillow ignores its scale), Photo CD and GBR (a `.pcd` beside photos is a point cloud, a
# `.gbr` a circuit board), and IM, IMT, SPIDER and others that a text could be mistaken for. TGA has no signature, so
# it comes last.
_NAMES = (
    "JPEG PNG WEBP GIF BMP TIFF PPM AVIF JPEG2000 HEIF JXL ICO CUR ICNS DIB DDS PCX DCX PSD QOI SGI SUN MSP XBM XPM "
    "FLI BLP FTEX PIXAR TGA"
)


def _register_plugins() -> None:
    """Let Pillow open HEIC and JPEG XL, where the packages for that are installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif  # pyright: ignore[reportMissingImports]

        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401  # pyright: ignore[reportMissingImports]


Image.init()  # else Pillow registers some formats only once another has failed
_register_plugins()
FORMATS = tuple(name for name in _NAMES.split() if name in Image.OPEN)  # a build of Pillow may lack AVIF or JPEG 2000
"""Pillow's names of the formats that are decoded, in the order in which they are tried."""

_ENDINGS = Image.registered_extensions().items()
IMAGE_SUFFIXES = frozenset(ending for ending, name in _ENDINGS if name in (*FORMATS, "MPO"))
"""Endings of the file names that count as images, in lower case: all whose format can be decoded here."""

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

_TIFF = (b"II*\0", b"MM\0*", b"II+\0")
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
        reason: Why, in a few words, one of a small set: `null`, `empty`, `missing file`, `no permission`, `not a
            regular file`, `link loop`, `path too long`, `invalid path`, `read error`, `not an image`, `format not
            supported: .heic`, `five bands`, `colour PFM`, `unsupported colours`, `truncated`, `damaged`,
            `damaged archive`, `path outside the data set`, `no package for its address`, `too large`.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def decode_by_pillow(data: bytes) -> Image.Image:
    """Decode an image file to upright RGB, by the rules of `decode`.

    Args:
        data: The file.

    Raises:
        SkippedImageError: If it holds no usable image.
    """
    with _reasons():
        image = _opened(data)
        return _odd_tiff(data) if image is None else upright_rgb(image)


def size_by_pillow(data: bytes) -> tuple[int, int]:
    """Width and height of an image file as its header states them; no pixel is decoded.

    Args:
        data: The file.

    Raises:
        SkippedImageError: If the header is not that of an image that `decode_by_pillow` reads.
    """
    with _reasons():
        image = _opened(data)
        if image is not None:
            return image.size
        tags = _tags_of(data)
        return tags[256], tags[257]


def orientation_by_pillow(data: bytes) -> int:
    """How an image file that Pillow opens is to be turned: EXIF's number from 1 to 8, 1 where it stays as it is.

    Args:
        data: The file.

    Raises:
        SkippedImageError: If its header is not that of an image.
    """
    with _reasons():
        image = _opened(data)
        orientation = 1 if image is None else _orientation(image)
        return orientation if orientation in _UPRIGHT else 1


def _opened(data: bytes) -> Image.Image | None:
    """An image file that Pillow knows, not yet decoded; None for a TIFF that it does not open."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if not data.startswith(_TIFF):
            raise SkippedImageError(_name_of_format(data)) from None
        return None


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turn what Pillow raises on bad files into reasons, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of corrupt EXIF, large pictures and the like, for each of a million files
        try:
            yield
        except SkippedImageError:
            raise
        except Image.DecompressionBombError:
            raise SkippedImageError("too large") from None
        except _DECODER_ERRORS as error:
            raise SkippedImageError("truncated" if "truncated" in str(error).lower() else "damaged") from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """Apply EXIF rotation, lay alpha on white and scale grey of more than 8 bits to 8.

    Raises:
        SkippedImageError: If the picture is too large or its colours are of a kind that nobody converts alike.
    """
    if image.width * image.height > MAX_PIXELS:
        raise SkippedImageError("too large")
    image.load()
    orientation = _orientation(image)
    grey = _deep_grey(image)
    if grey is not None:
        image = Image.fromarray(grey)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode == "LAB":
        raise SkippedImageError("unsupported colours")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    picture = image.convert("RGB")
    picture.info = {}  # of the file, whose EXIF would let others turn the picture once more
    return picture


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODER_ERRORS:  # unreadable EXIF beside a good picture: it stays as it is stored
        return 1


def _levels(values: NDArray[Any], bits: int = 16) -> NDArray[np.uint8]:
    """Grey or colour of more than 8 bits, mapped to [0, 255]: the rules are those of `decode`."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "u" and size <= 2:
        levels = values.astype(np.float64) * (255 / (2 ** (bits if size == 2 else 8) - 1))
    else:
        finite = np.isfinite(values)
        if not finite.any():
            raise SkippedImageError("damaged")
        low, high = float(values[finite].min()), float(values[finite].max())
        ranges = [1, 255] if kind == "f" else [255, 65535]
        if kind == "u" and high >= 2**24:
            ranges.append(2 ** (8 * size) - 1)
        values = np.where(finite, values, low).astype(np.float64)
        top = next((top for top in ranges if low >= 0 and high <= top), None)
        if top is not None:
            levels = values * (255 / top)
        else:
            levels = (values - low) * (255 / max(high - low, np.finfo(np.float64).tiny))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _deep_grey(image: Image.Image) -> NDArray[np.uint8] | None:
    """A loaded picture of grey with more than 8 bits, or None if it is none."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return None
    tags = getattr(image, "tag_v2", {})  # of TIFF
    values, bits = np.asarray(image), tags.get(258, (16,))[0]
    if image.mode == "I" and image.format == "PPM":
        values = values.astype(np.uint16)  # Pillow has scaled it from its declared range
    elif image.mode == "I" and bits == 32 and tags.get(339, (1,))[0] == 1:
        values = values.view(np.uint32)  # Pillow takes it for signed
    levels = _levels(values, bits)
    white_is_zero = tags.get(262) == 0 and image.mode != "F"  # Pillow forgets it; of floats nobody heeds it
    return 255 - levels if white_is_zero else levels


def _tags_of(data: bytes) -> Any:
    """The tags of the first picture of a TIFF, by number."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2] == 43 else data[:8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    if not all(isinstance(tags[side], int) for side in (256, 257)):
        raise SkippedImageError("damaged")
    return tags


def _odd_tiff(data: bytes) -> Image.Image:
    """A TIFF of a kind that Pillow does not open: 64-bit samples, colour of more than 16 bits, several bands."""
    tags = _tags_of(data)
    width, height, bands, photometric = tags[256], tags[257], tags.get(277, 1), tags.get(262)
    bits, kind = tags.get(258, (1,))[0], {1: "u", 2: "i", 3: "f"}.get(tags.get(339, (1,))[0], "")
    names = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    if not all(isinstance(number, int) for number in (bands, bits)) or bits not in range(1, 65):
        raise SkippedImageError("damaged")
    if width * height * bands > MAX_PIXELS:
        raise SkippedImageError("too large")
    if bands != 1 and (bands, photometric) != (3, 2):
        raise SkippedImageError(f"{names[bands] if bands < len(names) else 'many'} bands")
    if photometric not in (0, 1, 2):
        raise SkippedImageError("unsupported colours")
    compression, planar = tags.get(259, 1), tags.get(284, 1) == 2 and bands > 1
    plain = compression in (1, 8, 32946) and tags.get(317, 1) == 1 and tags.get(266, 1) == 1 and 273 in tags
    if not plain or f"{kind}{bits}" not in ("u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64", "f16", "f32", "f64"):
        raise SkippedImageError(f"format not supported: {bits}-bit {'float ' if kind == 'f' else ''}TIFF")
    size, content = width * height * bands * bits // 8, bytearray()
    for start, length in zip(tags[273], tags[279], strict=True):
        part, missing = data[start : start + length], size - len(content)
        if missing > 0:  # else the same strip a thousand times would fill the memory
            content += part[:missing] if compression == 1 else zlib.decompressobj().decompress(part, missing)
    if len(content) < size:
        raise SkippedImageError("truncated")
    dtype = np.dtype(f"{'<' if data[:2] == b'II' else '>'}{kind}{bits // 8}")
    values = np.frombuffer(content, dtype, width * height * bands)
    values = values.reshape(bands, height, width) if planar else values.reshape(height, width, bands)
    levels = _levels(values.transpose(1, 2, 0) if planar else values)
    levels = 255 - levels if photometric == 0 and kind != "f" else levels
    levels = np.broadcast_to(levels, (height, width, 3))
    picture, orientation = Image.fromarray(np.ascontiguousarray(levels)), tags.get(_EXIF_ORIENTATION, 1)
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _name_of_format(data: bytes) -> str:
    """Why Pillow does not know what kind of file this is."""
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
        return "damaged" if "HEIF" in FORMATS else "format not supported: .heic"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return "damaged" if "JXL" in FORMATS else "format not supported: .jxl"
    if data[:3] in (b"PF\n", b"PF\r"):
        return "colour PFM"
    return "not an image"
