"""An ablation in lines of text, as a table and as a figure."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from hf_ssl.figures.ablation import AblationRow, ablation_chart
from hf_ssl.studies.ablation_forecast import Forecast
from hf_ssl.studies.ablation_predictions import Predictions, score_table
from hf_ssl.studies.ablation_theory import Measured, Run, by_cell
from hf_ssl.studies.many_runs import mean_text
from hf_ssl.training.files import write_json

OUTCOMES = {
    "no": "survives",
    "dimensional": "dimensional",
    "complete": "complete",
    "later": "later",
    "open": "open",
    "diverges": "diverges",
}


def _line(*columns: str) -> str:
    widths = (52, 12, 12, 12, 7, 7, 13, 7)
    return "  ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)).rstrip()


HEAD = _line("cell", "theory", "forecast", "measured", "k-NN %", "spread", "rank z (f.)", "rank h")
"""Names of the columns of `line_of`."""


def line_of(run: Run, forecast: Forecast | None = None) -> str:
    """Theory, forecast and measurement of one run, in the columns of `HEAD`."""
    title = run.cell.title if run.seed == 0 else f"{run.cell.title}, seed {run.seed}"
    expected, found = OUTCOMES[run.theory.expected], run.measured
    foretold = "" if forecast is None else OUTCOMES[forecast.expected]
    if found is None:
        rank = "" if forecast is None else f"({forecast.rank:.1f})"
        return _line(title, expected, foretold, "", "", "", rank, "").rstrip() + f"  {run.theory.reason}"
    rank = f"{found.projection_rank:.1f}" + ("" if forecast is None else f" ({forecast.rank:.1f})")
    figures = (f"{found.spread:.3f}", rank, f"{found.representation_rank:.1f}")
    accuracy = "" if found.knn is None else f"{100 * found.knn:.1f}"
    mark = "  <- not as forecast" if forecast is not None and forecast.expected != run.collapse else ""
    return _line(title, expected, foretold, OUTCOMES[run.collapse or "no"], accuracy, *figures) + mark


def summary(runs: list[Run], predictions: Predictions) -> str:
    """What agreed, and each disagreement with the reason that theory gave."""
    start = runs[0].start
    lines = [
        "",
        f"Start: augmentation adds {start.noise:.2f} times the variance that two views share; "
        f"{len(start.correlation)} modes with s from {start.correlation[0]:.3g} to {start.correlation[-1]:.3g}; "
        f"spread {start.spread:.3f}, rank z {start.projection_rank:.1f}, rank h {start.representation_rank:.1f}.",
    ]
    compared = [run for run in runs if run.agrees is not None]
    if not compared:
        return "\n".join(lines)
    first = runs[0].measured
    if first is not None and first.knn_random is not None:
        lines.append(f"A fresh encoder has {100 * first.knn_random:.1f} % k-NN.")
    agreed = sum(bool(run.agrees) for run in compared)
    complete = sum((run.theory.expected == "complete") == (run.collapse == "complete") for run in compared)
    lines.append(
        f"Theory and measurement agree on whether there is a collapse in {agreed} of {len(compared)} runs, and on "
        f"whether it is complete in {complete}."
    )
    by_reason: dict[str, list[str]] = {}
    for run in compared:
        if not run.agrees:
            found = f"{run.cell.title}, seed {run.seed} ({OUTCOMES[run.collapse or 'no']})"
            by_reason.setdefault(f"{OUTCOMES[run.theory.expected]}. {run.theory.reason}", []).append(found)
    for reason, found in by_reason.items():
        lines += [f"- Not as expected: {'; '.join(found)}.", f"  Theory: {reason}"]
    lines += ["", "What was called, by what the forecast takes into account:", *score_table(predictions, runs)]
    late = predictions.made_late(runs)
    if late:
        lines.append(f"{late} of these runs were finished before they were predicted.")
    return "\n".join(lines)


def write_report(folder: Path, runs: list[Run], predictions: Predictions) -> list[Path]:
    """Write numbers, table and figure, one row a cell.

    Args:
        folder: Where to; ablation.json, ablation.md and ablation.png.
        runs: The finished runs.
        predictions: Their forecasts.

    Returns:
        The files.
    """
    groups = list(by_cell(runs))
    files = [folder / "ablation.json", folder / "ablation.md", folder / "ablation.png"]
    write_json(files[0], {"runs": [run.record() for run in runs]})
    files[1].write_text("\n".join([*_table(groups, predictions), "", *score_table(predictions, runs)]) + "\n")
    forecasts = [[one for one in map(predictions.of, group) if one is not None] for group in groups]
    rows = [
        AblationRow(
            title=group[0].cell.title,
            expected=OUTCOMES[group[0].theory.expected],
            forecast=[OUTCOMES[one.expected] for one in foretold],
            found=[OUTCOMES[run.collapse or "no"] for run in group],
            agrees=[one.expected for one in foretold] == [run.collapse for run in group],
            knn=_values(group, lambda measured: measured.knn),
            projection_rank=_values(group, lambda measured: measured.projection_rank),
            forecast_rank=[one.rank for one in foretold],
            representation_rank=_values(group, lambda measured: measured.representation_rank),
        )
        for group, foretold in zip(groups, forecasts, strict=True)
    ]
    random = _values(runs, lambda measured: measured.knn_random)
    start = runs[0].start
    figure = ablation_chart(
        rows,
        random_knn=statistics.mean(random) if random else None,
        ranks_at_start=(start.projection_rank, start.representation_rank),
    )
    figure.savefig(files[2])
    return files


def _table(groups: list[list[Run]], predictions: Predictions) -> list[str]:
    head = "| cell | theory | forecast | measured | k-NN (%) | spread | rank z | forecast z | rank h |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    random = [100 * value for value in _values(groups[0], lambda measured: measured.knn_random)]
    start = [run.start for run in groups[0]]
    fresh = (
        mean_text(random, 1),
        mean_text([one.spread for one in start], 2),
        mean_text([one.projection_rank for one in start], 1),
        "",
        mean_text([one.representation_rank for one in start], 1),
    )
    lines.append(f"| fresh network | | | | {' | '.join(fresh)} |")
    for group in groups:
        found = [OUTCOMES[run.collapse or "no"] for run in group]
        foretold = [one for one in map(predictions.of, group) if one is not None]
        figures = (
            mean_text([100 * value for value in _values(group, lambda measured: measured.knn)], 1),
            mean_text(_values(group, lambda measured: measured.spread), 2),
            mean_text(_values(group, lambda measured: measured.projection_rank), 1),
            mean_text([one.rank for one in foretold], 1),
            mean_text(_values(group, lambda measured: measured.representation_rank), 1),
        )
        kinds = [OUTCOMES[one.expected] for one in foretold]
        expected = OUTCOMES[group[0].theory.expected]
        lines.append(
            f"| {group[0].cell.title} | {expected} | {_most(kinds)} | {_most(found)} | {' | '.join(figures)} |"
        )
    return lines


def _most(kinds: Sequence[str]) -> str:
    if not kinds:
        return ""
    most = statistics.mode(kinds)  # the first of equals
    return most if len(set(kinds)) == 1 else f"{most} in {kinds.count(most)} of {len(kinds)}"


def _values(runs: Sequence[Run], figure: Callable[[Measured], float | None]) -> list[float]:
    values = [figure(run.measured) for run in runs if run.measured is not None]
    return [value for value in values if value is not None]
