"""What makes a checkpoint complete, which one a run starts from, and what a resumed run must share."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hf_ssl.training import checkpoint as module
from hf_ssl.training.checkpoint import (
    check_identity,
    checkpoint_folder,
    command_of,
    complete_checkpoints,
    find_checkpoint,
    is_complete,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
    step_of,
)

IDENTITY = {"method": "byol", "num_processes": 1, "batch_size": 8, "seed": 4, "image_mean": (0.5, 0.5, 0.5)}
POSITION = {"taken": 0, "at": {"0": {"offset": 5}, "1": {"offset": 5}}}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.register_buffer("queue", torch.randn(4, 7))


@pytest.fixture
def run(tmp_path: Path):
    """A network with some history, and a function that saves it."""
    accelerator = Accelerator(cpu=True)
    network = Network()
    optimizer = accelerator.prepare(torch.optim.AdamW(network.parameters(), lr=0.1))

    def train() -> None:
        network.layers(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        network.queue.roll(1)

    def save(step: int, keep: int = 2, folder: Path = tmp_path) -> Path:
        return save_checkpoint(
            accelerator,
            folder,
            model=network,
            optimizer=optimizer,
            step=step,
            seconds=1.5,
            position={"taken": 0, "at": {"0": {"offset": step}, "1": {"offset": step}}},
            identity=IDENTITY,
            keep=keep,
        )

    train()
    return accelerator, network, optimizer, train, save


def test_everything_comes_back(run, tmp_path: Path):
    accelerator, network, optimizer, train, save = run
    path = save(5)
    train()
    drawn = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer_state = json.dumps(optimizer.state_dict(), default=lambda value: value.tolist())

    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    other = Network()
    other_optimizer = accelerator.prepare(torch.optim.AdamW(other.parameters(), lr=0.5))
    restored = load_checkpoint(accelerator, path, model=other, optimizer=other_optimizer, identity=IDENTITY)
    assert (restored.step, restored.seconds, restored.position) == (5, 1.5, POSITION)
    other.layers(torch.randn(2, 3, 8, 8)).square().mean().backward()
    other_optimizer.step()
    other_optimizer.zero_grad()
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == drawn
    torch.testing.assert_close(dict(other.state_dict()), expected, rtol=0, atol=0)
    assert json.dumps(other_optimizer.state_dict(), default=lambda value: value.tolist()) == optimizer_state


def test_random_state_is_plain_data():
    state = random_state(torch.device("cpu"))
    np.random.randn()  # leaves a second number behind, which is state too
    second = random_state(torch.device("cpu"))
    drawn = np.random.randn(3).tolist()
    set_random_state(
        json.loads(json.dumps({**second, "torch": None})) | {"torch": second["torch"]}, torch.device("cpu")
    )
    assert np.random.randn(3).tolist() == drawn
    set_random_state(state, torch.device("cpu"))
    assert np.random.randn(3).tolist() != drawn


def test_newest_complete_checkpoint_is_found_and_old_ones_go(run, tmp_path: Path):
    *_, save = run
    for step in (2, 10, 100):
        save(step, keep=2)
    assert [step_of(path) for path in complete_checkpoints(tmp_path)] == [10, 100]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000010", "step-000100"]
    assert find_checkpoint(tmp_path, "auto") == checkpoint_folder(tmp_path, 100)


def test_a_kill_while_writing_leaves_the_last_good_one(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    *_, save = run
    good = save(5)

    class Killed(BaseException):
        pass

    names = ("torch.save", "save_file", "_flush", "write_json", "os.replace")
    for name in names:

        def die(*_, **__):
            raise Killed

        owner, _, attribute = name.rpartition(".")
        with monkeypatch.context() as patch:
            patch.setattr(getattr(module, owner) if owner else module, attribute, die)
            with pytest.raises(Killed):
                save(6)
        assert find_checkpoint(tmp_path, "auto") == good, f"killed in {name}"
    assert is_complete(save(6))  # what was left behind does not stand in the way
    assert [path.name for path in (tmp_path / "checkpoints").glob(".*")] == []


@pytest.mark.parametrize("damage", ["cut", "missing", "no state"])
def test_a_damaged_checkpoint_is_not_used(run, tmp_path: Path, damage: str):
    *_, save = run
    good, bad = save(5), save(6)
    if damage == "cut":
        file = bad / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    else:
        (bad / ("optimizer.pt" if damage == "missing" else "state.json")).unlink()
    assert find_checkpoint(tmp_path, "auto") == good
    with pytest.raises(ValueError, match="complete checkpoint"):
        find_checkpoint(tmp_path, str(bad))
    assert is_complete(save(6))


def test_resume_takes_a_checkpoint_or_the_folder_of_a_run(run, tmp_path: Path):
    *_, save = run
    first, second = save(5), save(6)
    elsewhere = tmp_path / "elsewhere"
    assert find_checkpoint(tmp_path, None) is None
    assert find_checkpoint(elsewhere, "auto") is None
    assert find_checkpoint(elsewhere, str(first)) == first
    assert find_checkpoint(elsewhere, str(tmp_path)) == second
    with pytest.raises(ValueError, match="`resume` must be `auto` or the folder of a complete checkpoint"):
        find_checkpoint(tmp_path, str(elsewhere))
    # Going back would leave newer checkpoints that `auto` prefers.
    with pytest.raises(ValueError, match="holds checkpoints after step 5.*Delete them"):
        find_checkpoint(tmp_path, str(first))
    shutil.rmtree(second)
    assert find_checkpoint(tmp_path, str(first)) == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "moco"}, "is of method `byol`, this run trains `moco`"),
        ({"batch_size": 16}, "since .* was written: `batch_size` was `8` and is `16` now"),
        ({"image_mean": (0.5, 0.5, 0.4)}, "`image_mean` was"),
    ],
)
def test_another_run_is_refused(change: dict, message: str):
    then = json.loads(json.dumps(IDENTITY))
    check_identity(Path("step-000005"), then, IDENTITY | {"num_processes": 2, "images_per_device": 4})
    with pytest.raises(ValueError, match=message) as caught:
        check_identity(Path("step-000005"), then, IDENTITY | change)
    assert "another `output_dir`" in str(caught.value)


def test_the_refusal_names_the_command_that_started_the_run(tmp_path: Path):
    checkpoint = tmp_path / "checkpoints" / "step-000005"
    checkpoint.mkdir(parents=True)
    assert command_of(checkpoint) is None
    (tmp_path / "run.json").write_text('{"command": "hf-ssl pretrain --max_hours 2"}')
    then = json.loads(json.dumps(IDENTITY))
    with pytest.raises(ValueError, match="The run was started by `hf-ssl pretrain --max_hours 2`"):
        check_identity(checkpoint, then, IDENTITY | {"batch_size": 16}, command_of(checkpoint))
