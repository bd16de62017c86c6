import math

import numpy as np
import pytest
import torch

from hf_ssl.diagnostics import false_negative_share, matching_probabilities


def test_probabilities_by_loops():
    positive, negatives = torch.randn(5, 1), torch.randn(5, 12)
    negatives[2, 3:] = -torch.inf
    hardest = negatives.topk(7).values
    rows = []
    for own, others in zip(positive[:, 0].tolist(), negatives.tolist(), strict=True):
        exponentials = sorted((math.exp(other / 0.3) for other in others), reverse=True)
        rows.append([value / (math.exp(own / 0.3) + sum(exponentials)) for value in exponentials[:7]])
    probabilities = matching_probabilities(positive, negatives, hardest, 0.3)
    np.testing.assert_allclose(probabilities.numpy(), np.mean(rows, axis=0), rtol=1e-5)


def test_equal_keys_share_the_probability_and_extreme_scores_stay_finite():
    scores = torch.full((4, 9), 0.7)
    torch.testing.assert_close(matching_probabilities(scores[:, :1], scores, scores, 0.2), torch.full((9,), 0.1))
    cold = matching_probabilities(scores[:, :1] - 1, scores[:, :1], scores[:, :1], 1e-4)
    assert cold.tolist() == [1.0]
    nothing = torch.full((4, 3), -torch.inf)
    assert matching_probabilities(scores[:, :1], nothing, nothing, 0.2).tolist() == [0.0] * 3


def test_probabilities_of_all_keys_are_what_the_positive_lacks():
    positive, negatives = torch.randn(6, 1).double(), torch.randn(6, 20).double()
    total = matching_probabilities(positive, negatives, negatives.sort(descending=True).values, 0.2).sum()
    own = torch.softmax(torch.cat([positive, negatives], dim=1) / 0.2, dim=1)[:, 0].mean()
    assert total.item() == pytest.approx(1 - own.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "of_negatives", "share"),
    [
        ([0, 1], [[0, 0, 1], [0, 0, 1]], 3 / 6),
        ([0, -1], [[0, -1, 1], [-1, -1, 1]], 1 / 2),  # unknown classes match nothing and do not count
        ([-1, -1], [[-1, 0], [-1, 1]], 0.0),
        ([4], [[4, 4]], 1.0),
    ],
)
def test_share_of_false_negatives(labels, of_negatives, share):
    found = false_negative_share(torch.tensor(labels), torch.tensor(of_negatives))
    assert found.item() == pytest.approx(share) and found.dtype == torch.float32
