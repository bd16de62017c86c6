"""Tables of the guide on speed, made of what `speed.py` measured. `scripts/model_cards.py` writes them."""

from collections.abc import Callable, Mapping
from typing import Any

Parts = Mapping[str, Mapping[str, Any]]  # of a results file: part -> command, machine and rows


def views(parts: Parts) -> str:
    """Two views of a JPEG, and decoding alone, in images a second of one core."""
    columns = [_values(parts["views"]), _values(parts["views_224"])]
    lines = ["| two views from JPEG bytes, one core (img/s) | 32 px | 500 x 375 to 224 px |", "|---|---|---|"]
    names = sorted((name for part, name in columns[0] if part == "views"), key=lambda n: -columns[0]["views", n])
    for name in names:
        cells = [f"{column['views', name]:,.0f}" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cells = [
        " / ".join(f"{column['decode', name]:,.0f}" for name in ("hf_ssl", "OpenCV", "Pillow")) for column in columns
    ]
    lines.append(f"| decoding alone: hf_ssl / OpenCV / Pillow | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_commands(parts, "views", "views_224")])


def reader(parts: Parts) -> str:
    """What the reader does, line by line as the benchmark names it."""
    lines = ["| one process that reads | |", "|---|---|"]
    for row in _rows(parts["reader"]):
        number = f"{row['value']:,.0f}" if row["value"] >= 100 else f"{row['value']:.2f}"
        lines.append(f"| {row['part']}: {row['what']} | {number} {row['unit']} |")
    return "\n".join([*lines, "", *_commands(parts, "reader")])


def steps(parts: Parts) -> str:
    """Training steps as multiples of the passes that the method needs."""
    lines = ["| step | 32 px: hf_ssl | 32 px: lightly | 224 px: hf_ssl | 224 px: lightly |", "|---|---|---|---|---|"]
    small, large = ({row["method"]: row for row in _rows(parts[name])} for name in ("step", "step_224"))
    for method in small:
        cells = [
            f"{row[key]:.2f}" if (row := column.get(method)) is not None and key in row else ""
            for column in (small, large)
            for key in ("x necessary", "lightly x")
        ]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_commands(parts, "step", "step_224")])


def shared_work(parts: Parts) -> str:
    """The loss against a queue, several processes, and whole training."""
    lines = ["| what | as a multiple of | hf_ssl | lightly |", "|---|---|---|---|"]
    for row in _rows(parts["queue"]):
        what = f"loss against {row['queue']:,} keys, batch {row['batch']}"
        lines.append(f"| {what} | its two matrix products | {row['queue x']:.2f} | {row['lightly x']:.2f} |")
    for row in _rows(parts["processes"]):
        what = f"`{row['method']}`, step of {row['processes']} processes"
        lines.append(f"| {what} | the same step of each alone | {row['x alone']:.2f} | |")
    whole = {row["what"]: row for row in _rows(parts["whole"])}
    times = (1 / whole[name]["of the network"] for name in ("hf_ssl", "lightly"))
    lines.append(f"| whole training of `moco` | the network alone | {' | '.join(f'{one:.2f}' for one in times)} |")
    return "\n".join([*lines, "", *_commands(parts, "queue", "processes", "whole")])


def in_short(parts: Parts) -> str:
    """Two sentences for the README."""
    photos = _values(parts["views_224"])
    ours = photos["views", "hf_ssl"]
    others = [ours / photos["views", name] for name in ("torchvision v1, as in solo-learn", "lightly")]
    most = max(row["x necessary"] for row in _rows(parts["step"]))
    return (
        f"Two views of a 224 px photo take a CPU core {1000 / ours:.1f} ms, where torchvision takes {others[0]:.1f} "
        f"times and lightly {others[1]:.1f} times as long. A training step takes at most {most:.2f} times as long as "
        "the encoder passes that its method needs."
    )


TABLES: dict[str, Callable[[Parts], str]] = {
    "views": views,
    "reader": reader,
    "steps": steps,
    "shared": shared_work,
    "fast": in_short,
}


def _rows(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return part["rows"]


def _values(part: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    return {(row["part"], row["what"]): row["value"] for row in _rows(part)}


def _commands(parts: Parts, *names: str) -> list[str]:
    """The machine of the parts, which may differ, and their commands."""
    machines = dict.fromkeys(_machine(parts[name]["machine"]) for name in names)
    return [
        *machines,
        "",
        "<!-- not run: a measurement -->",
        "```bash",
        *(parts[name]["command"] for name in names),
        "```",
    ]


def _machine(machine: Mapping[str, Any]) -> str:
    versions = machine["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchvision", "lightly") if name in versions)
    return f"{machine['cores']} cores ({machine['cpu']}), {named}."
