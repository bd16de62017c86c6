"""Launches that would silently train something else than asked for are refused."""

import sys
from dataclasses import replace

import pytest
import torch

from hf_ssl.errors import UserError
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.processes import (
    check_num_processes,
    requested_by,
    requested_processes,
    start_accelerator,
    with_precision,
)

PYTHON = ["/usr/bin/python3"]
ACCELERATE = [*PYTHON, "/env/bin/accelerate", "launch"]


@pytest.mark.parametrize(
    ("command", "environment", "number"),
    [
        ([*ACCELERATE, "--cpu", "--num_processes", "2", "scripts/pretrain.py"], {}, 2),
        ([*ACCELERATE, "--num-processes=3", "scripts/pretrain.py"], {}, 3),
        ([*PYTHON, "-m", "accelerate.commands.launch", "--num_processes", "4", "x.py"], {}, 4),
        (
            [*ACCELERATE, "scripts/pretrain.py", "--num_processes", "2"],
            {},
            None,
        ),  # the script's flag, not the launcher's
        ([*ACCELERATE, "scripts/pretrain.py"], {}, None),
        # A config file asked for several: only the address that the launcher set tells.
        ([*ACCELERATE, "--config_file", "two.yaml", "x.py"], {"MASTER_PORT": "29500"}, 2),
        ([*ACCELERATE, "x.py"], {"MASTER_PORT": "29500", "WORLD_SIZE": "2"}, None),
        (["bash", "-c", "python scripts/pretrain.py --num_processes 2"], {"MASTER_PORT": "29500"}, None),
    ],
)
def test_the_request_is_read_from_the_launcher(command: list[str], environment: dict, number: int | None):
    assert requested_by(command, {}, environment) == number


def test_an_address_that_was_there_before_is_no_request():
    assert requested_by([*ACCELERATE, "x.py"], {"MASTER_PORT": "1"}, {"MASTER_PORT": "1"}) is None


def test_pytest_is_no_launcher():
    assert requested_processes() is None


def test_fewer_processes_than_requested_are_refused():
    check_num_processes(1, {}, None, ["pretrain.py"])
    check_num_processes(2, {"WORLD_SIZE": "2"}, 2, ["pretrain.py"])
    with pytest.raises(UserError, match="ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2"):
        check_num_processes(1, {}, 2, ["scripts/pretrain.py"])
    with pytest.raises(UserError, match="At least 4 processes were requested, but 1 would run"):
        check_num_processes(1, {"WORLD_SIZE": "4"}, None, sys.argv)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP shards parameters"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed shards parameters"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "Give `--mixed_precision bf16` to the script"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "Give `--compile`"),
    ],
)
def test_a_launcher_that_contradicts_the_script_is_refused(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        start_accelerator(TrainingSettings(output_dir="runs/x", mixed_precision="no"))


def test_automatic_precision_follows_the_launcher_and_then_the_device(monkeypatch: pytest.MonkeyPatch):
    settings = TrainingSettings(output_dir="runs/x")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert with_precision(settings).mixed_precision == "no"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capable, expected in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, capable=capable: capable)
        assert with_precision(settings).mixed_precision == expected
    assert with_precision(replace(settings, cpu=True)).mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert with_precision(settings).mixed_precision == "bf16"
    assert with_precision(replace(settings, mixed_precision="no")).mixed_precision == "no"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_fp16_needs_a_gpu():
    with pytest.raises(ValueError, match="`mixed_precision` fp16 needs a GPU"):
        start_accelerator(TrainingSettings(output_dir="runs/x", mixed_precision="fp16"))
