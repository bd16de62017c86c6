"""A fine-tuned classifier as a Hub repository: what timm and transformers load without hf_ssl, and its model card."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from torch import nn

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
    setting_text,
)
from hf_ssl.hub.export import replacing
from hf_ssl.hub.push import push_files
from hf_ssl.hub.timm_folder import write_timm_folder

_TEMPLATE = Path(__file__).with_name("card_template.md")
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
    """Write `run_dir/classifier`: weights, config and a copy of `run_dir/run.json`; the folder is replaced as a whole.

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
        if (run_dir / "run.json").is_file():
            shutil.copyfile(run_dir / "run.json", new / "run.json")
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
    path = folder / "README.md"
    if not is_edited(path):
        path.write_text(render_classifier_card(folder, repo_id, license=license), encoding="utf-8")
    return path


def render_classifier_card(folder: Path, repo_id: str | None = None, *, license: str | None = None) -> str:
    """The text that `write_classifier_card` writes; same arguments and errors."""
    run = content_of(folder / "run.json")
    if not run:
        raise UserError(f"`{folder}` has no `run.json`, which the model card is made of. Fine-tune again.")
    results = content_of(folder / "results.json").get("results", [])
    config = content_of(folder / "config.json")
    repo_id = repo_id or run["training"].get("repo_id")
    license = license or license_of(folder / "README.md")
    names = [config["id2label"][str(number)] for number in range(config["num_classes"])]
    facts = {
        "run": run,
        "config": config,
        "names": names,
        "shown_names": names[:_SHOWN_CLASSES],
        "source": repo_id or folder.as_posix(),
        "on_hub": repo_id is not None,
        "data": name_of_data(run["data"]),
        "hub_data": hub_id_of_data(run["data"]),
        "license": license,
        "results": results,
        "best": BEST_EPOCH,
        "figures": figures_of(folder),
        "metadata": _metadata(run, results, repo_id or folder.parent.name, license),
    }
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"duration": duration_text, "setting": setting_text}
    return marked(environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(facts))


def publish_classifier(
    folder: Path, repo_id: str, *, private: bool = False, license: str | None = None, retry: str
) -> str:
    """Push a classifier's folder as a repository, all of it or nothing; see `push_files`, whose errors it raises.

    Args:
        folder: What `export_classifier` wrote, with its card.
        repo_id: Repository, `org/name`, or `name` for one of the token's user; made if missing.
        private: Make it a private one.
        license: Licence of the weights for the card.
        retry: Command that pushes again, for errors.

    Returns:
        Address of what was pushed.
    """

    def files(name: str) -> dict[str, Path | bytes]:
        found: dict[str, Path | bytes] = {
            path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
        }
        if not is_edited(folder / "README.md"):
            found["README.md"] = render_classifier_card(folder, name, license=license).encode()
        return found

    return push_files(
        files, repo_id, private=private, message="Publish the classifier", is_stale=_is_stale, retry=retry
    )


def _is_stale(path: str) -> bool:
    written = ("results.json", "resnet_cifar.py", "preprocessor_config.json")
    return path in written or (path.startswith("figures/") and path.endswith(".png"))


def _metadata(run: Mapping[str, Any], results: list[dict[str, Any]], name: str, license: str | None) -> str:
    dataset = hub_id_of_data(run["data"])
    # A step chosen on the test split makes the number too high for an index that compares models.
    results = [result for result in results if not result["protocol"].endswith(BEST_EPOCH)]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["timm", "hf_ssl"],
        license=license,
        base_model=run["base_model"],
        datasets=[dataset] if dataset else None,
        metrics=sorted({result["metric"] for result in results}) or None,
        model_name=name.split("/")[-1] if results else None,
        eval_results=[_eval_result(result) for result in results] or None,
    )
    return data.to_yaml()


def _eval_result(result: Mapping[str, Any]) -> EvalResult:
    fraction = result["settings"]["label_fraction"]
    return EvalResult(
        task_type="image-classification",
        task_name="Image classification" + ("" if fraction == 1 else f" from {100 * fraction:g} % of the labels"),
        dataset_type=result["dataset"],
        dataset_name=name_of_data(result),
        dataset_config=result.get("dataset_config"),
        dataset_split=result["split"],
        metric_type=result["metric"],
        metric_name=f"{result['metric'].capitalize()} ({result['label']})",
        metric_value=result["value"],
    )
