"""Watches: one signature, asked when they are due, and none that fails ends a run."""

import json
from pathlib import Path

import pytest
import torch

from hf_ssl.data.settings import DataSettings
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLOutput
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.loop import run_task
from hf_ssl.training.plan import Plan
from hf_ssl.training.pretraining import Pretraining
from hf_ssl.training.watch.base import Moment, Watch

PLAN = Plan(num_steps=7, steps_per_epoch=None, warmup_steps=0, lanes=1, learning_rate=0.1, lr_schedule="constant")


@pytest.mark.parametrize(
    ("every", "at_end", "steps"),
    [(3, True, [3, 6, 7]), (3, False, [3, 6]), (0, True, [7]), (0, False, []), (7, True, [7])],
)
def test_when_a_watch_is_due(every: int, at_end: bool, steps: list[int]):
    watch = Watch(every, at_end)
    assert [step for step in range(1, 8) if watch.is_due(step, PLAN)] == steps


class Listener(Watch):
    """Writes down when it is called."""

    name = "The listener"

    def __init__(self, **attributes):
        super().__init__(2)
        self.calls: list[tuple[str, int]] = []
        vars(self).update(attributes)

    def look(self, moment: Moment):
        self.calls.append(("look", moment.step))
        assert isinstance(moment.output, SSLOutput) and "loss" in moment.figures  # the log's own look first
        if moment.step == self.fails_at:
            raise ZeroDivisionError("no figures today")
        return {"heard": moment.step}

    def progress(self):
        return {"seconds": 42.0}

    def saved(self, step: int) -> None:
        self.calls.append(("saved", step))
        raise OSError("nobody takes it")

    def finished(self) -> None:
        self.calls.append(("finished", 0))

    fails_at = 0


def run(folder: Path, watch: Watch, **values):
    class Watched(Pretraining):
        def watches(self, *arguments):
            return [*super().watches(*arguments), watch]

    method, data = METHODS["simsiam"], DataSettings(dataset="digits", num_workers=0, view_recipe="simclr")
    torch.manual_seed(0)
    model = method(method.config_class(architecture="test_resnet", image_size=16, projection_dim=16))
    options = {
        "batch_size": 8,
        "num_steps": 5,
        "log_every": 1,
        "checkpoint_every": 2,
        "diagnostics_every": 0,
        **values,
    }
    settings = TrainingSettings(output_dir=str(folder), **options)
    result = run_task(Watched(model, data.open(), data, settings))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return result, {line["step"]: line.get("heard") for line in lines}, model


def test_a_watch_that_fails_is_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    watch = Listener(fails_at=4)
    result, heard, _ = run(tmp_path, watch)
    assert result.finished
    assert heard == {1: None, 2: 2, 3: None, 4: None, 5: 5}
    assert watch.calls == [("look", 2), ("saved", 2), ("look", 4), ("saved", 4), ("look", 5)]  # none after the last
    assert "The listener failed at step 4; training goes on. ZeroDivisionError: no figures today" in caplog.text
    assert "The listener failed at step 2; training goes on. OSError: nobody takes it" in caplog.text
    assert json.loads((tmp_path / "run.json").read_text())["progress"]["seconds"] == 42
    run(tmp_path, watch, resume="auto")
    assert watch.calls[5:] == [("finished", 0)]


def test_what_the_run_cannot_do_without_ends_it(tmp_path: Path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, Listener(fails_at=2, may_fail=False))


def test_a_watch_can_end_the_run_with_a_checkpoint(tmp_path: Path):
    class Stops(Watch):
        def look(self, moment: Moment):
            self.stops = moment.step == 3
            return {}

    result, heard, _ = run(tmp_path, Stops(1), checkpoint_every=100)
    assert (result.step, result.finished, result.signal) == (3, False, 0) and list(heard) == [1, 2, 3]
    assert result.last_checkpoint is not None and result.last_checkpoint.name.endswith("3")


def test_watching_changes_no_weight(tmp_path: Path):
    _, _, plain = run(tmp_path / "plain", Watch())
    _, _, other = run(tmp_path / "other", Watch(), seed=1)
    assert not all(value.equal(other.state_dict()[name]) for name, value in plain.state_dict().items())
    _, _, watched = run(tmp_path / "watched", Listener(), knn_every=2, knn_split="test", diagnostics_every=1)
    assert all(value.equal(watched.state_dict()[name]) for name, value in plain.state_dict().items())
