"""Closed forms of the collapse monitors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ssl.diagnostics import effective_rank, feature_std


def test_feature_std_of_equal_features_is_zero():
    assert feature_std(torch.ones(50, 8) * 3).item() == pytest.approx(0, abs=1e-7)


def test_feature_std_of_isotropic_features_is_one_over_root_dim():
    features = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0))
    assert feature_std(features).item() == pytest.approx(1 / math.sqrt(64), rel=0.01)


def test_feature_std_equals_a_loop_over_channels():
    features = np.random.default_rng(0).normal(size=(17, 5))
    unit = [row / math.sqrt(sum(value * value for value in row)) for row in features]
    expected = 0.0
    for channel in range(5):
        values = [row[channel] for row in unit]
        mean = sum(values) / 17
        expected += math.sqrt(sum((value - mean) ** 2 for value in values) / 17) / 5
    assert feature_std(torch.from_numpy(features)).item() == pytest.approx(expected, rel=1e-6)


def test_feature_std_ignores_the_scale_of_each_image():
    features = torch.randn(30, 6)
    scales = torch.rand(30, 1) + 0.1
    torch.testing.assert_close(feature_std(features), feature_std(features * scales))


def test_effective_rank_of_equal_variances_is_the_dimension():
    features = torch.cat([torch.eye(7), -torch.eye(7)])
    assert effective_rank(features).item() == pytest.approx(7, rel=1e-5)


def test_effective_rank_of_one_direction_is_one():
    features = torch.linspace(-1, 1, 40)[:, None] * torch.randn(1, 9) + torch.randn(9)
    assert effective_rank(features).item() == pytest.approx(1, rel=1e-5)


def test_effective_rank_of_complete_collapse_is_zero():
    assert effective_rank(torch.randn(1, 9).expand(40, 9)).item() == 0


def test_effective_rank_of_known_singular_values():
    # Singular values (4, 3, 2, 1): variances (16, 9, 4, 1) give 2.940.
    directions = torch.eye(4) * torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert effective_rank(torch.cat([directions, -directions])).item() == pytest.approx(2.940, abs=5e-4)


@settings(deadline=None, max_examples=30)
@given(images=st.integers(2, 40), dim=st.integers(1, 40), seed=st.integers(0, 1000))
def test_effective_rank_is_bounded_and_the_same_on_both_sides_of_square(images: int, dim: int, seed: int):
    features = torch.randn(images, dim, generator=torch.Generator().manual_seed(seed))
    rank = effective_rank(features).item()
    assert 1 - 1e-4 <= rank <= min(dim, images - 1) + 1e-4
    spectrum = np.linalg.svd(features.double().numpy() - features.double().numpy().mean(0), compute_uv=False) ** 2
    p = spectrum / spectrum.sum()
    p = p[p > 0]
    assert rank == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-4)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e200])
def test_the_rank_of_features_that_are_no_numbers_is_none(wrong):
    """A run that diverges ends with its loss, not in the linear algebra of a monitor."""
    features = torch.randn(8, 4, dtype=torch.float64)
    features[3, 1] = wrong
    assert effective_rank(features).isnan()
