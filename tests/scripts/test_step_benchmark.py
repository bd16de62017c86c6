"""scripts/benchmarks/step.py: a table and a JSON file of every part; what it measures is the library's own step."""

import json

import pytest
import step
import torch

from hf_ssl.methods import METHODS

ONCE = ["--device", "cpu", "--rounds", "1", "--warmup", "0"]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(step.MISSING_SETTINGS, "memory_bank", {"bank_size": 20})
    return ["--recipe", "quickstart", "--batch_size", "16", *ONCE]


def test_every_method_is_measured_against_its_own_encoder_passes(tiny, tmp_path, capsys):
    output = tmp_path / "step.json"
    assert step.main([*tiny, "--precision", "no", "bf16", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert [(row["method"], row["precision"]) for row in report["rows"]] == [
        (method, precision) for method in METHODS for precision in ("no", "bf16")
    ]
    for row in report["rows"]:
        assert row["necessary ms"] > 0 and row["x necessary"] == pytest.approx(row["step ms"] / row["necessary ms"])
    assert {"platform", "cpu", "threads", "versions"} <= report["machine"].keys() and report["device"] == "cpu"
    assert report["settings"]["batch_size"] == 16
    table = capsys.readouterr().out
    assert table.startswith("| method | precision | necessary ms |") and table.count("\n| ") == 2 * len(METHODS)


@pytest.mark.parametrize(
    ("method", "online", "target"),
    [("byol", 2, 2), ("simsiam", 2, 0), ("end_to_end", 1, 0), ("memory_bank", 2, 0), ("moco", 2, 2)],
)
def test_the_necessary_passes_are_those_of_the_method(tiny, monkeypatch, method, online, target):
    options = step.parse(tiny)
    model, _ = step.build(method, options)
    built, seen = step.build_encoder, []

    def counting(*arguments):
        encoder = built(*arguments)
        encoder.register_forward_hook(lambda module, inputs, output: seen.append((len(output), output.requires_grad)))
        return encoder

    monkeypatch.setattr(step, "build_encoder", counting)
    step.necessary_compute(model, torch.randn(16, 2, 3, 32, 32), "no", options)["passes"]()
    images = 32 if method == "end_to_end" else 16  # joined views are one pass
    assert sorted(seen) == [(images, False)] * target + [(images, True)] * online


def test_a_measured_step_trains(tiny):
    options = step.parse(tiny)
    model, settings = step.build("byol", options)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for stage in step.library_step(model, settings, torch.randn(16, 2, 3, 32, 32), "no", options).values():
        stage()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert any(name.startswith("encoder.") for name in moved)
    assert any(name.startswith("target_encoder.") for name in moved)


def test_the_parts_alone(tmp_path):
    output = tmp_path / "part.json"
    sizes = ["--queue_sizes", "64", "128", "--dims", "8", "--batch_sizes", "4", "--batch_size", "16"]
    sizes += ["--encoder", "test_resnet"]
    for part, num_rows in (("queue", 4), ("ema", 1), ("predictor", 1)):
        assert step.main(["--part", part, *ONCE, *sizes, "--output", str(output)]) == 0
        rows = json.loads(output.read_text())["rows"]
        assert len(rows) == num_rows and all(row["x"] > 0 for row in rows)
    assert rows[0]["largest error"] < 1.1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "mocov3"], r"Unknown method `mocov3`. Known: .* Did you mean `moco_v3`\?"),
        (["--recipe", "imagenet"], "Method `end_to_end` has no recipe `imagenet`. Known: paper-imagenet, cifar,"),
        (["--rounds", "0"], "`--rounds` must be at least 1, got 0"),
        (["--warmup", "-1"], "`--warmup` must be 0 or more, got -1"),
        (["--output", "missing/step.json"], "`--output`: the folder of `missing/step.json` does not exist"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        step.main(arguments)


def test_a_missing_peer_is_named(monkeypatch):
    monkeypatch.setattr(step.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="`--compare lightly` needs a package: `pip install lightly`"):
        step.main(["--compare", "lightly"])
