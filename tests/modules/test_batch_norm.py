"""Split and synchronised BatchNorm; run as a script, this file starts processes."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn
from torch.multiprocessing.spawn import start_processes

from hf_ssl.modules import batch_norm
from hf_ssl.modules.batch_norm import (
    SplitBatchNorm,
    SyncBatchNorm,
    _NormaliseGroups,
    normalise_groups,
    split_batch_norm,
    synchronize_batch_norm,
)

# Processes may hold different numbers of images.
_SIZES = {2: (5, 7), 8: (1, 2, 1, 2, 1, 2, 1, 2)}


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5, affine=False)
    )
    last = nn.BatchNorm1d(6, momentum=None)
    last.register_parameter("bias", None)  # scale alone, as in SimCLR's projector
    return nn.Sequential(net, nn.Flatten(), nn.Linear(80, 6), last)


def _split_reference(x: np.ndarray, sizes: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalised output, and the mean over groups of mean and unbiased variance, for (batch, channels, pixels)."""
    start, outputs, means, variances = 0, [], [], []
    for size in sizes:
        group = x[start : start + size]
        start += size
        count = group.shape[0] * group.shape[2]
        mean = group.sum(axis=(0, 2)) / count
        variance = ((group - mean[None, :, None]) ** 2).sum(axis=(0, 2)) / count
        outputs.append((group - mean[None, :, None]) / np.sqrt(variance + 1e-5)[None, :, None])
        means.append(mean)
        variances.append(variance * count / (count - 1))
    return np.concatenate(outputs), np.mean(means, axis=0), np.mean(variances, axis=0)


@pytest.mark.parametrize(("batch_size", "num_splits", "sizes"), [(8, 4, [2] * 4), (7, 3, [3, 2, 2]), (5, 1, [5])])
def test_groups_are_normalised_apart(batch_size, num_splits, sizes):
    torch.manual_seed(1)
    x = torch.randn(batch_size, 3, 4, 4) * 2 + 1
    norm = SplitBatchNorm(3, num_splits)
    expected, mean, variance = _split_reference(x.double().numpy().reshape(batch_size, 3, 16), sizes)
    output = norm(x).detach().double().numpy().reshape(batch_size, 3, 16)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), 0.9 + 0.1 * variance, atol=1e-5)
    assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize("batch_size", [8, 7])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_one_plain_norm_for_each_group(batch_size, memory_format):
    x = torch.randn(batch_size, 3, 4, 4).to(memory_format=memory_format)
    gradient = torch.randn_like(x)
    norm, plain = SplitBatchNorm(3, 3), nn.BatchNorm2d(3)
    fast, slow = x.clone().requires_grad_(), x.clone().requires_grad_()
    norm(fast).backward(gradient)
    torch.cat([plain(group) for group in slow.tensor_split(3)]).backward(gradient)
    torch.testing.assert_close(fast.grad, slow.grad)
    assert fast.grad.is_contiguous(memory_format=memory_format)
    for name in ("weight", "bias"):
        torch.testing.assert_close(norm.get_parameter(name).grad, plain.get_parameter(name).grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(9, 5), (7, 5, 6, 3)])
@pytest.mark.parametrize("given", [(), ("weight",), ("weight", "bias")])
def test_groups_in_place_are_groups_put_together(dtype, shape, given):
    """Output, statistics and every gradient, with uneven groups, a mixed precision and parts that need no gradient."""
    parameter_dtype = torch.promote_types(dtype, torch.float32)
    x, gradient = (torch.randn(shape).to(dtype) for _ in range(2))
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    scale, shift = (torch.randn(5, dtype=parameter_dtype) if name in given else None for name in ("weight", "bias"))
    sizes = [3, len(x) - 5, 2]
    found = []
    for normalise in (_NormaliseGroups.apply, normalise_groups):
        input, weight, bias = (t if t is None else t.clone().requires_grad_() for t in (x, scale, shift))
        output, means, variances = normalise(input, weight, bias, sizes, 1e-5)
        assert output.requires_grad and not means.requires_grad and not variances.requires_grad
        assert output.dtype == dtype and output.stride() == x.stride()
        output.backward(gradient)
        found.append([output, means, variances, *(t.grad for t in (input, weight, bias) if t is not None)])
        frozen = x.clone().requires_grad_()
        normalise(frozen, scale, shift, sizes, 1e-5)[0].backward(gradient)
        torch.testing.assert_close(frozen.grad, input.grad)
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow)


def test_a_split_network_keeps_the_state_and_the_evaluation_of_the_plain_one():
    plain, split = _network(), _network()
    names = list(plain.state_dict())
    parameters = list(split.parameters())
    split_batch_norm(split, 2)
    assert list(split.state_dict()) == names
    assert all(a is b for a, b in zip(parameters, split.parameters(), strict=True))
    assert sum(isinstance(module, SplitBatchNorm) for module in split.modules()) == 3
    x = torch.randn(6, 3, 8, 8)
    for _ in range(3):
        split(x)
    plain.load_state_dict(split.state_dict())
    assert torch.equal(plain.eval()(x), split.eval()(x))


def test_one_image_group_is_refused_and_uneven_batches_work():
    norm = SplitBatchNorm(3, 4)
    assert norm(torch.randn(9, 3)).shape == (9, 3)
    with pytest.raises(ValueError, match="`bn_splits` makes 4 BatchNorm groups of a batch of 7, but each needs two"):
        norm(torch.randn(7, 3))
    norm.eval()
    assert norm(torch.randn(1, 3)).shape == (1, 3)


def test_activations_inside_the_norm_survive():
    net = nn.Sequential(BatchNormAct2d(3))
    split_batch_norm(net, 2)
    assert net(torch.randn(8, 3, 4, 4)).min() == 0


def test_encoders_without_batch_norm_do_not_change():
    encoder = timm.create_model("test_vit", num_classes=0)
    before = [type(module) for module in encoder.modules()]
    split_batch_norm(encoder, 8)
    synchronize_batch_norm(encoder)
    assert [type(module) for module in encoder.modules()] == before


def test_one_split_and_one_process_change_nothing():
    net = _network()
    split_batch_norm(net, 1)
    synchronize_batch_norm(net)
    assert not any(isinstance(module, (SplitBatchNorm, SyncBatchNorm)) for module in net.modules())


def test_split_norm_works_in_bfloat16_and_channels_last():
    net = _network()
    split_batch_norm(net, 2)
    net = net.to(memory_format=torch.channels_last)
    x = torch.randn(6, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(x)
    output.float().sum().backward()
    assert output.isfinite().all() and all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_norms_work_in_the_precision_that_they_were_cast_to(dtype, momentum, monkeypatch):
    torch.manual_seed(2)
    images = torch.randn(8, 5, 3, 3).to(dtype)
    norms = [SplitBatchNorm(5, 2, momentum=momentum), SyncBatchNorm(5, momentum=momentum)]
    for norm in norms:
        nn.init.normal_(norm.weight)
    expected = [_cast_results(norm, images.float(), torch.float32) for norm in norms]
    found = [_cast_results(norm, images, dtype) for norm in norms]
    monkeypatch.setattr(batch_norm._NormaliseGroups, "apply", normalise_groups)  # as on an accelerator
    expected.append(expected[0])
    found.append(_cast_results(norms[0], images, dtype))
    for one, exact in zip(found, expected, strict=True):
        assert {tensor.dtype for tensor in one} == {dtype}
        tolerance = 0.03 if dtype == torch.bfloat16 else 1e-5
        for tensor, wanted in zip(one, exact, strict=True):
            torch.testing.assert_close(tensor.float(), wanted, atol=tolerance, rtol=tolerance)


def _cast_results(norm: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output, gradients and running statistics of a cast copy of a norm."""
    norm, images = copy.deepcopy(norm).to(dtype), images.clone().requires_grad_()
    output = norm(images)
    (output * torch.linspace(-1, 1, output.numel()).to(dtype).view_as(output)).sum().backward()
    gradients = [tensor.grad for tensor in (images, *norm.parameters()) if tensor.grad is not None]
    return [output, *gradients, *(buffer for buffer in norm.buffers() if buffer.is_floating_point())]


def test_pytorch_synchronises_on_other_backends(monkeypatch):
    monkeypatch.setattr(batch_norm, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    plain, converted = _network(), _network()
    names, parameters = list(converted.state_dict()), list(converted.parameters())
    synchronize_batch_norm(converted)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in converted.modules()) == 3
    assert list(converted.state_dict()) == names
    assert all(a is b for a, b in zip(parameters, converted.parameters(), strict=True))
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(plain.eval()(x), converted.eval()(x))


def _images() -> torch.Tensor:
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double()


def _results(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs = [net(x), net(x * 0.5 + 1)]
    loss = (outputs[0] * outputs[1].detach()).pow(2).mean() + outputs[1].sin().mean()
    loss.backward()
    gradients = {f"gradient.{name}": parameter.grad for name, parameter in net.named_parameters()}
    net.eval()
    with torch.no_grad():
        evaluation = net(x)
    return {"output": outputs[0].detach(), "evaluation": evaluation, **gradients, **net.state_dict()}


def _parts(number: int) -> list[slice]:
    """The images of each process."""
    ends = np.cumsum(_SIZES[number]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _process(rank: int, number: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/{number}", rank=rank, world_size=number)
    net = _network().double()
    names, parameters = list(net.state_dict()), list(net.parameters())
    split = nn.Sequential(SplitBatchNorm(4, 8))
    synchronize_batch_norm(split)
    synchronize_batch_norm(net)
    kinds = [type(module) for module in net.modules()]
    same_state = list(net.state_dict()) == names and all(
        a is b for a, b in zip(parameters, net.parameters(), strict=True)
    )
    results = _results(net, _images()[_parts(number)[rank]])
    same_state = same_state and isinstance(split[0], SplitBatchNorm) and kinds.count(SyncBatchNorm) == 3
    torch.save({"same_state": same_state, **results}, folder / f"{number}-{rank}.pt")
    dist.destroy_process_group()


def test_processes_equal_one(tmp_path):
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number in _SIZES:
        _compare([torch.load(tmp_path / f"{number}-{rank}.pt") for rank in range(number)], _parts(number))


def _compare(results: list[dict], parts: list[slice]) -> None:
    assert all(result.pop("same_state") for result in results)
    net, close = _network().double(), {"atol": 1e-12, "rtol": 1e-12}
    whole = _images()
    first, second = net(whole), net(whole * 0.5 + 1)
    assert first.dtype == results[0]["output"].dtype == torch.float64
    torch.testing.assert_close(torch.cat([result["output"] for result in results]), first.detach(), **close)
    losses = [(first[part] * second[part].detach()).pow(2).mean() + second[part].sin().mean() for part in parts]
    torch.stack(losses).sum().backward()
    for name, parameter in net.named_parameters():
        total = torch.stack([result[f"gradient.{name}"] for result in results]).sum(0)
        torch.testing.assert_close(total, parameter.grad, **close)
    for result in results:
        for name, value in net.state_dict().items():
            torch.testing.assert_close(result[name], value, **close)
            assert torch.equal(result[name], results[0][name])
    net.eval()
    evaluation = torch.cat([result["evaluation"] for result in results])
    torch.testing.assert_close(evaluation, net(whole).detach(), **close)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for world_size in _SIZES:
        # A process that fails ends the others.
        start_processes(_process, (world_size, Path(sys.argv[1])), nprocs=world_size, start_method="fork")
