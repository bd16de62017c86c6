"""Nothing in a training step makes the host wait for the device.

Without a GPU, one is pretended: PyTorch's fake tensors carry shapes and devices alone, so that a number read from one
(`item`, `nonzero`, a mask as an index) fails, and a copy that would wait is seen. On a GPU the same is asked of CUDA
itself, in the loop of `train`.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from devices import only_cuda
from test_contract import CASES, make_batch, make_model
from test_loop import DATA, settings
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_ssl.data.order.cache import Cache, CachedViews
from hf_ssl.data.order.stream import Batch
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.views.cpu import Crops
from hf_ssl.data.views.device import Normalize
from hf_ssl.data.views.device_colour import DeviceColour
from hf_ssl.data.views.draws import NUM_DRAWS
from hf_ssl.data.views.recipes import VIEW_RECIPES
from hf_ssl.fine_tuning.classifier import open_classifier
from hf_ssl.fine_tuning.settings import FineTuningSettings
from hf_ssl.fine_tuning.task import FineTuning
from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.batches import inputs_of
from hf_ssl.training.loop import train
from hf_ssl.training.optimizers import build_optimizer
from hf_ssl.training.recorder import Recorder
from hf_ssl.training.watch.loss import LossMonitor

CUDA = torch.device("cuda")
# Eigenvectors are taken, and waited for, where iterations do not do.
WAITS = {"directpred": lambda values: values.get("remove_mean") and values.get("rule") != "directcopy"}


class NoWaiting(TorchDispatchMode):
    """Fails at a copy between host and device that is waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::_to_copy", "aten::copy_"):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            devices = {tensor.device.type for tensor in tensors}
            waits = not ((kwargs or {}).get("non_blocking") or (len(args) > 2 and args[2] is True))
            pinned = any(getattr(tensor, "is_pinned_here", False) for tensor in tensors)
            if devices == {"cpu", "cuda"} and (waits or not pinned):
                raise AssertionError(f"{func} between host and device is waited for")
        return result


def _pinned(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.is_pinned_here = True  # type: ignore[attr-defined]
    return tensor


@contextmanager
def pretended_gpu() -> Iterator[FakeTensorMode]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, patch.object(Tensor, "pin_memory", _pinned):
        yield mode


def on_pretended_gpu(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    with FakeCopyMode(mode):
        module = copy.deepcopy(module)
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(weight.detach().to(CUDA), weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(CUDA)
    return module


@pytest.mark.parametrize("wait", ["item", "nonzero", "mask", "to host", "from host", "new_tensor"])
def test_the_pretended_gpu_sees_who_waits(wait):
    work = {
        "item": lambda there: there.sum().item(),
        "nonzero": lambda there: there.nonzero(),
        "mask": lambda there: there[there > 0],
        "to host": lambda there: there.cpu(),
        "from host": lambda there: torch.zeros(2).to(CUDA),
        "new_tensor": lambda there: there.new_tensor([1.0]),
    }[wait]
    with pretended_gpu():
        there = torch.empty(4, device=CUDA)
        with NoWaiting(), pytest.raises((AssertionError, RuntimeError)):
            work(there)
        with NoWaiting():
            torch.where(there > 0, 1.0, there) * 2


@pytest.mark.parametrize(("name", "values"), CASES)
def test_no_step_of_a_method_waits(name, values):
    if WAITS.get(name, lambda values: False)(values):
        pytest.skip("takes eigenvectors, which are waited for")
    batch, model = make_batch(), make_model(name, values)
    views = (batch["pixel_values"].permute(0, 1, 3, 4, 2) * 255).byte()
    given = Batch(views, batch["indices"], batch["labels"], 0, {}, {})
    optimizer = {"end_to_end": "lars", "contrastive_clustering": "adamw"}.get(name, "sgd")
    # The fused kernels of sgd and adamw, which float16 does without, cannot be pretended; they read nothing back.
    options = TrainingSettings(output_dir="none", optimizer=optimizer, max_grad_norm=1.0, mixed_precision="fp16")
    with pretended_gpu() as mode:
        model = on_pretended_gpu(model, mode)
        normalize = Normalize((0.5,) * 3, (0.25,) * 3, CUDA)
        stepper, losses = build_optimizer(model, options, 0.1), LossMonitor(CUDA)
        with NoWaiting():
            for step in (1, 2):
                loss = model(**inputs_of(given, normalize, CUDA)).loss
                # The engine of `backward` asks the driver for its streams, so it is on the CPU, below.
                for weight in model.trainable_parameters().values():
                    weight.grad = torch.empty_like(weight)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                stepper.step()
                stepper.zero_grad()
                losses.add(loss, step)
                model.after_optimizer_step(step, 20)
    loss = make_model(name, values)(**make_batch()).loss
    with NoWaiting():
        loss.backward()


@pytest.mark.parametrize("values", [{}, {"mixup": 0.2, "cutmix": 1.0}], ids=["plain", "blended"])
def test_no_step_of_fine_tuning_waits(values):
    own = FineTuningSettings(output_dir="none", num_steps=1, **values)
    classifier = open_classifier("random:test_resnet", [str(number) for number in range(10)], image_size=32)
    task = FineTuning(classifier, open_source("digits"), None, DataSettings(dataset="digits"), own)
    batch = Batch(torch.zeros(8, 1, 32, 32, 3, dtype=torch.uint8), None, torch.arange(8), 0, {}, {})

    def looks(task: FineTuning, targets: Tensor) -> Tensor:
        assert targets.device.type == "cpu"  # where it may be asked whether all are known
        return targets

    with pretended_gpu() as mode, patch.object(FineTuning, "_all_known", looks):
        network = on_pretended_gpu(task.module, mode)
        task.set_up(CUDA)
        with NoWaiting():
            assert task.forward(network, batch).loss.device.type == "cuda"


@pytest.mark.parametrize("recipe", ["byol", "simsiam_cifar", "moco_v3"])
def test_no_batch_of_views_on_the_device_waits(recipe):
    pictures = np.random.default_rng(0).integers(0, 256, (16, 40, 40, 3), dtype=np.uint8)
    numbers = np.random.default_rng(1).random((16, 2, NUM_DRAWS))
    crops, draws = Crops(VIEW_RECIPES[recipe], 32)(pictures, numbers)
    rows = draws.transpose(0, 1).flatten(0, 1).double().numpy()
    # The draws are on the CPU, where numpy reads them; here it would meet fake ones.
    with pretended_gpu(), patch.object(Tensor, "numpy", lambda tensor: rows):
        colour = DeviceColour(VIEW_RECIPES[recipe], 32, CUDA)
        cache = Cache(None, torch.from_numpy(pictures).to(CUDA), {})  # type: ignore[arg-type]
        cached = CachedViews(VIEW_RECIPES[recipe], 32, cache)
        with NoWaiting():
            assert colour(crops, draws).device.type == "cuda"
            views = cached(torch.arange(16), draws.float())
    assert views.shape == (16, 2, 32, 32, 3) and views.device.type == "cuda"


@contextmanager
def no_waiting_after(warm_up: int) -> Iterator[list[int]]:
    """The loop of `train` runs in CUDA's `error` mode from one step on, up to what is logged and saved at its end."""
    steps: list[int] = []
    after_step = Recorder.after_step

    def watched(recorder: Recorder, step: int, *args: Any) -> bool:
        if step == recorder.plan.num_steps:
            torch.cuda.set_sync_debug_mode("default")
        stops = after_step(recorder, step, *args)
        if warm_up <= step < recorder.plan.num_steps:
            torch.cuda.set_sync_debug_mode("error")
            steps.append(step)
        return stops

    try:
        with patch.object(Recorder, "after_step", watched):
            yield steps
    finally:
        torch.cuda.set_sync_debug_mode("default")


@only_cuda
@pytest.mark.parametrize("places", [{}, {"views_on": "gpu"}, {"cache": "uint8"}], ids=["workers", "colours", "cache"])
@pytest.mark.parametrize("method", METHODS)
def test_the_loop_does_not_wait(device, method, places, tmp_path: Path):
    with no_waiting_after(warm_up=3) as steps:
        options = {"num_steps": 8, "log_every": 100, "checkpoint_every": 100, "mixed_precision": "bf16"}
        data = replace(DATA, **places)
        assert train(make_model(method), open_source("digits"), data, settings(tmp_path, **options)).finished
    assert steps == [3, 4, 5, 6, 7]
