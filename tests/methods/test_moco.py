import math

import pytest
import torch
from torch import nn

from hf_ssl.errors import UserError
from hf_ssl.methods.moco import MoCoConfig, MoCoForPreTraining
from hf_ssl.modules.batch_norm import SplitBatchNorm


def make_model(**settings) -> MoCoForPreTraining:
    small = {"architecture": "test_resnet", "image_size": 32, "projection_dim": 8, "queue_size": 32, "bn_splits": 1}
    torch.manual_seed(0)
    return MoCoForPreTraining(MoCoConfig(**{**small, **settings}))


def make_views(batch_size: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def unit_rows(tensor: torch.Tensor):
    return [row / math.sqrt(sum(row**2)) for row in tensor.detach().double().numpy()]


def contrast(queries, keys, queue: torch.Tensor, tau: float) -> float:
    """Equation 1 of the paper, by loops in float64."""
    total = 0.0
    negatives = queue.double().numpy().T
    for query, key in zip(queries, keys, strict=True):
        own = math.exp(sum(query * key) / tau)
        total -= math.log(own / (own + sum(math.exp(sum(query * negative) / tau) for negative in negatives)))
    return total / len(queries)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("projector", "tau"), [("linear", 0.07), ("mlp", 0.2)])
def test_loss_is_that_of_the_paper_and_the_queue_takes_the_keys(projector, tau, symmetric):
    model = make_model(projector=projector, temperature=tau, symmetric=symmetric)
    with torch.no_grad():  # a target that differs from the online network
        for parameter in model.target_encoder.parameters():
            parameter.mul_(1.1)
    queue = model.queue.clone()
    views = make_views().unbind(dim=1)
    queries = [unit_rows(model.projector(model.encoder(view))) for view in views]
    keys = [unit_rows(model.target_projector(model.target_encoder(view))) for view in views]
    expected = contrast(queries[0], keys[1], queue, tau)
    written = keys[1]
    if symmetric:
        # One sum, and one write after both losses: a positive must not meet itself among the negatives.
        expected += contrast(queries[1], keys[0], queue, tau)
        written = keys[1] + keys[0]
    output = model(make_views())
    assert output.loss.item() == pytest.approx(expected, rel=1e-3)
    assert int(model.queue_position) == len(written)
    for column, key in enumerate(written):
        torch.testing.assert_close(model.queue[:, column].double(), torch.tensor(key), atol=1e-4, rtol=1e-3)
    assert torch.equal(model.queue[:, len(written) :], queue[:, len(written) :])


def test_start_value_is_the_logarithm_of_all_keys():
    model = make_model(projection_dim=64, queue_size=4096, temperature=1.0)
    nn.init.normal_(model.target_projector[0].weight)  # keys that know nothing of the queries
    assert model(make_views(16)).loss.item() == pytest.approx(math.log(4097), abs=0.5)


def test_one_key_in_the_queue_is_one_negative():
    model = make_model(queue_size=1)
    negative = model.queue.clone()
    view = make_views(2)
    with pytest.raises(
        ValueError, match=r"The queue holds 1 keys but one step brings 2 \(batch size times processes, twice"
    ):
        model(view)
    assert torch.equal(model.queue, negative)
    model.eval()
    first, second = view.unbind(dim=1)
    expected = contrast(
        unit_rows(model.projector(model.encoder(first))),
        unit_rows(model.target_projector(model.target_encoder(second))),
        negative,
        0.2,
    )
    assert model(view).loss.item() == pytest.approx(expected, rel=1e-4)


def test_symmetric_keys_count_twice_against_the_queue():
    model = make_model(queue_size=8, symmetric=True)
    with pytest.raises(ValueError, match="The queue holds 8 keys but one step brings 12"):
        model(make_views(6))


def test_queue_wraps_and_holds_unit_columns():
    model = make_model(queue_size=10)
    for step, batch_size in enumerate((6, 7, 5), start=1):
        model(make_views(batch_size, seed=step))
    assert int(model.queue_position) == 18 % 10
    assert model.queue_position.dtype == torch.int64 and model.queue_position.shape == ()
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(10))


def test_every_key_is_made_by_the_weights_of_the_official_order():
    """Official: move the target, make keys, step. Here: make keys, step, move the target."""
    model = make_model(ema_momentum=0.9)
    optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.1)
    official = [parameter.detach().double().clone() for parameter in model.target_encoder.parameters()]
    for step in range(1, 5):
        official = [
            0.9 * key + 0.1 * query.detach().double()
            for key, query in zip(official, model.encoder.parameters(), strict=True)
        ]
        for expected, used in zip(official, model.target_encoder.parameters(), strict=True):
            torch.testing.assert_close(used.detach().double(), expected, atol=1e-6, rtol=1e-5)
        optimizer.zero_grad()
        model(make_views(seed=step)).loss.backward()
        optimizer.step()
        model.after_optimizer_step(step, 4)


def test_version_1_has_a_linear_projector_and_version_2_an_mlp_without_norm():
    assert isinstance(make_model(projector="linear").projector, nn.Linear)
    kinds = [type(layer) for layer in make_model(projector="mlp").projector]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear]
    assert make_model().projector[0].out_features == 96  # as wide as the representation


def test_groups_of_batch_norm_are_those_of_the_setting_in_both_networks():
    model = make_model(bn_splits=3)
    for network in (model.encoder, model.target_encoder):
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert norms and all(isinstance(norm, SplitBatchNorm) and norm.num_splits == 3 for norm in norms)
    with pytest.raises(ValueError, match="`bn_splits` makes 3 BatchNorm groups of a batch of 5"):
        model(make_views(5))


def test_each_group_is_computed_as_if_it_were_alone():
    """Splitting the batch of queries by hand and giving each part to a plain network gives the same queries."""
    model, plain = make_model(bn_splits=2, shuffle_keys=False), make_model()
    views = make_views(6)
    parts = [plain.encode(part) for part in (views[:3, 0], views[3:, 0])]
    torch.testing.assert_close(model(views).representations[:, 0], torch.cat(parts).detach(), atol=1e-5, rtol=1e-4)


def test_shuffled_keys_return_to_their_places():
    settings = {"architecture": "test_convnext", "bn_splits": 4}
    model = make_model(**settings)
    views = make_views(7)
    output = model(views)
    torch.testing.assert_close(output.representations[:, 1], model.target_encoder(views[:, 1]).detach())


def test_shuffling_changes_who_shares_statistics():
    views = make_views(8)
    plain = make_model(bn_splits=4, shuffle_keys=False)
    shuffled = make_model(bn_splits=4, shuffle_keys=True)
    a, b = plain(views), shuffled(views)
    assert torch.equal(a.representations[:, 0], b.representations[:, 0])
    assert (a.representations[:, 1] - b.representations[:, 1]).abs().max() > 1e-3
    # One group holds everything: its order is no matter, and no random number is spent on it.
    torch.manual_seed(4)
    before = torch.get_rng_state()
    make = make_model(bn_splits=1)
    torch.set_rng_state(before)
    make(views)
    assert torch.equal(torch.get_rng_state(), before)


def test_accuracy_counts_positives_above_all_negatives():
    model = make_model().eval()
    views = make_views()
    views[:, 1] = views[:, 0]  # positives score 1
    output = model(views)
    assert output.metrics["contrast_accuracy"].item() == 1.0
    query = torch.nn.functional.normalize(output.projections[2, 0], dim=0)
    scores = torch.nn.functional.normalize(output.projections[:, 0], dim=1) @ (1.01 * query)
    model.queue[:, 5] = 1.01 * query  # above the positive of image 2, and of all that look almost like it
    assert model(views).metrics["contrast_accuracy"].item() == pytest.approx((scores < 1).float().mean().item())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queue_size": 0}, "`queue_size` must be at least 1, got 0"),
        ({"projector_hidden_dim": 0}, "`projector_hidden_dim` must be at least 1, got 0"),
        ({"projection_dim": 0}, "`projection_dim` must be at least 1, got 0"),
        ({"bn_splits": 0}, "`bn_splits` must be at least 1, got 0"),
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"temperature": float("nan")}, "`temperature` must be positive, got nan"),
        ({"ema_momentum": -0.1}, r"`ema_momentum` must be in \[0, 1\], got -0.1"),
        ({"projector": "cnn"}, "projector"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        MoCoConfig(**settings)
