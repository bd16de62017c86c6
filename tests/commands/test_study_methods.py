"""`hf-ssl study methods`: variants of every method, seeds, going on where it was, and what it refuses."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

import hf_ssl
from hf_ssl.commands import main
from hf_ssl.modules.encoder import build_encoder
from hf_ssl.studies import many_runs
from hf_ssl.studies import methods as study
from hf_ssl.studies.methods_report import VARIANTS, MethodRun, differences_of, rows_of, table_of

SMALL = ["--dataset", "digits", "--num_steps", "4", "--batch_size", "16", "--num_workers", "0"]
SMALL += ["--encoder", "test_resnet", "--eval_images", "100"]


def run(folder: Path, *arguments: str) -> int:
    return main(["study", "methods", *SMALL, "--output_dir", str(folder), *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    assert run(folder, "--methods", "mochi", "memory_bank", "moco_v1", "supervised", "--seeds", "2") == 0
    return folder


def runs_in(folder: Path) -> list[dict]:
    return json.loads((folder / "methods.json").read_text())["runs"]


def test_every_method_has_a_variant_whose_settings_it_knows(tmp_path: Path):
    assert {variant.method for variant in VARIANTS.values()} == set(hf_ssl.METHODS)
    settings = study.MethodsSettings(dataset="digits", num_steps=4, batch_size=16, output_dir=tmp_path)
    configs = study._Bench(settings).configs
    assert list(configs) == list(VARIANTS) and settings.methods == ["supervised", *VARIANTS]
    for name, variant in VARIANTS.items():
        assert {key: getattr(configs[name], key) for key in variant.changes} == dict(variant.changes)


def test_methods_and_seeds_are_trained_measured_and_drawn(finished: Path):
    runs = runs_in(finished)
    names = ["random", "mochi", "memory_bank", "moco_v1", "supervised"]
    assert sorted((one["seed"], one["method"]) for one in runs) == sorted(
        (seed, name) for seed in (0, 1) for name in names
    )
    for one in runs:
        assert 0 <= one["knn"] <= 1 and 0 <= one["linear"] <= 1
        assert (one["seconds"] == 0) == (one["method"] == "random")
        exported = finished / one["method"] / f"seed{one['seed']}" / "encoder"
        assert (one["weights"] is None) == (one["method"] in ("random", "supervised")) != exported.exists()
    table = (finished / "methods.md").read_text().splitlines()
    titles = ["random encoder", "supervised", "Memory bank", "MoCo v1", "MoCHi"]
    assert [line.split("|")[1].strip() for line in table[2:7]] == titles
    facts = json.loads((finished / "methods.json").read_text())
    module = build_encoder("test_resnet")
    assert facts["num_parameters"] == sum(parameter.numel() for parameter in module.parameters())
    assert (facts["dataset"], facts["train_images"], facts["test_images"]) == ("digits", 1437, 360)
    assert facts["collapses"] == []
    assert facts["settings"]["num_steps"] == 4 and "output_dir" not in facts["settings"]
    with Image.open(finished / "methods.png") as image:
        assert min(image.size) > 300


def test_a_run_has_its_method_views_length_and_encoder(finished: Path):
    records = {
        name: json.loads((finished / name / "seed1" / "run.json").read_text())
        for name in ("mochi", "memory_bank", "moco_v1")
    }
    for record in records.values():
        assert record["data"]["view_recipe"] == "moco_v2" and record["training"]["seed"] == 1
        assert record["training"]["num_steps"] == 4
    assert records["moco_v1"]["config"]["projector"] == "linear"
    assert records["mochi"]["config"]["start_step"] == 0  # the recipe's lies beyond the end of the run
    encoder = hf_ssl.load_encoder(str(finished / "moco_v1" / "seed1"))
    assert encoder.dim == build_encoder("test_resnet").num_features


def test_a_finished_study_trains_nothing_and_a_new_method_joins_it(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def refuse(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(many_runs, "train", refuse)
    before = (finished / "methods.md").read_text()
    assert run(finished, "--methods", "mochi", "memory_bank", "moco_v1", "supervised", "--seeds", "2") == 0
    said = capsys.readouterr().out
    assert said.startswith(before.rstrip()) and "Wrote methods.json, methods.md, methods.png to" in said
    assert (finished / "methods.md").read_text() == before
    with pytest.raises(AssertionError, match="trained again"):
        run(finished, "--methods", "byol")


def test_a_lost_encoder_is_named_and_comes_back_as_the_message_says(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    words = ["--methods", "mochi", "memory_bank", "moco_v1", "supervised", "--seeds", "2"]
    lost, table = folder / "mochi" / "seed1", (folder / "methods.md").read_text()
    weights = (lost / "encoder" / "model.safetensors").read_bytes()
    shutil.rmtree(lost / "encoder")
    assert run(folder, *words) == 0
    (told,) = [one.getMessage() for one in caplog.records if "The encoder is gone" in one.getMessage()]
    assert told.startswith(f"The encoder is gone of `{lost}`. Remove `result.json` there, and the same command")
    (lost / "result.json").unlink()
    caplog.clear()
    assert run(folder, *words) == 0 and "The encoder is gone" not in caplog.text
    assert (lost / "encoder" / "model.safetensors").read_bytes() == weights
    assert (folder / "methods.md").read_text() == table


def test_a_killed_run_continues_to_the_same_numbers(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    kind = hf_ssl.METHODS["moco"]
    original = kind.after_optimizer_step

    def kill_after_two(model, step: int, num_steps: int):
        original(model, step, num_steps)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "after_optimizer_step", kill_after_two)
        assert run(tmp_path, "--methods", "moco_v1") == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM after 1 of 2 runs. The same command continues." in capsys.readouterr().err
    assert not (tmp_path / "methods.json").exists()
    result = hf_ssl.study(
        "methods",
        dataset="digits",
        num_steps=4,
        batch_size=16,
        num_workers=0,
        encoder="test_resnet",
        eval_images=100,
        methods=["moco_v1"],
        output_dir=tmp_path,
    )
    assert result.exit_code == 0 and result.num_runs == len(result.runs) == 2
    expected = [one for one in runs_in(finished) if one["method"] in ("random", "moco_v1") and one["seed"] == 0]
    for one, other in zip(result.runs, expected, strict=True):
        assert (one.method, one.knn, one.linear) == (other["method"], other["knn"], other["linear"])


def test_a_table_has_means_and_standard_deviations():
    runs = [
        MethodRun("random", 0, 0.1, 0.2, 0.0),
        MethodRun("byol", 0, 0.3, 0.5, 10.0),
        MethodRun("byol", 1, 0.4, 0.7, 12.0),
    ]
    lines = table_of(runs).splitlines()
    assert lines[2] == "| random encoder | 10.0 | 20.0 | 0 |"
    deviation = 100 * math.sqrt(2 * 0.05**2)
    assert lines[3] == f"| BYOL | 35.0 ± {deviation:.1f} | 60.0 ± {2 * deviation:.1f} | 11 ± 1 |"
    assert [row.title for row in rows_of(runs)] == ["random encoder", "BYOL"] and rows_of(runs)[1].linear == [0.5, 0.7]


def test_only_differences_above_the_spread_of_seeds_are_named():
    def runs(method: str, *values: float) -> list[MethodRun]:
        return [MethodRun(method, seed, 0.1, value, 1.0) for seed, value in enumerate(values)]

    close = [*runs("byol", 0.50, 0.54), *runs("simsiam", 0.52, 0.56), *runs("mochi", 0.9)]
    assert differences_of(close).endswith("of 2 methods with several seeds: none.\n")
    far = [*runs("directpred", 0.60, 0.62), *close]
    # Against BYOL 0.09 is more than 0.0141 + 0.0283; against SimSiam 0.07 is too.
    assert ": DirectPred over SimSiam (7.0), BYOL (9.0). Other pairs of these are not told apart." in differences_of(
        far
    )
    assert "MoCHi" not in differences_of(far)
    worse = [*runs("random", 0.30, 0.31), *far]
    assert "DirectPred over SimSiam (7.0), BYOL (9.0), random encoder (30.5); SimSiam over random" in differences_of(
        worse
    )
    assert differences_of(runs("byol", 0.5)).startswith("Methods with one seed each")


@pytest.mark.parametrize(
    ("recipe", "num_epochs", "num_steps", "expected"),
    [
        ({"num_epochs": 200, "warmup_epochs": 10}, 5.0, None, (5.0, None, 0.25, None)),
        ({"num_epochs": 200, "warmup_epochs": 10}, None, 1000, (None, 1000, None, 50)),
        ({"num_steps": 100, "warmup_steps": 50}, 4.0, None, (4.0, None, 2.0, None)),
        ({"num_epochs": 24}, None, 7, (None, 7, None, 0)),
    ],
)
def test_a_warm_up_keeps_its_share_of_the_run(recipe, num_epochs, num_steps, expected):
    values = study.length_of(recipe, num_epochs, num_steps)
    assert tuple(values[name] for name in ("num_epochs", "num_steps", "warmup_epochs", "warmup_steps")) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--methods", "byol", "directpred", "byol"],
            "`methods` must name each method once, got `byol` more than once",
        ),
        (["--methods", "moco_v4"], "Unknown method `moco_v4`. Did you mean `moco_v"),
        (["--num_epochs", "2"], "`num_epochs` and `num_steps` exclude each other"),
        (["--num_steps", "0"], "`num_steps` must be at least 1, got 0"),
        (["--seeds", "0"], "`seeds` must be at least 1, got 0"),
        (["--recipe", "stl10"], "`end_to_end` has no recipe `stl10`. Known: "),
        (["--test_split", "train"], "`split` and `test_split` are both `train`"),
        (["--view_recipe", "moco"], "`view_recipe` must be the name of a recipe, got `moco`"),
        (["--batch_size", "5000"], "fewer than one batch of 5000"),
    ],
)
def test_wrong_commands_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
):
    assert run(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_keeps_one_choice_of_settings(finished: Path, capsys: pytest.CaptureFixture):
    assert run(finished, "--eval_images", "50") == 2
    assert "have `eval_images` 100, got 50. Give another `output_dir`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoder", "size", "message"),
    [("vit_tiny_patch16_224", "33", "`image_size` must be a multiple of 16"), ("no_net", "32", "no_net")],
)
def test_an_encoder_that_cannot_take_the_images_is_refused(
    tmp_path: Path, encoder: str, size: str, message: str, capsys: pytest.CaptureFixture
):
    folder = tmp_path / "study"
    assert run(folder, "--methods", "simsiam", "--encoder", encoder, "--image_size", size) == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_an_encoder_of_one_size_is_built_for_that_of_the_images(tmp_path: Path):
    choice = {"encoder": "vit_tiny_patch16_224", "image_size": 32, "methods": ["simsiam"]}
    settings = study.MethodsSettings(dataset="digits", num_steps=4, batch_size=16, output_dir=tmp_path, **choice)
    assert study._Bench(settings).configs["simsiam"].model_args == {"img_size": 32}
