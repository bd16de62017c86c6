"""One picture, one feature: what each door of a published encoder makes of kinds of pictures that are not plain RGB.

Training decides: it lays transparency on white, turns EXIF's way up and scales deep grey to 8 bits. Our own doors give
features of that. transformers and timm decode by themselves; the table says where that differs, and the card tells it.
"""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel, pipeline
from transformers.image_utils import load_image

from hf_ssl.data.decode.pictures import decode
from hf_ssl.data.decode.pillow import decode_by_pillow, upright_rgb
from hf_ssl.data.sources.open import open_source
from hf_ssl.evaluation.features import extract_features, load_encoder
from hf_ssl.hub.export import export_encoder
from hf_ssl.hub.handler import EndpointHandler
from hf_ssl.methods.base import SSLConfig
from hf_ssl.modules.encoder import build_encoder

_GENERATOR = np.random.default_rng(0)
RGB = _GENERATOR.integers(0, 256, (40, 50, 3), dtype=np.uint8)
ALPHA = np.tile(np.arange(50, dtype=np.uint8) * 5, (40, 1))
DEEP = _GENERATOR.integers(0, 65536, (40, 50))
PALETTE = np.arange(768, dtype=np.uint8)[::-1]
PLACES = _GENERATOR.integers(0, 8, (40, 50), dtype=np.uint8) * 36 + 1


@dataclass
class Kind:
    """A kind of picture: its file, the pixels that training sees, and what transformers and timm do by themselves.

    `alike`: whether their conversion to RGB gives the same pixels. `hole`: Pillow remembers the transparent colour of
    what it has converted. `bare`: whether the image processor, given what Pillow opens without any conversion, gives
    the same; None: it refuses.
    """

    data: bytes
    pixels: Any
    alike: bool
    bare: bool | None = None
    hole: bool = False


def file_of(image, format_="PNG", **options):
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def on_white(pixels, alpha):
    alpha = alpha[..., None] / 255
    return pixels * alpha + 255 * (1 - alpha)


def grey(levels):
    return np.repeat(np.asarray(levels)[..., None], 3, axis=2)


def with_palette(format_, **options):
    image = Image.fromarray(PLACES, "P")
    image.putpalette(PALETTE.tobytes())
    return file_of(image, format_, **options)


def opened(data):
    return Image.open(io.BytesIO(data))


def rotated(format_, **options):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    return file_of(Image.fromarray(RGB), format_, exif=exif, **options)


def kinds():
    of_palette = PALETTE.reshape(256, 3)[PLACES]
    holed = on_white(of_palette, np.where(PLACES == 73, 0, 255))
    of_eight, hole = Image.fromarray(of_palette), tuple(PALETTE.reshape(256, 3)[73].tolist())
    luma = np.asarray(Image.fromarray(RGB).convert("L"))
    cmyk = file_of(Image.fromarray(RGB).convert("CMYK"), "JPEG")
    photos = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    animated = file_of(photos[0], "WEBP", save_all=True, append_images=photos[1:], lossless=True)
    bits = Image.fromarray(RGB).convert("1")
    return {
        "RGB": Kind(file_of(photos[0]), RGB, alike=True, bare=True),
        "EXIF, JPEG": Kind(rotated("JPEG", quality=100, subsampling=0), np.rot90(RGB, -1), alike=True, bare=False),
        "EXIF, PNG": Kind(rotated("PNG"), np.rot90(RGB, -1), alike=True, bare=False),
        "RGBA": Kind(file_of(Image.fromarray(np.dstack([RGB, ALPHA]))), on_white(RGB, ALPHA), alike=False),
        "LA": Kind(file_of(Image.fromarray(np.dstack([luma, ALPHA]), "LA")), on_white(grey(luma), ALPHA), alike=False),
        "opaque RGBA": Kind(file_of(Image.fromarray(RGB).convert("RGBA")), RGB, alike=True),
        "palette": Kind(with_palette("PNG"), of_palette, alike=True),
        "palette with tRNS": Kind(with_palette("PNG", transparency=73), holed, alike=False, hole=True),
        "palette of alphas": Kind(
            with_palette("PNG", transparency=bytes(range(256))), on_white(of_palette, PLACES), alike=False
        ),
        "GIF with a hole": Kind(with_palette("GIF", transparency=73), holed, alike=False, hole=True),
        "RGB with tRNS": Kind(file_of(of_eight, transparency=hole), holed, alike=False, bare=False, hole=True),
        "grey": Kind(file_of(Image.fromarray(luma)), grey(luma), alike=True),
        "1 bit": Kind(file_of(bits), grey(np.asarray(bits) * 255), alike=True),
        "16 bits": Kind(file_of(Image.fromarray(DEEP.astype(np.uint16))), grey(DEEP / 257), alike=False),
        "16 bits, TIFF": Kind(file_of(Image.fromarray(DEEP.astype(np.uint16)), "TIFF"), grey(DEEP / 257), alike=False),
        "32 bits": Kind(file_of(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), grey(DEEP / 257), alike=False),
        "float": Kind(
            file_of(Image.fromarray((DEEP / 65535).astype(np.float32)), "TIFF"), grey(DEEP / 257), alike=False
        ),
        "CMYK, JPEG": Kind(cmyk, np.asarray(opened(cmyk).convert("RGB")), alike=True),
        "animation": Kind(animated, RGB, alike=True, bare=True),
    }


KINDS = kinds()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    config = SSLConfig(architecture="test_resnet", image_size=32)
    export_encoder(build_encoder(config.architecture), config, folder)
    return folder


@pytest.fixture(scope="module")
def doors(folder):
    """Name -> function of a file that gives features."""
    encoder, endpoint = load_encoder(str(folder)), EndpointHandler(str(folder))
    extract = pipeline("image-feature-extraction", model=str(folder), pool=True)
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    of_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(of_timm), is_training=False)

    def coded(data):
        return base64.b64encode(data).decode()

    return {
        "load_encoder, pixels": lambda data: encoder.module(encoder.transform(decode(data))[None]),
        "load_encoder, Pillow": lambda data: encoder.module(encoder.transform(opened(data))[None]),
        "endpoint, base64": lambda data: endpoint({"inputs": coded(data)}),
        "endpoint, bytes": lambda data: endpoint({"inputs": [data]}),
        "endpoint, Pillow": lambda data: endpoint({"inputs": opened(data)}),
        "the card's decoder": lambda data: extract(decode_by_pillow(data)),
        # What transformers, timm and an endpoint that is sent a file without JSON decode by themselves.
        "pipeline": lambda data: extract(coded(data)),
        "AutoModel": lambda data: model(**processor(load_image(opened(data)), return_tensors="pt")).pooler_output,
        "timm": lambda data: of_timm(transform(ImageOps.exif_transpose(opened(data)).convert("RGB"))[None]),
        "endpoint, raw": lambda data: endpoint({"inputs": opened(data).convert("RGB")}),
        "bare processor": lambda data: model(**processor(opened(data), return_tensors="pt")).pooler_output,
    }


OTHERS = ("pipeline", "AutoModel", "timm", "endpoint, raw")


@pytest.fixture(scope="module")
def reference(folder):
    """Features of pixels, by timm alone."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return lambda pixels: model(transform(Image.fromarray(np.rint(pixels).astype(np.uint8)))[None])


def differs(found, expected):
    """Whether features are others; those of pixels that are one level apart are not."""
    found = torch.as_tensor(found).detach().reshape(-1)
    return bool((found - expected.reshape(-1)).abs().max() > 0.05 * expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_has_one_feature_through_our_doors_and_the_table_knows_about_the_others(doors, reference, kind):
    about = KINDS[kind]
    seen = decode(about.data)
    quantised = 30 if "JPEG" in kind else 0.5  # by the file's own loss; else by rounding
    assert np.abs(seen - np.asarray(about.pixels, float)).max() <= quantised
    expected = reference(seen)
    bare = doors["bare processor"]
    found = {name: door(about.data) for name, door in doors.items() if name != "bare processor"}
    for name in found.keys() - set(OTHERS):
        torch.testing.assert_close(torch.as_tensor(found[name]), expected, atol=1e-5, rtol=1e-5, msg=name)
    others = dict.fromkeys(OTHERS, not about.alike) | {"endpoint, raw": not about.alike and not about.hole}
    assert {name: differs(found[name], expected) for name in OTHERS} == others
    if about.bare is None:
        with pytest.raises((RuntimeError, TypeError)):  # transformers': it takes RGB only
            bare(about.data)
    else:
        assert differs(bare(about.data), expected) != about.bare


@torch.no_grad()
def test_extraction_gives_what_the_endpoint_gives(folder, doors, tmp_path):
    for number, kind in enumerate(KINDS.values()):
        ending = opened(kind.data).format.lower()
        (tmp_path / f"{number:02}.{ending}").write_bytes(kind.data)
    extracted = extract_features(load_encoder(str(folder)), open_source(str(tmp_path)))
    assert extracted.row_ids.tolist() == list(range(len(KINDS)))
    expected = [doors["endpoint, base64"](kind.data)[0] for kind in KINDS.values()]
    torch.testing.assert_close(extracted.features, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_colours_that_nobody_converts_alike_are_refused_by_our_doors(doors):
    lab = file_of(Image.fromarray(RGB).convert("RGB").convert("LAB"), "TIFF")
    for name in doors.keys() - {*OTHERS, "bare processor"}:
        with pytest.raises(ValueError, match="unsupported colours"):
            doors[name](lab)
    with pytest.raises(ValueError, match="unsupported colours"):
        upright_rgb(opened(lab))
