"""An encoder as a Hugging Face Inference Endpoint: images in, features out.

The endpoint finds `EndpointHandler` in a repository's `handler.py` and answers an exception with status 400 and its
text. This file imports nothing of hf_ssl because it is published beside the weights. It decodes as hf_ssl does in
training, where Pillow's own conversion would lay transparent pictures on black and turn 16-bit grey into white.
"""
# pyright: basic
# (timm's types are incomplete)

import base64
import binascii
import contextlib
import importlib.util
import io
import re
import sys
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

MAX_IMAGES = 64
"""Images of one request."""

MAX_BYTES = 20 * 2**20
"""Size of one image file."""

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
_FORMATS = tuple(name for name in _NAMES.split() if name in Image.OPEN)  # a build of Pillow may lack AVIF or JPEG 2000
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
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
_PARAMETERS = ("normalize", "batch_size")


class SkippedImageError(ValueError):
    """An image that cannot be used; the message says why in a few words."""


class EndpointHandler:
    """Features of images, those that `pipeline("image-feature-extraction", pool=True)` gives.

    Args:
        path: Folder of the published encoder.
    """

    def __init__(self, path: str = ""):
        folder = Path(path or ".").resolve()
        _register_own_architecture(folder / "resnet_cifar.py")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().to(self.device)
        self.transform: Any = create_transform(**resolve_model_data_config(self.model), is_training=False)

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
        images = data.get("inputs")
        if not isinstance(images, list):
            images = [images]
        if not 1 <= len(images) <= MAX_IMAGES:
            raise ValueError(f"`inputs` must hold 1 to {MAX_IMAGES} images, got {len(images)}. Send several requests.")
        normalize, batch_size = _parameters(data.get("parameters"))
        # One picture at a time: decoded, 64 large ones would not fit into memory.
        pixels = [self.transform(_picture(image, place)) for place, image in enumerate(images)]
        features = []
        with torch.inference_mode():
            for first in range(0, len(pixels), batch_size):
                batch = torch.stack(pixels[first : first + batch_size])
                features.append(self.model(batch.to(self.device)).float().cpu())
        answer = torch.cat(features)
        return (torch.nn.functional.normalize(answer, dim=1) if normalize else answer).tolist()


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
        raise ValueError(f"`parameters` must be an object such as {{}}, got {type(given).__name__}.")
    for name in given:
        if name not in _PARAMETERS:
            raise ValueError(f"There is no parameter `{name}`. Known: {', '.join(_PARAMETERS)}.")
    normalize, batch_size = given.get("normalize", False), given.get("batch_size", 32)
    if not isinstance(normalize, bool):
        raise ValueError(f"`normalize` must be true or false, got {normalize!r}.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= MAX_IMAGES:
        raise ValueError(f"`batch_size` must be an integer from 1 to {MAX_IMAGES}, got {batch_size!r}.")
    return normalize, batch_size


def _picture(image: Any, place: int) -> Image.Image:
    """One image of a request as upright RGB."""
    name = f"Image {place + 1} of `inputs`"
    if isinstance(image, Image.Image):
        return _upright_rgb(_small_enough(image, name))
    if isinstance(image, str):
        image = _from_base64(image, name)
    if not isinstance(image, bytes):
        raise ValueError(f"{name} must be an image file in base64, got {type(image).__name__}.")
    if len(image) > MAX_BYTES:
        raise ValueError(f"{name} must be at most {MAX_BYTES:,} bytes, got {len(image):,}. Send it smaller.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of corrupt EXIF, large pictures and the like
        try:
            opened = _small_enough(Image.open(io.BytesIO(image), formats=_FORMATS), name)
        except Image.DecompressionBombError:
            raise ValueError(f"{name} must have at most {MAX_PIXELS:,} pixels. Send it smaller.") from None
        except UnidentifiedImageError:
            if not image.startswith(_TIFF):
                known = ", ".join(_FORMATS)
                raise ValueError(f"{name} cannot be read: {_name_of_format(image)}. Known formats: {known}.") from None
            opened = None
        try:
            return _odd_tiff(image) if opened is None else _upright_rgb(opened)
        except SkippedImageError as error:
            raise ValueError(f"{name} cannot be used: {error}. Send it in another format.") from None
        # Pillow's decoders raise anything on damaged data; the cause is the request in any case.
        except Exception as error:
            raise ValueError(f"{name} is damaged: {error}. Send the whole file.") from None


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


def _small_enough(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{name} must have at most {MAX_PIXELS:,} pixels, got {image.width:,} x {image.height:,}. Send it smaller."
        )
    return image


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Apply EXIF rotation, lay alpha on white, and scale grey of more than 8 bits to 8, as hf_ssl's `decode`."""
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
        picture = image.convert("RGBA")
        image = Image.new("RGBA", picture.size, "white")
        image.alpha_composite(picture)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # unreadable EXIF beside a good picture: it stays as it is stored
        return 1


# What follows is word for word as in hf_ssl/data/decode/pictures.py; a test compares.


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


def _odd_tiff(data: bytes) -> Image.Image:
    """A TIFF of a kind that Pillow does not open: 64-bit samples, colour of more than 16 bits, several bands."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2] == 43 else data[:8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    width, height, bands, photometric = tags[256], tags[257], tags.get(277, 1), tags.get(262)
    bits, kind = tags.get(258, (1,))[0], {1: "u", 2: "i", 3: "f"}.get(tags.get(339, (1,))[0], "")
    names = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    if not all(isinstance(number, int) for number in (width, height, bands, bits)) or bits not in range(1, 65):
        raise SkippedImageError("damaged")
    if width * height * bands > MAX_PIXELS:
        raise SkippedImageError("too large")
    if bands != 1 and (bands, photometric) != (3, 2):
        raise SkippedImageError(f"{names[bands] if bands < len(names) else bands} bands")
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
        return "damaged" if "HEIF" in _FORMATS else "format not supported: .heic"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return "damaged" if "JXL" in _FORMATS else "format not supported: .jxl"
    if data[:3] in (b"PF\n", b"PF\r"):
        return "colour PFM"
    return "not an image"
