"""Measure everything that the guide on speed shows, part by part, into one file that its tables are made of.

    python scripts/benchmarks/speed.py data/cifar10 data/photos
    python scripts/benchmarks/speed.py data/cifar10 data/photos --only step whole --output speed.json

The first folder has small images, the second photos of usual size. Each part is one run of a benchmark of this folder,
in which hf_ssl, lightly and torchvision have their turns. A part takes the place of the same part in the file, the
others stay. `python scripts/model_cards.py` makes the tables anew. Let nothing else run beside it; it takes about half
an hour on two cores and needs `pip install 'hf_ssl[benchmarks]'`.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe_machine

from hf_ssl.commands.errors import errors_for_users
from hf_ssl.errors import UserError, near_name
from hf_ssl.training.files import write_json

FOLDER = Path(__file__).parent
OUTPUT = FOLDER.parents[1] / "model_cards" / "results" / "speed.json"
_VIEWS = ["--only", "decode", "views", "--view_recipe", "moco_v2", "--compare", "lightly"]
_BF16 = ["--precision", "bf16"]
# Name -> benchmark and its flags; SMALL and PHOTOS stand for the two folders.
PARTS: dict[str, list[str]] = {
    "views": ["data.py", "--dataset", "SMALL", *_VIEWS],
    "views_224": ["data.py", "--dataset", "PHOTOS", "--image_size", "224", *_VIEWS],
    "reader": ["data.py", "--dataset", "SMALL", "--only", "reader", "memory", "start", "resume"],
    "step": ["step.py", "--batch_size", "128", *_BF16, "--rounds", "5", "--warmup", "1", "--compare", "lightly"],
    "step_224": ["step.py", "--recipe", "paper-imagenet", "--encoder", "resnet50", "--image_size", "224", *_BF16]
    + ["--methods", "moco", "byol", "simsiam", "directpred", "--batch_size", "32", "--rounds", "3", "--warmup", "1"],
    "queue": ["step.py", "--part", "queue", "--queue_sizes", "4096", "16384", "--dims", "128", "--batch_sizes", "512"]
    + ["--compare", "lightly"],
    "processes": ["processes.py", "--encoder", "resnet18", "--image_size", "32", "--batch_size", "64"]
    + ["--num_processes", "2", "--methods", "moco", "byol", "end_to_end"],
    "whole": ["end_to_end.py", "--dataset", "SMALL", "--batch_size", "128", "--num_workers", "1"]
    + ["--mixed_precision", "bf16", "--num_steps", "30", "--compare", "lightly"],
}


def main(arguments: Sequence[str]) -> int:
    """Measure the parts that were asked for; returns the exit code."""
    options = parse(arguments)
    for name in options.only or PARTS:
        print(f"{name}:", flush=True)
        kept = _kept(options.output)
        kept["parts"][name] = measure(name, options.small, options.photos)
        write_json(options.output, kept)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; wrong values are a `UserError`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", type=Path, help="folder of small images, such as CIFAR-10")
    parser.add_argument("photos", type=Path, help="folder of photos of some hundred pixels")
    parser.add_argument("--only", nargs="+", metavar="PART", default=[], help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="[model_cards/results/speed.json]")
    options = parser.parse_args(arguments)
    for name in options.only:
        if name not in PARTS:
            raise UserError(f"Unknown part `{name}`. Known: {', '.join(PARTS)}.{near_name(name, list(PARTS))}")
    for folder in (options.small, options.photos):
        if not folder.exists():
            raise UserError(f"`{folder}` does not exist. Give the folder of small images and that of photos.")
    if not options.output.resolve().parent.is_dir():
        raise UserError(f"`--output`: the folder of `{options.output}` does not exist. Create it first.")
    if importlib.util.find_spec("lightly") is None and any("lightly" in PARTS[name] for name in options.only or PARTS):
        raise UserError("The comparison needs lightly: `pip install 'hf_ssl[benchmarks]'`.")
    _kept(options.output)
    return options


def _kept(path: Path) -> dict[str, Any]:
    """What the file holds so far."""
    if not path.exists():
        return {"study": "speed", "parts": {}}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"`--output`: `{path}` is not JSON: {error}. Name another file.") from None
    if not isinstance(kept, dict) or kept.get("study") != "speed" or not isinstance(kept.get("parts"), dict):
        raise UserError(f"`--output`: `{path}` does not come from this benchmark. Name another file.")
    return kept


def measure(name: str, small: Path, photos: Path) -> dict[str, Any]:
    """Rows of a part, with the command that made them and the machine.

    Raises:
        SystemExit: If the benchmark failed; it has said why.
    """
    script, *flags = PARTS[name]
    shown = " ".join(["python", f"scripts/benchmarks/{script}", *flags])
    folders = {"SMALL": small, "PHOTOS": photos}
    for word, folder in folders.items():
        shown = shown.replace(word, folder.resolve().name)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "part.json"
        command = [sys.executable, str(FOLDER / script), *(str(folders.get(flag, flag)) for flag in flags)]
        code = subprocess.run([*command, "--output", str(output)]).returncode
        if code:
            raise SystemExit(code)
        result = json.loads(output.read_text(encoding="utf-8"))
    # Not the settings: they have whole paths, and the command says what was chosen.
    return {"command": shown, "machine": describe_machine(), "rows": result.get("rows") or result["results"]}


if __name__ == "__main__":
    with errors_for_users():
        sys.exit(main(sys.argv[1:]))
