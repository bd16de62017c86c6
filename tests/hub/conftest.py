"""A run's record, and a small run made from it."""

import json

import pytest

from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS

RUN = {
    "hf_ssl": "0.1.0",
    "method": "simsiam",
    "recipe": "cifar",
    "command": "accelerate launch scripts/pretrain.py --method simsiam --dataset ORG/NAME --output_dir runs/x",
    "started": "2031-01-01T00:00:00",
    "finished": "2031-01-01T01:02:05",
    "config": {"architecture": "test_resnet", "model_args": None, "image_size": 32, "projection_dim": 16},
    "data": {
        "dataset": "ORG/NAME",
        "dataset_config": None,
        "dataset_revision": None,
        "split": "train",
        "num_images": 50000,
        "fingerprint": "0123abcd",
    },
    "training": {
        "output_dir": "runs/x",
        "batch_size": 128,
        "encoder_pretrained": False,
        "repo_id": None,
        "num_steps": 500,
        "learning_rate": 0.015,
        "num_processes": 2,
    },
    "versions": {"python": "3.12.1", "torch": "2.15.0"},
    "commit": None,
    "hardware": {"device": "cpu", "cpu_count": 2},
    "progress": {
        "step": 500,
        "epoch": 1,
        "images_seen": 64000,
        "seconds": 3725.4,
        "energy_kwh": 0.01234,
        "energy_of": ["CPU", "GPU"],
    },
    "skipped": {"truncated": 3, "not an image": 1},
}


@pytest.fixture
def run_record():
    """A `run.json` with values that occur nowhere else."""
    return json.loads(json.dumps(RUN))


@pytest.fixture
def make_run(run_record):
    """A function that exports a small run: `make_run(folder, run=None, **config)` returns its model."""

    def make(folder, run=None, architecture="test_resnet", image_size=32, **config):
        method = METHODS["simsiam"]
        sizes = {"projection_dim": 16, "projector_hidden_dim": 16, "predictor_hidden_dim": 8}
        model = method(method.config_class(architecture=architecture, image_size=image_size, **sizes, **config))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(run or run_record))
        export_run(model, folder)
        return model

    return make
