"""Measure the data pipeline part by part: prints a table, and writes JSON to `--output`."""

import io
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import peers
import psutil
import torch
from machine import describe_machine, read_settings
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from hf_ssl.commands.errors import errors_for_users
from hf_ssl.data.decode.pictures import IMAGE_SUFFIXES
from hf_ssl.data.decode.pictures import decode as decode_record
from hf_ssl.data.order import chunks
from hf_ssl.data.order.chunks import parts_in_turns
from hf_ssl.data.order.lanes import MOST_LANES, Dealing
from hf_ssl.data.order.stream import CHUNK_SIZE, Batch, TrainingStream
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.views.cpu import Views
from hf_ssl.data.views.device import Normalize
from hf_ssl.data.views.draws import numbers_between
from hf_ssl.errors import UserError, near_name
from hf_ssl.settings import checked
from hf_ssl.writing import write_whole

DESCRIPTION = """Measure the data pipeline part by part: prints a table, and writes JSON to --output.

  decode   bytes to RGB pictures, on one core, by several decoders (JPEG, PNG, ...)
  views    bytes to two views, on one core, by hf_ssl and by what other libraries do
  reader   undecoded records of one process, and their bytes
  stream   batches of views, by number of workers up to --num_workers
  memory   peak of the reader's process while a list of files grows --repeats times (local files only)
  start    seconds to the first batch, in a fresh process
  resume   seconds to the first batch from several positions

`decode` and `views` take the processor time of one thread and run what they compare in turns: trust the ratios. hf_ssl
hands views over as uint8; "normalised" is what its loop makes of them on the device that trains, here the CPU.
`--compare lightly` needs pip install 'hf_ssl[benchmarks]'.

Files read lately lie in the operating system's cache: run it twice. `cpu` counts this process's processor time."""

EXAMPLES = """examples:
  python scripts/benchmarks/data.py --dataset data/cifar10 --num_workers 8 --output data.json
  python scripts/benchmarks/data.py --dataset data/photos --image_size 224 --only stream start"""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGES, _IMAGES_AT_ONCE, _ROUNDS = 512, 16, 5
_POSITIONS = (0.0, 0.1, 0.5, 0.9, 0.999)
_FILE_SUFFIXES = {".parquet", ".tar", *IMAGE_SUFFIXES}

Row = dict[str, Any]  # part, what, value, unit


@checked
class BenchmarkSettings:
    """What is measured.

    Args:
        only: Parts to measure; all if none is named.
        image_size: Height and width of the views, in pixels.
        batch_size: Images in a batch.
        seconds: Time for each measurement of a speed, in seconds.
        compare: Library whose own transforms `views` measures too.
        repeats: How often `memory` repeats the files.
        output: JSON file to write.
    """

    only: list[str] = field(default_factory=list)
    image_size: int = 32
    batch_size: int = 128
    seconds: float = 10.0
    compare: Literal["lightly"] | None = None
    repeats: list[int] = field(default_factory=lambda: [1, 10, 100])
    output: str | None = None

    def validate_benchmark(self) -> None:
        """Check names and ranges."""
        for name in self.only:
            if name not in PARTS:
                raise UserError(f"Unknown part `{name}`. Known: {', '.join(PARTS)}.{near_name(name, list(PARTS))}")
        for name, least in {"image_size": 1, "batch_size": 1, "seconds": 0.0}.items():
            if getattr(self, name) < least:
                raise UserError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if any(count < 1 for count in self.repeats):
            raise UserError(f"`repeats` must be at least 1, got {min(self.repeats)}.")


def main(arguments: list[str]) -> int:
    """Parse, measure, print and write; returns the exit code."""
    if arguments[:1] == ["--in_fresh_process"]:
        name, data, settings = json.loads(arguments[1])
        print(json.dumps(_IN_FRESH_PROCESS[name](DataSettings(**data), BenchmarkSettings(**settings))))
        return 0
    groups = {"data": DataSettings, "benchmark": BenchmarkSettings}
    data, settings = read_settings(arguments, groups, "data.py", f"{DESCRIPTION}\n\n{EXAMPLES}")
    rows = []
    with tqdm(settings.only or list(PARTS), unit="part") as progress:
        for name in progress:
            progress.set_description(name)
            rows += [{"part": name, **row} for row in PARTS[name](data, settings)]
            _keep(rows, data, settings)
    width = max(len(row["what"]) for row in rows)
    for row in rows:
        ratio = f"   hf_ssl is faster by {row['hf_ssl is faster by']:.1f}" if "hf_ssl is faster by" in row else ""
        print(f"{row['part']:8} {row['what']:{width}} {row['value']:12,.2f} {row['unit']}{ratio}")
    return 0


def _keep(rows: list[Row], data: DataSettings, settings: BenchmarkSettings) -> None:
    """Write the rows so far to the file that was named."""
    if settings.output is not None:
        about = {"machine": describe_machine(), "data": asdict(data), "settings": asdict(settings)}
        write_whole(Path(settings.output), json.dumps({**about, "results": rows}, indent=2) + "\n")


def decode(data: DataSettings, settings: BenchmarkSettings) -> Iterator[Row]:
    """Undecoded images to RGB pictures."""
    images = _some_images(data)
    decoders = {
        "hf_ssl": lambda image: decode_record(image),
        "OpenCV": lambda image: cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB),
        "Pillow": lambda image: np.asarray(Image.open(io.BytesIO(image)).convert("RGB")),
    }
    for name, speed in _speeds({name: _for_each(make) for name, make in decoders.items()}, images, settings).items():
        yield {"what": name, "value": speed, "unit": "images/s"}


def views(data: DataSettings, settings: BenchmarkSettings) -> Iterator[Row]:
    """Undecoded images to two views."""
    name, size = data.view_recipe or "moco_v2", settings.image_size
    make, normalize = Views(name, size), Normalize(_MEAN, _STD, torch.device("cpu"))

    def ours(images: list[bytes]) -> Tensor:
        return make([decode_record(image) for image in images], numbers_between(0, 0, 0, 0, len(images)))[0]

    pipelines: dict[str, Callable[[list[bytes]], Any]] = {
        "hf_ssl": ours,
        "hf_ssl, normalised": lambda images: normalize(ours(images)),
        "torchvision v2 on Pillow": _for_each(peers.torchvision_v2(name, size, _MEAN, _STD)),
        "torchvision v1, as in solo-learn": _for_each(peers.torchvision_v1(name, size, _MEAN, _STD)),
    }
    if settings.compare == "lightly":
        pipelines["lightly"] = _for_each(peers.lightly(name, size, _MEAN, _STD))
    speeds = _speeds(pipelines, _some_images(data), settings)
    for pipeline, speed in speeds.items():
        yield {"what": pipeline, "value": speed, "unit": "images/s", "hf_ssl is faster by": speeds["hf_ssl"] / speed}


def _some_images(data: DataSettings) -> list[bytes]:
    images: list[bytes] = []
    for chunk in _epoch(data):
        assert chunk.records is not None
        for record in chunk.records["image"].to_pylist():
            images.append(record["bytes"] or Path(record["path"]).read_bytes())
        if len(images) >= _IMAGES:
            break
    return images


def _for_each(make: Callable[[bytes], Any]) -> Callable[[list[bytes]], Any]:
    return lambda images: [make(image) for image in images]


def _speeds(
    pipelines: dict[str, Callable[[list[bytes]], Any]], images: list[bytes], settings: BenchmarkSettings
) -> dict[str, float]:
    """Images a second of one core: the median over rounds in which each has its turn for as long."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    speeds: dict[str, list[float]] = {name: [] for name in pipelines}
    for number in range(_ROUNDS + 1):  # the first warms up
        for name, make in pipelines.items():
            done, begin = 0, time.thread_time()
            while time.thread_time() - begin < settings.seconds / _ROUNDS or not done:
                some = images[done % len(images) :][:_IMAGES_AT_ONCE]
                make(some)
                done += len(some)
            if number:
                speeds[name].append(done / (time.thread_time() - begin))
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])
    return {name: statistics.median(values) for name, values in speeds.items()}


def reader(data: DataSettings, settings: BenchmarkSettings) -> Iterator[Row]:
    """Raw records of one process, epoch after epoch."""
    records = size = 0
    wall, cpu = time.perf_counter(), time.process_time()
    for chunk in _parts(data):
        records += chunk.size
        size += _num_bytes(chunk)
        if time.perf_counter() - wall > settings.seconds:
            break
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    for kind, seconds in (("", wall), (" (cpu)", cpu)):
        yield {"what": f"records{kind}", "value": records / seconds, "unit": "records/s"}
        if size:  # image files are read where they are decoded
            yield {"what": f"bytes{kind}", "value": size / seconds / 1e6, "unit": "MB/s"}


def stream(data: DataSettings, settings: BenchmarkSettings) -> Iterator[Row]:
    """Images in batches, two views each."""
    for num_workers in sorted({0, *(2**power for power in range(20) if 2**power <= data.num_workers)}):
        batches = iter(_stream(replace(data, num_workers=num_workers), settings))
        for _ in range(2 + num_workers):  # what the workers made while they started does not count
            next(batches)
        images, begin, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < settings.seconds or not images:
            images += len(next(batches).views)
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
        yield {"what": f"{num_workers} workers", "value": images / wall, "unit": "images/s"}
        yield {"what": f"{num_workers} workers, main process (cpu)", "value": cpu / images * 1e6, "unit": "us/image"}


def memory(data: DataSettings, settings: BenchmarkSettings) -> Iterator[Row]:
    """Peak memory of a process that reads one epoch of the same files, repeated."""
    for repeats in settings.repeats:
        with tempfile.TemporaryDirectory() as folder:
            _link_repeatedly(Path(str(data.dataset)).expanduser(), Path(folder), repeats)
            peak = _in_fresh_process("memory", replace(data, dataset=folder), settings)
        yield {"what": f"{repeats} x, {peak['records']:,} records", "value": peak["megabytes"], "unit": "MB"}


def _link_repeatedly(dataset: Path, folder: Path, repeats: int) -> None:
    if not dataset.exists():
        raise UserError(f"`memory` repeats files, but `{dataset}` is no file or folder. Leave it out by `--only`.")
    files = [dataset] if dataset.is_file() else sorted(dataset.rglob("*"))
    for file in files:
        if file.suffix.lower() in _FILE_SUFFIXES and file.is_file():
            name = file.relative_to(dataset) if dataset.is_dir() else Path(f"train{file.suffix}")
            (folder / name.parent).mkdir(parents=True, exist_ok=True)
            for repeat in range(repeats):
                (folder / name.parent / f"{repeat:05}-{name.name}").symlink_to(file.resolve())


def _measure_memory(data: DataSettings, settings: BenchmarkSettings) -> dict[str, float]:
    process, records = psutil.Process(), 0
    peak = process.memory_info().rss
    for chunk in _epoch(data):
        records += chunk.size
        peak = max(peak, process.memory_info().rss)
    return {"records": records, "megabytes": peak / 1e6}


def start(data: DataSettings, settings: BenchmarkSettings) -> Iterator[Row]:
    """Seconds from nothing to the first batch."""
    seconds = _in_fresh_process("start", data, settings)
    yield {"what": "opening to first batch", "value": seconds["opening"], "unit": "s"}
    yield {"what": "the same with Python's start and imports", "value": seconds["process"], "unit": "s"}


def _measure_start(data: DataSettings, settings: BenchmarkSettings) -> dict[str, float]:
    begin = time.time()
    next(iter(_stream(data, settings)))
    return {"opening": time.time() - begin, "process": time.time() - psutil.Process().create_time()}


def resume(data: DataSettings, settings: BenchmarkSettings) -> Iterator[Row]:
    """Seconds from opening to the first batch of a run that goes on."""
    nothing = TrainingStream(
        data.open(),
        _no_views,
        settings.batch_size,
        seed=0,
        pictures=lambda images: itertools.repeat(0, len(images)),
        window_size=data.shuffle_window,
    )
    positions = [batch.position for batch in itertools.takewhile(lambda batch: batch.epoch == 0, nothing)]
    for part in _POSITIONS:
        position = positions[min(int(part * len(positions)), len(positions) - 1)]
        begin = time.perf_counter()
        next(iter(_stream(data, settings, position)))
        yield {"what": f"from {part:.1%} of an epoch", "value": time.perf_counter() - begin, "unit": "s"}


def _no_views(pictures: list[int], numbers: Any) -> tuple[torch.Tensor]:
    return (torch.zeros(len(pictures)),)


Part = Callable[[DataSettings, BenchmarkSettings], Iterator[Row]]
PARTS: dict[str, Part] = {
    "decode": decode,
    "views": views,
    "reader": reader,
    "stream": stream,
    "memory": memory,
    "start": start,
    "resume": resume,
}

_IN_FRESH_PROCESS = {"memory": _measure_memory, "start": _measure_start}


def _in_fresh_process(name: str, data: DataSettings, settings: BenchmarkSettings) -> dict[str, float]:
    arguments = json.dumps([name, asdict(data), asdict(settings)])
    child = subprocess.run([sys.executable, __file__, "--in_fresh_process", arguments], stdout=subprocess.PIPE)
    if child.returncode:
        raise SystemExit(child.returncode)  # it has said why
    return json.loads(child.stdout)


def _epoch(data: DataSettings, seed: int = 0) -> Iterator[chunks.Part]:
    """The records of one epoch, but for those of less than one turn of all lanes."""
    ended = 0
    for part in _parts(data, seed):
        if part.size == 0:
            ended += part.place.epoch == 0
        elif part.place.epoch == 0:
            yield part
        if ended == MOST_LANES:
            return


def _parts(data: DataSettings, seed: int = 0) -> Iterator[chunks.Part]:
    """All records of endless epochs, undecoded; an empty part ends each epoch of a lane."""
    return parts_in_turns(Dealing(data.open(), seed, MOST_LANES, 1, data.shuffle_window), CHUNK_SIZE // MOST_LANES)


def _num_bytes(part: chunks.Part) -> int:
    if part.records is None:
        return 0
    offsets = np.frombuffer(part.records["image"].field("bytes").buffers()[1], np.int64)
    return int(offsets[part.size])  # a part begins at its own 0


def _stream(
    data: DataSettings, settings: BenchmarkSettings, position: dict[str, Any] | None = None
) -> Iterator[Batch]:
    views = Views(data.view_recipe or "moco_v2", settings.image_size)
    yield from TrainingStream(
        data.open(),
        views,
        settings.batch_size,
        seed=0,
        num_workers=data.num_workers,
        window_size=data.shuffle_window,
        position=position,
    )


if __name__ == "__main__":
    with errors_for_users():
        sys.exit(main(sys.argv[1:]))
