"""The loop in one process: order of events, accumulation, precision, k-NN, what stops it and what it leaves."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_ssl.data.decode.device import DeviceDecoder
from hf_ssl.data.decode.unavailable import DataUnavailableError
from hf_ssl.data.order.stream import TrainingStream
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError
from hf_ssl.methods import METHODS
from hf_ssl.training import batches, begin, pretraining, recorder
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.find import complete_checkpoints, step_of
from hf_ssl.training.integrity import is_complete
from hf_ssl.training.loop import train
from hf_ssl.training.watch import clock


@pytest.fixture(scope="module")
def digits():
    return open_source("digits")


def new_model(method: str = "directpred", **values: Any):
    torch.manual_seed(0)
    model_class = METHODS[method]
    small: dict[str, Any] = {"architecture": "test_resnet", "image_size": 16, "projection_dim": 16}
    if method == "directpred":
        small["projector_hidden_dim"] = 32
    if method in ("moco", "mochi"):
        small |= {"queue_size": 50, "bn_splits": 2}
    small |= values
    return model_class(model_class.config_class(**small))


DATA = DataSettings(dataset="digits", view_recipe="simclr", num_workers=0, shuffle_window=100)


def settings(folder: Path, **values: Any) -> TrainingSettings:
    return TrainingSettings(
        **{"output_dir": str(folder), "batch_size": 8, "num_steps": 6, "log_every": 2, "checkpoint_every": 3, **values}
    )


def test_what_a_method_needs_of_the_data_is_asked_for(digits, tmp_path):
    seen = []

    def new(**needs):
        model = new_model("simsiam", projector_layers=2, projector_hidden_dim=16, predictor_hidden_dim=8)
        forward = model.forward
        model.forward = lambda **batch: (seen.append(batch), forward(**batch))[1]  # type: ignore[method-assign]
        for name, value in needs.items():
            setattr(model, name, value)
        return model

    train(new(needs_labels=True, needs_indices=True), digits, DATA, settings(tmp_path / "a", num_steps=1))
    train(new(), digits, DATA, settings(tmp_path / "b", num_steps=1))
    assert seen[0]["labels"].shape == seen[0]["indices"].shape == (8,)
    assert "labels" not in seen[1]
    without = replace(digits, records=digits.records.remove_columns("__index__"))
    with pytest.raises(ValueError, match=r"needs a stable number of each image.* `index_column`"):
        train(new(needs_indices=True), without, DATA, settings(tmp_path / "c", num_steps=1))


def test_pictures_left_out_of_a_folder_are_in_the_record(digits, tmp_path):
    left_out = {"format not supported: .heic": 2}
    for name, source in (("a", replace(digits, left_out=left_out)), ("b", digits)):
        model = new_model("simsiam", projector_layers=2, projector_hidden_dim=16, predictor_hidden_dim=8)
        train(model, source, DATA, settings(tmp_path / name, num_steps=1))
    records = [json.loads((tmp_path / name / "run.json").read_text())["data"] for name in "ab"]
    assert records[0]["left_out"] == left_out and "left_out" not in records[1]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_leaves(digits, tmp_path: Path):
    model = new_model()
    before = weights(model)
    result = train(model, digits, DATA, settings(tmp_path / "run", num_steps=7, weight_decay=0.01))
    assert result.finished and result.step == 7 and result.signal == 0
    after = weights(model)
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("encoder."))

    log = read_log(tmp_path / "run")
    assert [line["step"] for line in log] == [2, 4, 6, 7]
    expected = {"step", "epoch", "loss", "lr", "images_per_second", "data_wait", "feature_std", "effective_rank"}
    assert all(expected <= line.keys() and 0 <= line["data_wait"] <= 1 for line in log)
    assert log[0]["epoch"] == pytest.approx(2 / (1437 // 8), abs=1e-4)
    peak = 0.03 * 8 / 256
    assert log[0]["lr"] == pytest.approx(peak * 0.5 * (1 + np.cos(np.pi / 7)))  # of the second step

    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["method"] == "directpred" and run["config"]["projection_dim"] == 16
    assert run["data"]["num_images"] == 1437 and run["data"]["view_recipe"] == "simclr"
    assert run["training"]["learning_rate"] == pytest.approx(peak)
    assert run["training"]["num_steps"] == 7 and run["training"]["steps_per_epoch"] == 179
    assert run["progress"]["step"] == 7 and run["progress"]["images_seen"] == 56
    assert run["finished"] >= run["started"] and run["versions"]["torch"] == version("torch")
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["step-000006", "step-000007"]


@pytest.fixture
def decoding_cpu(monkeypatch):
    """Let the CPU take the place of the GPU that decodes."""
    monkeypatch.setattr(batches, "decoder_on", DeviceDecoder)


@pytest.mark.parametrize(
    "places", [{"views_on": "gpu"}, {"cache": "uint8"}, {"decode_on": "gpu"}], ids=["colours", "cache", "decoder"]
)
@pytest.mark.usefixtures("decoding_cpu")
def test_views_made_on_the_device_resume_bit_for_bit(digits, tmp_path: Path, places: dict):
    data = replace(DATA, **places)
    whole, half, resumed = (new_model("moco") for _ in range(3))
    train(whole, digits, data, settings(tmp_path / "whole"))
    cut = tmp_path / "cut"
    train(half, digits, data, settings(cut))
    for path in complete_checkpoints(cut)[1:]:
        (path / "state.json").unlink()
    result = train(resumed, digits, replace(data, num_workers=2), settings(cut, resume="auto"))
    assert result.finished
    assert_same(weights(resumed), weights(whole))
    run = json.loads((cut / "run.json").read_text())
    assert run["data"]["views_on"] == "gpu" and run["data"]["cache"] == places.get("cache", "none")
    assert run["data"]["decode_on"] == places.get("decode_on", "cpu")
    for path in complete_checkpoints(cut)[1:]:
        (path / "state.json").unlink()
    with pytest.raises(ValueError, match="`(cache|views_on|decode_on)` was `(uint8|gpu)` and is `(none|cpu)` now"):
        train(new_model("moco"), digits, DATA, settings(cut, resume="auto"))


@pytest.mark.usefixtures("decoding_cpu")
def test_the_device_makes_the_views_of_the_workers(digits, tmp_path: Path):
    def views_of(name: str, **places: Any) -> torch.Tensor:
        seen, model = [], new_model("end_to_end")
        forward = model.forward
        model.forward = lambda **batch: (seen.append(batch["pixel_values"]), forward(**batch))[1]  # type: ignore[method-assign]
        train(model, digits, replace(DATA, **places), settings(tmp_path / name, num_steps=3))
        return torch.stack(seen)

    expected = views_of("workers")
    for name, places in (
        ("colours", {"views_on": "gpu"}),
        ("cache", {"cache": "uint8"}),
        ("decoder", {"decode_on": "gpu"}),
    ):
        assert (views_of(name, **places) - expected).abs().mean() < 0.01  # in units of the normalised pixels


def test_a_recipe_that_needs_the_cpu_is_refused_before_a_cache_is_filled(digits, tmp_path: Path, capsys):
    data = replace(DATA, cache="uint8", view_recipe="randaugment")
    with pytest.raises(
        ValueError, match="RandAugment and AutoAugment work on single pictures on the CPU. Set `cache`"
    ):
        train(new_model(), digits, data, settings(tmp_path / "run"))
    assert "cache:" not in capsys.readouterr().err


def test_the_cache_is_there_before_the_free_memory_is_measured(digits, tmp_path: Path, monkeypatch):
    order = []

    def noted(name, work):
        return lambda *given, **named: (order.append(name), work(*given, **named))[1]

    monkeypatch.setattr(batches, "fill_cache", noted("cache", batches.fill_cache))
    monkeypatch.setattr(begin, "images_that_fit", noted("fit", begin.images_that_fit))
    train(new_model(), digits, replace(DATA, cache="uint8"), settings(tmp_path / "run", num_steps=1))
    assert order == ["cache", "fit"]


def test_what_a_gpu_has_still_to_do_counts_as_training(digits, tmp_path: Path, monkeypatch):
    """A device of its own pace: the host waits for it where it reads the losses. Only there the clock moves."""
    now = [0.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    check = recorder.LossMonitor.check

    def wait_and_check(self, *given):
        now[0] += 5.0
        return check(self, *given)

    monkeypatch.setattr(recorder.LossMonitor, "check", wait_and_check)
    result = train(new_model(), digits, DATA, settings(tmp_path / "run", num_steps=4, log_every=2, checkpoint_every=4))
    assert result.seconds == 10.0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["images_per_second"] for line in lines if "loss" in line] == [2 * 8 / 5] * 2


def test_decoding_needs_a_gpu_and_a_recipe_that_it_can_do(digits, tmp_path: Path):
    with pytest.raises(ValueError, match="`decode_on` gpu must have a CUDA device that trains, got `cpu`. Set"):
        train(new_model(), digits, replace(DATA, decode_on="gpu"), settings(tmp_path / "run"))
    with pytest.raises(ValueError, match="`decode_on` gpu makes views on the device, .* Set `decode_on` to cpu, or"):
        train(
            new_model(),
            digits,
            replace(DATA, decode_on="gpu", view_recipe="randaugment"),
            settings(tmp_path / "run"),
        )


def test_where_views_are_made_must_be_known():
    with pytest.raises(ValueError, match="`views_on` must be one of cpu, gpu, got `cuda`"):
        DataSettings(views_on="cuda")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`cache` must be one of none, uint8, got `float`"):
        DataSettings(cache="float")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`cache` uint8 is decoded once, by workers, but `decode_on` is gpu. Leave"):
        DataSettings(cache="uint8", decode_on="gpu")
    assert DataSettings(cache="uint8").views_on == DataSettings(decode_on="gpu").views_on == "gpu"


# Mixing starts after the checkpoint, in the sixteen forward passes of the run.
ORACLE = {"num_hard_negatives": 8, "num_mixed_negatives": 4, "num_mixed_queries": 4, "start_step": 8}


@pytest.mark.parametrize(
    ("method", "values"), [("moco", {}), ("mochi", {**ORACLE, "class_oracle": "mask"})], ids=["moco", "mochi"]
)
def test_resume_continues_bit_for_bit(digits, tmp_path: Path, method: str, values: dict):
    """A run that is cut after a checkpoint, with what it wrote later lost, ends like one that was not."""
    options = {"num_steps": 8, "batch_size": 16, "images_per_device": 8, "optimizer": "lars", "max_grad_norm": 1.0}
    whole = new_model(method, **values)
    train(whole, digits, DATA, settings(tmp_path / "whole", **options, keep_checkpoints=9))

    cut = tmp_path / "cut"
    half = new_model(method, **values)
    train(half, digits, DATA, settings(cut, **options, keep_checkpoints=9))
    for path in complete_checkpoints(cut)[1:]:
        (path / "state.json").unlink()
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    random.seed(5)
    np.random.seed(5)
    resumed = new_model(method, **values)  # its own weights must not matter
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.zero_()
    workers = DataSettings(**{**vars(DATA), "num_workers": 2})
    result = train(resumed, digits, workers, settings(cut, **options, resume="auto", log_every=1))
    assert result.finished
    assert_same(weights(resumed), weights(whole))
    if method == "mochi":
        assert resumed.training_passes == 16 and (resumed.queue_labels >= 0).all()
        assert "false_negative_share" in read_log(cut)[-1]
    assert [line["step"] for line in read_log(cut)] == [2, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("objective", ["nce", "full"])
def test_a_memory_bank_fills_and_resumes_bit_for_bit(digits, tmp_path: Path, objective: str):
    """The bank, its normalizer and the drawn negatives go on where the checkpoint left them."""

    def new():
        config = METHODS["memory_bank"].config_class(
            architecture="test_resnet", image_size=16, projection_dim=16, num_negatives=20, objective=objective
        )
        config.adapt_to_data(digits.num_images)
        torch.manual_seed(0)
        return METHODS["memory_bank"](config)

    start, whole = new(), new()
    train(whole, digits, DATA, settings(tmp_path / "whole"))
    visited = (whole.bank != start.bank).any(dim=1)
    assert len(whole.bank) == 1437 and visited.sum() == 6 * 8
    torch.testing.assert_close(whole.bank[visited].norm(dim=1), torch.ones(48))

    cut = tmp_path / "cut"
    train(new(), digits, DATA, settings(cut))
    (complete_checkpoints(cut)[-1] / "state.json").unlink()
    resumed = new()
    resumed.bank.zero_()
    train(resumed, digits, DATA, settings(cut, resume="auto"))
    assert_same(weights(resumed), weights(whole))
    assert hasattr(resumed, "log_normalizer") == (objective == "nce")

    without = replace(digits, records=digits.records.remove_columns("__index__"))
    with pytest.raises(ValueError, match="`MemoryBankForPreTraining` needs a stable number of each image"):
        train(new(), without, DATA, settings(tmp_path / "without"))


def test_a_finished_run_is_left_alone(digits, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first = new_model()
    train(first, digits, DATA, settings(tmp_path / "run"))
    run = (tmp_path / "run" / "run.json").read_text()
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    caplog.set_level("INFO", "hf_ssl")
    again = new_model(rho=0.3)
    result = train(again, digits, DATA, settings(tmp_path / "run", resume="auto"))
    assert result.finished and "already finished" in caplog.text
    assert_same(weights(again), weights(first))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == log
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] == json.loads(run)["finished"]


@pytest.mark.parametrize("refused", [False, True], ids=["taken", "refused"])
def test_going_back_keeps_what_was_done_after_that(digits, tmp_path: Path, caplog, refused: bool):
    run = tmp_path / "run"
    whole = new_model()
    train(whole, digits, DATA, settings(run, checkpoint_every=2))
    log = read_log(run)
    if refused:  # what is not loaded leaves all as it was
        with pytest.raises(UserError, match="`seed` was `0`"):
            train(new_model(), digits, DATA, settings(run, checkpoint_every=2, resume="step-000004", seed=1))
        assert [path.name for path in complete_checkpoints(run)] == ["step-000004", "step-000006"]
        return
    for name in ("left-at-step-000004", "left-at-step-000004.2"):
        model = new_model()
        train(model, digits, DATA, settings(run, checkpoint_every=2, resume="step-000004"))
        aside = run / "checkpoints" / name
        assert is_complete(aside / "step-000006") and read_log(aside) == log
        assert f"goes back to step 4: `step-000006` and the logs up to there are kept in `{aside}`" in caplog.text
        assert_same(weights(model), weights(whole))
        assert [line["step"] for line in read_log(run)] == [2, 4, 6]
        log = read_log(run)
    assert [path.name for path in complete_checkpoints(run)] == ["step-000004", "step-000006"]


def test_resume_without_checkpoint_starts_and_says_so(digits, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "hf_ssl")
    train(new_model(), digits, DATA, settings(tmp_path, num_steps=1))
    record = json.loads((tmp_path / "run.json").read_text())
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="has finished, and no checkpoint is left .* `start_from`"):
        train(new_model(), digits, DATA, settings(tmp_path, resume="auto", num_steps=2))
    (tmp_path / "run.json").write_text(json.dumps(record | {"finished": None}))  # killed before its first checkpoint
    train(new_model(), digits, DATA, settings(tmp_path, resume="auto", num_steps=2))
    assert "starts from the beginning" in caplog.text
    assert [line["step"] for line in read_log(tmp_path)] == [2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "`seed` was `0`"),
        ({"num_steps": 5}, "`num_steps` was `6`"),
        ({"base_learning_rate": 0.1}, "`base_learning_rate` was|`learning_rate` was"),
        ({"method": "byol"}, "is of method `directpred`, this run trains `byol`"),
        ({"rho": 0.5}, "`rho` was `0.3`"),
        ({"dataset": "shapes"}, "is not the one of .*: it has other images"),
        ({"view_recipe": "byol"}, "`view_recipe` was `simclr`"),
    ],
)
def test_resume_refuses_another_run(digits, tmp_path: Path, change: dict, message: str):
    train(new_model(), digits, DATA, settings(tmp_path))
    source = open_source("digits", split="test") if change.pop("dataset", None) else digits
    model = new_model(change.pop("method", "directpred"), **{k: v for k, v in change.items() if k == "rho"})
    data = DataSettings(**{**vars(DATA), **{k: v for k, v in change.items() if k == "view_recipe"}})
    training = {k: v for k, v in change.items() if k not in ("rho", "view_recipe")}
    with pytest.raises(ValueError, match=message):
        train(model, source, data, settings(tmp_path, resume="auto", **training))


def test_accumulation_makes_one_step_of_several_batches(digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The hook runs once a step, after the weights have moved; the gradient is the mean over the batches."""
    model = new_model("simsiam")
    events: list[tuple[str, int]] = []
    monkeypatch.setattr(model, "after_optimizer_step", lambda step, num_steps: events.append(("hook", step)))
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: (events.append(("forward", 0)), forward(**inputs))[1])
    build = pretraining.build_optimizer

    def build_and_watch(*arguments: Any):
        optimizer = build(*arguments)
        optimizer.register_step_post_hook(lambda *_: events.append(("step", 0)))
        return optimizer

    monkeypatch.setattr(pretraining, "build_optimizer", build_and_watch)
    train(model, digits, DATA, settings(tmp_path, num_steps=2, batch_size=24, images_per_device=8))
    one_step = [("forward", 0)] * 3 + [("step", 0)]
    assert events == [*one_step, ("hook", 1), *one_step, ("hook", 2)]


def test_accumulated_gradient_is_that_of_the_mean_loss(digits, tmp_path: Path):
    class Linear(METHODS["simsiam"]):
        """A loss that is a mean over images, so that two batches of 4 equal one of 8."""

        def forward(self, pixel_values: torch.Tensor, indices: torch.Tensor | None = None):
            output = super().forward(pixel_values)
            mean = pixel_values.mean(dim=(1, 3, 4)).mean(dim=0)
            output.loss = (self.weight * mean).sum() + 0 * output.loss
            return output

    def moved(folder: str, images: int) -> torch.Tensor:
        torch.manual_seed(0)
        config = Linear.config_class(architecture="test_resnet", image_size=16, projection_dim=16)
        model = Linear(config)
        model.weight = nn.Parameter(torch.zeros(3))
        options = {"batch_size": 8, "images_per_device": images, "num_steps": 3}
        train(model, digits, DATA, settings(tmp_path / folder, **options, weight_decay=0.0, base_learning_rate=10.0))
        return model.weight.detach()

    whole, parts = moved("whole", 8), moved("parts", 4)
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(whole, parts)


def test_gradients_are_clipped(digits, tmp_path: Path):
    def first_move(folder: str, **values: Any) -> float:
        model = new_model("simsiam")
        before = weights(model)
        options = {"num_steps": 1, "optimizer_momentum": 0.0, "weight_decay": 0.0, "learning_rate_scaling": "none"}
        train(model, digits, DATA, settings(tmp_path / folder, **options, base_learning_rate=1.0, **values))
        names = model.trainable_parameters().keys()
        return float(sum((weights(model)[name] - before[name]).square().sum() for name in names) ** 0.5)

    assert first_move("free") > 0.011
    assert first_move("clipped", max_grad_norm=0.01) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    "values",
    [
        {"mixed_precision": "bf16"},
        {"channels_last": False},
        {"activation_checkpointing": True},
        {"optimizer": "adamw", "lr_schedule": "step"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_options_train(digits, tmp_path: Path, values: dict):
    # oneDNN's bfloat16 convolution with stride 2 over a map of 1 x 1, as at 16 px, returns uninitialised memory.
    model = new_model("byol", image_size=32)
    train(model, digits, DATA, settings(tmp_path, num_steps=2, **values))
    assert all(value.isfinite().all() for value in weights(model).values())
    assert all(value.dtype == torch.float32 for value in model.parameters())
    assert all(value.is_contiguous() for value in model.parameters())


def test_knn_changes_nothing_but_the_log(digits, tmp_path: Path):
    options = {"num_steps": 4, "knn_split": "test", "knn_images": 100}
    plain, watched = new_model("moco"), new_model("moco")
    train(plain, digits, DATA, settings(tmp_path / "plain", **options))
    train(watched, digits, DATA, settings(tmp_path / "watched", **options, knn_every=2))
    assert_same(weights(plain), weights(watched))
    lines = read_log(tmp_path / "watched")
    assert [("knn" in line, line["step"]) for line in lines] == [(True, 2), (True, 4)]
    assert all(0 <= line["knn"] <= 1 for line in lines)
    assert all("knn" not in line for line in read_log(tmp_path / "plain"))


def test_a_loss_that_is_no_number_stops_the_run(digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = new_model("simsiam")
    calls = []
    forward = model.forward

    def spoilt(**inputs: Any):
        output = forward(**inputs)
        calls.append(1)
        if len(calls) == 5:
            output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(model, "forward", spoilt)
    with pytest.raises(UserError, match=r"not finite at step 5 on process 0. The last good checkpoint is .*000003"):
        train(model, digits, DATA, settings(tmp_path, num_steps=9, log_every=100))
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-000003"]


def test_weights_that_are_no_numbers_are_not_saved(digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = new_model("simsiam")

    def spoil(step: int, num_steps: int) -> None:
        with torch.no_grad():
            next(model.encoder.parameters()).fill_(float("inf"))

    monkeypatch.setattr(model, "after_optimizer_step", spoil)
    with pytest.raises(UserError, match="Weights were not finite after step 1.*No checkpoint was written before"):
        train(model, digits, DATA, settings(tmp_path, num_steps=1))
    assert complete_checkpoints(tmp_path) == []


def test_a_signal_ends_the_run_with_a_checkpoint(digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = new_model("simsiam")
    train(whole, digits, DATA, settings(tmp_path / "whole"))
    model = new_model("simsiam")
    hook = lambda step, num_steps: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None  # noqa: E731
    monkeypatch.setattr(model, "after_optimizer_step", hook)
    handler = signal.getsignal(signal.SIGTERM)
    result = train(model, digits, DATA, settings(tmp_path / "cut"))
    assert (result.step, result.signal, result.finished) == (2, signal.SIGTERM, False)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["finished"] is None
    resumed = new_model("simsiam")
    train(resumed, digits, DATA, settings(tmp_path / "cut", resume="auto"))
    assert_same(weights(resumed), weights(whole))


def test_the_hook_after_checkpoints(digits, tmp_path: Path):
    seen = []
    model = new_model()
    train(
        model, digits, DATA, settings(tmp_path), on_checkpoint=lambda step, given: seen.append((step, given is model))
    )
    assert seen == [(3, True)]  # the last one is the run's end


def test_tensorboard_gets_the_log(digits, tmp_path: Path):
    pytest.importorskip("tensorboard")
    train(new_model(), digits, DATA, settings(tmp_path, num_steps=2, report_to="tensorboard"))
    assert list((tmp_path / "tracker").rglob("events.out.tfevents.*"))


def test_a_tracker_that_is_not_installed_is_refused(digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="`report_to` wandb needs a package: `pip install wandb`"):
        train(new_model(), digits, DATA, settings(tmp_path, report_to="wandb"))


def test_output_folders_that_cannot_be_used(digits, tmp_path: Path):
    model = new_model("moco")
    with pytest.raises(ValueError, match="The queue holds 50 keys but one step brings 64 "):  # before the first step
        train(model, digits, DATA, settings(tmp_path, num_steps=1, batch_size=64))
    assert not (tmp_path / "run.json").exists()
    model.config.queue_size = 64
    with pytest.raises(ValueError, match="The queue holds 50 keys"):  # in it
        train(model, digits, DATA, settings(tmp_path, num_steps=1, batch_size=64))
    assert (tmp_path / "run.json").exists()
    assert train(new_model(), digits, DATA, settings(tmp_path, num_steps=1)).finished
    with pytest.raises(ValueError, match="is not empty. Give `--resume auto`"):
        train(new_model(), digits, DATA, settings(tmp_path, num_steps=1))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`output_dir` .* cannot be written: Not a directory"):
        train(new_model(), digits, DATA, settings(tmp_path / "file" / "run"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_folder_in_use_is_refused(digits, tmp_path: Path):
    """Killing a launcher alone leaves its processes at work."""
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(); input()",
            str(tmp_path / ".lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout and holder.stdout.readline()
        with pytest.raises(UserError, match="Another process still trains in"):
            train(new_model(), digits, DATA, settings(tmp_path, num_steps=1))
    finally:
        holder.kill()
        holder.communicate()
    assert train(new_model(), digits, DATA, settings(tmp_path, num_steps=1)).finished


def test_knn_needs_labels_that_both_splits_have(digits, tmp_path: Path):
    with pytest.raises(ValueError, match="k-NN needs a label column"):
        train(new_model(), replace(digits, labels={}), DATA, settings(tmp_path, knn_every=1, knn_split="test"))


def test_the_last_words_name_a_checkpoint_whose_writer_has_not_returned(
    digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recorders: list[recorder.Recorder] = []
    said: list[str] = []

    def opening(self, *args, opened=recorder.Recorder.__init__):
        recorders.append(self)
        opened(self, *args)

    def saving(*args, saved=recorder.save_checkpoint, **options):
        path = saved(*args, **options)
        said.append(recorders[0].where_it_stands())  # as the thread says it that finds another process dead
        return path

    monkeypatch.setattr(recorder.Recorder, "__init__", opening)
    monkeypatch.setattr(recorder, "save_checkpoint", saving)
    train(new_model(), digits, DATA, settings(tmp_path, num_steps=2, checkpoint_every=1))
    assert [text.partition("step-")[2][:6] for text in said] == ["000001", "000002"]


@pytest.mark.parametrize("batches, saved", [(4, 4), (3, 3), (2, 2), (0, None)])
def test_data_that_goes_away_leaves_a_checkpoint_and_the_way_on(
    digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int, saved: int | None
):
    through = new_model()
    train(through, digits, DATA, settings(tmp_path / "through"))

    def cut(self, whole=TrainingStream.__iter__):
        yield from islice(whole(self), batches)
        raise DataUnavailableError("`photos.parquet` is gone.")

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStream, "__iter__", cut)
        with pytest.raises(DataUnavailableError) as raised:
            train(new_model(), digits, DATA, settings(tmp_path / "cut"))
    text = str(raised.value)
    assert text.startswith(f"`photos.parquet` is gone. The run stopped after step {batches}")
    newest = complete_checkpoints(tmp_path / "cut")[-1:]
    assert [step_of(one) for one in newest] == ([] if saved is None else [saved])
    assert ("before its first checkpoint" in text) == (saved is None)
    if newest:
        assert str(newest[0]) in text and "`--resume auto`" in text

    model = new_model()
    train(model, digits, DATA, settings(tmp_path / "cut", resume="auto"))
    assert_same(weights(model), weights(through))
