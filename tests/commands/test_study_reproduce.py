"""`hf-ssl study reproduce`: published tables, what is listed, trained, measured and printed, and what is refused."""

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import hf_ssl
from hf_ssl.commands import main
from hf_ssl.data.settings import DataSettings
from hf_ssl.evaluation.protocols import CLUSTERING_SCORES, PROTOCOLS
from hf_ssl.methods.directpred import DirectPredForPreTraining
from hf_ssl.modules.encoder import build_encoder
from hf_ssl.studies import many_runs
from hf_ssl.studies.many_runs import parts_of_recipe
from hf_ssl.studies.published import TABLES
from hf_ssl.studies.reproduce_report import FinishedRun, table_text
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.lock import locked_output_dir

SMALL = ["--dataset", "digits", "--num_steps", "2", "--batch_size", "16", "--encoder", "test_resnet"]
SMALL += ["--num_workers", "0", "--eval_images", "60"]
TWO = ["--runs", "directpred-100", "linear-300"]


def run(folder: Path, *arguments: str, table: str = "directpred-cifar10") -> int:
    return main(["study", "reproduce", table, *SMALL, "--output_dir", str(folder), *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reproduce")
    assert run(folder, *TWO) == 0
    return folder


def cells(text: str) -> dict[str, list[str]]:
    """The columns of each row of a table, by its first one."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows[1:]}


@pytest.mark.parametrize("name", TABLES)
def test_tables_name_recipes_settings_and_measurements_that_exist(name: str):
    table = TABLES[name]
    assert table.protocol in PROTOCOLS and (table.probe_split is None) == (table.protocol == "clustering")
    for row in table.rows.values():
        recipe = {**hf_ssl.METHODS[row.method].recipes[row.recipe], **row.changes}
        of_method, training = parts_of_recipe(recipe)
        hf_ssl.METHODS[row.method].config_class(**of_method)
        TrainingSettings(output_dir="x", **training)
        DataSettings(view_recipe=recipe["view_recipe"]).find_recipe("byol")
        for measurement, number in row.published.items():
            known = CLUSTERING_SCORES if table.protocol == "clustering" else (table.protocol, f"{table.protocol}-best")
            assert measurement in known
            assert all(0 < float(part) < 100 for part in number.split("+-"))
        assert row.source and row.verified == (name != "mochi")


@pytest.mark.parametrize("name", TABLES)
def test_notes_name_how_the_recipes_deviate(name: str):
    """No recipe asks for `zero_init_last`, so what the encoder starts with is what the note says."""
    table, notes = TABLES[name], " ".join(TABLES[name].notes)
    row = next(iter(table.rows.values()))
    recipe = hf_ssl.METHODS[row.method].recipes[row.recipe]
    encoder = build_encoder(recipe["architecture"], recipe.get("model_args"))
    last = [weight for part, weight in encoder.named_parameters() if part.startswith("layer4.1.bn")][-2]
    assert not last.any() and "at zero, as timm does (`zero_init_last`)" in notes
    # luckmatters keeps the last batch of an epoch: its images over the batch, rounded up.
    for images in {"directpred-cifar10": (50_000,), "directpred-stl10": (105_000,)}.get(name, ()):
        down, batch = images // recipe["batch_size"], recipe["batch_size"]
        assert f"{down + 1} steps of {batch} images" in notes and f"out, {down} steps" in notes
    if name == "directpred-stl10":
        assert f"or {100_000 // recipe['batch_size']} of unlabeled alone" in notes


def test_offsets_of_table_7():
    rows = TABLES["directpred-stl10"].rows
    found = {name: (row.changes, *row.published.values()) for name, row in rows.items() if name.startswith("offset")}
    assert len(found) == 8
    assert found["offset0.1"] == ({"epsilon": 0.0, "offset": 0.1}, "46.57 +- 18.43")
    assert found["offset-0.1-freq2"] == ({"epsilon": 0.0, "offset": -0.1, "freq": 2}, "76.31 +- 0.27")


def test_predictors_of_table_3():
    rows = TABLES["directpred-stl10"].rows
    found = {name: (*row.published.values(),) for name, row in rows.items() if row.source == "2102.06810, table 3"}
    assert found == {
        "mlp-100": ("78.85 +- 0.25",),
        "mlp-no-ema-100": ("65.98 +- 0.71",),
        "linear-symmetric-100": ("75.09 +- 0.48",),
        "linear-symmetric-no-ema-100": ("36.62 +- 1.85",),
        "linear-no-ema-100": ("72.85 +- 0.16",),
    }
    settings = {**hf_ssl.METHODS["byol"].recipes["stl10"], **rows["linear-symmetric-no-ema-100"].changes}
    config = hf_ssl.METHODS["byol"].config_class
    model = hf_ssl.METHODS["byol"](config(**{key: settings[key] for key in settings if hasattr(config, key)}))
    assert model.predictor.weight.shape == (128, 128) and model.predictor.bias is None
    model.after_optimizer_step(1, 2)
    assert torch.equal(model.predictor.weight, model.predictor.weight.T) and not model.config.use_ema


def test_published_numbers_of_directpred():
    cifar, imagenet = TABLES["directpred-cifar10"].rows, TABLES["directpred-imagenet"].rows
    assert cifar["directpred-100"].published == {"linear-luckmatters-best": "85.21 +- 0.23"}
    assert cifar["directpred-freq5-500"].published == {"linear-luckmatters-best": "89.56 +- 0.13"}
    assert cifar["linear-300"].published == {"linear-luckmatters-best": "88.57 +- 0.15"}
    numbers = {name: (*row.published.values(), row.source[-12:]) for name, row in imagenet.items()}
    assert numbers == {
        "directpred-300": ("72.4", "top-5: 91.0)"),
        "linear-300": ("69.9", "top-5: 89.6)"),
        "mlp-300": ("72.5", "top-5: 90.8)"),
        "directpred-60": ("64.4", "top-5: 85.8)"),
        "linear-60": ("59.4", "top-5: 82.3)"),
    }


@pytest.mark.parametrize("name", TABLES)
def test_a_list_needs_no_data_and_says_that_nothing_was_run(name: str, capsys: pytest.CaptureFixture):
    assert main(["study", "reproduce", name, "--list"]) == 0
    said = capsys.readouterr().out
    numbers = sum(len(row.published) for row in TABLES[name].rows.values())
    assert said.count("| not run |") == numbers
    assert set(TABLES[name].rows) <= set(cells(said))
    assert said.count("(UNVERIFIED)") == (numbers if name == "mochi" else 0)


def test_published_numbers_stand_beside_those_of_trained_runs(finished: Path, capsys: pytest.CaptureFixture):
    rows = cells((finished / "reproduction.md").read_text())
    recipe, measured, published, here, trained = rows["linear-300"]
    assert (recipe, published) == ("directpred, cifar-linear, 300 epochs", "88.57 \N{PLUS-MINUS SIGN} 0.15")
    assert measured == "linear probe, luckmatters, best epoch"
    # 2 steps of 89 an epoch: nobody can take this for the paper's run.
    assert trained == "0.0225 epochs of digits, 1 seed, encoder test_resnet, batch_size 16, eval_images 60"
    stored = json.loads((finished / "reproduction.json").read_text())["runs"]
    assert [one["name"] for one in stored] == ["directpred-100", "linear-300"]
    assert here == f"{100 * stored[1]['values']['linear-luckmatters-best']:.2f}"
    assert rows["directpred-300"][3] == "not run"
    config = json.loads((finished / "linear-300" / "seed0" / "run.json").read_text())["config"]
    assert config["freq"] == 0 and config["projector_hidden_dim"] == 512
    # The list shows the same, and of a run that was not asked for nothing.
    capsys.readouterr()
    words = ["--list", "--output_dir", str(finished), "--runs", "linear-300"]
    assert main(["study", "reproduce", "directpred-cifar10", *words]) == 0
    assert cells(capsys.readouterr().out) == {"linear-300": rows["linear-300"]}
    # Another table has a run of this name too.
    assert main(["study", "reproduce", "directpred-stl10", *words]) == 2
    assert "holds runs of `directpred-cifar10`, not of `directpred-stl10`" in capsys.readouterr().err


def test_finished_runs_are_not_trained_again_and_a_stopped_one_is_missing(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(many_runs, "train", lambda *_: SimpleNamespace(signal=signal.SIGTERM, seconds=1.0))
    before = (finished / "reproduction.md").read_text()
    assert run(finished, *TWO) == 0
    assert (finished / "reproduction.md").read_text() == before
    assert run(finished, "--runs", "directpred-100", "linear-100") == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM after 1 of 2 runs. The same command continues." in capsys.readouterr().err
    assert (finished / "reproduction.md").read_text() == before


IMAGES = "- Trained on `train` of digits (the publication: {}); {}."


def test_the_images_under_a_table_are_those_that_were_used(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    cifar = IMAGES.format("CIFAR-10", "linear probe, luckmatters on `test`, learnt from `train`")
    assert cifar in (finished / "reproduction.md").read_text()
    assert main(["study", "reproduce", "directpred-cifar10", "--list", "--output_dir", str(finished)]) == 0
    assert cifar in capsys.readouterr().out
    assert main(["study", "reproduce", "directpred-imagenet", "--list"]) == 0
    unchanged = (
        "- Trained on `train` of ImageNet-1k; linear probe, BYOL's sweep on `validation`, learnt from `train`, im"
    )
    assert unchanged in capsys.readouterr().out
    # A folder tells what its runs are of.
    given = {"table": "directpred-imagenet", "dataset": "digits", "test_split": "test", "augmented_passes": 3}
    (tmp_path / "settings.json").write_text(json.dumps(given))
    assert main(["study", "reproduce", "directpred-imagenet", "--list", "--output_dir", str(tmp_path)]) == 0
    learnt = "linear probe, BYOL's sweep on `test`, learnt from `train`, 3 passes of random crops"
    assert IMAGES.format("ImageNet-1k", learnt) in capsys.readouterr().out


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    after = DirectPredForPreTraining.after_optimizer_step

    def after_and_kill(self: Any, done: int, num_steps: int) -> None:
        after(self, done, num_steps)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(DirectPredForPreTraining, "after_optimizer_step", after_and_kill)


def hold(folder: Path, held: Any, wanted: Any) -> None:
    with locked_output_dir(TrainingSettings(output_dir=str(folder))):
        held.set()
        wanted.wait()


def test_a_stopped_run_is_listed_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    listed = ["study", "reproduce", "directpred-cifar10", "--list", "--output_dir", str(tmp_path)]

    def here() -> str:
        capsys.readouterr()
        assert main(listed) == 0
        return cells(capsys.readouterr().out)["linear-100"][3]

    with monkeypatch.context() as patched:
        kill_at(1, patched)
        assert run(tmp_path, "--runs", "linear-100") == 128 + signal.SIGTERM
    assert here() == "stopped at step 1 of 2 (seed 0)"
    assert cells((tmp_path / "reproduction.md").read_text())["linear-100"][3] == here()
    fork = multiprocessing.get_context("fork")
    held, wanted = fork.Event(), fork.Event()
    child = fork.Process(target=hold, args=(tmp_path / "linear-100" / "seed0", held, wanted))
    child.start()
    held.wait()
    assert here() == "in training, saved at step 1 of 2 (seed 0)"
    wanted.set()
    child.join()
    with monkeypatch.context() as patched:
        patched.setattr("hf_ssl.studies.reproduce._Bench._measure", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, "--runs", "linear-100")
    assert here() == "trained, not measured (seed 0)"
    assert run(tmp_path, "--runs", "linear-100") == 0
    assert float(here()) > 0


def test_settings_of_the_machine_reach_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []

    def train(_model: Any, _source: Any, data: DataSettings, settings: TrainingSettings) -> SimpleNamespace:
        seen.append((settings.mixed_precision, settings.compile, data.cache, data.views_on))
        return SimpleNamespace(signal=signal.SIGTERM, seconds=1.0)

    monkeypatch.setattr(many_runs, "train", train)
    flags = ["--mixed_precision", "bf16", "--compile", "--cache", "uint8"]
    for number, words in enumerate(([], flags)):
        assert run(tmp_path / str(number), *TWO, *words) == 128 + signal.SIGTERM
    assert seen == [("auto", False, "none", "cpu"), ("bf16", True, "uint8", "gpu")]
    assert run(tmp_path / "1", *TWO) == 2


def test_a_run_of_pretrain_counts_if_it_is_that_of_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    made, place = tmp_path / "made", tmp_path / "linear-100" / "seed0"
    words = ["pretrain", "--method", "directpred", "--recipe", "cifar-linear", "--num_epochs", "none"]
    words += ["--num_steps", "2", "--batch_size", "16", "--encoder", "test_resnet", "--num_workers", "0", "--cpu"]
    words += ["--dataset", "digits", "--mixed_precision", "bf16", "--output_dir", str(made)]
    for part in ("_evaluate", "_draw", "_portray"):  # which the study does not read
        monkeypatch.setattr(f"hf_ssl.hub.finish.{part}", lambda *_: None)
    assert main(words) == 0
    place.parent.mkdir()
    place.symlink_to(made)
    record = json.loads((place / "run.json").read_text())
    record["training"] |= {"num_processes": 8, "images_per_device": 1}  # as 8 GPUs that hold one image each write it
    (place / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr(many_runs, "train", lambda *_: 1 / 0)
    weights = (place / "encoder" / "model.safetensors").read_bytes()
    assert run(tmp_path, "--runs", "linear-100") == 0
    assert (place / "encoder" / "model.safetensors").read_bytes() == weights
    rows = cells((tmp_path / "reproduction.md").read_text())
    given = ", 1 seed, encoder test_resnet, batch_size 16, eval_images 60"
    computed = dict(word.split(" ") for word in rows["linear-100"][4].partition(f"{given}, ")[2].split(", "))
    assert computed == {"mixed_precision": "bf16", "num_processes": "8", "images_per_device": "1"}
    # In the place of another row or seed, of other data, or begun with weights, it is another run.
    other = tmp_path / "directpred-freq5-100" / "seed0"
    shutil.copytree(place, other)
    (other / "result.json").unlink()
    record = json.loads((other / "run.json").read_text())
    record["training"]["seed"], record["data"]["fingerprint"] = 3, "other"
    record["origin"] = {"encoder": "org/moco-r50", "kind": "hub"}
    (other / "run.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert run(tmp_path, "--runs", other.parent.name) == 2
    said = capsys.readouterr().err
    for part in (
        f"The run in `{other}` is not `directpred-freq5-100` with seed 0 of this table: ",
        "its `freq` is 0, not 5",
        "its `seed` is 3, not 0",
        "its images are `digits`, split `train`, not `digits`, split `train`",
        "it began with the weights of `org/moco-r50`. Move it out of the way",
    ):
        assert part in said


def test_seeds_that_were_computed_otherwise_are_told_apart():
    runs = [
        FinishedRun("linear-100", seed, "digits", {"linear-luckmatters-best": 0.5}, 2.0, 4, 1.0, {}) for seed in (0, 1)
    ]
    table = TABLES["directpred-cifar10"]
    assert cells(table_text(table, ["linear-100"], runs, {}, {}))["linear-100"][4] == "2 epochs of digits, 2 seeds"
    runs.append(replace(runs[0], seed=2, changed={"num_processes": 8}))
    trained = cells(table_text(table, ["linear-100"], runs, {}, {}))["linear-100"][4]
    assert trained == "2 epochs of digits, seed 0, 1; 2 epochs of digits, seed 2, num_processes 8"


def test_clusters_are_those_of_the_method(tmp_path: Path):
    result = hf_ssl.study(
        "reproduce",
        "contrastive-clustering",
        dataset="digits",
        output_dir=tmp_path,
        num_steps=1,
        batch_size=10,
        encoder="test_resnet",
        eval_images=30,
        num_workers=0,
    )
    (one,) = result.runs
    assert set(one.values) >= {"clustering-nmi", "clustering-accuracy", "clustering-ari"}
    lines = result.text.splitlines()
    published = [line.split(" | ")[2:4] for line in lines if "clustering, " in line]
    assert published[:3] == [
        ["clustering, NMI", "70.5"],
        ["clustering, accuracy", "79.0"],
        ["clustering, ARI", "63.7"],
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["directpred-cifar"],
            "knows no table `directpred-cifar`. Did you mean `directpred-cifar10`",
        ),
        (["mochi"], "`dataset` is needed: where ImageNet-100 is, such as `--dataset data/imagenet100`"),
        (["mochi", "--dataset", "digits"], "`output_dir` is needed: the folder of the runs, such as `runs/mochi`"),
        (["mochi", "--list", "--runs", "mochi-800"], "Unknown run `mochi-800`. Did you mean `mochi-200`"),
        (["mochi", "--list", "--num_steps", "2", "--num_epochs", "2"], "`num_epochs` and `num_steps` exclude"),
        (["mochi", "--list", "--seeds", "0"], "`seeds` must be at least 1, got 0"),
        (
            ["directpred-stl10", "--list", "--augmented_passes", "3"],
            "is for linear-sgd and linear-byol, not for li",
        ),
        (["mochi", "--dataset", "digits", "--output_dir", "x"], "has no split `validation`"),
        (
            ["mochi", "--dataset", "digits", "--output_dir", "x", "--test_split", "train"],
            "`test_split` is `train`, from which encoder or probe learn",
        ),
        (["mochi", "--list", "--output_dir", "nowhere"], "`output_dir` `nowhere` is not there, so no run is in it"),
        (["mochi", "--dataset", "nothing/here/at-all", "--output_dir", "x"], "nothing/here/at-all"),
    ],
)
def test_wrong_commands_are_refused_in_a_sentence(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "reproduce", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_keeps_one_choice_of_settings(finished: Path, capsys: pytest.CaptureFixture):
    assert run(finished, "--augmented_passes", "0", "--eval_images", "50") == 2
    assert "have `eval_images` 60, got 50. Give another `output_dir`" in capsys.readouterr().err
