"""Score a frozen encoder on labelled images: weighted k-NN, linear probes and clustering.

    hf-ssl evaluate runs/first --dataset shapes --label_column all --baselines raw random
    hf-ssl evaluate resnet50.a1_in1k knn linear --dataset photos --split validation

ENCODER is the folder of a run, an encoder folder, a repository on the Hub (timm or transformers) or a timm name.
PROTOCOL is knn, linear, linear-sgd (MoCo), linear-byol, linear-luckmatters or clustering; without one it is knn and
linear. `clustering` compares clusters of the scored split with its labels: those of the run's own method, or, where
the method has none, those that k-means finds in the features.

The numbers of a run go into its encoder's results.json, model card and figures, which `hf-ssl publish` publishes.
Numbers of images on this machine that the encoder was not trained on go into the folder `evaluations`, beside the
encoder, which is never published. `--card` puts them on the card instead, `--no_card` keeps any numbers off it.

`linear-sgd` and `linear-byol` are trained on random crops and flips in their papers. `--augmented_passes 100` does
that, exactly: the encoder is frozen, so its features of 100 augmented passes over the training split, one for each
epoch, are computed first (80 are enough for `linear-byol`). Fewer passes are used again in later epochs.

`--verify` measures again what the results.json beside an encoder says, by the settings that stand there, and reports
each number as equal, different or not checkable here; a number that the card shows otherwise is different too.
`--dataset` names your copy of a data set that was a folder.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_ssl.commands.command import Command
from hf_ssl.commands.encoder_settings import (
    check_output_file,
    goes_on_card,
    how_to_load,
    method_of,
    place_beside,
    titles_of,
)
from hf_ssl.commands.evaluation_settings import EvaluationSettings
from hf_ssl.commands.verify import VerificationResult, verify
from hf_ssl.data.settings import OF_DATA
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.clustering import write_assignments
from hf_ssl.evaluation.comparison import BASELINES, Comparison, compare, shared_labels
from hf_ssl.evaluation.encoders import Encoder, encoder_folder, load_encoder
from hf_ssl.evaluation.portrait import take_portrait
from hf_ssl.evaluation.results import (
    Table,
    draw_table,
    entries_of,
    heading_of,
    results_in,
    table_of,
    table_text,
    update_results,
)
from hf_ssl.hub.embedding import SHOWN_BY_DEFAULT, write_embedding
from hf_ssl.hub.model_card import write_model_card
from hf_ssl.invocation import command_line
from hf_ssl.private import folders_among, public_command, public_name
from hf_ssl.training.files import RUN_FILE


@dataclass(frozen=True)
class EvaluationResult:
    """What an encoder reached.

    Args:
        results: A dict for each number, as in results.json: `dataset`, `split`, `label`, `protocol`, `metric`, `value`
            (1 at best), `settings`, `baselines` and others.
        table: Protocol -> title of the encoder or baseline -> label column -> value.
        chance: Label column -> accuracy of always answering the most frequent class.
        heading: What was scored, in one line.
        notes: What one should know of these numbers.
        folder: Folder of a local encoder, else None.
        results_file: File with all results so far, if they were kept.
        figure: Picture of the accuracies, if it was drawn.
        clusters: File with the cluster of each image, if the run's own method assigned them.
        card: Model card that was updated, if any.
        loading: How to load the encoder.
    """

    results: list[dict[str, Any]]
    table: Table
    chance: dict[str, float]
    heading: str
    notes: list[str]
    folder: Path | None
    results_file: Path | None = None
    figure: Path | None = None
    clusters: Path | None = None
    card: Path | None = None
    loading: str = ""

    def __str__(self) -> str:
        files = {"Clusters": self.clusters, "Results": self.results_file, "Figure": self.figure, "Card": self.card}
        lines = [f"\n{self.heading}\n", table_text(self.table, self.chance)]
        lines += [f"{f'{name}:':9}{path}" for name, path in files.items() if path is not None]
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join([*lines, self.loading] if self.loading else lines)


@dataclass(frozen=True)
class _Place:
    """Where the numbers of an evaluation are kept."""

    results: Path
    figure: Path
    clusters: Path


def run(settings: EvaluationSettings) -> EvaluationResult | VerificationResult:
    """Measure, and keep the numbers where they belong; or verify those that are there."""
    if settings.verify:
        return verify(settings.encoder, settings)
    folder = encoder_folder(settings.encoder)
    encoders = _load(settings)  # first: if it cannot be loaded, that is what to tell
    opened = replace(settings, label_column=None) if settings.label_column == "all" else settings
    test_source = opened.open(settings.split)
    train_source = test_source if settings.only_clusters() else opened.open(settings.train_split)
    labels = shared_labels(train_source, test_source, settings.label_column)
    if settings.card and (folder is None or not (folder / RUN_FILE).is_file()):
        raise UserError(f"`card` needs the folder of a run, got the encoder `{settings.encoder}`. Leave it out.")
    on_card = goes_on_card(settings, folder, settings.card, settings.output)
    place = _place(settings, folder, on_card, test_source.name)
    if place is not None:
        results_in(place.results)  # a file that cannot be added to is told before the work
    comparison = _measure(settings, folder, encoders, train_source, test_source, labels)

    name, kind = test_source.name, test_source.kind
    stays = folder is not None and not on_card and settings.output is None  # in `evaluations`, whole
    about: dict[str, Any] = {"dataset": name if stays else public_name(name, kind), "dataset_kind": kind}
    about |= {"dataset_config": settings.dataset_config, "split": settings.split}
    command = public_command(command_line(), name, kind, folders_among([settings.encoder]))
    results = entries_of(comparison, {**about, "command": command}, settings.train_split)
    table = table_of(comparison)
    stay = _keep(place, comparison, results, table, about) if place is not None else []
    card = None
    if folder is not None and on_card and (folder / RUN_FILE).is_file():
        *others, own = encoders
        shown = {name: encoders[name] for name in others} | {"this encoder": encoders[own]}
        gallery = test_source.name in SHOWN_BY_DEFAULT if settings.gallery is None else settings.gallery
        portrait = take_portrait(shown, test_source, settings.batch_size, settings.num_workers, gallery=gallery)
        write_embedding(folder, portrait, about)
        card = write_model_card(folder)
    return EvaluationResult(
        results,
        table,
        comparison.chance,
        heading_of(comparison, test_source.name, settings.split, settings.train_split),
        [*_notes(settings, folder, on_card, test_source.name, comparison), *_notes_of_more(stay, place)],
        folder,
        results_file=place.results if place is not None else None,
        figure=place.figure if place is not None and not stay else None,
        clusters=place.clusters if place is not None and comparison.clusters is not None and not stay else None,
        card=card,
        loading=how_to_load(folder) if settings.show_loading and folder is not None else "",
    )


def _load(settings: EvaluationSettings) -> dict[str, Encoder]:
    """The baselines and, last, the encoder, by their titles."""
    names = {BASELINES[baseline]: f"{baseline}:{settings.encoder}" for baseline in settings.baselines}
    names |= {titles_of([settings.encoder])[settings.encoder]: settings.encoder}
    # The encoder itself first, for the same reason.
    loaded = {
        title: load_encoder(name, settings.torch_device(), settings.seed) for title, name in reversed(names.items())
    }
    return {title: loaded[title] for title in names}


def _measure(
    settings: EvaluationSettings,
    folder: Path | None,
    encoders: dict[str, Encoder],
    train_source: Source,
    test_source: Source,
    labels: list[str],
) -> Comparison:
    """Numbers of the baselines and, last, of the encoder."""
    method = method_of(folder, settings.torch_device()) if "clustering" in settings.protocols else None
    return compare(
        encoders,
        train_source,
        test_source,
        labels,
        settings.protocols,
        k=settings.k,
        temperature=settings.temperature,
        seed=settings.seed,
        augmented_passes=settings.augmented_passes,
        method=method if hasattr(method, "assign") else None,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        max_images=settings.max_images,
        bf16=settings.bf16,
    )


def _place(settings: EvaluationSettings, folder: Path | None, on_card: bool, dataset: str) -> _Place | None:
    slug = re.sub(r"[^\w-]+", "-", Path(dataset).name).strip("-") or "data"
    if settings.output is not None:
        check_output_file(settings.output, "output")
        return _Place(settings.output, settings.output.with_suffix(".png"), settings.output.with_suffix(".parquet"))
    if folder is None:
        return None
    if on_card:
        figure = folder / "figures" / f"evaluation-{slug}.png"
        return _Place(folder / "results.json", figure, folder / "assignments.parquet")
    beside = place_beside(folder)
    return _Place(beside / "results.json", beside / f"{slug}.png", beside / f"{slug}.parquet")


def _keep(
    place: _Place, comparison: Comparison, results: list[dict[str, Any]], table: Table, about: dict[str, Any]
) -> list[dict[str, Any]]:
    """Write the results, the figure and the clusters, which stay as they are beside results of more images.

    Returns:
        Those results.
    """
    stay = update_results(place.results, results)
    if stay:
        return stay
    clusters = comparison.clusters
    if clusters is not None:
        written = {name: value or "" for name, value in about.items()}
        write_assignments(place.clusters, clusters.row_ids, clusters.features, written)
    place.figure.parent.mkdir(parents=True, exist_ok=True)
    title = f"Frozen encoder on {Path(about['dataset']).name}, split {about['split']}"
    draw_table(table, comparison.chance, title).savefig(place.figure)
    return []


def _notes(
    settings: EvaluationSettings, folder: Path | None, on_card: bool, dataset: str, comparison: Comparison
) -> list[str]:
    notes = []
    count = comparison.num_train_images
    if "knn" in settings.protocols and settings.k > count:
        notes.append(f"k-NN uses all {count:,} training images, fewer than `--k` {settings.k}.")
    if folder is None or settings.output is not None or settings.card is not None or on_card:
        return notes
    if (folder / RUN_FILE).is_file():
        notes.append(
            f"the model card stays as it is, because `{dataset}` is on this machine and the encoder was not trained "
            "on it. `--card` puts the numbers on the card."
        )
    elif folder.name == "pretraining" and (folder.parent / "encoder" / RUN_FILE).is_file():
        notes.append(f"the model card is that of the run: evaluate `{folder.parent}` to put the numbers on it.")
    return notes


def _notes_of_more(stay: list[dict[str, Any]], place: _Place | None) -> list[str]:
    """What is said of results that stay because they are of more images."""
    if not stay or place is None:
        return []
    names = ", ".join(f"{one['protocol']} of {one['label']}" for one in stay)
    return [
        f"`{place.results}` keeps what it says of {names}, with its figure, because that was measured on more images. "
        "Leave out `--max_images` to replace it, or write these numbers into another file by `--output`."
    ]


COMMAND = Command(
    "evaluate",
    EvaluationSettings,
    run,
    __doc__ or "",
    words=("encoder", "protocols"),
    first=("dataset", "split", "label_column", "baselines", "max_images", "card", "output", "verify", "device"),
    groups={
        "data": (*(name for name in OF_DATA if name != "label_column"), "train_split"),
        "protocols": ("k", "temperature", "augmented_passes", "seed"),
        "speed": ("batch_size", "bf16", "num_workers"),
        "what is shown": ("gallery", "show_loading"),
    },
)
