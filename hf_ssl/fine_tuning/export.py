"""A fine-tuned classifier as a Hub repository: what timm and transformers load without hf_ssl, and its model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hf_ssl.errors import UserError
from hf_ssl.hub.cards import (
    BEST_EPOCH,
    card_to_push,
    comparable,
    facts_of_model,
    metadata_of_model,
    render_card,
    write_card,
)
from hf_ssl.hub.export import keep_added, replacing, write_public_record
from hf_ssl.hub.public import public_files
from hf_ssl.hub.publish import files_in, is_stale
from hf_ssl.hub.push import push_files
from hf_ssl.hub.timm_folder import write_timm_folder
from hf_ssl.settings import HUB_TIMEOUT, of_json
from hf_ssl.training.files import RUN_FILE
from hf_ssl.training.record import RunRecord

_ONLY_FOR_TRAINING = ("drop_rate", "drop_path_rate")  # endings of `model_args` that say nothing about the weights
_SHOWN_CLASSES = 20


def export_classifier(
    module: nn.Module,
    run_dir: Path,
    *,
    architecture: str,
    model_args: Mapping[str, Any],
    data_config: Mapping[str, Any],
    class_names: Sequence[str],
) -> Path:
    """Write `run_dir/classifier`: weights, config and what is published of the run's record.

    The folder is replaced as a whole; see `keep_added` for what stays of it.

    Args:
        module: timm model with a classifier.
        run_dir: Folder of the run.
        architecture: Name that timm knows.
        model_args: Arguments of `timm.create_model` that the model was built with; dropout is left out.
        data_config: timm's data config: how an image becomes pixels.
        class_names: In the order of the logits.

    Returns:
        The folder.

    Raises:
        UserError: If the weights are not those of the architecture, so that nothing could load them.
    """
    folder = run_dir / "classifier"
    with replacing(folder) as new:
        write_timm_folder(
            module,
            new,
            architecture=architecture,
            model_args={name: value for name, value in model_args.items() if not name.endswith(_ONLY_FOR_TRAINING)},
            data_config=data_config,
            class_names=class_names,
        )
        write_public_record(run_dir, new)
        keep_added(folder, new)
    return folder


def write_classifier_card(folder: Path, repo_id: str | None = None, *, license: str | None = None) -> Path:
    """Write `README.md` from the folder's config and files of results; a card edited by hand is left as it is.

    Args:
        folder: What `export_classifier` wrote, with `run.json` and perhaps `results.json` and figures.
        repo_id: Hub repository that the examples load; without it the one that the run names, or this folder.
        license: Licence of the weights as the Hub names it; without it the one of the card that is replaced, if any.

    Returns:
        The card's path.

    Raises:
        UserError: If the folder has no `run.json`.
    """
    return write_card(folder / "README.md", lambda: render_classifier_card(folder, repo_id, license=license))


def render_classifier_card(folder: Path, repo_id: str | None = None, *, license: str | None = None) -> str:
    """The text that `write_classifier_card` writes; same arguments and errors."""
    run = RunRecord.read(folder)
    if run is None:
        raise UserError(f"`{folder}` has no `run.json`, which the model card is made of. Fine-tune again.")
    facts = facts_of_model(folder, run, repo_id, license)
    _check_shown(folder, run, facts["results"])
    config = facts["config"]
    if not config.get("id2label"):
        raise UserError(
            f"`{folder / 'config.json'}` lacks `id2label`, the names of the classes. Export the run again."
        )
    names = [config["id2label"][str(number)] for number in range(config["num_classes"])]
    metadata = metadata_of_model(
        facts,
        _described,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["timm", "hf_ssl"],
        metrics=sorted({result["metric"] for result in comparable(facts["results"])}) or None,
    )
    facts |= {"names": names, "shown_names": names[:_SHOWN_CLASSES]}
    return render_card("fine_tuning/card_template.md", facts, metadata)


@dataclass(frozen=True)
class _Settings:
    """Settings of fine-tuning that the card shows."""

    encoder: str
    train: str
    label_fraction: float


@dataclass(frozen=True)
class _Training:
    """Settings of the training that this card shows."""

    seed: int


@dataclass(frozen=True)
class _Run:
    """What the card shows of `run.json` beside what every card shows, for the check of its types."""

    config: _Settings
    training: _Training
    label_column: str
    num_parameters: int
    num_trained_parameters: int
    images_per_class: dict[str, int] | None
    label_fraction_reached: float | None = None


@dataclass(frozen=True)
class _Scored:
    """Settings of a score that the card shows."""

    label_fraction: float
    train_images: int
    step: int
    test_loss: float | None = None  # of the last step; the best of all scorings has none


@dataclass(frozen=True)
class _Score:
    """What the card shows of an entry of `results.json` beside what every card shows."""

    label: str
    num_images: int
    settings: _Scored


def _check_shown(folder: Path, run: RunRecord, results: Sequence[Mapping[str, Any]]) -> None:
    """Refuse records that do not say what the card of a classifier shows.

    Raises:
        UserError: Names the file and the first value that is missing or of another type.
    """
    parts = [(folder / RUN_FILE, _Run, {**run.details, "config": run.config, "training": run.training}, "")]
    parts += [(folder / "results.json", _Score, one, f"results.{place}.") for place, one in enumerate(results)]
    for path, kind, content, place in parts:
        try:
            of_json(kind, content, place)
            is_last = kind is _Score and not str(content["protocol"]).endswith(BEST_EPOCH)
            if is_last and content["settings"].get("test_loss") is None:
                raise UserError(f"it lacks `{place}settings.test_loss`")
        except UserError as error:
            raise UserError(f"`{path}` is not of a classifier: {error}. Export the run again.") from error


def publish_classifier(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    hub_timeout: float = HUB_TIMEOUT,
    retry: str,
) -> str:
    """Push a classifier's folder as a repository, all of it or nothing; see `push_files`, whose errors it raises.

    Args:
        folder: What `export_classifier` wrote, with its card.
        repo_id: Repository, `org/name`, or `name` for one of the token's user; made if missing.
        private: Make it a private one.
        license: Licence of the weights for the card.
        hub_timeout: Seconds that the push may lose to failures.
        retry: Command that pushes again, for errors.

    Returns:
        Address of what was pushed.
    """

    def files(name: str) -> dict[str, Path | bytes]:
        card = card_to_push(folder / "README.md", lambda: render_classifier_card(folder, name, license=license))
        return {**public_files(folder, files_in(folder)), "README.md": card}

    return push_files(
        files,
        repo_id,
        private=private,
        message="Publish the classifier",
        is_stale=is_stale,
        hub_timeout=hub_timeout,
        retry=retry,
    )


def _described(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as the Hub's index names it."""
    fraction = result["settings"]["label_fraction"]
    return {
        "task_type": "image-classification",
        "task_name": "Image classification" + ("" if fraction == 1 else f" from {100 * fraction:g} % of the labels"),
        "metric_name": f"{result['metric'].capitalize()} ({result['label']})",
    }
