"""What an overflow of fp16 does: the real loop with float16 gradients and PyTorch's loss scaler, on the CPU.

Accelerate has a loss scaler for accelerators only, and `train` refuses fp16 without one; here the scaler is put into
Accelerate's object by hand. Autocast, the scaled loss, the search for infinite gradients, the skipped step and the
smaller scale are the same code as on a GPU; kernels of a GPU are not run.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from test_contract import changed, make_batch, make_model, method_buffers, state_of
from test_loop import DATA, assert_same, settings, weights

from hf_ssl.data.sources.open import open_source
from hf_ssl.methods import METHODS
from hf_ssl.training import loop, processes
from hf_ssl.training.find import complete_checkpoints
from hf_ssl.training.loop import train

STEPS = 8
# Too large at first: gradients of float16 end at 65504. It falls so fast that every method has good steps soon.
FIRST_SCALE, BACKOFF = 2.0**24, 1 / 8


class OnCPU(Accelerator):
    """An accelerator for float16 that needs no GPU."""

    last: "OnCPU"

    def __init__(self, **options: Any):
        super().__init__(**{**options, "mixed_precision": "fp16"})
        assert self.scaler is None, "accelerate has a scaler for the CPU now: let the test use it"
        self.native_amp = True
        self.scaler = too_large("cpu")
        OnCPU.last = self


def too_large(device: str) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(device, init_scale=FIRST_SCALE, backoff_factor=BACKOFF)


@pytest.fixture
def float16(monkeypatch: pytest.MonkeyPatch):
    """`train` may use fp16 on the CPU."""
    start = processes.start_accelerator
    monkeypatch.setattr(processes, "Accelerator", OnCPU)
    monkeypatch.setattr(loop, "start_accelerator", lambda values: start(replace(values, mixed_precision="no")))


@pytest.fixture(scope="module")
def digits():
    return open_source("digits")


class Witness:
    """Keeps state and loss scale before each step and after the last, and notes calls of `after_optimizer_step`."""

    def __init__(self, model: Any):
        self.model, self.states, self.scales, self.called = model, [], [], []
        model.register_forward_pre_hook(lambda module, inputs: self.look())
        model.encoder.register_forward_hook(lambda module, inputs, output: self.check(output))
        after = model.after_optimizer_step
        model.after_optimizer_step = lambda step, num_steps: (self.called.append(step), after(step, num_steps))

    def look(self) -> None:
        self.states.append(weights(self.model))
        self.scales.append(OnCPU.last.scaler.get_scale())

    def check(self, output: torch.Tensor) -> None:
        assert output.dtype == torch.float16 and output.isfinite().all()


def run(folder: Any, source: Any, method: str = "moco", **values: Any) -> Witness:
    witness = Witness(make_model(method, {"image_size": 16}))
    values = {"num_steps": STEPS, "log_every": 100, "mixed_precision": "fp16", "diagnostics_every": 0, **values}
    assert train(witness.model, source, DATA, settings(folder, **values)).finished
    witness.look()
    return witness


def check_overflows(seen: Witness, method: str) -> None:
    """Steps whose gradients overflow move nothing, lower the scale and count."""
    trained = [name for name, _ in seen.model.named_parameters()]  # of the target too
    pairs = list(zip(seen.states, seen.states[1:], strict=False))
    overflowed = [step for step in range(1, STEPS + 1) if seen.scales[step] == seen.scales[step - 1] * BACKOFF]
    assert 1 in overflowed and len(overflowed) < STEPS, seen.scales
    assert seen.scales[-1] == FIRST_SCALE * BACKOFF ** len(overflowed)
    for step, (before, after) in enumerate(pairs, start=1):
        moved = {name for name in trained if not torch.equal(before[name], after[name])}
        assert bool(moved) == (step not in overflowed), f"step {step}: {sorted(moved)}"
        assert all(value.isfinite().all() for value in after.values())
    # Steps go on counting: the target's schedule is that of the run.
    assert seen.called == [step for step in range(1, STEPS + 1) if step not in overflowed]
    # What the forward pass writes is written, for its numbers are finite.
    other = make_model(method, {"image_size": 16})
    other(**make_batch())  # may set what is never written again
    buffers = state_of(method_buffers(other).items())
    other(**make_batch())
    for written in changed(buffers, method_buffers(other).items()):
        assert all(not torch.equal(before[written], after[written]) for before, after in pairs), written


# Clipping asks for gradients without their scale, and so before the step.
CASES = [
    pytest.param(method, {"max_grad_norm": 1.0} if method == "directpred" else {}, id=method) for method in METHODS
]


@pytest.mark.parametrize(("method", "values"), CASES)
def test_an_overflow_changes_no_weight_and_no_target(float16, digits, tmp_path, method, values):
    check_overflows(run(tmp_path / "run", digits, method, **values), method)


def test_a_run_goes_on_with_the_scale_that_it_had(float16, digits, tmp_path):
    whole = run(tmp_path / "whole", digits, keep_checkpoints=9)
    # The checkpoint is from among the overflows: a new scaler would begin with the first scale again.
    assert whole.scales[3] == FIRST_SCALE * BACKOFF**3 != whole.scales[4]
    for later in complete_checkpoints(tmp_path / "whole")[1:]:
        (later / "state.json").unlink()
    resumed = run(tmp_path / "whole", digits, keep_checkpoints=9, resume="auto")
    assert resumed.scales == whole.scales[3:] and resumed.called == whole.called
    assert_same(resumed.states[-1], whole.states[-1])
