"""The guide of dictionaries: its tables are what the results files say, computed a second time."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "scripts" / "guides" / "dictionaries.md").read_text(encoding="utf-8")
RESULTS = ROOT / "model_cards" / "results"


def results(name: str) -> dict:
    return json.loads((RESULTS / f"dictionaries-{name}.json").read_text())


def table(first_cell: str) -> list[list[str]]:
    """Rows of the table whose head begins so, without the line below the head."""
    lines = GUIDE[GUIDE.index(f"| {first_cell} |") :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [rows[0], *rows[2:]]


@pytest.mark.parametrize(
    ("title", "name"), [("k-NN (%)", "knn"), ("variance that age explains (%)", "stored_age_share")]
)
def test_a_table_of_the_grid_is_what_the_runs_came_to(title: str, name: str):
    head, *rows = table(title)
    sizes = [int(re.sub(r"\D", "", cell)) for cell in head[1:]]
    runs = [run for run in results("grid")["runs"] if run["seed"] == 0]
    found = {(run["cell"]["momentum"], run["cell"]["queue_size"]): run["measured"][name] for run in runs}
    assert len(rows) == 5 and len(sizes) >= 4
    for momentum, *cells in rows:
        expected = [found[float(momentum.removeprefix("momentum ")), size] for size in sizes]
        assert cells == [f"{100 * value:.1f}" for value in expected]


def test_predictions_are_those_that_were_written_before_the_runs():
    early = json.loads((RESULTS / "dictionaries-grid-predictions.json").read_text())
    late = results("grid")["predictions"]
    assert [one["cell"] for one in early["foretold"]] == [one["cell"] for one in late["foretold"]]
    for before, after in zip(early["foretold"], late["foretold"], strict=True):
        assert list(before["keys"].values()) == pytest.approx(list(after["keys"].values()), abs=1e-4)
    assert early["choice"] == late["choice"]
