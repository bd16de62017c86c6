"""Building the encoder: timm's own model and initialisation, and clear answers to wrong input."""

import pytest
import timm
import torch

from hf_ssl.modules.encoder import build_encoder, hidden_size_of

SMALL = {
    "test_resnet": (None, 32),
    "test_vit": ({"img_size": 32, "patch_size": 8}, 32),
    "test_convnext": (None, 32),
    "mobilenetv3_small_050": (None, 64),
    "resnet18_cifar": (None, 32),
    "resnet10t": ({"global_pool": "catavgmax"}, 64),
}


@pytest.mark.parametrize("architecture", SMALL)
def test_hidden_size_is_the_width_of_the_pooled_features(architecture):
    model_args, size = SMALL[architecture]
    encoder = build_encoder(architecture, model_args)
    assert encoder.training
    assert encoder(torch.randn(2, 3, size, size)).shape == (2, hidden_size_of(encoder))


def test_weights_start_as_timm_starts_them():
    torch.manual_seed(3)
    ours = build_encoder("test_resnet").state_dict()
    torch.manual_seed(3)
    timms = timm.create_model("test_resnet", num_classes=0).state_dict()
    assert ours.keys() == timms.keys()
    assert all(torch.equal(value, timms[name]) for name, value in ours.items())


def test_asking_for_the_width_runs_nothing():
    encoder = build_encoder("test_resnet")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    hidden_size_of(encoder)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_an_unknown_encoder_gets_its_near_name():
    with pytest.raises(ValueError, match=r"no encoder `resnet18_cifr`. Did you mean `resnet18_cifar`\?"):
        build_encoder("resnet18_cifr")
    with pytest.raises(ValueError, match=r"no encoder `qqqqqqqqqqqqq`. `timm.list_models\(\)`"):
        build_encoder("qqqqqqqqqqqqq")


@pytest.mark.parametrize("model_args", [{"patch_sise": 4}, {"num_classes": 10}])
def test_wrong_model_args_are_named(model_args):
    with pytest.raises(ValueError, match=next(iter(model_args))):
        build_encoder("test_vit", model_args)
