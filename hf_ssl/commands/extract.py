"""Write the features that a frozen encoder computes for a data set: a data set of its own, in parquet shards.

    hf-ssl extract runs/first --dataset photos --output features --index faiss
    accelerate launch --num_processes 8 -m hf_ssl extract ORG/ENCODER --dataset ORG/IMAGES --output features

The data set is streamed; labels are not needed. `datasets.load_dataset("features")` reads the folder: one row for each
image with `row_id` (its place in the split), `path` (its file in the data set, where it has one), all labels and
`embedding`. Images that cannot be read have no row; features.json counts them by reason.

What was interrupted goes on with the same command: complete shards stay as they are, with any number of processes, and
the folder ends up the same as without interruption. A folder of another encoder, data set or setting is refused.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_ssl.commands.command import Command
from hf_ssl.commands.encoder_settings import ReadingSettings
from hf_ssl.data.settings import OF_DATA
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import Encoder, ImageTransform, load_encoder
from hf_ssl.features.card import files_to_push, public_record, write_feature_card
from hf_ssl.features.extract import extract_shards, rows_to_cover
from hf_ssl.features.folder import (
    ExtractionSettings,
    begin_split,
    describe,
    finish_split,
    has_paths,
    is_complete,
    read_record,
)
from hf_ssl.features.search import build_index, new_index
from hf_ssl.hub.names import check_repo_id
from hf_ssl.hub.push import push_files
from hf_ssl.invocation import command_line
from hf_ssl.settings import HUB_TIMEOUT, check_least, checked
from hf_ssl.training.processes import check_num_processes, requested_processes

logger = logging.getLogger(__name__)


@checked
class ExtractSettings(ReadingSettings):
    """Which features are computed, and where they are written.

    Args:
        encoder: Folder of a run, encoder folder, repository on the Hub (timm or transformers) or timm name;
            `random:NAME` is the same network untrained, `raw:NAME` the pixels that it sees.
        output: Folder to write, or to go on with.
        split: Splits of the data set.
        overwrite: Replace the features that the folder holds.
        dtype: Type of the features.
        rows_per_shard: Rows of the data set in one file, at least 1.
        max_images: Use at most so many images of each split; none: all of them.
        bf16: Compute in bfloat16, on CUDA.
        index: Write an index for `search`: `faiss` is exact, `faiss:IVF1024,Flat` faster for millions of images.
        push: Repository `org/name` to push the folder to, as a data set with a card.
        private: Make the pushed data set a private one.
        hub_timeout: Seconds that the push may lose to failures of the Hub and to pauses after them, all attempts
            together, before it is given up; 0: nothing is tried again.
    """

    encoder: str
    output: Path
    split: list[str] | tuple[str, ...] | str = ("train",)
    overwrite: bool = False
    dtype: Literal["float32", "float16"] = "float32"
    rows_per_shard: int = 8192
    max_images: int | None = None
    bf16: bool = False
    index: str | None = None
    push: str | None = None
    private: bool = False
    hub_timeout: float = HUB_TIMEOUT

    def validate_extraction(self) -> None:
        """Check what can be checked without encoder and data."""
        self.check_reading()
        check_least(self, max_images=1, rows_per_shard=1)
        if not self.splits:
            raise UserError("`split` must name at least one split, such as train.")
        if self.output.suffix == ".parquet":
            raise UserError(
                f"`output` is a folder of parquet files, got `{self.output}`. Leave out `.parquet`; "
                "`datasets.load_dataset` and `pandas.read_parquet(FOLDER/data)` read the folder."
            )
        if self.private and not self.push:
            raise UserError("`private` is for what is pushed. Add `--push ORG/NAME`, or leave it out.")
        if self.push:
            check_repo_id(self.push)
        if self.index is not None and self.index.partition(":")[0] != "faiss":
            raise UserError(f"`index` must be faiss or faiss:FACTORY, got `{self.index}`.")

    @property
    def splits(self) -> list[str]:
        """Splits of the data set; one may be given as text."""
        return [self.split] if isinstance(self.split, str) else list(self.split)

    @property
    def factory(self) -> str | None:
        """What `faiss.index_factory` takes; None without an index."""
        return None if self.index is None else self.index.partition(":")[2] or "Flat"


@dataclass(frozen=True)
class ExtractResult:
    """The folder of features that was written.

    Args:
        folder: The folder; `datasets.load_dataset` reads it.
        rows: Number of rows of each split that was asked for.
        columns: Columns of the rows.
        dim: Length of a feature vector.
        dtype: Its type.
        url: Where the folder was pushed to, if it was.
    """

    folder: Path
    rows: dict[str, int]
    columns: list[str]
    dim: int
    dtype: str
    url: str | None

    def __str__(self) -> str:
        columns = ", ".join([*self.columns[:-1], f"{self.columns[-1]} ({self.dim} x {self.dtype})"])
        lines = [f"{self.folder}, split {split}: {rows:,} rows of {columns}" for split, rows in self.rows.items()]
        return "\n".join([*lines, *([f"Pushed to {self.url}"] if self.url else [])])


def run(settings: ExtractSettings) -> ExtractResult:
    """Extract, index, push; with several processes each computes its part, and the first one does the rest."""
    state = _start_processes(settings.device)
    device = state.device if state.num_processes > 1 else None
    encoder = load_encoder(settings.encoder, device or settings.torch_device(), settings.seed)
    if settings.factory is not None:
        new_index(settings.factory, encoder.dim)  # what faiss refuses it refuses now, not when the features are there
    if isinstance(encoder.transform, ImageTransform):
        # The order of pixels in which convolutions are fastest; models of timm, unlike others, are used to it.
        encoder.module.to(memory_format=torch.channels_last)
    sources = [settings.open(split) for split in settings.splits]
    for number, source in enumerate(sources):
        _extract(settings, state, encoder, source, overwrite=settings.overwrite and number == 0)
    if state.is_main_process:
        _index_and_describe(settings, sources)
    url = _push(settings) if settings.push and state.is_main_process else None
    state.wait_for_everyone()
    if state.num_processes > 1:
        state.destroy_process_group()
    record = _record_of(settings.output)
    return ExtractResult(
        folder=settings.output,
        rows={source.split: sum(record["splits"][source.split]["shards"]) for source in sources},
        columns=["row_id", *(["path"] if has_paths(record) else []), *record["labels"], "embedding"],
        dim=encoder.dim,
        dtype=settings.dtype,
        url=url,
    )


def _start_processes(device: str) -> PartialState:
    cpu = device == "cpu" or not torch.accelerator.is_available()
    # A process waits for the others at the end of a split, and none is broken because another has more to do.
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))
    check_num_processes(state.num_processes, os.environ, requested_processes(), sys.argv)
    return state


def _dataset(settings: ExtractSettings, source: Source) -> dict[str, Any]:
    """How the data set is opened, but for the split; one in memory is described by its name."""
    return {
        "dataset": source.name,
        **settings.places(),
    }


def _extract(
    settings: ExtractSettings, state: PartialState, encoder: Encoder, source: Source, *, overwrite: bool
) -> None:
    """Write what is missing of one split; every process calls it."""
    extraction = ExtractionSettings(settings.dtype, settings.bf16, settings.max_images, settings.rows_per_shard)
    about: list[Any] = [None, None]
    if state.is_main_process:
        new = describe(encoder, source, extraction, seed=settings.seed, dataset=_dataset(settings, source))
        complete = begin_split(settings.output, new, source, overwrite=overwrite)
        record = _record_of(settings.output)
        done = is_complete(record, source.split) and len(record["splits"][source.split]["shards"]) == len(complete)
        if complete:
            logger.info("%d shards of split `%s` are there%s.", len(complete), source.split, ", all" if done else "")
        about = [complete, done]
    complete, done = broadcast_object_list(about)
    if done:
        return
    shown = f"features of {source.split}"
    if state.num_processes > 1:
        shown += f", process 1 of {state.num_processes}"
    extract_shards(
        settings.output,
        encoder,
        source,
        extraction,
        complete,
        settings.batch_size,
        settings.num_workers,
        description=shown,
    )
    state.wait_for_everyone()
    if state.is_main_process:
        record = finish_split(settings.output, source.split, rows_to_cover(source, settings.max_images))
        skipped = record["splits"][source.split]["skipped"]
        if skipped:
            reasons = ", ".join(f"{reason}: {number}" for reason, number in skipped.items())
            logger.warning("Left out images of split `%s` of `%s` (%s).", source.split, source.name, reasons)


def _index_and_describe(settings: ExtractSettings, sources: Sequence[Source]) -> None:
    """Write indices and card."""
    record = _record_of(settings.output)
    for source in sources:
        if settings.factory is not None and record["splits"][source.split].get("index") != settings.factory:
            build_index(settings.output, source.split, settings.factory, progress=True)
    write_feature_card(settings.output, command_line())


def _push(settings: ExtractSettings) -> str:
    assert settings.push is not None
    command = command_line()
    return push_files(
        lambda repo_id: files_to_push(settings.output, repo_id, command),
        settings.push,
        repo_type="dataset",
        private=settings.private,
        message=f"Features of {public_record(_record_of(settings.output))['dataset']['dataset']}",
        is_stale=lambda path: path.startswith(("data/", "index/")),
        hub_timeout=settings.hub_timeout,
        retry=command,
    )


def _record_of(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    assert record is not None
    return record


COMMAND = Command(
    "extract",
    ExtractSettings,
    run,
    __doc__ or "",
    words=("encoder",),
    first=("dataset", "output", "split", "index", "max_images", "dtype", "batch_size", "num_workers", "push"),
    groups={
        "data": OF_DATA,
        "computation": ("device", "bf16", "seed"),
        "output": ("rows_per_shard", "overwrite", "private", "hub_timeout"),
    },
    function="extract_features",
)
