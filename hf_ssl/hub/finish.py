"""The end of a pretraining run: its encoder exported, measured, drawn, described, and published if wanted."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import load_encoder
from hf_ssl.evaluation.portrait import take_portrait
from hf_ssl.evaluation.results import update_results
from hf_ssl.figures.diagnostics import diagnosis_curves
from hf_ssl.figures.negatives import negative_curves
from hf_ssl.figures.training import training_curves
from hf_ssl.hub.background import BackgroundPublisher
from hf_ssl.hub.embedding import SHOWN_BY_DEFAULT, write_embedding
from hf_ssl.hub.export import export_run
from hf_ssl.hub.model_card import write_model_card
from hf_ssl.hub.publish import publish, publish_command
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.private import public_name
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.record import RunRecord
from hf_ssl.training.watch.knn import KNN, open_knn
from hf_ssl.training.watch.signals import StopSignal

logger = logging.getLogger(__name__)


@dataclass
class Finish:
    """What a run has left at its end.

    Args:
        encoder: The encoder folder.
        url: Its address on the Hub, if it was published.
        unpublished: What should be on the Hub and is not, where it lies and which command publishes it; a sentence
            for each.
        signal: Number of the signal that ended the publishing, 0 if none came.
    """

    encoder: Path
    url: str | None = None
    unpublished: list[str] = field(default_factory=list)
    signal: int = 0


def finish_run(
    model: SSLPreTrainedModel,
    source: Source,
    data: DataSettings,
    settings: TrainingSettings,
    publisher: BackgroundPublisher | None,
) -> Finish:
    """Export, measure, draw, describe and publish; called by the first process.

    A push that fails does not raise: the run is whole without it, and its result says what is left to do.

    Args:
        model: The trained method.
        source: The split that it was trained on.
        data: Where the other splits are.
        settings: What to publish, and what to show.
        publisher: What has published checkpoints; its last uploads are waited for.
    """
    run_dir = Path(settings.output_dir)
    encoder = export_run(model, run_dir)
    _evaluate(model, source, data, settings, encoder)
    _draw(run_dir / "metrics.jsonl", encoder / "figures")
    _portray(model, source, data, settings, encoder)
    write_model_card(encoder)
    finish = Finish(encoder)
    if settings.push_to_hub or publisher is not None:
        _publish(finish, settings, publisher)
    return finish


def _publish(finish: Finish, settings: TrainingSettings, publisher: BackgroundPublisher | None) -> None:
    """Publish the encoder after all checkpoints have arrived or failed, and note what is left to publish."""
    run_dir, repo_id = Path(settings.output_dir), settings.repo_id or ""

    def work() -> None:
        if publisher is not None:
            publisher.wait()
        finish.url = publish(
            run_dir, repo_id, private=settings.private, license=settings.license, hub_timeout=settings.hub_timeout
        )
        if publisher is not None and publisher.snapshots():  # the Hub takes pushes now
            publisher.resume()
            publisher.wait()

    def left() -> list[str]:
        found = []
        if finish.url is None:
            command = publish_command(run_dir, repo_id, settings.private, license=settings.license)
            found.append(f"The encoder lies in `{finish.encoder}`. Publish it: {command}")
        if publisher is not None:
            for snapshot in publisher.snapshots():
                found.append(f"{snapshot.name} lies in `{snapshot}`. Publish it: {publisher.command(snapshot)}")
            if publisher.lost:
                found.append(f"{', '.join(publisher.lost)}: nothing is left of their weights.")
        return found

    with StopSignal(settings.grace_seconds, lambda: " ".join(["Not published:", *left()])) as stop:
        try:
            stop.unless_it_comes(work)
        except UserError as error:
            logger.warning("The encoder is not published. %s", error)
    finish.signal = stop.received
    finish.unpublished = left()


def _draw(metrics: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    training_curves(metrics).savefig(folder / "training.png")
    diagnoses = diagnosis_curves(metrics.with_name("diagnostics.jsonl"))
    if diagnoses is not None:
        diagnoses.savefig(folder / "diagnostics.png")
    negatives = negative_curves(metrics)
    if negatives is not None:
        negatives.savefig(folder / "negatives.png")


def _portray(
    model: SSLPreTrainedModel, source: Source, data: DataSettings, settings: TrainingSettings, encoder: Path
) -> None:
    """Numbers and pictures of the features of a split that was not trained on, if there is one, for the card."""
    knn = open_knn(source, data, settings) or _find_knn(source, data, settings)
    shown = source if knn is None else knn.test_source
    device = next(model.parameters()).device
    try:
        names = {"random encoder": f"random:{encoder}", "this encoder": str(encoder)}
        encoders = {name: load_encoder(one, device) for name, one in names.items()}
        gallery = settings.gallery or data.dataset in SHOWN_BY_DEFAULT
        portrait = take_portrait(encoders, shown, settings.batch_size, data.num_workers, gallery=gallery)
    except UserError as error:  # the run is whole without it
        logger.warning("The card has no pictures of the features. %s", error)
        return
    about = {
        "dataset": public_name(source.name, source.kind),
        "dataset_kind": source.kind,
        "dataset_config": data.dataset_config,
        "split": shown.split,
    }
    write_embedding(encoder, portrait, about)


def _evaluate(
    model: SSLPreTrainedModel, source: Source, data: DataSettings, settings: TrainingSettings, encoder: Path
) -> None:
    """Measure the encoder by k-NN on a labelled split, if there is one, for its results and its card."""
    knn = open_knn(source, data, settings) or _find_knn(source, data, settings)
    if knn is None or (encoder / "results.json").exists():
        return
    measured = knn(model)
    record = RunRecord.read(encoder)
    entry = {
        "dataset": public_name(source.name, source.kind),
        "dataset_kind": source.kind,
        "dataset_config": data.dataset_config,
        "split": knn.test_source.split,
        "train_split": source.split,
        "label": measured.label,
        "protocol": measured.protocol,
        "metric": "accuracy",
        "value": measured.value,
        "settings": {**measured.settings, "bf16": False},
        "command": record.command if record else None,
        "num_images": measured.num_images,
    }
    update_results(encoder / "results.json", [entry])


def _find_knn(source: Source, data: DataSettings, settings: TrainingSettings) -> KNN | None:
    """k-NN on the usual labelled split of a data set that has one."""
    for split in ("test", "validation"):
        if split == source.split or not source.labels:
            continue
        try:
            return open_knn(source, data, replace(settings, knn_split=split))
        except UserError:
            continue  # no such split, or one without labels
    return None
