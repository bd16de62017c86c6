"""Half precision on a device: bfloat16 keeps everything finite, and an overflow of float16 skips its step."""

import copy

import pytest
import torch
from accelerate import Accelerator
from devices import exact_float32, only_cuda, same_draws
from test_contract import CASES, make_batch, make_model
from test_fp16_overflow import CASES as OVERFLOWS
from test_fp16_overflow import OnCPU, check_overflows, run, too_large

from hf_ssl.data.sources.open import open_source
from hf_ssl.training import processes
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.optimizers import build_optimizer


@only_cuda  # what autocast does on the CPU is in the tests of the contract
@pytest.mark.parametrize(("name", "values"), CASES)
def test_a_step_in_bfloat16_is_finite_and_nearly_that_of_float32(name, values, device):
    model = make_model(name, values)
    kinds = {key: value.dtype for key, value in model.state_dict().items()}
    with same_draws(), exact_float32():
        torch.manual_seed(0)
        exact = copy.deepcopy(model)(**make_batch()).loss
        torch.manual_seed(0)
        model = model.to(device).to(memory_format=torch.channels_last)
        optimizer = build_optimizer(model, TrainingSettings(output_dir="none"), 0.02)
        batch = {key: value.to(device) for key, value in make_batch().items()}
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        for key, weight in model.trainable_parameters().items():
            assert weight.grad is not None and weight.grad.isfinite().all(), key
        optimizer.step()
        model.after_optimizer_step(1, 10)
    assert loss.dtype == torch.float32
    # Bfloat16 has 8 bits: 0.4 % of each number, over a dozen layers. As in the tests of the contract on the CPU.
    torch.testing.assert_close(loss.cpu(), exact, atol=0.1, rtol=0.02)
    assert {key: value.dtype for key, value in model.state_dict().items()} == kinds
    assert all(value.isfinite().all() for value in model.state_dict().values())


class OnCuda(OnCPU):
    """Accelerate's own accelerator for float16, with a scale that is too large at first."""

    def __init__(self, **options):
        Accelerator.__init__(self, **options)
        assert self.device.type == "cuda" and isinstance(self.scaler, torch.amp.GradScaler)
        self.scaler = too_large("cuda")
        OnCPU.last = self


@only_cuda  # on the CPU: tests/training/test_fp16_overflow.py
@pytest.mark.parametrize(("method", "values"), OVERFLOWS)
def test_an_overflow_of_float16_skips_the_step_and_counts(method, values, device, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "Accelerator", OnCuda)
    # Not `auto`: the forward pass that finds out how many images fit would be taken for a step.
    check_overflows(run(tmp_path / "run", open_source("digits"), method, images_per_device=8, **values), method)
