"""The study of negatives in lines of text, as a table and as figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_ssl.figures.negatives import matching_curves
from hf_ssl.figures.oracle_study import StudyRow, plane, study_chart
from hf_ssl.studies.many_runs import mean_text
from hf_ssl.studies.negatives_measures import Measured, Run, by_method, claims_of, values_of
from hf_ssl.studies.negatives_results import NegativesResults
from hf_ssl.training.files import write_json

_COLUMNS = {
    "linear": ("linear", 100, 1),
    "knn": ("k-NN", 100, 1),
    "false_negative_share": ("own class", 100, 1),
    "contrast_accuracy": ("positive", 100, 1),
    "contrast_accuracy_with_mixed": ("with mixed", 100, 1),
    "view_alignment_h": ("views h", 1, 3),
    "class_alignment_h": ("class h", 1, 3),
    "uniformity_h": ("even h", 1, 2),
    "view_alignment_z": ("views z", 1, 3),
    "uniformity_z": ("even z", 1, 2),
}
"""Numbers of a run in the order of the table: heading, factor, digits."""


def _line(title: str, *columns: str) -> str:
    return (title.ljust(24) + "".join(f"{column:>11}" for column in columns)).rstrip()


HEAD = _line("method", *(heading for heading, _, _ in _COLUMNS.values()))
"""Names of the columns of `line_of`."""


def line_of(run: Run) -> str:
    """The numbers of one run, in the columns of `HEAD`."""
    title = run.method if run.seed == 0 else f"{run.method}, seed {run.seed}"
    values = {name: getattr(run.measured, name) for name in _COLUMNS}
    return _line(
        title,
        *(
            "" if values[name] is None else f"{factor * values[name]:.{digits}f}"
            for name, (_, factor, digits) in _COLUMNS.items()
        ),
    )


def folder_of(folder: Path, method: str, seed: int) -> Path:
    """Where a run of the study lies."""
    return folder / method / f"seed{seed}"


RESULTS = "negatives.json"


def write_results(folder: Path, about: Mapping[str, Any], results: NegativesResults) -> Path:
    """Write what `drawn_from` reads, with the claims.

    Args:
        folder: Of the study.
        about: What the file says of itself.
        results: The finished runs.
    """
    claims = [{"text": claim.text, "holds": claim.holds} for claim in claims_of(results.runs, results.chance)]
    write_json(folder / RESULTS, {**about, **asdict(results), "claims": claims})
    return folder / RESULTS


def draw(folder: Path, results: NegativesResults) -> tuple[list[str], list[Path]]:
    """Write table, claims and figures.

    Args:
        folder: Where to.
        results: The finished runs.

    Returns:
        What the runs say, and the files.
    """
    groups = by_method(results.runs)
    said = [
        f"Chance for `own class`, computed from all labels of the training split: {100 * results.chance:.1f} %.",
        *(f"- Claim: {claim}." for claim in claims_of(results.runs, results.chance)),
    ]
    (folder / "negatives.md").write_text(f"{_table(groups)}\n" + "\n".join(said) + "\n")
    logs = {method: [run.lines for run in group if run.log] for method, group in groups.items()}
    rows = [
        StudyRow(
            title=method,
            numbers={name: values_of(group, name) for name in Measured.__dataclass_fields__},
            logs=logs[method],
        )
        for method, group in groups.items()
    ]
    figures = {"plane.png": plane(rows), "study.png": study_chart(rows, results.chance)}
    logged = {method: lines for method, lines in logs.items() if lines}
    if logged:
        plain = {method: lines for method, lines in logged.items() if "oracle" not in method}
        figures["matching.png"] = matching_curves(plain or logged, results.queue_size)
    for name, figure in figures.items():
        figure.savefig(folder / name)
    return said, [folder / name for name in ("negatives.md", *figures)]


def _table(groups: Mapping[str, Sequence[Run]]) -> str:
    headings = [f"{heading} (%)" if factor == 100 else heading for heading, factor, _ in _COLUMNS.values()]
    lines = [f"| method | {' | '.join(headings)} |", "|---" * (len(headings) + 1) + "|"]
    for method, group in groups.items():
        cells = [
            mean_text([factor * value for value in values_of(group, name)], digits)
            for name, (_, factor, digits) in _COLUMNS.items()
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
