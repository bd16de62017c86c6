"""Files that are damaged at random: what tests of decoder and openers feed them."""

import io

import numpy as np
from deep_tiffs import tiff
from hypothesis import strategies as st
from PIL import Image

_KINDS = ("set", "flip", "cut", "insert", "repeat", "end", "number")

edits = st.lists(
    st.tuples(
        st.sampled_from(_KINDS),
        st.one_of(st.integers(0, 120), st.integers(0, 2**16)),
        st.integers(0, 255),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=6,
)
"""What happens to a file: kind, place, value and length of each change."""


def mutated(content: bytes, changes: list[tuple[str, int, int, int]]) -> bytes:
    """The content after some `edits`."""
    data = bytearray(content)
    for kind, place, value, length in changes:
        if not data:
            break
        at = place % len(data)
        if kind == "set":
            data[at] = value
        elif kind == "flip":
            data[at] ^= 1 << value % 8
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "insert":
            data[at:at] = bytes([value]) * length
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        elif kind == "end":
            del data[at:]
        else:  # a large number, such as a size or an offset
            data[at : at + 4] = (value << 24 | length).to_bytes(4, "little" if length % 2 else "big")
    return bytes(data)


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pictures() -> dict[str, bytes]:
    """A small file of each kind, by name."""
    values = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    rgba = Image.fromarray(values)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    deep = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [rgb, rgb.rotate(90)]
    return {
        "jpeg": _saved(rgb, "JPEG"),
        "jpeg-progressive": _saved(rgb, "JPEG", progressive=True),
        "jpeg-exif": _saved(rgb, "JPEG", exif=turned),
        "jpeg-cmyk": _saved(rgb.convert("CMYK"), "JPEG"),
        "jpeg-grey": _saved(grey, "JPEG"),
        "png": _saved(rgb, "PNG"),
        "png-alpha": _saved(rgba, "PNG"),
        "png-palette": _saved(rgb.quantize(16), "PNG", transparency=3),
        "png-deep": _saved(deep, "PNG"),
        "tiff": _saved(rgb, "TIFF"),
        "tiff-lzw": _saved(rgb, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": _saved(grey, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-jpeg": _saved(rgb, "TIFF", compression="jpeg"),
        "tiff-float": _saved(Image.fromarray(values[..., 0].astype(np.float32)), "TIFF"),
        "tiff-deep": _saved(deep, "TIFF"),
        "tiff-bilevel": _saved(grey.convert("1"), "TIFF", compression="group4"),
        "tiff-64": tiff(values[..., 0].astype(np.uint64)),
        "tiff-bands": tiff(np.concatenate([values, values[..., :1]], axis=2)),
        "webp": _saved(rgb, "WEBP"),
        "webp-lossless": _saved(rgba, "WEBP", lossless=True),
        "webp-frames": _saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "gif": _saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "bmp": _saved(rgb, "BMP"),
    }
