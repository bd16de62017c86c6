"""Alignment and uniformity against loops, limits and the values of an even distribution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ssl.diagnostics import alignment, class_alignment, uniformity


def unit(rows):
    return [[value / math.hypot(*row) for value in row] for row in rows]


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.5])
def test_alignment_by_loops(exponent):
    first, second = torch.randn(7, 4), torch.randn(7, 4)
    pairs = zip(unit(first.tolist()), unit(second.tolist()), strict=True)
    expected = sum(math.dist(a, b) ** exponent for a, b in pairs) / 7
    assert alignment(first, second, exponent).item() == pytest.approx(expected, rel=1e-5)


def test_class_alignment_by_loops():
    features, labels = 3 * torch.randn(40, 4), torch.randint(-1, 5, (40,))
    labels[labels == 4] = 9  # classes need not be dense, and one may have a single image
    features, labels = torch.cat([features, torch.randn(1, 4)]), torch.cat([labels, torch.tensor([7])])
    rows = unit(features.tolist())
    pairs = [
        math.dist(rows[i], rows[j]) ** 2
        for i in range(41)
        for j in range(i)
        if labels[i] == labels[j] and labels[i] >= 0
    ]
    assert class_alignment(features, labels).item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-6)


def test_limits_of_class_alignment():
    centres = torch.eye(3)
    labels = torch.arange(12) % 3
    assert class_alignment(centres[labels], labels).item() == pytest.approx(0, abs=1e-12)
    assert class_alignment(torch.eye(12), labels).item() == pytest.approx(2)
    antipodes = torch.tensor([[1.0, 0.0], [-5.0, 0.0]])
    assert class_alignment(antipodes, torch.zeros(2, dtype=torch.int64)).item() == pytest.approx(4)
    # A vector without direction stays in the centre of the sphere, as in `alignment`.
    with_zero = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert class_alignment(with_zero, torch.zeros(2, dtype=torch.int64)).item() == pytest.approx(1)


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_uniformity_by_loops(t):
    features = torch.randn(9, 3)
    rows = unit(features.tolist())
    pairs = [math.exp(-t * math.dist(rows[i], rows[j]) ** 2) for i in range(9) for j in range(9) if i != j]
    assert uniformity(features, t).item() == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)


def test_limits():
    same = torch.randn(1, 5).expand(6, 5)
    assert alignment(same, same).item() == 0 and uniformity(same).item() == pytest.approx(0, abs=1e-6)
    assert alignment(same, -same).item() == pytest.approx(4)
    antipodes = torch.stack([same[0], -same[0]])
    assert uniformity(antipodes).item() == pytest.approx(-8)


def test_uniformity_of_isotropic_features():
    features = torch.randn(2000, 128, generator=torch.Generator().manual_seed(0))
    assert uniformity(features).item() == pytest.approx(-4 + 8 / 128, abs=3e-3)


@settings(deadline=None, max_examples=25)
@given(images=st.integers(2, 30), dim=st.integers(1, 20), seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3))
def test_scale_and_order_do_not_matter(images: int, dim: int, seed: int, scale: float):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, images, dim, generator=generator).unbind(0)
    order = torch.randperm(images, generator=generator)
    np.testing.assert_allclose(alignment(first * scale, second), alignment(first[order], second[order]), rtol=1e-4)
    np.testing.assert_allclose(uniformity(first * scale), uniformity(first[order]), atol=1e-4)
    assert -8 - 1e-4 <= uniformity(first).item() <= 1e-6


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"row by row, got \(3, 2\) and \(4, 2\)"):
        alignment(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"`labels` \(images,\), got \(3, 2\) and \(4,\)"):
        class_alignment(torch.ones(3, 2), torch.zeros(4, dtype=torch.int64))
    for labels in ([0, 1, 2], [-1, -1, -1]):
        with pytest.raises(ValueError, match="no two images share one"):
            class_alignment(torch.ones(3, 2), torch.tensor(labels))
    with pytest.raises(ValueError, match="at least two images"):
        uniformity(torch.ones(1, 2))
    with pytest.raises(ValueError, match="`t` must be positive, got 0"):
        uniformity(torch.ones(3, 2), t=0)
    with pytest.raises(ValueError, match="`exponent` must be positive"):
        alignment(torch.ones(3, 2), torch.ones(3, 2), exponent=0)
