"""The study of dictionaries in lines of text, as a table and as figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from hf_ssl.errors import UserError
from hf_ssl.figures.dictionaries import (
    AgingCurve,
    NegativesRow,
    accuracy_grid,
    aging,
    foretold_against_measured,
    negatives_and_memory,
)
from hf_ssl.settings import of_json
from hf_ssl.studies.dictionaries_claims import claims_of
from hf_ssl.studies.dictionaries_runs import BANK, END_TO_END, MOCO, TWO_NETWORKS, Cell, Run, by_cell
from hf_ssl.studies.dictionaries_score import Score, pairs_of, score
from hf_ssl.studies.dictionaries_theory import Predictions, rivals
from hf_ssl.studies.many_runs import mean_text, results_to_draw
from hf_ssl.training.files import write_json

RESULTS = "dictionaries.json"
"""Name of the results file."""

_MEGABYTE = 1e6
_AGE = 16  # of the keys in the table

_COLUMNS: dict[str, tuple[Callable[[Run], float | None], float, int]] = {
    "k-NN (%)": (lambda run: run.measured.knn, 100, 1),
    "loss": (lambda run: run.measured.loss, 1, 2),
    "picked (%)": (lambda run: run.measured.contrast_accuracy, 100, 1),
    f"cos {_AGE}": (lambda run: run.curve("keys").get(_AGE), 1, 3),
    "oldest": (lambda run: run.oldest_agreement, 1, 3),
    "lag": (lambda run: run.late("lag"), 1, 3),
    "age (%)": (lambda run: run.measured.stored_age_share, 100, 1),
    "batch (%)": (lambda run: run.measured.fresh_age_share, 100, 1),
    "effective": (lambda run: run.late("effective"), 1, 0),
    "own class (%)": (lambda run: run.late("false_share"), 100, 1),
    "spread": (lambda run: run.late("spread"), 1, 2),
    "dict MB": (lambda run: run.measured.dictionary_bytes, 1 / _MEGABYTE, 2),
    "held MB": (lambda run: run.measured.held_bytes, 1 / _MEGABYTE, 1),
    "ms": (lambda run: run.measured.step_milliseconds, 1, 0),
}
"""Numbers of a run in the order of the table: what it is, factor, digits."""


def _line(title: str, *columns: str) -> str:
    return (title.ljust(40) + "".join(f"{column:>14}" for column in columns)).rstrip()


HEAD = _line("run", *_COLUMNS)
"""Names of the columns of `line_of`."""


def line_of(run: Run) -> str:
    """The numbers of one run, in the columns of `HEAD`."""
    title = run.cell.folder if run.seed == 0 else f"{run.cell.folder}, seed {run.seed}"
    cells = []
    for read, factor, digits in _COLUMNS.values():
        value = read(run)
        cells.append("" if value is None else f"{factor * value:.{digits}f}")
    return _line(title, *cells)


def write_report(folder: Path, runs: Sequence[Run], predictions: Predictions | None) -> tuple[list[str], list[Path]]:
    """Write numbers, table, claims and figures.

    Args:
        folder: Where to.
        runs: The finished runs.
        predictions: Made before them; None if nothing was foretold.

    Returns:
        What the runs say, and the files.
    """
    claims = claims_of(runs)
    scored = score(predictions, runs) if predictions is not None else None
    said = [f"- Claim: {claim}." for claim in claims]
    said += predictions.said() if predictions is not None else []
    said += scored.said() if scored is not None else []
    record: dict[str, Any] = {"study": "dictionaries", "claims": [asdict(claim) for claim in claims]}
    record |= {"predictions": predictions and predictions.record(), "score": scored and asdict(scored)}
    record["runs"] = [run.record() for run in runs]
    write_json(folder / RESULTS, rounded(record))
    (folder / "dictionaries.md").write_text(f"{_table(by_cell(runs))}\n" + "\n".join(said) + "\n")
    figures = _figures(by_cell(runs), predictions, scored)
    for name, figure in figures.items():
        figure.savefig(folder / name)
    return said, [folder / name for name in (RESULTS, "dictionaries.md", *figures)]


def read_results(path: Path) -> tuple[list[Run], Predictions | None]:
    """Runs and predictions from a results file that `write_report` wrote.

    Raises:
        UserError: If it is another file.
    """
    record = results_to_draw(path, "dictionaries", _Results)
    said = record.get("predictions")
    try:
        return of_json(_Results, record).runs, said and Predictions.from_record(said)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"`drawn_from`: the predictions in `{path}` were changed after a study wrote them: {error}. Name another "
            f"{RESULTS}."
        ) from error


@dataclass(frozen=True)
class _Results:
    """What a results file must hold."""

    runs: list[Run]

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("`runs` is empty")


def rounded(record: Any) -> Any:
    """A record whose numbers have five significant digits, so that its file stays small."""
    if isinstance(record, float):
        return float(f"{record:.5g}")
    if isinstance(record, Mapping):
        return {key: rounded(value) for key, value in record.items()}
    return [rounded(value) for value in record] if isinstance(record, list | tuple) else record


def _table(groups: dict[Cell, list[Run]]) -> str:
    lines = [f"| run | seeds | {' | '.join(_COLUMNS)} |", "|---" * (len(_COLUMNS) + 2) + "|"]
    for cell, group in groups.items():
        cells = []
        for read, factor, digits in _COLUMNS.values():
            values = [value for run in group if (value := read(run)) is not None]
            cells.append(mean_text([factor * value for value in values], digits))
        lines.append(f"| {cell.folder} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _figures(
    groups: dict[Cell, list[Run]], predictions: Predictions | None, scored: Score | None
) -> dict[str, Figure]:
    """Figures by the name of their file; those that the runs have nothing for are left out."""
    figures: dict[str, Figure] = {}
    foretold = {one.cell: one.keys for one in predictions.foretold} if predictions is not None else {}
    panels = _panels(groups, foretold)
    if panels:
        figures["aging.png"] = aging(panels)
    rows = [
        NegativesRow(
            kind=_kind(cell),
            negatives=mean([run.late("negatives") or 1 for run in group]),
            effective=mean([run.late("effective") or 1 for run in group]),
            held=mean([run.measured.held_bytes or 0 for run in group]),
            kept=mean([run.measured.dictionary_bytes or 0 for run in group]),
        )
        for cell, group in groups.items()
        if group[0].measured.looks and cell.learning_rate == next(iter(groups)).learning_rate
    ]
    if len({row.negatives for row in rows}) > 1:
        figures["negatives.png"] = negatives_and_memory(rows)
    if predictions is None or scored is None:
        return figures
    points: dict[str, list[tuple[float, float]]] = {}
    for cell, _, said, found in pairs_of(predictions, groups):
        points.setdefault(f"{cell.momentum:g}", []).append((said, found))
    figures["foretold.png"] = foretold_against_measured(points, scored.r2)
    grid = {
        (cell.momentum or 0.0, cell.queue_size or 0): [
            run.measured.knn for run in group if run.measured.knn is not None
        ]
        for cell, group in groups.items()
        if cell.method == MOCO and rivals(cell, predictions.choice)
    }
    if scored.best is not None and all(grid.values()):
        places = [(cell.momentum or 0.0, cell.queue_size or 0) for cell in (predictions.choice, scored.best)]
        figures["grid.png"] = accuracy_grid(grid, choice=places[0], best=places[1])
    return figures


def _panels(
    groups: dict[Cell, list[Run]], foretold: Mapping[Cell, Mapping[int, float]]
) -> dict[str, list[AgingCurve]]:
    """Curves of aging: of the queue by momentum and by learning rate, and of the other mechanisms."""
    start = next(iter(groups))
    queues = [cell for cell in groups if cell.method == MOCO]
    panels: dict[str, list[AgingCurve]] = {}
    if queues:
        sizes = sorted({cell.queue_size or 0 for cell in queues})
        first = next(cell for cell in queues if cell.queue_size == sizes[len(sizes) // 2])
        by_momentum = [cell for cell in queues if _equal_but("momentum", cell, first)]
        middle = by_momentum[len(by_momentum) // 2]
        by_rate = [cell for cell in queues if _equal_but("learning_rate", cell, middle)]
        curves = [_curve(f"m = {cell.momentum:g}", groups[cell], foretold.get(cell)) for cell in by_momentum]
        panels[f"queue of {first.queue_size:,} keys, by momentum"] = curves
        if len(by_rate) > 1:
            by_rate.sort(key=lambda cell: cell.learning_rate)
            curves = [_curve(f"lr {cell.learning_rate:g}", groups[cell], foretold.get(cell)) for cell in by_rate]
            panels[f"queue, m = {middle.momentum:g}, by learning rate"] = curves
    banks = [cell for cell in groups if cell.method == BANK]
    banks = sorted(
        (cell for cell in banks if _equal_but("num_images", cell, banks[0])), key=lambda cell: cell.num_images
    )
    if banks:
        panels["memory bank, by images"] = [_curve(f"{cell.num_images:,}", groups[cell]) for cell in banks]
        averaged = _curve(f"{banks[0].num_images:,}, averaged values", groups[banks[0]], name="entries")
        panels["memory bank, by images"].append(averaged)
    inside = [
        cell for cell in groups if cell.method in (END_TO_END, TWO_NETWORKS) and cell.batch_size == start.batch_size
    ]
    if inside:
        names = {END_TO_END: "one network", TWO_NETWORKS: "two networks"}
        panels["end to end: keys are never stored"] = [_curve(names[cell.method], groups[cell]) for cell in inside]
    return {title: [curve for curve in curves if curve.measured] for title, curves in panels.items() if curves}


def _curve(
    title: str, runs: Sequence[Run], foretold: Mapping[int, float] | None = None, name: str = "keys"
) -> AgingCurve:
    curves = [run.curve(name) for run in runs]
    ages = [age for age in curves[0] if all(age in curve for curve in curves)]
    return AgingCurve(
        title=title,
        measured={age: sum(curve[age] for curve in curves) / len(curves) for age in ages},
        foretold=foretold or {},
    )


def _equal_but(axis: str, cell: Cell, other: Cell) -> bool:
    return replace(cell, **{axis: getattr(other, axis)}) == other


def _kind(cell: Cell) -> str:
    """Mechanism in words, for a legend."""
    names = {END_TO_END: "end to end", TWO_NETWORKS: "end to end, two networks", BANK: "memory bank"}
    return names.get(cell.method) or f"queue, m = {cell.momentum:g}"
