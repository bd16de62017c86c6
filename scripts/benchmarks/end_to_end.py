"""Measure whole training: images a second of hf_ssl's loop, of the network alone and of the data alone.

  network   the encoder passes that the method needs (step.py), on images that are there: nothing can be faster
  data      reading and augmenting without training
  hf_ssl    the loop of scripts/pretrain.py with everything that it does
  lightly   the same method from lightly's parts and transform in a DataLoader (--compare lightly)

They run in turns, --rounds times, and medians are reported: trust the ratios. On a CPU the workers and the network
share the cores, so that hf_ssl can reach neither of its bounds.
"""

import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import peers
import step
import torch
from machine import describe_machine, read_settings
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from hf_ssl.commands.errors import errors_for_users
from hf_ssl.data.order.chunks import parts_in_turns
from hf_ssl.data.order.lanes import MOST_LANES, Dealing
from hf_ssl.data.settings import DataSettings
from hf_ssl.errors import UserError
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.settings import checked
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.batches import open_stream
from hf_ssl.training.loop import train

EXAMPLES = """examples:
  python scripts/benchmarks/end_to_end.py --dataset uoft-cs/cifar10 --encoder resnet18 --image_size 32
  python scripts/benchmarks/end_to_end.py --dataset imagenet/ --image_size 224 --num_workers 16 --compile
  python scripts/benchmarks/end_to_end.py --dataset data/cifar10 --cache uint8 --compare lightly --output whole.json"""

_RECIPES_OF_LIGHTLY = ("moco", "byol", "simsiam", "end_to_end")


@checked
class BenchmarkSettings:
    """What is measured.

    Args:
        method: Method to train.
        encoder: timm name of the encoder.
        image_size: Height and width of the views, in pixels.
        batch_size: Images in a batch.
        mixed_precision: Precision of forward and backward pass.
        channels_last: Memory layout of images and convolutions.
        compile: Compile the encoder.
        num_steps: Steps of each turn, of which the second half counts.
        rounds: Turns.
        compare: Library to measure beside hf_ssl.
        output: JSON file to write.
    """

    method: str = "moco"
    encoder: str = "resnet18"
    image_size: int = 32
    batch_size: int = 128
    mixed_precision: Literal["no", "bf16"] = "no"
    channels_last: bool = True
    compile: bool = False
    num_steps: int = 40
    rounds: int = 3
    compare: Literal["lightly"] | None = None
    output: str | None = None

    def validate_benchmark(self) -> None:
        """Check names and ranges."""
        if self.method not in METHODS:
            raise UserError(f"Unknown method `{self.method}`. Known: {', '.join(METHODS)}.")
        for name, least in {"image_size": 1, "batch_size": 2, "num_steps": 2, "rounds": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if self.compare == "lightly" and self.method not in _RECIPES_OF_LIGHTLY:
            raise UserError(
                f"`compare` lightly needs one of {', '.join(_RECIPES_OF_LIGHTLY)} as `method`, got `{self.method}`."
            )


Turn = Callable[[], float]  # images a second


def main(arguments: list[str]) -> int:
    """Parse, measure, print and write; returns the exit code."""
    groups = {"data": DataSettings, "benchmark": BenchmarkSettings}
    data, settings = read_settings(arguments, groups, "end_to_end.py", f"{__doc__}\n{EXAMPLES}")
    options = _options_of_step(settings)
    turns: dict[str, Turn] = {
        "network": lambda: _network(settings, options),
        "data": lambda: _data(data, settings, options),
        "hf_ssl": lambda: _hf_ssl(data, settings, options),
    }
    if settings.compare == "lightly":
        lightly = _Lightly(data, settings, options)
        turns["lightly"] = lightly
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    with tqdm(total=settings.rounds * len(turns), unit="turn") as progress:
        for _ in range(settings.rounds):
            for name, turn in turns.items():
                progress.set_description(name)
                speeds[name].append(turn())
                progress.update()
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    rows = [
        {"what": name, "images/s": speed, "of the network": speed / medians["network"]}
        for name, speed in medians.items()
    ]
    print(step.table(rows))
    if settings.output is not None:
        about = {"machine": describe_machine(), "data": asdict(data), "settings": asdict(settings)}
        Path(settings.output).write_text(json.dumps({**about, "rows": rows, "rounds": speeds}, indent=2) + "\n")
    return 0


def _options_of_step(settings: BenchmarkSettings) -> Any:
    arguments = ["--methods", settings.method, "--encoder", settings.encoder, "--precision", settings.mixed_precision]
    arguments += ["--image_size", str(settings.image_size), "--batch_size", str(settings.batch_size)]
    arguments += ["--memory_format", "channels_last" if settings.channels_last else "contiguous"]
    arguments += ["--compare", settings.compare] if settings.compare else []
    return step.parse([*arguments, *(["--compile"] if settings.compile else [])])


def _timed(work: Iterator[Any], settings: BenchmarkSettings, device: torch.device) -> float:
    """Images a second in the second half of the steps; the first warms up."""
    half = settings.num_steps // 2
    for _ in islice(work, settings.num_steps - half):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in islice(work, half):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize()
    return half * settings.batch_size / (time.perf_counter() - begin)


def _network(settings: BenchmarkSettings, options: Any) -> float:
    model, _ = step.build(settings.method, options)
    views = torch.randn(settings.batch_size, 2, 3, settings.image_size, settings.image_size).to(options.device)
    passes = step.necessary_compute(model, views, settings.mixed_precision, options)["passes"]
    return _timed((passes() for _ in cycle([None])), settings, options.device)


def _data(data: DataSettings, settings: BenchmarkSettings, options: Any) -> float:
    model, training = _model_and_training(settings, options, "none")
    stream = open_stream(model, data.open(), data, training, options.device)
    return _timed(iter(stream), settings, options.device)


def _hf_ssl(data: DataSettings, settings: BenchmarkSettings, options: Any) -> float:
    with tempfile.TemporaryDirectory() as folder:
        model, training = _model_and_training(settings, options, folder)
        train(model, data.open(), data, training)
        last = (Path(folder) / "metrics.jsonl").read_text().splitlines()[-1]
    return json.loads(last)["images_per_second"]


def _model_and_training(
    settings: BenchmarkSettings, options: Any, folder: str
) -> tuple[SSLPreTrainedModel, TrainingSettings]:
    model, training = step.build(settings.method, options)
    return model, replace(
        training,
        output_dir=folder,
        batch_size=settings.batch_size,
        num_epochs=None,
        num_steps=settings.num_steps,
        warmup_epochs=None,
        warmup_steps=0,
        mixed_precision=settings.mixed_precision,
        channels_last=settings.channels_last,
        compile=settings.compile,
        log_every=settings.num_steps // 2,
        checkpoint_every=settings.num_steps,
        cpu=options.device.type == "cpu",
    )


class _Lightly:
    """The same training out of lightly's parts. Its images lie in memory, undecoded, so that it need not read them."""

    def __init__(self, data: DataSettings, settings: BenchmarkSettings, options: Any):
        self._settings, self._options, self._num_workers = settings, options, data.num_workers
        recipe = data.view_recipe or METHODS[settings.method].view_recipe
        transform = peers.lightly(recipe, settings.image_size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self._images = _Transformed(_undecoded(data), transform)

    def __call__(self) -> float:
        settings, device = self._settings, self._options.device
        model, training = step.build(settings.method, self._options)
        pair: list[Tensor] = []
        stages = step.lightly_step(settings.method, model, training, pair, settings.mixed_precision, self._options)
        assert stages is not None

        def steps() -> Iterator[None]:
            while True:
                loader = DataLoader(
                    self._images, settings.batch_size, shuffle=True, drop_last=True, num_workers=self._num_workers
                )
                for views in loader:
                    pair[:] = [view.to(device, non_blocking=True) for view in views]
                    stages["all"]()
                    yield

        return _timed(steps(), settings, device)


class _Transformed(Dataset):
    """Two views of each image."""

    def __init__(self, images: list[bytes], transform: peers.Pipeline):
        self._images, self._transform = images, transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._transform(self._images[index])


def _undecoded(data: DataSettings) -> list[bytes]:
    images: list[bytes] = []
    for chunk in parts_in_turns(Dealing(data.open(), 0, MOST_LANES, 1, data.shuffle_window), 8):
        if chunk.records is None:
            return images
        records = chunk.records["image"].to_pylist()
        images += [record["bytes"] or Path(record["path"]).read_bytes() for record in records]
    return images


if __name__ == "__main__":
    logging.getLogger("hf_ssl").setLevel(logging.ERROR)  # a run's own words belong to no table
    with errors_for_users():
        sys.exit(main(sys.argv[1:]))
