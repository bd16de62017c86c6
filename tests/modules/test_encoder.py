"""Building the encoder: timm's own model and initialisation, and clear answers to wrong input."""

import time

import pytest
import timm
import torch

from hf_ssl.errors import UserError
from hf_ssl.modules.encoder import build_encoder, check_encoder, hidden_size_of, with_image_size

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


SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}


@pytest.mark.parametrize(
    ("architecture", "model_args", "image_size", "expected"),
    [
        ("test_vit", {"patch_size": 8}, 32, {"patch_size": 8, "img_size": 32}),
        ("test_vit", None, 160, {}),  # its own size
        ("test_vit", {"img_size": 32, "patch_size": 8}, 32, {"img_size": 32, "patch_size": 8}),
        ("test_vit", {"img_size": [32, 32], "patch_size": 8}, 32, {"img_size": [32, 32], "patch_size": 8}),
        ("test_vit", {"dynamic_img_size": True}, 64, {"dynamic_img_size": True}),
        ("swin_tiny_patch4_window7_224", SWIN, 32, {**SWIN, "img_size": 32}),
        ("test_resnet", None, 32, {}),
        ("resnet18_cifar", None, 48, {}),
    ],
)
def test_an_encoder_of_a_fixed_size_is_built_for_the_images(architecture, model_args, image_size, expected):
    arguments = with_image_size(architecture, model_args, image_size)
    assert arguments == expected
    check_encoder(architecture, arguments, image_size)
    encoder = build_encoder(architecture, arguments).eval()
    assert encoder(torch.zeros(1, 3, image_size, image_size)).shape == (1, hidden_size_of(encoder))


@pytest.mark.parametrize(
    ("architecture", "model_args", "image_size", "message"),
    [
        ("test_resnet", {"in_chans": 1}, 32, r"`in_chans` of `test_resnet` must be 3, .* got 1"),
        ("test_resnet", {"global_pool": ""}, 32, r"gives \(1, \d+, \d+, \d+\). `global_pool` is ``: Leave it out"),
        ("test_vit", {"global_pool": "", "img_size": 32}, 32, r"one vector of 64 numbers .* Leave it out"),
        ("test_resnet", {"features_only": True}, 32, r"`test_resnet`"),
        ("test_vit", {"img_size": 40}, 40, r"`image_size` must be a multiple of 16, .* got 40. Give 32"),
        (
            "swin_tiny_patch4_window7_224",
            {**SWIN, "img_size": 32},
            64,
            r"cannot take images of `image_size` 64: .*64.*32",
        ),
        ("inception_v3", {}, 32, r"`inception_v3` cannot take images of `image_size` 32"),
        ("resnet5O", {}, 32, r"timm knows no encoder `resnet5O`. Did you mean `resnet50"),
    ],
)
def test_an_encoder_that_gives_no_vector_for_the_images_is_refused(architecture, model_args, image_size, message):
    with pytest.raises(UserError, match=message) as raised:
        check_encoder(architecture, model_args, image_size)
    assert "\n" not in str(raised.value)


def test_two_sizes_that_differ_are_refused():
    with pytest.raises(UserError, match=r"`img_size` of 32, but `image_size` is 64. Leave `img_size` out"):
        with_image_size("test_vit", {"img_size": 32}, 64)


def test_the_check_takes_no_time_and_no_randomness():
    check_encoder("resnet18", {}, 64)
    torch.manual_seed(3)
    started = time.process_time()
    check_encoder("resnet50", {}, 224)
    assert time.process_time() - started < 1
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
