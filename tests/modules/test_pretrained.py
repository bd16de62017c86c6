"""Configs and saved methods as Python users meet them."""

import copy
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub.dataclasses import strict
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


@pytest.fixture
def fresh_accelerate():
    """The Trainer's precision and device are not those of the tests that follow."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.usefixtures("fresh_accelerate")
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": -1}, "`image_size` must be at least 8 pixels, got -1."),
        ({"image_size": "large"}, "`image_size` must be a whole number, got `large`."),
        ({"image_size": True}, "`image_size` must be a whole number, got True."),
        ({"image_mean": ["a", 0.0, 0.0]}, "`image_mean` must be a list of numbers, got ['a', 0.0, 0.0]."),
        ({"rho": "x"}, "`rho` must be a number or none, got `x`."),
        ({"rho": math.inf}, "`rho` must be in [0, 1) or None, got inf."),
        ({"model_args": [1]}, "`model_args` must be a JSON object or none, got [1]."),
        ({"image_sise": 32}, "`DirectPredConfig` has no setting `image_sise`. Did you mean `image_size`?"),
    ],
)
def test_what_a_config_refuses_is_a_user_error(settings: dict[str, Any], message: str):
    with pytest.raises(UserError) as error:
        DirectPredConfig(**settings)
    assert str(error.value) == message


def test_rules_of_ones_own_method_are_user_errors_too():
    @strict
    class OwnConfig(SSLConfig):
        model_type = "own"
        width: int = 3
        kind: Literal["linear", "mlp"] = "mlp"

        def validate_own(self) -> None:
            if self.width < 1:
                raise UserError(f"`width` must be at least 1, got {self.width}.")
            if self.width > 9:
                raise TypeError("a bug in the rule")

    assert OwnConfig(width=2).width == 2
    for settings, kind, message in [
        ({"width": 0}, UserError, "`width` must be at least 1, got 0."),
        ({"kind": "lineer"}, UserError, "`kind` must be one of linear, mlp, got `lineer`. Did you mean `linear`?"),
        ({"image_size": 4}, UserError, "`image_size` must be at least 8 pixels, got 4."),
        ({"width": 10}, TypeError, "a bug in the rule"),
    ]:
        with pytest.raises(kind) as error:
            OwnConfig(**settings)
        assert type(error.value) is kind and str(error.value) == message


def test_a_whole_number_is_taken_for_a_float_and_what_fits_stays():
    config = BYOLConfig(ema_momentum=1, image_mean=[0, 1, 0], image_std=(0.5, 0.5, 0.5), output_hidden_states=True)
    assert type(config.ema_momentum) is float and config.ema_momentum == 1
    assert [type(value) for value in config.image_mean] == [float] * 3
    assert config.image_std == (0.5, 0.5, 0.5) and config.output_hidden_states is True
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
