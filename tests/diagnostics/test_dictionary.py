"""Measures of a dictionary, against loops, known variances and permutations."""

import math

import numpy as np
import pytest
import torch

from hf_ssl.diagnostics import age_share, effective_negatives, false_negative_weight, key_agreement


def test_agreement_is_the_mean_cosine():
    keys, others = torch.randn(7, 5), torch.randn(7, 5)
    cosines = [
        sum(a * b) / math.sqrt(sum(a * a) * sum(b * b))
        for a, b in zip(keys.double().numpy(), others.double().numpy(), strict=True)
    ]
    assert key_agreement(keys, others).item() == pytest.approx(np.mean(cosines), rel=1e-9)
    assert key_agreement(keys, 3 * keys).item() == pytest.approx(1, abs=1e-12)


def test_age_share_of_known_variances():
    """Groups whose means vary by 1 and members by 3 in each direction: a quarter of the variance is between them."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(400, 1, 8, generator=generator)
    keys = (means + math.sqrt(3) * torch.randn(400, 16, 8, generator=generator)).flatten(0, 1)
    ages = torch.arange(400).repeat_interleave(16)
    assert age_share(keys, ages).item() == pytest.approx(0.25, abs=0.02)
    assert age_share(keys + 5, 1000 - 2 * ages).item() == pytest.approx(age_share(keys, ages).item(), rel=1e-5)


@pytest.mark.parametrize("size", [2, 8, 64])
def test_age_share_of_shuffled_keys_is_nothing_whatever_the_size_of_the_groups(size: int):
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(128, 6, generator=generator) + torch.linspace(0, 3, 128)[:, None]
    ages = torch.arange(128) // size
    assert age_share(keys, ages) > 0.2
    shuffled = [age_share(keys[torch.randperm(128, generator=generator)], ages).item() for _ in range(200)]
    error = np.std(shuffled) / math.sqrt(len(shuffled))
    assert abs(np.mean(shuffled)) < 4 * error + 1e-3


def test_age_share_at_its_ends():
    keys = torch.randn(4, 3).repeat_interleave(5, dim=0)
    assert age_share(keys, torch.arange(4).repeat_interleave(5)).item() == pytest.approx(1)
    assert age_share(keys, torch.zeros(20, dtype=torch.int64)).item() == 0  # one age
    assert age_share(keys, torch.arange(20)).item() == 0  # nothing to compare with
    assert age_share(torch.ones(20, 3), torch.arange(20) // 5).item() == 0


def test_effective_negatives_are_between_one_and_all():
    assert effective_negatives(torch.full((3, 11), 0.4), 0.1).item() == pytest.approx(11)
    assert effective_negatives(torch.tensor([[1.0, 0.0, 0.0]]), 1e-3).item() == pytest.approx(1)
    left_out = torch.tensor([[0.3, 0.3, -torch.inf, 0.3]])
    assert effective_negatives(left_out, 0.1).item() == pytest.approx(3)
    scores = torch.randn(4, 9)
    expected = []
    for row in scores.tolist():
        weights = [math.exp(value / 0.5) for value in row]
        expected.append(sum(weights) ** 2 / sum(weight**2 for weight in weights))
    assert effective_negatives(scores, 0.5).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_weight_of_false_negatives_by_loops():
    scores, tau = torch.randn(4, 6), 0.4
    labels = torch.tensor([0, 1, -1, 2])
    of_keys = torch.tensor([[0, 1, 2, -1, 0, 1]] * 4)
    of_keys[3] = -1
    shares = []
    for row, label in ((0, 0), (1, 1)):
        weights = [math.exp(value / tau) for value in scores[row].tolist()]
        known = [key for key in range(6) if key != 3]
        same = sum(weights[key] for key in known if of_keys[row, key] == label)
        shares.append(same / sum(weights[key] for key in known))
    assert false_negative_weight(scores, labels, of_keys, tau).item() == pytest.approx(np.mean(shares), rel=1e-5)
    nothing = torch.full((4,), -1)
    assert false_negative_weight(scores, nothing, of_keys, tau).item() == 0
