"""Configs and saved methods as Python users meet them."""

import json
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForPreTraining, Trainer, TrainingArguments

from hf_ssl.evaluation.encoders import load_encoder
from hf_ssl.methods.byol import BYOLConfig, BYOLForPreTraining
from hf_ssl.modules.pretrained import SSLEncoder

SMALL = {"architecture": "test_resnet", "image_size": 32}


def small_byol() -> BYOLForPreTraining:
    return BYOLForPreTraining(BYOLConfig(**SMALL, projector_hidden_dim=8, predictor_hidden_dim=8, projection_dim=4))


def test_what_the_trainer_of_transformers_saves_loads_again(tmp_path: Path):
    model, folder = small_byol(), tmp_path / "saved"
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    Trainer(model, arguments).save_model(str(folder))
    settings = json.loads((folder / "config.json").read_text())
    assert "use_cache" not in settings
    # Earlier versions wrote it.
    for written in (settings, settings | {"use_cache": False}):
        (folder / "config.json").write_text(json.dumps(written))
        for method in (AutoModelForPreTraining, BYOLForPreTraining):
            loaded = method.from_pretrained(folder)
            assert type(loaded) is BYOLForPreTraining and loaded.config.projection_dim == 4
            torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
        encoder = AutoModel.from_pretrained(folder)
        assert type(encoder) is SSLEncoder
        torch.testing.assert_close(encoder.encoder.state_dict(), model.encoder.state_dict(), rtol=0, atol=0)
        assert load_encoder(str(folder)).dim == model.hidden_size
