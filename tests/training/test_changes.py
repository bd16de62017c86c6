"""A run that goes on with another plan: more steps, settings that are named, and those that stay what they were."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError
from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.changes import agreed_changes, defaults_of
from hf_ssl.training.find import complete_checkpoints
from hf_ssl.training.loop import train

DATA = DataSettings(dataset="digits", view_recipe="simclr", num_workers=0, shuffle_window=100)
THEN = {"method": "byol", "batch_size": 8, "num_steps": 9, "warmup_steps": 1, "base_learning_rate": 0.1}
THEN |= {"learning_rate": 0.2, "max_grad_norm": None, "tau": 0.9}


@pytest.fixture(scope="module")
def digits():
    return open_source("digits")


def new_model(**values: Any):
    torch.manual_seed(0)
    small = {"architecture": "test_resnet", "image_size": 16, "projection_dim": 16, "projector_hidden_dim": 32}
    kind = METHODS["simsiam"]
    return kind(kind.config_class(**{**small, "projector_layers": 2, "predictor_hidden_dim": 8, **values}))


def settings(folder: Path, **values: Any) -> TrainingSettings:
    few = {"batch_size": 8, "num_steps": 6, "log_every": 4, "checkpoint_every": 3, "lr_schedule": "constant"}
    return TrainingSettings(**{"output_dir": str(folder), **few, **values})


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_more_steps_after_the_end_are_the_run_that_was_longer(digits, tmp_path: Path, caplog):
    """Also what a damaged run.json lost comes back, and the first log line covers its whole interval."""
    whole, longer = new_model(), new_model()
    train(whole, digits, DATA, settings(tmp_path / "whole", num_steps=9, warmup_steps=2))
    run = tmp_path / "run"
    train(new_model(), digits, DATA, settings(run, num_steps=6, warmup_steps=2))
    former = record_of(run)
    (run / "run.json").write_text('{"method": "simsiam", "config": {}, "training": {}}')
    # As a run that a kill ended after the checkpoint, without the line of its last step.
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    caplog.set_level("INFO", "hf_ssl")
    result = train(longer, digits, DATA, settings(run, num_steps=9, warmup_steps=2, resume="auto"))
    assert result.finished and result.step == 9
    torch.testing.assert_close(longer.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert "`num_steps` from `6` to `9`; the learning rate and all other schedules follow" in caplog.text
    assert "run.json` is damaged and made again" in caplog.text and "lacks `data`, `progress`" in caplog.text
    record = record_of(run)
    assert record["changes"] == [{"step": 6, "name": "num_steps", "from": 6, "to": 9}]
    assert record["command"] == former["command"] and record["started"] == former["started"]
    assert record["training"]["num_steps"] == 9 and record["finished"] is not None
    with pytest.raises(UserError, match=r"`num_steps` was `9` and is `6` now.*`--change num_steps`"):
        train(new_model(), digits, DATA, settings(run, num_steps=6, warmup_steps=2, resume="auto"))


def test_the_first_line_after_a_resume_covers_its_whole_interval(digits, tmp_path: Path):
    train(new_model(), digits, DATA, settings(tmp_path / "whole", num_steps=8))
    cut = tmp_path / "cut"
    train(new_model(), digits, DATA, settings(cut, num_steps=8))
    for path in complete_checkpoints(cut)[-1:]:
        (path / "state.json").unlink()  # goes on after step 6, between the lines of 4 and 8
    train(new_model(), digits, DATA, settings(cut, num_steps=8, resume="auto"))
    one, other = ([(line["step"], line["loss"]) for line in log_of(tmp_path / name)] for name in ("whole", "cut"))
    assert one == other and [step for step, _ in one] == [4, 8]


def test_a_setting_that_is_named_changes(digits, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run = tmp_path / "run"
    train(new_model(), digits, DATA, settings(run, checkpoint_every=6))
    new = {"num_steps": 8, "weight_decay": 0.5, "base_learning_rate": 1e-9, "log_every": 1}
    with pytest.raises(UserError, match="`weight_decay` was `0.0001` and is `0.5` now.*`--change base_learning"):
        train(new_model(), digits, DATA, settings(run, resume="auto", **new))
    caplog.set_level("INFO", "hf_ssl")
    named = ["weight_decay", "base_learning_rate", "num_steps"]
    before, model = new_model(), new_model()
    train(before, digits, DATA, settings(run, resume="auto", checkpoint_every=6))
    groups: list[float] = []
    original = torch.optim.SGD.step

    def watched(self, *arguments, **named):
        groups.append(self.param_groups[0]["weight_decay"])
        return original(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", watched)
        train(model, digits, DATA, settings(run, resume="auto", change=named, **new))
    assert groups == [0.5, 0.5]  # the checkpoint's own options do not come back
    torch.testing.assert_close(dict(model.named_parameters()), dict(before.named_parameters()), rtol=0, atol=1e-6)
    assert log_of(run)[-1]["lr"] < 1e-9
    changes = record_of(run)["changes"]
    assert [(one["step"], one["name"], one["to"]) for one in changes] == [
        (6, "base_learning_rate", 1e-9),
        (6, "num_steps", 8),
        (6, "weight_decay", 0.5),
    ]
    assert "Changed after step 6: `weight_decay` from `0.0001` to `0.5`." in caplog.text
    # The same command again, as a cluster gives it, changes nothing more.
    train(model, digits, DATA, settings(run, resume="auto", change=named, **new))
    assert record_of(run)["changes"] == changes
    card = (export_run(model, run) / "README.md").read_text()
    assert "| changed after step 6 | weight_decay from `0.0001` to `0.5` |" in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["batch_size"], "`change` names `batch_size`, which cannot change within a run, because which images"),
        (["weight_decy"], "must name settings that a run depends on, got `weight_decy`. Did you mean `weight_decay`"),
        (["projector_hidden_dim"], "holds other weights than this run, such as `projector"),
        (["num_steps"], "is of step 6, and the run is to end with step 4"),
    ],
)
def test_what_cannot_change_is_refused(digits, tmp_path_factory, change: list[str], message: str):
    run = tmp_path_factory.getbasetemp() / "cannot-change"
    if not run.exists():
        train(new_model(), digits, DATA, settings(run))
    model = new_model(projector_hidden_dim=24 if "projector_hidden_dim" in change else 32)
    more = {"num_steps": 4} if change == ["num_steps"] else {}
    with pytest.raises(UserError, match=message):
        train(model, digits, DATA, settings(run, resume="auto", change=change, **more))


def test_change_needs_a_run_that_goes_on():
    with pytest.raises(UserError, match="`change` is for a run that goes on. Give `--resume auto` too"):
        TrainingSettings(output_dir="run", num_steps=1, change=["weight_decay"])


def test_every_difference_is_told_and_only_what_may_change_is_offered():
    now = {**THEN, "batch_size": 16, "tau": 0.5, "base_learning_rate": 0.2, "learning_rate": 0.4}
    with pytest.raises(UserError) as refused:
        agreed_changes(Path("step-000005"), THEN, now)
    text = str(refused.value)
    assert "`batch_size` cannot change within a run, because which images a step sees follows from it" in text
    assert "`--change base_learning_rate tau`" in text


def test_a_refusal_names_a_version_whose_recipe_may_have_been_another():
    started = {"command": "hf-ssl study methods", "hf_ssl": "0.1.0", "commit": "0123456789"}
    now = {**THEN, "tau": 0.5}
    texts = {}
    for version in ("hf_ssl 0.2.0", "hf_ssl 0.1.0 (commit 01234567)", None):
        with pytest.raises(UserError) as refused:
            agreed_changes(Path("step-000005"), THEN, now, started=started, version=version)
        texts[version] = str(refused.value)
    assert texts["hf_ssl 0.2.0"].endswith(
        "The run was started by `hf-ssl study methods`. That was hf_ssl 0.1.0 (commit 01234567), and this is hf_ssl "
        "0.2.0: its recipe may have other values."
    )
    assert all("recipe" not in text for version, text in texts.items() if version != "hf_ssl 0.2.0")


def test_a_run_of_another_version_is_told_of_it(digits, tmp_path):
    train(new_model(), digits, DATA, settings(tmp_path))
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record | {"hf_ssl": "0.0.9", "commit": None}))
    with pytest.raises(UserError, match=r"That was hf_ssl 0\.0\.9, and this is hf_ssl .*: its recipe may have other"):
        train(new_model(), digits, DATA, settings(tmp_path, resume="auto", weight_decay=0.5))


def test_a_checkpoint_of_an_older_version_has_the_defaults():
    newer = {**THEN, "new_setting": 3}
    assert agreed_changes(Path("step-000005"), THEN, newer, defaults={"new_setting": 3}) == []
    with pytest.raises(UserError, match="`new_setting` was `3` and is `4` now"):
        agreed_changes(Path("step-000005"), THEN, {**newer, "new_setting": 4}, defaults={"new_setting": 3})
    assert defaults_of(TrainingSettings)["weight_decay"] == 1e-4 and "output_dir" not in defaults_of(TrainingSettings)
