import math

import pytest
import torch
from torch import nn

from hf_ssl.errors import UserError
from hf_ssl.methods.contrastive_clustering import ContrastiveClusteringConfig, ContrastiveClusteringForPreTraining


def make_model(**settings) -> ContrastiveClusteringForPreTraining:
    small = {"architecture": "test_resnet", "image_size": 32, "projection_dim": 8, "num_clusters": 4}
    torch.manual_seed(0)
    model = ContrastiveClusteringForPreTraining(ContrastiveClusteringConfig(**{**small, **settings}))
    with torch.no_grad():  # at the start all clusters are almost equally probable
        model.cluster_head[-1].weight.mul_(20)
    return model


def make_views(batch_size: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def contrast(first, second, tau: float) -> float:
    """The paper's loss of instances (section 3.2) and of clusters (section 3.3), by loops in float64."""
    vectors = [vector / math.sqrt(sum(vector**2)) for vector in [*first, *second]]
    total = 0.0
    for i, anchor in enumerate(vectors):
        partner = (i + len(first)) % len(vectors)
        scores = [math.exp(sum(anchor * other) / tau) for k, other in enumerate(vectors) if k != i]
        total -= math.log(math.exp(sum(anchor * vectors[partner]) / tau) / sum(scores))
    return total / len(vectors)


def entropy(table) -> float:
    sizes = [sum(column) / sum(sum(row) for row in table) for column in table.T]
    return -sum(size * math.log(size) for size in sizes)


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.2, "cluster_temperature": 0.3, "entropy_weight": 2.5}, {"entropy_weight": 0.0}]
)
def test_loss_is_that_of_the_paper(settings):
    model = make_model(**settings)
    instances, tables = [], []
    for view in make_views().unbind(dim=1):
        h = model.encoder(view)
        instances.append(model.projector(h).detach().double().numpy())
        scores = [[math.exp(score) for score in row] for row in model.cluster_head(h).detach().double()]
        tables.append(torch.tensor([[score / sum(row) for score in row] for row in scores]).double().numpy())
    config = model.config
    instance_loss = contrast(*instances, config.temperature)
    cluster_loss = contrast(tables[0].T, tables[1].T, config.cluster_temperature)
    entropies = [entropy(table) for table in tables]
    imbalance = sum(math.log(4) - one for one in entropies)
    assert imbalance > 0.1
    output = model(make_views())
    expected = instance_loss + cluster_loss + config.entropy_weight * imbalance
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    assert output.metrics["instance_loss"].item() == pytest.approx(instance_loss, rel=1e-4)
    assert output.metrics["cluster_loss"].item() == pytest.approx(cluster_loss, rel=1e-4)
    assert output.metrics["cluster_entropy"].item() == pytest.approx(sum(entropies) / 2, rel=1e-4)


def test_start_value_is_the_sum_of_both_logarithms():
    model = make_model(num_clusters=10, temperature=1e3, cluster_temperature=1e3, entropy_weight=0.0)
    assert model(make_views(16)).loss.item() == pytest.approx(math.log(31) + math.log(19), abs=0.01)


def test_equal_and_distinct_clusters_are_the_best_and_one_for_all_is_the_worst():
    model = make_model(entropy_weight=1.0).eval()
    views = make_views(8)
    views[:, 1] = views[:, 0]
    best = nn.functional.one_hot(torch.arange(8) % 4, 4).float()
    terms = []
    for table in (best, torch.full((8, 4), 0.25), nn.functional.one_hot(torch.zeros(8, dtype=torch.long), 4).float()):
        model._probabilities = lambda h, table=table: table
        metrics = model(views).metrics
        terms.append((metrics["cluster_loss"].item(), metrics["cluster_entropy"].item()))
    # Orthogonal columns: the partner scores 1, the six others 0.
    assert terms[0] == pytest.approx((math.log(math.e + 6) - 1, math.log(4)), rel=1e-5)
    assert terms[1] == pytest.approx((math.log(7), math.log(4)), rel=1e-5)
    assert terms[2][1] == pytest.approx(0, abs=1e-6)


def test_an_empty_cluster_gives_finite_loss_and_gradients():
    model = make_model()
    with torch.no_grad():
        model.cluster_head[-1].bias.copy_(torch.tensor([0.0, -1e4, 0.0, 0.0]))
    output = model(make_views())
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_both_branches_get_gradient():
    model = make_model().eval()
    views = make_views().requires_grad_()
    model(views).loss.backward()
    assert (views.grad.abs().amax(dim=(0, 2, 3, 4)) > 1e-6).all()
    for weight in (1.0, 0.0):
        model = make_model(entropy_weight=weight)
        model(make_views()).loss.backward()
        assert model.cluster_head[0].weight.grad.abs().max() > 1e-6


def test_assignments_are_probabilities_of_single_images():
    model = make_model().eval()
    images = make_views()[:, 0]
    table = model.assign(images)
    assert table.shape == (6, 4) and table.dtype == torch.float32 and not table.requires_grad
    torch.testing.assert_close(table.sum(dim=1), torch.ones(6))
    expected = torch.softmax(model.cluster_head(model.encoder(images)), dim=1)
    torch.testing.assert_close(table, expected.detach())
    torch.testing.assert_close(model.assign(images[2:3]), table[2:3], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="`assign` needs the model in evaluation mode"):
        model.train().assign(images)


def test_heads_are_those_of_the_official_code():
    model = make_model()
    for head, width in ((model.projector, 8), (model.cluster_head, 4)):
        assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear]
        assert [head[0].out_features, head[2].out_features] == [96, width]
        assert head[0].bias is not None and head[2].bias is not None


def test_the_number_of_clusters_is_needed_and_bounded_by_the_batch():
    with pytest.raises(ValueError, match=r"^`num_clusters` is needed: how many clusters the images fall into"):
        make_model(num_clusters=None)
    model = make_model(num_clusters=6)
    assert model(make_views(6)).loss.isfinite()
    with pytest.raises(ValueError, match="`num_clusters` 6 is more than the 5 images of a forward pass"):
        model(make_views(5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clusters": 1}, "`num_clusters` must be at least 2, got 1"),
        ({"projection_dim": 0}, "`projection_dim` must be at least 1, got 0"),
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"cluster_temperature": float("nan")}, "`cluster_temperature` must be positive, got nan"),
        ({"entropy_weight": -1.0}, "`entropy_weight` must be 0 or more, got -1.0"),
        ({"entropy_weight": float("nan")}, "`entropy_weight` must be 0 or more, got nan"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ContrastiveClusteringConfig(**settings)
