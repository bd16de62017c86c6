"""Whole runs: one that resumes with `deterministic` is bit for bit the one that was never stopped."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from devices import ON_CUDA, exact_float32, only_cuda
from test_contract import make_model
from test_loop import DATA, assert_same, settings, weights
from torch import nn

from hf_ssl.data.sources.open import open_source
from hf_ssl.methods import METHODS
from hf_ssl.training.find import complete_checkpoints
from hf_ssl.training.loop import train


def is_exact() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


@pytest.mark.parametrize(
    ("method", "device"),
    [
        pytest.param("directpred", "cpu", id="directpred-cpu"),
        *(pytest.param(method, *ON_CUDA.values, id=f"{method}-cuda", marks=ON_CUDA.marks) for method in METHODS),
    ],
)
def test_a_run_resumes_bit_for_bit(method, device, tmp_path: Path):
    options = {"cpu": device == "cpu", "deterministic": True, "mixed_precision": "bf16", "keep_checkpoints": 9}
    source, data, before = open_source("digits"), replace(DATA, cache="uint8"), is_exact()
    whole, resumed = make_model(method), make_model(method)
    seen = []
    whole.register_forward_pre_hook(lambda module, inputs: seen.append((next(module.parameters()).device, is_exact())))
    train(whole, source, data, settings(tmp_path, **options))
    place = seen[-1]
    assert place == (torch.device("cpu"), (True, True, False)) or place[0].type == "cuda" == device
    assert all(exact == (True, True, False) for _, exact in seen)
    for later in complete_checkpoints(tmp_path)[1:]:
        (later / "state.json").unlink()
    assert train(resumed, source, data, settings(tmp_path, **options, resume="auto")).finished
    assert_same(_on_cpu(resumed), _on_cpu(whole))
    assert is_exact() == before
    assert json.loads((tmp_path / "run.json").read_text())["training"]["deterministic"] is True


def _on_cpu(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in weights(model).items()}


@only_cuda  # on the CPU: tests/training/test_loop.py
@pytest.mark.parametrize("method", ["directpred", "byol", "mochi"])
def test_a_run_with_all_that_looks_at_it(method, device, tmp_path: Path):
    """Workers, accumulated gradients, k-NN, diagnoses, the collapse alarm and checkpoints, with nothing left out."""
    values = {"images_per_device": 4, "max_grad_norm": 1.0, "mixed_precision": "bf16", "num_steps": 24}
    watched = {"log_every": 6, "diagnostics_every": 12, "knn_every": 12, "knn_split": "test", "knn_images": 100}
    data = replace(DATA, num_workers=2)
    result = train(make_model(method), open_source("digits"), data, settings(tmp_path, **values, **watched))
    assert result.finished
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seen = {name for line in lines for name in line}
    assert {"loss", "feature_std", "effective_rank", "alignment", "projection_rank_me", "knn"} <= seen
    assert all(math.isfinite(value) for line in lines for value in line.values())


@only_cuda  # the CPU's compiler takes a minute
@pytest.mark.slow  # so that it starts first
def test_compiled_is_what_is_not_compiled(device, tmp_path: Path):
    source, ends = open_source("digits"), []
    with exact_float32():
        for compiled in (False, True):
            model = make_model("directpred")
            folder = tmp_path / str(compiled)
            train(model, source, DATA, settings(folder, num_steps=2, compile=compiled, mixed_precision="no"))
            ends.append(_on_cpu(model))
    # Other kernels add up in another order, and a second step has the first one's differences; see test_methods.py.
    torch.testing.assert_close(ends[1], ends[0], rtol=0.05, atol=0.02)
