"""Find the images of a data set that are nearest to given ones, by the features that extract_features.py wrote.

    python scripts/extract_features.py runs/first --dataset photos --output features --index faiss
    python scripts/search.py cat.jpg dog.jpg --index features --k 9 --figure neighbours.png

--index takes the folder, or the repo to which it was pushed. The features of the given images are computed by the
encoder that computed the folder's; a faiss index is used where there is one, else every feature is compared, with the
same result. Similarities are cosines. --figure draws the neighbours, for which the data set must be at hand.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hf_ssl.cli import errors_for_users, parse_flags, show_log
from hf_ssl.data.decode import SkippedImageError, decode
from hf_ssl.data.rows import RowReader
from hf_ssl.data.sources import Source, open_source
from hf_ssl.evaluation.encoders import Encoder, load_encoder
from hf_ssl.evaluation.search import Neighbours, SavedFeatures, features_of_pictures, nearest, open_features
from hf_ssl.figures.neighbours import neighbour_gallery


def main(arguments: list[str]) -> int:
    """Parse, search, print and draw; returns the exit code."""
    options = _parse(arguments)
    pictures = [_picture(image) for image in options.images]
    saved = open_features(options.index, options.split, options.revision)
    encoder = _encoder_of(saved, options)
    source = _source_of(saved, options) if options.figure else None
    queries = features_of_pictures(encoder, pictures)
    found = nearest(saved, queries, options.k, exact=options.exact, progress=True)
    for number, image in enumerate(options.images):
        print(f"\n{image}\n{_table(saved, found, number)}")
    if source is not None:
        _draw(options, pictures, saved, source, found)
        print(f"\n{options.figure}: the neighbours")
    return 0


def _picture(image: str) -> NDArray[np.uint8]:
    try:
        return decode(image)
    except SkippedImageError as error:
        raise ValueError(f"`{image}` cannot be read as an image: {error.reason}. Give another.") from None


def _encoder_of(saved: SavedFeatures, options: argparse.Namespace) -> Encoder:
    """The encoder that computed the features, here perhaps under another name."""
    about = saved.record["encoder"]
    name = options.encoder or about["name"]
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        encoder = load_encoder(name, device, about["seed"])
    except ValueError as error:
        if options.encoder:
            raise
        raise ValueError(
            f"The features are of the encoder `{name}`, which is not at hand: {error} Say where it is by `--encoder`."
        ) from None
    if encoder.fingerprint() != about["fingerprint"]:
        raise ValueError(
            f"The features in `{saved.name}` are of another encoder than `{name}` is now: weights or preprocessing "
            f"differ. Extract them again, or name the encoder (then `{about['name']}`) by `--encoder`."
        )
    return encoder


def _source_of(saved: SavedFeatures, options: argparse.Namespace) -> Source:
    about = dict(saved.record["dataset"])
    name = options.dataset or about["dataset"]
    source = open_source(**(about | {"dataset": name}), split=saved.split)
    if source.fingerprint != saved.record["splits"][saved.split]["fingerprint"]:
        raise ValueError(
            f"`{name}` is not the data set whose features `{saved.name}` holds, or it has changed. Name the one by "
            "`--dataset`, or leave out `--figure`."
        )
    return source


def _table(saved: SavedFeatures, found: Neighbours, query: int) -> str:
    rows = [["", "similarity", "row_id", *found.labels]]
    for place, row_id in enumerate(found.row_ids[query]):
        if row_id >= 0:
            labels = [_name(saved.record["labels"][name], found.labels[name][query, place]) for name in found.labels]
            rows.append([str(place + 1), f"{found.similarities[query, place]:.4f}", str(row_id), *labels])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _name(names: list[str], label: int) -> str:
    if label < 0:
        return "-"
    return names[label] if names else str(label)


def _draw(
    options: argparse.Namespace,
    pictures: Sequence[NDArray[np.uint8]],
    saved: SavedFeatures,
    source: Source,
    found: Neighbours,
) -> None:
    """A row for each given image, followed by its neighbours."""
    images = RowReader(source).images(int(row) for row in np.unique(found.row_ids) if row >= 0)
    blank = np.full((1, 1, 3), 255, np.uint8)
    main_label = next(iter(found.labels), None)
    rows, titles = [], []
    for query, name in enumerate(options.images):
        rows.append([pictures[query], *(decode(images[row]) if row >= 0 else blank for row in found.row_ids[query])])
        titles.append([Path(name).name])
        for place, row in enumerate(found.row_ids[query]):
            title = f"{found.similarities[query, place]:.3f}" if row >= 0 else ""
            if main_label is not None and row >= 0:
                label = found.labels[main_label][query, place]
                title += f" {_name(saved.record['labels'][main_label], label)}"
            titles[-1].append(title)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    neighbour_gallery(rows, titles=titles).savefig(options.figure)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files to find the neighbours of")
    parser.add_argument("--index", required=True, help="folder of extract_features.py, or the repo it was pushed to")
    parser.add_argument("--split", help="split to search in (default: the only one, or train)")
    parser.add_argument("--revision", help="branch, tag or commit of a repo")
    parser.add_argument("--k", type=int, default=9, help="neighbours of each image (default: 9)")
    parser.add_argument("--figure", type=Path, help="picture of the neighbours to write, such as neighbours.png")
    parser.add_argument("--exact", action="store_true", help="compare with every feature, although there is an index")
    parser.add_argument("--encoder", help="where the encoder of the features is, if it has moved")
    parser.add_argument("--dataset", help="where the data set of the features is, if it has moved")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if present")
    options = parse_flags(parser, arguments)
    if options.k < 1:
        raise ValueError(f"`--k` must be at least 1, got {options.k}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`--device cuda` needs a CUDA device, but PyTorch sees none. Leave it out.")
    return options


if __name__ == "__main__":
    with errors_for_users():
        show_log()
        sys.exit(main(sys.argv[1:]))
