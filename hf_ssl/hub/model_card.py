"""The model card of an encoder folder: what was trained on what, how to load it, and what was measured.

Every number comes from the folder's `run.json`, `results.json` and `embedding.json`; what they do not say, the card
does not say.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard
from safetensors import safe_open

from hf_ssl.errors import UserError
from hf_ssl.evaluation.comparison import BASELINES
from hf_ssl.hub.cards import (
    facts_of_model,
    metadata_of_model,
    name_of_data,
    protocol_text,
    reference_text,
    render_card,
    write_card,
)
from hf_ssl.hub.embedding import embedding_in
from hf_ssl.hub.public import public_about
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLPreTrainedModel, method_name, own_settings
from hf_ssl.modules.description import Description
from hf_ssl.private import public_place
from hf_ssl.training.record import RunRecord

_TITLES = {**BASELINES, "most_frequent_class": "most frequent class"}


def write_model_card(
    encoder_folder: Path, repo_id: str | None = None, *, license: str | None = None, shown_as: Path | None = None
) -> Path:
    """Write `README.md` from the folder's `run.json` and `results.json`; a card edited by hand is left as it is.

    Args:
        encoder_folder: Folder with `config.json`, `run.json` and perhaps `results.json` and figures (`*.png`,
            `figures/*.png`).
        repo_id: Hub repository that the card's examples load. Without it they load the one that the run names, or
            this folder.
        license: Licence of the weights as the Hub names it, such as `apache-2.0`. Without it the one of the card that
            is replaced, if any; none is invented.
        shown_as: Name of the folder in examples, if it is about to be moved.

    Returns:
        The card's path.

    Raises:
        UserError: If the folder has no `run.json`.
    """
    return write_card(
        encoder_folder / "README.md",
        lambda: render_model_card(encoder_folder, repo_id, license=license, shown_as=shown_as),
    )


def render_model_card(
    encoder_folder: Path,
    repo_id: str | None = None,
    *,
    license: str | None = None,
    shown_as: Path | None = None,
    model: SSLPreTrainedModel | None = None,
) -> str:
    """The text that `write_model_card` writes; same arguments and errors.

    Where there is no `run.json`, `model` tells the method and its settings, and the card says that nothing is known
    of the training.
    """
    run = RunRecord.read(encoder_folder)
    if run is None and model is not None:
        run = RunRecord(method_name(type(model)), config=own_settings(model.config))  # pyright: ignore[reportArgumentType]
    if run is None:
        raise UserError(
            f"`{encoder_folder}` has no `run.json`, which the model card is made of. Export the run again."
        )
    shared = facts_of_model(encoder_folder, run, repo_id, license, shown_as)
    run = shared["run"]
    results = shared["results"]
    embedding = embedding_in(encoder_folder)
    place = shown_as or encoder_folder
    told = describe_method(type(model) if model else METHODS.get(run.method), run.config, run.method)
    facts = {
        **shared,
        **told,
        "recorded": bool(run.data),
        "start": _start_of(run),
        "collapse": _collapse_of(run),
        "batch_norm": _has_batch_norm(encoder_folder / "model.safetensors"),
        "pretraining": shared["source"] if shared["on_hub"] else public_place(place.parent / "pretraining"),
        "metric": results[0]["metric"] if len({result["metric"] for result in results}) == 1 else "score",
        "kinds": sorted({"clusters" if _is_clustering(result) else "labels" for result in results}),
        "baselines": {name: _TITLES.get(name, name) for result in results for name in result.get("baselines") or {}},
        "protocols": _shared_settings(results),
        "commands": list(dict.fromkeys(result["command"] for result in results if result.get("command"))),
        "embedding": embedding and {**embedding, "dataset": name_of_data(public_about(embedding, run.data))},
    }
    learning = [] if told["uses_labels"] else ["self-supervised-learning"]
    metadata = metadata_of_model(
        shared,
        _described,
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["transformers", "timm", "sentence-transformers", *learning, "hf_ssl", run.method],
        base_model_relation="finetune" if run.base_model else None,
    )
    return render_card("hub/model_card_template.md", facts, metadata)


def describe_method(
    method: type[SSLPreTrainedModel] | None, settings: Mapping[str, Any], name: str = ""
) -> dict[str, Any]:
    """What a card says of a method: its name, its idea in a sentence, its paper, and whether it looks at labels.

    Args:
        method: Class of the method; None for one that this process does not know.
        settings: Of its config, by name; those that a record of an earlier version lacks are at their defaults.
        name: What to call an unknown method.
    """
    if method is None:
        return {"method": name, "idea": "", "paper": None, "uses_labels": False}
    # The docstring of a base class describes that one, and so does what it makes of settings.
    idea = (vars(method).get("__doc__") or "").strip().split("\n\n")[0]
    told = Description(method.__name__.removesuffix("ForPreTraining"), " ".join(idea.split()), method.paper)
    if "described" in vars(method):
        told = method.described(told, {**own_settings(method.config_class()), **settings})
    return {"method": told.name, "idea": told.idea, "paper": told.paper, "uses_labels": told.uses_labels}


def _start_of(run: RunRecord) -> str:
    """Where the weights came from, and those from which they came in turn."""
    base_model, origin = run.base_model, run.origin
    if not origin:
        if base_model:
            return f"timm's published weights, {reference_text(base_model, 'hub')}"
        return "timm's published weights" if run.training.get("encoder_pretrained") else "random weights"
    starts: list[str] = []
    while origin:
        reference = origin.get("encoder") or origin.get("method")
        if reference:
            starts.append(reference_text(reference, origin.get("kind")))
        origin = origin.get("former")
    if base_model and reference_text(base_model, "hub") not in starts:
        starts.append(reference_text(base_model, "hub"))
    return ", which came from ".join(f"weights of {start}" for start in starts)


def _collapse_of(run: RunRecord) -> dict[str, Any] | None:
    """What the run's alarm saw; its report goes on with advice for the next run, which a card does not need."""
    if run.collapse is None:
        return None
    seen = run.collapse["report"].partition(" What usually cures it")[0]
    return {**run.collapse, "seen": seen, "limit": _limit_of(run.collapse.get("thresholds"))}


def _limit_of(thresholds: Mapping[str, Any] | None) -> str | None:
    """By what the alarm judged; None for the record of a version that did not note it."""
    if not thresholds:
        return None
    if thresholds.get("spread") is not None:
        below = f"this spread was below {thresholds['spread']:.2g}"
    else:
        best = thresholds["best_rank"]
        below = f"this rank was below {thresholds['effective_rank']:.1f}, where its best was {best:.1f}"
    return f"The alarm rang because in {thresholds['lines']} log lines in a row {below}."


def _described(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as the Hub's index names it."""
    label = f", {result['label']}" if result.get("label") else ""
    metric = result["metric"]
    task = "Clustering" if _is_clustering(result) else "Image classification"
    return {
        "task_type": "image-feature-extraction" if _is_clustering(result) else "image-classification",
        "task_name": f"{task} on frozen features",
        "metric_name": f"{metric[0].upper()}{metric[1:]} ({protocol_text(result['protocol'])}{label})",
    }


def other_numbers(card: str, results: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str, float]]:
    """Results that a card has with another number than it would be written with.

    Args:
        card: Text of the card of an encoder. Results that it does not show are no difference.
        results: As `public_results` gives them.

    Returns:
        The result, `table` or `metadata` of the card, and the number there, 1 at best.
    """
    rows = [[cell.strip() for cell in line.split("|")[1:]] for line in card.splitlines() if line.startswith("|")]
    indexed = _indexed(card)
    found = []
    for result in results:
        data, split = name_of_data(result), result["split"]
        named = [data, split, result.get("label") or "", protocol_text(result["protocol"])]
        for row in rows:
            if row[:4] == named and len(row) > 4 and row[4] != f"{100 * result['value']:.1f}":
                found.append((result, "table", _number(row[4]) / 100))
        place = (data, result.get("dataset_config"), split, _described(result)["metric_name"])
        for one in indexed:
            other = (one.dataset_name, one.dataset_config, one.dataset_split, one.metric_name)
            if other == place and one.metric_value != result["value"]:
                found.append((result, "metadata", _number(one.metric_value)))
    return found


def _indexed(card: str) -> list[EvalResult]:
    """The `model-index` of a card; empty if it has none that can be read, of which the Hub indexes nothing."""
    try:
        return getattr(ModelCard(card, ignore_metadata_errors=True).data, "eval_results", None) or []
    except (ValueError, yaml.YAMLError):
        return []


def _number(shown: Any) -> float:
    try:
        return float(shown)
    except (TypeError, ValueError):
        return math.nan


def _shared_settings(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Protocol -> the settings that are equal in all its results; what a probe chose for a label is not among them."""
    shared: dict[str, dict[str, Any]] = {}
    for result in results:
        own = result.get("settings") or {}
        former = shared.setdefault(result["protocol"], own)
        shared[result["protocol"]] = {name: value for name, value in former.items() if own.get(name) == value}
    return shared


def _is_clustering(result: Mapping[str, Any]) -> bool:
    return result["protocol"].startswith("clustering")


def _has_batch_norm(weights: Path) -> bool:
    with safe_open(weights, "pt") as file:
        return any(name.endswith("running_mean") for name in file.keys())  # noqa: SIM118
