"""How many images fit: the search, and that a trial leaves no trace. The device that is too small is a stand-in."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_ssl import distributed
from hf_ssl.errors import UserError
from hf_ssl.methods import METHODS
from hf_ssl.training import fit
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.checkpoint import random_state
from hf_ssl.training.fit import images_that_fit, largest_fitting, left_as_it_was, trial_step

CUDA = SimpleNamespace(device=torch.device("cuda"), num_processes=2)


def settings(folder: Path, **values) -> TrainingSettings:
    return TrainingSettings(**{"output_dir": str(folder), "batch_size": 48, "num_steps": 2, **values})


@pytest.mark.parametrize(("limit", "found"), [(100, 24), (24, 24), (23, 12), (11, 6), (7, 6), (1, 1), (0, 0)])
def test_the_largest_divisor_within_half_of_what_failed(limit: int, found: int):
    tried = []
    divisors = [number for number in range(24, 0, -1) if 24 % number == 0]
    assert largest_fitting(divisors, lambda number: tried.append(number) or number <= limit) == found
    assert all(2 * second <= first for first, second in zip(tried, tried[1:], strict=False))


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch):
    """A device on which 7 images or more are too many; what a trial is given."""
    tried = []

    def trial(images: int) -> None:
        tried.append(images)
        if images >= 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(fit, "gather", lambda tensor: tensor)
    monkeypatch.setattr(fit.torch, "tensor", lambda values, **_: torch.Tensor(values))
    return trial, tried


def test_on_a_gpu_the_images_are_halved_until_they_fit(short_of_memory, tmp_path: Path):
    trial, tried = short_of_memory
    module = torch.nn.Linear(2, 2)
    assert images_that_fit(CUDA, module, settings(tmp_path), lambda images: None, trial) == 6
    assert tried == [24, 12, 6]

    def even(images: int) -> None:
        if images < 12:
            raise UserError("too few")

    with pytest.raises(UserError, match="not enough for the fewest images that can be used in one forward pass"):
        images_that_fit(CUDA, module, settings(tmp_path), even, trial)
    with pytest.raises(ZeroDivisionError):
        images_that_fit(CUDA, module, settings(tmp_path), lambda images: None, lambda images: 1 / 0)


def test_what_was_given_is_taken_and_a_cpu_takes_all(tmp_path: Path):
    def never(images: int) -> None:
        raise AssertionError

    cpu = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    module = torch.nn.Linear(2, 2)
    assert images_that_fit(cpu, module, settings(tmp_path), lambda images: None, never) == 24
    assert images_that_fit(CUDA, module, settings(tmp_path, images_per_device=8), lambda images: None, never) == 8


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_leaves_no_trace(method: str, tmp_path: Path):
    small = {"architecture": "test_resnet", "image_size": 16, "projection_dim": 16}
    small |= {"memory_bank": {"bank_size": 48, "num_negatives": 8}, "moco": {"queue_size": 32}}.get(method, {})
    small |= {"mochi": {"queue_size": 32, "num_hard_negatives": 8}, "directclr": {"subvector_dim": 16}}.get(method, {})
    small |= {"contrastive_clustering": {"num_clusters": 4}}.get(method, {})
    if method in ("directclr",):
        del small["projection_dim"]
    model = METHODS[method](METHODS[method].config_class(**small)).train()
    before, drawn = (
        {name: value.clone() for name, value in model.state_dict().items()},
        random_state(torch.device("cpu")),
    )
    with left_as_it_was(model):
        trial_step(model, settings(tmp_path), 16)
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        assert changed  # BatchNorm statistics at least: there was something to undo
        assert not torch.equal(torch.get_rng_state(), drawn["torch"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), drawn["torch"])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_trial_asks_no_other_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 3)
    assert (distributed.world_size(), distributed.rank()) == (4, 3)
    with distributed.working_alone():
        assert (distributed.world_size(), distributed.rank()) == (1, 0)
        assert torch.equal(distributed.gather(torch.ones(2)), torch.ones(2))
    assert (distributed.world_size(), distributed.rank()) == (4, 3)
