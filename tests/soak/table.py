"""The results of a soak as a table for the guide: `python tests/soak/table.py results.json`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAD = "| method | data | processes, from start to start | kills | signals | resumes | differences |"


def table(cases: Sequence[dict[str, Any]]) -> str:
    """One row for each method, and one for all.

    Args:
        cases: `cases` of the results.
    """
    rows = [HEAD, "|---|---|---|---|---|---|---|"]
    for method in dict.fromkeys(sorted(case["method"] for case in cases)):
        own = [case for case in cases if case["method"] == method]
        data = ", ".join(dict.fromkeys(case["source"] for case in own))
        starts = dict.fromkeys(_starts(case) for case in own)
        rows.append(f"| `{method}` | {data} | {', '.join(starts)} | {_counts(own)} |")
    return "\n".join([*rows, f"| all | | | {_counts(cases)} |"])


def _starts(case: dict[str, Any]) -> str:
    numbers = " to ".join(map(str, case["processes"]))
    return numbers if case["started_by"] == "fork" else f"{numbers} by `{case['started_by']}`"


def _counts(cases: Sequence[dict[str, Any]]) -> str:
    sums = [sum(case[name] for case in cases) for name in ("kills", "signals", "resumes")]
    return " | ".join(map(str, [*sums, sum(len(case["differences"]) for case in cases)]))


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())["cases"]))  # noqa: T201
