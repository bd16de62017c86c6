"""Decoding on the device gives what workers decode, whatever the file is. Without a GPU the device is the CPU."""

import io
import logging

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from hf_ssl.data.decode import device as module
from hf_ssl.data.decode.device import DeviceDecoder
from hf_ssl.data.decode.pictures import Jpeg, SkippedImageError, decode, undecoded
from hf_ssl.errors import UserError


def _photo(seed=0, size=(61, 47)):
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def _saved(picture, format_="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format_, **options)
    return file.getvalue()


def _cmyk():
    file = io.BytesIO()
    Image.fromarray(_photo()).convert("CMYK").save(file, "JPEG")
    return file.getvalue()


def _rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _saved(_photo(), exif=exif)


def _adobe(data, transform):
    """With the segment by which Adobe's programs tell whether three channels are YCbCr (1) or RGB (0)."""
    return data[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform]) + data[2:]


def _without_jfif(data):
    return data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]


PLAIN = _saved(_photo())
FILES = {  # -> whether the device decodes it
    "4:2:0": (PLAIN, True),
    "4:4:4": (_saved(_photo(), subsampling=0), True),
    "4:2:2": (_saved(_photo(), subsampling=1), True),
    "progressive": (_saved(_photo(), progressive=True), True),
    "odd size": (_saved(_photo(size=(33, 1))), True),
    **{f"orientation {number}": (_rotated(number), True) for number in (1, 2, 3, 4, 5, 6, 7, 8, 9)},
    "Adobe YCbCr": (_adobe(_without_jfif(PLAIN), 1), True),
    "Adobe RGB": (_adobe(_without_jfif(PLAIN), 0), False),
    "grey": (_saved(_photo()[:, :, 0]), False),
    "CMYK": (_cmyk(), False),
    "PNG": (_saved(_photo(), "PNG"), False),
    "WEBP": (_saved(_photo(), "WEBP"), False),
}
BROKEN = {
    "truncated": PLAIN[: len(PLAIN) // 2],
    "truncated, with an end": PLAIN[:400] + b"\xff\xd9",
    "no tables": PLAIN.replace(b"\xff\xc4", b"\xff\xc9", 1),
    "broken scan header": PLAIN.replace(b"\xff\xda", b"\xff\xdb", 1),
    "two headers": PLAIN[:-2].replace(b"\xff\xda", b"\xff\xc0", 1) + b"\xff\xd9",
    "empty": b"",
    "text": b"no image",
}


def _outcome(data):
    try:
        return decode(data)
    except SkippedImageError as error:
        return error.reason


@pytest.mark.parametrize("name", FILES)
def test_only_jpegs_that_all_decoders_read_alike_stay_files(name):
    data, stays = FILES[name]
    (found,) = undecoded([data], timeout=0)
    assert isinstance(found, Jpeg) == stays
    if not stays:
        np.testing.assert_array_equal(found, decode(data))


def test_the_device_gives_what_the_cpu_gives_in_the_order_of_the_files():
    files = [*(data for data, _ in FILES.values()), *BROKEN.values()]
    order = np.random.default_rng(0).permutation(len(files)).tolist()
    files = [{"bytes": files[place], "path": None} for place in order]
    made = list(DeviceDecoder(torch.device("cpu"))(undecoded(files, timeout=0)))
    assert len(made) == len(files)
    for picture, file in zip(made, files, strict=True):
        expected = _outcome(file)
        if isinstance(expected, str):
            assert isinstance(picture, SkippedImageError) and picture.reason == expected
            continue
        assert isinstance(picture, torch.Tensor) and picture.dtype == torch.uint8
        np.testing.assert_array_equal(picture.numpy(), expected)  # both are libjpeg; of nvJPEG see tests/gpu


def test_groups_do_not_change_the_pictures(monkeypatch):
    files = [data for data, _ in FILES.values()]
    decoder = DeviceDecoder(torch.device("cpu"))
    expected = list(decoder(undecoded(files, timeout=0)))
    monkeypatch.setattr(module, "_GROUP_BYTES", 20_000)
    made = list(decoder(undecoded(files, timeout=0)))
    assert all(torch.equal(one, two) for one, two in zip(made, expected, strict=True))


def _refusing(refused, error):
    decode_all = module._decoder()

    def decoder(files, device):
        if any(bytes(file.numpy()) == refused for file in files):
            raise error
        return decode_all(files, device)

    return lambda: decoder


def test_what_the_device_refuses_the_cpu_decodes_and_it_is_told_once(monkeypatch, caplog):
    progressive = FILES["progressive"][0]
    monkeypatch.setattr(module, "_decoder", _refusing(progressive, RuntimeError("nvjpegDecode failed: 3\nmore")))
    monkeypatch.setattr(logging.getLogger("hf_ssl"), "propagate", True)
    files = [PLAIN, progressive, FILES["4:4:4"][0], progressive, BROKEN["no tables"]]
    with caplog.at_level(logging.WARNING, "hf_ssl"):
        made = list(DeviceDecoder(torch.device("cpu"))(undecoded(files, timeout=0)))
    for picture, file in zip(made[:4], files, strict=False):
        np.testing.assert_array_equal(picture, decode(file))
    assert isinstance(made[4], SkippedImageError)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == "The CPU decodes the JPEGs that `cpu` cannot, such as: nvjpegDecode failed: 3"


def test_a_device_without_memory_is_no_broken_file(monkeypatch):
    monkeypatch.setattr(module, "_decoder", _refusing(PLAIN, torch.OutOfMemoryError("CUDA out of memory")))
    decoder = DeviceDecoder(torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError):
        list(decoder(undecoded([PLAIN], timeout=0)))


@pytest.mark.parametrize("error", [ImportError("cannot import name 'decode_jpeg'"), RuntimeError("no nvJPEG\nmore")])
def test_a_torchvision_without_a_decoder_is_refused_at_the_start(monkeypatch, error):
    def missing():
        raise error

    monkeypatch.setattr(module, "_decoder", missing)
    reason = str(error).splitlines()[0]
    with pytest.raises(UserError, match=f"`decode_on` gpu needs .* fails here: {reason}. .*Install .*or set"):
        DeviceDecoder(torch.device("cpu"))
