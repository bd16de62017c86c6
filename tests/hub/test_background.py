"""Publishing while training goes on: what arrives, what is reported, and that training does not notice."""

import logging
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from hub_server import Handler
from huggingface_hub import get_session, set_client_factory
from huggingface_hub.utils._http import default_client_factory
from safetensors.torch import load

from hf_ssl.commands import main
from hf_ssl.hub.background import _THREAD, BackgroundPublisher, leave_uploads


@pytest.fixture
def model(make_run, tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def publisher(model, tmp_path, caplog):
    caplog.set_level(logging.INFO, "hf_ssl")
    return BackgroundPublisher(tmp_path / "run", "org/x", private=True)


class Gate:
    """Holds the commits on the server until it is opened."""

    def __init__(self, monkeypatch):
        self.reached, self.opened = threading.Event(), threading.Event()
        commit = Handler.commit

        def held(handler, *arguments):
            self.reached.set()
            handler.hub.lock.release()  # others are served meanwhile
            self.opened.wait()
            handler.hub.lock.acquire()
            return commit(handler, *arguments)

        monkeypatch.setattr(Handler, "commit", held)


def content_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_each_step_becomes_a_branch_of_its_own_weights(online, publisher, model, tmp_path):
    before = content_of(tmp_path / "run")
    expected = {}
    for step in (1, 2):
        with torch.no_grad():
            model.encoder.conv1[0].weight.fill_(step)
        publisher.submit(step, model)
        with torch.no_grad():
            model.encoder.conv1[0].weight.fill_(-1.0)  # training goes on
        publisher.wait()
        expected[f"step-{step:06d}"] = float(step)
    branches = online.repos["org/x"].commits
    assert set(branches) == {"main", *expected}
    assert online.repos["org/x"].private
    for branch, value in expected.items():
        files = online.files("org/x", branch)
        assert set(files) >= {"config.json", "README.md", "run.json", "pretraining/config.json"}
        assert load(files["model.safetensors"])["conv1.0.weight"].unique().tolist() == [value]
        assert load(files["pretraining/model.safetensors"])["encoder.conv1.0.weight"].unique().tolist() == [value]
        assert branches[branch][-1].title == f"Step {int(value)}"
    assert online.files("org/x") == {}
    assert content_of(tmp_path / "run") == before  # neither the run's own folders change, nor is anything left


def test_a_slow_hub_costs_no_time_and_only_two_snapshots(online, publisher, model, monkeypatch, caplog):
    left = publisher.left

    def left_and_then_open():
        found = left()
        gate.opened.set()
        return found

    gate = Gate(monkeypatch)
    publisher.submit(1, model)
    assert gate.reached.wait()
    for step in (2, 3, 4):
        publisher.submit(step, model)  # returns although nothing is pushed
    assert publisher.left() == ["step-000001", "step-000004"]
    assert sorted(path.name for path in publisher.folder.iterdir()) == ["step-000001", "step-000004"]
    for step in (2, 3):
        assert f"step-00000{step} is not published: the Hub is slower than the checkpoints" in caplog.text
    monkeypatch.setattr(publisher, "left", left_and_then_open)  # which `wait` asks before it waits
    publisher.wait()
    assert "Waiting until step-000001 and step-000004 have reached the Hub. Ctrl-C ends the wait" in caplog.text
    assert set(online.repos["org/x"].commits) == {"main", "step-000001", "step-000004"}
    assert not publisher.folder.exists()


def test_what_fails_is_reported_and_stays_for_the_next_process(online, publisher, model, caplog, tmp_path):
    online.forbidden = True
    for step in (1, 2):
        publisher.submit(step, model)
        publisher.wait()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.split(";")[0] for text in warnings] == [
        "step-000001 is not published",
        "step-000002 is not published",
        "The snapshot of step-000001 gives way to that of step-000002.",
    ]
    command = f"hf-ssl publish {publisher.folder / 'step-000002'} --repo_id org/x --private --revision"
    assert command in warnings[1]
    assert [path.name for path in publisher.folder.iterdir()] == ["step-000002"]  # the newest, and no more
    online.forbidden = False
    (publisher.folder / ".step-000003").mkdir()  # a process was killed while it wrote
    again = BackgroundPublisher(tmp_path / "run", "org/x", private=True)
    again.resume()
    again.wait()
    assert "step-000002" in online.repos["org/x"].commits
    assert not publisher.folder.exists()


def test_a_step_that_an_earlier_process_left_may_be_written_again(online, publisher, model, monkeypatch):
    gate = Gate(monkeypatch)
    online.forbidden = True
    publisher.submit(1, model)
    publisher.wait()
    online.forbidden = False
    publisher.resume()
    assert gate.reached.wait()
    publisher.submit(1, model)
    gate.opened.set()
    publisher.wait()
    assert len(online.repos["org/x"].commits["step-000001"]) == 2
    assert not publisher.folder.exists()


def test_an_error_that_nobody_expects_does_not_end_the_thread(online, publisher, model, monkeypatch, caplog):
    errors = [MemoryError("no room"), None]

    def fail(*arguments, **values):
        if error := errors.pop(0):
            raise error
        return "address"

    monkeypatch.setattr("hf_ssl.hub.background.publish", fail)
    for step in (1, 2):
        publisher.submit(step, model)
        publisher.wait()
    assert "step-000001 is not published; the run goes on. no room" in caplog.text
    assert "Published: address" in caplog.text


def test_with_nothing_left_to_push_a_failing_program_ends_as_usual(online, publisher, model, monkeypatch):
    """Its `finally` blocks and exit handlers run; a process that runs many programs, as these tests do, lives on."""
    gate, ends = Gate(monkeypatch), []
    monkeypatch.setattr(os, "_exit", ends.append)
    publisher.submit(1, model)
    leave_uploads(2)
    assert ends == [2]
    gate.opened.set()
    publisher.wait()
    for thread in threading.enumerate():
        if thread.name == _THREAD:
            thread.join()
    leave_uploads(2)
    assert ends == [2]
    publisher.submit(2, model)
    publisher.wait()
    assert {"step-000001", "step-000002"} <= set(online.repos["org/x"].commits)


@pytest.fixture
def pretrain(monkeypatch):
    """A function that runs the command in this process: `pretrain(folder, *flags)`; its encoder is not measured."""
    for name in ("_evaluate", "_portray", "_draw"):
        monkeypatch.setattr(f"hf_ssl.hub.finish.{name}", lambda *_: None)
    flags = ["--method", "simsiam", "--recipe", "quickstart", "--encoder", "test_resnet", "--image_size", "16"]
    flags += ["--dataset", "digits", "--num_steps", "6", "--checkpoint_every", "2", "--batch_size", "8"]
    flags += ["--num_workers", "0", "--shuffle_window", "100", "--cpu", "true"]

    def run(folder, *more):
        arguments = ["pretrain", *flags, "--output_dir", str(folder), *more]
        monkeypatch.setattr(sys, "argv", ["hf-ssl", *arguments])
        try:
            return main(arguments)
        finally:  # Accelerate remembers its settings for the whole process
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()

    return run


def test_a_run_publishes_its_checkpoints_and_trains_the_same(online, pretrain, tmp_path, caplog, capsys):
    online.faults = [("POST", "/commit/step-000002", "401")]
    assert pretrain(tmp_path / "a", "--push_checkpoints", "--push_to_hub", "--repo_id", "org/x") == 0
    secret = "hf_" + "Zz9" * 11
    assert pretrain(tmp_path / "b", "--repo_id", f"org/{secret}") == 0
    weights = "pretraining/model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()
    assert online.files("org/x")[weights] == (tmp_path / "a" / weights).read_bytes()
    assert "step-000002 is not published; the run goes on. The Hub does not accept the token." in caplog.text
    assert "step-000002" in online.repos["org/x"].commits  # pushed again at the end
    if "step-000004" in online.repos["org/x"].commits:  # unless step 2 took so long that 4 was left out
        assert online.files("org/x", "step-000004")[weights] != online.files("org/x")[weights]
    for name in ("run.json", "encoder/run.json", "encoder/README.md"):
        assert secret not in (tmp_path / "b" / name).read_text()
    captured = capsys.readouterr()
    assert online.token not in captured.out + captured.err + caplog.text


def test_a_run_that_is_stopped_does_not_wait_and_the_next_one_publishes(
    online, pretrain, tmp_path, monkeypatch, capsys
):
    gate = Gate(monkeypatch)
    submit = BackgroundPublisher.submit

    def stop(publisher, step, model):
        submit(publisher, step, model)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # the checkpoint of this step is the last one

    with monkeypatch.context() as patch:
        patch.setattr(BackgroundPublisher, "submit", stop)
        flags = ["--push_checkpoints", "--repo_id", "org/x"]
        assert pretrain(tmp_path / "a", *flags) == 128 + signal.SIGTERM
    assert "`--resume auto` continues and publishes step-000002." in capsys.readouterr().err
    gate.opened.set()
    assert pretrain(tmp_path / "a", *flags, "--resume", "auto") == 0
    assert {"step-000002"} <= set(online.repos["org/x"].commits)
    assert not (tmp_path / "a" / "unpublished").exists()


def test_checkpoints_alone_are_followed_by_the_finished_encoder(online, pretrain, tmp_path):
    assert pretrain(tmp_path / "a", "--push_checkpoints", "--repo_id", "org/x", "--license", "mit") == 0
    files = online.files("org/x")
    for path in ("model.safetensors", "config.json", "run.json"):
        assert files[path] == (tmp_path / "a" / "encoder" / path).read_bytes()
    assert 'from_pretrained("org/x")' in files["README.md"].decode()
    assert all(
        "license: mit" in online.files("org/x", branch)["README.md"].decode()
        for branch in online.repos["org/x"].commits
    )
    assert not (tmp_path / "a" / "unpublished").exists()


@pytest.mark.parametrize("flags", [["--push_to_hub"], ["--push_checkpoints"]])
def test_what_the_hub_refuses_is_the_last_word_with_the_command_that_publishes_it(
    online, pretrain, tmp_path, capsys, flags
):
    online.forbidden = True
    assert pretrain(tmp_path / "a", *flags, "--repo_id", "org/x", "--private") == 4
    said = capsys.readouterr().out.partition("Not published:\n")[2].splitlines()
    commands = [shlex.split(line.partition("Publish it: hf-ssl ")[2]) for line in said if "Publish it: " in line]
    where = [tmp_path / "a"]
    if flags == ["--push_checkpoints"]:
        where.append(tmp_path / "a" / "unpublished" / "step-000004")
        assert said[-1] == "  step-000002: nothing is left of their weights." or len(said) == 2  # 4 took its place
    assert [command[1] for command in commands] == list(map(str, where))
    online.forbidden = False
    for command in commands:
        assert main(command) == 0
    assert online.repos["org/x"].private
    assert (
        online.files("org/x")["model.safetensors"] == (tmp_path / "a" / "encoder" / "model.safetensors").read_bytes()
    )
    assert ("step-000004" in online.repos["org/x"].commits) == (flags == ["--push_checkpoints"])


def test_a_signal_ends_the_publishing_of_a_finished_run(online, pretrain, tmp_path, monkeypatch, capsys):
    gate = Gate(monkeypatch)
    wait_for = threading.Condition.wait_for

    def waited(condition, done):
        os.kill(os.getpid(), signal.SIGTERM)
        return wait_for(condition, done)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Condition, "wait_for", waited)
        assert pretrain(tmp_path / "a", "--push_checkpoints", "--repo_id", "org/x") == 128 + signal.SIGTERM
    said = capsys.readouterr().out
    assert f"The encoder lies in `{tmp_path / 'a' / 'encoder'}`. Publish it: hf-ssl publish {tmp_path / 'a'} " in said
    assert f"step-000002 lies in `{tmp_path / 'a' / 'unpublished' / 'step-000002'}`" in said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    gate.opened.set()
    assert pretrain(tmp_path / "a", "--push_checkpoints", "--repo_id", "org/x", "--resume", "auto") == 0
    assert {"main", "step-000002", "step-000004"} <= set(online.repos["org/x"].commits)
    assert (
        online.files("org/x")["model.safetensors"] == (tmp_path / "a" / "encoder" / "model.safetensors").read_bytes()
    )


SLOW = """
import logging, sys, threading
from concurrent.futures import ThreadPoolExecutor
from hf_ssl.hub import background
upload = lambda: ThreadPoolExecutor().submit(threading.Event().wait)
threading.Thread(target=lambda: (upload(), threading.Event().wait()), name=background._THREAD, daemon=True).start()
print("stopped")
background.leave_uploads(130)
"""


def test_a_stopped_process_does_not_wait_for_an_upload():
    done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "stopped\n"), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="data workers are not forked here")
def test_data_workers_start_while_a_checkpoint_is_pushed(online, publisher, model):
    """The Hub's client closes itself in every forked process, and would wait for a lock that the thread held."""
    held = threading.Lock()

    class Client(type(get_session())):
        def close(self):
            with held:
                super().close()

    set_client_factory(lambda: Client(follow_redirects=True, timeout=None))
    try:
        publisher.submit(1, model)
        publisher.wait()
        with held:
            worker = multiprocessing.get_context("fork").Process(target=int)
            worker.start()
            worker.join(20)
            waits = worker.is_alive()
            worker.kill()
            worker.join()
        assert not waits
    finally:
        set_client_factory(default_client_factory)
