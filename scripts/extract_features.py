"""Write the features that a frozen encoder computes for a data set: a data set of its own, in parquet shards.

    python scripts/extract_features.py runs/first --dataset shapes --split train test --output features
    accelerate launch --num_processes 8 scripts/extract_features.py ORG/ENCODER --dataset ORG/IMAGES --output features
    python scripts/extract_features.py runs/first --dataset photos --output features --index faiss --push ORG/FEATURES

ENCODER is the folder of a run, an encoder folder, a repo on the Hub (timm or transformers) or a timm name. The data
set is streamed; labels are not needed. `datasets.load_dataset("features")` reads the folder: one row for each image
with `row_id` (its place in the split), all labels and `embedding`. Images that cannot be read have no row;
features.json counts them by reason.

What was interrupted goes on with the same command: complete shards stay as they are, with any number of processes, and
the folder ends up the same as without interruption. A folder of another encoder, data set or setting is refused.
"""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_ssl.cli import errors_for_users, parse_flags, show_log
from hf_ssl.data.sources import Source, open_source
from hf_ssl.evaluation.encoders import Encoder, ImageTransform, load_encoder
from hf_ssl.evaluation.export_features import extract_shards, rows_to_cover
from hf_ssl.evaluation.feature_folder import (
    DTYPES,
    ExtractionSettings,
    begin_split,
    describe,
    finish_split,
    is_complete,
    read_record,
)
from hf_ssl.evaluation.search import build_index, new_index
from hf_ssl.hub.feature_card import files_to_push, write_feature_card
from hf_ssl.hub.push import check_repo_id, push_files
from hf_ssl.training.processes import check_num_processes, requested_processes

logger = logging.getLogger("hf_ssl.scripts.extract_features")


def main(arguments: list[str]) -> int:
    """Parse, extract, index, push and print what was written; returns the exit code."""
    options = _parse(arguments)
    state = _start_processes(options.device)
    settings = ExtractionSettings(options.dtype, options.bf16, options.max_images, options.rows_per_shard)
    device = state.device or torch.device("cpu")
    encoder = load_encoder(options.encoder, device, options.seed)
    if options.index is not None:
        new_index(options.index, encoder.dim)  # what faiss refuses it refuses now, not when the features are there
    if isinstance(encoder.transform, ImageTransform):
        # The order of pixels in which convolutions are fastest; models of timm, unlike others, are used to it.
        encoder.module.to(memory_format=torch.channels_last)
    sources = [open_source(**_dataset(options), split=split) for split in options.split]
    for number, source in enumerate(sources):
        _extract(options, state, settings, encoder, source, overwrite=options.overwrite and number == 0)
    if state.is_main_process:
        _finish(options, sources, shlex.join(["python", "scripts/extract_features.py", *arguments]))
    state.destroy_process_group()
    return 0


def _start_processes(device: str) -> PartialState:
    cpu = device == "cpu" or not torch.accelerator.is_available()
    # A process waits for the others at the end of a split, and none is broken because another has more to do.
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))
    check_num_processes(state.num_processes, os.environ, requested_processes(), sys.argv)
    return state


def _dataset(options: argparse.Namespace) -> dict[str, Any]:
    """How the data set is opened, but for the split."""
    return {
        "dataset": options.dataset,
        "config": options.dataset_config,
        "revision": options.dataset_revision,
        "image_column": options.image_column,
        "label_column": options.label_column,
    }


def _extract(
    options: argparse.Namespace,
    state: PartialState,
    settings: ExtractionSettings,
    encoder: Encoder,
    source: Source,
    *,
    overwrite: bool,
) -> None:
    """Write what is missing of one split; every process calls it."""
    about: list[Any] = [None, None]
    if state.is_main_process:
        new = describe(encoder, source, settings, seed=options.seed, dataset=_dataset(options))
        complete = begin_split(options.output, new, source, overwrite=overwrite)
        record = read_record(options.output)
        assert record is not None
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
        options.output,
        encoder,
        source,
        settings,
        complete,
        options.batch_size,
        options.num_workers,
        description=shown,
    )
    state.wait_for_everyone()
    if state.is_main_process:
        record = finish_split(options.output, source.split, rows_to_cover(source, settings.max_images))
        skipped = record["splits"][source.split]["skipped"]
        if skipped:
            reasons = ", ".join(f"{reason}: {number}" for reason, number in skipped.items())
            logger.warning("Left out images of split `%s` of `%s` (%s).", source.split, source.name, reasons)


def _finish(options: argparse.Namespace, sources: Sequence[Source], command: str) -> None:
    """Index, card and push, by the main process."""
    record = read_record(options.output)
    assert record is not None
    for source in sources:
        known = record["splits"][source.split]
        if options.index is not None and known.get("index") != options.index:
            build_index(options.output, source.split, options.index, progress=True)
    write_feature_card(options.output, command)
    columns = ", ".join(["row_id", *record["labels"], f"embedding ({record['encoder']['dim']} x {options.dtype})"])
    for source in sources:
        rows = sum(record["splits"][source.split]["shards"])
        print(f"{options.output}, split {source.split}: {rows:,} rows of {columns}")
    if options.push:
        url = push_files(
            lambda repo_id: files_to_push(options.output, repo_id, command),
            options.push,
            repo_type="dataset",
            private=options.private,
            message=f"Features of {record['dataset']['dataset']}",
            is_stale=lambda path: path.startswith(("data/", "index/")),
            retry=command,
        )
        print(f"Pushed to {url}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("encoder", metavar="ENCODER", help="folder, Hub repo or timm name; also raw:X and random:X")
    parser.add_argument("--dataset", required=True, help="shapes, digits, folder, parquet or tar file, Hub id")
    parser.add_argument("--dataset_config", help="config of a Hub data set")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a Hub data set")
    parser.add_argument("--split", nargs="+", default=["train"], metavar="NAME", help="splits (default: train)")
    parser.add_argument("--image_column", help="column of the images; found by its type otherwise")
    parser.add_argument("--label_column", help="label column, if it is not found by its type and name")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="folder to write, or to go on with"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the features that the folder holds")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the features")
    parser.add_argument(
        "--rows_per_shard", type=int, default=8192, help="rows of the data set in a file (default: 8192)"
    )
    parser.add_argument("--max_images", type=int, help="use only the first so many images of each split")
    parser.add_argument("--batch_size", type=int, default=256, help="images in a forward pass (default: 256)")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode (default: 2)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if present")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, on CUDA")
    parser.add_argument("--seed", type=int, default=0, help="seed of `random:X` (default: 0)")
    parser.add_argument(
        "--index",
        metavar="faiss[:FACTORY]",
        help="write a faiss index for search.py: `faiss` is exact, `faiss:IVF1024,Flat` faster in millions of images",
    )
    parser.add_argument("--push", metavar="ORG/NAME", help="push the folder to the Hub as a data set with a card")
    parser.add_argument("--private", action="store_true", help="make the pushed data set a private one")
    options = parse_flags(parser, arguments)
    least = {"max_images": 1, "batch_size": 1, "num_workers": 0, "seed": 0, "rows_per_shard": 1}
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise ValueError(f"`--{name}` must be at least {smallest}, got {value}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`--device cuda` needs a CUDA device, but PyTorch sees none. Leave it out.")
    if options.output.suffix == ".parquet":
        raise ValueError(
            f"`--output` is a folder of parquet files, got `{options.output}`. Leave out `.parquet`; "
            "`datasets.load_dataset` and `pandas.read_parquet(FOLDER/data)` read the folder."
        )
    if options.private and not options.push:
        raise ValueError("`--private` is for what is pushed. Add `--push ORG/NAME`, or leave it out.")
    if options.push:
        check_repo_id(options.push)
    if options.index is not None:
        kind, _, factory = options.index.partition(":")
        if kind != "faiss":
            raise ValueError(f"`--index` must be faiss or faiss:FACTORY, got `{options.index}`.")
        options.index = factory or "Flat"
    return options


if __name__ == "__main__":
    with errors_for_users():
        show_log()
        sys.exit(main(sys.argv[1:]))
