import math

import numpy as np
import pytest
import torch
from torch import nn

from hf_ssl.errors import UserError
from hf_ssl.methods.byol import BYOLConfig, BYOLForPreTraining


def make_model(**settings) -> BYOLForPreTraining:
    sizes = {"projector_hidden_dim": 32, "predictor_hidden_dim": 16, "projection_dim": 8}
    torch.manual_seed(0)
    return BYOLForPreTraining(BYOLConfig(architecture="test_resnet", image_size=32, **{**sizes, **settings}))


def make_views(batch_size: int = 6) -> torch.Tensor:
    return torch.randn(batch_size, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over the batch of the squared distance of unit vectors, by loops in float64."""
    total = 0.0
    for row, other in zip(a.detach().double().numpy(), b.detach().double().numpy(), strict=True):
        difference = row / math.sqrt(sum(row**2)) - other / math.sqrt(sum(other**2))
        total += sum(difference**2)
    return total / len(a)


@pytest.mark.parametrize(
    "settings",
    [{}, {"predictor": "linear"}, {"predictor": "none"}, {"use_ema": False}, {"target_init": "independent"}],
)
def test_loss_is_the_sum_of_both_directions(settings):
    model = make_model(**settings)
    first, second = make_views().unbind(dim=1)
    # Each view passes on its own: BatchNorm statistics are those of one view.
    z = [model.projector(model.encoder(view)) for view in (first, second)]
    targets = z
    if settings.get("use_ema", True):
        targets = [model.target_projector(model.target_encoder(view)) for view in (first, second)]
    expected = squared_distance(model.predictor(z[0]), targets[1]) + squared_distance(
        model.predictor(z[1]), targets[0]
    )
    assert model(make_views()).loss.item() == pytest.approx(expected, rel=1e-4)


def test_heads_are_those_of_the_official_code():
    model = make_model()
    for head, width in ((model.projector, model.hidden_size), (model.predictor, 8)):
        kinds = [type(layer) for layer in head]
        assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert head[0].in_features == width and head[0].bias is not None and head[3].bias is None
    plain = make_model(projector_affine=False, projector_bias=True, predictor_affine=False)
    assert plain.projector[3].bias is not None and plain.predictor[3].bias is None
    assert not plain.projector[1].affine and not plain.predictor[1].affine and not plain.target_projector[1].affine
    assert isinstance(make_model(predictor="linear").predictor, nn.Linear)
    assert list(make_model(predictor="none").predictor.parameters()) == []


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_target_follows_the_schedule_of_the_official_code(schedule):
    model = make_model(ema_momentum=0.9, ema_schedule=schedule)
    num_steps = 4
    expected = model.target_projector[0].weight.detach().double().numpy()
    for step in range(1, num_steps + 1):
        with torch.no_grad():
            model.projector[0].weight.add_(1.0)
        # DeepMind's update number k, counted from 0, has tau = 1 - (1 - base) (cos(pi k / K) + 1) / 2.
        tau = 0.9 if schedule == "constant" else 1 - 0.1 * (math.cos(math.pi * (step - 1) / num_steps) + 1) / 2
        expected = tau * expected + (1 - tau) * model.projector[0].weight.detach().double().numpy()
        model.after_optimizer_step(step, num_steps)
        np.testing.assert_allclose(model.target_projector[0].weight.detach().numpy(), expected, rtol=1e-5, atol=1e-7)


def test_target_keeps_running_statistics_of_its_own_in_training_mode():
    model = make_model()
    model(make_views())
    assert model.target_projector.training
    online, target = model.projector[1].running_mean.clone(), model.target_projector[1].running_mean.clone()
    torch.testing.assert_close(online, target)
    model.projector[1].running_mean.fill_(7.0)
    model.after_optimizer_step(1, 10)
    assert torch.equal(model.target_projector[1].running_mean, target)


def test_symmetrize_averages_the_predictor_with_its_transpose():
    model = make_model(predictor="linear", symmetrize=True)
    weight = model.predictor.weight.detach().double().numpy().copy()
    model.after_optimizer_step(1, 10)
    symmetric = model.predictor.weight.detach().numpy()
    np.testing.assert_allclose(symmetric, (weight + weight.T) / 2, rtol=1e-6)
    assert np.array_equal(symmetric, symmetric.T) and not np.allclose(weight, weight.T)
    free = make_model(predictor="linear")
    before = free.predictor.weight.clone()
    free.after_optimizer_step(1, 10)
    assert torch.equal(before, free.predictor.weight)


def test_without_ema_the_target_is_the_network_itself_behind_a_stop_gradient():
    model = make_model(use_ema=False, predictor="none")
    assert not hasattr(model, "target_encoder") and model.frozen_modules == ()
    views = make_views()
    model(views).loss.backward()
    gradient = model.projector[3].weight.grad.clone()
    model.zero_grad()
    # Without the stop-gradient both sides would send the same gradient: twice as much in all.
    z = [model.projector(model.encoder(view)) for view in views.unbind(dim=1)]
    (4 - 4 * nn.functional.cosine_similarity(z[0], z[1]).mean()).backward()
    torch.testing.assert_close(2 * gradient, model.projector[3].weight.grad, atol=1e-4, rtol=1e-3)
    without = make_model(use_ema=False, predictor="none", stop_gradient=False)
    without.load_state_dict(model.state_dict())
    without(views).loss.backward()
    torch.testing.assert_close(without.projector[3].weight.grad, model.projector[3].weight.grad, atol=1e-4, rtol=1e-3)


def test_orthogonal_outputs_cost_four_and_equal_ones_nothing():
    model = make_model(predictor="none", use_ema=False, projection_dim=2)

    class Fixed(nn.Module):
        def __init__(self, *outputs):
            super().__init__()
            self.outputs = list(outputs)

        def forward(self, h):
            return torch.tensor(self.outputs.pop(0)).expand(len(h), 2) + 0 * h.sum()

    model.projector = Fixed([1.0, 0.0], [0.0, 3.0])
    assert model(make_views()).loss.item() == pytest.approx(4.0)
    model.projector = Fixed([1.0, 2.0], [2.0, 4.0])
    assert model(make_views()).loss.item() == pytest.approx(0.0, abs=1e-6)


def test_without_predictor_and_target_the_outputs_collapse():
    """No predictor and no target: outputs of different images become one (paper, table 5); a predictor prevents it."""

    def final_spread(predictor: str) -> float:
        model = make_model(predictor=predictor, use_ema=False, projection_dim=16, predictor_hidden_dim=32)
        model.encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 96), nn.ReLU())
        optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.1, momentum=0.9)
        generator = torch.Generator().manual_seed(3)
        pictures = torch.randn(32, 1, 3, 8, 8, generator=generator)
        for _ in range(40):
            output = model(pictures + 0.3 * torch.randn(32, 2, 3, 8, 8, generator=generator))
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        return nn.functional.normalize(output.projections[:, 0], dim=1).std(dim=0).mean().item()

    # Unit vectors that point everywhere have a standard deviation of 1 / sqrt(16).
    assert final_spread("mlp") > 0.2 > 0.15 > final_spread("none")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projector_layers": 0}, "`projector_layers` must be at least 1, got 0"),
        ({"predictor_layers": 0}, "`predictor_layers` must be at least 1, got 0"),
        ({"projector_hidden_dim": 0}, "`projector_hidden_dim` must be at least 1, got 0"),
        ({"projection_dim": -1}, "`projection_dim` must be at least 1, got -1"),
        ({"predictor_hidden_dim": 0}, "`predictor_hidden_dim` must be at least 1, got 0"),
        ({"ema_momentum": 1.2}, r"`ema_momentum` must be in \[0, 1\], got 1.2"),
        ({"ema_momentum": float("nan")}, r"`ema_momentum` must be in \[0, 1\], got nan"),
        ({"symmetrize": True}, "`symmetrize` needs `predictor` linear, got mlp"),
        ({"stop_gradient": False}, "`stop_gradient` must be true with `use_ema`, got false: a moving average"),
        ({"predictor": "cubic"}, "predictor"),
        ({"ema_schedule": "linear"}, "ema_schedule"),
        (
            {"predictor_affine": False, "predictor": "linear"},
            "`predictor_affine` off needs `predictor` mlp, got linear",
        ),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        BYOLConfig(**settings)
