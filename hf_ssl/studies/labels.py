"""Fine-tune pretrained encoders with few and with many labels, beside the same network from scratch.

    hf-ssl study labels runs/directpred runs/moco --dataset photos --test_split validation --output_dir runs/labels

It answers what pretraining is worth: for each share of the labels, each encoder and each seed it trains a classifier
for as many steps, and scores it on the test split after the last one. `scratch` is the first encoder's architecture
with random weights. The labelled images of a seed are the same for all encoders, and those of a smaller share are
part of those of a larger one.

Killed or stopped? The same command continues. Writes labels.json, labels.md and labels.png beside the runs.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_ssl.data.settings import OF_DATA, PLACES, DataSettings, PlaceSettings
from hf_ssl.data.sources.open import DataLike, Source
from hf_ssl.data.sources.subset import class_names, labelled_subset
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import encoder_folder
from hf_ssl.figures.accuracy import accuracy_bars
from hf_ssl.fine_tuning.classifier import RANDOM, check_classes, open_classifier
from hf_ssl.fine_tuning.settings import FineTuningSettings
from hf_ssl.fine_tuning.task import fine_tune
from hf_ssl.invocation import command_line
from hf_ssl.private import folders_among, public_command, public_name, public_path
from hf_ssl.settings import check_least, check_positive, checked
from hf_ssl.studies.many_runs import (
    StoppedError,
    check_one_process,
    claim_folder,
    finished_run,
    mean_text,
    public_settings,
    written_text,
)
from hf_ssl.studies.settings import check_splits
from hf_ssl.training.files import write_json
from hf_ssl.training.record import RunRecord

logger = logging.getLogger(__name__)

SCRATCH = "scratch"
_COMMON = ("dataset", *PLACES, "split", "test_split", "encoders", "num_steps", "batch_size", "learning_rate")
_COMMON += ("mixed_precision",)
_TOLD_ELSEWHERE = ("dataset", "encoders")  # in the results: these may be paths


@checked
class LabelsSettings(PlaceSettings):
    """Which encoders are fine-tuned, and with how many labels.

    Args:
        encoders: Runs, encoder folders, repositories or timm names, at least one.
        dataset: Labelled images: an id on the Hub, a folder, a file or an address, as for `hf-ssl finetune`.
        output_dir: Folder of the runs.
        fractions: Shares of the labelled training images, each in (0, 1]: the same number of each class.
        seeds: Runs of each kind, with seeds from 0; at least 1. A seed chooses labelled images and their order.
        split: Labelled split to train on.
        test_split: Labelled split to score on.
        num_steps: Optimizer steps of each run, whatever its share of the labels.
        batch_size: Images of a step; all labelled images where there are fewer.
        learning_rate: Of AdamW for 256 images a step, positive.
        mixed_precision: Precision of the forward and backward pass, as in fine-tuning.
        num_workers: Worker processes that decode and augment, at least 0.
    """

    encoders: list[str]
    dataset: DataLike
    output_dir: Path
    fractions: list[float] = field(default_factory=lambda: [0.01, 0.1, 1.0])
    seeds: int = 1
    split: str = "train"
    test_split: str = "test"
    num_steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    num_workers: int = 2

    def validate_labels(self) -> None:
        """Check what can be checked without data."""
        if not self.encoders:
            raise UserError("`encoders` must name at least one encoder, such as a run's folder.")
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise UserError(f"`fractions` must be above 0 and at most 1, such as 0.01 0.1 1, got {self.fractions}.")
        check_least(self, seeds=1, num_steps=1, batch_size=1, num_workers=0)
        check_positive(self, "learning_rate")
        check_splits(self)


@dataclass(frozen=True)
class LabelRun:
    """What one classifier came to.

    Args:
        start: Name of the encoder, or `scratch`.
        fraction: Share of the labelled images that was asked for.
        seed: Its seed.
        images: Labelled images that it was trained on.
        accuracy: On the test split after the last step, in [0, 1].
        seconds: Time of training.
    """

    start: str
    fraction: float
    seed: int
    images: int
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class LabelsResult:
    """What the labels came to, by encoder.

    Args:
        runs: The runs that are finished.
        num_runs: How many were asked for.
        files: What was written; none if the study was stopped.
        exit_code: 0, or 128 plus the number of the signal that stopped the study.
    """

    runs: Sequence[LabelRun]
    num_runs: int
    files: Sequence[Path] = ()
    exit_code: int = 0

    def __str__(self) -> str:
        return "\n".join([table_of(self.runs).rstrip(), *written_text(self.files)])


def run(settings: LabelsSettings) -> LabelsResult:
    """Train what is missing, score and write."""
    check_one_process()
    bench = _Bench(settings)
    claim_folder(settings.output_dir, settings, _COMMON, bench.source)
    wanted = [
        (seed, fraction, start)
        for seed in range(settings.seeds)
        for fraction in sorted(set(settings.fractions))
        for start in bench.starts
    ]
    runs: list[LabelRun] = []
    try:
        for seed, fraction, start in wanted:
            runs.append(bench.run(start, fraction, seed))
            logger.info(
                "%d of %d runs: %s, %g %% of the labels, seed %d: %.1f %%",
                *(len(runs), len(wanted), start, 100 * fraction, seed, 100 * runs[-1].accuracy),
            )
    except StoppedError as stopped:
        logger.warning(stopped.message(len(runs), len(wanted)))
        return LabelsResult(runs, len(wanted), exit_code=stopped.exit_code)
    return LabelsResult(runs, len(wanted), _write(settings, bench, runs))


def table_of(runs: Sequence[LabelRun]) -> str:
    """Table in Markdown: accuracy in percent by encoder and share, means over seeds with standard deviations."""
    by_cell = _by_cell(runs)
    fractions = list(dict.fromkeys(fraction for _, fraction in by_cell))
    images = {fraction: next(one.images for one in runs if one.fraction == fraction) for fraction in fractions}
    heads = [f"{100 * fraction:g} % ({images[fraction]:,} images)" for fraction in fractions]
    lines = [f"| start | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for start in dict.fromkeys(start for start, _ in by_cell):
        cells = [mean_text([100 * one.accuracy for one in by_cell.get((start, part), [])], 1) for part in fractions]
        lines.append(f"| {start} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _by_cell(runs: Sequence[LabelRun]) -> dict[tuple[str, float], list[LabelRun]]:
    cells: dict[tuple[str, float], list[LabelRun]] = {}
    for one in runs:
        cells.setdefault((one.start, one.fraction), []).append(one)
    return cells


def names_of(encoders: Sequence[str]) -> dict[str, str]:
    """What tables call encoders, each unlike the others: the method of a run, else the last part of its name.

    Args:
        encoders: As the user typed them.

    Returns:
        Encoder by name; those whose short names are equal have the last part of their paths, and where these are
        equal too, a number.
    """
    short = []
    for encoder in encoders:
        folder = encoder_folder(encoder)
        record = RunRecord.read(folder) if folder is not None else None
        short.append(record.method if record is not None else Path(encoder).name)
    longer = [
        name if short.count(name) == 1 else public_path(encoder) for name, encoder in zip(short, encoders, strict=True)
    ]
    names = [name if longer.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(longer, start=1)]
    whole = dict(zip(names, encoders, strict=True))
    if SCRATCH in whole or len(set(encoders)) < len(encoders):
        raise UserError(f"`encoders` must be different and none of them `{SCRATCH}`, got {', '.join(encoders)}.")
    return whole


class _Bench:
    """Data and encoders that all runs share; refuses wrong ones before anything is trained.

    Args:
        options: The settings of the study.
    """

    def __init__(self, options: LabelsSettings):
        self.options = options
        named = names_of(options.encoders)
        self.starts = {SCRATCH: f"{RANDOM}{options.encoders[0].removeprefix(RANDOM)}", **named}
        dataset: Any = options.dataset
        places = {name: getattr(options, name) for name in OF_DATA}
        self.data = DataSettings(dataset=dataset, **places, split=options.split, num_workers=options.num_workers)
        self.source: Source = self.data.open()
        self.names = class_names(self.source)
        self.test: Source = self.data.open(options.test_split)
        check_classes(self.names, self.test, next(iter(self.source.labels)))
        for start in self.starts.values():
            open_classifier(start, self.names)

    def run(self, start: str, fraction: float, seed: int) -> LabelRun:
        """The finished run: read, gone on with, or made.

        Raises:
            StoppedError: If a signal ended it.
        """
        place = list(self.starts).index(start)
        folder = self.options.output_dir / f"{place}-{Path(start).name}" / f"labels{fraction:.15g}-seed{seed}"
        result = folder / "result.json"
        if result.exists():
            return finished_run(result, LabelRun, start=start, fraction=fraction, seed=seed)
        source, counts, reached = self.source, None, None
        if fraction < 1:
            subset = labelled_subset(source, self.names, fraction, seed)
            source, counts, reached = subset.source, subset.counts, subset.fraction
        classifier = open_classifier(self.starts[start], self.names, seed=seed)
        settings = self._settings(folder, fraction, seed, source.num_images)
        ended = fine_tune(classifier, source, self.test, self.data, settings, counts, reached)
        if ended.signal:
            raise StoppedError(ended.signal)
        if ended.score is None:
            raise UserError(f"Split `{self.test.split}` could not be scored. The log above says why.")
        images = self.source.num_images if counts is None else sum(counts.values())
        finished = LabelRun(start, fraction, seed, images or 0, ended.score.accuracy, ended.seconds)
        write_json(result, asdict(finished))
        return finished

    def _settings(self, folder: Path, fraction: float, seed: int, num_images: int | None) -> FineTuningSettings:
        options = self.options
        return FineTuningSettings(
            output_dir=str(folder),
            label_fraction=fraction,
            test_split=options.test_split,
            eval_every=options.num_steps,
            batch_size=min(options.batch_size, num_images or options.batch_size),
            num_steps=options.num_steps,
            base_learning_rate=options.learning_rate,
            mixed_precision=options.mixed_precision,
            keep_checkpoints=1,
            seed=seed,
            resume="auto" if folder.exists() else None,
        )


def _write(settings: LabelsSettings, bench: _Bench, runs: Sequence[LabelRun]) -> list[Path]:
    """Numbers, table and figure."""
    folder = settings.output_dir
    files = [folder / "labels.json", folder / "labels.md", folder / "labels.png"]
    dataset, local = public_name(bench.source.name, bench.source.kind), folders_among(settings.encoders)
    facts: Mapping[str, Any] = {
        "study": "labels",
        "dataset": dataset,
        "train_images": bench.source.num_images,
        "test_images": bench.test.num_images,
        "encoders": list(bench.starts),
        "settings": public_settings(settings, [name for name in _COMMON if name not in _TOLD_ELSEWHERE], bench.source),
        "commands": [public_command(command_line(), bench.source.name, bench.source.kind, local)],
    }
    write_json(files[0], {**facts, "runs": [asdict(one) for one in runs]})
    files[1].write_text(table_of(runs), encoding="utf-8")
    heights: dict[str, dict[str, float]] = {}
    for (start, fraction), cell in _by_cell(runs).items():
        mean = sum(one.accuracy for one in cell) / len(cell)
        heights.setdefault(start, {})[f"{100 * fraction:g} % of labels"] = mean
    accuracy_bars({"fine-tuned": heights}, title=f"{dataset}, split {settings.test_split}").savefig(files[2])
    return files
