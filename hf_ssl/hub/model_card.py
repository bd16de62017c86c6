"""The model card of an encoder folder: what was trained on what, how to load it, and what was measured.

Every number comes from the folder's `run.json`, `results.json` and `embedding.json`; what they do not say, the card
does not say.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from transformers import PreTrainedConfig

from hf_ssl.errors import UserError
from hf_ssl.hub.cards import (
    BEST_EPOCH,
    content_of,
    duration_text,
    figures_of,
    hub_id_of_data,
    is_edited,
    license_of,
    marked,
    name_of_data,
    reference_text,
    setting_text,
)
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLConfig, SSLPreTrainedModel

_TEMPLATE = Path(__file__).with_name("model_card_template.md")
_PROTOCOLS = {"knn": "weighted k-NN", "linear": "linear probe"}


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
    path = encoder_folder / "README.md"
    if not is_edited(path):
        text = render_model_card(encoder_folder, repo_id, license=license, shown_as=shown_as)
        path.write_text(text, encoding="utf-8")
    return path


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
    run = content_of(encoder_folder / "run.json")
    if not run and model is not None:
        run = {"method": _name_of(type(model)), "config": own_settings(model.config)}  # pyright: ignore[reportArgumentType]
    if not run:
        raise UserError(
            f"`{encoder_folder}` has no `run.json`, which the model card is made of. Export the run again."
        )
    folder = shown_as or encoder_folder
    repo_id = repo_id or run.get("training", {}).get("repo_id")
    license = license or license_of(encoder_folder / "README.md") or run.get("license")
    license = license or run.get("training", {}).get("license")
    results = content_of(encoder_folder / "results.json").get("results", [])
    embedding = content_of(encoder_folder / "embedding.json")
    metadata = _metadata(run, results, repo_id or folder.parent.name, license)
    _check_metadata(metadata)
    data = run.get("data")
    facts = {
        **describe_method(type(model) if model else METHODS.get(run["method"]), run["method"]),
        "run": run,
        "recorded": data is not None,
        "start": _start_of(run),
        "collapse": _collapse_of(run),
        "config": content_of(encoder_folder / "config.json"),
        "batch_norm": _has_batch_norm(encoder_folder / "model.safetensors"),
        "source": repo_id or folder.as_posix(),
        "on_hub": repo_id is not None,
        "pretraining": repo_id or (folder.parent / "pretraining").as_posix(),
        "data": _data_text(data) if data else None,
        "hub_data": hub_id_of_data(data) if data else None,
        "license": license,
        "results": results,
        "metric": results[0]["metric"] if len({result["metric"] for result in results}) == 1 else "score",
        "kinds": sorted({"clusters" if _is_clustering(result) else "labels" for result in results}),
        "baselines": list(dict.fromkeys(name for result in results for name in result.get("baselines") or {})),
        "protocols": _shared_settings(results),
        "best": BEST_EPOCH,
        "commands": list(dict.fromkeys(result["command"] for result in results if result.get("command"))),
        "figures": figures_of(encoder_folder),
        "embedding": {**embedding, "dataset": name_of_data(embedding)} if embedding else None,
        "metadata": metadata.to_yaml(),
    }
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"duration": duration_text, "setting": setting_text, "protocol": _name_of_protocol}
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(facts)
    return marked(text)


def describe_method(method: type[SSLPreTrainedModel] | None, name: str = "") -> dict[str, Any]:
    """What a card says of a method: its name, its idea in a sentence, and its paper.

    Args:
        method: Class of the method; None for one that this process does not know.
        name: What to call that one.
    """
    if method is None:
        return {"method": name, "idea": "", "paper": None}
    # The docstring of a base class describes that one.
    idea = (vars(method).get("__doc__") or "").strip().split("\n\n")[0]
    name = method.__name__.removesuffix("ForPreTraining")
    return {"method": name, "idea": " ".join(idea.split()), "paper": method.paper}


def own_settings(config: SSLConfig) -> dict[str, Any]:
    """A config's settings, without those that every config of transformers has."""
    inherited = {field.name for field in fields(PreTrainedConfig)}
    return {field.name: getattr(config, field.name) for field in fields(config) if field.name not in inherited}


def _name_of(method: type[SSLPreTrainedModel]) -> str:
    return method.config_class.model_type.removeprefix("hf_ssl_")


def _data_text(data: Mapping[str, Any]) -> str:
    """The training data within a sentence."""
    name = name_of_data(data)
    if not data.get("in_memory"):
        return name
    return f"a {name}" if name.startswith("streamed") else f"an {name}"


def _start_of(run: Mapping[str, Any]) -> str:
    """Where the weights came from, and those from which they came in turn."""
    base_model, origin = run.get("base_model"), run.get("origin")
    if not origin:
        if base_model:
            return f"timm's published weights, {reference_text(base_model)}"
        return "timm's published weights" if run.get("training", {}).get("encoder_pretrained") else "random weights"
    starts: list[str] = []
    while origin:
        reference = origin.get("encoder") or origin.get("method")
        if reference:
            starts.append(reference_text(reference))
        origin = origin.get("former")
    if base_model and reference_text(base_model) not in starts:
        starts.append(reference_text(base_model))
    return ", which came from ".join(f"weights of {start}" for start in starts)


def _collapse_of(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the run's alarm saw; its report goes on with advice for the next run, which a card does not need."""
    collapse = run.get("collapse")
    return collapse and {**collapse, "seen": collapse["report"].partition(" What usually cures it")[0]}


def _metadata(run: Mapping[str, Any], results: list[dict[str, Any]], name: str, license: str | None) -> ModelCardData:
    """What the Hub indexes.

    Results go into `model-index`. The newer `.eval_results/*.yaml` is for data sets that are registered on the Hub as
    benchmarks, by the task ids that these define; k-NN and probes of frozen features are no such task of any.
    """
    dataset = hub_id_of_data(run["data"]) if "data" in run else None
    # An epoch chosen on the test split makes the number too high for an index that compares models.
    results = [result for result in results if not result["protocol"].endswith(BEST_EPOCH)]
    base_model = run.get("base_model")
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["transformers", "timm", "sentence-transformers", "self-supervised-learning", "hf_ssl", run["method"]],
        license=license,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        datasets=[dataset] if dataset else None,
        model_name=name.split("/")[-1] if results else None,
        eval_results=_grouped(map(_eval_result, results)) or None,
    )


def _check_metadata(written: ModelCardData) -> None:
    """Refuse metadata that huggingface_hub would not read back as it was meant; the Hub itself is asked on pushing."""
    read = ModelCard(f"---\n{written.to_yaml()}\n---\n").data
    for name in ("library_name", "pipeline_tag", "tags", "license", "datasets", "base_model", "model_name"):
        if read.get(name) != written.get(name):
            raise UserError(
                f"The card's `{name}` would be read as {read.get(name)!r} instead of {written.get(name)!r}. Change it."
            )
    if [vars(one) for one in read.get("eval_results", [])] != [vars(one) for one in written.get("eval_results", [])]:
        raise UserError("`results.json` holds numbers that the card's metadata cannot. Measure the encoder again.")


def _grouped(results: Iterable[EvalResult]) -> list[EvalResult]:
    """In the order in which the metadata is read: by task and data set, of which it has one entry each."""
    groups: dict[Any, list[EvalResult]] = {}
    for result in results:
        groups.setdefault(result.unique_identifier, []).append(result)
    return [result for group in groups.values() for result in group]


def _eval_result(result: Mapping[str, Any]) -> EvalResult:
    label = f", {result['label']}" if result.get("label") else ""
    metric = result["metric"]
    task = "Clustering" if _is_clustering(result) else "Image classification"
    return EvalResult(
        task_type="image-feature-extraction" if _is_clustering(result) else "image-classification",
        task_name=f"{task} on frozen features",
        dataset_type=result["dataset"],
        dataset_name=name_of_data(result),
        dataset_config=result.get("dataset_config"),
        dataset_split=result["split"],
        metric_type=metric,
        metric_name=f"{metric[0].upper()}{metric[1:]} ({_name_of_protocol(result['protocol'])}{label})",
        metric_value=result["value"],
    )


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


def _name_of_protocol(protocol: str) -> str:
    kind, _, variant = protocol.removesuffix(BEST_EPOCH).partition("-")
    name = _PROTOCOLS.get(kind, kind) + (f" ({variant})" if variant else "")
    return f"{name}, best epoch*" if protocol.endswith(BEST_EPOCH) else name


def _has_batch_norm(weights: Path) -> bool:
    with safe_open(weights, "pt") as file:
        return any(name.endswith("running_mean") for name in file.keys())  # noqa: SIM118
