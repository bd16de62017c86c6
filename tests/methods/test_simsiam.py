import math

import pytest
import torch
from torch import nn

from hf_ssl.errors import UserError
from hf_ssl.methods.simsiam import SimSiamConfig, SimSiamForPreTraining


def make_model(**settings) -> SimSiamForPreTraining:
    sizes = {"projector_hidden_dim": 32, "predictor_hidden_dim": 4, "projection_dim": 16}
    torch.manual_seed(0)
    return SimSiamForPreTraining(SimSiamConfig(architecture="test_resnet", image_size=32, **{**sizes, **settings}))


def make_views(batch_size: int = 6) -> torch.Tensor:
    return torch.randn(batch_size, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    pairs = zip(a.detach().double().numpy(), b.detach().double().numpy(), strict=True)
    return sum(sum(x * y) / math.sqrt(sum(x**2) * sum(y**2)) for x, y in pairs) / len(a)


@pytest.mark.parametrize("layers", [2, 3])
def test_loss_is_the_mean_of_both_directions(layers):
    model = make_model(projector_layers=layers)
    z = [model.projector(model.encoder(view)) for view in make_views().unbind(dim=1)]
    p = [model.predictor(z_i) for z_i in z]
    expected = -cosine(p[0], z[1]) / 2 - cosine(p[1], z[0]) / 2
    assert model(make_views()).loss.item() == pytest.approx(expected, rel=1e-4)


def test_heads_are_those_of_the_official_code():
    model = make_model()
    assert [type(layer).__name__ for layer in model.projector] == [
        *["Linear", "BatchNorm1d", "ReLU"] * 2,
        "Linear",
        "BatchNorm1d",
    ]
    assert all(layer.bias is None for layer in model.projector if isinstance(layer, nn.Linear))
    assert not model.projector[-1].affine and model.projector[1].affine
    assert [type(layer).__name__ for layer in model.predictor] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert model.predictor[0].bias is None and model.predictor[3].bias is not None
    assert (model.predictor[0].in_features, model.predictor[0].out_features) == (16, 4)
    assert sum(isinstance(layer, nn.Linear) for layer in make_model(projector_layers=2).projector) == 2


def test_gradient_stops_at_the_projection_that_is_predicted():
    views = make_views()

    def gradient(**settings) -> torch.Tensor:
        model = make_model(**settings)
        model(views).loss.backward()
        return model.projector[0].weight.grad

    model = make_model()
    z = [model.projector(model.encoder(view)) for view in views.unbind(dim=1)]
    p = [model.predictor(z_i) for z_i in z]
    similarity = nn.functional.cosine_similarity
    one_sided = -(similarity(p[0], z[1].detach()).mean() + similarity(p[1], z[0].detach()).mean()) / 2
    expected = torch.autograd.grad(one_sided, model.projector[0].weight)[0]
    torch.testing.assert_close(gradient(), expected, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(gradient(stop_gradient=False), expected, atol=1e-4)


def test_predictor_keeps_its_learning_rate_only_if_told():
    assert make_model().constant_lr_modules == ("predictor",)
    assert make_model(constant_predictor_lr=False).constant_lr_modules == ()
    assert SimSiamForPreTraining.constant_lr_modules == ()


def test_there_is_no_second_network():
    model = make_model()
    assert model.frozen_modules == () and len(model.trainable_parameters()) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projector_layers": 0}, "`projector_layers` must be at least 1, got 0"),
        ({"predictor_layers": 0}, "`predictor_layers` must be at least 1, got 0"),
        ({"projector_hidden_dim": 0}, "`projector_hidden_dim` must be at least 1, got 0"),
        ({"projection_dim": 0}, "`projection_dim` must be at least 1, got 0"),
        ({"predictor_hidden_dim": 0}, "`predictor_hidden_dim` must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SimSiamConfig(**settings)
