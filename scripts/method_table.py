"""Write the README's table of methods from the methods themselves.

python scripts/method_table.py            # after adding a method, or changing the first sentence of its class
python scripts/method_table.py --check    # exit code 1 if the README is out of date; changes nothing
"""

import argparse
import sys
from pathlib import Path

from hf_ssl.cli import errors_for_users
from hf_ssl.methods import METHODS

README = Path(__file__).parents[1] / "README.md"
HEADER = "| method | idea | paper | year | file |\n|---|---|---|---|---|\n"


def method_table() -> str:
    """The table in Markdown: one row for each entry of `METHODS`, in its order."""
    rows = []
    for name, method in METHODS.items():
        idea = (method.__doc__ or "").strip().split("\n\n")[0]
        paper = f"[{method.paper.arxiv}]({method.paper.url})"
        file = f"[{name}.py](hf_ssl/methods/{name}.py)"
        rows.append(f"| `{name}` | {' '.join(idea.split())} | {paper} | {method.paper.year} | {file} |\n")
    return HEADER + "".join(rows)


def with_table(readme: str) -> str:
    """A README with its table replaced.

    Raises:
        ValueError: If there is no table to replace.
    """
    before, header, rest = readme.partition(HEADER)
    if not header:
        raise ValueError(f"`{README.name}` has no table of methods, which starts with `{HEADER.splitlines()[0]}`.")
    lines = rest.splitlines(keepends=True)
    rows = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return before + method_table() + "".join(lines[rows:])


def main(arguments: list[str]) -> int:
    """Write or check the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", action="store_true", help="only say whether the table is out of date")
    options = parser.parse_args(arguments)
    readme = README.read_text(encoding="utf-8")
    wanted = with_table(readme)
    if readme == wanted:
        print("The table is up to date.")
        return 0
    if options.check:
        print("The README's table of methods is out of date. Run `python scripts/method_table.py`.", file=sys.stderr)
        return 1
    README.write_text(wanted, encoding="utf-8")
    print(f"Wrote {len(METHODS)} methods to {README.name}.")
    return 0


if __name__ == "__main__":
    with errors_for_users():
        sys.exit(main(sys.argv[1:]))
