import errno
import io
import os
import re
import shutil
import socket
import struct
import subprocess
import tracemalloc
import warnings
import zlib

import cv2
import numpy as np
import pytest
from deep_tiffs import DEEP, HEIGHT, ODD, RAMP, UNUSABLE, WIDTH, tiff
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from hf_ssl.data.decode import image_bytes, pillow
from hf_ssl.data.decode.pictures import IMAGE_SUFFIXES, MAX_PIXELS, SkippedImageError, decode


def _photo(height=HEIGHT, width=WIDTH, seed=0):
    """Smooth picture, as photos are, so that lossy formats stay close."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _encoded(image, format_, **options):
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_lossless_formats_come_back_exactly(format_):
    np.testing.assert_array_equal(decode(_encoded(Image.fromarray(_photo()), format_)), _photo())


@pytest.mark.parametrize("format_", sorted({"DIB", "ICNS", "MPO", "PCX", "QOI", "SGI", "DDS"} & set(Image.SAVE)))
def test_other_formats_of_pillow_come_back(format_):
    picture = _photo(32, 32)
    image = Image.fromarray(picture)
    options = {"MPO": {"save_all": True, "append_images": [image], "quality": 95}}.get(format_, {})
    decoded = decode(_encoded(image, format_, **options))
    reference = np.asarray(image.resize(decoded.shape[1::-1]))
    assert np.abs(decoded.astype(int) - reference).mean() < (3 if format_ in ("MPO", "ICNS") else 0.01)


def test_a_large_icon_is_not_taken_for_another_format():
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)  # 65,536 bytes and more
    image = Image.fromarray(noise)
    np.testing.assert_array_equal(decode(_encoded(image, "ICO", sizes=[(150, 150)])), noise)


def test_the_endings_are_those_of_what_can_be_decoded():
    common = ".jpg .jpeg .png .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm .pfm .avif .jp2 .j2k .j2c .jpx .tga .ico"
    assert {*common.split(), ".mpo", ".dib", ".icns", ".psd", ".qoi", ".apng", ".jfif"} <= IMAGE_SUFFIXES
    assert not {".pdf", ".eps", ".mpg", ".h5", ".fits", ".wmf", ".pcd", ".svg", ".txt"} & IMAGE_SUFFIXES


@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "JPEG2000", "AVIF", "GIF"])
def test_lossy_formats_come_back_nearly(format_):
    decoded = decode(_encoded(Image.fromarray(_photo()), format_))
    assert decoded.shape == (HEIGHT, WIDTH, 3)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - _photo()).mean() < 12


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    grey=st.booleans(),
    noise=st.booleans(),
    restart=st.sampled_from([0, 1]),
    adobe=st.sampled_from([None, 0, 1]),
)
def test_jpegs_equal_pillow_bit_for_bit(height, width, quality, subsampling, progressive, grey, noise, restart, adobe):
    picture = _photo(height, width)
    if noise:
        picture = np.random.default_rng(1).integers(0, 256, picture.shape, dtype=np.uint8)
    image = Image.fromarray(picture).convert("L" if grey else "RGB")
    options = {"quality": quality, "progressive": progressive, "restart_marker_rows": restart}
    data = _encoded(image, "JPEG", **options, **({} if grey else {"subsampling": subsampling}))
    if adobe is not None:  # says whether the channels are RGB or YCbCr; in place of the JFIF segment
        segment = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([adobe])
        data = data[:2] + segment + data[4 + int.from_bytes(data[4:6], "big") :]
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data), reference)


def test_every_input_form_is_read(tmp_path):
    data = _encoded(Image.fromarray(_photo()), "PNG")
    path = tmp_path / "name with spaces.png"
    path.write_bytes(data)
    for record_image in (
        data,
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(path)},
        str(path),
        path.as_uri().replace("%20", " "),
    ):
        np.testing.assert_array_equal(decode(record_image), _photo())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(orientation, format_):
    image = Image.fromarray(_photo())
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encoded(image, format_, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert expected.shape[:2] == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))
    np.testing.assert_array_equal(decode(data), expected)


def test_unreadable_exif_does_not_cost_the_image():
    data = bytearray(_encoded(Image.fromarray(_photo()), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x63"))
    assert decode(bytes(data)).shape == (HEIGHT, WIDTH, 3)


def test_grey_becomes_three_equal_channels():
    grey = _photo()[:, :, 0]
    for image in (Image.fromarray(grey), Image.fromarray(grey >= 128)):
        decoded = decode(_encoded(image, "PNG"))
        np.testing.assert_array_equal(decoded, np.repeat(np.asarray(image.convert("L"))[:, :, None], 3, axis=2))


def test_16_bit_grey_is_scaled_from_its_full_range():
    grey = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    for format_ in ("PNG", "TIFF"):
        decoded = decode(_encoded(Image.fromarray(grey), format_))
        assert decoded.min() == 0
        assert decoded.max() == 255
        np.testing.assert_allclose(decoded[:, :, 1], grey / 65535 * 255, atol=0.51)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.5, 1.0]], [[0, 128, 255]]),  # a fraction of white
        ([[0.0, 100.4, 250.0]], [[0, 100, 250]]),  # grey levels
        ([[-10.0, 0.0, 10.0]], [[0, 128, 255]]),  # neither: its own range
        ([[np.nan, 1000.0, 3000.0]], [[0, 0, 255]]),
        ([[7e5, 7e5, 7e5]], [[0, 0, 0]]),
    ],
)
def test_float_grey_is_converted_by_its_range(values, expected):
    decoded = decode(_encoded(Image.fromarray(np.array(values, np.float32)), "TIFF"))
    np.testing.assert_array_equal(decoded[:, :, 2], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([[0, 100, 255]], [[0, 100, 255]]), ([[0, 257, 65535]], [[0, 1, 255]]), ([[-5, 0, 5]], [[0, 128, 255]])],
)
def test_32_bit_grey_is_converted_by_its_range(values, expected):
    decoded = decode(_encoded(Image.fromarray(np.array(values, np.int32)), "TIFF"))
    np.testing.assert_array_equal(decoded[:, :, 0], expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_on_white(mode):
    image = Image.new(mode, (2, 1), (0,) * (len(mode) - 1) + (0,))
    image.putpixel((1, 0), (0,) * (len(mode) - 1) + (255,))
    np.testing.assert_array_equal(decode(_encoded(image, "PNG"))[0], [[255, 255, 255], [0, 0, 0]])


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(_encoded(image, "PNG"))[0], [[10, 20, 30], [40, 50, 60]])
    np.testing.assert_array_equal(decode(_encoded(image, "PNG", transparency=0))[0], [[255] * 3, [40, 50, 60]])


def test_cmyk_is_converted_as_pillow_does():
    image = Image.fromarray(_photo()).convert("CMYK")
    data = _encoded(image, "JPEG")
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data) == (255, 0, 0)).all()


def test_one_pixel_and_extreme_shapes():
    for shape in ((1, 1, 3), (3, 9000, 3), (9000, 3, 3)):
        assert decode(_encoded(Image.new("RGB", shape[1::-1]), "PNG")).shape == shape


def _png_header(width, height):
    data = bytearray(_encoded(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def _jpeg_header(width, height):
    data = bytearray(_encoded(Image.new("L", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


JPEG = _encoded(Image.fromarray(_photo(200, 300)), "JPEG", quality=95)
PNG = _encoded(Image.fromarray(_photo(200, 300)), "PNG")


@pytest.mark.parametrize(
    ("record_image", "reason"),
    [
        (None, "null"),
        ({"bytes": None, "path": None}, "null"),
        ({"bytes": b"", "path": "empty.jpg"}, "empty"),
        (b"", "empty"),
        ({"bytes": None, "path": "/nonexistent/x.jpg"}, "missing file"),
        ("file:///nonexistent/x.jpg", "missing file"),
        (b"this is text", "not an image"),
        (b"<svg></svg>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "truncated"),
        (JPEG[:20], "not an image"),
        (_png_header(12000, 12000), "too large"),  # Pillow would warn
        (_png_header(30000, 30000), "too large"),  # Pillow would raise
        (_jpeg_header(60000, 60000), "too large"),
    ],
)
def test_unusable_images_are_refused_with_a_reason_and_without_warnings(record_image, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SkippedImageError) as caught:
            decode(record_image)
    assert caught.value.reason == reason


def test_only_regular_files_are_opened(tmp_path):
    """None of these may be waited for, and a device would never end."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "pipe link.png").symlink_to(tmp_path / "pipe.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket.png"))
    odd = [tmp_path, *tmp_path.iterdir(), "/dev/zero", "/dev/tty", (tmp_path / "pipe.png").as_uri()]
    assert len(odd) == 7
    for path in odd:
        with pytest.raises(SkippedImageError) as caught:
            decode({"bytes": None, "path": str(path)})
        assert caught.value.reason == "not a regular file"
    server.close()


def test_files_that_cannot_be_read_are_skipped_for_their_true_reason(tmp_path, monkeypatch):
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "c.png").write_bytes(PNG)
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(image_bytes.MAX_FILE_BYTES + 1)
    for path, reason in (
        (tmp_path / "a.png", "link loop"),
        (tmp_path / f"{'a' * 300}.png", "path too long"),
        (tmp_path / "/".join(["folder"] * 1000) / "a.png", "path too long"),
        (tmp_path / "c.png" / "d.png", "missing file"),
        (tmp_path / "a\0b.png", "invalid path"),
        (tmp_path / "\ud800.png", "invalid path"),
        (tmp_path / "huge.png", "too large"),
    ):
        with pytest.raises(SkippedImageError) as caught:
            decode(str(path))
        assert caught.value.reason == reason
    for number, reason in ((errno.EACCES, "no permission"), (errno.EPERM, "no permission"), (errno.EIO, "read error")):
        with monkeypatch.context() as patched:
            patched.setattr("builtins.open", _refuse(number))
            with pytest.raises(SkippedImageError) as caught:
                decode(str(tmp_path / "c.png"))
        assert caught.value.reason == reason


def test_what_is_not_the_fault_of_a_file_stops_the_run(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(PNG)
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", _refuse(errno.EMFILE))
        with pytest.raises(OSError, match="Too many open files"):
            decode(str(tmp_path / "a.png"))


def _refuse(number):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return refuse


def test_names_that_are_not_utf8_are_read(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")
    with open(path, "wb") as file:
        file.write(PNG)
    np.testing.assert_array_equal(decode(path), _photo(200, 300))


def test_the_pixel_limit_holds_whatever_pillow_allows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    side = int(MAX_PIXELS**0.5) + 1
    with pytest.raises(SkippedImageError, match="too large"):
        decode(_png_header(side, side))


REASONS = (
    "not an image|truncated|damaged|too large|.* bands|format not supported: .*TIFF|unsupported colours|colour PFM"
)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([*DEEP, *ODD]),
    places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8),
    value=st.integers(0, 255),
    keep=st.floats(0.5, 1),
)
def test_damaged_deep_pictures_give_a_picture_or_a_reason(kind, places, value, keep):
    data = bytearray({**DEEP, **ODD}[kind])
    for place in places:  # the tags lie at the end
        data[-1 - int(place * min(200, len(data)))] = value
    try:
        picture = decode(bytes(data[: max(1, int(keep**0.1 * len(data)))]))
    except SkippedImageError as error:
        assert re.fullmatch(REASONS, error.reason)
    else:
        assert (picture.shape[2:], picture.dtype) == ((3,), np.uint8)


def test_one_strip_a_thousand_times_does_not_fill_the_memory():
    """A small file whose strips would unpack to 2 GB, for a picture of 2 KB."""
    strip = zlib.compress(bytes(2**21))
    starts, lengths = struct.pack("<1000I", *[8] * 1000), struct.pack("<1000I", *[len(strip)] * 1000)
    place = 8 + len(strip)
    tags = {256: 16, 257: 16, 258: 64, 259: 8, 262: 1, 277: 1, 278: 1, 339: 3}
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()}
    entries |= {273: struct.pack("<HHII", 273, 4, 1000, place), 279: struct.pack("<HHII", 279, 4, 1000, place + 4000)}
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    data = struct.pack("<2sHI", b"II", 42, place + 8000) + strip + starts + lengths + directory
    tracemalloc.start()
    assert decode(data).shape == (16, 16, 3)
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()


@pytest.mark.parametrize("format_", ["HEIF", "JXL"])
def test_the_extra_formats_are_read_where_installed(format_):
    pytest.importorskip({"HEIF": "pillow_heif", "JXL": "pillow_jxl"}[format_])
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(_encoded(Image.fromarray(_photo()), format_, exif=exif.tobytes(), quality=95))
    assert np.abs(decoded.astype(int) - np.rot90(_photo(), -1)).mean() < 12
    assert {"HEIF": ".heic", "JXL": ".jxl"}[format_] in IMAGE_SUFFIXES
    with pytest.raises(SkippedImageError, match="damaged"):
        decode(UNUSABLE[f"format not supported: {'.heic' if format_ == 'HEIF' else '.jxl'}"][-1])


@settings(max_examples=150, deadline=None)
@given(
    format_=st.sampled_from(["PNG", "TIFF", "GIF", "BMP", "WEBP", "PPM", "PCX", "QOI", "SGI", "DDS", "ICO"]),
    places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20),
    value=st.integers(0, 255),
    keep=st.floats(0, 1),
)
def test_damaged_bytes_give_a_picture_or_a_reason(format_, places, value, keep):
    data = bytearray(_encoded(Image.fromarray(_photo()), format_))
    for place in places:
        data[int(place**3 * len(data))] = value
    try:
        picture = decode(bytes(data[: max(1, int(keep * len(data)))]))
    except SkippedImageError as error:
        assert re.fullmatch(REASONS, error.reason)
    else:
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert picture.dtype == np.uint8


def imagemagick(data, path):
    """The picture as ImageMagick reads it, of 8 bits."""
    path.write_bytes(data)
    command = ["convert", "-quiet", str(path), "-depth", "8", "rgb:-"]
    pixels = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(pixels, np.uint8)


@pytest.mark.skipif(shutil.which("convert") is None, reason="ImageMagick is the reference")
@pytest.mark.parametrize("kind", DEEP)
def test_deep_pictures_are_those_of_imagemagick(kind, tmp_path):
    picture = decode(DEEP[kind])
    assert picture.shape == (HEIGHT, WIDTH, 3)
    difference = picture.astype(int).ravel() - imagemagick(DEEP[kind], tmp_path / "a.tiff")
    assert np.abs(difference).max() <= 1  # it rounds twice


def test_other_deep_pictures_follow_the_stated_rules():
    grey = np.rint(RAMP * 255)
    for kind, expected in (
        ("16-bit float", np.rint(RAMP.astype(np.float16).astype(float) * 255)),
        ("float grey levels", np.rint(RAMP * 200)),
        ("float of its own range", grey),
        ("small unsigned 32-bit", np.floor(RAMP * 255)),
        ("unsigned 32-bit white is zero", 255 - grey),
        ("rotated 64-bit float", np.rot90(grey, -1)),
        ("rotated 16-bit", np.rot90(grey, -1)),
    ):
        assert np.abs(decode(ODD[kind])[:, :, 1] - expected).max() <= 1, kind
    counts = tiff(np.array([[100_000, 200_000]], np.uint32))
    np.testing.assert_array_equal(decode(counts)[0, :, 0], [0, 255])


def test_a_pgm_of_12_bits_is_scaled_from_its_declared_range():
    levels = np.array([0, 16, 200], ">u2")  # all below 255, yet not 8 bits
    for maximum in (4095, 65535):
        picture = decode(b"P5 3 1 %d\n" % maximum + levels.tobytes())
        np.testing.assert_allclose(picture[0, :, 0], levels.astype(int) / maximum * 255, atol=0.51)


@pytest.mark.parametrize("reason", UNUSABLE)
def test_what_no_decoder_knows_is_skipped_for_its_true_reason(reason, monkeypatch):
    # As without the packages of the extra `formats`, which read more.
    monkeypatch.setattr(pillow, "FORMATS", tuple(set(pillow.FORMATS) - {"HEIF", "JXL"}))
    for data in UNUSABLE[reason]:
        with pytest.raises(SkippedImageError) as caught:
            decode(data)
        assert caught.value.reason == reason
