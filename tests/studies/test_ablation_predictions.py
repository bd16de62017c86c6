"""Forecasts of ablations: when a direction dies, what the file keeps, how runs are scored."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hf_ssl.studies.ablation_forecast import ALL, Forecast, deaths_of
from hf_ssl.studies.ablation_grid import Cell
from hf_ssl.studies.ablation_predictions import Forecasts, Part, death_errors, joined, judged, score, score_table
from hf_ssl.studies.ablation_theory import Measured, Run, Start, theory_of

START = Start(
    noise=0.5, correlation=[1.0], predictor=[0.05], spread=0.8, projection_rank=20.0, representation_rank=15.0
)


def forecast(kind: str, rank: float, deaths: list[int | None]) -> Forecast:
    return Forecast(expected=kind, spread=0.5, rank=rank, deaths=deaths)  # pyright: ignore[reportArgumentType]


def finished(cell: Cell, *, spread: float, rank: float, deaths: list[int | None] | None = None) -> Run:
    figures = {"knn": None, "knn_random": None, "loss": 1.0, "representation_rank": 6.0, "seconds": 1.0}
    measured = Measured(spread=spread, projection_rank=rank, deaths=deaths, **figures)  # pyright: ignore
    theory = theory_of(cell, START, learning_rate=0.05, momentum=0.9, ema_momentum=0.9, num_steps=300)
    return Run(cell=cell, seed=0, start=START, theory=theory, measured=measured)


def test_a_direction_dies_where_it_carries_less_than_a_hundredth_for_good():
    curves = [(0, [1.0, 0.5, 0.2, 0.005]), (10, [10.0, 0.5, 0.05, 0.0]), (20, [10.0, 0.05, 0.01, 0.0])]
    assert deaths_of(curves) == [None, 20, 10]
    # One that comes back is not dead.
    assert deaths_of([*curves, (30, [10.0, 0.2, 0.01, 0.0])]) == [None, None, 10]
    # Nothing is left of z.
    assert deaths_of([*curves, (30, [0.0, 0.0])]) == [30, 20, 10]
    assert death_errors([None, 20, 10], [None, 40, None]) == [20]


def test_what_was_predicted_stays(tmp_path: Path):
    file = Forecasts(tmp_path, {"num_steps": 4})
    file.forecast("a", 0, {ALL: forecast("no", 3.0, [None])}, before_run=True)
    before = json.loads((tmp_path / "predictions.json").read_text())
    again = Forecasts(tmp_path, {"num_steps": 4})
    assert again.has("a", 0) and not again.has("a", 1)
    again.forecast("a", 1, {ALL: forecast("complete", 1.0, [5])}, before_run=False)
    after = json.loads((tmp_path / "predictions.json").read_text())
    assert after["runs"][:1] == before["runs"] and len(after["runs"]) == 2
    with pytest.raises(ValueError, match="were made for `num_steps` 4, got 5. Predictions are not changed"):
        Forecasts(tmp_path, {"num_steps": 5})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"runs": []}, "it must have an object `settings` and a list `runs`"),
        (
            {"settings": {"num_steps": 4}, "runs": [{"title": "a", "seed": 0, "before_run": True}]},
            "`runs.0.forecasts`",
        ),
        ({"settings": {"num_steps": 4}, "runs": ["a"]}, "`runs.0` must be a JSON object"),
    ],
)
def test_a_file_of_another_form_is_a_sentence(tmp_path: Path, content: dict, message: str):
    (tmp_path / "predictions.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as refused:
        Forecasts(tmp_path, {"num_steps": 4})
    assert str(refused.value).endswith("Put the file back, or give another `output_dir`.")


def test_runs_are_scored_by_kind_rank_and_deaths():
    cells = [Cell(), Cell(use_ema=False), Cell(predictor="none"), Cell(weight_decay=1.0)]
    found = [
        finished(cells[0], spread=0.5, rank=8.0, deaths=[None, 30]),  # no collapse
        finished(cells[1], spread=0.5, rank=2.0),  # dimensional
        finished(cells[2], spread=0.01, rank=0.0),  # complete
        finished(cells[3], spread=0.5, rank=9.0),  # no collapse
    ]
    file = Forecasts(None, {})
    kinds = [("no", 10.0, [None, 20]), ("dimensional", 4.0, []), ("complete", 1.1, []), ("complete", 9.0, [])]
    for cell, values in zip(cells, kinds, strict=True):
        file.forecast(cell.title, 0, {ALL: forecast(*values)}, before_run=cell is cells[0])
    part = Part(found, file)
    one = score([part])
    assert (one.called, one.num_runs) == (one.cells_called, one.num_cells) == (3, 4)
    assert (one.close, one.num_ranks) == (2, 3)  # 0.8, 0.5 and 1; the third is one point
    assert one.ratio == pytest.approx(0.8) and one.late == 10
    # Runs that were predicted before they began are the test, where there are any.
    before, late = judged([part])
    assert before[0].runs == found[:1] and late == [
        "3 of these 4 runs had begun before they were predicted and are not scored."
    ]
    known = Part(found[1:], file)
    assert judged([known]) == (
        [known],
        ["3 of these 3 runs had begun before they were predicted, so they do not test the forecast."],
    )
    assert judged([Part(found[:1], file)])[1] == []
    table = score_table([part])
    assert table[3] == "| all | 3 of 4 | 3 of 4 | 2 of 3 | 0.80 | 10 |" and len(table) == 4
    assert table[2].startswith("| the paper's theory | 2 of 4 | 2 of 4 |")


def test_seeds_of_a_cell_count_once_and_files_of_one_study_come_together():
    def part(dataset: str, seeds: list[int], ranks: list[float], kinds: list[str], expected: list[float]) -> Part:
        file = Forecasts(None, {"dataset": dataset})
        runs = []
        for seed, rank, kind, told in zip(seeds, ranks, kinds, expected, strict=True):
            run = finished(Cell(), spread=0.01 if rank == 0 else 0.5, rank=rank)
            runs.append(replace(run, seed=seed))
            file.forecast(Cell().title, seed, {ALL: forecast(kind, told, [])}, before_run=True)
        return Part(runs, file)

    # By cell: 2 of 3 seeds are called, and the mean rank 5 is 1.25 times the mean 4, though 8 is twice its own 4.
    three = part("a", [0, 1, 2], [8.0, 0.0, 2.0], ["no", "complete", "no"], [4.0, 1.1, 4.0])
    one = score([three])
    assert (one.called, one.num_runs, one.cells_called, one.num_cells) == (2, 3, 1, 1)
    assert (one.close, one.num_ranks) == (1, 1) and one.ratio == pytest.approx(1.25)
    # One of two is not most.
    half = part("b", [0, 1], [8.0, 9.0], ["no", "complete"], [8.0, 9.0])
    both = score([three, half])
    assert (both.called, both.num_runs, both.cells_called, both.num_cells) == (3, 5, 1, 2)
    first, rest = part("a", [0], [8.0], ["no"], [4.0]), part("a", [1, 2], [0.0, 2.0], ["complete", "no"], [1.1, 4.0])
    assert score(joined([first, half, rest])) == both
    assert [len(one.runs) for one in joined([first, half, rest])] == [3, 2]
    with pytest.raises(ValueError, match="both have the run `linear, EMA, decay 0.0004` of `a` with seed 0"):
        joined([three, first])
