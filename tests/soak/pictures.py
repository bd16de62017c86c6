"""What the runs train on: the same small pictures as a folder, parquet files, tars and a data set of a Hub."""

import io
import json
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NUM_IMAGES = 120
HUB = """
import sys, threading
from pathlib import Path
from hub_server import Repo, Server

with Server() as server:
    repo = server.hub.repos["datasets/org/photos"] = Repo()
    repo.add("main", {f"data/{path.name}": path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())})
    print(server.url, flush=True)
    sys.stdin.read()
"""


def _pictures() -> list[bytes]:
    draw = np.random.default_rng(0)
    made = []
    for number in range(NUM_IMAGES):
        pixels = draw.integers(0, 60, (40, 40, 3), dtype=np.uint8)
        row, column = draw.integers(0, 24, 2)
        pixels[row : row + 14, column : column + 14, number % 3] += 180
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        made.append(file.getvalue())
    return made


def make_data(folder: Path) -> None:
    """Write the pictures in every form, if they are not there."""
    if (folder / "complete").exists():
        return
    pictures = _pictures()
    for name in ("photos", "parquet", "tars"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(pictures):
        (folder / "photos" / f"{number:03}.png").write_bytes(content)
    half = NUM_IMAGES // 2
    for part in range(2):
        some = list(enumerate(pictures))[part * half : (part + 1) * half]
        # Not by `datasets`, whose import would read the address of the Hub that is not there yet.
        column = pa.array(
            [{"bytes": content, "path": None} for _, content in some],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        )
        features = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
        table = pa.table({"image": column}).replace_schema_metadata(features)
        pq.write_table(table, folder / "parquet" / f"train-{part}.parquet")
        with tarfile.open(folder / "tars" / f"train-{part}.tar", "w") as tar:
            for number, content in some:
                entry = tarfile.TarInfo(f"{number:03}.png")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    (folder / "complete").touch()


class Hub:
    """The Hub of the tests in a process of its own, which has the data set `org/photos` and takes what is pushed."""

    def __init__(self, folder: Path):
        modules = str(Path(__file__).parents[1] / "hub")
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {modules!r})\n{HUB}", str(folder / "parquet")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def environment(self, home: Path) -> dict[str, str]:
        """Variables under which the Hub's clients talk to this one; they are read when these are imported."""
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0", **quiet}

    def file(self, repo: str, path: str, revision: str = "main") -> bytes:
        """A file of a model repository."""
        address = f"{self.url}/{repo}/resolve/{revision}/{path}"
        asked = urllib.request.Request(address, headers={"Authorization": "Bearer hf_secret"})
        with urllib.request.urlopen(asked) as answer:
            return answer.read()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
