"""`hf-ssl study reproduce`: published tables, what is listed, trained, measured and printed, and what is refused."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

import hf_ssl
from hf_ssl.commands import main
from hf_ssl.data.settings import DataSettings
from hf_ssl.evaluation.protocols import CLUSTERING_SCORES, PROTOCOLS
from hf_ssl.studies import many_runs
from hf_ssl.studies.many_runs import parts_of_recipe
from hf_ssl.studies.published import TABLES
from hf_ssl.training.arguments import TrainingSettings

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
