"""The handler reads what hf_ssl reads and refuses the rest with a sentence, which endpoints send with status 400."""

import base64
import io
import re
import tomllib
from pathlib import Path

import deep_tiffs
import numpy as np
import pytest
import torch
from PIL import Image

from hf_ssl.data.decode import pillow
from hf_ssl.data.decode.pictures import decode
from hf_ssl.hub import export, handler
from hf_ssl.hub.export import export_encoder
from hf_ssl.methods.base import SSLConfig
from hf_ssl.modules.encoder import build_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    config = SSLConfig(architecture="test_resnet", image_size=32)
    export_encoder(build_encoder(config.architecture), config, folder)
    return folder


@pytest.fixture(scope="module")
def endpoint(folder):
    return handler.EndpointHandler(str(folder))


def file_of(image, format_="PNG", **options):
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def photo(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def coded(data):
    return base64.b64encode(data).decode()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return file_of(photo(), "JPEG", exif=exif)


def with_alpha():
    picture = photo().convert("RGBA")
    picture.putalpha(Image.fromarray(np.tile(np.arange(50, dtype=np.uint8) * 5, (40, 1))))
    return picture


DEEP = np.linspace(0, 65535, 2000).reshape(40, 50)
PICTURES = {
    "jpeg": file_of(photo(), "JPEG"),
    "rotated": rotated(),
    "alpha": file_of(with_alpha()),
    "grey and alpha": file_of(with_alpha().convert("LA")),
    "grey": file_of(photo().convert("L")),
    "bits": file_of(photo().convert("1")),
    "palette": file_of(photo().convert("P")),
    "transparent palette": file_of(photo().convert("P"), "GIF", transparency=3),
    "cmyk": file_of(photo().convert("CMYK"), "JPEG"),
    "16 bits": file_of(Image.fromarray(DEEP.astype(np.uint16))),
    "32 bits": file_of(Image.fromarray((DEEP - 9).astype(np.int32)), "TIFF"),
    "float": file_of(Image.fromarray((DEEP / 65535).astype(np.float32)), "TIFF"),
    "any float": file_of(Image.fromarray((DEEP - 1e4).astype(np.float32)), "TIFF"),
}


def picture_of(image):
    """What the handler makes of one image of a request."""
    return handler._picture(handler._file(image, "Image 1"), "Image 1")


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_decoded_as_in_training(kind):
    found = np.asarray(picture_of(coded(PICTURES[kind])))
    np.testing.assert_array_equal(found, decode(PICTURES[kind]))


@pytest.mark.parametrize("kind", {**deep_tiffs.DEEP, **deep_tiffs.ODD})
def test_deep_pictures_are_decoded_as_in_training(kind):
    data = {**deep_tiffs.DEEP, **deep_tiffs.ODD}[kind]
    np.testing.assert_array_equal(np.asarray(picture_of(coded(data))), decode(data))


@pytest.mark.parametrize("reason", deep_tiffs.UNUSABLE)
def test_unusable_pictures_are_refused_for_the_reason_of_training(reason, monkeypatch):
    monkeypatch.setattr(pillow, "FORMATS", tuple(set(pillow.FORMATS) - {"HEIF", "JXL"}))
    for data in deep_tiffs.UNUSABLE[reason]:
        with pytest.raises(ValueError, match=re.escape(f": {reason}.")):
            picture_of(data)


def test_requirements_are_those_of_the_package():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert export._REQUIREMENTS.split() == [one for one in project["dependencies"] if one.startswith("timm")]


def test_every_form_of_input_gives_the_same_features(endpoint):
    file = file_of(photo())
    address = f"data:image/png;base64,{coded(file)}"
    lines = "\n".join(re.findall(".{1,76}", coded(file)))  # as `base64` on the command line writes it
    answers = [endpoint({"inputs": form}) for form in (coded(file), file, photo(), [coded(file)], address, lines)]
    assert all(answer == answers[0] for answer in answers)
    assert np.shape(answers[0]) == (1, 96)


def test_batches_and_normalisation(endpoint):
    images = [coded(file_of(photo(seed))) for seed in range(5)]
    plain = torch.tensor(endpoint({"inputs": images}))
    parts = torch.tensor(endpoint({"inputs": images, "parameters": {"batch_size": 2}}))
    torch.testing.assert_close(parts, plain)
    unit = torch.tensor(endpoint({"inputs": images, "parameters": {"normalize": True}}))
    torch.testing.assert_close(unit, torch.nn.functional.normalize(plain))


GOOD = coded(file_of(photo()))
BAD = {
    "nothing": ({}, r"has no `inputs`\. Give an image file in base64"),
    "null inputs": ({"inputs": None}, r"has no `inputs`\. Give an image file in base64"),
    "null in a list": ({"inputs": [GOOD, None]}, r"Image 2 of `inputs` must be an image file in base64, got null\."),
    "list in a list": ({"inputs": [[GOOD]]}, r"Image 1 of `inputs` must be an image file in base64, got list\."),
    "true": ({"inputs": True}, r"Image 1 of `inputs` must be an image file in base64, got bool\."),
    "no pixels": ({"inputs": Image.new("RGB", (0, 5))}, "Image 1 of `inputs` cannot be used: damaged"),
    "body: list": ([GOOD], r'must be an object such as \{"inputs": "\.\.\."\}, got list\.'),
    "body: the key": (["inputs"], r"must be an object .* got list\."),  # which an endpoint's own check lets pass
    "body: text": (GOOD, r"must be an object .* got str\."),
    "body: null": (None, r"must be an object .* got null\."),
    "body: number": (5, r"must be an object .* got int\."),
    "empty": ({"inputs": []}, r"1 to 64 images, got 0"),
    "many": ({"inputs": [GOOD] * 65}, r"1 to 64 images, got 65\. Send several requests"),
    "url": ({"inputs": "https://host/cat.png"}, r"is a URL, and this endpoint fetches nothing.*base64"),
    "url in a list": ({"inputs": [GOOD, "s3://x/y"]}, r"Image 2 of `inputs` is a URL"),
    "path": ({"inputs": "../secret.png"}, r"is text, but no base64.*not its path"),
    "no image": (
        {"inputs": coded(b"hello there")},
        r"used: not an image\. Send RGB or grey in .* formats: JPEG, PNG",
    ),
    "eps": ({"inputs": coded(file_of(photo(), "EPS"))}, r"cannot be used: not an image"),
    "truncated": (
        {"inputs": coded(file_of(photo())[:3000])},
        r"Image 1 .* used: truncated\. Send the whole file",
    ),
    "number": ({"inputs": 5}, r"must be an image file in base64, got int"),
    "object": ({"inputs": [{"image": GOOD}]}, r"must be an image file in base64, got dict"),
    "parameters": ({"inputs": GOOD, "parameters": [1]}, r"`parameters` must be an object"),
    "parameter": (
        {"inputs": GOOD, "parameters": {"pool": True}},
        r"no parameter `pool`\. Known: normalize",
    ),
    "normalize": (
        {"inputs": GOOD, "parameters": {"normalize": "yes"}},
        r"must be true or false, got 'yes'",
    ),
    "batch": (
        {"inputs": GOOD, "parameters": {"batch_size": 0}},
        r"must be an integer from 1 to 64, got 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_end_with_a_sentence(endpoint, case):
    request, sentence = BAD[case]
    with pytest.raises(ValueError, match=sentence):
        endpoint(request)


def test_large_files_and_large_pictures_are_refused_before_they_are_decoded(endpoint, monkeypatch):
    monkeypatch.setattr(handler, "MAX_BYTES", 3000)
    with pytest.raises(ValueError, match=r"must be at most 3,000 bytes, got 6,\d{3}"):
        endpoint({"inputs": file_of(photo())})
    with pytest.raises(ValueError, match=r"must be at most 3,000 bytes, got about 6,\d{3}"):
        endpoint({"inputs": GOOD})
    bomb = file_of(Image.new("1", (12_000, 8_000)))
    assert len(bomb) < 20_000
    monkeypatch.setattr(handler, "MAX_BYTES", 40_000)
    for large in (bomb, file_of(Image.new("1", (15_000, 15_000))), Image.new("1", (12_000, 8_000))):
        with pytest.raises(ValueError, match=r"cannot be used: too large. Send it with at most 89,478,485 pixels"):
            endpoint({"inputs": large})


def test_a_request_has_one_budget_of_pixels_which_its_headers_are_held_against(folder, monkeypatch):
    decoded = []
    monkeypatch.setattr(handler, "decode_by_pillow", lambda data: decoded.append(1) or pillow.decode_by_pillow(data))
    monkeypatch.setattr(handler, "MAX_REQUEST_PIXELS", 1_000_000)
    endpoint = handler.EndpointHandler(str(folder))
    large = file_of(Image.new("L", (700, 700)))
    assert len(endpoint({"inputs": [coded(large), large]})) == 2
    assert len(decoded) == 2
    words = (
        r"must have at most 1,000,000 pixels together, .* got 1,470,000 with image 3 of 4 \(700 x 700\)\. "
        r"Send several requests or smaller images, or raise `HF_SSL_MAX_REQUEST_PIXELS`"
    )
    for large_ones in ([coded(large)] * 4, [large] * 4, [Image.new("L", (700, 700))] * 4):
        with pytest.raises(ValueError, match=words):
            endpoint({"inputs": large_ones})
    assert len(decoded) == 2


def test_what_a_picture_grows_to_counts_too(endpoint):
    assert len(endpoint({"inputs": Image.new("L", (1, 500))})) == 1
    thin = file_of(Image.new("L", (1, 65_000)))  # to be enlarged to 32 x 2,080,000
    assert len(thin) < 300
    with pytest.raises(ValueError, match=r"at most 100,000,000 .* got 133,120,000 with image 2 of 2 \(1 x 65,000\)"):
        endpoint({"inputs": [thin, thin]})


def test_the_budget_is_set_by_the_environment(folder, monkeypatch):
    monkeypatch.setenv("HF_SSL_MAX_REQUEST_PIXELS", "4000")
    small = handler.EndpointHandler(str(folder))
    assert len(small({"inputs": [photo(), photo(1)]})) == 2
    with pytest.raises(ValueError, match="at most 4,000 pixels together, .* got 6,000 with image 3 of 3"):
        small({"inputs": [photo()] * 3})
    for wrong in ("", "0", "-1", "many", "1e9"):
        monkeypatch.setenv("HF_SSL_MAX_REQUEST_PIXELS", wrong)
        with pytest.raises(ValueError, match=f"`HF_SSL_MAX_REQUEST_PIXELS` must be a positive integer, got '{wrong}'"):
            handler.EndpointHandler(str(folder))


@pytest.mark.parametrize("kind", {**PICTURES, **deep_tiffs.DEEP, **deep_tiffs.ODD})
def test_the_size_in_the_header_is_that_of_the_picture(kind):
    data = {**PICTURES, **deep_tiffs.DEEP, **deep_tiffs.ODD}[kind]
    assert sorted(pillow.size_by_pillow(data)) == sorted(decode(data).shape[:2])  # before it is turned
