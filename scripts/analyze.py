"""Look into frozen encoders without labels: spectrum, ranks, alignment, uniformity, LiDAR, predictor.

    python scripts/analyze.py runs/first --dataset shapes
    python scripts/analyze.py runs/directpred runs/moco resnet50.a1_in1k --dataset uoft-cs/cifar10 --output analysis

ENCODER is the folder of a run, an encoder folder, a repo on the Hub (timm or transformers) or a timm name; several are
put side by side. Of a run the projections are analysed too, and its predictor beside their correlation, as in figure 2
of the DirectPred paper. Alignment, uniformity and LiDAR compare augmented views, made by the run's own recipe unless
`--view_recipe` says otherwise (moco_v2 for encoders of other origin): compare encoders under one recipe.

Writes analysis.json and figures: into the encoder folder of a single local encoder, else to `--output`.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForPreTraining

from hf_ssl.cli import errors_for_users, parse_flags, show_log
from hf_ssl.data.sources import Source, open_source
from hf_ssl.data.views import find_recipe
from hf_ssl.evaluation.analysis import (
    FEATURE_NUMBERS,
    PREDICTOR_NUMBERS,
    Analysis,
    analyse_features,
    analyse_predictor,
)
from hf_ssl.evaluation.encoders import WithProjection
from hf_ssl.evaluation.features import Encoder, encoder_folder, extract_features, load_encoder
from hf_ssl.evaluation.view_features import extract_view_features
from hf_ssl.figures.diagnostics import diagnosis_curves, predictor_curves, spectrum_curves
from hf_ssl.figures.negatives import negative_curves
from hf_ssl.methods.base import SSLPreTrainedModel

_RECIPE = "moco_v2"  # of encoders that no run of this package made
_PARTS = {"representation": FEATURE_NUMBERS, "projection": FEATURE_NUMBERS, "predictor": PREDICTOR_NUMBERS}


def main(arguments: list[str]) -> int:
    """Parse, analyse, print and keep; returns the exit code."""
    options = _parse(arguments)
    folders = {name: encoder_folder(name) for name in options.encoders}
    titles = _titles(folders)
    source = open_source(
        options.dataset,
        config=options.dataset_config,
        split=options.split,
        revision=options.dataset_revision,
        image_column=options.image_column,
    )
    found = {titles[name]: _analyse(options, titles[name], name, folders[name], source) for name in options.encoders}
    print(f"\n{_heading(options, found)}\n")
    print(_table({title: each.parts for title, each in found.items()}))
    folder = options.output or (folders[options.encoders[0]] if len(options.encoders) == 1 else None)
    if folder is not None:
        _keep(options, folder, folders, titles, found)
    return 0


@dataclass(frozen=True)
class _Analysed:
    """What was found out about one encoder.

    Args:
        parts: `representation` and perhaps `projection` and `predictor`.
        about: What the numbers depend on.
    """

    parts: dict[str, Analysis]
    about: dict[str, Any]


def _analyse(options: argparse.Namespace, title: str, name: str, folder: Path | None, source: Source) -> _Analysed:
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    encoder = load_encoder(name, device, options.seed)
    width = encoder.dim
    method = _method_of(folder)
    if method is not None:
        module = WithProjection(method).to(device).eval().requires_grad_(False)
        encoder = Encoder(module, encoder.transform, width, encoder.name)
    recipe, image_size = _recipe_of(folder, encoder)
    recipe = options.view_recipe or recipe
    num_images = options.view_images or min(max(1000, 2 * width), options.max_images)
    features = extract_features(
        encoder,
        source,
        options.batch_size,
        options.num_workers,
        max_images=options.max_images,
        description=f"{title}, {source.split}",
    ).features
    views = extract_view_features(
        encoder,
        source,
        recipe,
        options.views,
        image_size=image_size,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        max_images=num_images,
        seed=options.seed,
        description=f"{title}, {options.views} views by {recipe}",
    )
    if len(features) < 2 or len(views) < 2:
        raise ValueError(f"An analysis needs at least two usable images, but split `{source.split}` gave fewer.")
    parts = {"representation": analyse_features(features[:, :width], views[..., :width])}
    if features.shape[1] > width:
        parts["projection"] = analyse_features(features[:, width:], views[..., width:])
        predictor = getattr(method, "predictor", None)
        if isinstance(predictor, nn.Module) and not isinstance(predictor, nn.Identity):
            # Of views: what the predictor met in training.
            parts["predictor"] = analyse_predictor(predictor.cpu(), views[..., width:].flatten(0, 1))
    about = {
        "num_images": len(features),
        "view_images": len(views),
        "views": options.views,
        "view_recipe": recipe,
        "image_size": image_size,
        "dims": {"representation": width, "projection": features.shape[1] - width},
    }
    return _Analysed(parts, about)


def _method_of(folder: Path | None) -> SSLPreTrainedModel | None:
    """The method of a run, in evaluation mode, if the encoder folder belongs to one."""
    pretraining = folder.parent / "pretraining" if folder is not None and folder.name == "encoder" else None
    if pretraining is None or not (pretraining / "config.json").is_file():
        return None
    return AutoModelForPreTraining.from_pretrained(pretraining).eval()


def _recipe_of(folder: Path | None, encoder: Encoder) -> tuple[str, int]:
    """Augmentation and size of the views that an encoder was trained on, as far as it tells."""
    run = folder / "run.json" if folder is not None else None
    if run is not None and run.is_file():
        told = json.loads(run.read_text(encoding="utf-8"))
        return told["data"]["view_recipe"], told["config"]["image_size"]
    return _RECIPE, _input_size(encoder)


def _input_size(encoder: Encoder) -> int:
    return encoder.transform(Image.new("RGB", (64, 64))).shape[-1]


def _heading(options: argparse.Namespace, found: dict[str, _Analysed]) -> str:
    about = next(iter(found.values())).about
    recipes = ", ".join(dict.fromkeys(each.about["view_recipe"] for each in found.values()))
    counts = {each.about["view_images"] for each in found.values()}
    images = f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
    return (
        f"{options.dataset}, split {options.split}: {about['num_images']:,} images; alignment, uniformity and LiDAR "
        f"from {options.views} views of {images} by recipe {recipes}"
    )


def _table(analyses: dict[str, dict[str, Analysis]]) -> str:
    """A block for each part: a row for each number, a column for each encoder, and what the number says."""
    blocks = []
    for part, meanings in _PARTS.items():
        columns = {title: parts[part].numbers for title, parts in analyses.items() if part in parts}
        if not columns:
            continue
        first = max(len(part), *map(len, meanings))
        widths = {title: max(8, len(title)) for title in columns}
        head = part.ljust(first) + "".join(f"  {title:>{widths[title]}}" for title in columns)
        lines = [head, "-" * len(head)]
        for number, meaning in meanings.items():
            if not any(number in numbers for numbers in columns.values()):
                continue
            cells = "".join(
                f"  {f'{numbers[number]:.4g}' if number in numbers else '':>{widths[title]}}"
                for title, numbers in columns.items()
            )
            lines.append(f"{number.ljust(first)}{cells}  {meaning}")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _keep(
    options: argparse.Namespace,
    folder: Path,
    folders: dict[str, Path | None],
    titles: dict[str, str],
    found: dict[str, _Analysed],
) -> None:
    """Write the numbers and the figures."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    content = {
        "dataset": options.dataset,
        "dataset_config": options.dataset_config,
        "split": options.split,
        "seed": options.seed,
        "encoders": {
            title: {**each.about, **{part: analysis.as_json() for part, analysis in each.parts.items()}}
            for title, each in found.items()
        },
    }
    (folder / "analysis.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    heading = f"{Path(options.dataset).name}, split {options.split}"
    panels = {
        part: {title: each.parts[part].curves["spectrum"] for title, each in found.items() if part in each.parts}
        for part in ("representation", "projection")
    }
    drawn = {"analysis-spectrum.png": spectrum_curves(panels, heading)}
    predictors = {title: each.parts["predictor"].curves for title, each in found.items() if "predictor" in each.parts}
    if predictors:
        drawn["analysis-predictor.png"] = predictor_curves(predictors, heading)
    for name, encoder in folders.items():
        run = encoder.parent if encoder is not None and encoder.name == "encoder" else None
        prefix = f"{titles[name]}-" if len(folders) > 1 else ""
        if run is not None and (run / "metrics.jsonl").is_file():
            figure = negative_curves(run / "metrics.jsonl")
            drawn |= {f"{prefix}negatives.png": figure} if figure is not None else {}
            figure = diagnosis_curves(run / "diagnostics.jsonl")
            drawn |= {f"{prefix}diagnostics.png": figure} if figure is not None else {}
    for name, figure in drawn.items():
        figure.savefig(figures / name.replace("/", "-"))
    print(f"Numbers: {folder / 'analysis.json'}")
    for name in drawn:
        print(f"Figure:  {figures / name.replace('/', '-')}")


def _titles(folders: dict[str, Path | None]) -> dict[str, str]:
    """What table and figures call the encoders: local ones by their run's name, if that names only one."""
    short = {}
    for name, folder in folders.items():
        resolved = folder.resolve() if folder is not None else None
        run = resolved.parent if resolved is not None and resolved.name == "encoder" else resolved
        short[name] = run.name if run is not None else name
    doubled = [title for title in short.values() if list(short.values()).count(title) > 1]
    return {name: name if title in doubled else title for name, title in short.items()}


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("encoders", metavar="ENCODER", nargs="+", help="folder, Hub repo or timm name; also random:X")
    parser.add_argument("--dataset", required=True, help="shapes, digits, folder, parquet or tar file, Hub id")
    parser.add_argument("--dataset_config", help="config of a Hub data set")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a Hub data set")
    parser.add_argument("--split", default="test", help="split to look at (default: test)")
    parser.add_argument("--image_column", help="column of the images; found by its type otherwise")
    parser.add_argument("--view_recipe", help=f"augmentation; default: the run's own, or {_RECIPE}")
    parser.add_argument("--views", type=int, default=10, help="views of an image, at least 2 (default: 10)")
    parser.add_argument(
        "--view_images", type=int, help="images to make views of; default: 1000, or twice the features if that is more"
    )
    parser.add_argument("--max_images", type=int, default=10_000, help="images of the split (default: 10000)")
    parser.add_argument("--batch_size", type=int, default=256, help="images in a forward pass (default: 256)")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode (default: 2)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if present")
    parser.add_argument("--seed", type=int, default=0, help="seed of the views and of random:X (default: 0)")
    parser.add_argument("--output", type=Path, help="folder for analysis.json and figures")
    options = parse_flags(parser, arguments)
    least = {"views": 2, "view_images": 2, "max_images": 2, "batch_size": 1, "num_workers": 0, "seed": 0}
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise ValueError(f"`--{name}` must be at least {smallest}, got {value}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`--device cuda` needs a CUDA device, but PyTorch sees none. Leave it out.")
    if options.view_recipe is not None:
        find_recipe(options.view_recipe)
    if options.output is not None and options.output.is_file():
        raise ValueError(f"`--output` must be a folder, but `{options.output}` is a file.")
    options.encoders = list(dict.fromkeys(options.encoders))
    return options


if __name__ == "__main__":
    with errors_for_users():
        show_log()
        sys.exit(main(sys.argv[1:]))
