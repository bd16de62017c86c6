import math

import numpy as np
import pytest
import torch
from plain import Node, State, exp, l2_normalize, linear, log, log_softmax
from steps import Batch, compare_steps, encode, make_tiny

from hf_ssl.errors import UserError
from hf_ssl.methods.memory_bank import MemoryBankConfig, MemoryBankForPreTraining

OBJECTIVES = ("nce", "sampled", "full")
every_objective = pytest.mark.parametrize("objective", OBJECTIVES)


def make_model(**settings) -> MemoryBankForPreTraining:
    small = {
        "architecture": "test_resnet",
        "image_size": 32,
        "projection_dim": 8,
        "bank_size": 20,
        "num_negatives": 12,
    }
    torch.manual_seed(0)
    return MemoryBankForPreTraining(MemoryBankConfig(**{**small, **settings}))


def make_views(batch_size: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def unit(vector):
    return vector / math.sqrt(sum(vector**2))


def unit_rows(tensor: torch.Tensor):
    return [unit(row) for row in tensor.detach().double().numpy()]


def watch_draws(model: MemoryBankForPreTraining) -> list[np.ndarray]:
    """The entries that the model draws from now on, in order."""
    seen = []
    draw = model._draw

    def watched(batch_size: int) -> torch.Tensor:
        seen.append(draw(batch_size))
        return seen[-1]

    model._draw = watched  # type: ignore[method-assign]
    return seen


def log_of_softmax(own: float, others: list[float]) -> float:
    return math.log(math.exp(own) / (math.exp(own) + sum(math.exp(other) for other in others)))


def expected_loss(objective, queries, numbers, bank, drawn, tau, z=None) -> tuple[float, float]:
    """Loss by loops in float64, and the normalizer Z that this batch estimates."""
    n = len(bank)
    scores = [[sum(query * entry) / tau for entry in bank] for query in queries]
    if objective == "full":
        terms = [
            log_of_softmax(row[own], row[:own] + row[own + 1 :]) for row, own in zip(scores, numbers, strict=True)
        ]
        return -sum(terms) / len(terms), 0.0
    if objective == "sampled":
        terms = [
            log_of_softmax(row[own], [row[other] for other in others if other != own])
            for row, own, others in zip(scores, numbers, drawn, strict=True)
        ]
        return -sum(terms) / len(terms), 0.0
    picked = [[own, *others] for own, others in zip(numbers, drawn, strict=True)]
    all_values = [math.exp(row[k]) for row, entries in zip(scores, picked, strict=True) for k in entries]
    z = z or n * sum(all_values) / len(all_values)
    noise = (len(picked[0]) - 1) / n
    total = 0.0
    for row, entries in zip(scores, picked, strict=True):
        p = [math.exp(row[k]) / z for k in entries]
        total += math.log(p[0] / (p[0] + noise + 1e-7))
        total += sum(math.log(noise / (p_j + noise + 1e-7)) for p_j in p[1:])
    return -total / len(queries), z


@every_objective
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_loss_is_that_of_the_paper_against_the_bank_before_the_update(objective, symmetric, tau):
    model = make_model(objective=objective, temperature=tau, symmetric=symmetric)
    draws = watch_draws(model)
    z = None
    for step, numbers in enumerate(([3, 0, 7, 12, 19, 5], [7, 3, 1, 2, 18, 0])):
        bank = model.bank.double().numpy().copy()
        draws.clear()
        views = make_views(seed=step)
        output = model(views, torch.tensor(numbers))
        total = 0.0
        for view in range(2 if symmetric else 1):
            queries = unit_rows(output.projections[:, view])
            drawn = draws[view].tolist() if draws else [None] * 6
            loss, z = expected_loss(objective, queries, numbers, bank, drawn, tau, z)
            total += loss
        assert output.loss.item() == pytest.approx(total, rel=1e-4)
    if objective == "nce":
        assert model.log_normalizer.item() == pytest.approx(math.log(z), rel=1e-5)
    else:
        assert not hasattr(model, "log_normalizer")


@pytest.mark.parametrize("symmetric", [False, True])
def test_entries_of_the_batch_move_towards_their_features(symmetric):
    model = make_model(bank_momentum=0.8, symmetric=symmetric)
    bank = model.bank.double().numpy().copy()
    numbers = [4, 9, 0, 11, 2, 19]
    output = model(make_views(), torch.tensor(numbers))
    features = list(zip(*(unit_rows(output.projections[:, view]) for view in range(2)), strict=True))
    for number, (first, second) in zip(numbers, features, strict=True):
        feature = (first + second) / 2 if symmetric else first
        bank[number] = unit(0.8 * bank[number] + 0.2 * feature)
    torch.testing.assert_close(model.bank.double(), torch.tensor(bank), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.bank[numbers].norm(dim=1), torch.ones(6))


def test_the_last_of_several_features_of_one_image_wins():
    model = make_model(bank_momentum=0.3)
    bank = model.bank.double().numpy().copy()
    numbers = [4, 1, 4, 4, 1, 2]
    output = model(make_views(), torch.tensor(numbers))
    features = unit_rows(output.projections[:, 0])
    for position in (3, 4, 5):
        bank[numbers[position]] = unit(0.3 * bank[numbers[position]] + 0.7 * features[position])
    torch.testing.assert_close(model.bank.double(), torch.tensor(bank), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("momentum", "moves"), [(1.0, False), (0.0, True)])
def test_extremes_of_the_bank_momentum(momentum, moves):
    model = make_model(bank_momentum=momentum)
    model(make_views(), torch.arange(6))
    before = model.bank[:6].clone()  # normalised by now
    output = model(make_views(seed=2), torch.arange(6))
    if moves:
        before = torch.nn.functional.normalize(output.projections[:, 0], dim=1)
    torch.testing.assert_close(model.bank[:6], before)


@every_objective
def test_training_looks_at_one_view_and_evaluation_at_both(objective):
    numbers, views = torch.arange(6), make_views()
    other = views.clone()
    other[:, 1] = make_views(seed=9)[:, 1]
    models = [make_model(objective=objective) for _ in range(2)]
    outputs = []
    for model, pixel_values in zip(models, (views, other), strict=True):
        torch.manual_seed(3)
        outputs.append(model(pixel_values, numbers))
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    for one, two in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(one, two)
    for output in outputs:
        assert torch.equal(output.representations[:, 0], output.representations[:, 1])
    model = models[0].eval()
    evaluated = [model(pixel_values, numbers) for pixel_values in (views, other)]
    assert torch.equal(evaluated[0].loss, evaluated[1].loss)  # the query is the first view here too
    assert not torch.equal(evaluated[0].representations[:, 1], evaluated[1].representations[:, 1])


def test_draws_are_uniform_with_replacement_and_of_the_global_generator():
    model = make_model(num_negatives=4000)
    torch.manual_seed(1)
    drawn = model._draw(10)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.randint(20, (10, 4000)))
    counts = drawn.flatten().bincount(minlength=20)
    assert counts.shape == (20,) and (counts - 2000).abs().max() < 5 * math.sqrt(2000)
    model.eval()
    state = torch.get_rng_state()
    assert torch.equal(model._draw(5), model._draw(5))
    assert torch.equal(torch.get_rng_state(), state)


def test_start_values_are_logarithms_of_the_number_of_entries():
    settings = {"temperature": 1.0, "projection_dim": 64, "bank_size": 3000, "num_negatives": 1000}
    numbers = torch.arange(16)
    assert make_model(objective="full", **settings)(make_views(16), numbers).loss.item() == pytest.approx(
        math.log(3000), abs=0.2
    )
    assert make_model(objective="sampled", **settings)(make_views(16), numbers).loss.item() == pytest.approx(
        math.log(1001), abs=0.2
    )


def test_a_draw_of_the_own_entry_is_no_negative():
    model = make_model(objective="sampled", bank_size=1, num_negatives=3)
    assert model(make_views(), torch.zeros(6, dtype=torch.int64)).loss.item() == 0.0
    model = make_model(objective="sampled", bank_size=2, num_negatives=50).eval()
    bank = model.bank.double().numpy()
    draws = watch_draws(model)
    numbers = torch.tensor([0, 1, 0, 1, 1, 0])
    output = model(make_views(), numbers)
    expected = 0.0
    for query, own, drawn in zip(
        unit_rows(output.projections[:, 0]), numbers.tolist(), draws[0].tolist(), strict=True
    ):
        hits = drawn.count(1 - own)
        assert 0 < hits < 50
        own_score, other_score = (math.exp(sum(query * bank[k]) / 0.07) for k in (own, 1 - own))
        expected -= math.log(own_score / (own_score + hits * other_score)) / 6
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)


def test_z_is_estimated_by_the_first_training_batch_and_kept():
    model = make_model()
    assert model.log_normalizer.item() == -math.inf
    model.eval()
    first = model(make_views(), torch.arange(6)).loss
    assert first.isfinite() and model.log_normalizer.item() == -math.inf
    model.train()
    model(make_views(), torch.arange(6))
    kept = model.log_normalizer.clone()
    assert kept.isfinite()
    model(make_views(seed=2), torch.arange(6))
    assert torch.equal(model.log_normalizer, kept)
    with torch.no_grad():
        model.log_normalizer += math.log(10)
    model.eval()
    assert model(make_views(), torch.arange(6)).loss != first


def test_a_small_temperature_does_not_overflow():
    model = make_model(temperature=0.002)  # exp(1 / tau) is beyond float64
    for seed in (1, 2):
        output = model(make_views(seed=seed), torch.arange(6))
        output.loss.backward()
        assert output.loss.isfinite() and model.projector.weight.grad.isfinite().all()


def test_gradients_alone_lower_the_loss():
    """With entries that stand still, what falls is owed to the network."""
    for objective in OBJECTIVES:
        model = make_model(objective=objective, bank_momentum=1.0, temperature=0.5, num_negatives=400)
        optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.05, momentum=0.9)
        losses = []
        for _ in range(15):
            loss = model(make_views(), torch.arange(6)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-3:]) / 3 < losses[0] - 0.2, objective


def test_entries_start_as_in_the_official_code():
    bank = make_model(bank_size=4000, projection_dim=48).bank
    bound = 1 / math.sqrt(48 / 3)
    assert bank.abs().max() <= bound and bank.abs().max() > 0.999 * bound
    assert bank.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert abs(bank.mean().item()) < 0.01 * bound


@every_objective
def test_accuracy_counts_own_entries_above_all_others(objective):
    # Untrained features of different images are almost equal: all of them are near the entry of image 0.
    model = make_model(objective=objective, num_negatives=200).eval()
    model.bank[:] = -torch.nn.functional.normalize(model(make_views(), torch.arange(6)).projections[:1, 0], dim=1)
    model.bank[0] *= -1
    output = model(make_views(), torch.arange(6))
    assert output.metrics["contrast_accuracy"].item() == pytest.approx(1 / 6)
    output = model(make_views(), torch.tensor([0, 0, 0, 5, 0, 7]))
    assert output.metrics["contrast_accuracy"].item() == pytest.approx(4 / 6)


def test_the_data_set_gives_the_size_of_the_bank():
    config = MemoryBankConfig()
    with pytest.raises(ValueError, match=r"`bank_size` is missing: .*the data set does not say"):
        config.adapt_to_data(None)
    config.adapt_to_data(1437)
    assert config.bank_size == 1437
    for num_images in (1437, 1000, None):
        config.adapt_to_data(num_images)
        assert config.bank_size == 1437
    with pytest.raises(ValueError, match="`bank_size` must be at least the number of images, 1438, got 1437"):
        config.adapt_to_data(1438)


def test_a_bank_of_unknown_size_is_refused():
    with pytest.raises(ValueError, match=r"`bank_size` is missing: .*Set it to their number, or call `adapt_to_data`"):
        make_model(bank_size=None)


def test_images_without_number_are_refused():
    with pytest.raises(ValueError, match="`indices` are missing: a memory bank needs the stable number of each image"):
        make_model()(make_views())


@pytest.mark.parametrize("wrong", [-1, 20])
def test_numbers_outside_of_the_bank_are_refused(wrong):
    model = make_model()
    before = model.bank.clone()
    with pytest.raises(ValueError, match=rf"`indices` must be in \[0, 20\), .*, got {wrong}\. Raise"):
        model(make_views(), torch.tensor([0, 1, wrong, 3, 4, 5]))
    assert torch.equal(model.bank, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bank_size": 0}, "`bank_size` must be at least 1, got 0"),
        ({"num_negatives": 0}, "`num_negatives` must be at least 1, got 0"),
        ({"projection_dim": 0}, "`projection_dim` must be at least 1, got 0"),
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"temperature": float("nan")}, "`temperature` must be positive, got nan"),
        ({"bank_momentum": 1.5}, r"`bank_momentum` must be in \[0, 1\], got 1.5"),
        ({"objective": "triplet"}, "objective"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        MemoryBankConfig(**settings)


@pytest.mark.parametrize("symmetric", [False, True])
@every_objective
def test_ten_steps_are_those_of_the_equations(objective, symmetric):
    n, k, tau, m = 30, 7, 0.3, 0.6
    settings = {"num_negatives": k, "temperature": tau, "bank_momentum": m, "projection_dim": 5, "bank_size": n}
    model = make_tiny("memory_bank", objective=objective, symmetric=symmetric, **settings)

    def loss_of(state: State, query: Node, own: np.ndarray) -> Node:
        bank = state["bank"].value
        scores = query @ bank.T / tau
        rows = np.arange(len(own))
        if objective == "full":
            return -log_softmax(scores)[rows, own].mean()
        drawn = torch.randint(n, (len(own), k)).numpy()
        picked = scores[rows[:, None], np.concatenate([own[:, None], drawn], axis=1)]
        if objective == "sampled":
            # A weight of zero for the draws that hit the own entry.
            counts = np.concatenate([np.ones((len(own), 1)), drawn != own[:, None]], axis=1)
            return -(picked[:, 0] - log((exp(picked) * counts).sum(1))).mean()
        if not np.isfinite(state["log_normalizer"].value):
            state["log_normalizer"] = Node(np.log(n * np.exp(picked.value).mean()))
        p = exp(picked) / np.exp(state["log_normalizer"].value)
        noise = k / n
        found = log(p[:, 0] / (p[:, 0] + noise + 1e-7))
        refused = log(noise / (p[:, 1:] + noise + 1e-7)).sum(1)
        return -(found + refused).mean()

    def forward(state: State, batch: Batch) -> Node:
        torch.manual_seed(batch.step)
        queries = []
        for view in batch.views[: 1 + symmetric]:
            queries.append(l2_normalize(linear(state, "projector", encode(state, "encoder", view))))
        loss = Node(0)
        for query in queries:
            loss = loss + loss_of(state, query, batch.indices)
        bank = state["bank"].value.copy()
        features = sum(query.value for query in queries) / len(queries)
        for own, feature in zip(batch.indices, features, strict=True):
            bank[own] = unit(m * bank[own] + (1 - m) * feature)
        state["bank"] = Node(bank)
        return loss

    compare_steps(model, forward)
