"""Spreads between images and within views: known covariances, a slow direct computation, and the paper's theorem."""

import itertools

import pytest
import torch
from torch import Tensor

from hf_ssl.diagnostics.augmentation import (
    ViewSpreads,
    augmentation_shares,
    directions_of,
    theorem_spreads,
    variance_along,
    view_spreads,
)
from hf_ssl.dynamics.dimensional_collapse import contrastive_spreads

BETWEEN = torch.diag(torch.tensor([4.0, 1.0, 0.25, 0.0])).double()
WITHIN = torch.tensor([[1.0, 0.5, 0, 0], [0.5, 2.0, 0, 0], [0, 0, 0.1, 0], [0, 0, 0, 0.3]]).double()


def drawn(images: int, views: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normal images and views of known covariances."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.linalg.cholesky(WITHIN)
    x = torch.randn(images, 4, generator=generator, dtype=torch.float64) @ BETWEEN.sqrt()
    return x, x[:, None] + torch.randn(images, views, 4, generator=generator, dtype=torch.float64) @ noise.T


def by_loops(views: Tensor) -> ViewSpreads:
    """Both covariances from products of pairs: different views of an image, and of views of different images."""
    images, count, dim = views.shape
    same, other, square = (torch.zeros(dim, dim, dtype=torch.float64) for _ in range(3))
    for i, (u, v) in itertools.product(range(images), itertools.permutations(range(count), 2)):
        same += torch.outer(views[i, u], views[i, v]) / (images * count * (count - 1))
    for (i, j), u, v in itertools.product(itertools.permutations(range(images), 2), range(count), range(count)):
        other += torch.outer(views[i, u], views[j, v]) / (images * (images - 1) * count**2)
    for i, u in itertools.product(range(images), range(count)):
        square += torch.outer(views[i, u], views[i, u]) / (images * count)
    return ViewSpreads(same - other, square - same)


@pytest.mark.parametrize("views", [2, 3])
def test_spreads_are_those_of_all_pairs(views: int):
    _, features = drawn(6, views)
    for found, expected in zip(view_spreads(features + 7), by_loops(features + 7), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("views", [2, 5])
def test_the_mean_over_many_draws_is_the_true_covariance(views: int):
    # Few images and views: a biased estimate would be off by a fifth or more.
    found = [view_spreads(drawn(5, views, seed)[1]) for seed in range(2000)]
    for number, expected in enumerate((BETWEEN, WITHIN)):
        mean = torch.stack([one[number] for one in found]).mean(dim=0)
        torch.testing.assert_close(mean, expected, rtol=0.03, atol=0.04)


def test_the_theorem_loses_what_varies_more_by_augmentation_than_twice_the_data():
    images, views = drawn(20_000, 2)
    spreads = theorem_spreads(images, views)
    torch.testing.assert_close(spreads.between, 2 * BETWEEN, rtol=0.05, atol=0.05)
    torch.testing.assert_close(spreads.within, WITHIN, rtol=0.05, atol=0.05)
    found = directions_of(spreads.between - spreads.within, spreads.total)
    # 0.3 against twice 0 in the last; in the second 2.0 meets twice 1.0, and the correlation tips the balance.
    expected = torch.linalg.eigvalsh(2 * BETWEEN - WITHIN)
    assert found.negative.shape[1] == int((expected < 0).sum()) == 2


def test_equal_weights_are_those_of_the_loss_with_small_embeddings():
    images, views = drawn(60, 1)
    tiny = 1e-4 * torch.eye(4, dtype=torch.float64)
    theory = contrastive_spreads(tiny, images, views[:, 0])
    found = theorem_spreads(images, views)
    # A softmax over n images has a weight of 1 / n for each, of which n - 1 are others.
    torch.testing.assert_close(theory.data, found.between * 59 / 60, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theory.augmentation, found.within * 59 / 60, rtol=1e-4, atol=1e-5)


def test_with_two_augmented_views_nothing_is_lost_at_equal_weights():
    tiny = 1e-4 * torch.eye(4, dtype=torch.float64)
    pairs = [drawn(100, 2, seed)[1].unbind(dim=1) for seed in range(60)]
    growth = torch.stack([contrastive_spreads(tiny, *pair).growth for pair in pairs]).mean(dim=0)
    torch.testing.assert_close(growth, 2 * BETWEEN * 99 / 100, rtol=0.1, atol=0.15)


def test_the_number_of_directions_survives_a_linear_layer():
    spreads = view_spreads(drawn(400, 3)[1])
    layer = torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    mixed = view_spreads(drawn(400, 3)[1] @ layer.T)
    counts = [directions_of(one.between - one.within, one.total).negative.shape[1] for one in (spreads, mixed)]
    assert counts == [2, 2]
    torch.testing.assert_close(augmentation_shares(spreads), augmentation_shares(mixed))
    assert int((augmentation_shares(spreads) > 0.5).sum()) == 2


def test_directions_that_are_not_used_do_not_count():
    _, views = drawn(200, 3)
    wide = torch.cat([views, 1e-9 * torch.randn(200, 3, 5, dtype=torch.float64)], dim=2)
    spreads = view_spreads(wide)
    found = directions_of(spreads.between - spreads.within, spreads.total)
    assert found.vectors.shape == (9, 4) and len(augmentation_shares(spreads)) == 4
    torch.testing.assert_close(
        variance_along(spreads.between - spreads.within, found.vectors), found.eigenvalues, rtol=1e-6, atol=1e-9
    )


def test_one_view_is_refused():
    with pytest.raises(ValueError, match="at least 2 images and 2 views, got \\(5, 1, 4\\)"):
        view_spreads(torch.zeros(5, 1, 4))
