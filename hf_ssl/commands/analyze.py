"""Look into frozen encoders: spectrum, ranks, alignment, uniformity, LiDAR, predictor, augmentation beside data.

    hf-ssl analyze runs/first --dataset shapes
    hf-ssl analyze runs/directpred runs/moco resnet50.a1_in1k --dataset uoft-cs/cifar10 --output analysis
    hf-ssl analyze runs/first --dataset uoft-cs/cifar10 --views moco_v2 autoaugment randaugment

ENCODER is the folder of a run, an encoder folder, a repository on the Hub (timm or transformers) or a timm name;
several are put side by side. Of a run the projections are analysed too, and its predictor beside their correlation, as
in figure 2 of the DirectPred paper. Alignment, uniformity and LiDAR compare augmented views. They are made by the
run's own recipe unless `--views` names others (moco_v2 for encoders of other origin): compare encoders under one
recipe. These numbers are those of the first recipe.

For each recipe a table counts the directions of the representations in which augmentation varies more than the data,
and those that the theory of dimensional collapse loses (Jing et al., 2021, theorem 1; one linear layer on top of these
features, trained by InfoNCE). With labels it says what k-NN loses without the dominated directions.

Writes analysis.json and figures for a single local encoder, or wherever `--output` says. With public images they go
into the encoder's folder, which is published with it; with your own images into the folder `evaluations` beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from hf_ssl.commands.analysis_tables import table_of_parts, table_of_recipes
from hf_ssl.commands.command import Command
from hf_ssl.commands.encoder_settings import ReadingSettings, goes_on_card, method_of, place_beside, titles_of
from hf_ssl.data.settings import OF_DATA
from hf_ssl.data.sources.open import Source
from hf_ssl.data.views.cpu import chosen_recipes
from hf_ssl.errors import UserError
from hf_ssl.evaluation.analysis import analyse_features, analyse_predictor
from hf_ssl.evaluation.augmentation import AS_IT_IS, analyse_augmentation
from hf_ssl.evaluation.encoders import Encoder, WithProjection, encoder_folder, load_encoder
from hf_ssl.evaluation.features import extract_features
from hf_ssl.evaluation.references import timm_reference
from hf_ssl.evaluation.view_features import extract_view_features
from hf_ssl.figures.augmentation import augmentation_spectra
from hf_ssl.figures.diagnostics import diagnosis_curves, predictor_curves, spectrum_curves
from hf_ssl.figures.negatives import negative_curves
from hf_ssl.private import public_name
from hf_ssl.settings import check_least, checked
from hf_ssl.training.output import check_outside_data, make_results_folder
from hf_ssl.training.record import RunRecord
from hf_ssl.writing import write_whole

_RECIPE = "moco_v2"  # of encoders that no run of this package made


@checked
class AnalysisSettings(ReadingSettings):
    """What is looked into, and how.

    Args:
        encoders: Folders, repositories on the Hub or timm names; `random:ENCODER` has fresh weights.
        split: Split to look at.
        views: Recipes by which views are made. If not given: that of the run, or moco_v2.
        num_views: Views of an image, at least 2.
        view_images: Images to make views of, at least 2. If not given: 1000, or twice the features if that is more.
        max_images: Size of the sample of the split, at least 2.
        output: Folder for analysis.json and figures, instead of a place in the run of a single local encoder.
    """

    encoders: list[str]
    split: str = "test"
    views: list[str] | None = None
    num_views: int = 10
    view_images: int | None = None
    max_images: int = 10_000
    output: Path | None = None

    def __post_init__(self) -> None:
        self.encoders = list(dict.fromkeys(self.encoders))

    def validate_analysis(self) -> None:
        """Check what can be checked without encoders and data."""
        self.check_reading()
        check_least(self, num_views=2, view_images=2, max_images=2)
        if not self.encoders:
            raise UserError("`encoders` must name at least one encoder, such as `runs/first`.")
        if self.views is not None:
            self.views = chosen_recipes(self.views)


@dataclass(frozen=True)
class AnalysisResult:
    """What was found out about some encoders.

    Args:
        encoders: Title of each encoder -> what its numbers depend on, such as `num_images`, and its parts:
            `representation` and perhaps `projection` and `predictor`, each with `numbers` and `curves`, and
            `augmentation`, which has such for each recipe.
        heading: What was looked at, in one line.
        folder: Where analysis.json and figures are, if they were kept.
        figures: The figures.
    """

    encoders: dict[str, dict[str, Any]]
    heading: str
    folder: Path | None
    figures: list[Path]

    def __str__(self) -> str:
        lines = [f"\n{self.heading}\n", table_of_parts(self.encoders), table_of_recipes(self.encoders)]
        lines += [f"Numbers: {self.folder / 'analysis.json'}"] if self.folder is not None else []
        return "\n".join([*lines, *(f"Figure:  {figure}" for figure in self.figures)])


def run(settings: AnalysisSettings) -> AnalysisResult:
    """Analyse, and keep the numbers and figures where there is a folder for them."""
    folders = {name: encoder_folder(name) for name in settings.encoders}
    titles = titles_of(settings.encoders)
    for name in settings.encoders:  # a name that is not there is told before the work on the others
        timm_reference(name.removeprefix("random:").removeprefix("raw:") or name)
    source = settings.open(settings.split)
    folder = _place(settings, folders[settings.encoders[0]] if len(folders) == 1 else None)
    found = {titles[name]: _analyse(settings, titles[name], name, folder, source) for name, folder in folders.items()}
    figures: list[Path] = []
    if folder is not None:
        heading = f"{Path(source.name).name}, split {settings.split}"
        drawn = _figures(found, {titles[name]: encoder for name, encoder in folders.items()}, heading)
        figures = _keep(settings, source, folder, found, drawn)
    return AnalysisResult(found, _heading(settings, source.name, found), folder, figures)


def _place(settings: AnalysisSettings, encoder: Path | None) -> Path | None:
    """Folder of the numbers and figures: what is private stays out of the encoder's folder, which is published."""
    if settings.output is not None:
        check_outside_data(settings.output, "output", settings)
        make_results_folder(settings.output, "output")
        return settings.output
    if encoder is None:
        return None
    return encoder if goes_on_card(settings, encoder) else place_beside(encoder)


def _analyse(settings: AnalysisSettings, title: str, name: str, folder: Path | None, source: Source) -> dict[str, Any]:
    """The numbers of one encoder, and what they depend on."""
    device = settings.torch_device()
    encoder = load_encoder(name, device, settings.seed)
    width = encoder.dim
    method = method_of(folder)
    if method is not None:
        module = WithProjection(method).to(device).eval().requires_grad_(False)
        encoder = Encoder(module, encoder.transform, width, encoder.name)
    recipe, view_settings, image_size = _recipe_of(folder, encoder)
    recipes = {recipe: view_settings} if settings.views is None else dict.fromkeys(settings.views)
    num_images = settings.view_images or min(max(1000, 2 * width), settings.max_images)
    read = _read(settings, title, encoder, source, recipes, (num_images, image_size))
    first, *_ = read.views.values()
    if len(read.features) < 2 or len(first) < 2:
        raise UserError(f"An analysis needs at least two usable images, but split `{source.split}` gave fewer.")
    parts = {"representation": analyse_features(read.features[:, :width], first[..., :width])}
    if read.features.shape[1] > width:
        parts["projection"] = analyse_features(read.features[:, width:], first[..., width:])
        predictor = getattr(method, "predictor", None)
        if isinstance(predictor, nn.Module) and not isinstance(predictor, nn.Identity):
            # Of views: what the predictor met in training.
            parts["predictor"] = analyse_predictor(predictor.cpu(), first[..., width:].flatten(0, 1))
    about = {
        "num_images": len(read.features),
        "view_images": len(first),
        "views": settings.num_views,
        "view_recipe": next(iter(recipes)),
        "view_settings": next(iter(recipes.values())),
        "image_size": image_size,
        "dims": {"representation": width, "projection": read.features.shape[1] - width},
    }
    augmentation = {
        name: analyse_augmentation(read.plain[:, :width], of_recipe[..., :width], read.labels)
        for name, of_recipe in read.views.items()
    }
    return about | {part: analysis.as_json() for part, analysis in parts.items()} | {"augmentation": augmentation}


class _Read(NamedTuple):
    """Features of one encoder.

    Args:
        features: Of the sample, (images, width).
        plain: Of the images of which views are made, as they are, by the path of views.
        labels: Of these images, by column.
        views: Of their views, (images, views, width), by recipe.
    """

    features: Tensor
    plain: Tensor
    labels: dict[str, Tensor]
    views: dict[str, Tensor]


def _read(
    settings: AnalysisSettings,
    title: str,
    encoder: Encoder,
    source: Source,
    recipes: Mapping[str, Mapping[str, Any] | None],
    sizes: tuple[int, int],
) -> _Read:
    """Run an encoder over a sample of images and over views of some of them; `sizes` are their number and pixels."""
    num_images, image_size = sizes
    reading: dict[str, Any] = {"batch_size": settings.batch_size, "num_workers": settings.num_workers}
    labels, features = {}, torch.empty(0)
    for size in sorted({num_images, settings.max_images}):  # the smaller sample is that of the views
        found = extract_features(encoder, source, max_images=size, description=f"{title}, {source.split}", **reading)
        features, labels = found.features, labels or found.labels

    def view_features(recipe: str, num_views: int, changed: Mapping[str, Any] | None, what: str) -> Tensor:
        return extract_view_features(
            *(encoder, source, recipe, num_views),
            image_size=image_size,
            max_images=num_images,
            seed=settings.seed,
            view_settings=changed,
            description=f"{title}, {what}",
            **reading,
        )

    views = {
        name: view_features(name, settings.num_views, changed, f"{settings.num_views} views by {name}")
        for name, changed in recipes.items()
    }
    return _Read(features, view_features("crop_and_flip", 1, AS_IT_IS, "as they are")[:, 0], labels, views)


def _recipe_of(folder: Path | None, encoder: Encoder) -> tuple[str, dict[str, Any] | None, int]:
    """Augmentation and size of the views that an encoder was trained on, as far as it tells."""
    run = RunRecord.read(folder) if folder is not None else None
    if run is not None:
        size = run.config.get("image_size") or _input_size(encoder)
        return run.data.get("view_recipe") or _RECIPE, run.data.get("view_settings"), size
    return _RECIPE, None, _input_size(encoder)


def _input_size(encoder: Encoder) -> int:
    return encoder.transform(Image.new("RGB", (64, 64))).shape[-1]


def _heading(settings: AnalysisSettings, dataset: str, found: dict[str, dict[str, Any]]) -> str:
    num_images = next(iter(found.values()))["num_images"]
    recipes = ", ".join(dict.fromkeys(each["view_recipe"] for each in found.values()))
    counts = {each["view_images"] for each in found.values()}
    images = f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
    return (
        f"{dataset}, split {settings.split}: {num_images:,} images; alignment, uniformity and LiDAR from "
        f"{settings.num_views} views of {images} by recipe {recipes}"
    )


def _figures(found: dict[str, dict[str, Any]], folders: dict[str, Path | None], heading: str) -> dict[str, Figure]:
    """Figures of all encoders together and, from the record of a run, of each; by file name.

    Args:
        found: By title.
        folders: Encoder folder of each title, if it is a local one.
        heading: Title of the figures.
    """
    panels = {
        part: {title: each[part]["curves"]["spectrum"] for title, each in found.items() if part in each}
        for part in ("representation", "projection")
    }
    drawn = {"analysis-spectrum.png": spectrum_curves(panels, heading)}
    spectra = {
        f"{title}, {recipe}": one["curves"]
        for title, each in found.items()
        for recipe, one in each["augmentation"].items()
    }
    drawn["analysis-augmentation.png"] = augmentation_spectra(spectra, heading)
    predictors = {title: each["predictor"]["curves"] for title, each in found.items() if "predictor" in each}
    if predictors:
        drawn["analysis-predictor.png"] = predictor_curves(predictors, heading)
    for title, encoder in folders.items():
        run_folder = encoder.parent if encoder is not None and encoder.name == "encoder" else None
        prefix = f"{title}-" if len(folders) > 1 else ""
        if run_folder is not None and (run_folder / "metrics.jsonl").is_file():
            negatives = negative_curves(run_folder / "metrics.jsonl")
            drawn |= {f"{prefix}negatives.png": negatives} if negatives is not None else {}
            diagnoses = diagnosis_curves(run_folder / "diagnostics.jsonl")
            drawn |= {f"{prefix}diagnostics.png": diagnoses} if diagnoses is not None else {}
    return drawn


def _keep(
    settings: AnalysisSettings,
    source: Source,
    folder: Path,
    found: dict[str, dict[str, Any]],
    drawn: dict[str, Figure],
) -> list[Path]:
    """Write the numbers and the figures; returns where the figures are."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    content = {
        "dataset": public_name(source.name, source.kind),
        "dataset_kind": source.kind,
        "dataset_config": settings.dataset_config,
        "split": settings.split,
        "seed": settings.seed,
        "encoders": found,
    }
    write_whole(folder / "analysis.json", json.dumps(content, indent=2) + "\n")
    paths = []
    for name, figure in drawn.items():
        paths.append(figures / name.replace("/", "-"))
        figure.savefig(paths[-1])
    return paths


COMMAND = Command(
    "analyze",
    AnalysisSettings,
    run,
    __doc__ or "",
    words=("encoders",),
    first=("dataset", "split", "max_images", "views", "num_views", "output", "batch_size", "device"),
    groups={"data": OF_DATA},
)
