"""Which runs are disturbed, and how: drawn from decks, so that every method, source and way comes up."""

import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

NUM_STEPS, BATCH_SIZE = 36, 16
COMMON = (
    *(
        "--encoder",
        "test_resnet",
        "--image_size",
        "32",
        "--batch_size",
        str(BATCH_SIZE),
        "--cpu",
        "--warmup_steps",
        "3",
    ),
    *("--num_steps", str(NUM_STEPS), "--checkpoint_every", "5", "--log_every", "2", "--diagnostics_every", "12"),
    *("--shuffle_window", "40", "--knn_images", "100", "--seed", "7"),
)
METHODS = {
    "end_to_end": (),
    "memory_bank": ("--num_negatives", "20"),
    "moco": ("--queue_size", "64", "--bn_splits", "2"),
    "moco_v3": (),
    "mochi": (
        *("--queue_size", "64", "--bn_splits", "2", "--num_hard_negatives", "8", "--num_mixed_negatives", "4"),
        *("--num_mixed_queries", "4", "--start_step", "10"),
    ),
    "byol": (),
    "simsiam": (),
    "directpred": (),
    "directclr": ("--subvector_dim", "48"),
    "contrastive_clustering": ("--num_clusters", "2"),
}
SOURCES = ("folder", "parquet", "tars", "stream", "shapes")
NEED_INDICES = ("memory_bank",)
PLACES = ((), ("--views_on", "gpu"), ("--cache", "uint8"), ())
FORMS = (
    *(("fork", (1,)), ("fork", (2,)), ("fork", (1,)), ("torchrun", (2,)), ("fork", (2, 1)), ("fork", (1,))),
    *(("accelerate", (1,)), ("fork", (1, 2)), ("fork", (2,)), ("accelerate", (2,)), ("fork", (4, 1, 2))),
)
"""How a run is started, and with how many processes: the first time, the second, ..., and round again."""

MOMENTS = ("any", "any", "any", "checkpoint", "any", "export", "checkpoint", "start")
BLOWS = (
    *(("one", signal.SIGKILL), ("first", signal.SIGTERM), ("all", signal.SIGKILL), ("one", signal.SIGUSR1)),
    *(("one", signal.SIGKILL), ("all", signal.SIGTERM), ("worker", signal.SIGKILL), ("first", signal.SIGINT)),
    *(("first", signal.SIGKILL), ("all", signal.SIGHUP), ("one", signal.SIGKILL), ("one", signal.SIGUSR2)),
)
"""Who is hit by what: one trainer, the launcher (or the first process), all processes, or one data worker."""


@dataclass(frozen=True)
class Blow:
    """One kill or signal.

    Args:
        moment: `any` (some time in training), `start` (before or soon after it), or what it waits for:
            `checkpoint`, `export`, `publish`, `cache`.
        target: See `BLOWS`.
        signal: Its number.
        delay: In [0, 1), of the time that there is.
    """

    moment: str
    target: str
    signal: int
    delay: float


@dataclass(frozen=True)
class Case:
    """A run that is disturbed.

    Args:
        number: Of the case.
        method: A key of `METHODS`.
        source: One of `SOURCES`.
        form: A key of `forks.LAUNCHERS`.
        processes: One number for each start, and round again.
        flags: What else is on its command line.
        workers: Data workers of each process, one number for each start, and round again.
        publishes: Whether checkpoints and the encoder go to a Hub.
        blows: What it suffers, in order.
    """

    number: int
    method: str
    source: str
    form: str
    processes: tuple[int, ...]
    flags: tuple[str, ...]
    workers: tuple[int, ...]
    publishes: bool
    blows: tuple[Blow, ...]

    def arguments(self, data: Path, start: int, *, quiet: bool = False) -> list[str]:
        """The command line of `hf-ssl`: of a start, from 0, or of the run that nothing disturbs."""
        places = {"folder": data / "photos", "parquet": data / "parquet", "tars": data / "tars"}
        dataset = str(places.get(self.source, {"stream": "org/photos"}.get(self.source, self.source)))
        words = ["pretrain", "--method", self.method, "--dataset", dataset, "--output_dir", "run", *COMMON]
        words += [*METHODS[self.method], *self.flags, "--num_workers", str(self.workers[start % len(self.workers)])]
        if self.publishes and not quiet:
            words += ["--push_to_hub", "--push_checkpoints", "--repo_id", self.repo_id]
        return words if quiet else [*words, "--resume", "auto"]

    @property
    def repo_id(self) -> str:
        """Where it publishes."""
        return f"org/case-{self.number}"

    def described(self) -> dict[str, Any]:
        """What a table says of it."""
        return {
            "case": self.number,
            "method": self.method,
            "source": self.source,
            "started_by": self.form,
            "processes": list(self.processes),
            "flags": " ".join(self.flags),
            "workers": list(self.workers),
            "publishes": self.publishes,
        }


def cases(seed: int, most_blows: int) -> Iterator[Case]:
    """The cases of a seed, without end.

    Args:
        seed: Of everything.
        most_blows: Most kills and signals of one case, at least 2.
    """
    methods, sources = _deck(seed, "method", tuple(METHODS)), _deck(seed, "source", SOURCES)
    forms, places = _deck(seed, "form", FORMS), _deck(seed, "place", PLACES)
    moments, blows = _deck(seed, "moment", MOMENTS), _deck(seed, "blow", BLOWS)
    for number in count():
        chance = random.Random(f"{seed}/{number}")
        method, source, (form, processes) = next(methods), next(sources), next(forms)
        flags, workers = [*next(places)], chance.sample((0, 1, 2), 2)
        if (method in NEED_INDICES or "--cache" in flags) and source in ("tars", "stream"):  # which have no numbers
            source = "parquet"
        if chance.random() < 0.5:
            least = 4 if "--bn_splits" in METHODS[method] else 2
            flags += ["--images_per_device", str(max(least, chance.choice((2, 4))))]
        if len(processes) > 1:
            flags += ["--batch_norm", "sync"]  # which is promised not to depend on their number
        publishes = chance.random() < 0.4
        some = []
        for target, kind in islice(blows, chance.randint(2, most_blows)):
            moment = next(moments)
            if moment == "any" and publishes and chance.random() < 0.4:
                moment = "publish"
            elif moment == "any" and "uint8" in flags and chance.random() < 0.4:
                moment = "cache"
            some.append(Blow(moment, target, kind, chance.random()))
        yield Case(number, method, source, form, processes, tuple(flags), tuple(workers), publishes, tuple(some))


def _deck(seed: int, name: str, values: Sequence[Any]) -> Iterator[Any]:
    """All values in a random order, then all in another one, and so on."""
    chance = random.Random(f"{seed}/{name}")
    while True:
        yield from chance.sample(values, len(values))
