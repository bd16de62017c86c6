import math

import numpy as np
import pytest
import torch
from plain import Node, State, concatenate, l2_normalize, logsumexp, move_target, sequential, stop_gradient
from steps import Batch, compare_steps, encode, make_tiny

from hf_ssl.errors import UserError
from hf_ssl.methods.mochi import Draws, MoCHiConfig, MoCHiForPreTraining, draw_mixtures, mixed_scores
from hf_ssl.methods.moco import MoCoConfig, MoCoForPreTraining

SMALL = {"architecture": "test_resnet", "image_size": 32, "projection_dim": 8, "queue_size": 32, "bn_splits": 1}
MIXING = {"num_hard_negatives": 6, "num_mixed_negatives": 5, "num_mixed_queries": 3, "start_step": 0}


def make_model(**settings) -> MoCHiForPreTraining:
    torch.manual_seed(0)
    return MoCHiForPreTraining(MoCHiConfig(**{**SMALL, **MIXING, **settings}))


def make_views(batch_size: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1)


def unit_rows(tensor: torch.Tensor) -> list[np.ndarray]:
    return [row / math.sqrt(sum(row**2)) for row in tensor.detach().double().numpy()]


def synthetic_points(query: np.ndarray, hard: list[np.ndarray], numbers: np.ndarray, s: int, s2: int) -> list:
    """Section 4 of the paper for one query, from uniform numbers: two ranks and a share, or one rank and a share."""
    points = []
    for m in range(s):
        i = int(numbers[m] * len(hard))
        j = (i + 1 + int(numbers[s + m] * (len(hard) - 1))) % len(hard)
        assert i != j
        alpha = numbers[2 * s + m]
        points.append(alpha * hard[i] + (1 - alpha) * hard[j])
    for m in range(s2):
        beta = 0.5 * numbers[3 * s + s2 + m]
        points.append(beta * query + (1 - beta) * hard[int(numbers[3 * s + m] * len(hard))])
    return [point / math.sqrt(sum(point**2)) for point in points]


def contrast(queries, keys, queue, tau, num_hard=0, numbers=None, s=0, s2=0, hidden=None):
    """Loss and synthetic points by loops in float64; `hidden[b]` are the columns that query b must not see."""
    total, all_points = 0.0, []
    for b, (query, key) in enumerate(zip(queries, keys, strict=True)):
        negatives = [k for column, k in enumerate(queue.double().numpy().T) if not hidden or column not in hidden[b]]
        hard = sorted(negatives, key=lambda k: -sum(query * k))[:num_hard]
        points = [] if numbers is None else synthetic_points(query, hard, numbers[b].double().numpy(), s, s2)
        all_points.append(points)
        own = math.exp(sum(query * key) / tau)
        total -= math.log(own / (own + sum(math.exp(sum(query * k) / tau) for k in [*negatives, *points])))
    return total / len(queries), all_points


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("s", "s2"), [(5, 3), (4, 0), (0, 7), (0, 0)])
def test_loss_is_that_of_the_paper_and_only_keys_are_stored(s, s2, symmetric):
    model = make_model(num_mixed_negatives=s, num_mixed_queries=s2, symmetric=symmetric)
    with torch.no_grad():  # a target that differs from the online network
        for parameter in model.target_encoder.parameters():
            parameter.mul_(1.1)
    queue = model.queue.clone()
    views = make_views().unbind(dim=1)
    queries = [unit_rows(model.projector(model.encoder(view))) for view in views]
    keys = [unit_rows(model.target_projector(model.target_encoder(view))) for view in views]
    torch.manual_seed(7)
    expected, written = 0.0, []
    for query, key in [(0, 1), (1, 0)] if symmetric else [(0, 1)]:
        numbers = torch.rand(6, 3 * s + 2 * s2)
        expected += contrast(queries[query], keys[key], queue, 0.2, 6, numbers, s, s2)[0]
        written += keys[key]
    torch.manual_seed(7)
    output = model(make_views())
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    assert int(model.queue_position) == len(written)
    for column, key in enumerate(written):
        torch.testing.assert_close(model.queue[:, column].double(), torch.tensor(key), atol=1e-4, rtol=1e-3)
    assert torch.equal(model.queue[:, len(written) :], queue[:, len(written) :])


def some_draws(batch_size: int, num_hard: int, s: int, s2: int, seed: int = 3) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(batch_size, 3 * s + 2 * s2, generator=generator, dtype=torch.float64)
    return draw_mixtures(numbers, torch.full((batch_size,), num_hard), s, s2)


def vectors_of(query: torch.Tensor, keys: torch.Tensor, hardest: torch.Tensor, draws: Draws) -> torch.Tensor:
    """The synthetic vectors themselves, (batch, s + s', dim), without gradient."""
    points = torch.zeros(len(query), draws.first.shape[1] + draws.partner.shape[1], query.shape[1]).double()
    for b in range(len(query)):
        hard = keys[hardest[b]]
        for m, (i, j, alpha) in enumerate(zip(*(draw[b].tolist() for draw in draws[:3]), strict=True)):
            points[b, m] = alpha * hard[i] + (1 - alpha) * hard[j]
        for m, (i, beta) in enumerate(zip(*(draw[b].tolist() for draw in draws[3:]), strict=True)):
            points[b, draws.first.shape[1] + m] = beta * query[b].detach() + (1 - beta) * hard[i]
    return points / points.square().sum(dim=2, keepdim=True).sqrt()


def test_scores_and_their_gradient_are_those_of_constant_unit_vectors():
    """What the query would get from stored vectors h: the score q h, and h as its gradient."""
    query, keys = unit(4, 8).requires_grad_(), unit(20, 8, seed=1)
    scores = query @ keys.T
    hardest = scores.detach().topk(9).indices
    draws = some_draws(4, 9, 6, 5)
    points = vectors_of(query, keys, hardest, draws)
    torch.testing.assert_close(points.norm(dim=2), torch.ones(4, 11).double())
    mixed = mixed_scores(query, scores, keys, hardest, draws)
    torch.testing.assert_close(mixed, torch.einsum("bd,bmd->bm", query, points), rtol=1e-12, atol=1e-12)
    weights = unit(4, 11, seed=2)
    (gradient,) = torch.autograd.grad((weights * mixed).sum(), query)
    torch.testing.assert_close(gradient, torch.einsum("bm,bmd->bd", weights, points), rtol=1e-12, atol=1e-12)


def test_each_query_mixes_its_own_negatives():
    """Two groups of keys at right angles: a query that met the other's negatives would score 0 with a mixture."""
    query = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]).double()
    keys = torch.tensor([[0.8, 0.6, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 0.8, 0.6], [0.0, 0.0, 0.6, 0.8]])
    keys = keys.double()
    scores = query @ keys.T
    hardest = scores.topk(2).indices
    assert hardest.tolist() == [[0, 1], [2, 3]]
    mixed = mixed_scores(query, scores, keys, hardest, some_draws(2, 2, 50, 50))
    assert mixed[:, :50].min() > 0.6 and mixed[:, :50].max() < 0.8
    assert mixed[:, 50:].min() >= 0.6 - 1e-6 and mixed[:, 50:].max() < 1


@pytest.mark.parametrize("chunk_numbers", [1, 24, 200, 1000])
def test_chunks_change_no_bit(chunk_numbers):
    query, keys = unit(5, 8), unit(20, 8, seed=1)
    scores = query @ keys.T
    hardest = scores.topk(9).indices
    whole = mixed_scores(query, scores, keys, hardest, some_draws(5, 9, 7, 3), chunk_numbers=10**9)
    assert torch.equal(whole, mixed_scores(query, scores, keys, hardest, some_draws(5, 9, 7, 3), chunk_numbers))


def test_mixtures_of_opposite_keys_stay_finite():
    query = unit(2, 3).float().requires_grad_()
    keys = torch.cat([query.detach()[:1], -query.detach()[:1]])
    scores = query @ keys.T
    half = Draws(*(torch.full((2, 1), value) for value in (0, 1, 0.5, 1, 0.4999999)))
    mixed = mixed_scores(query, scores, keys, torch.tensor([[0, 1], [0, 1]]), half)
    mixed.sum().backward()
    assert mixed.abs().max() <= 1 + 1e-6 and query.grad.isfinite().all()


def test_draws_are_distributed_as_in_the_paper():
    numbers = torch.rand(200, 5000, generator=torch.Generator().manual_seed(0))
    available = torch.full((200,), 4)
    draws = draw_mixtures(numbers, available, 1000, 1000)
    assert (draws.first != draws.second).all()
    counts = torch.bincount((4 * draws.first + draws.second).flatten(), minlength=16).view(4, 4) / draws.first.numel()
    # All 12 ordered pairs of different ranks are equally likely.
    torch.testing.assert_close(counts, (1 - torch.eye(4)) / 12, atol=3e-3, rtol=0)
    ranks = torch.bincount(draws.partner.flatten()) / draws.partner.numel()
    torch.testing.assert_close(ranks, torch.full((4,), 0.25), atol=5e-3, rtol=0)
    for share, highest in ((draws.pair_share, 1.0), (draws.query_share, 0.5)):
        assert share.min() >= 0 and share.max() < highest
        quarters = torch.histc(share, bins=4, min=0, max=highest) / share.numel()
        torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=5e-3, rtol=0)
    # The largest number below 1 is not rounded up to a rank that does not exist.
    top = torch.full((1, 500), 1 - 2**-24)
    for n in (1, 2, 3, 5, 1000, 1023, 65_535, 65_536):
        draws = draw_mixtures(top, torch.tensor([n]), 100, 100)
        assert draws.first.unique().item() == draws.partner.unique().item() == n - 1
        assert draws.second.unique().item() == max(0, n - 2)


def test_mixing_waits_for_its_start_and_before_it_is_moco():
    model, always = make_model(start_step=2), make_model()
    torch.manual_seed(0)
    moco = MoCoForPreTraining(MoCoConfig(**SMALL))
    for step in range(4):
        always.load_state_dict(model.state_dict())
        moco.load_state_dict({key: value for key, value in model.state_dict().items() if key != "training_passes"})
        views = make_views(seed=step)
        outputs = []
        for each in (model, always, moco):
            torch.manual_seed(step)
            outputs.append(each(views))
            each.zero_grad()
            outputs[-1].loss.backward()
        mixes = step >= 2
        assert torch.equal(outputs[0].loss, outputs[1 if mixes else 2].loss)
        assert outputs[1].loss > outputs[2].loss + 0.01
        metrics = outputs[0].metrics
        if not mixes:
            assert metrics["contrast_accuracy_with_mixed"] == metrics["contrast_accuracy"]
        assert metrics["contrast_accuracy"] == outputs[2].metrics["contrast_accuracy"]
        same = (always if mixes else moco).trainable_parameters()
        for name, parameter in model.trainable_parameters().items():
            torch.testing.assert_close(parameter.grad, same[name].grad, msg=name)
    assert int(model.training_passes) == 4 and model.training_passes.dtype == torch.int64


def test_evaluation_mode_mixes_nothing():
    model = make_model().eval()
    torch.manual_seed(0)
    moco = MoCoForPreTraining(MoCoConfig(**SMALL)).eval()
    output = model(make_views())
    assert torch.equal(output.loss, moco(make_views()).loss)
    assert int(model.training_passes) == 0 and "contrast_accuracy_with_mixed" not in output.metrics


@pytest.mark.parametrize(("num_hard", "queue_size", "s"), [(32, 32, 5), (1, 32, 0), (1, 6, 0), (2, 6, 3)])
def test_limits_of_the_number_of_hard_negatives(num_hard, queue_size, s):
    settings = {"num_hard_negatives": num_hard, "queue_size": queue_size, "num_mixed_negatives": s}
    model = make_model(**settings)
    queue, views = model.queue.clone(), make_views()
    torch.manual_seed(7)
    numbers = torch.rand(6, 3 * s + 2 * 3)
    expected, _ = contrast(
        unit_rows(model.projector(model.encoder(views[:, 0]))),
        unit_rows(model.target_projector(model.target_encoder(views[:, 1]))),
        queue,
        0.2,
        num_hard,
        numbers,
        s,
        3,
    )
    torch.manual_seed(7)
    output = model(views)
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    ranks = {name for name in output.metrics if name.startswith("match_probability_rank_")}
    assert ranks == {f"match_probability_rank_{rank}" for rank in (1, 4, 16) if rank <= queue_size}


def test_one_negative_in_the_queue():
    model = make_model(queue_size=1, num_hard_negatives=1, num_mixed_negatives=0).eval()
    first, second = make_views(2).unbind(dim=1)
    expected, _ = contrast(
        unit_rows(model.projector(model.encoder(first))),
        unit_rows(model.target_projector(model.target_encoder(second))),
        model.queue,
        0.2,
    )
    assert model(make_views(2)).loss.item() == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="The queue holds 1 keys but one step brings 2"):
        model.train()(make_views(2))


@pytest.mark.parametrize("symmetric", [False, True])
def test_masking_hides_all_keys_of_the_class_and_nothing_else(symmetric):
    model = make_model(class_oracle="mask", symmetric=symmetric)
    model.queue_labels[:] = torch.arange(32) % 4 - 1  # -1 to 2
    labels = torch.tensor([0, 1, 2, 0, -1, 7])
    hidden = [{column for column in range(32) if label >= 0 and column % 4 - 1 == label} for label in labels.tolist()]
    assert [len(columns) for columns in hidden] == [8, 8, 8, 8, 0, 0]
    queue, views = model.queue.clone(), make_views().unbind(dim=1)
    queries = [unit_rows(model.projector(model.encoder(view))) for view in views]
    keys = [unit_rows(model.target_projector(model.target_encoder(view))) for view in views]
    torch.manual_seed(7)
    expected, shares = 0.0, []
    for query, key in [(0, 1), (1, 0)] if symmetric else [(0, 1)]:
        numbers = torch.rand(6, 3 * 5 + 2 * 3)
        expected += contrast(queries[query], keys[key], queue, 0.2, 6, numbers, 5, 3, hidden)[0]
        # Of the hardest of all keys, before any is hidden, those of the query's class among those with a known one.
        same = known = 0
        for b, q in enumerate(queries[query]):
            order = sorted(range(32), key=lambda column: -sum(q * queue[:, column].double().numpy()))[:6]
            if labels[b] >= 0:
                same += len(hidden[b] & set(order))
                known += sum(column % 4 > 0 for column in order)
        shares.append(same / known)
    torch.manual_seed(7)
    output = model(make_views(), labels=labels)
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    assert 0 < np.mean(shares) < 1
    assert output.metrics["false_negative_share"].item() == pytest.approx(np.mean(shares))
    stored = labels.repeat(2 if symmetric else 1)
    assert torch.equal(model.queue_labels[: len(stored)], stored)
    assert torch.equal(model.queue_labels[len(stored) :], (torch.arange(32) % 4 - 1)[len(stored) :])


@pytest.mark.parametrize("left", [0, 1, 2])
def test_few_or_no_keys_of_other_classes_leave_finite_losses(left):
    """With fewer than two hard negatives there are no pairs, with none no mixtures at all."""
    model = make_model(class_oracle="mask")
    model.queue_labels[left:] = 3
    views, queue = make_views(), model.queue.clone()
    torch.manual_seed(7)
    numbers = torch.rand(6, 3 * 5 + 2 * 3)
    if left == 1:
        numbers = numbers[:, 15:]  # no pairs
    expected, _ = contrast(
        unit_rows(model.projector(model.encoder(views[:, 0]))),
        unit_rows(model.target_projector(model.target_encoder(views[:, 1]))),
        queue,
        0.2,
        6,
        numbers if left else None,
        5 if left == 2 else 0,
        3,
        hidden=[set(range(left, 32))] * 6,
    )
    torch.manual_seed(7)
    output = model(views, labels=torch.full((6,), 3))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert all(parameter.grad.isfinite().all() for parameter in model.trainable_parameters().values())
    assert all(metric.isfinite() for metric in output.metrics.values())


def test_measuring_changes_no_loss():
    off, measure = make_model(), make_model(class_oracle="measure")
    assert not off.needs_labels and measure.needs_labels and not hasattr(off, "queue_labels")
    assert measure.queue_labels.tolist() == [-1] * 32 and measure.queue_labels.dtype == torch.int64
    for step in range(3):
        outputs = []
        for model in (off, measure):
            torch.manual_seed(step)
            outputs.append(model(make_views(seed=step), labels=torch.arange(6) % 2))
        assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert outputs[1].metrics.keys() - outputs[0].metrics.keys() == {"false_negative_share"}
    assert measure.queue_labels[:18].tolist() == [0, 1] * 9


@pytest.mark.parametrize("class_oracle", ["measure", "mask"])
def test_an_oracle_without_labels_says_what_to_do(class_oracle):
    message = rf"`class_oracle` {class_oracle} looks at labels, but `forward` got none. Pass `labels`, or set"
    with pytest.raises(ValueError, match=message):
        make_model(class_oracle=class_oracle)(make_views())


def test_metrics_count_positives_and_the_probability_of_the_hardest_keys():
    model = make_model(temperature=0.5, start_step=0)
    queue, views = model.queue.clone(), make_views()
    queries = unit_rows(model.projector(model.encoder(views[:, 0])))
    keys = unit_rows(model.target_projector(model.target_encoder(views[:, 1])))
    torch.manual_seed(7)
    numbers = torch.rand(6, 3 * 5 + 2 * 3)
    torch.manual_seed(7)
    metrics = model(views).metrics
    _, points = contrast(queries, keys, queue, 0.5, 6, numbers, 5, 3)
    sorted_probabilities, plain, with_mixed = [], 0, 0
    for query, key, synthetic in zip(queries, keys, points, strict=True):
        cosines = sorted((sum(query * k) for k in queue.double().numpy().T), reverse=True)
        exponentials = [math.exp(cosine / 0.5) for cosine in cosines]
        total = math.exp(sum(query * key) / 0.5) + sum(exponentials)
        sorted_probabilities.append([value / total for value in exponentials])
        plain += sum(query * key) > cosines[0]
        with_mixed += sum(query * key) > max(cosines[0], *(sum(query * h) for h in synthetic))
    for rank in (1, 4, 16):
        expected = np.mean([row[rank - 1] for row in sorted_probabilities])
        assert metrics[f"match_probability_rank_{rank}"].item() == pytest.approx(expected, rel=1e-4)
    assert metrics["contrast_accuracy"].item() == pytest.approx(plain / 6)
    assert metrics["contrast_accuracy_with_mixed"].item() == pytest.approx(with_mixed / 6)


@pytest.mark.parametrize("class_oracle", ["off", "mask"])
def test_ten_steps_equal_a_plain_second_implementation(class_oracle):
    num_hard, s, s2, tau = 5, 4, 3, 0.3
    model = make_tiny(
        "mochi",
        projection_dim=4,
        queue_size=20,
        temperature=tau,
        ema_momentum=0.9,
        bn_splits=2,
        num_hard_negatives=num_hard,
        num_mixed_negatives=s,
        num_mixed_queries=s2,
        start_step=3,
        class_oracle=class_oracle,
    )

    def forward(state: State, batch: Batch) -> Node:
        h = encode(state, "encoder", batch.views[0], groups=2)
        q = l2_normalize(sequential(state, "projector", h, "linear relu linear"))
        torch.manual_seed(batch.step)
        order = torch.randperm(8).numpy()
        shuffled = encode(state, "target_encoder", batch.views[1][order], groups=2)
        k = stop_gradient(l2_normalize(sequential(state, "target_projector", shuffled, "linear relu linear")))
        k = k[np.argsort(order)]
        numbers = torch.rand(8, 3 * s + 2 * s2, dtype=torch.float64).numpy()
        queue, losses = state["queue"].value, []
        for b in range(8):
            seen = np.ones(20, dtype=bool)
            if class_oracle == "mask":
                seen = state["queue_labels"].value != batch.labels[b]
            negatives = queue[:, seen].T
            hard = negatives[np.argsort(-(negatives @ q.value[b]))[:num_hard]]
            if batch.step > 3:
                points = synthetic_points(q.value[b], list(hard), numbers[b], s, s2)
                negatives = np.concatenate([negatives, points])
            row = q[b : b + 1]
            logits = concatenate([row @ k[b : b + 1].T, row @ Node(negatives.T)], axis=1) / tau
            losses.append(logsumexp(logits) - logits[:, 0])
        columns = (int(state["queue_position"].value) + np.arange(8)) % 20
        queue = queue.copy()
        queue[:, columns] = k.value.T
        state["queue"] = Node(queue)
        state["queue_position"] = Node((state["queue_position"].value + 8) % 20)
        state["training_passes"] = Node(state["training_passes"].value + 1)
        if class_oracle == "mask":
            queue_labels = state["queue_labels"].value.copy()
            queue_labels[columns] = batch.labels
            state["queue_labels"] = Node(queue_labels)
        return concatenate(losses).mean()

    def after(state: State, batch: Batch) -> None:
        move_target(state, "target_encoder", "encoder", 0.9)
        move_target(state, "target_projector", "projector", 0.9)

    compare_steps(model, forward, after)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queue_size": 0}, "`queue_size` must be at least 1, got 0"),
        ({"projection_dim": 0}, "`projection_dim` must be at least 1, got 0"),
        ({"bn_splits": 0}, "`bn_splits` must be at least 1, got 0"),
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"ema_momentum": 1.1}, r"`ema_momentum` must be in \[0, 1\], got 1.1"),
        ({"num_hard_negatives": 0}, "`num_hard_negatives` must be at least 1, got 0"),
        ({"num_mixed_negatives": -1}, "`num_mixed_negatives` must be 0 or more, got -1"),
        ({"num_mixed_queries": -1}, "`num_mixed_queries` must be 0 or more, got -1"),
        ({"start_step": -1}, "`start_step` must be 0 or more, got -1"),
        ({"queue_size": 512}, "`num_hard_negatives` must be at most `queue_size`, 512, got 1024. Lower it or raise"),
        ({"num_hard_negatives": 1}, "but `num_hard_negatives` is 1. Raise it to 2 or more, or set `num_mixed"),
        ({"class_oracle": "yes"}, "class_oracle"),
        ({"projector": "cnn"}, "projector"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        MoCHiConfig(**settings)
