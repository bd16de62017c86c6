"""Compare the data pipeline of two checkouts: prints a table, and writes JSON to `--output`."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from machine import describe_machine, read_settings
from tqdm.auto import tqdm

from hf_ssl.commands.errors import errors_for_users
from hf_ssl.errors import UserError
from hf_ssl.settings import check_least, checked

DESCRIPTION = """Compare the data pipeline of two checkouts of this repository, on several data sets.

Each checkout runs its own benchmarks/data.py, parts reader and stream, in turns, so that what else the machine does
meets both alike. The numbers are medians over the rounds. Set OMP_NUM_THREADS=1 where workers share few cores."""

EXAMPLES = """examples:
  git worktree add ../before main
  python scripts/benchmarks/two_checkouts.py --before ../before --datasets data/cifar10 data/photos photos.tar \\
    --image_sizes 32 224 224"""


@checked
class ComparisonSettings:
    """What is compared.

    Args:
        before: Folder of the one checkout.
        after: Folder of the other.
        datasets: Data sets to read, each as data.py takes it.
        image_sizes: Height and width of the views, in pixels: one for all data sets, or one for each.
        batch_size: Images in a batch.
        num_workers: The stream is measured with 0, 1, 2, 4, ... up to so many workers.
        seconds: Time for each measurement, in seconds.
        rounds: Turns of each checkout.
        output: JSON file to write.
    """

    before: str = ""
    after: str = "."
    datasets: list[str] = field(default_factory=list)
    image_sizes: list[int] = field(default_factory=lambda: [32])
    batch_size: int = 128
    num_workers: int = 2
    seconds: float = 3.0
    rounds: int = 3
    output: str | None = None

    def validate_comparison(self) -> None:
        """Check names and ranges."""
        check_least(self, batch_size=1, num_workers=0, seconds=0, rounds=1)
        for name in ("before", "after"):
            if not _script(getattr(self, name)).is_file():
                raise UserError(f"`{name}` must be the folder of a checkout, got `{getattr(self, name)}`.")
        if not self.datasets:
            raise UserError("`datasets` must name at least one data set.")
        if len(self.image_sizes) not in (1, len(self.datasets)):
            raise UserError(
                f"`image_sizes` must hold one number or one for each of `datasets`, got {len(self.image_sizes)} for "
                f"{len(self.datasets)}."
            )


def _script(checkout: str) -> Path:
    return Path(checkout).expanduser().resolve() / "scripts" / "benchmarks" / "data.py"


def main(arguments: list[str]) -> int:
    """Parse, measure in turns, print and write; returns the exit code."""
    (settings,) = read_settings(arguments, {"comparison": ComparisonSettings}, "two_checkouts.py", _TEXT)
    sizes = settings.image_sizes * (len(settings.datasets) if len(settings.image_sizes) == 1 else 1)
    # (data set, part, what, unit) -> checkout -> values
    found: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: {"before": [], "after": []})
    turns = [(number, *of) for number in range(settings.rounds) for of in zip(settings.datasets, sizes, strict=True)]
    for number, dataset, size in tqdm(turns, unit="turn"):
        for name in ("before", "after") if number % 2 == 0 else ("after", "before"):
            for row in _rows(_script(getattr(settings, name)), dataset, size, settings):
                found[dataset, row["part"], row["what"], row["unit"]][name].append(row["value"])
    medians = [
        (key, *(statistics.median(values[name]) for name in ("before", "after"))) for key, values in found.items()
    ]
    width = max(len(dataset) for dataset in settings.datasets)
    for (dataset, part, what, unit), before, after in medians:
        print(f"{dataset:{width}} {part:7} {what:32} {before:12,.1f} {after:12,.1f} {unit:10} x {after / before:.3f}")
    if settings.output is not None:
        names = ("dataset", "part", "what", "unit")
        results = [{**dict(zip(names, key, strict=True)), **values} for key, values in found.items()]
        about = {"machine": describe_machine(), "settings": asdict(settings)}
        Path(settings.output).write_text(json.dumps({**about, "results": results}, indent=2) + "\n")
    return 0


_TEXT = f"{DESCRIPTION}\n\n{EXAMPLES}"


def _rows(script: Path, dataset: str, image_size: int, settings: ComparisonSettings) -> list[dict[str, Any]]:
    """What one checkout measures on one data set."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "data.json"
        flags = {
            "dataset": dataset,
            "image_size": image_size,
            "batch_size": settings.batch_size,
            "num_workers": settings.num_workers,
            "seconds": settings.seconds,
            "output": output,
        }
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        child = subprocess.run(
            [sys.executable, str(script), "--only", "reader", "stream", *words],
            env={**os.environ, "PYTHONPATH": str(script.parents[2])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if child.returncode:
            lines = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
            raise UserError(f"`{script}` failed on `{dataset}`: {lines[-1]}")
        return json.loads(output.read_text())["results"]


if __name__ == "__main__":
    with errors_for_users():
        sys.exit(main(sys.argv[1:]))
