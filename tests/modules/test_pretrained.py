"""Configs and saved methods as Python users meet them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining, Trainer, TrainingArguments

from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import load_encoder
from hf_ssl.hub.export import export_encoder
from hf_ssl.methods.byol import BYOLConfig, BYOLForPreTraining
from hf_ssl.methods.directpred import DirectPredConfig, DirectPredForPreTraining
from hf_ssl.methods.moco import MoCoConfig
from hf_ssl.modules.pretrained import SSLConfig, SSLEncoder

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


def test_a_saved_method_is_not_read_as_another(tmp_path: Path):
    config = DirectPredConfig(**SMALL, projector_hidden_dim=8, projection_dim=4)
    DirectPredForPreTraining(config).save_pretrained(tmp_path, readme=False)
    folder = re.escape(str(tmp_path))
    by = r"Load it by `AutoModelForPreTraining\.from_pretrained`\.$"
    for kind in (BYOLForPreTraining, BYOLConfig):
        with pytest.raises(UserError, match=rf"^`{folder}` holds `directpred`, not `byol`\. {by}"):
            kind.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"Load it by `AutoModel\.from_pretrained`\."):
        SSLEncoder.from_pretrained(tmp_path)
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is DirectPredForPreTraining
    assert type(AutoModel.from_pretrained(tmp_path)) is SSLEncoder


def test_an_encoder_is_not_read_as_a_method(tmp_path: Path):
    export_encoder(small_byol().encoder, BYOLConfig(**SMALL), tmp_path)
    with pytest.raises(UserError, match="holds `timm_wrapper`, not `byol`. Give the folder of a saved method: `pretr"):
        BYOLForPreTraining.from_pretrained(tmp_path)


@pytest.mark.parametrize("config", [MoCoConfig(**SMALL), SSLConfig(**SMALL), {"architecture": "test_resnet"}])
def test_a_method_is_not_made_of_the_config_of_another(config: Any):
    got = type(config).__name__
    with pytest.raises(UserError, match=f"`BYOLForPreTraining` is made of a `BYOLConfig`, got `{got}`"):
        BYOLForPreTraining(config)
