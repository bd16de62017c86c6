"""scripts/benchmarks/processes.py: two processes that really train together, and a sentence for wrong input."""

import json

import processes
import pytest
import torch.distributed as dist

TINY = ["--recipe", "quickstart", "--batch_size", "16", "--device", "cpu", "--rounds", "2", "--warmup", "0"]


@pytest.mark.slow
def test_two_processes_have_a_row_and_leave_no_group(tmp_path):
    output = tmp_path / "processes.json"
    assert processes.main([*TINY, "--methods", "byol", "--num_processes", "2", "--output", str(output)]) == 0
    (row,) = json.loads(output.read_text())["rows"]
    assert (row["method"], row["processes"]) == ("byol", 2)
    assert row["x alone"] == pytest.approx(row["together ms"] / row["alone ms"])
    assert row["images/s"] == pytest.approx(2 * 16 / (row["together ms"] / 1000))
    assert not dist.is_initialized()


def test_a_process_group_makes_the_step_one_of_all_processes(tmp_path, monkeypatch):
    options = processes.parse([*TINY, "--methods", "byol"])
    made = []
    monkeypatch.setattr(processes, "synchronize_batch_norm", lambda model: made.append("sync"))
    processes._step("byol", options)
    assert made == []
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "DistributedDataParallel", lambda model, broadcast_buffers: model)
    processes._step("byol", options)
    processes._step("moco", options)  # splits its BatchNorm instead
    assert made == ["sync"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_processes", "0"], "`--num_processes` must be at least 1, got 0"),
        (["--device", "cuda", "--num_processes", "99"], "must be at most the number of GPUs, [0-9]+, got 99"),
        (["--methods", "mocov3"], "Unknown method `mocov3`"),
        (["--rounds", "0"], "`--rounds` must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        processes.main(arguments)
