"""scripts/benchmarks/end_to_end.py: a row for each variant, or a sentence. No time is asserted."""

import json

import end_to_end as benchmark
import pytest

TINY = ["--dataset", "digits", "--encoder", "test_resnet", "--image_size", "16", "--batch_size", "16"]
TINY += ["--num_steps", "2", "--rounds", "1", "--num_workers", "0"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--method", "byol"], ["--method", "moco", "--cache", "uint8"]])
def test_every_variant_is_measured(flags, tmp_path, capsys):
    output = tmp_path / "whole.json"
    assert benchmark.main([*TINY, *flags, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert [row["what"] for row in report["rows"]] == ["network", "data", "hf_ssl"]
    assert all(row["images/s"] > 0 for row in report["rows"]) and report["rows"][0]["of the network"] == 1
    assert report["settings"]["method"] == flags[1]
    assert capsys.readouterr().out.count("\n| ") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "mocov2"], "Unknown method `mocov2`. Known: end_to_end, "),
        (["--num_steps", "1"], "`num_steps` must be at least 2, got 1"),
        (["--method", "directpred", "--compare", "lightly"], "`compare` lightly needs one of moco, byol, .* got `dir"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmark.main([*TINY, *arguments])
