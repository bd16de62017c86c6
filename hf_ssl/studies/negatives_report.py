"""The study of negatives in lines of text, as a table and as figures."""

from collections.abc import Sequence
from pathlib import Path

from hf_ssl.figures.negatives import matching_curves
from hf_ssl.figures.oracle_study import StudyRow, plane, study_chart
from hf_ssl.studies.many_runs import mean_text
from hf_ssl.studies.negatives_measures import CONTRASTIVE, Measured, Run, by_method, claims_of, values_of
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


def write_report(folder: Path, runs: Sequence[Run], chance: float, queue_size: int) -> tuple[list[str], list[Path]]:
    """Write numbers, table, claims and figures.

    Args:
        folder: Of the study.
        runs: The finished runs.
        chance: From `share_of_own_class`.
        queue_size: Keys in the queue.

    Returns:
        What the runs say, and the files.
    """
    claims = claims_of(runs, chance)
    groups = by_method(runs)
    said = [
        f"Chance for `own class`, computed from all labels of the training split: {100 * chance:.1f} %.",
        *(f"- Claim: {claim}." for claim in claims),
    ]
    record = {"chance": chance, "runs": [run.record() for run in runs]}
    record |= {"claims": [{"text": claim.text, "holds": claim.holds} for claim in claims]}
    write_json(folder / "study.json", record)
    (folder / "study.md").write_text(f"{_table(groups)}\n" + "\n".join(said) + "\n")
    logs = {
        method: [folder_of(folder, method, run.seed) / "metrics.jsonl" for run in group]
        for method, group in groups.items()
        if method in CONTRASTIVE
    }
    rows = [
        StudyRow(
            title=method,
            numbers={name: values_of(group, name) for name in Measured.__dataclass_fields__},
            logs=logs.get(method, []),
        )
        for method, group in groups.items()
    ]
    figures = {"plane.png": plane(rows), "study.png": study_chart(rows, chance)}
    if logs:
        figures["matching.png"] = matching_curves(
            {method: logs[method] for method in logs if "oracle" not in method} or logs,
            queue_size,
        )
    for name, figure in figures.items():
        figure.savefig(folder / name)
    return said, [folder / name for name in ("study.json", "study.md", *figures)]


def _table(groups: dict[str, list[Run]]) -> str:
    headings = [f"{heading} (%)" if factor == 100 else heading for heading, factor, _ in _COLUMNS.values()]
    lines = [f"| method | {' | '.join(headings)} |", "|---" * (len(headings) + 1) + "|"]
    for method, group in groups.items():
        cells = [
            mean_text([factor * value for value in values_of(group, name)], digits)
            for name, (_, factor, digits) in _COLUMNS.items()
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
