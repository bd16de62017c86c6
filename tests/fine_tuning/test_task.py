"""The loop of fine-tuning: loss, learning rates, what stays frozen, and bit-exact resume."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import together
import torch
from torch import nn

from hf_ssl.data.settings import DataSettings
from hf_ssl.fine_tuning.classifier import open_classifier
from hf_ssl.fine_tuning.settings import FineTuningSettings
from hf_ssl.fine_tuning.task import FineTuning, Supervised, fine_tune

DIGITS = [str(number) for number in range(10)]


def run(output_dir, **values):
    small = {"batch_size": 16, "num_steps": 6, "checkpoint_every": 3, "log_every": 1, "eval_every": 3}
    settings = FineTuningSettings(**{"output_dir": str(output_dir), **small, **values})
    data = DataSettings(dataset="digits", num_workers=0, shuffle_window=100)
    classifier = open_classifier("random:test_resnet", DIGITS, image_size=16, seed=settings.seed)
    before = {name: value.clone() for name, value in classifier.module.state_dict().items()}
    result = fine_tune(classifier, data.open(), data.open("test"), data, settings)
    return classifier.module.state_dict(), before, result


def lines_of(folder):
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: line[name] for name in ("step", "loss", "lr", "accuracy", "test_loss") if name in line}
        for line in lines
    ]


def test_the_loss_is_the_mean_over_labelled_images():
    model = Supervised(nn.Flatten(), label_smoothing=0.2)
    logits = torch.randn(4, 3, dtype=torch.float64)
    loss = model(logits, torch.tensor([2, -1, 0, 1])).loss.item()
    expected = 0.0
    for row, label in ((0, 2), (2, 0), (3, 1)):
        logs = [float(value - logits[row].exp().sum().log()) for value in logits[row]]
        expected -= sum((0.8 * (c == label) + 0.2 / 3) * logs[c] for c in range(3)) / 3
    assert loss == pytest.approx(expected, rel=1e-5)
    assert model(logits, torch.full((4,), -1)).loss == 0


def test_layer_decay_slows_the_early_blocks_and_norms_do_not_decay():
    settings = FineTuningSettings(output_dir="x", num_steps=1, layer_decay=0.5)
    data = DataSettings(dataset="digits")
    classifier = open_classifier("random:test_resnet", DIGITS)
    module = classifier.module
    groups = FineTuning(classifier, data.open(), None, data, settings).optimizer(1.0).param_groups
    multiplier = {id(p): group["lr_multiplier"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert multiplier[id(module.fc.weight)] == 1
    assert multiplier[id(module.layer4[0].conv1.weight)] == 0.5
    assert multiplier[id(module.conv1[0].weight)] == 0.5**5
    assert decay[id(module.fc.weight)] == 0.05 and decay[id(module.fc.bias)] == decay[id(module.bn1.weight)] == 0


@pytest.mark.parametrize("optimizer", ["lars", "lamb"])
def test_other_optimizers_train_and_go_on(tmp_path, optimizer):
    whole, before, _ = run(tmp_path / "whole", optimizer=optimizer, num_steps=3, checkpoint_every=2)
    assert all(not torch.equal(whole[name], before[name]) for name in ("fc.weight", "fc.bias", "conv1.0.weight"))
    checkpoints = tmp_path / "whole" / "checkpoints"
    resumed, _, _ = run(
        tmp_path / "resumed", optimizer=optimizer, num_steps=3, resume=str(checkpoints / "step-000002")
    )
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    groups = torch.load(checkpoints / "step-000003" / "optimizer.pt", weights_only=True)["optimizer"]["param_groups"]
    if optimizer == "lars":  # vectors are neither scaled by their norm nor decayed
        assert {(group["adapt"], group["weight_decay"]) for group in groups} == {(True, 0.05), (False, 0.0)}


@pytest.mark.parametrize(("train", "moved"), [("linear", {"fc"}), ("last-1", {"fc", "layer4"}), ("full", None)])
def test_only_what_is_trained_moves(tmp_path, train, moved):
    after, before, _ = run(tmp_path, train=train, num_steps=2)
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == (moved or {name.split(".")[0] for name in before})


@pytest.mark.parametrize("values", [{}, {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}], ids=["plain", "mixup"])
def test_resume_is_exact(tmp_path, monkeypatch, values):
    whole, _, result = run(tmp_path / "whole", **values)
    assert result.score is not None and result.score.num_images == 360
    assert result.best[1] >= result.score.accuracy

    with monkeypatch.context() as patch:  # killed after the checkpoint of step 3

        def interrupted(*arguments, **more):
            if len(calls) == 4:
                raise KeyboardInterrupt
            calls.append(1)
            return forward(*arguments, **more)

        calls, forward = [], Supervised.forward
        patch.setattr(Supervised, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "resumed", **values)
    resumed, _, _ = run(tmp_path / "resumed", resume="auto", **values)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    assert lines_of(tmp_path / "resumed") == lines_of(tmp_path / "whole")

    # A run that has ended is scored again, and nothing else happens.
    again, _, result_again = run(tmp_path / "resumed", resume="auto", **values)
    assert result_again.score.accuracy == result.score.accuracy and result_again.best == result.best
    assert lines_of(tmp_path / "resumed") == lines_of(tmp_path / "whole")
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    record = json.loads((tmp_path / "resumed" / "run.json").read_text())
    assert record["training"]["images_per_device"] == 16  # not `auto`, of which nothing was asked any more


def test_a_score_that_a_signal_cut_short_is_in_the_log_after_the_resume(tmp_path):
    *_, result = run(tmp_path)
    lines = lines_of(tmp_path)
    log = tmp_path / "metrics.jsonl"
    cut = [json.loads(line) for line in log.read_text().splitlines()]
    for name in ("accuracy", "test_loss"):
        del cut[-1][name]
    log.write_text("".join(json.dumps(line) + "\n" for line in cut))
    for _ in range(2):  # once
        *_, again = run(tmp_path, resume="auto")
        assert again.best == result.best
        last = lines_of(tmp_path)[-2:]
        assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4, 5, 6, 6]
        assert {**last[0], **last[1]} == lines[-1]


def test_other_settings_are_refused_on_resume(tmp_path):
    run(tmp_path, num_steps=3)
    with pytest.raises(ValueError, match="`train` was `full` and is `linear` now.*`train` cannot change within a run"):
        run(tmp_path, num_steps=3, train="linear", resume="auto")


def test_more_steps_and_a_changed_setting_after_the_end(tmp_path):
    run(tmp_path, num_steps=3)
    new = {"num_steps": 5, "label_smoothing": 0.1, "weight_decay": 0.5, "resume": "auto"}
    with pytest.raises(ValueError, match=r"`label_smoothing` was `0.0` and is `0.1` now.*`--change label_smoothing"):
        run(tmp_path, **new)
    *_, result = run(tmp_path, **new, change=["label_smoothing", "weight_decay"])
    assert result.step == 5 and result.score is not None
    changes = json.loads((tmp_path / "run.json").read_text())["changes"]
    assert [(one["step"], one["name"]) for one in changes] == [
        (3, "label_smoothing"),
        (3, "num_steps"),
        (3, "weight_decay"),
    ]
    assert [line["step"] for line in lines_of(tmp_path) if "accuracy" in line] == [3, 5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": "last"}, "`train` must be full, linear or last-N such as last-2, got `last`"),
        ({"label_fraction": 0.0}, "`label_fraction` must be above 0 and at most 1, .* got 0.0"),
        ({"label_fraction": 2.0}, "got 2.0"),
        ({"layer_decay": 1.5}, "`layer_decay` must be above 0 and at most 1, got 1.5"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be in \[0, 1\)"),
        ({"mixup": -1.0}, "`mixup` must be 0 or more"),
        ({"cutmix": 1.0, "batch_size": 15}, "need an even `batch_size`, got 15"),
        ({"eval_every": 0}, "`eval_every` must be at least 1"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
    ],
)
def test_settings_out_of_range_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        FineTuningSettings(**{"output_dir": "x", **values})


def test_views_of_the_device_are_refused(tmp_path):
    settings = FineTuningSettings(output_dir=str(tmp_path), num_steps=1)
    data = DataSettings(dataset="digits", cache="uint8")
    with pytest.raises(ValueError, match="`cache` are for pretraining"):
        fine_tune(open_classifier("random:test_resnet", DIGITS), data.open(), None, data, settings)


PROGRAM = """
    import json, logging, os, sys
    from pathlib import Path

    from hf_ssl.data.settings import DataSettings
    from hf_ssl.evaluation import features
    from hf_ssl.fine_tuning.classifier import open_classifier
    from hf_ssl.fine_tuning.task import fine_tune
    from hf_ssl.fine_tuning.settings import FineTuningSettings

    folder, number = Path(sys.argv[1]), os.environ["RANK"]
    read, calls = features._batches, []

    def read_or_fail(*arguments):
        calls.append(1)
        if number == "1" and len(calls) == 1:
            raise OSError("the disk of one machine")
        yield from read(*arguments)

    features._batches = read_or_fail
    logging.basicConfig()
    data = DataSettings(dataset="digits", num_workers=0, shuffle_window=100)
    settings = FineTuningSettings(output_dir=str(folder / "run"), batch_size=14, num_steps=4, eval_every=2)
    classifier = open_classifier("random:test_resnet", [str(digit) for digit in range(10)], image_size=16)
    result = fine_tune(classifier, data.open(), data.open("test"), data, settings)
    sums = {name: float(value.double().sum()) for name, value in classifier.module.state_dict().items()}
    seen = {"confusion": result.score.confusion.tolist(), "accuracy": result.score.accuracy, "sums": sums}
    (folder / f"seen-{number}.json").write_text(json.dumps(seen))
"""


@pytest.mark.slow
def test_two_processes_agree_and_score_every_image_once(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, together.__file__, str(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"seen-{number}.json").read_text()) for number in (0, 1))
    assert first == second
    # Where one cannot score, none waits for it: the first of two scores is missing, and the run goes on.
    assert "UserError: Process 1 could not read split `test` of `digits`: OSError: the disk of one" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "accuracy" in line] == [4]
    assert sum(map(sum, first["confusion"])) == 360  # batches of 14 do not divide it
    assert first["accuracy"] == pytest.approx(sum(row[i] for i, row in enumerate(first["confusion"])) / 360)
