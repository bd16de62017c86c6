"""Pretrain one encoder by every method on the same images, and print a table of what a frozen encoder then knows.

    python scripts/benchmarks/methods.py --dataset uoft-cs/cifar10 --output_dir runs/methods

Each row is a run of scripts/pretrain.py and one of scripts/evaluate.py, in folders below OUTPUT_DIR. Started again, it
goes on where it was. Writes methods.json and methods.md beside the runs.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[1]
VARIANTS: dict[str, list[str]] = {
    "End-to-end (SimCLR)": ["--method", "end_to_end"],
    "Memory bank": ["--method", "memory_bank"],
    "MoCo v1": ["--method", "moco", "--projector", "linear", "--temperature", "0.07", "--symmetric", "false"],
    "MoCo v2": ["--method", "moco"],
    "MoCo v3": ["--method", "moco_v3"],
    "MoCHi": ["--method", "mochi"],
    "BYOL": ["--method", "byol"],
    "BYOL, linear predictor": ["--method", "byol", "--predictor", "linear"],
    "SimSiam": ["--method", "simsiam"],
    "DirectPred": ["--method", "directpred"],
    "DirectSet, exponent 0.75": ["--method", "directpred", "--rule", "directset", "--exponent", "0.75"],
    "DirectCopy": ["--method", "directpred", "--rule", "directcopy", "--epsilon", "0.3"],
    "DirectCLR": ["--method", "directclr"],
    "Contrastive Clustering": ["--method", "contrastive_clustering"],
}


def main() -> int:
    """Run what is missing and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dataset", required=True, help="labelled data set with splits train and test")
    parser.add_argument("--num_epochs", default="5", help="epochs of each run (default: 5)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--recipe", default="quickstart", help="recipe of each method (default: quickstart)")
    parser.add_argument("--view_recipe", default="moco_v2", help="augmentation (default: moco_v2)")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="NAME", help="rows to run; default: all")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name in options.only or VARIANTS:
        folder = options.output_dir / re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
        code = _run(options, VARIANTS[name], folder)
        if code:
            print(f"error: the run of {name} ended with exit code {code}.", file=sys.stderr)
            return code
        rows[name] = _row(folder, VARIANTS[name])
        _write(options.output_dir, rows)
    print((options.output_dir / "methods.md").read_text())
    return 0


def _run(options: argparse.Namespace, flags: list[str], folder: Path) -> int:
    launch = [sys.executable, "-m", "accelerate.commands.launch", str(SCRIPTS / "pretrain.py"), *flags]
    launch += ["--recipe", options.recipe, "--view_recipe", options.view_recipe, "--dataset", options.dataset]
    launch += ["--num_epochs", options.num_epochs, "--output_dir", str(folder), "--resume", "auto"]
    evaluate = [sys.executable, str(SCRIPTS / "evaluate.py"), str(folder), "--dataset", options.dataset]
    evaluate += ["--baselines", "random", "--no-show_loading"]
    code = subprocess.run(launch).returncode
    results = folder / "encoder" / "results.json"
    if code == 0 and not _measured(results):
        code = subprocess.run(evaluate).returncode
    return code


def _measured(results: Path) -> bool:
    entries = json.loads(results.read_text())["results"] if results.exists() else []
    return any(entry["protocol"] == "linear" for entry in entries)


def _row(folder: Path, flags: list[str]) -> dict:
    run = json.loads((folder / "run.json").read_text())
    results = json.loads((folder / "encoder" / "results.json").read_text())["results"]
    by_protocol = {entry["protocol"]: entry for entry in results if entry["split"] == "test"}
    return {
        "flags": " ".join(flags),
        "epochs": run["training"]["num_epochs"],
        "knn": by_protocol["knn"]["value"],
        "knn_random": by_protocol["knn"]["baselines"]["random"],
        "linear": by_protocol["linear"]["value"],
        "linear_random": by_protocol["linear"]["baselines"]["random"],
        "seconds": run["progress"]["seconds"],
    }


def _write(output_dir: Path, rows: dict[str, dict]) -> None:
    (output_dir / "methods.json").write_text(json.dumps(rows, indent=2) + "\n")
    first = next(iter(rows.values()))
    lines = ["| method | epochs | k-NN (%) | linear probe (%) | seconds |", "|---|---|---|---|---|"]
    lines.append(f"| random encoder | 0 | {100 * first['knn_random']:.1f} | {100 * first['linear_random']:.1f} | 0 |")
    for name, row in rows.items():
        accuracies = f"{100 * row['knn']:.1f} | {100 * row['linear']:.1f}"
        lines.append(f"| {name} | {row['epochs']:g} | {accuracies} | {row['seconds']:.0f} |")
    (output_dir / "methods.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
