"""The guide of studies: its tables of forecasts are what the command prints, and what the files say."""

import json
import statistics
from pathlib import Path

import pytest

from hf_ssl.commands import main

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "scripts" / "guides" / "studies.md").read_text(encoding="utf-8")
RESULTS = ROOT / "model_cards" / "results" / "ablation"
FRESH = [f"fresh_{data}{heads}" for data in ("cifar", "shapes") for heads in ("", "_heads")]


def rows(text: str) -> dict[str, dict[str, str]]:
    """Rows of the last table of scores in a text, by the name of the forecast."""
    table = text[text.rindex("\n| forecast |") + 1 :].partition("\n\n")[0].splitlines()
    head, *found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in found[1:]}


@pytest.mark.parametrize(("names", "part"), [(["core"], 0), (FRESH, 1)], ids=["core", "fresh"])
def test_a_table_of_scores_is_what_the_command_prints(
    names: list[str], part: int, tmp_path: Path, capsys: pytest.CaptureFixture
):
    files = [str(RESULTS / f"{name}.json") for name in names]
    assert main(["study", "ablation", "--drawn_from", *files, "--output_dir", str(tmp_path)]) == 0
    printed = rows(capsys.readouterr().out)
    sections = GUIDE.split("The test is cells that nobody had seen")
    written = rows(sections[part])
    assert len(written) >= 5
    for name, cells in written.items():
        assert cells == {column: printed[name][column] for column in cells}, name


def test_the_totals_over_the_fresh_cells_computed_a_second_time():
    called, ratios = {}, {}
    for name in FRESH:
        results = json.loads((RESULTS / f"{name}.json").read_text())
        said = {(one["title"], one["seed"]): one["forecasts"]["all"] for one in results["predictions"]["runs"]}
        for run in results["runs"]:
            told, cell = said[run["title"], run["seed"]], (name, run["title"])
            called.setdefault(cell, []).append(told["expected"] == run["collapse"])
            if run["collapse"] != "complete":
                ratios.setdefault(cell, []).append((run["measured"]["projection_rank"], told["rank"]))
    pairs = [zip(*one, strict=True) for one in ratios.values()]
    means = [statistics.mean(found) / statistics.mean(told) for found, told in pairs]
    row = rows(GUIDE)["all"]
    assert row["cells called"] == f"{sum(sum(one) > len(one) / 2 for one in called.values())} of {len(called)}"
    assert row["rank of z within 1.5"] == f"{sum(1 / 1.5 <= one <= 1.5 for one in means)} of {len(means)}"
    assert row["measured / forecast rank"] == f"{statistics.median(means):.2f}"
    assert len(called) == 20


@pytest.mark.parametrize("name", ["core", *FRESH])
def test_what_was_said_before_the_runs_is_what_they_are_judged_by(name: str):
    said = json.loads((RESULTS / f"{name}.predictions.json").read_text())
    found = json.loads((RESULTS / f"{name}.json").read_text())["predictions"]
    assert found == said
    assert name == "core" or all(entry["before_run"] for entry in said["runs"])


def test_the_runs_of_moco_and_mochi_are_those_of_the_results():
    runs = json.loads((RESULTS.parent / "negatives.json").read_text())["runs"]

    def values(method: str, name: str, factor: float = 1) -> list[float]:
        return [factor * run["measured"][name] for run in runs if run["method"] == method]

    def shown(method: str, name: str) -> str:
        found = values(method, name, 100)
        return f"{statistics.mean(found):.1f} \N{PLUS-MINUS SIGN} {statistics.stdev(found):.1f}"

    text = " ".join(GUIDE.split())
    for name, what in (("linear", "by the linear probe"), ("knn", "by k-NN")):
        assert f"{shown('moco_v2', name)} and {shown('mochi', name)} % {what}" in text
    even = {method: values(method, "uniformity_h") for method in ("moco_v2", "mochi")}
    assert all(mochi < moco for mochi, moco in zip(even["mochi"], even["moco_v2"], strict=True))
    means = [f"{statistics.mean(even[method]):.2f}" for method in ("mochi", "moco_v2")]
    assert f"in both seeds ({means[0]} against {means[1]} on average)" in text
