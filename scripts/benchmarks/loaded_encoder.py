"""How fast may a loaded encoder be trained? Prints k-NN accuracy as it goes on, by learning rate and warm-up.

    python scripts/benchmarks/loaded_encoder.py uoft-cs/cifar10 runs/loaded directclr simsiam byol

The first method trains an encoder from random weights with its `quickstart` recipe. Then each method goes on from that
encoder with new heads, at parts of its recipe's learning rate. A row is such a run; columns are k-NN accuracies in per
cent, of 3,000 images of split `test` with 3,000 of `train`, after so many steps. Step 0 is the loaded encoder. One
seed each: differences of one point are chance.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from accelerate.utils import set_seed

from hf_ssl.data.settings import DataSettings
from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.loop import train
from hf_ssl.training.start import find_encoder
from hf_ssl.training.watch.knn import open_knn

FIRST_STEPS, STEPS, KNN_EVERY = 700, 100, 50
SHOWN = (0, 50, 100)
VARIANTS = ((1.0, 0.0), (1.0, 0.1), (0.3, 0.1), (0.1, 0.1))  # part of the learning rate, part of the run that warms up


def main() -> int:
    """Run everything and print the rows as they come; returns the exit code."""
    if len(sys.argv) < 4:
        print(__doc__, file=sys.stderr)
        return 2
    dataset, folder, methods = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    print("| method | learning rate | warm-up | " + " | ".join(f"step {step}" for step in SHOWN) + " |")
    print("|---" * (3 + len(SHOWN)) + "|")
    first = folder / methods[0]
    if not (first / "encoder").exists():
        _pretrain(methods[0], dataset, first, FIRST_STEPS, 1.0, 0.0, None)
    for method in methods:
        for part, warmup in VARIANTS:
            with tempfile.TemporaryDirectory() as scratch:
                curve = _pretrain(method, dataset, Path(scratch), STEPS, part, warmup, str(first))
            shown = " | ".join(f"{100 * curve[step]:.1f}" for step in SHOWN)
            print(f"| {method} | {part:g} x | {warmup:.0%} | {shown} |", flush=True)
    return 0


def _pretrain(
    method: str, dataset: str, folder: Path, steps: int, part: float, warmup: float, encoder: str | None
) -> dict[int, float]:
    """One run; returns k-NN accuracy by step."""
    recipe = dict(METHODS[method].recipes["quickstart"])
    recipe |= {"num_epochs": None, "num_steps": steps, "warmup_epochs": None, "warmup_steps": round(warmup * steps)}
    recipe |= {"base_learning_rate": part * recipe["base_learning_rate"], "view_recipe": "moco_v2"}
    config_class = METHODS[method].config_class
    set_seed(0)
    model = METHODS[method](config_class(**_only(config_class, recipe)))
    if encoder is not None:
        start = find_encoder(encoder)
        for name in ("encoder", "target_encoder"):
            if hasattr(model, name):
                start.load_into(model.get_submodule(name))
    data = DataSettings(dataset=dataset, view_recipe="moco_v2", num_workers=0)
    recipe |= {"knn_every": KNN_EVERY if encoder else steps, "knn_split": "test", "knn_images": 3000}
    recipe |= {"diagnostics_every": 0, "checkpoint_every": steps, "cpu": not torch.cuda.is_available()}
    settings = TrainingSettings(output_dir=str(folder), **_only(TrainingSettings, recipe))
    source = data.open()
    knn = open_knn(source, data, settings)
    assert knn is not None
    curve = {0: knn(model).value}
    train(model, source, data, settings)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve |= {line["step"]: line["knn"] for line in lines if "knn" in line}
    if encoder is None:
        export_run(model, folder)
    return curve


def _only(kind: type, values: dict) -> dict:
    return {name: value for name, value in values.items() if name in kind.__dataclass_fields__}


if __name__ == "__main__":
    sys.exit(main())
