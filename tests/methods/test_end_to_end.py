import math

import pytest
import torch
from torch import nn

from hf_ssl.errors import UserError
from hf_ssl.methods.end_to_end import EndToEndConfig, EndToEndForPreTraining


def make_model(**settings) -> EndToEndForPreTraining:
    small = {"architecture": "test_resnet", "image_size": 32, "projection_dim": 8}
    torch.manual_seed(0)
    return EndToEndForPreTraining(EndToEndConfig(**{**small, **settings}))


def make_views(batch_size: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def unit_rows(tensor: torch.Tensor):
    return [row / math.sqrt(sum(row**2)) for row in tensor.detach().double().numpy()]


def simclr_loss(first, second, tau: float) -> float:
    """Equation 1 of the paper for every vector of both views, by loops in float64."""
    vectors = [*first, *second]
    total = 0.0
    for i, anchor in enumerate(vectors):
        partner = (i + len(first)) % len(vectors)
        scores = [math.exp(sum(anchor * other) / tau) for k, other in enumerate(vectors) if k != i]
        total -= math.log(math.exp(sum(anchor * vectors[partner]) / tau) / sum(scores))
    return total / len(vectors)


def dictionary_loss(queries, keys, tau: float) -> float:
    """Queries of one view pick their key among those of the other: MoCo's equation 1 with the batch as dictionary."""
    total = 0.0
    for i, query in enumerate(queries):
        scores = [math.exp(sum(query * key) / tau) for key in keys]
        total -= math.log(scores[i] / sum(scores))
    return total / len(queries)


@pytest.mark.parametrize("tau", [0.1, 0.5])
@pytest.mark.parametrize(("symmetric", "loss"), [(True, simclr_loss), (False, dictionary_loss)])
def test_loss_is_that_of_the_papers(symmetric, loss, tau):
    model = make_model(symmetric=symmetric, temperature=tau, join_views=False)
    z = [unit_rows(model.projector(model.encoder(view))) for view in make_views().unbind(dim=1)]
    assert model(make_views()).loss.item() == pytest.approx(loss(*z, tau), rel=1e-4)


def test_joined_views_share_their_statistics():
    joined, separate = make_model(), make_model(join_views=False)
    views = make_views()
    views[:, 1] = 3 * views[:, 1] + 1  # another mean and variance than the first view
    h = joined.encoder(torch.cat([views[:, 0], views[:, 1]]))
    z = joined.projector(h)
    one, two = make_model()(views), separate(views)
    torch.testing.assert_close(torch.cat(one.representations.unbind(1)), h.detach())
    torch.testing.assert_close(torch.cat(one.projections.unbind(1)), z.detach())
    assert (one.representations - two.representations).abs().max() > 0.1
    # One pass moves the running statistics once, one for each view twice.
    tracked = [
        {int(value) for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
        for model in (joined, separate)
    ]
    assert tracked == [{1}, {2}]
    # In evaluation mode each image stands for itself.
    separate.load_state_dict(joined.state_dict())
    torch.testing.assert_close(joined.eval()(views).loss, separate.eval()(views).loss)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradient_flows_into_both_views(symmetric):
    model = make_model(symmetric=symmetric).eval()
    views = make_views().requires_grad_()
    model(views).loss.backward()
    strength = views.grad.abs().amax(dim=(0, 2, 3, 4))
    assert (strength > 1e-6).all()


@pytest.mark.parametrize(("symmetric", "candidates"), [(True, 63), (False, 32)])
def test_start_value_is_the_logarithm_of_the_candidates(symmetric, candidates):
    model = make_model(symmetric=symmetric, projection_dim=128, temperature=1.0)
    loss = model(make_views(32)).loss.item()
    assert loss == pytest.approx(math.log(candidates), abs=0.1)


def test_one_image_has_no_negative_across_views():
    views = make_views(1)
    assert make_model(symmetric=False).eval()(views).loss.item() == 0
    assert make_model().eval()(views).loss.item() == 0


def test_accuracy_counts_anchors_whose_partner_is_nearest():
    model = make_model().eval()
    views = make_views()
    views[:, 1] = views[:, 0]
    assert model(views).metrics["contrast_accuracy"].item() == 1
    # Each second view now is the next image: no partner is nearest, the anchor's own copy is.
    views[:, 1] = views[:, 0].roll(-1, dims=0)
    assert model(views).metrics["contrast_accuracy"].item() == 0


@pytest.mark.parametrize(
    ("settings", "widths"),
    [
        ({}, [96, 96, 8]),
        ({"projector_layers": 1}, [96, 8]),
        ({"projector_layers": 3, "projector_hidden_dim": 16}, [96, 16, 16, 8]),
    ],
)
def test_projector_is_that_of_the_official_code(settings, widths):
    projector = make_model(**settings).projector
    layers = [layer for layer in projector if isinstance(layer, nn.Linear)]
    norms = [layer for layer in projector if isinstance(layer, nn.BatchNorm1d)]
    assert [layers[0].in_features, *(layer.out_features for layer in layers)] == widths
    assert all(layer.bias is None for layer in layers)
    assert [norm.num_features for norm in norms] == widths[1:]
    assert [norm.bias is not None for norm in norms] == [True] * (len(norms) - 1) + [False]
    assert all(norm.weight is not None for norm in norms) and isinstance(projector[-1], nn.BatchNorm1d)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projection_dim": 0}, "`projection_dim` must be at least 1, got 0"),
        ({"projector_hidden_dim": 0}, "`projector_hidden_dim` must be at least 1, got 0"),
        ({"projector_layers": 4}, "projector_layers"),
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"temperature": float("nan")}, "`temperature` must be positive, got nan"),
        ({"separate_keys": True}, "`separate_keys` and `join_views` exclude each other"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        EndToEndConfig(**settings)


def test_two_networks_start_equal_and_part_by_gradient():
    model = make_model(symmetric=False, join_views=False, separate_keys=True, projector_norm="none")
    views = make_views()
    views[:, 1] = views[:, 0]
    output = model(views)
    assert output.projections is not None and output.loss is not None
    torch.testing.assert_close(output.projections[:, 0], output.projections[:, 1])
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert not torch.equal(gradients["projector.0.weight"], gradients["key_projector.0.weight"])
