import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ssl.errors import UserError
from hf_ssl.methods import directpred
from hf_ssl.methods.directpred import (
    DirectPredConfig,
    DirectPredForPreTraining,
    copied_predictor,
    iterated_predictor,
    spectral_predictor,
)


def make_model(**changes) -> DirectPredForPreTraining:
    small = {"architecture": "test_resnet", "image_size": 32, "projector_hidden_dim": 32, "projection_dim": 8}
    torch.manual_seed(0)
    return DirectPredForPreTraining(DirectPredConfig(**{**small, **changes}))


def make_views(batch_size: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def moments(projections: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean outer product and mean of the rows of both views, by loops in float64."""
    rows = projections.double().numpy().reshape(-1, projections.shape[-1])
    return sum(np.outer(row, row) for row in rows) / len(rows), sum(rows) / len(rows)


def diagonal(*values: float) -> torch.Tensor:
    return torch.diag(torch.tensor(values))


@pytest.mark.parametrize(("form", "expected"), [("code", (1.1, 0.6, 0.1)), ("paper", (2.4, 1.4, 0.4))])
def test_golden_spectra(form, expected):
    weight = spectral_predictor(diagonal(4.0, 1.0, 0.0), 0.5, 0.1, form=form)
    torch.testing.assert_close(weight, torch.diag(torch.tensor(expected, dtype=torch.float64)), atol=1e-12, rtol=0)


def test_eigenvectors_are_kept_in_any_basis():
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    eigenvalues = torch.tensor([9.0, 4.0, 1.0, 0.25, 0.0], dtype=torch.float64)
    weight = spectral_predictor(rotation @ eigenvalues.diag() @ rotation.T, 0.5, 0.1)
    expected = rotation @ ((eigenvalues / 9).sqrt() + 0.1).diag() @ rotation.T
    torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"exponent": 1.0, "epsilon": 0.1}, (1.1, 0.35, 0.1)),
        ({"exponent": 2.0, "epsilon": 0.0}, (1.0, 0.0625, 1e-4)),
        ({"exponent": 0.5, "epsilon": 0.0}, (1.0, 0.5, 1e-4)),
        ({"exponent": 0.5, "epsilon": 0.0, "offset": 0.25}, (math.sqrt(0.75), 0.01, 0.01)),
        ({"exponent": 0.5, "epsilon": 0.0, "offset": -0.25}, (math.sqrt(1.25), math.sqrt(0.5), 0.5)),
        ({"exponent": 0.5, "epsilon": 0.1, "offset": 0.5, "form": "paper"}, (3.5**0.5 + 0.4, 0.5**0.5 + 0.4, 0.4)),
        ({"exponent": 1.0, "epsilon": 0.0, "form": "paper"}, (4.0, 1.0, 0.0)),
    ],
)  # fmt: skip
def test_spectra_with_other_settings(arguments, expected):
    weight = spectral_predictor(diagonal(4.0, 1.0, 0.0), **arguments)
    torch.testing.assert_close(weight, torch.diag(torch.tensor(expected, dtype=torch.float64)), atol=1e-12, rtol=0)


def test_rank_one_correlation_leaves_the_floor_elsewhere():
    direction = torch.tensor([0.6, 0.8, 0.0])
    weight = spectral_predictor(25 * torch.outer(direction, direction), 0.5, 0.1)
    expected = 0.1 * np.eye(3) + np.outer(direction, direction)
    np.testing.assert_allclose(weight.numpy(), expected, atol=1e-3)  # float32 noise of 1e-7 has a root of 3e-4


@pytest.mark.parametrize("form", ["code", "paper"])
def test_collapsed_projections_give_a_finite_predictor(form):
    weight = spectral_predictor(torch.zeros(4, 4), 0.5, 0.1, form=form)
    torch.testing.assert_close(weight, (0.1 if form == "code" else 0.0) * torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(copied_predictor(torch.zeros(4, 4), 0.1, torch.tensor(0.0)), 0.1 * torch.eye(4))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_predictor_is_symmetric_positive_and_free_of_scale(dim, scale, seed):
    z = torch.randn(20, dim, generator=torch.Generator().manual_seed(seed)).double()
    correlation = z.T @ z / 20
    weight = spectral_predictor(correlation, 0.5, 0.1)
    torch.testing.assert_close(weight, weight.T)
    eigenvalues = torch.linalg.eigvalsh(weight)
    assert eigenvalues[0] >= 0.1 - 1e-9 and eigenvalues[-1] == pytest.approx(1.1)
    torch.testing.assert_close(weight, spectral_predictor(scale * correlation, 0.5, 0.1))


SPECTRA = {
    "falling": lambda dim: torch.logspace(0, -8, dim),
    "equal": torch.ones,
    "random": lambda dim: torch.rand(dim),
    "rank one": lambda dim: (torch.arange(dim) == 0).float(),
    "half rank": lambda dim: torch.rand(dim) * (torch.arange(dim) < dim // 2),
    "many near the largest": lambda dim: 1 - 5e-3 * torch.rand(dim),
    "two near each other": lambda dim: torch.cat([torch.tensor([1.0, 0.9995]), 0.5 * torch.rand(dim - 2)]),
}


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("dim", [2, 7, 128])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_iterations_find_what_eigenvectors_do(spectrum, dim, form):
    basis = torch.linalg.qr(torch.randn(dim, dim))[0]
    for scale in (1e-6, 1.0, 1e6):
        # In float32, as the correlation is: what should be zero can be a little below.
        correlation = scale * (basis * SPECTRA[spectrum](dim)) @ basis.T
        for epsilon in (0.0, 0.1):
            expected = spectral_predictor(correlation, 0.5, epsilon, form=form)
            found = iterated_predictor(correlation, epsilon, form=form)
            error = torch.linalg.matrix_norm(found - expected, ord=2) / torch.linalg.matrix_norm(expected, ord=2)
            assert error < 1.1e-3
            torch.testing.assert_close(found, found.T)


def test_iterations_of_collapsed_and_broken_projections():
    found = iterated_predictor(torch.zeros(4, 4), 0.1)
    torch.testing.assert_close(found, 0.1 * torch.eye(4, dtype=torch.float64), atol=1.1e-3, rtol=0)
    assert not iterated_predictor(torch.full((3, 3), float("nan")), 0.1).isfinite().any()


@pytest.mark.parametrize(
    ("changes", "iterates"),
    [
        ({}, True),
        ({"epsilon_form": "paper"}, True),
        ({"offset": 0.1}, False),
        ({"remove_mean": True}, False),
        ({"rule": "directset", "exponent": 0.8}, False),
        ({"rule": "directcopy"}, False),
    ],
)
def test_only_a_gpu_iterates_and_only_for_the_plain_root(monkeypatch, changes, iterates):
    called = []

    def record(correlation, epsilon, *, form):
        called.append(form)
        return spectral_predictor(correlation, 0.5, epsilon, form=form)

    monkeypatch.setattr(directpred, "iterated_predictor", record)
    model = make_model(**changes)
    model(make_views())
    model.after_optimizer_step(1, 10)
    assert not called
    monkeypatch.setattr(directpred, "_ITERATES_ON", "cpu")
    model.after_optimizer_step(2, 10)
    assert called == ([model.config.epsilon_form] if iterates else [])


def test_broken_correlations_are_named():
    with pytest.raises(ValueError, match="The correlation of the projections is not finite, so no predictor follows"):
        spectral_predictor(torch.full((3, 3), float("nan")), 0.5, 0.1)


def test_copied_predictors():
    correlation = torch.tensor([[3.0, 1.0], [1.0, 3.0]])  # eigenvalues 4 and 2
    expected = torch.tensor([[0.75 + 0.3, 0.25], [0.25, 0.75 + 0.3]])
    torch.testing.assert_close(copied_predictor(correlation, 0.3, torch.tensor(4.0)), expected)
    torch.testing.assert_close(copied_predictor(correlation, 0.3), correlation + 0.3 * torch.eye(2))


@pytest.mark.parametrize("use_ema", [True, False])
def test_loss_is_twice_the_cosines_with_a_minus(use_ema):
    model = make_model(use_ema=use_ema)
    views = make_views().unbind(dim=1)
    z = [model.projector(model.encoder(view)) for view in views]
    targets = [model.target_projector(model.target_encoder(view)) for view in views] if use_ema else z
    total = 0.0
    for i, j in ((0, 1), (1, 0)):
        p = (z[i] @ model.predictor.weight.T).detach().double().numpy()
        for row, other in zip(p, targets[j].detach().double().numpy(), strict=True):
            total -= 2 * sum(row * other) / math.sqrt(sum(row**2) * sum(other**2)) / 6
    assert model(make_views()).loss.item() == pytest.approx(total, rel=1e-4)


def test_predictor_passes_gradient_on_to_the_projector():
    model = make_model()
    model(make_views()).loss.backward()
    with_predictor = model.projector[0].weight.grad.clone()
    model.zero_grad()
    with torch.no_grad():
        model.predictor.weight.mul_(-1)
    model(make_views()).loss.backward()
    torch.testing.assert_close(model.projector[0].weight.grad, -with_predictor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("rho", [0.3, 0.0, None])
def test_correlation_follows_the_batches(rho):
    model = make_model(rho=rho)
    expected, expected_mean = np.zeros((8, 8)), np.zeros(8)
    for number in range(4):
        batch, mean = moments(model(make_views(seed=number)).projections)
        kept = {0: 0.0}.get(number, number / (number + 1) if rho is None else rho)
        expected, expected_mean = kept * expected + (1 - kept) * batch, kept * expected_mean + (1 - kept) * mean
        np.testing.assert_allclose(model.correlation.numpy(), expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(model.projection_mean.numpy(), expected_mean, rtol=1e-4, atol=1e-6)
    assert int(model.correlation_batches) == 4


def test_predictor_is_set_from_the_correlation_before_the_target_moves():
    model = make_model()
    model(make_views())
    correlation = model.correlation.double().numpy()
    values, vectors = np.linalg.eigh(correlation)
    values = np.sqrt(np.clip(values, 0, None) / values.max()) + 0.1
    model.after_optimizer_step(1, 10)
    np.testing.assert_allclose(
        model.predictor.weight.detach().numpy(), (vectors * values) @ vectors.T, rtol=1e-3, atol=1e-4
    )


def test_removing_the_mean_uses_the_covariance():
    model = make_model(remove_mean=True)
    output = model(make_views())
    rows = output.projections.double().reshape(-1, 8)
    covariance = torch.cov(rows.T, correction=0)
    model.after_optimizer_step(1, 10)
    torch.testing.assert_close(
        model.predictor.weight.detach().double(), spectral_predictor(covariance, 0.5, 0.1), atol=2e-3, rtol=2e-2
    )


@pytest.mark.parametrize(("freq", "refreshed"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 4, 7]), (0, [])])
def test_predictor_is_set_after_the_first_step_and_every_freq_steps(freq, refreshed):
    model = make_model(freq=freq)
    seen = []
    for step in range(1, 8):
        model(make_views(seed=step))
        before = model.predictor.weight.clone()
        model.after_optimizer_step(step, 7)
        if not torch.equal(before, model.predictor.weight):
            seen.append(step)
    assert seen == refreshed


def test_gradients_train_the_predictor_only_between_settings():
    frozen, hybrid = make_model(freq=1), make_model(freq=5)
    assert not frozen.predictor.weight.requires_grad and "predictor" in frozen.frozen_modules
    assert hybrid.predictor.weight.requires_grad and "predictor" not in hybrid.frozen_modules
    hybrid(make_views()).loss.backward()
    assert hybrid.predictor.weight.grad.abs().sum() > 0
    # Set every step, the predictor would not notice its own gradient or weight decay.
    results = []
    for disturbance in (0.0, 5.0):
        model = make_model(freq=1)
        model(make_views())
        with torch.no_grad():
            model.predictor.weight.add_(disturbance)
        model.after_optimizer_step(1, 10)
        results.append(model.predictor.weight.clone())
    assert torch.equal(*results)


def test_directset_uses_its_power():
    model = make_model(rule="directset", exponent=0.8)
    model(make_views())
    model.after_optimizer_step(1, 10)
    values, vectors = np.linalg.eigh(model.correlation.double().numpy())
    spectrum = (np.clip(values, 0, None) / values.max()) ** 0.8 + 0.1
    np.testing.assert_allclose(
        model.predictor.weight.detach().numpy(), (vectors * spectrum) @ vectors.T, rtol=1e-3, atol=1e-4
    )


def test_directcopy_needs_no_eigenvectors_and_finds_the_spectral_norm(monkeypatch):
    model = make_model(rule="directcopy", epsilon=0.3)
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", None)
        for step in range(1, 9):
            model(make_views(seed=step))
            model.after_optimizer_step(step, 10)
    largest = np.linalg.eigvalsh(model.correlation.double().numpy()).max()
    expected = model.correlation.double().numpy() / largest + 0.3 * np.eye(8)
    np.testing.assert_allclose(model.predictor.weight.detach().numpy(), expected, rtol=1e-3, atol=1e-4)
    assert torch.linalg.matrix_norm(model.predictor.weight, 2).item() == pytest.approx(1.3, rel=1e-3)


def test_directcopy_of_the_official_code_is_not_normalised():
    model = make_model(rule="directcopy", epsilon=0.25, copy_norm="none")
    model(make_views())
    model.after_optimizer_step(1, 10)
    torch.testing.assert_close(model.predictor.weight.detach(), model.correlation + 0.25 * torch.eye(8))


@pytest.mark.parametrize("rule", ["directpred", "directcopy"])
def test_a_batch_that_overflows_is_left_out_and_reported(rule):
    """Under fp16 the loss scaler skips the step of such a batch; the correlation must not carry it on."""
    model = make_model(rule=rule)
    assert model(make_views()).metrics["correlation_updated"].item() == 1.0
    before = {name: buffer.clone() for name, buffer in model.named_buffers(recurse=False)}
    views = make_views()
    views[0, 0] = float("inf")
    output = model(views)
    assert output.metrics["correlation_updated"].item() == 0.0 and not output.loss.isfinite()
    for name, buffer in model.named_buffers(recurse=False):
        if name != "top_direction":
            assert torch.equal(buffer, before[name]), name
        assert buffer.isfinite().all(), name
    model.after_optimizer_step(1, 10)
    assert model.predictor.weight.isfinite().all()


def test_a_broken_correlation_stops_the_run():
    model = make_model()
    model(make_views())
    model.correlation[0, 0] = float("nan")
    with pytest.raises(ValueError, match="The correlation of the projections is not finite"):
        model.after_optimizer_step(1, 10)


def test_target_momentum_is_constant_unless_told_otherwise():
    for schedule, kept in (("constant", 0.9), ("cosine", 1 - 0.1 * (1 + math.cos(math.pi * 4 / 8)) / 2)):
        model = make_model(ema_momentum=0.9, ema_schedule=schedule)
        model(make_views())
        old = model.target_projector[0].weight.detach().double().clone()
        with torch.no_grad():
            model.projector[0].weight.add_(1.0)
        model.after_optimizer_step(5, 8)
        expected = kept * old + (1 - kept) * model.projector[0].weight.detach().double()
        torch.testing.assert_close(model.target_projector[0].weight.detach().double(), expected, atol=1e-6, rtol=1e-5)


def test_projector_can_be_that_of_either_code():
    byol, luckmatters = make_model(), make_model(projector_affine=False, projector_bias=True)
    assert byol.projector[1].affine and byol.projector[3].bias is None
    assert not luckmatters.projector[1].affine and luckmatters.projector[3].bias is not None
    assert byol.predictor.bias is None and byol.predictor.weight.shape == (8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projector_layers": 0}, "`projector_layers` must be at least 1, got 0"),
        ({"projector_hidden_dim": 0}, "`projector_hidden_dim` must be at least 1, got 0"),
        ({"projection_dim": 0}, "`projection_dim` must be at least 1, got 0"),
        ({"freq": -1}, "`freq` must be at least 0, got -1"),
        ({"epsilon": -0.1}, "`epsilon` must be at least 0, got -0.1"),
        ({"rule": "directset", "exponent": 0.0}, "`exponent` must be positive, got 0.0"),
        ({"rho": 1.0}, r"`rho` must be in \[0, 1\) or None, got 1.0"),
        ({"offset": 1.0}, r"`offset` must be in \(-1, 1\), got 1.0"),
        ({"ema_momentum": 1.5}, r"`ema_momentum` must be in \[0, 1\], got 1.5"),
        ({"exponent": 0.7}, "`exponent` needs `rule` directset, got directpred"),
        ({"rule": "directcopy", "exponent": 0.7}, "`exponent` needs `rule` directset, got directcopy"),
        ({"rule": "directcopy", "offset": 0.1}, "`rule` directcopy has no eigenvalues: leave `offset` at 0"),
        ({"rule": "directcopy", "epsilon_form": "paper"}, "`rule` directcopy has no eigenvalues"),
        ({"copy_norm": "none"}, "`copy_norm` needs `rule` directcopy, got directpred"),
        ({"rule": "indirect"}, "rule"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        DirectPredConfig(**changes)
