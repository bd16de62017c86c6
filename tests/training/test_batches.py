"""From a data set to batches: what the settings of the data change."""

import logging

import datasets
import pytest
import torch
from PIL import Image

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import open_source
from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.batches import open_stream

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    method = METHODS["simsiam"]
    return method(method.config_class(architecture="test_resnet", image_size=8, projection_dim=8))


def _open(model, data, **options):
    settings = TrainingSettings(output_dir="unused", batch_size=4)
    return open_stream(model, open_source(data.dataset), data, settings, CPU, **options)


@pytest.mark.parametrize("options", [{}, {"views_on": "gpu"}, {"cache": "uint8"}])
def test_views_are_made_by_the_changed_recipe_wherever_they_are_made(model, options):
    changes = {"crop_scale": [1, 1], "crop_ratio": [1, 1], "flip_probability": 0, "jitter_probability": 0}
    changes |= {"blur_probability": 0, "grey_probability": 0}
    data = DataSettings(dataset="digits", num_workers=0, view_settings=changes, **options)
    views = next(iter(_open(model, data))).views
    assert torch.equal(views[:, 0], views[:, 1])  # all of the picture, as it is
    plain = next(iter(_open(model, DataSettings(dataset="digits", num_workers=0, **options)))).views
    assert not torch.equal(plain[:, 0], plain[:, 1])


def test_a_stream_that_is_shuffled_already_is_told_once(model, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hf_ssl"), "propagate", True)
    rows = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))] * 8}).to_iterable_dataset()
    data = DataSettings(dataset=rows.shuffle(seed=0, buffer_size=4), num_workers=0)
    with caplog.at_level(logging.WARNING, "hf_ssl"):
        for rank in range(2):
            _open(model, data, rank=rank, world_size=2)
        _open(model, DataSettings(dataset=rows, num_workers=0))
    found = [one.getMessage() for one in caplog.records]
    assert len(found) == 1 and "`streamed data set` was shuffled before" in found[0]
