import math

import pytest
import torch

from hf_ssl.errors import UserError
from hf_ssl.methods.directclr import DirectCLRConfig, DirectCLRForPreTraining


def make_model(**settings) -> DirectCLRForPreTraining:
    small = {"architecture": "test_resnet", "image_size": 32, "subvector_dim": 10}
    torch.manual_seed(0)
    return DirectCLRForPreTraining(DirectCLRConfig(**{**small, **settings}))


def make_views(batch_size: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def one_direction(queries, keys, tau: float) -> float:
    """Each query picks its key among those of the other view, by loops in float64."""
    total = 0.0
    for i, query in enumerate(queries):
        scores = [math.exp(sum(query * key) / tau) for key in keys]
        total -= math.log(scores[i] / sum(scores))
    return total / len(queries)


@pytest.mark.parametrize(("dim", "tau"), [(5, 0.1), (10, 0.1), (96, 0.5)])
def test_loss_is_that_of_the_paper_on_the_first_entries(dim, tau):
    model = make_model(subvector_dim=dim, temperature=tau)
    z = []
    for view in make_views().unbind(dim=1):
        h = model.encoder(view).detach().double().numpy()[:, :dim]
        z.append([row / math.sqrt(sum(row**2)) for row in h])
    expected = (one_direction(z[0], z[1], tau) + one_direction(z[1], z[0], tau)) / 2
    output = model(make_views())
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(output.projections, output.representations[:, :, :dim])


def test_the_loss_looks_at_no_entry_beyond_the_subvector():
    """Only the first entries get a gradient from the loss; the others move through the layers before."""
    model = make_model()
    representations = []
    model.encoder.register_forward_hook(lambda module, args, output: representations.append(output))
    loss = model(make_views()).loss
    for gradient in torch.autograd.grad(loss, representations):
        assert (gradient[:, :10].abs().amax(0) > 0).all()
        assert (gradient[:, 10:] == 0).all()


def test_the_encoder_is_all_there_is():
    model = make_model()
    assert [name for name, _ in model.named_children()] == ["encoder"]


def test_start_value_is_the_logarithm_of_the_batch():
    model = make_model(subvector_dim=96, temperature=1.0)
    assert model(make_views(32)).loss.item() == pytest.approx(math.log(32), abs=0.05)


def test_one_image_has_no_negative():
    assert make_model().eval()(make_views(1)).loss.item() == 0


def test_accuracy_is_the_mean_of_both_directions():
    model = make_model().eval()
    views = make_views()
    views[:, 1] = views[:, 0]
    assert model(views).metrics["contrast_accuracy"].item() == 1
    views[:, 1] = views[:, 0].roll(1, dims=0)
    assert model(views).metrics["contrast_accuracy"].item() == 0


def test_a_subvector_longer_than_the_representation_is_refused():
    message = "`subvector_dim` 97 is more than the 96 entries that `test_resnet` gives. Lower it"
    with pytest.raises(ValueError, match=message):
        make_model(subvector_dim=97)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subvector_dim": 0}, "`subvector_dim` must be at least 1, got 0"),
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"temperature": float("nan")}, "`temperature` must be positive, got nan"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        DirectCLRConfig(**settings)
