"""An ablation in lines of text, as a table and as a figure."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from hf_ssl.figures.ablation import AblationRow, ablation_chart
from hf_ssl.studies.ablation_theory import Measured, Run, by_cell
from hf_ssl.studies.many_runs import mean_text
from hf_ssl.training.files import write_json

OUTCOMES = {
    "no": "survives",
    "dimensional": "dimensional",
    "complete": "complete",
    "later": "later",
    "open": "open",
}


def _line(*columns: str) -> str:
    widths = (52, 12, 12, 7, 7, 7, 7)
    return "  ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)).rstrip()


HEAD = _line("cell", "theory", "measured", "k-NN %", "spread", "rank z", "rank h")
"""Names of the columns of `line_of`."""


def line_of(run: Run) -> str:
    """Theory and measurement of one run, in the columns of `HEAD`."""
    title = run.cell.title if run.seed == 0 else f"{run.cell.title}, seed {run.seed}"
    expected, found = OUTCOMES[run.theory.expected], run.measured
    if found is None:
        return _line(title, expected, "", "", "", "", "").rstrip() + f"  {run.theory.reason}"
    figures = (f"{found.spread:.3f}", f"{found.projection_rank:.1f}", f"{found.representation_rank:.1f}")
    accuracy = "" if found.knn is None else f"{100 * found.knn:.1f}"
    mark = "  <- not as expected" if run.agrees is False else ""
    return _line(title, expected, OUTCOMES[run.collapse or "no"], accuracy, *figures) + mark


def summary(runs: list[Run]) -> str:
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
    return "\n".join(lines)


def write_report(folder: Path, runs: list[Run]) -> list[Path]:
    """Write numbers, table and figure, one row a cell.

    Args:
        folder: Where to; ablation.json, ablation.md and ablation.png.
        runs: The finished runs.

    Returns:
        The files.
    """
    groups = list(by_cell(runs))
    files = [folder / "ablation.json", folder / "ablation.md", folder / "ablation.png"]
    write_json(files[0], {"runs": [run.record() for run in runs]})
    files[1].write_text(_table(groups))
    rows = [
        AblationRow(
            title=group[0].cell.title,
            expected=OUTCOMES[group[0].theory.expected],
            found=[OUTCOMES[run.collapse or "no"] for run in group],
            agrees=all(run.agrees is not False for run in group),
            knn=_values(group, lambda measured: measured.knn),
            projection_rank=_values(group, lambda measured: measured.projection_rank),
            representation_rank=_values(group, lambda measured: measured.representation_rank),
        )
        for group in groups
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


def _table(groups: list[list[Run]]) -> str:
    head = "| cell | theory | measured | agree | k-NN (%) | spread | rank z | rank h |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    random = [100 * value for value in _values(groups[0], lambda measured: measured.knn_random)]
    start = [run.start for run in groups[0]]
    fresh = (
        mean_text(random, 1),
        mean_text([one.spread for one in start], 2),
        mean_text([one.projection_rank for one in start], 1),
        mean_text([one.representation_rank for one in start], 1),
    )
    lines.append(f"| fresh network | | | | {' | '.join(fresh)} |")
    for group in groups:
        found = [OUTCOMES[run.collapse or "no"] for run in group]
        most = statistics.mode(found)  # the first of equals
        measured = most if len(set(found)) == 1 else f"{most} in {found.count(most)} of {len(found)}"
        agreed = {run.agrees for run in group}
        agree = "yes" if agreed == {True} else "no" if agreed == {False} else "open" if None in agreed else "in part"
        figures = (
            mean_text([100 * value for value in _values(group, lambda measured: measured.knn)], 1),
            mean_text(_values(group, lambda measured: measured.spread), 2),
            mean_text(_values(group, lambda measured: measured.projection_rank), 1),
            mean_text(_values(group, lambda measured: measured.representation_rank), 1),
        )
        expected = OUTCOMES[group[0].theory.expected]
        lines.append(f"| {group[0].cell.title} | {expected} | {measured} | {agree} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def _values(runs: Sequence[Run], figure: Callable[[Measured], float | None]) -> list[float]:
    values = [figure(run.measured) for run in runs if run.measured is not None]
    return [value for value in values if value is not None]
