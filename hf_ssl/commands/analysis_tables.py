"""What `hf-ssl analyze` prints: a block of numbers for each part of an encoder, and a row for each recipe of views."""

from typing import Any

from hf_ssl.evaluation.analysis import FEATURE_NUMBERS, PREDICTOR_NUMBERS
from hf_ssl.evaluation.augmentation import AUGMENTATION_NUMBERS

_PARTS = {"representation": FEATURE_NUMBERS, "projection": FEATURE_NUMBERS, "predictor": PREDICTOR_NUMBERS}


def table_of_parts(found: dict[str, dict[str, Any]]) -> str:
    """A block for each part: a row for each number, a column for each encoder, and what the number says."""
    blocks = []
    for part, meanings in _PARTS.items():
        columns = {title: each[part]["numbers"] for title, each in found.items() if part in each}
        if not columns:
            continue
        first = max(len(part), *map(len, meanings))
        widths = {title: max(8, len(title)) for title in columns}
        head = part.ljust(first) + "".join(f"  {title:>{widths[title]}}" for title in columns)
        lines = [head, "-" * len(head)]
        for number, meaning in meanings.items():
            if not any(number in numbers for numbers in columns.values()):
                continue
            cells = "".join(
                f"  {f'{numbers[number]:.4g}' if number in numbers else '':>{widths[title]}}"
                for title, numbers in columns.items()
            )
            lines.append(f"{number.ljust(first)}{cells}  {meaning}")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def table_of_recipes(found: dict[str, dict[str, Any]]) -> str:
    """A row for each encoder and recipe, a column for each number, and below what the numbers say."""
    names = [
        name
        for name in AUGMENTATION_NUMBERS
        if any(name in one["numbers"] for each in found.values() for one in each["augmentation"].values())
    ]
    rows = [["augmentation", "recipe", "directions", *names]]
    for title, each in found.items():
        for recipe, one in each["augmentation"].items():
            numbers = one["numbers"]
            cells = [f"{numbers[name]:.4g}" if name in numbers else "" for name in ("directions", *names)]
            rows.append([title, recipe, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    longest = max(map(len, names))
    return "\n".join([*lines, *(f"{name.ljust(longest)}  {AUGMENTATION_NUMBERS[name]}" for name in names), ""])
