import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_ssl.modules import losses as losses_module
from hf_ssl.modules.losses import (
    contrast,
    cross_view_info_nce,
    info_nce,
    negative_cosine,
    nt_xent,
    regression_loss,
)


def _rows(tensor: torch.Tensor) -> list[np.ndarray]:
    return [row.numpy().astype(np.float64) for row in tensor]


def _unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_negative_cosine_by_loops():
    p, z = torch.randn(5, 7) * 3, torch.randn(5, 7)
    cosines = [a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(_rows(p), _rows(z), strict=True)]
    assert negative_cosine(p, z).item() == pytest.approx(-sum(cosines) / 5, rel=1e-5)


def test_regression_loss_by_loops():
    p, z = torch.randn(5, 7), torch.randn(5, 7) * 100
    total = 0.0
    for a, b in zip(_rows(p), _rows(z), strict=True):
        difference = a / math.sqrt(a @ a) - b / math.sqrt(b @ b)
        total += float(difference @ difference)
    assert regression_loss(p, z).item() == pytest.approx(total / 5, rel=1e-5)


def test_cosine_losses_at_their_limits():
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert [negative_cosine(x, other).item() for other in (x, -x, y)] == [-1.0, 1.0, 0.0]
    assert [regression_loss(x, other).item() for other in (x, -x, y)] == [0.0, 4.0, 2.0]
    assert torch.isfinite(negative_cosine(torch.zeros(2, 3), torch.ones(2, 3)))


def test_info_nce_by_loops():
    query, positive, negatives = _unit(4, 6), _unit(4, 6), _unit(9, 6)
    tau, total, right = 0.3, 0.0, 0
    for q, k in zip(_rows(query), _rows(positive), strict=True):
        scores = [math.exp(q @ n / tau) for n in _rows(negatives)]
        own = math.exp(q @ k / tau)
        total -= math.log(own / (own + sum(scores)))
        right += own > max(scores)
    loss, accuracy = info_nce(query, positive, negatives, tau)
    assert loss.item() == pytest.approx(total / 4, rel=1e-5)
    assert accuracy.item() == right / 4 and not accuracy.requires_grad


def test_info_nce_with_one_negative_is_the_logistic_loss():
    query, positive, negative = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]]), torch.tensor([[0.0, 1.0]])
    loss, accuracy = info_nce(query, positive, negative, 0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.6 / 0.5)), rel=1e-6)
    assert accuracy.item() == 1.0


@pytest.mark.parametrize("chunk_numbers", [1, 12, 2**20])
@pytest.mark.parametrize("among_them", [False, True])
@pytest.mark.parametrize("tau", [0.01, 0.2, 10.0])
def test_info_nce_and_its_gradient_are_those_of_all_scores_at_once(monkeypatch, chunk_numbers, among_them, tau):
    monkeypatch.setattr(losses_module, "_CHUNK_NUMBERS", {"cpu": chunk_numbers})
    negatives, own = _unit(11, 6), torch.tensor([10, 0, 3, 3])
    positive = negatives[own] if among_them else _unit(4, 6)
    query, slow_query = (F.normalize(positive + 0.5, dim=1).requires_grad_() for _ in range(2))
    key, slow_key = (positive.clone().requires_grad_() for _ in range(2))
    loss, accuracy = info_nce(query, key, negatives, tau, own=own if among_them else None)
    scores = slow_query @ negatives.T
    if among_them:
        scores = scores.scatter(1, own[:, None], -torch.inf)
    slow_loss, slow_accuracy = contrast((slow_query * slow_key).sum(1, keepdim=True), [scores], tau)
    torch.testing.assert_close(loss, slow_loss)
    assert accuracy == slow_accuracy
    (3 * loss).backward()
    (3 * slow_loss).backward()
    torch.testing.assert_close(query.grad, slow_query.grad)
    torch.testing.assert_close(key.grad, slow_key.grad)


def test_the_gradient_of_info_nce_is_that_of_finite_differences():
    query, keys = _unit(3, 4).double().requires_grad_(), _unit(7, 4).double()
    left_out = torch.tensor([0, 6, 2])

    def sums(query: torch.Tensor) -> torch.Tensor:
        return losses_module._LogSumExp.apply(query, keys, 0.3, left_out)[0]

    assert torch.autograd.gradcheck(sums, query)


def test_keys_may_be_written_before_the_backward_pass():
    query, negatives = _unit(4, 6).requires_grad_(), _unit(9, 6)
    positive = _unit(4, 6)
    expected = torch.autograd.grad(info_nce(query, positive, negatives, 0.2)[0], query)[0]
    loss, _ = info_nce(query, positive, negatives, 0.2)
    negatives.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, query)[0], expected)


def test_without_another_key_there_is_nothing_to_learn():
    query, key = _unit(2, 6).requires_grad_(), _unit(1, 6)
    loss, accuracy = info_nce(query, key.expand(2, 6), key, 0.2, own=torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == 0 and accuracy.item() == 1 and not query.grad.any()


def test_negatives_that_ask_for_a_gradient_are_refused():
    with pytest.raises(ValueError, match="`negatives` get no gradient from `info_nce`. Detach them"):
        info_nce(_unit(2, 3), _unit(2, 3), _unit(5, 3).requires_grad_(), 0.1)


@pytest.mark.parametrize("keys", [4096, 65536])
def test_info_nce_starts_near_the_logarithm_of_all_keys(keys):
    loss, accuracy = info_nce(_unit(64, 128), _unit(64, 128), _unit(keys, 128), 0.2)
    # Random unit vectors score N(0, 1 / (128 tau^2)), which adds half its variance to the logarithm.
    assert loss.item() == pytest.approx(math.log(keys + 1) + 0.5 / (128 * 0.2**2), abs=0.15)
    assert accuracy.item() < 0.1


def test_info_nce_at_extreme_temperatures():
    query, positive, negatives = _unit(4, 8), _unit(4, 8), _unit(15, 8)
    hot, _ = info_nce(query, positive, negatives, 1e6)
    assert hot.item() == pytest.approx(math.log(16), rel=1e-4)
    cold, _ = info_nce(query, query, negatives, 1e-4)
    assert cold.item() == pytest.approx(0.0, abs=1e-6)


def test_scores_of_several_groups_of_keys_are_one_softmax_and_minus_infinity_leaves_out():
    positive = torch.tensor([[0.5], [0.1], [0.9]], requires_grad=True)
    groups = [
        torch.tensor([[0.1, 0.2], [-torch.inf, 0.05], [-torch.inf, -torch.inf]], requires_grad=True),
        torch.tensor([[0.7], [-0.3], [-torch.inf]], requires_grad=True),
    ]
    loss, accuracy = contrast(positive, groups, 0.5)
    expected = 0.0
    for own, others in ((0.5, (0.1, 0.2, 0.7)), (0.1, (0.05, -0.3)), (0.9, ())):
        expected -= math.log(math.exp(2 * own) / (math.exp(2 * own) + sum(math.exp(2 * other) for other in others)))
    assert loss.item() == pytest.approx(expected / 3)
    assert accuracy.item() == pytest.approx(2 / 3)
    loss.backward()
    assert groups[0].grad[1, 0] == 0 and positive.grad[2, 0] == 0
    assert all(group.grad.isfinite().all() for group in groups)


def test_cross_view_info_nce_by_loops():
    keys = _unit(7, 6)
    query = F.normalize(keys[2:5] + 0.3 * torch.randn(3, 6), dim=1)
    tau, total, right = 0.3, 0.0, 0
    for i, q in enumerate(_rows(query), start=2):
        scores = [math.exp(q @ k / tau) for k in _rows(keys)]
        total -= math.log(scores[i] / sum(scores))
        right += scores[i] == max(scores)
    loss, accuracy = cross_view_info_nce(query, keys, tau, first=2)
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)
    assert accuracy.item() == pytest.approx(right / 3) and not accuracy.requires_grad


@pytest.mark.parametrize("anchors", [slice(None), slice(1, 3)])
def test_nt_xent_by_loops(anchors):
    first, second = _unit(5, 6), _unit(5, 6)
    vectors = _rows(first) + _rows(second)
    tau, losses, right = 0.3, [], 0
    for image in range(5)[anchors]:
        for own, partner in ((image, image + 5), (image + 5, image)):
            scores = {k: math.exp(vectors[own] @ v / tau) for k, v in enumerate(vectors) if k != own}
            losses.append(-math.log(scores[partner] / sum(scores.values())))
            right += scores[partner] == max(scores.values())
    loss, accuracy = nt_xent(first, second, tau, anchors)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert accuracy.item() == pytest.approx(right / len(losses)) and not accuracy.requires_grad


def test_nt_xent_at_its_limits():
    first, second = _unit(8, 6), _unit(8, 6)
    assert nt_xent(first[:1], second[:1], 0.1)[0].item() == 0  # no negative
    assert nt_xent(first, second, 1e6)[0].item() == pytest.approx(math.log(15), rel=1e-4)
    assert nt_xent(first, first, 1e-3)[0].item() == pytest.approx(0, abs=1e-6)
    same = torch.ones(8, 1)
    assert nt_xent(same, same, 0.1)[0].item() == pytest.approx(math.log(15), rel=1e-6)
    vector = first.clone().requires_grad_()
    nt_xent(vector, vector, 0.01)[0].backward()
    assert vector.grad.isfinite().all()


def test_cross_view_info_nce_at_its_limits():
    query, keys = _unit(8, 6), _unit(8, 6)
    assert cross_view_info_nce(query[:1], keys[:1], 0.1)[0].item() == 0
    assert cross_view_info_nce(query, keys, 1e6)[0].item() == pytest.approx(math.log(8), rel=1e-4)
    assert cross_view_info_nce(query, query, 1e-3)[0].item() == pytest.approx(0, abs=1e-6)


def test_gradients_reach_candidates_of_the_batch():
    first, second = _unit(4, 8).requires_grad_(), _unit(4, 8).requires_grad_()
    nt_xent(first, second, 0.2, slice(0, 2))[0].backward()
    assert (first.grad.abs().amax(1) > 0).all() and (second.grad.abs().amax(1) > 0).all()
    query, keys = _unit(2, 8).requires_grad_(), _unit(4, 8).requires_grad_()
    cross_view_info_nce(query, keys, 0.2)[0].backward()
    assert (query.grad.abs().amax(1) > 0).all() and (keys.grad.abs().amax(1) > 0).all()


def test_gradients_reach_the_query_and_not_a_detached_key():
    query, key = _unit(4, 8).requires_grad_(), _unit(4, 8).requires_grad_()
    info_nce(query, key.detach(), _unit(5, 8), 0.2)[0].backward()
    assert query.grad.abs().sum() > 0 and key.grad is None


def test_losses_stay_in_float32_under_autocast():
    query, positive, negatives = _unit(8, 64), _unit(8, 64), _unit(4096, 64)

    def losses() -> list[torch.Tensor]:
        contrasts = (nt_xent(query, positive, 0.07), cross_view_info_nce(query, positive, 0.07))
        contrasts += (info_nce(query, positive, negatives, 0.07),)
        return [negative_cosine(query, positive), *(loss for loss, _ in contrasts)]

    exact = losses()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = losses()
    for a, b in zip(exact, autocast, strict=True):
        assert b.dtype == torch.float32 and torch.equal(a, b)
    assert info_nce(query.bfloat16(), positive.bfloat16(), negatives, 0.07)[0].dtype == torch.float32


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"`prediction` and `target` must have one shape, got \(2, 3\) and \(1, 3\)"):
        negative_cosine(torch.ones(2, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"`query` and `positive` must have one shape"):
        info_nce(torch.ones(2, 3), torch.ones(1, 3), torch.ones(5, 3), 0.1)
    with pytest.raises(ValueError, match=r"`first` and `second` must have one shape, got \(2, 3\) and \(1, 3\)"):
        nt_xent(torch.ones(2, 3), torch.ones(1, 3), 0.1)
