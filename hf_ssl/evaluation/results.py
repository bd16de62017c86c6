"""Results as a table to read, and as the file that lies beside an encoder and that its model card shows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hf_ssl.errors import UserError
from hf_ssl.evaluation.comparison import BASELINES, Comparison
from hf_ssl.evaluation.protocols import BEST_EPOCH, metric_of, title_of
from hf_ssl.evaluation.references import json_object
from hf_ssl.figures.accuracy import accuracy_bars
from hf_ssl.private import public_path
from hf_ssl.settings import of_json
from hf_ssl.tokens import record_without_tokens
from hf_ssl.writing import alone_in, write_whole

Table = dict[str, dict[str, dict[str, float]]]
"""Measurement -> name of the encoder -> label column -> value, 1 at best."""

_CHANCE = "most frequent class"
_IDENTITY = ("dataset_config", "split", "label", "protocol")


def table_of(comparison: Comparison) -> Table:
    """The numbers of a comparison as a table."""
    table: Table = {}
    for title, measurements in comparison.measurements.items():
        for one in measurements:
            table.setdefault(one.protocol, {}).setdefault(title, {})[one.label] = one.value
    return table


def entries_of(comparison: Comparison, about: Mapping[str, Any], train_split: str) -> list[dict[str, Any]]:
    """What goes into `results.json`: the encoder's numbers, beside each what its baselines reached.

    Args:
        comparison: The numbers.
        about: JSON-able values that all entries begin with: `dataset`, `dataset_config`, `split` and `command`.
        train_split: The split that labels were learnt from.
    """
    *others, _ = comparison.measurements
    names = {title: name for name, title in BASELINES.items()}
    entries = []
    for place, one in enumerate(comparison.own):
        is_accuracy = metric_of(one.protocol) == "accuracy"
        baselines = {"most_frequent_class": comparison.chance[one.label]} if is_accuracy else {}
        baselines |= {names[title]: comparison.measurements[title][place].value for title in others}
        entries.append(
            {
                **about,
                "train_split": train_split if "train_images" in one.settings else None,
                "label": one.label,
                "protocol": one.protocol,
                "metric": metric_of(one.protocol),
                "value": one.value,
                "settings": one.settings,
                "baselines": baselines,
                "num_images": one.num_images,
            }
        )
    return entries


def draw_table(table: Table, chance: Mapping[str, float], title: str) -> Figure:
    """The accuracies of a table as bars; other scores and epochs chosen on the test split are left out."""
    drawn = [protocol for protocol in table if metric_of(protocol) == "accuracy" and not protocol.endswith(BEST_EPOCH)]
    titles = {protocol: title_of(protocol) for protocol in drawn}
    if len(chance) > 1:
        panels = {titles[protocol]: table[protocol] for protocol in drawn}
        return accuracy_bars(panels, dict.fromkeys(panels, chance), title)
    (label,) = chance
    encoders = list(next(iter(table.values())))
    bars = {name: {titles[protocol]: table[protocol][name][label] for protocol in drawn} for name in encoders}
    return accuracy_bars({label: bars}, {label: dict.fromkeys(titles.values(), chance[label])}, title)


def update_results(path: Path, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add entries to a `results.json`, each in the place of an older one of the same measurement on no more images.

    A quick look at a few images must not take the place of the measurement on all of them. The file is replaced as a
    whole, so that a process killed in between leaves the old or the new one. Processes that add to it at the same time
    wait for each other.

    Args:
        path: The file; made, with its folder, if missing.
        entries: JSON-able, with the keys `dataset`, `split`, `label` and `protocol`, which name a measurement, and
            perhaps `dataset_config`.

    Returns:
        The older entries of more images that stay, so that the new ones of the same measurements are not in the file.

    Raises:
        UserError: If the file exists and holds no results.
    """
    stay = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(path.parent):
        results = results_in(path)
        for entry in record_without_tokens(list(entries)):  # a command may name an address with a password
            places = [place for place, old in enumerate(results) if _is_of(old, entry)]
            if not places:
                results.append(dict(entry))
            elif _is_of_fewer(entry, results[places[0]]):
                stay.append(results[places[0]])
            else:
                results[places[0]] = dict(entry)
        write_whole(path, json.dumps({"results": results}, indent=2) + "\n")
    return stay


def heading_of(comparison: Comparison, dataset: str, split: str, train_split: str) -> str:
    """What stands above the table: what was scored, on how many images."""
    own = comparison.own
    scored = f"{own[0].num_images:,} images of split {split}"
    learnt = [one.settings["train_images"] for one in own if "train_images" in one.settings]
    if not learnt:
        return f"{dataset}: clusters (%) of {scored}"
    what = "accuracy" if all(metric_of(one.protocol) == "accuracy" for one in own) else "scores"
    return f"{dataset}: {what} (%) on {scored}, from {learnt[0]:,} labelled images of split {train_split}"


def table_text(table: Table, chance: Mapping[str, float]) -> str:
    """The table in percent: a column for each label or, where there is only one, for each measurement.

    Args:
        table: Values; every measurement has the same encoders and labels.
        chance: Label column -> accuracy of always answering the most frequent class.
    """
    titles = {protocol: title_of(protocol) for protocol in table}
    encoders = list(next(iter(table.values())))
    if len(chance) == 1:
        (label,) = chance
        rows = {_CHANCE: {titles[protocol]: chance[label] for protocol in table if metric_of(protocol) == "accuracy"}}
        rows |= {name: {titles[protocol]: table[protocol][name][label] for protocol in table} for name in encoders}
        blocks = [_block(label, rows)]
    else:
        blocks = [
            _block(titles[protocol], {_CHANCE: chance if metric_of(protocol) == "accuracy" else {}, **table[protocol]})
            for protocol in table
        ]
    if any(protocol.endswith(BEST_EPOCH) for protocol in table):
        blocks.append("* Epoch chosen on the test split: too high, only for comparison with published numbers.\n")
    return "\n".join(blocks)


def _block(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(list(rows.values())[-1])
    first = max(len(title), *(len(name) for name in rows))
    lines = [title.ljust(first) + "".join(f"  {column:>6}" for column in columns)]
    lines.append("-" * len(lines[0]))
    for name, values in rows.items():
        cells = {column: f"{100 * values[column]:.1f}" if column in values else "" for column in columns}
        lines.append(name.ljust(first) + "".join(f"  {cells[column]:>{max(6, len(column))}}" for column in columns))
    return "\n".join(lines) + "\n"


def results_in(path: Path) -> list[dict[str, Any]]:
    """The entries of a `results.json`; none if there is no such file.

    Raises:
        UserError: If it holds something else, or an entry lacks what every entry has.
    """
    if not path.is_file():
        return []
    try:
        entries = json_object(path).get("results")
        if not isinstance(entries, list):
            raise UserError("it must have a list `results`")
        for number, entry in enumerate(entries):
            of_json(_Entry, entry, f"results[{number}].")
    except UserError as error:
        raise UserError(
            f"`{path}` does not hold results: {str(error).rstrip('.')}. Move it away and measure again."
        ) from error
    return entries


@dataclass(frozen=True)
class _Entry:
    """What stands in an entry of a `results.json`, for the check of its types."""

    dataset: str
    split: str
    protocol: str
    metric: str
    value: float
    label: str | None
    num_images: int | None
    dataset_kind: str | None = None
    dataset_config: str | None = None
    settings: dict[str, Any] | None = None
    baselines: dict[str, float] | None = None
    command: str | None = None


def _is_of_fewer(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether an entry was measured on fewer images than an older one, or learnt from fewer."""
    for name in ("num_images", "train_images"):
        now, then = (one.get(name) or (one.get("settings") or {}).get(name) or 0 for one in (new, old))
        if now and now < then:
            return True
    return False


def _is_of(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether an entry is an older one of the same measurement, perhaps by a version that told whole paths."""
    if any(old.get(name) != new.get(name) for name in _IDENTITY):
        return False
    local = new.get("dataset_kind") == "local"
    return old["dataset"] == new["dataset"] or (local and public_path(old["dataset"]) == new["dataset"])
