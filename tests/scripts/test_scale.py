"""scripts/benchmarks/scale.py: bytes on paper are those that processes send, and the guide shows its tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import scale
from traffic import Collective, traffic

from hf_ssl.errors import UserError
from hf_ssl.methods import METHODS

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "scripts" / "guides" / "scaling.md"
TINY = ["--recipe", "quickstart", "--encoder", "test_resnet", "--image_size", "32"]


@pytest.mark.slow
def test_two_processes_send_what_stands_on_paper(tmp_path):
    output = tmp_path / "check.json"
    command = [sys.executable, str(ROOT / "scripts" / "benchmarks" / "scale.py"), "--check", "2", *TINY]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert [row["method"] for row in rows] == list(METHODS)
    assert all(row["equal"] and row["counted MB"] > 1 for row in rows), done.stdout
    # With headers, which count in messages as small as these.
    assert all(0.95 < row.get("x paper", 1) < 1.15 for row in rows), done.stdout


@pytest.fixture(scope="module")
def models():
    options = scale.parse([])
    return {name: scale.paper_model(name, options) for name in options.methods}


def test_the_guide_shows_what_the_command_prints(models):
    guide = GUIDE.read_text(encoding="utf-8")
    options = scale.parse([])
    for table in (scale.bytes_table, scale.reading_table, scale.limits_table):
        assert table(models, options) in guide, table(models, options)
    by_recipe = scale.limits_table(models, scale.parse(["--batch", "recipe"]))
    assert by_recipe in guide, by_recipe


def test_bytes_on_paper_are_those_of_a_pocket_calculator(models):
    def of(name: str, images: int = 128, gpus: int = 64) -> dict[tuple[str, str], int]:
        model = models[name]
        return {(one.kind, one.what): one.bytes for one in traffic(model, images, gpus, model.batch_norm)}

    # ResNet-50 without its classifier, and SimCLR's projector: two matrices, two scales and one shift.
    assert of("end_to_end")["all_reduce", "gradients"] == 4 * (23_508_032 + 2048 * 2048 + 2048 * 128 + 2 * 2048 + 128)
    assert of("end_to_end")["all_gather", "features"] == 2 * 128 * 128 * 4
    assert of("end_to_end")["all_reduce", "gradients of features"] == 64 * 2 * 128 * 128 * 4
    # 53 layers with 26,560 channels, in four forward passes and two backward ones; heads: one layer of 4,096 each.
    assert of("byol")["all_gather", "BatchNorm"] == 4 * (4 * (2 * 26_560 + 53) + 6 * (2 * 4096 + 1))
    assert of("byol")["all_reduce", "BatchNorm"] == 4 * 2 * (2 * 26_560 + 2 * 2 * 4096)
    assert of("moco")["all_to_all", "shuffled images"] == 128 * 3 * 224 * 224 * 4
    assert of("moco", gpus=512)["all_to_all", "shuffled images"] == 128 * 3 * 224 * 224 * 4
    assert of("directpred")["all_reduce", "correlation"] == 257 * 256 * 4
    assert ("all_gather", "BatchNorm") not in of("directpred")


def test_what_a_process_sends_and_how_long_it_takes():
    assert Collective("all_reduce", 800, 1, "").sent(8) == 1400  # each eighth goes round nearly twice
    assert Collective("all_gather", 800, 1, "").sent(8) == 5600
    assert Collective("broadcast", 800, 1, "").sent(8) == Collective("all_to_all", 800, 1, "").sent(8) == 700
    # 6.6 + 7 x 0.6 in a node; 6.6 + 56 x 2 + 7 x 2.7 in eight; a tree of eight nodes has three floors.
    assert scale.latency("all_gather", 8) == pytest.approx(10.8e-6)
    assert scale.latency("all_gather", 64) == pytest.approx(137.5e-6)
    assert scale.latency("all_reduce", 64) == pytest.approx((6.8 + 2 * (7 * 0.6 + 3 * 5)) * 1e-6)
    options = scale.parse([])
    assert scale.seconds_of(Collective("all_reduce", 10**9, 0, ""), 8, 200, options) == pytest.approx(1.75 / 235)
    assert scale.seconds_of(Collective("all_reduce", 10**9, 0, ""), 16, 200, options) == pytest.approx(1.875 / 200)
    # Half of what a GPU of two nodes gives away leaves its node, by a network card of 25 GB/s; 8 of 15 processes.
    assert scale.seconds_of(Collective("all_to_all", 10**9, 0, ""), 16, 200, options) == pytest.approx(0.5 / 25)


def test_the_first_limit_is_named(models):
    options = scale.parse(["--storage_gb", "20"])
    assert scale.limit(models["byol"], 8, 200, options).startswith("GPU, ")
    assert scale.limit(models["byol"], 512, 200, options).startswith("BatchNorm, ")
    assert scale.limit(models["directpred"], 512, 200, options).startswith("reading, ")
    assert scale.limit(models["memory_bank"], 8, 200, scale.parse(["--cores", "2"])).startswith("views, ")
    assert scale.limit(models["moco"], 512, 200, scale.parse(["--batch", "recipe"])) == "no image for each"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "1"], r"`--gpus` must be numbers of 2 or more, got \[1\]"),
        (["--check", "1"], r"`--check` must be numbers of 2 or more, got \[1\]"),
        (["--batch", "half"], "`--batch` must be a number of images or `recipe`, got `half`"),
        (["--network_gb", "0"], r"`--network_gb` must be numbers above 0, got \[0.0\]"),
        (["--network_gb", "5", "inf"], r"`--network_gb` must be numbers above 0, got \[5.0, inf\]"),
        (["--storage_gb", "nan"], "`--storage_gb` must be 0 or more, got nan"),
        (["--gpu_images", "inf"], "`--gpu_images` must be above 0, got inf"),
        (["--storage_gb", "-1"], "`--storage_gb` must be 0 or more, got -1.0"),
        (["--cores", "0"], "`--cores` must be above 0, got 0"),
        (["--methods", "mocov3"], "Unknown method `mocov3`"),
        (["--recipe", "papers"], "has no recipe `papers`"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        scale.main(arguments)
