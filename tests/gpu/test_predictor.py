"""DirectPred's predictor by Newton-Schulz iterations, as on a GPU, against eigenvectors in float64."""

from unittest.mock import patch

import pytest
import torch
from devices import everywhere
from test_contract import make_batch, make_model

from hf_ssl.methods import directpred
from hf_ssl.methods.directpred import iterated_predictor, spectral_predictor

# `iterated_predictor` counts eigenvalues below 1e-6 of the largest as that: off by 1.1e-3 in the root.
BOUND = 1.2e-3


def correlation_of(kind: str, dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(dim)
    z = torch.randn(2 * dim, dim, generator=generator)
    if kind == "decaying":
        z = z * torch.logspace(0, -5, dim)
    elif kind == "one direction":
        z = z[:, :1] * torch.randn(1, dim, generator=generator)
    elif kind == "few samples":
        z = z[: dim // 4]
    return z.T @ z / len(z)


@everywhere
@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("kind", ["even", "decaying", "one direction", "few samples"])
@pytest.mark.parametrize("dim", [24, 256])
def test_iterations_give_what_eigenvectors_give(dim, kind, form, device):
    correlation = correlation_of(kind, dim)
    expected = spectral_predictor(correlation, 0.5, 0.1, form=form)
    made = iterated_predictor(correlation.to(device), 0.1, form=form)
    assert made.device.type == device and made.dtype == torch.float64
    scale = 1.0 if form == "code" else float(torch.linalg.matrix_norm(correlation.double(), ord=2)) ** 0.5
    # The floor of the paper's form is a part of the largest eigenvalue, which iterations know to 1e-3 from below.
    floor = 0.0 if form == "code" else 1.1e-3 * 0.1 * scale**2
    error = torch.linalg.matrix_norm(made.cpu() - expected, ord=2).item()
    assert error < BOUND * scale + floor


@everywhere
@pytest.mark.parametrize("dim", [24])
def test_the_predictor_of_a_step_is_that_of_eigenvectors(dim, device):
    model = make_model("directpred", {"projection_dim": dim}).to(device)
    model(**{key: value.to(device) for key, value in make_batch().items()})
    correlation = model._centred_correlation().cpu()  # type: ignore[operator]
    with patch.object(directpred, "_ITERATES_ON", device):
        model.after_optimizer_step(1, 10)
    config = model.config
    expected = spectral_predictor(correlation, 0.5, config.epsilon, form=config.epsilon_form)  # type: ignore[attr-defined]
    error = torch.linalg.matrix_norm(model.predictor.weight.detach().cpu().double() - expected, ord=2)  # type: ignore[union-attr]
    assert error < BOUND
