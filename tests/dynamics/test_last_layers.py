"""The last layers beyond the paper's theory: descent by hand, and what each term is derived to do."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_ssl.dynamics.last_layers import Descent, LastLayers, Terms, descend, normal_pairs

WIDTH, DIM = 12, 6
HOW: dict[str, Any] = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3, "batch_size": 32, "num_steps": 40}


def pairs(count: int = 256, mean: float = 0.0, noise: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(count, WIDTH, generator=generator) * torch.linspace(1.5, 0.5, WIDTH)
    views = shared[:, None] + noise * torch.randn(count, 2, WIDTH, generator=generator)
    return views + mean * torch.ones(WIDTH) / WIDTH**0.5


def layers(features: Tensor, hidden: nn.Module | None = None, predictor: nn.Module | None = None) -> LastLayers:
    torch.manual_seed(1)
    return LastLayers(
        features=features,
        hidden=hidden or nn.Sequential(),
        last=nn.Linear(WIDTH, DIM, bias=False),
        predictor=predictor or nn.Linear(DIM, DIM, bias=False),
    )


def by_hand(start: LastLayers, how: Descent, *, normalised: bool) -> Tensor:
    """Eigenvalues of z after full batches, with gradients as the module derives them and SGD as torch's writes it."""
    x = start.features.double()
    w = start.last.weight.detach().double()
    p = start.predictor.get_parameter("weight").detach().double()
    rate, decay = how.learning_rate, how.weight_decay
    if not normalised:
        size = (x @ w.T).square().sum(dim=-1).mean().item()
        rate, decay = rate / size, decay * size
    target, speed_w, speed_p = w, torch.zeros_like(w), torch.zeros_like(p)
    for _ in range(how.num_steps):
        slope_w, slope_p = torch.zeros_like(w), torch.zeros_like(p)
        for one, other in ((0, 1), (1, 0)):
            z, aim = x[:, one] @ w.T, x[:, other] @ (w if how.ema_momentum is None else target).T
            y = z @ p.T
            long, length = y.norm(dim=1, keepdim=True), aim.norm(dim=1, keepdim=True)
            if normalised:
                cosine = (y * aim).sum(dim=1, keepdim=True) / (long * length)
                at_y = -2 * (aim / length - cosine * y / long) / long
                at_aim = -2 * (y / long - cosine * aim / length) / length
            else:
                at_y, at_aim = 2 * (y - aim), 2 * (aim - y)
            slope_p += at_y.T @ z / len(x)
            slope_w += (at_y @ p).T @ x[:, one] / len(x)
            if not how.stop_gradient:
                slope_w += at_aim.T @ x[:, other] / len(x)
        speed_w = how.momentum * speed_w + slope_w + decay * w
        speed_p = how.momentum * speed_p + slope_p + decay * p
        w = w - rate * speed_w
        p = p - rate * how.predictor_lr_multiplier * speed_p
        if how.symmetrize:
            p = (p + p.T) / 2
        if how.ema_momentum is not None:
            target = how.ema_momentum * target + (1 - how.ema_momentum) * w
    z = (x @ w.T).flatten(0, 1)
    z = z - z.mean(dim=0)
    return torch.linalg.eigvalsh(z.T @ z / len(z)).flip(0)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(
    "others",
    [
        {},
        {"ema_momentum": 0.9},
        {"stop_gradient": False},
        {"symmetrize": True, "predictor_lr_multiplier": 3.0},
    ],
)
def test_descent_is_that_of_the_gradients_derived_by_hand(others, normalised):
    how = Descent(**(HOW | {"batch_size": 64} | others))
    start = layers(pairs(64, mean=2.0))
    found = descend(start, how, Terms(normalised=normalised))
    assert found[-1].step == 40
    expected = by_hand(start, how, normalised=normalised).tolist()
    assert found[-1].eigenvalues == pytest.approx(expected, rel=2e-3, abs=1e-4)
    shares = torch.tensor(expected).clamp(min=0) / sum(expected)
    assert found[-1].rank == pytest.approx(math.exp(torch.special.entr(shares).sum().item()), rel=2e-3)


def test_a_normalised_loss_leaves_the_scale_of_weights_to_their_decay():
    # sum(W * gradient) = 0: at small steps |z|^2 falls by the decay alone, as exp(-2 lr wd steps).
    start = layers(pairs(mean=0.0))
    how = {"learning_rate": 1e-4, "momentum": 0.0, "weight_decay": 20.0, "batch_size": 256, "num_steps": 200}
    before, *_, after = descend(start, Descent(**how), Terms())
    sizes = [sum(look.eigenvalues) for look in (before, after)]
    assert sizes[1] / sizes[0] == pytest.approx(math.exp(-2 * 1e-4 * 20 * 200), rel=0.005)
    # The squared loss moves the scale as well.
    squared = descend(start, Descent(**how), Terms(normalised=False))[-1]
    assert sum(squared.eigenvalues) / sizes[1] < 0.99


def test_a_common_mean_takes_the_rank_without_taking_a_direction():
    start = layers(pairs(mean=12.0, noise=1.0))
    how = Descent(**(HOW | {"ema_momentum": 0.9, "num_steps": 60}))
    without = descend(start, how, Terms(common_mean=False))
    with_mean = descend(start, how, Terms())
    assert with_mean[0].rank == pytest.approx(without[0].rank, rel=0.05)
    assert with_mean[-1].rank < 0.6 * without[-1].rank
    # One direction grows; no other loses more than a third of its variance.
    first, last = (torch.tensor(look.eigenvalues) for look in (with_mean[0], with_mean[-1]))
    assert last[0] > 10 * first[0] and (last[1:] > 0.66 * first[1:]).all()
    # The loss does not see it: it is along the mean, where unit vectors do not differ.
    assert with_mean[-1].spread < 0.1 * without[-1].spread


def test_normal_pairs_have_the_moments_that_were_measured_and_one_noise():
    measured = pairs(4000, mean=3.0, noise=1.0)
    drawn = normal_pairs(measured, 40_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(dim=(0, 1)), measured.mean(dim=(0, 1)), atol=0.05, rtol=0)
    centred, seen = drawn - drawn.mean(dim=(0, 1)), measured - measured.mean(dim=(0, 1))
    between, expected = (one[:, 0].T @ one[:, 1] / len(one) for one in (centred, seen))
    torch.testing.assert_close(between, (expected + expected.T) / 2, atol=0.08, rtol=0)
    # Measured noise is even; drawn noise is larger where the signal is.
    noise = [(one[:, 0] - one[:, 1]).var(dim=0) / 2 for one in (centred, seen)]
    assert noise[1].max() < 1.1 * noise[1].min() and noise[0].max() > 4 * noise[0].min()
    assert noise[0].sum() == pytest.approx(noise[1].sum().item(), rel=0.05)


def test_a_batch_norm_that_learns_and_decays_leaves_images_less():
    start = layers(pairs(), nn.Sequential(nn.BatchNorm1d(WIDTH), nn.ReLU()))
    how = Descent(**(HOW | {"weight_decay": 0.5, "num_steps": 300}))
    learns, fixed = (descend(start, how, Terms(batch_norm=on))[-1] for on in (True, False))
    assert learns.spread < 0.5 * fixed.spread


def test_hidden_layers_that_are_fixed_are_one_layer_over_what_they_give():
    torch.manual_seed(2)
    hidden = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
    with torch.no_grad():
        given = layers(hidden(pairs(mean=2.0)))
    how = Descent(**HOW)
    found = descend(layers(pairs(mean=2.0), hidden), how, Terms(hidden_layers=False))
    expected = descend(given, how, Terms())
    assert found[-1].eigenvalues == pytest.approx(expected[-1].eigenvalues, rel=1e-3, abs=1e-5)
    learnt = descend(layers(pairs(mean=2.0), hidden), how, Terms())
    assert learnt[0] == found[0] and learnt[-1].rank != pytest.approx(found[-1].rank, rel=0.1)


def test_hidden_layers_that_learn_follow_their_gradient():
    # Two linear layers: the gradient of either is the gradient of their product, taken through the other.
    torch.manual_seed(2)
    start = layers(pairs(64, mean=2.0), nn.Linear(WIDTH, WIDTH, bias=False))
    how = Descent(**(HOW | {"batch_size": 64, "momentum": 0.0, "num_steps": 10}))
    x, last = start.features.double(), start.last.weight.detach().double()
    first, p = (one.get_parameter("weight").detach().double() for one in (start.hidden, start.predictor))
    for _ in range(how.num_steps):
        slope_p, slope_product = torch.zeros_like(p), torch.zeros_like(last)
        for one, other in ((0, 1), (1, 0)):
            z, aim = (x[:, view] @ (last @ first).T for view in (one, other))
            y = z @ p.T
            unit, towards = y / y.norm(dim=1, keepdim=True), aim / aim.norm(dim=1, keepdim=True)
            cosine = (unit * towards).sum(dim=1, keepdim=True)
            at_y = -2 * (towards - cosine * unit) / y.norm(dim=1, keepdim=True) / len(x)
            slope_p += at_y.T @ z
            slope_product += (at_y @ p).T @ x[:, one]
        slope_last, slope_first = slope_product @ first.T, last.T @ slope_product
        last, first, p = (
            weight - how.learning_rate * (slope + how.weight_decay * weight)
            for weight, slope in ((last, slope_last), (first, slope_first), (p, slope_p))
        )
    z = (x @ (last @ first).T).flatten(0, 1)
    z = z - z.mean(dim=0)
    expected = torch.linalg.eigvalsh(z.T @ z / len(z)).flip(0).tolist()
    assert descend(start, how, Terms())[-1].eigenvalues == pytest.approx(expected, rel=2e-3, abs=1e-4)


def test_a_predictor_with_hidden_layers_keeps_the_rank_of_few_pairs_that_it_learns_by_heart():
    ranks = {}
    for count in (64, 4096):
        torch.manual_seed(3)
        mlp = nn.Sequential(nn.Linear(DIM, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, DIM))
        start = layers(pairs(count, mean=2.0, noise=2.0), predictor=mlp)
        ranks[count] = descend(start, Descent(**(HOW | {"num_steps": 400, "weight_decay": 0.01})), Terms())[-1].rank
    assert ranks[64] > 1.1 * ranks[4096], ranks


def test_layers_stay_as_they_are_and_a_seed_is_one_descent():
    start = layers(pairs(), nn.Sequential(nn.BatchNorm1d(WIDTH), nn.ReLU()))
    before = copy.deepcopy([*start.hidden.state_dict().values(), start.last.weight, *start.predictor.parameters()])
    first, second = (descend(start, Descent(**HOW), Terms(), looks=4) for _ in range(2))
    other = descend(start, Descent(**HOW, seed=1), Terms(), looks=4)
    for one, same in zip(
        before, [*start.hidden.state_dict().values(), start.last.weight, *start.predictor.parameters()], strict=True
    ):
        assert torch.equal(one, same)
    assert first == second and first[-1] != other[-1]
    assert [look.step for look in first] == [0, 10, 20, 30, 40]


def test_a_descent_that_diverges_ends_early():
    how: dict[str, Any] = HOW | {"learning_rate": 50.0}
    found = descend(layers(pairs()), Descent(**how), Terms(normalised=False))
    assert found[-1].step < 40 and all(map(math.isfinite, found[-1].eigenvalues))


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="A step takes 32 pairs, got 31"):
        descend(layers(pairs(31)), Descent(**HOW), Terms())
