"""Write the features that a frozen encoder computes for a data set, with row numbers and labels, as parquet.

    python scripts/extract_features.py runs/first --dataset shapes --split test --output features.parquet

ENCODER is the folder of a run, an encoder folder, a repo on the Hub (timm or transformers) or a timm name. The data
set is streamed; labels are not needed. `datasets.load_dataset("parquet", data_files="features.parquet")` reads the
file.
"""

import argparse
import sys
from pathlib import Path

import torch

from hf_ssl.cli import errors_for_users, near_name, show_log
from hf_ssl.data.sources import open_source
from hf_ssl.evaluation.export_features import write_features
from hf_ssl.evaluation.features import feature_batches, load_encoder


def main(arguments: list[str]) -> int:
    """Parse, extract, print what was written; returns the exit code."""
    options = _parse(arguments)
    if options.output.is_dir() or (options.output.exists() and not options.overwrite):
        raise ValueError(f"`--output` `{options.output}` exists. Choose another file, or add `--overwrite`.")
    source = open_source(
        options.dataset,
        config=options.dataset_config,
        split=options.split,
        revision=options.dataset_revision,
        image_column=options.image_column,
        label_column=options.label_column,
    )
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    encoder = load_encoder(options.encoder, device, options.seed)
    batches = feature_batches(
        encoder,
        source,
        options.batch_size,
        options.num_workers,
        max_images=options.max_images,
        bf16=options.bf16,
        description=f"features of {source.split}",
    )
    num_rows = write_features(options.output, batches, source.labels, encoder.dim, options.dtype)
    columns = ", ".join(["row_id", *source.labels, f"embedding ({encoder.dim} x {options.dtype})"])
    print(f"{options.output}: {num_rows:,} rows of {columns}")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("encoder", metavar="ENCODER", help="folder, Hub repo or timm name; also raw:X and random:X")
    parser.add_argument("--dataset", required=True, help="shapes, digits, folder, parquet or tar file, Hub id")
    parser.add_argument("--dataset_config", help="config of a Hub data set")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a Hub data set")
    parser.add_argument("--split", default="train", help="split to read (default: train)")
    parser.add_argument("--image_column", help="column of the images; found by its type otherwise")
    parser.add_argument("--label_column", help="label column, if it is not found by its type and name")
    parser.add_argument("--output", type=Path, required=True, help="parquet file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="type of the features")
    parser.add_argument("--max_images", type=int, help="use only the first so many images")
    parser.add_argument("--batch_size", type=int, default=256, help="images in a forward pass (default: 256)")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode (default: 2)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if present")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, on CUDA")
    parser.add_argument("--seed", type=int, default=0, help="seed of `random:X` (default: 0)")
    options, unknown = parser.parse_known_args(arguments)
    for word in unknown:
        known_flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
        raise ValueError(f"Unknown flag `{word}`.{near_name(word, known_flags) or ' `--help` lists them all.'}")
    for name, least in {"max_images": 1, "batch_size": 1, "num_workers": 0, "seed": 0}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"`--{name}` must be at least {least}, got {value}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`--device cuda` needs a CUDA device, but PyTorch sees none. Leave it out.")
    return options


if __name__ == "__main__":
    with errors_for_users():
        show_log()
        sys.exit(main(sys.argv[1:]))
