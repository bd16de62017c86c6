"""What makes a checkpoint complete, which one a run starts from, and what a resumed run must share."""

import errno
import json
import os
import random
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hf_ssl.errors import UserError
from hf_ssl.training import checkpoint as module
from hf_ssl.training import find, limits
from hf_ssl.training.changes import agreed_changes
from hf_ssl.training.checkpoint import (
    load_checkpoint,
    random_state,
    record_of,
    save_checkpoint,
    set_random_state,
)
from hf_ssl.training.find import checkpoint_folder, complete_checkpoints, find_checkpoint, remove_leftovers, step_of
from hf_ssl.training.integrity import is_complete
from hf_ssl.training.processes import own_accelerate_state

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


@pytest.fixture(autouse=True)
def alone():
    """Tests of other files begin without an accelerator."""
    with own_accelerate_state():
        yield


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

    names = ("torch.save", "save_file", "flush", "write_json", "os.replace")
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


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped bit": flip_a_bit,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "foreign": lambda path: path.write_bytes((path.parent.parent / "step-000005" / path.name).read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "process-00000.pt", "state.json"])
def test_a_damaged_checkpoint_is_named_and_not_used(
    run, tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
):
    _, _, _, train, save = run
    good = save(5)
    train()
    bad = save(6)
    if (name, damage) == ("state.json", "foreign"):
        (bad / name).write_text('{"step": 6, "seconds": 1, "identity": {}, "files": {}, "crc32": "00000000"}')
    else:
        DAMAGES[damage](bad / name)
    with pytest.raises(UserError, match=f"complete checkpoint, got `.*`, of which `{name}`") as refused:
        find_checkpoint(tmp_path, str(bad))
    assert str(bad) in str(refused.value)
    assert find_checkpoint(tmp_path, "auto") == good
    aside = bad.with_name("step-000006.damaged")
    assert f"`{aside}` is damaged: `{name}`" in caplog.text and f"`{good}` is used instead" in caplog.text
    assert aside.is_dir() and complete_checkpoints(tmp_path) == [good]
    flip_a_bit(good / "optimizer.pt")  # nothing is left: that is no reason to begin anew and to write over the run
    with pytest.raises(UserError, match="has no checkpoint to resume from: of `.*step-000005`, `optimizer.pt`"):
        find_checkpoint(tmp_path, "auto")
    assert is_complete(save(6))


def test_a_checkpoint_without_checksums_is_of_an_older_version(run, tmp_path: Path):
    *_, save = run
    path = save(5)
    state = json.loads((path / "state.json").read_text())
    del state["crc32"], state["record"]
    state["files"] = {name: facts["bytes"] for name, facts in state["files"].items()}
    (path / "state.json").write_text(json.dumps(state))
    assert find_checkpoint(tmp_path, "auto") == path
    DAMAGES["cut"](path / "optimizer.pt")
    with pytest.raises(UserError, match="`optimizer.pt` has"):
        find_checkpoint(tmp_path, "auto")


@contextmanager
def files_no_longer_than(number: int):
    """A full disk in small: the system lets no file of this process grow beyond some bytes."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.parametrize("room", [10, 1500, 4500, 7000])
def test_a_full_disk_leaves_the_last_good_checkpoint(run, tmp_path: Path, room: int):
    *_, save = run
    good = save(5)
    sizes = {path.name: path.stat().st_size for path in good.iterdir()}
    assert room < max(sizes.values()), sizes
    with files_no_longer_than(room), pytest.raises(UserError) as refused:
        save(6)
    text = str(refused.value)
    assert text.startswith("The checkpoint of step 6 in `") and "cannot be written: File too large. Make room" in text
    assert f"the last good checkpoint is `{good}`" in text
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000005"]
    assert find_checkpoint(tmp_path, "auto") == good and is_complete(save(6))


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "Make room"),
        (errno.EDQUOT, "Make room"),
        (errno.EROFS, "Make the folder writable"),
        (errno.EIO, "See to that disk"),
    ],
)
@pytest.mark.parametrize("name", ["flush", "file_facts", "os.replace"])
def test_what_a_disk_refuses_is_one_sentence(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, cure: str, name: str
):
    *_, save = run

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    owner, _, attribute = name.rpartition(".")
    with monkeypatch.context() as patch:
        patch.setattr(getattr(module, owner) if owner else module, attribute, refuse)
        with pytest.raises(UserError, match=f"{os.strerror(number)}. {cure}.*; no checkpoint was written before"):
            save(5)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_room_is_looked_for_before_anything_is_written(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    *_, save = run
    save(5)
    with monkeypatch.context() as patch:
        patch.setattr(limits.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
        patch.setattr(module, "save_file", lambda *_: pytest.fail("written"))
        with pytest.raises(UserError, match=r"it needs 0.\d MiB, and 0.0 MiB are free. Make room"):
            save(6)


def test_leftovers_of_killed_processes_are_removed(run, tmp_path: Path):
    *_, save = run
    for step in (2, 4, 6):
        save(step, keep=9)
    (tmp_path / "checkpoints" / ".step-000008.partial").mkdir()
    (tmp_path / ".run.json.partial").write_text("{")
    (tmp_path / "checkpoints" / "step-000002" / "state.json").unlink()  # half deleted
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000004", "step-000006"]


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_nothing_that_looks_like_one(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    *_, save = run
    save(5)

    def half(folder: Path, **_):
        if folder.exists() and (folder / "state.json").exists() and folder.name.endswith("5.partial"):
            (folder / "optimizer.pt").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(find.shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        save(6, keep=1)
    assert [path.name for path in sorted((tmp_path / "checkpoints").glob("step*"))] == ["step-000006"]


def test_resume_takes_a_checkpoint_or_the_folder_of_a_run(run, tmp_path: Path):
    *_, save = run
    first, second = save(5), save(6)
    elsewhere = tmp_path / "elsewhere"
    assert find_checkpoint(tmp_path, None) is None
    assert find_checkpoint(elsewhere, "auto") is None
    assert find_checkpoint(elsewhere, str(first)) == first
    assert find_checkpoint(elsewhere, str(tmp_path)) == second
    assert find_checkpoint(tmp_path, "step-000006") == second
    with pytest.raises(UserError, match=r"a checkpoint of this run \(`step-000005`, `step-000006`\)"):
        find_checkpoint(tmp_path, "step-000007")
    with pytest.raises(ValueError, match="`resume` must be `auto`, a checkpoint of this run .* folder of a complete"):
        find_checkpoint(tmp_path, str(elsewhere))
    assert find_checkpoint(tmp_path, str(first)) == first
    copy = shutil.copytree(first, tmp_path / "other" / "checkpoints" / first.name)
    with pytest.raises(UserError, match="checkpoints after step 5.*is of another run. Give another `output_dir`"):
        find_checkpoint(tmp_path, str(copy))
    backup = shutil.copytree(first, tmp_path / "checkpoints" / "backup")
    assert find_checkpoint(tmp_path, "backup") == backup and step_of(backup) == 5


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
    agreed_changes(Path("step-000005"), then, IDENTITY | {"num_processes": 2, "images_per_device": 4})
    with pytest.raises(ValueError, match=message) as caught:
        agreed_changes(Path("step-000005"), then, IDENTITY | change)
    assert "another `output_dir`" in str(caught.value)


def test_the_refusal_names_the_command_that_started_the_run(tmp_path: Path):
    checkpoint = tmp_path / "checkpoints" / "step-000005"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run.json").write_text('{"command": "hf-ssl pretrain --max_hours 2"}')
    then = json.loads(json.dumps(IDENTITY))
    with pytest.raises(ValueError, match="The run was started by `hf-ssl pretrain --max_hours 2`"):
        agreed_changes(checkpoint, then, IDENTITY | {"batch_size": 16}, started=record_of(checkpoint))
