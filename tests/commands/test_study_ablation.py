"""`hf-ssl study ablation`: two real cells, going on where it was, theory alone, and what it refuses."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_ssl.commands import main
from hf_ssl.studies import ablation, ablation_forecast

GRID = ["--dataset", "digits", "--predictor", "linear", "none", "--ema", "false"]
SMALL = ["--num_steps", "4", "--batch_size", "16", "--num_workers", "0", "--encoder", "test_resnet"]


def run(*arguments: str) -> int:
    return main(["study", "ablation", *arguments])


@pytest.fixture(scope="module", autouse=True)
def few_pairs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation_forecast, "_PAIRS", 64)
        yield


@pytest.fixture(scope="module")
def finished(few_pairs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    assert run(*again(folder)) == 0
    return folder


def again(finished: Path, *arguments: str) -> list[str]:
    return [*GRID, *SMALL, "--knn_split", "test", "--knn_images", "100", "--output_dir", str(finished), *arguments]


def test_two_cells_are_trained_measured_and_compared(finished: Path):
    runs = json.loads((finished / "ablation.json").read_text())["runs"]
    assert [run["cell"]["predictor"] for run in runs] == ["linear", "none"]
    assert [run["theory"]["expected"] for run in runs] == ["no", "complete"]
    for run in runs:
        assert 0 <= run["measured"]["knn"] <= 1 and 0 <= run["measured"]["spread"] <= 1
        assert run["measured"]["projection_rank"] >= 1
    assert runs[0]["measured"]["knn_random"] == runs[1]["measured"]["knn_random"]
    cells, scores = (part.splitlines() for part in (finished / "ablation.md").read_text().split("\n\n"))
    assert len(cells) == 5 and cells[2].startswith("| fresh network |")
    assert all(line.count("|") == 10 for line in cells)
    names = ["the paper's theory", "all", *ablation_forecast.WITHOUT.values(), "none"]
    assert [line.split(" | ")[0] for line in scores[2:]] == [f"| {name}" for name in names]
    assert all(" of 2 |" in line for line in scores[2:])
    assert (finished / "ablation.png").stat().st_size > 10_000


def test_forecasts_are_written_before_the_runs_and_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = [*GRID, *SMALL, "--knn_split", "none", "--output_dir", str(tmp_path)]
    assert run(*command, "--theory_only") == 0
    path = tmp_path / "predictions.json"
    before = path.read_bytes()
    entries = json.loads(before)["runs"]
    assert [entry["title"] for entry in entries] == [
        "linear, no EMA, decay 0.0004",
        "no predictor, no EMA, decay 0.0004",
    ]
    for entry in entries:
        assert entry["before_run"] and list(entry["forecasts"]) == list(ablation_forecast.VARIANTS)
        assert entry["forecasts"]["all"]["rank"] > 1 and None in entry["forecasts"]["all"]["deaths"]

    def no_other(*arguments):
        raise AssertionError("predicted again")

    monkeypatch.setattr(ablation, "forecast", no_other)
    assert run(*command) == 0
    assert path.read_bytes() == before
    # Another seed is added; what stands there stays.
    monkeypatch.undo()
    monkeypatch.setattr(ablation_forecast, "_PAIRS", 64)
    assert run(*command, "--seeds", "2", "--theory_only") == 0
    after = json.loads(path.read_text())["runs"]
    assert after[:2] == entries and [entry["seed"] for entry in after] == [0, 0, 1, 1]


def test_forecasts_that_come_after_a_run_say_so(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (folder / "predictions.json").unlink()
    assert run(*again(folder)) == 0
    assert (
        "2 of these 2 runs had begun before they were predicted, so they do not test the forecast."
        in capsys.readouterr().out
    )
    assert not any(entry["before_run"] for entry in json.loads((folder / "predictions.json").read_text())["runs"])


def test_results_are_drawn_again_and_scored_together(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    file, copy = finished / "ablation.json", tmp_path / "copy.json"
    assert run("--drawn_from", str(file), "--output_dir", str(tmp_path / "one")) == 0
    assert capsys.readouterr().out.startswith("digits:")
    assert (tmp_path / "one" / "ablation.md").read_text() == (finished / "ablation.md").read_text()
    assert (tmp_path / "one" / "ablation.png").stat().st_size > 10_000
    assert run("--drawn_from", str(file), str(file), "--output_dir", str(tmp_path / "two")) == 2
    assert "both have the run `linear, no EMA, decay 0.0004` of `digits` with seed 0" in capsys.readouterr().err
    other = json.loads(file.read_text())
    other["predictions"]["settings"]["num_steps"] = 5
    copy.write_text(json.dumps(other))
    assert run("--drawn_from", str(file), str(copy), "--output_dir", str(tmp_path / "two")) == 0
    assert "| the paper's theory | " in (text := capsys.readouterr().out) and " of 4 | " in text
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {"ablation.md", "ablation-1.png", "ablation-2.png"}
    assert run("--drawn_from", str(finished / "predictions.json"), "--output_dir", str(tmp_path / "none")) == 2
    assert "must be results of `study ablation`" in capsys.readouterr().err and not (tmp_path / "none").exists()
    del other["predictions"]
    copy.write_text(json.dumps(other))
    assert run("--drawn_from", str(copy), "--output_dir", str(tmp_path / "none")) == 2
    assert "it lacks `predictions`. Name its ablation.json." in capsys.readouterr().err


def test_a_finished_cell_is_not_run_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def refuse(*arguments, **settings):
        raise AssertionError("trained again")

    monkeypatch.setattr(ablation, "train", refuse)
    assert run(*again(finished)) == 0
    assert "linear, no EMA, decay 0.0004" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="trained again"):
        run(*again(finished, "--seeds", "2"))


def test_a_folder_keeps_one_choice_of_settings(finished: Path, capsys: pytest.CaptureFixture):
    assert run(*again(finished, "--num_steps", "5")) == 2
    assert "were made for `num_steps` 4, got 5. Predictions are not changed: give another" in capsys.readouterr().err


def test_a_study_needs_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(*again(tmp_path)) == 2
    assert "one run after another in one process, but 2 were launched" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_stopped_run_ends_the_grid_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    class Stopped:
        signal = 15

    monkeypatch.setattr(ablation, "train", lambda *arguments: Stopped)
    assert run(*GRID, *SMALL, "--knn_split", "none", "--output_dir", str(tmp_path)) == 128 + 15
    assert "Stopped by SIGTERM after 0 of 2 runs. The same command continues." in capsys.readouterr().err
    assert not list(tmp_path.glob("**/result.json"))


def test_theory_alone_trains_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    assert run(*GRID, *SMALL, "--theory_only") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("linear, no EMA") and "modes survive" in lines[1]
    assert lines[2].startswith("no predictor, no EMA") and "(theorem 2)" in lines[2]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "digits"], "`output_dir` is needed"),
        (["--drawn_from", "ablation.json"], "`output_dir` is needed"),
        (["--theory_only"], "`dataset` is needed"),
        (
            ["--dataset", "digits", "--output_dir", "x", "--knn_split", "train"],
            "`split` and `knn_split` are both `train`: k-NN would find each image among those that it knows. Classify "
            "another split, or none.\n",
        ),
        (["--dataset", "digits", "--theory_only", "--seed", "2"], "Unknown flag `--seed`. Did you mean `--seeds`?"),
        (["--dataset", "digits", "--theory_only", "--num_steps", "0"], "`num_steps` must be at least 1, got 0"),
        (
            ["--dataset", "digits", "--theory_only", "--grid", "core", "--ema", "true"],
            "`grid` and `ema` exclude each other",
        ),
        (
            ["--dataset", "digits", "--theory_only", "--recipe", "cifar10"],
            "`byol` has no recipe `cifar10`. Did you mean `cifar`?",
        ),
        (["--dataset", "digits", "--theory_only", "--predictor", "tiny"], "`predictor` must be"),
    ],
)
def test_wrong_commands_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
