"""A published table beside the numbers of the runs that were made again, as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_ssl.evaluation.protocols import PROTOCOLS, title_of
from hf_ssl.methods import METHODS
from hf_ssl.studies.many_runs import mean_text
from hf_ssl.studies.published import Row, Table


@dataclass(frozen=True)
class FinishedRun:
    """What one run came to.

    Args:
        name: Of the run in its table.
        seed: Its seed.
        dataset: Name of the data set.
        values: Measurement -> value, 1 at best.
        epochs: Passes over the images; None if their number is unknown.
        steps: Optimizer steps.
        seconds: Time of training.
        changed: Settings that were given beside the table's, by name.
    """

    name: str
    seed: int
    dataset: str
    values: dict[str, float]
    epochs: float | None
    steps: int
    seconds: float
    changed: dict[str, Any]


def table_text(table: Table, names: Sequence[str], runs: Sequence[FinishedRun]) -> str:
    """Published numbers beside those of finished runs, in Markdown; cells that were not run say so.

    Args:
        table: The table.
        names: Its rows that are shown.
        runs: What is done.
    """
    lines = [f"# {table.title}", "", "| run | recipe | measured | published (%) | here (%) | trained here |"]
    lines.append("|---|---|---|---|---|---|")
    for name in names:
        row = table.rows[name]
        own = [one for one in runs if one.name == name]
        for place, (measurement, number) in enumerate(row.published.items()):
            values = [100 * one.values[measurement] for one in own]
            published = _with_sign(number) + ("" if row.verified else " (UNVERIFIED)")
            cells = (name, _recipe_text(row)) if place == 0 else ("", "")
            here = mean_text(values, 2) if own else "not run"
            cells = (*cells, title_of(measurement).rstrip("*"), published, here, _trained_text(own))
            lines.append(f"| {' | '.join(cells)} |")
    together: dict[str, list[str]] = {}
    for name in names:
        together.setdefault(table.rows[name].source, []).append(name)
    lines.append("")
    for source, of in together.items():
        which = "" if len(together) == 1 else f": {', '.join(of)}"
        lines.append(f"- Published in {_with_sign(source)}{which}.")
    learnt = f", learnt from `{table.probe_split}`" if table.probe_split else ""
    lines.append(
        f"- {table.data}, trained on `{table.split}`; {PROTOCOLS[table.protocol]} on `{table.test_split}`{learnt}."
    )
    return "\n".join([*lines, *(f"- {note}" for note in table.notes)]) + "\n"


def _with_sign(text: str) -> str:
    return text.replace("+-", "\N{PLUS-MINUS SIGN}")


def _recipe_text(row: Row) -> str:
    changes = {"num_epochs": METHODS[row.method].recipes[row.recipe]["num_epochs"], **row.changes}
    epochs = changes.pop("num_epochs")
    others = "".join(f", {name} {value}" for name, value in changes.items())
    return f"{row.method}, {row.recipe}, {epochs:g} epochs{others}"


def _trained_text(runs: Sequence[FinishedRun]) -> str:
    if not runs:
        return ""
    one = runs[0]
    length = f"{one.steps:,} steps" if one.epochs is None else f"{one.epochs:.3g} epochs"
    seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    changed = "".join(f", {name} {value}" for name, value in one.changed.items())
    return f"{length} of {one.dataset}, {seeds}{changed}"
