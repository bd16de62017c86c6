"""Gathering with gradient, in two processes; run as a script, this file is one of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from hf_ssl.distributed import gather_with_gradient, rank, world_size
from hf_ssl.modules.losses import cross_view_info_nce, nt_xent

IMAGES = 6


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()


def images() -> Tensor:
    return torch.randn(IMAGES, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def contrast(kind: str, views: list[Tensor]) -> Tensor:
    """A loss over the anchors of this process, with the candidates of all."""
    z = [F.normalize(view, dim=1) for view in views]
    everything = [gather_with_gradient(z_i) for z_i in z]
    start = rank() * len(z[0])
    if kind == "nt_xent":
        return nt_xent(*everything, 0.5, slice(start, start + len(z[0])))[0]
    if kind == "cross_view":
        return cross_view_info_nce(z[0], everything[1], 0.5, start)[0]
    # Every process computes the whole loss, of columns over all images.
    columns = [F.normalize(part, dim=0).T for part in everything]
    return nt_xent(columns[0], columns[1], 1.0)[0]


def gradients(network: nn.Module, wrapped: nn.Module, kind: str) -> tuple[Tensor, Tensor]:
    own = images().chunk(world_size())[rank()]
    network.zero_grad()
    loss = contrast(kind, [wrapped(view) for view in own.unbind(dim=1)])
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


KINDS = ("nt_xent", "cross_view", "columns")


def process(number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    network = make_network()
    wrapped = DistributedDataParallel(network)
    results: dict = {kind: gradients(network, wrapped, kind) for kind in KINDS}
    # Both terms get one and the same gradient tensor, the one that was made first gets it last.
    weight = torch.ones(4, 3, requires_grad=True)
    other = weight * 1.0
    leaf = torch.ones(2, 3, requires_grad=True)
    everything = gather_with_gradient(leaf)
    results["gathered"] = everything.detach()
    (everything + other).backward(torch.full((4, 3), 1.0 + number))
    results["leaf"], results["weight"] = leaf.grad, weight.grad
    torch.save(results, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(number), str(folder)], env=environment) for number in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for each in processes:
            each.kill()
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_averaged_gradient_of_local_anchors_is_that_of_the_whole_batch(ranks, kind):
    network = make_network()
    loss, gradient = gradients(network, network, kind)
    losses, reduced = zip(*(result[kind] for result in ranks), strict=True)
    torch.testing.assert_close(sum(losses) / 2, loss, atol=1e-6, rtol=1e-6)
    assert torch.equal(*reduced)
    torch.testing.assert_close(reduced[0], gradient, atol=1e-7, rtol=1e-5)
    assert gradient.abs().max() > 1e-3


def test_the_backward_pass_adds_up_and_changes_no_gradient_of_others(ranks):
    for number, result in enumerate(ranks):
        assert torch.equal(result["gathered"], torch.ones(4, 3))
        assert torch.equal(result["leaf"], torch.full((2, 3), 3.0))  # 1 from the first process, 2 from the second
        assert torch.equal(result["weight"], torch.full((4, 3), 1.0 + number))


def test_one_process_gets_the_tensor_itself():
    tensor = torch.randn(3, 2, requires_grad=True)
    assert gather_with_gradient(tensor) is tensor


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))
