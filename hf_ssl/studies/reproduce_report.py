"""A published table beside the numbers of the runs that were made again, as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_ssl.evaluation.protocols import AUGMENTED, PROTOCOLS, title_of
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
        changed: Settings that were given beside the table's, and how it was computed if not in one process in float32,
            by name.
    """

    name: str
    seed: int
    dataset: str
    values: dict[str, float]
    epochs: float | None
    steps: int
    seconds: float
    changed: dict[str, Any]


def table_text(
    table: Table,
    names: Sequence[str],
    runs: Sequence[FinishedRun],
    begun: Mapping[str, Sequence[str]],
    given: Mapping[str, Any],
) -> str:
    """Published numbers beside those of finished runs, in Markdown; cells that were not run say so.

    Args:
        table: The table.
        names: Its rows that are shown.
        runs: What is done.
        begun: How far other runs are, in words, by name of the row.
        given: Settings that the runs share, by name, as the folder's `settings.json` has them.
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
            here = "; ".join([*([mean_text(values, 2)] if own else []), *begun.get(name, ())]) or "not run"
            cells = (*cells, title_of(measurement).rstrip("*"), published, here, _trained_text(own))
            lines.append(f"| {' | '.join(cells)} |")
    together: dict[str, list[str]] = {}
    for name in names:
        together.setdefault(table.rows[name].source, []).append(name)
    lines.append("")
    for source, of in together.items():
        which = "" if len(together) == 1 else f": {', '.join(of)}"
        lines.append(f"- Published in {_with_sign(source)}{which}.")
    lines.append(_data_text(table, given))
    return "\n".join([*lines, *(f"- {note}" for note in table.notes)]) + "\n"


def _with_sign(text: str) -> str:
    return text.replace("+-", "\N{PLUS-MINUS SIGN}")


def _recipe_text(row: Row) -> str:
    changes = {"num_epochs": METHODS[row.method].recipes[row.recipe]["num_epochs"], **row.changes}
    epochs = changes.pop("num_epochs")
    others = "".join(f", {name} {value}" for name, value in changes.items())
    return f"{row.method}, {row.recipe}, {epochs:g} epochs{others}"


def _data_text(table: Table, given: Mapping[str, Any]) -> str:
    """On which images the runs are trained and measured, which need not be the publication's."""
    split, probe_split, test_split = (
        given.get(name) or getattr(table, name) for name in ("split", "probe_split", "test_split")
    )
    images = f"{Path(given['dataset']).name} (the publication: {table.data})" if given.get("dataset") else table.data
    learnt = f", learnt from `{probe_split}`" if table.probe_split else ""
    if table.protocol in AUGMENTED:
        passes = given.get("augmented_passes")
        learnt += f", {passes} passes of random crops" if passes else ", images as they are"
    return f"- Trained on `{split}` of {images}; {PROTOCOLS[table.protocol]} on `{test_split}`{learnt}."


def _trained_text(runs: Sequence[FinishedRun]) -> str:
    """What the numbers are of; runs that were trained in different ways are told apart by their seeds."""
    seeds: dict[str, list[int]] = {}
    for one in runs:
        length = f"{one.steps:,} steps" if one.epochs is None else f"{one.epochs:.3g} epochs"
        changed = "".join(f", {name} {value}" for name, value in one.changed.items())
        seeds.setdefault(f"{length} of {one.dataset}, {{}}{changed}", []).append(one.seed)
    if len(seeds) == 1:
        (text,) = seeds
        return text.replace("{}", "1 seed" if len(runs) == 1 else f"{len(runs)} seeds", 1)
    return "; ".join(text.replace("{}", f"seed {', '.join(map(str, of))}", 1) for text, of in seeds.items())
