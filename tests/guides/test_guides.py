"""Every code block of the README and of the guides runs as it stands there, or says why it does not.

A comment before a block decides: `<!-- run -->`, `<!-- file: PATH -->` (the block is written to that file) or
`<!-- not run: REASON -->`. The blocks of a document run in its order in one folder, against a Hub on this machine.
Flags at the end of a command make it small; they are here, so that the text shows what a reader types.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "scripts/README.md"]
BLOCK = re.compile(
    r"(?:^<!-- (?P<order>[^\n]*?) -->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
# What keeps a command small; the last of two equal flags counts.
TINY = {
    "scripts/pretrain.py": "--encoder test_resnet --image_size 32 --num_epochs 1 --warmup_epochs 0 --batch_size 16 "
    "--num_workers 1 --checkpoint_every 2 --log_every 1 --shuffle_window 64 --cpu true",
    "scripts/evaluate.py": "--num_workers 1",
    "--dataset shapes": "--batch_size 256 --knn_images 200",
    "--augmented_passes": "--augmented_passes 2",
    "scripts/analyze.py": "--num_workers 1 --views 2 --view_images 32",
    "scripts/extract_features.py": "--num_workers 1",
    "scripts/ablate.py": "--batch_size 16 --num_workers 1",
    "scripts/finetune.py": "--num_steps 4 --eval_every 2 --batch_size 4 --num_workers 1 --cpu true",
}


class Block(NamedTuple):
    document: str
    line: int
    order: str
    language: str
    code: str


# What a document says was done before it starts.
BEFORE = {
    "README.md": [
        Block(
            "README.md",
            0,
            "run",
            "bash",
            "accelerate launch --quiet scripts/pretrain.py --method directpred --recipe quickstart --dataset shapes "
            "--output_dir runs/quickstart",
        )
    ]
}


def blocks_of(document: str) -> list[Block]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        Block(
            document,
            text[: found.start("code")].count("\n") + 1,
            found["order"] or "",
            found["language"],
            found["code"],
        )
        for found in BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_says_whether_it_runs(document):
    for block in blocks_of(document):
        assert re.fullmatch(r"run|file: \S+|not run: \S.+", block.order), f"{document}:{block.line}: {block.order!r}"


def with_small_settings(code: str) -> str:
    """The commands with the flags of `TINY` at their ends, before comments."""
    lines = code.replace("\\\n", " ").splitlines()
    for number, line in enumerate(lines):
        command, hash_, comment = line.partition("  #")
        flags = " ".join(flags for part, flags in TINY.items() if part in line)
        if flags:
            lines[number] = f"{command} {flags}{hash_}{comment}"
    return "\n".join(lines)


def pictures(number: int, seed: int) -> list[Image.Image]:
    """Squares of two colours at random places: what a small encoder can see."""
    draw = np.random.default_rng(seed)
    made = []
    for index in range(number):
        pixels = draw.integers(0, 60, (40, 48, 3), dtype=np.uint8)
        row, column = draw.integers(0, 24, 2)
        pixels[row : row + 14, column : column + 14, index % 2] += 180
        made.append(Image.fromarray(pixels))
    return made


def as_jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG")
    return file.getvalue()


def parquet_of(pictures: list[Image.Image], image_column: str) -> bytes:
    features = datasets.Features(
        {image_column: datasets.Image(), "label": datasets.ClassLabel(names=["red", "green"])}
    )
    rows = {
        image_column: [{"bytes": as_jpeg(picture), "path": None} for picture in pictures],
        "label": [number % 2 for number in range(len(pictures))],
    }
    file = io.BytesIO()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    return file.getvalue()


def card_of(splits: dict[str, list], image_column: str) -> bytes:
    """The lengths of the splits, as the Hub's data sets have them in their cards."""
    lengths = "\n".join(
        f"  - name: {split}\n    num_bytes: 1\n    num_examples: {len(rows)}" for split, rows in splits.items()
    )
    columns = (
        f"  - name: {image_column}\n    dtype: image\n  - name: label\n    dtype:\n      class_label:\n        names:"
    )
    names = "\n".join(f"          '{number}': {name}" for number, name in enumerate(("red", "green")))
    return f"---\ndataset_info:\n  features:\n{columns}\n{names}\n  splits:\n{lengths}\n---\n".encode()


@pytest.fixture
def workplace(tmp_path: Path, hub_server) -> Path:
    """What a reader has: a copy of the repository, a folder of photos, a picture; and two data sets on the Hub."""
    from hub_server import Hub, Repo

    hub_server.hub = Hub()
    for name, column in {"ORG/NAME": "image", "uoft-cs/cifar10": "img"}.items():
        repo = hub_server.hub.repos[f"datasets/{name}"] = Repo()
        splits = {"train": pictures(96, 1), "test": pictures(32, 2)}
        files = {f"data/{split}-0.parquet": parquet_of(rows, column) for split, rows in splits.items()}
        repo.add("main", {**files, "README.md": card_of(splits, column)})
    for folder in ("scripts", "hf_ssl", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    for number, picture in enumerate(pictures(64, 3)):
        file = tmp_path / "data" / "photos" / ("red", "green")[number % 2] / f"{number:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    pictures(1, 4)[0].save(tmp_path / "photo.jpg")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_run(document, workplace, hub_server):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    modules = f"{workplace}{os.pathsep}{os.environ['PYTHONPATH']}"
    environment = hub_server.environment(workplace / "home", PATH=path, PYTHONPATH=modules)
    for block in [*BEFORE.get(document, []), *blocks_of(document)]:
        kind, _, detail = block.order.partition(": ")
        if kind == "file":
            file = workplace / detail
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.code, encoding="utf-8")
        elif kind == "run":
            command = {
                "bash": ["bash", "-euo", "pipefail", "-c", with_small_settings(block.code)],
                "python": [sys.executable, "-c", block.code],
            }[block.language]
            done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{document}:{block.line}\n{block.code}\n{done.stdout}\n{done.stderr}"
