"""The ResNets with CIFAR stem, and their one file that is both module and published model code."""

import importlib.util
import sys
import warnings

import pytest
import timm
import torch
from timm.data.config import resolve_model_data_config

from hf_ssl.modules import resnet_cifar

SIZES = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}


@pytest.mark.parametrize("name", SIZES)
def test_it_is_timms_resnet_with_another_stem(name):
    ours = timm.create_model(f"{name}_cifar", num_classes=10).eval()
    timms = timm.create_model(name, num_classes=10).eval()
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    expected = {key: value.shape for key, value in timms.state_dict().items()} | {"conv1.weight": (64, 3, 3, 3)}
    assert shapes == expected
    # After the stem they compute the same.
    weights = timms.state_dict() | {"conv1.weight": ours.conv1.weight}
    ours.load_state_dict(weights)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x = torch.nn.functional.conv2d(images, ours.conv1.weight, stride=1, padding=1)
        x = timms.act1(timms.bn1(x))  # and no pooling
        x = timms.layer4(timms.layer3(timms.layer2(timms.layer1(x))))
        torch.testing.assert_close(ours.forward_features(images), x)
        torch.testing.assert_close(ours(images), timms.fc(x.mean((2, 3))))
    assert x.shape == (2, SIZES[name], 4, 4)


def test_feature_maps_say_their_scale():
    model = timm.create_model("resnet18_cifar", features_only=True)
    maps = model(torch.randn(2, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == [64 // reduction for reduction in model.feature_info.reduction()]
    assert [m.shape[1] for m in maps] == model.feature_info.channels()


def test_arguments_of_timm_arrive():
    grey = timm.create_model("resnet18_cifar", in_chans=1, num_classes=7, global_pool="max").eval()
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        expected = grey.fc(grey.forward_features(images).amax((2, 3)))
        torch.testing.assert_close(grey(images), expected)
    assert grey(images).shape == (2, 7)
    last = "layer1.0.bn2.weight"
    assert timm.create_model("resnet18_cifar").state_dict()[last].abs().max() == 0
    assert timm.create_model("resnet18_cifar", zero_init_last=False).state_dict()[last].min() == 1
    assert resolve_model_data_config(timm.create_model("resnet18_cifar"))["input_size"] == (3, 32, 32)


def test_the_stem_starts_as_in_the_codes_that_replace_it():
    model = timm.create_model("resnet18_cifar")
    # PyTorch's default: uniform within 1 / sqrt(fan in). moco_cifar10_demo.ipynb and luckmatters leave it so.
    bound = (3 * 3 * 3) ** -0.5
    assert model.conv1.weight.abs().max() <= bound
    assert model.conv1.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    # All others as timm (and torchvision) has them.
    other = model.layer1[0].conv1.weight
    assert other.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("argument", ["stem_type", "replace_stem_pool"])
def test_another_stem_is_refused(argument):
    with pytest.raises(TypeError, match=f"takes no `{argument}`. Remove it"):
        timm.create_model("resnet18_cifar", **{argument: "deep"})


def test_a_published_copy_beside_the_package_changes_nothing(monkeypatch):
    registered = timm.model_entrypoint("resnet18_cifar")
    spec = importlib.util.spec_from_file_location("published_resnet_cifar", resnet_cifar.__file__)
    assert spec and spec.loader
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, copy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # timm warns of a name that is registered twice
        spec.loader.exec_module(copy)
    assert timm.model_entrypoint("resnet18_cifar") is registered
