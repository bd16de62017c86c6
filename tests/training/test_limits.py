"""What a run tells and refuses before its first step, how it fits its hours, and what it says without memory."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError
from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.briefing import duration
from hf_ssl.training.find import complete_checkpoints
from hf_ssl.training.limits import check_batch, check_disk, memory_errors_explained
from hf_ssl.training.loop import train
from hf_ssl.training.plan import UNKNOWN_LENGTH, Plan, make_plan

DATA = DataSettings(dataset="digits", view_recipe="simclr", num_workers=0, shuffle_window=100)


@pytest.fixture(scope="module")
def digits():
    return open_source("digits")


def settings(folder: Path, **values: Any) -> TrainingSettings:
    return TrainingSettings(**{"output_dir": str(folder), "batch_size": 8, "cpu": True, "log_every": 5, **values})


def small(method: str, **values: Any):
    torch.manual_seed(0)
    return METHODS[method](METHODS[method].config_class(**{"architecture": "test_resnet", "image_size": 16, **values}))


def plan(**values: Any) -> Plan:
    return Plan(**{"num_steps": 1000, "steps_per_epoch": 10.0, "warmup_steps": 100, "lanes": 8,
                   "learning_rate": 0.1, "lr_schedule": "cosine", **values})  # fmt: skip


def test_a_plan_fits_its_hours():
    fitted = plan(num_steps=UNKNOWN_LENGTH).fitted(20, 0.5, 3600.0)
    assert fitted.fits_hours and fitted.num_steps == 20 + int(0.97 * 3600 / 0.5)
    assert fitted.warmup_steps == 100
    # What was planned is not made longer, and a short run does not spend itself on its warm-up.
    assert plan().fitted(20, 0.5, 3600.0).num_steps == 1000
    short = plan(num_steps=UNKNOWN_LENGTH).fitted(20, 1.0, 100.0)
    assert short.num_steps == 20 + 97 and short.warmup_steps == 20
    # No time is left: one more step ends the run in order.
    over = plan().fitted(20, 10.0, -5.0)
    assert over.num_steps == 21 and over.warmup_steps < 21


def test_the_length_may_be_given_in_hours_alone(digits, tmp_path: Path):
    assert make_plan(digits, settings(tmp_path, max_hours=1), 1).num_steps == UNKNOWN_LENGTH
    assert make_plan(digits, settings(tmp_path, max_hours=1, num_steps=7), 1).num_steps == 7


def test_a_run_fits_its_hours_and_resumes_to_the_same_length(digits, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = small("simsiam", projector_hidden_dim=32, projection_dim=32, predictor_hidden_dim=16)
    values = {"max_hours": 0.003, "checkpoint_every": 5, "keep_checkpoints": 1000, "warmup_steps": 2}
    with caplog.at_level(logging.INFO, logger="hf_ssl"):
        result = train(model, digits, DATA, settings(tmp_path, **values))
    run = json.loads((tmp_path / "run.json").read_text())
    assert result.finished and 20 < result.num_steps < UNKNOWN_LENGTH
    assert run["training"]["num_steps"] == result.num_steps and run["training"]["fits_hours"]
    # The last learning rate is that of a schedule that ends there.
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates[-1] < 0.01 * max(rates)
    text = caplog.text
    for told in ("simsiam", "test_resnet, 0.373 M parameters", "random weights", "1,437 images of digits",
                 "16 px views",
                 "8 images = 8 per device x 1 process x 1 accumulated", "as many as fit into 0.003 hours", "float32",
                 "GiB after the first step", "the remaining"):  # fmt: skip
        assert told in text, told

    # Cut after the speed was known: the length stays, whatever the machine does now.
    for late in complete_checkpoints(tmp_path):
        if int(late.name[5:]) > 20:
            for file in late.iterdir():
                file.unlink()
            late.rmdir()
    again = small("simsiam", projector_hidden_dim=32, projection_dim=32, predictor_hidden_dim=16)
    resumed = train(again, digits, DATA, settings(tmp_path, **values, resume="auto"))
    assert resumed.num_steps == result.num_steps and resumed.finished
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("method", ["end_to_end", "moco_v3", "directclr"])
def test_losses_within_a_batch_need_two_images(method: str, tmp_path: Path):
    model = small(method, **({"subvector_dim": 16} if method == "directclr" else {}))
    with pytest.raises(UserError, match="`batch_size` must give .* at least 2 images"):
        check_batch(model, settings(tmp_path, batch_size=1), 1, 1)
    check_batch(model, settings(tmp_path, batch_size=2), 2, 1)  # images of two processes, BatchNorm of both


def test_batch_norm_needs_two_images(tmp_path: Path):
    model = small("directpred")
    with pytest.raises(UserError, match="`batch_size` must give BatchNorm at least 2 images .* got 1. Raise it"):
        check_batch(model, settings(tmp_path, batch_size=2), 2, 1)  # local statistics
    with pytest.raises(UserError, match="`images_per_device` must give BatchNorm at least 2 images"):
        check_batch(model, settings(tmp_path, images_per_device=1), 1, 1)
    check_batch(model, settings(tmp_path, batch_size=2, batch_norm="sync"), 2, 1)
    check_batch(model, settings(tmp_path, batch_size=2), 1, 2)


def test_groups_of_batch_norm_need_two_images(tmp_path: Path):
    model = small("moco", bn_splits=8, queue_size=64)
    with pytest.raises(UserError, match="`bn_splits` 8 makes BatchNorm groups of 8 images on each of 1 process, and"):
        check_batch(model, settings(tmp_path, batch_size=8), 1, 8)
    check_batch(model, settings(tmp_path, batch_size=16), 2, 8)
    check_batch(model, settings(tmp_path, batch_size=16), 1, 16)


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, numbers = nn.Linear(1000, 1000), 1000 * 1000 + 1000
    # SGD: weights and momentum; three checkpoints and one more while it is written, and the two exports.
    needed = 4 * 2 * 4 * numbers + 2 * 4 * numbers
    free = {"bytes": needed}
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free["bytes"]}))
    check_disk(model, settings(tmp_path, keep_checkpoints=3))
    free["bytes"] -= 1
    with pytest.raises(UserError, match=r"needs about 0\.0 GiB for 3 checkpoints .* Give another folder"):
        check_disk(model, settings(tmp_path, keep_checkpoints=3))


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError(),
     RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")],
    ids=["cuda", "python", "cpu"],
)  # fmt: skip
def test_a_lack_of_memory_is_explained(error: Exception):
    cure = "not enough for 12 images in one forward pass. Give `--images_per_device 6`"
    with pytest.raises(UserError, match=cure) as told, memory_errors_explained(12):
        raise error
    assert told.value.__cause__ is error and "--encoder" in str(told.value)
    with (
        pytest.raises(UserError, match="the same images, `--train last-1`.$"),
        memory_errors_explained(12, "`--train last-1`"),
    ):
        raise error


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes") as bug, memory_errors_explained(8):
        raise RuntimeError("shapes cannot be multiplied")
    assert not isinstance(bug.value, UserError)


def test_a_real_lack_of_memory_ends_a_run_in_a_sentence(digits, tmp_path: Path):
    model = small("simsiam")
    forward = model.forward

    def hungry(**inputs: Any):
        torch.empty(2**50)
        return forward(**inputs)

    model.forward = hungry  # type: ignore[method-assign]
    with pytest.raises(UserError, match="not enough for 8 images in one forward pass. Give `--images_per_device 4`"):
        train(model, digits, DATA, settings(tmp_path, num_steps=2))


def test_two_runs_in_one_process_may_differ(digits, tmp_path: Path):
    for number, values in enumerate(({"mixed_precision": "bf16", "images_per_device": 2}, {})):
        # At 16 px the last convolution of this encoder is not finite in bf16 on the CPU (torch 2.14).
        model = small("simsiam", image_size=32)
        result = train(model, digits, DATA, settings(tmp_path / str(number), num_steps=2, **values))
        run = json.loads((tmp_path / str(number) / "run.json").read_text())["training"]
        assert result.finished and run["mixed_precision"] == values.get("mixed_precision", "no")
        assert run["images_per_device"] == values.get("images_per_device", 8)


def test_durations():
    assert [duration(seconds) for seconds in (0.2, 59, 60, 3725, 90_061)] == [
        "0 s", "59 s", "1 min", "1 h 2 min", "1 days 1 h",
    ]  # fmt: skip
