import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_ssl.modules.momentum import cosine_momentum, update_target


def _pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
def test_parameters_follow_the_formula(momentum):
    target, online = _pair()
    before = [parameter.detach().numpy().astype(np.float64) for parameter in target.parameters()]
    update_target(target, online, momentum)
    for old, new, source in zip(before, target.parameters(), online.parameters(), strict=True):
        expected = momentum * old + (1 - momentum) * source.detach().numpy().astype(np.float64)
        np.testing.assert_allclose(new.detach().numpy(), expected, rtol=1e-6, atol=1e-7)


def test_full_momentum_keeps_every_bit_and_the_online_network_never_moves():
    target, online = _pair()
    target_before = [parameter.clone() for parameter in target.parameters()]
    online_before = [parameter.clone() for parameter in online.parameters()]
    update_target(target, online, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(target_before, target.parameters(), strict=True))
    update_target(target, online, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(online_before, online.parameters(), strict=True))


def test_buffers_are_left_alone():
    target, online = _pair()
    online[1].running_mean.fill_(5.0)
    update_target(target, online, 0.0)
    assert torch.equal(target[1].running_mean, torch.zeros(4))


def test_small_steps_are_not_lost():
    target, online = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        target.weight.fill_(1.0)
        online.weight.fill_(2.0)
    for _ in range(1000):
        update_target(target, online, 0.9999)
    assert target.weight.item() == pytest.approx(2 - 0.9999**1000, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_targets_are_refused(dtype):
    target, online = _pair()
    with pytest.raises(RuntimeError, match="half precision, in which a moving average stands still"):
        update_target(target.to(dtype), online, 0.99)


def test_cosine_momentum_has_the_values_of_the_official_schedule():
    assert cosine_momentum(0.996, 0.0) == 0.996
    assert cosine_momentum(0.996, 0.5) == pytest.approx(0.998)
    assert cosine_momentum(0.996, 1.0) == 1.0
    assert cosine_momentum(0.99, 0.25) == pytest.approx(1 - 0.01 * (1 + math.sqrt(0.5)) / 2)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_cosine_momentum_rises_within_its_bounds(base, early, late):
    early, late = sorted((early, late))
    assert base - 1e-12 <= cosine_momentum(base, early) <= cosine_momentum(base, late) + 1e-12 <= 1 + 2e-12
