"""Diagnoses during training: the numbers of the batch, no effect on what is trained, and what they leave to read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import open_source
from hf_ssl.diagnostics import (
    alignment,
    covariance_spectrum,
    effective_rank,
    ne_sum,
    participation_ratio,
    rank_me,
    stable_rank,
    uniformity,
)
from hf_ssl.diagnostics.predictor import asymmetry, mean_jacobian
from hf_ssl.figures.diagnostics import diagnosis_curves
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLOutput, SSLPreTrainedModel
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.find import complete_checkpoints
from hf_ssl.training.loop import train
from hf_ssl.training.watch.diagnosis import diagnose, steps_between_diagnoses


def small_byol(**values: Any) -> SSLPreTrainedModel:
    torch.manual_seed(0)
    method = METHODS["byol"]
    sizes = {"projector_hidden_dim": 16, "projection_dim": 6, "predictor_hidden_dim": 12}
    model = method(method.config_class(architecture="test_resnet", image_size=16, **{**sizes, **values}))
    model.train()
    return model


def batch(part: slice) -> SSLOutput:
    """Some of the 16 images of a batch, with projections of 6 and representations of 40 dimensions."""
    generator = torch.Generator().manual_seed(1)
    projections = torch.randn(16, 1, 6, generator=generator) + 0.3 * torch.randn(16, 2, 6, generator=generator)
    representations = torch.randn(16, 2, 40, generator=generator) + 2
    return SSLOutput(projections=projections[part], representations=representations[part])


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def digits():
    return open_source("digits")


DATA = DataSettings(dataset="digits", view_recipe="simclr", num_workers=0, shuffle_window=100)


def settings(folder: Path, **values: Any) -> TrainingSettings:
    return TrainingSettings(
        **{"output_dir": str(folder), "batch_size": 8, "num_steps": 6, "log_every": 2, "checkpoint_every": 3, **values}
    )


def test_the_figures_are_those_of_the_features():
    output = batch(slice(0, 16))
    found = diagnose(small_byol(predictor="none"), output)
    assert output.projections is not None and output.representations is not None
    expected = {
        "alignment": alignment(*output.projections.unbind(dim=1)),
        "uniformity": uniformity(output.projections[:, 0]),
    }
    for name, features in (("projection", output.projections), ("representation", output.representations)):
        rows = features.flatten(0, 1)
        spectrum = covariance_spectrum(rows)
        last = min(32 - 1, rows.shape[1]) - 1
        expected |= {
            f"{name}_effective_rank": effective_rank(rows),
            f"{name}_rank_me": rank_me(rows),
            f"{name}_ne_sum": ne_sum(spectrum),
            f"{name}_participation_ratio": participation_ratio(spectrum),
            f"{name}_stable_rank": stable_rank(rows),
            f"{name}_eigenvalue_ratio": spectrum[last] / spectrum[0],
        }
        # The biased covariance; of 32 views at most 31 eigenvalues.
        assert found.curves[name] == pytest.approx((spectrum[: last + 1] * 31 / 32).tolist(), rel=1e-4)
        assert found.ranks[name] == list(range(1, last + 2))
    assert found.figures == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-4)


def test_collapsed_projections_have_no_rank():
    output = batch(slice(0, 16))
    assert output.projections is not None
    collapsed = SSLOutput(
        projections=output.projections[:1, :1].expand(16, 2, 6), representations=output.representations
    )
    figures = diagnose(small_byol(predictor="linear"), collapsed).figures
    assert figures["projection_effective_rank"] == figures["projection_ne_sum"] == 0
    assert figures["alignment"] == figures["uniformity"] == pytest.approx(0, abs=1e-6)


def test_a_linear_predictor_is_taken_as_it_is():
    model, output = small_byol(predictor="linear"), batch(slice(0, 16))
    assert output.projections is not None and isinstance(model.predictor, nn.Linear)
    z = output.projections.flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(z.T @ z / 32)
    with torch.no_grad():
        model.predictor.weight.copy_((vectors * values.sqrt()) @ vectors.T)  # where the dynamics end
    found = diagnose(model, output)
    numbers = {name: value for name, value in found.figures.items() if name.startswith("predictor_")}
    expected = {"cosine": 1, "asymmetry": 0, "commutator": 0, "balance_residual": 0, "theorem_residual": 0}
    assert numbers == pytest.approx({f"predictor_{name}": value for name, value in expected.items()}, abs=1e-6)
    assert found.curves["correlation"] == pytest.approx(values.flip(0).tolist(), rel=1e-4)
    assert found.curves["predictor"] == pytest.approx(values.flip(0).sqrt().tolist(), rel=1e-4)
    faster = diagnose(model, output, predictor_speed=2.0).figures
    assert faster["predictor_theorem_residual"] == pytest.approx(0.5)
    assert faster["predictor_balance_residual"] == pytest.approx(0, abs=1e-6)


def test_a_predictor_with_hidden_layers_is_linearised():
    model, output = small_byol(), batch(slice(0, 16))
    predictor = model.get_submodule("predictor")
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    found = diagnose(model, output)
    assert predictor.training and all(part.training for part in predictor.modules())
    torch.testing.assert_close(dict(model.named_buffers()), buffers, rtol=0, atol=0)
    assert output.projections is not None
    weight = mean_jacobian(predictor.eval(), output.projections[:, 0])
    assert found.figures["predictor_asymmetry"] == pytest.approx(float(asymmetry(weight)), rel=1e-5)


def test_numbers_that_are_not_finite_are_left_out():
    output = batch(slice(0, 16))
    assert output.representations is not None
    output.representations[3] = float("inf")
    assert diagnose(small_byol(), output).figures == {}


def test_wide_spectra_are_thinned_out():
    output = SSLOutput(projections=torch.randn(300, 2, 6), representations=torch.randn(300, 2, 500))
    found = diagnose(small_byol(predictor="none"), output)
    assert len(found.curves["representation"]) == len(found.ranks["representation"]) < 200
    assert found.ranks["representation"][0] == 1 and found.ranks["representation"][-1] == 500


def test_a_diagnosis_changes_nothing_but_the_log(digits, tmp_path: Path):
    def run(name: str, method: str, **values: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model_class = METHODS[method]
        model = model_class(model_class.config_class(architecture="test_resnet", image_size=16, projection_dim=16))
        train(model, digits, DATA, settings(tmp_path / f"{method}-{name}", **values))
        return {key: value.clone() for key, value in model.state_dict().items()}

    for method in ("directpred", "simsiam"):
        plain = run("plain", method, diagnostics_every=0)
        watched = run("watched", method, diagnostics_every=2)
        torch.testing.assert_close(watched, plain, rtol=0, atol=0)
        # Cut after the first checkpoint, it goes on with other settings of what is written.
        folder = tmp_path / f"{method}-watched"
        for path in complete_checkpoints(folder)[1:]:
            (path / "state.json").unlink()
        resumed = run("watched", method, diagnostics_every=3, resume="auto")
        torch.testing.assert_close(resumed, plain, rtol=0, atol=0)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "alignment" in line] == [2, 6]
        assert all("predictor_cosine" in line for line in lines if "alignment" in line)
        curves = [json.loads(line) for line in (folder / "diagnostics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in curves] == [2, 6]
        assert diagnosis_curves(folder / "diagnostics.jsonl") is not None
        assert not (tmp_path / f"{method}-plain" / "diagnostics.jsonl").exists()


def test_diagnoses_cost_little_unless_asked_for():
    assert steps_between_diagnoses(None, 1_000) == 500
    assert steps_between_diagnoses(None, 250_000) == 2_500
    assert steps_between_diagnoses(7, 250_000) == 7
    assert steps_between_diagnoses(0, 250_000) == 0
    with pytest.raises(ValueError, match="`diagnostics_every` must be 0 or more, got -1"):
        TrainingSettings(output_dir="not_used", diagnostics_every=-1)


def test_trackers_get_the_picture(digits, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(small_byol(), digits, DATA, settings(tmp_path, num_steps=2, diagnostics_every=1, report_to="tensorboard"))
    events = EventAccumulator(str(tmp_path / "tracker" / "hf_ssl"), size_guidance={"images": 0}).Reload()
    assert [picture.step for picture in events.Images("diagnostics")] == [1, 2]
    assert "predictor_cosine" in events.Tags()["scalars"]
