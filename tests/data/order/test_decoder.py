"""Where the device decodes, a stream gives the images, draws, counts and positions that it gives where workers do."""

import io
from itertools import islice

import cv2
import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_ssl.data.decode.device import DeviceDecoder
from hf_ssl.data.order.stream import TrainingStream
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.views.cpu import Crops, find_recipe
from hf_ssl.data.views.device_crops import CropsOfEach
from hf_ssl.errors import UserError

NUM_IMAGES, BATCH, SIZE = 60, 8, 16
RECIPE = find_recipe("byol")
CPU = torch.device("cpu")


def _image(number):
    """Of many sizes; every seventh is a PNG, and of every eleventh only the beginning is there, with an end or not."""
    generator = np.random.default_rng(number)
    height, width = generator.integers(20, 60, 2).tolist()
    coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture, file = Image.fromarray(cv2.resize(coarse, (width, height))), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 1 + number % 8
    picture.save(file, "PNG" if number % 7 == 3 else "JPEG", **({"exif": exif} if number % 3 else {}))
    data = file.getvalue()
    return data[:300] + (b"\xff\xd9" if number % 2 else b"") if number % 11 == 5 else data


@pytest.fixture(scope="module", params=["folder", "parquet"])
def source(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "folder":
        for number in range(NUM_IMAGES):
            (root / f"{number:03}.jpg").write_bytes(_image(number))
    else:
        images = [{"bytes": _image(number), "path": f"{number:03}.jpg"} for number in range(NUM_IMAGES)]
        rows = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
        rows.to_parquet(root / "train.parquet", batch_size=10)
    return open_source(str(root))


def _stream(source, on_device=True, **options):
    """Batches of crops and draws in the place of views."""

    def joined(crops, draws):
        return torch.cat([crops.flatten(1).double(), draws.flatten(1).double()], dim=1)

    options = {"window_size": 16, "max_skipped_ratio": 0.5, "num_workers": 0, "lanes": 4, **options}
    if on_device:
        options["decoder"] = DeviceDecoder(CPU)
    views = CropsOfEach(RECIPE, SIZE) if on_device else Crops(RECIPE, SIZE)
    return TrainingStream(source, views, BATCH, seed=3, finish=joined, **options)


def _parts(batch):
    return batch.views.split([2 * SIZE * SIZE * 3, batch.views.shape[1] - 2 * SIZE * SIZE * 3], dim=1)


NUM_BATCHES = 15  # two epochs and some


def test_images_draws_counts_and_positions_are_those_of_workers_that_decode(source):
    found = list(islice(_stream(source), NUM_BATCHES))
    expected = list(islice(_stream(source, on_device=False), NUM_BATCHES))
    assert sum(expected[-1].skipped.values()) > NUM_IMAGES // 11
    for batch, other in zip(found, expected, strict=True):
        (crops, draws), (other_crops, other_draws) = _parts(batch), _parts(other)
        assert torch.equal(draws, other_draws)
        assert (crops - other_crops).abs().max() <= 2
        assert torch.equal(batch.indices, other.indices)
        assert (batch.position, batch.skipped, batch.epoch) == (other.position, other.skipped, other.epoch)


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"images_per_device": 4}])
def test_neither_workers_nor_pieces_change_a_bit(source, options):
    expected = torch.cat([batch.views for batch in islice(_stream(source), NUM_BATCHES)])
    pieces = BATCH // options.get("images_per_device", BATCH)
    found = torch.cat([batch.views for batch in islice(_stream(source, **options), pieces * NUM_BATCHES)])
    assert torch.equal(found, expected)


def test_it_goes_on_after_any_batch_bit_for_bit(source):
    whole = list(islice(_stream(source), NUM_BATCHES))
    for done in (1, 4, 7, 11):
        for workers in (0, 1):
            stream = _stream(source, position=whole[done - 1].position, num_workers=workers)
            for batch, expected in zip(islice(stream, 3), whole[done : done + 3], strict=True):
                assert torch.equal(batch.views, expected.views)
                assert (batch.position, batch.skipped) == (expected.position, expected.skipped)


def test_too_many_bad_images_are_named_alike(source):
    told = []
    for on_device in (True, False):
        with pytest.raises(UserError, match=r"cannot be used: .*such as `") as error:
            list(islice(_stream(source, on_device, max_skipped_ratio=0.01), 20))
        told.append(str(error.value))
    assert told[0] == told[1]
