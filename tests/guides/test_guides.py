"""README and guides: every code block runs as it stands there or says why it does not, and every link leads somewhere.

A comment before a block decides: `<!-- run -->`, `<!-- file: PATH -->` (the block is written to that file) or
`<!-- not run: REASON -->`. The blocks of a document run in its order in one folder, against a Hub on this machine.
Flags at the end of a command make it small; they are here, so that the text shows what a reader types.
"""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_ssl.commands.methods import MethodsSettings
from hf_ssl.commands.methods import run as list_methods

ROOT = Path(__file__).parents[2]
GUIDES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "scripts" / "guides").glob("*.md"))
DOCUMENTS = ["README.md", *GUIDES]
BLOCK = re.compile(
    r"(?:^<!-- (?P<order>[^\n]*?) -->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
WORDS_OF_README = 900
# What keeps a command small, by what is found in its line; the last of two equal flags counts.
TINY = {
    r"(pretrain|study|finetune).* --": "--num_workers 0 --batch_size 16",
    r"pretrain(\.py)? --": "--num_steps 4 --warmup_steps 0 --checkpoint_every 2 --log_every 1 --cpu",
    r"pretrain(\.py)? (?!.*--(start_from|encoder) (runs|ORG)/)--": "--encoder test_resnet --image_size 32",
    r"pretrain .*--dataset shapes": "--knn_images 100",
    r"(evaluate|extract|analyze) ": "--num_workers 0",
    r"pretrain .*--knn_every": "--knn_every 2",
    r"evaluate .*--dataset shapes": "--max_images 200 knn",
    r"--augmented_passes": "--augmented_passes 2",
    r"analyze": "--num_views 2 --view_images 32",
    r"study methods": "--num_steps 4 --eval_images 32",
    r"study augmentation": "--num_steps 2 --eval_images 32 --view_images 32 --num_views 2",
    r"study dictionaries": "--num_steps 4 --num_images 32 --knn_images 16 --momentum 0.99 --queue_size 16",
    r"study labels": "--num_steps 2 --batch_size 4",
    r"study reproduce (?!.*--list)": "--num_steps 2 --eval_images 32 --encoder test_resnet",
    r"finetune": "--num_steps 4 --eval_every 2 --batch_size 4 --cpu",
    r"simulate sweep": "--size 8",
    r"simulate collapse": "--num_steps 20 --batch_size 16",
}
# This machine has no eight GPUs; the text has what a reader's machine is to do.
ONE_PROCESS = ("--num_processes 8", "--num_processes 1")
TINY_PYTHON = {
    "hf_ssl.pretrain(": "hf_ssl.pretrain(num_steps=4, warmup_steps=0, log_every=1, batch_size=16, num_workers=0, ",
    'encoder="resnet18"': 'encoder="test_resnet", image_size=32',
}


class Block(NamedTuple):
    document: str
    line: int
    order: str
    language: str
    code: str


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks_of(document: str) -> list[Block]:
    text = text_of(document)
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
    assert text_of(document).count("\n```") == 2 * len(blocks_of(document))
    for block in blocks_of(document):
        assert re.fullmatch(r"run|file: \S+|not run: \S.+", block.order), f"{document}:{block.line}: {block.order!r}"


@pytest.mark.parametrize("document", [*DOCUMENTS, "scripts/README.md"])
def test_links_and_pictures_exist(document):
    text = text_of(document)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            assert (ROOT / document).parent.joinpath(path).exists(), f"{document}: {target}"
            assert not anchor, f"{document}: {target} may break when a heading changes"


def test_readme_fits_a_screen():
    words = [word for word in text_of("README.md").split() if any(map(str.isalnum, word))]
    assert len(words) <= WORDS_OF_README


def test_readme_has_the_table_of_methods():
    assert str(list_methods(MethodsSettings(markdown=True))) in text_of("README.md")


@pytest.mark.parametrize("index", ["README.md", "scripts/README.md"])
def test_every_guide_is_listed(index):
    for guide in GUIDES:
        assert f"({os.path.relpath(guide, Path(index).parent)})" in text_of(index)


def test_pictures_are_small():
    for picture in (ROOT / "scripts" / "guides" / "pictures").iterdir():
        assert picture.suffix == ".png" and picture.stat().st_size < 100_000, picture


def with_small_settings(code: str) -> list[str]:
    """The command lines with the flags of `TINY` at their ends; what draws alone takes none of them."""
    lines = []
    for line in code.replace("\\\n", " ").splitlines():
        command = line.partition("  #")[0].strip().replace(*ONE_PROCESS)
        drawn = "--drawn_from" in command
        flags = [flags for part, flags in TINY.items() if not drawn and re.search(part, command)]
        lines.append(" ".join([command, *flags]))
    return lines


def test_who_copies_the_run_book_trains_on_all_gpus_of_its_machine():
    code = "".join(block.code for block in blocks_of("scripts/guides/imagenet.md"))
    launched = [line for line in code.splitlines() if line.startswith("accelerate launch")]
    assert launched and all("launch --num_processes 8 " in line for line in launched)
    small = [line for line in with_small_settings(code) if line.startswith("accelerate launch")]
    assert len(small) == len(launched) and all("launch --num_processes 1 " in line for line in small)


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


class Runner:
    """Runs blocks: see runner.py. What needs a shell, such as `accelerate launch`, runs in one."""

    def __init__(self, environment: dict[str, str]):
        self.environment = environment
        program = [sys.executable, str(Path(__file__).with_name("runner.py"))]
        self.process = subprocess.Popen(
            program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        self.process.communicate()

    def run(self, block: Block, folder: Path) -> None:
        code = block.code
        if block.language == "python":
            for part, small in TINY_PYTHON.items():
                code = code.replace(part, small)
            self._run({"code": code}, block, folder)
            return
        for line in with_small_settings(code):
            if line.startswith("hf-ssl "):
                self._run({"arguments": shlex.split(line)[1:]}, block, folder)
            else:
                self._run_in_shell(line, block, folder)

    def _run(self, order: dict, block: Block, folder: Path) -> None:
        output = folder / "output.txt"
        output.unlink(missing_ok=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({**order, "folder": str(folder), "output": str(output)}) + "\n")
        self.process.stdin.flush()
        status = self.process.stdout.readline().strip()
        assert status == "0", f"{block.document}:{block.line}\n{order}\n{output.read_text(errors='replace')}"

    def _run_in_shell(self, line: str, block: Block, folder: Path) -> None:
        modules = f"{folder}{os.pathsep}{self.environment['PYTHONPATH']}"
        environment = {**self.environment, "PYTHONPATH": modules}
        command = ["bash", "-euo", "pipefail", "-c", line]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block.document}:{block.line}\n{line}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def runner(hub_server, tmp_path_factory: pytest.TempPathFactory):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = Runner(hub_server.environment(tmp_path_factory.mktemp("home"), PATH=path))
    yield started
    started.close()


def furnish(folder: Path) -> None:
    """What a reader has: a copy of the repository, a folder of photos, a picture."""
    for name in ("scripts", "hf_ssl", "tests", "model_cards"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    for number, picture in enumerate(pictures(64, 3)):
        file = folder / "photos" / ("home", "trip/day 1")[number % 2] / f"{number:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    pictures(1, 4)[0].save(folder / "photo.jpg")


@pytest.fixture(scope="session")
def finished_run(runner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the photos, which most guides begin with; made once."""
    folder = tmp_path_factory.mktemp("finished")
    furnish(folder)
    code = "hf-ssl pretrain --method simsiam --dataset photos --output_dir runs/photos"
    runner.run(Block("a finished run", 0, "run", "bash", code), folder)
    return folder / "runs" / "photos"


@pytest.fixture
def workplace(tmp_path: Path, hub_server) -> Path:
    """A reader's folder; and data sets on the Hub."""
    from hub_server import Hub, Repo

    hub_server.hub = Hub()
    for name, column in {"ORG/NAME": "image", "uoft-cs/cifar10": "img", "ILSVRC/imagenet-1k": "image"}.items():
        repo = hub_server.hub.repos[f"datasets/{name}"] = Repo()
        splits = {"train": pictures(96, 1), "test": pictures(32, 2), "validation": pictures(32, 5)}
        files = {f"data/{split}-0.parquet": parquet_of(rows, column) for split, rows in splits.items()}
        repo.add("main", {**files, "README.md": card_of(splits, column)})
    furnish(tmp_path)
    return tmp_path


def with_what_was_done_before(document: str) -> list[Block]:
    """The blocks, and before them what a guide takes for granted: that the run it uses was published."""
    text = text_of(document)
    before = []
    if "ORG/photos-r18" in text:
        before.append(Block(document, 0, "run", "bash", "hf-ssl publish runs/photos --repo_id ORG/photos-r18"))
    return [*before, *blocks_of(document)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "document", [document for document in DOCUMENTS if any(one.order == "run" for one in blocks_of(document))]
)
def test_blocks_run(document, workplace, runner, request):
    text = text_of(document)
    if "runs/photos" in text and not re.search(r"--output_dir runs/photos\b(?!-)", text):
        shutil.copytree(request.getfixturevalue("finished_run"), workplace / "runs" / "photos")
    for block in with_what_was_done_before(document):
        kind, _, detail = block.order.partition(": ")
        if kind == "file":
            file = workplace / detail
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.code, encoding="utf-8")
        elif kind == "run":
            runner.run(block, workplace)
