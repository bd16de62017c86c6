"""TIFF files that Pillow reads in another way than others, or not at all, and pictures that nobody reads."""

import struct
import zlib

import numpy as np

HEIGHT, WIDTH = 20, 30


def tiff(values, order="<", photometric=None, compression=1, planar=1, bits=None, orientation=1):
    """A TIFF with one strip (one for each band if `planar` is 2), by hand since Pillow cannot write most of them."""
    values = np.asarray(values)
    bands = 1 if values.ndim == 2 else values.shape[2]
    planes = [values] if planar == 1 else [values[:, :, band] for band in range(bands)]
    parts = [plane.astype(values.dtype.newbyteorder(order)).tobytes() for plane in planes]
    if bits == 12:
        halves = values.astype(np.uint16).reshape(-1, 2)
        parts = [np.stack([halves[:, 0] >> 4, (halves[:, 0] & 15) << 4 | halves[:, 1] >> 8, halves[:, 1] & 255], 1)]
        parts = [parts[0].astype(np.uint8).tobytes()]
    if compression == 8:
        parts = [zlib.compress(part) for part in parts]
    starts = np.cumsum([8, *map(len, parts)]).tolist()
    photometric = photometric if photometric is not None else 2 if bands == 3 else 1
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = {256: values.shape[1], 257: values.shape[0], 258: [bits or 8 * values.dtype.itemsize] * bands}
    tags |= {259: compression, 262: photometric, 273: starts[:-1], 274: orientation, 277: bands}
    tags |= {278: values.shape[0], 279: [len(part) for part in parts], 284: planar}
    tags |= {339: [kind] * bands}
    entries, tail, place = b"", b"", starts[-1] + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        numbers = value if isinstance(value, list) else [value]
        letter, type_ = ("I", 4) if tag in (256, 257, 273, 278, 279) else ("H", 3)
        data = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        entries += struct.pack(f"{order}HHI", tag, type_, len(numbers))
        entries += data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(f"{order}I", place + len(tail))
        tail += data if len(data) > 4 else b""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, starts[-1])
    return head + b"".join(parts) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + tail


RAMP = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
COLOURS = np.stack([RAMP, RAMP[::-1], 1 - RAMP**2], axis=2)
# What Pillow reads in another way or not at all; whole range of each type, so that ImageMagick scales them alike.
DEEP = {
    "16-bit white is zero": tiff((RAMP * 65535).astype(np.uint16), photometric=0),
    "16-bit white is zero, big-endian": tiff((RAMP * 65535).astype(np.uint16), ">", photometric=0),
    "16-bit white is zero, deflate": tiff((RAMP * 65535).astype(np.uint16), photometric=0, compression=8),
    "12-bit": tiff((RAMP * 4095).astype(np.uint16), bits=12),
    "12 bits stored as 16": tiff((RAMP * 4095).astype(np.uint16)),
    "unsigned 32-bit": tiff((RAMP * (2**32 - 1)).astype(np.uint32)),
    "unsigned 32-bit, big-endian": tiff((RAMP * (2**32 - 1)).astype(np.uint32), ">"),
    "unsigned 32-bit, deflate": tiff((RAMP * (2**32 - 1)).astype(np.uint32), compression=8),
    "64-bit float": tiff(RAMP),
    "64-bit float, big-endian, deflate": tiff(RAMP, ">", compression=8),
    "64-bit float white is zero": tiff(RAMP, photometric=0),
    "32-bit float white is zero": tiff(RAMP.astype(np.float32), photometric=0),
    "float colour": tiff(COLOURS.astype(np.float32)),
    "float colour by planes": tiff(COLOURS.astype(np.float32), planar=2),
    "64-bit float colour, big-endian": tiff(COLOURS, ">"),
    "unsigned 32-bit colour": tiff((COLOURS * (2**32 - 1)).astype(np.uint32)),
}
ODD = {
    "16-bit float": tiff(RAMP.astype(np.float16)),
    "float grey levels": tiff(RAMP * 200),
    "float of its own range": tiff(RAMP * 3 - 1),
    "small unsigned 32-bit": tiff((RAMP * 255).astype(np.uint32)),
    "unsigned 32-bit white is zero": tiff((RAMP * (2**32 - 1)).astype(np.uint32), photometric=0),
    "rotated 64-bit float": tiff(RAMP, orientation=6),
    "rotated 16-bit": tiff((RAMP * 65535).astype(np.uint16), orientation=6),
}
UNUSABLE = {
    "five bands": [tiff(np.zeros((4, 4, 5), np.uint8)), tiff(np.zeros((4, 4, 5)), planar=2)],
    "four bands": [tiff(np.zeros((4, 4, 4), np.float32))],
    "two bands": [tiff(np.zeros((4, 4, 2), np.float32))],
    "many bands": [tiff(np.zeros((4, 4, 13), np.uint16))],
    "format not supported: 64-bit float TIFF": [tiff(np.zeros((4, 4)), compression=5)],
    "unsupported colours": [tiff(np.zeros((4, 4)), photometric=3)],
    "truncated": [tiff(np.zeros((4, 4)))[:8] + tiff(np.zeros((4, 4)))[8:].replace(b"\x80\0\0\0", b"\x08\0\0\0")],
    "format not supported: .heic": [b"\0\0\0\x18ftypheic" + bytes(40)],
    "format not supported: .jxl": [b"\xff\x0a" + bytes(40), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40)],
    "colour PFM": [b"PF\n1 1\n-1\n" + bytes(12)],
}
