"""An ablation in lines of text, as a table and as a figure."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from hf_ssl.figures.ablation import AblationRow, ablation_chart
from hf_ssl.studies.ablation_forecast import Forecast
from hf_ssl.studies.ablation_predictions import SCORES, Forecasts, Part, judged, score_table
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


def summary(part: Part) -> str:
    """What agreed, and each disagreement with the reason that theory gave."""
    runs = part.runs
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
    return "\n".join([*lines, "", *scores_text([part])])


def scores_text(parts: Sequence[Part]) -> list[str]:
    """Lines of what was called in some studies, and what the columns say."""
    scored, late = judged(parts)
    explained = [f"{name:<26}{meaning}" for name, meaning in SCORES.items()]
    return ["What was called, by what the forecast takes into account:", *score_table(scored), "", *explained, *late]


def write_results(folder: Path, part: Part) -> Path:
    """Write what `drawn_from` reads, ablation.json, into a folder."""
    record = {"study": "ablation", "runs": [run.record() for run in part.runs]}
    write_json(folder / "ablation.json", record | {"predictions": part.predictions.record()})
    return folder / "ablation.json"


def draw(folder: Path, parts: Sequence[Part]) -> list[Path]:
    """Write a table and a figure for each study, one row a cell, and the scores over all.

    Args:
        folder: Where to; ablation.md, and ablation.png or, of several studies, ablation-1.png and so on.
        parts: Finished runs and their forecasts.

    Returns:
        The files.
    """
    names = ["ablation.png"] if len(parts) == 1 else [f"ablation-{place + 1}.png" for place in range(len(parts))]
    table, files = folder / "ablation.md", [folder / name for name in names]
    lines = []
    for part, path in zip(parts, files, strict=True):
        groups = list(by_cell(part.runs))
        lines += [
            *([f"## {part.title}, {path.name}", ""] if len(parts) > 1 else []),
            *_table(groups, part.predictions),
        ]
        lines.append("")
        random = _values(part.runs, lambda measured: measured.knn_random)
        start = part.runs[0].start
        figure = ablation_chart(
            [_row(group, part.predictions) for group in groups],
            title=part.title,
            random_knn=statistics.mean(random) if random else None,
            ranks_at_start=(start.projection_rank, start.representation_rank),
        )
        figure.savefig(path)
    scored, late = judged(parts)
    table.write_text("\n".join([*lines, *score_table(scored), *(["", *late] if late else [])]) + "\n")
    return [table, *files]


def _row(group: list[Run], predictions: Forecasts) -> AblationRow:
    foretold = [one for one in map(predictions.of, group) if one is not None]
    return AblationRow(
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


def _table(groups: list[list[Run]], predictions: Forecasts) -> list[str]:
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
        expected = _most([OUTCOMES[run.theory.expected] for run in group])
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
