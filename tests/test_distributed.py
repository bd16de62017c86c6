"""What processes tell each other, in 2, 4 and 8 of them; run as a script, this file starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from hf_ssl.distributed import (
    Shuffle,
    broadcast,
    gather,
    gather_rows,
    gather_with_gradient,
    mean_over_processes,
    rank,
    shared_permutation,
    shared_uniform,
    world_size,
)
from hf_ssl.modules.losses import cross_view_info_nce, nt_xent

WORLDS = (2, 4, 8)
IMAGES = 8


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


def exchanged(number: int, world_size: int) -> dict[str, Tensor]:
    """What each function gives where the process with this number brings its number."""
    own = torch.full((2, 3), float(number))
    rows = torch.full((number, 2), number)  # the first process has none
    taken = torch.full((3,), number)
    broadcast(taken)
    torch.manual_seed(number)
    shuffle = Shuffle(5, torch.device("cpu"))
    mine = 100 * number + torch.arange(5)[:, None]
    torch.manual_seed(number)
    return {
        "there": shuffle.there(mine),
        "back": shuffle.back(shuffle.there(mine)),
        "gather": gather(own),
        "gather_rows": gather_rows(rows, torch.device("cpu")),
        "mean": mean_over_processes(own),
        "permutation": shared_permutation(5 * world_size, torch.device("cpu")),
        "uniform": shared_uniform(world_size, 4, torch.device("cpu")),
        "broadcast": taken,
    }


def process(number: int, world_size: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/{world_size}", rank=number, world_size=world_size)
    network = make_network()
    wrapped = DistributedDataParallel(network)
    results: dict = {kind: gradients(network, wrapped, kind) for kind in KINDS}
    results |= exchanged(number, world_size)
    # Both terms get one and the same gradient tensor, the one that was made first gets it last.
    weight = torch.ones(2 * world_size, 3, requires_grad=True)
    other = weight * 1.0
    leaf = torch.ones(2, 3, requires_grad=True)
    everything = gather_with_gradient(leaf)
    results["gathered"] = everything.detach()
    (everything + other).backward(torch.full_like(weight, 1.0 + number))
    results["leaf"], results["weight"] = leaf.grad, weight.grad
    torch.save(results, folder / f"{world_size}-{number}.pt")
    del wrapped  # before the group: see `run_task`
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> dict[int, list[dict]]:
    """Results of the processes of each group, by their number."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {number: [torch.load(folder / f"{number}-{place}.pt") for place in range(number)] for number in WORLDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", WORLDS)
def test_averaged_gradient_of_local_anchors_is_that_of_the_whole_batch(ranks, number, kind):
    network = make_network()
    loss, gradient = gradients(network, network, kind)
    losses, reduced = zip(*(result[kind] for result in ranks[number]), strict=True)
    torch.testing.assert_close(sum(losses) / number, loss, atol=1e-6, rtol=1e-6)
    assert all(torch.equal(reduced[0], other) for other in reduced[1:])
    torch.testing.assert_close(reduced[0], gradient, atol=1e-7, rtol=1e-5)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("number", WORLDS)
def test_the_backward_pass_adds_up_and_changes_no_gradient_of_others(ranks, number):
    for place, result in enumerate(ranks[number]):
        assert torch.equal(result["gathered"], torch.ones(2 * number, 3))
        assert torch.equal(result["leaf"], torch.full((2, 3), sum(range(1, number + 1))))  # 1 from the first, 2, ...
        assert torch.equal(result["weight"], torch.full((2 * number, 3), 1.0 + place))


@pytest.mark.parametrize("number", WORLDS)
def test_every_process_gets_the_same_in_rank_order(ranks, number):
    first = ranks[number][0]
    for other in ranks[number][1:]:
        for name in ("gather", "gather_rows", "mean", "permutation", "uniform", "broadcast"):
            assert torch.equal(first[name], other[name]), name
    numbers = torch.arange(number)
    assert torch.equal(first["gather"][:, 0], numbers.repeat_interleave(2).float())
    assert torch.equal(first["gather_rows"][:, 0], numbers.repeat_interleave(numbers))
    assert torch.equal(first["mean"], torch.full((2, 3), (number - 1) / 2))
    # Those that the first process would draw by itself.
    torch.manual_seed(0)
    assert torch.equal(first["permutation"], torch.randperm(5 * number))
    assert torch.equal(first["uniform"], torch.rand(number, 4))
    assert torch.equal(first["broadcast"], torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("number", WORLDS)
def test_shuffled_rows_are_in_the_drawn_order_and_come_back(ranks, number):
    rows = torch.cat([100 * place + torch.arange(5)[:, None] for place in range(number)])
    torch.manual_seed(0)
    order = torch.randperm(5 * number)  # that the first process draws
    assert torch.equal(torch.cat([result["there"] for result in ranks[number]]), rows[order])
    assert torch.equal(torch.cat([result["back"] for result in ranks[number]]), rows)


def test_one_process_shuffles_its_rows_in_the_same_way():
    rows = torch.randn(6, 2)
    torch.manual_seed(3)
    order = torch.randperm(6)
    torch.manual_seed(3)
    shuffle = Shuffle(6, torch.device("cpu"))
    assert torch.equal(shuffle.there(rows), rows[order]) and torch.equal(shuffle.back(rows[order]), rows)


def test_one_process_gets_the_tensor_itself():
    tensor = torch.randn(3, 2, requires_grad=True)
    assert gather_with_gradient(tensor) is tensor


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number in WORLDS:
        # A process that fails ends the others.
        start_processes(process, (number, Path(sys.argv[1])), nprocs=number, start_method="fork")
