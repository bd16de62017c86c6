"""Signals: a request is followed, repeated, interrupts what need not be finished, and ends what hangs."""

import math
import os
import select
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from hf_ssl.data.order.loader import end_workers, killed_workers, make_loader
from hf_ssl.data.order.stream import TrainingStream
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import LostProcessError, UserError
from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.find import complete_checkpoints, step_of
from hf_ssl.training.loop import train
from hf_ssl.training.watch import signals
from hf_ssl.training.watch.knn import KNN
from hf_ssl.training.watch.signals import SIGNALS, StopSignal

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of `ended`


def hang() -> None:
    """What never ends by itself."""
    threading.Event().wait()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch):
    """What a process that is ended would have said, and an event when it did."""
    said, happened = [], threading.Event()

    def end(message: str, code: int):
        said.append((message, code))
        happened.set()
        raise SystemExit  # ends the thread

    monkeypatch.setattr(signals, "end_process", end)
    return said, happened


def wait_for_signal(stop: StopSignal) -> None:
    while not stop.received:
        time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_is_a_request_and_its_repetition_the_same_one(number, ended, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "_SAME_REQUEST_SECONDS", math.inf)
    before = signal.getsignal(number)
    with StopSignal() as stop:
        for _ in range(2):  # the cluster, then the launcher
            signal.raise_signal(number)
            wait_for_signal(stop)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == number
        assert not ended[1].wait(0.2)
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_the_process_at_once(ended, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "_SAME_REQUEST_SECONDS", 0.1)
    with StopSignal(left=lambda: "Checkpoint X.") as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for_signal(stop)
        time.sleep(0.3)
        signal.raise_signal(signal.SIGTERM)
        assert ended[1].wait()
    assert ended[0] == [("SIGTERM came after SIGUSR1: the run ends at once. Checkpoint X.", 128 + signal.SIGUSR1)]


def test_what_hangs_is_ended_after_the_grace_time_also_outside_of_python(ended):
    reading, writing = os.pipe()
    with StopSignal(grace_seconds=0.3, left=lambda: "Checkpoint X."):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        select.select([reading], [], [], 2)  # a handler runs, and the call goes on
        assert ended[1].wait()
    os.close(reading)
    os.close(writing)
    message, code = ended[0][0]
    assert "SIGTERM came 0.3 seconds ago (`grace_seconds`)" in message and message.endswith("Checkpoint X.")
    assert code == 143


def test_work_that_need_not_be_finished_is_left():
    with StopSignal() as stop:
        assert stop.unless_it_comes(lambda: 3) == 3
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGHUP)).start()
        assert stop.unless_it_comes(hang) is None
        assert stop.unless_it_comes(lambda: 3) is None
        assert stop.received == signal.SIGHUP


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            time.sleep(0.1)
            assert stop.received == 0 and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_processes_agree_by_time_and_not_at_every_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "world_size", lambda: 2)
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])

    def agreements(seconds_per_step: float) -> list[int]:
        stop, steps = StopSignal(), []
        for step in range(1, 30):
            now[0] += seconds_per_step
            if stop.is_due(step):
                assert stop.on_any_process(step, torch.device("cpu")) == 0
                steps.append(step)
        return steps

    assert agreements(5.0) == list(range(1, 30))
    assert agreements(0.01)[:4] == [1, 2, 12, 22]
    slow = agreements(0.9)
    assert slow[:4] == [1, 2, 4, 6]


class _Slow(Dataset):
    def __getitem__(self, index: int) -> int:
        if index == 3:
            hang()
        return os.getpid()


def test_workers_ignore_signals_and_are_ended_when_they_hang():
    items = iter(make_loader(_Slow(), range(4), 1))
    worker = next(items)
    for number in SIGNALS:
        os.kill(worker, number)
    assert [next(items), next(items)] == [worker, worker]
    end_workers()
    assert f"process {worker} by SIGKILL" in killed_workers(patience=math.inf)


DATA = {"dataset": "digits", "view_recipe": "simclr", "shuffle_window": 100}


def run(folder: Path, model=None, num_workers: int = 0, **values):
    if model is None:
        model = new_model()
    data = DataSettings(**DATA, num_workers=num_workers)  # pyright: ignore[reportArgumentType]
    options = {"batch_size": 8, "num_steps": 6, "log_every": 2, "checkpoint_every": 100, **values}
    return model, train(model, open_source("digits"), data, TrainingSettings(output_dir=str(folder), **options))


def new_model():
    torch.manual_seed(0)
    kind = METHODS["simsiam"]
    return kind(kind.config_class(architecture="test_resnet", image_size=16, projection_dim=16))  # pyright: ignore[reportCallIssue]


def test_data_that_hang_do_not_keep_a_run_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, _ = run(tmp_path / "whole")
    batches = TrainingStream.__iter__

    def hanging(self):
        for number, batch in enumerate(batches(self)):
            if number == 3:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2)).start()
                hang()
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStream, "__iter__", hanging)
        _, result = run(tmp_path / "cut")
    assert (result.step, result.signal) == (3, signal.SIGUSR2)
    resumed, _ = run(tmp_path / "cut", resume="auto")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_an_evaluation_is_left_at_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def hanging(self, model):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        hang()

    monkeypatch.setattr(KNN, "__call__", hanging)
    _, result = run(tmp_path, knn_every=2, knn_split="test")
    assert (result.step, result.signal) == (2, signal.SIGTERM)
    assert [step_of(path) for path in complete_checkpoints(tmp_path)] == [2]


def test_a_data_worker_that_is_killed_ends_the_run_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = new_model()
    monkeypatch.setattr(model, "after_optimizer_step", lambda step, _: end_workers() if step == 2 else None)
    with pytest.raises(
        LostProcessError, match=r"data worker was ended \(process \d+ by SIGKILL\).*`num_workers`"
    ) as e:
        run(tmp_path, model, num_workers=1, num_steps=1000)
    saved = complete_checkpoints(tmp_path)
    assert step_of(saved[-1]) >= 2 and str(saved[-1]) in str(e.value)
    assert e.value.exit_code == 75


def test_grace_seconds_must_be_positive():
    with pytest.raises(UserError, match="`grace_seconds` must be positive, got 0"):
        TrainingSettings(output_dir="runs/a", num_steps=1, grace_seconds=0.0)
