"""What all cards share: how one is rendered, checked and written, the facts of a model's card, and how values look.

The templates lie beside the modules that use them; what two of them have in common is in `hub/card_parts`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import (
    CardData,
    DatasetCard,
    DatasetCardData,
    EvalResult,
    ModelCard,
    ModelCardData,
    RepoCard,
    SpaceCard,
    SpaceCardData,
)

from hf_ssl.data.sources.opened import kind_by_name
from hf_ssl.errors import UserError
from hf_ssl.evaluation.results import results_in
from hf_ssl.hub.public import public_results
from hf_ssl.hub.timm_folder import config_in
from hf_ssl.private import public_path, public_place, without_paths
from hf_ssl.training.files import RUN_FILE
from hf_ssl.training.origin import sha256_of
from hf_ssl.training.record import RunRecord
from hf_ssl.training.record_parts import lacking_for_card
from hf_ssl.writing import write_whole

BEST_EPOCH = "-best"
"""Ending of protocols whose epoch was chosen on the split that they are scored on."""

_KINDS: dict[type[CardData], type[RepoCard]] = {
    ModelCardData: ModelCard,
    DatasetCardData: DatasetCard,
    SpaceCardData: SpaceCard,
}
_PROTOCOLS = {"knn": "weighted k-NN", "linear": "linear probe"}
_OF_RECORD = re.compile(r"'dict object' has no attribute '(.*)'")  # another name that is missing is a bug
_MARK = "<!-- Written by hf_ssl, checksum {checksum}. An edited card is left as it is. -->\n"
_CAPTIONS = {
    "training": "How the run went, by optimizer step (`metrics.jsonl`).",
    "confusion": "What the images of each class were taken for.",
    "diagnostics": "Spectra of projections and representations, and the predictor, through the run.",
    "negatives": "What became of the negatives during the run (`metrics.jsonl`).",
    "spectrum": "How the variance of the features is spread over directions; a line that ends early has collapsed.",
    "embedding_map": "The images on a plane, similar features together (t-SNE); distances between groups mean little.",
    "neighbours": "Images, and those whose features are most similar to theirs (cosine) in the same split.",
}


def marked(body: str) -> str:
    """A card's text with the mark by which `is_edited` knows it."""
    return body + _MARK.format(checksum=hashlib.sha256(body.encode()).hexdigest()[:16])


def is_edited(card: Path) -> bool:
    """Whether somebody changed a card after hf_ssl wrote it, or wrote it by hand."""
    if not card.is_file():
        return False
    text = card.read_text(encoding="utf-8", errors="replace")
    body, _, mark = text.rpartition("<!-- ")
    return f"<!-- {mark}" != marked(body)[len(body) :]


def render_card(template: str, facts: Mapping[str, Any], metadata: CardData) -> str:
    """The text of a card, with its mark.

    Args:
        template: Path of the template within the package; it shows `metadata` between its first two lines of `---`.
        facts: What else it takes. A name that is missing is an error.
        metadata: What the Hub indexes.

    Raises:
        UserError: If the metadata would be read otherwise than they are meant.
    """
    try:
        body = _ENVIRONMENT.get_template(template).render(facts, metadata=metadata.to_yaml())
    except jinja2.UndefinedError as error:
        lacking = _OF_RECORD.fullmatch(str(error))
        if lacking is None:
            raise
        raise UserError(
            f"The card of `{facts['source']}` cannot be made: one of the JSON files that it is made of lacks "
            f"`{lacking[1]}`. Write the folder again, or bring back a copy of them."
        ) from error
    _check_metadata(metadata, body)
    return marked(body)


def _check_metadata(written: CardData, text: str) -> None:
    """Refuse metadata that huggingface_hub would not read back as it was meant; the Hub itself is asked on pushing."""
    read = _KINDS[type(written)](text).data.to_dict()
    for name, value in written.to_dict().items():
        if read.get(name) == value:
            continue
        if name == "model-index":
            raise UserError(
                "`results.json` holds numbers that the card's metadata cannot. Measure again, or remove the file."
            )
        raise UserError(f"The card's `{name}` would be read as {read.get(name)!r} instead of {value!r}. Change it.")


def write_card(card: Path, render: Callable[[], str]) -> Path:
    """Write a card, unless somebody edited the one that is there; returns its path."""
    if not is_edited(card):
        write_whole(card, render())
    return card


def card_to_push(card: Path, render: Callable[[], str]) -> Path | bytes:
    """What is pushed as the card: the one that somebody edited, or the one that names the repository."""
    return card if is_edited(card) else render().encode()


def facts_of_model(
    folder: Path, run: RunRecord, repo_id: str | None, license: str | None, shown_as: Path | None = None
) -> dict[str, Any]:
    """What the cards of encoders and classifiers both show.

    Args:
        folder: Exported folder.
        run: Its record, or as much of it as is known: without its data nothing of the training is shown.
        repo_id: Hub repository that the examples load; without it the one that the run names, or the folder.
        license: Licence of the weights as the Hub names it; without it that of the card there is, or of the run.
        shown_as: Name of the folder in examples, if it is about to be moved.

    Raises:
        UserError: If the record does not say what a card shows.
    """
    lacking = lacking_for_card({"data": run.data, "training": run.training}) if run.data else []
    if lacking:
        raise UserError(
            f"`{folder / RUN_FILE}` lacks {', '.join(f'`{name}`' for name in lacking)}, which the card shows. Export "
            "the run again, or bring back a copy of the file."
        )
    place, weights = shown_as or folder, folder / "model.safetensors"
    repo_id = repo_id or run.training.get("repo_id")
    license = license or license_of(folder / "README.md") or run.license or run.training.get("license")
    return {
        "run": run.public(),
        "config": config_in(folder),
        "source": repo_id or public_place(place),
        "on_hub": repo_id is not None,
        "name": repo_id.split("/")[-1] if repo_id else _name_of_run(place.parent, folder),
        "data": data_text(run.data) if run.data else None,
        "hub_data": hub_id_of_data(run.data) if run.data else None,
        "license": license,
        "results": public_results(results_in(folder / "results.json"), run.data),
        "collapsed_before": _collapsed_before(run),
        "best": BEST_EPOCH,
        "figures": figures_of(folder),
        "weights": sha256_of(weights) if weights.is_file() else None,
    }


def _name_of_run(run_dir: Path, folder: Path) -> str:
    """What a run without a repository is called: those of a study, which are named by seeds, by what they are."""
    if re.fullmatch(r"seed\d+", run_dir.name) is None:
        return run_dir.name
    return f"{run_dir.parent.name}-{config_in(folder)['architecture']}"


def _collapsed_before(run: RunRecord) -> list[dict[str, Any]]:
    """The trainings behind the weights that a run started from which collapsed: `method`, `kind` and `step`."""
    found, former = [], (run.origin or {}).get("former")
    while former:
        if former.get("collapse"):
            found.append({"method": former.get("method"), **former["collapse"]})
        former = former.get("former")
    return found


def metadata_of_model(
    facts: Mapping[str, Any], describe: Callable[[Mapping[str, Any]], Mapping[str, Any]], **fields: Any
) -> ModelCardData:
    """What the Hub indexes of an encoder or a classifier.

    Results go into `model-index`. The newer `.eval_results/*.yaml` is for data sets that are registered on the Hub as
    benchmarks, by the task ids that these define; k-NN and probes of frozen features are no such task of any.

    Args:
        facts: See `facts_of_model`.
        describe: Gives `task_type`, `task_name` and `metric_name` of an entry of `results.json`.
        fields: Further fields of `ModelCardData`.
    """
    results = comparable(facts["results"])
    if "auto_map" in facts["config"]:  # the Hub shows how to load it by these two, and timm alone cannot
        fields["library_name"] = "transformers"
        fields["tags"] = ["custom_code", *(tag for tag in fields["tags"] if tag != "timm")]
    return ModelCardData(
        license=facts["license"],
        base_model=facts["run"].base_model,
        datasets=[facts["hub_data"]] if facts["hub_data"] else None,
        model_name=facts["name"] if results else None,
        eval_results=[
            EvalResult(
                # What is no data set of the Hub must not look like one, and two of one name stay two.
                dataset_type=hub_id_of_data(result) or name_of_data(result),
                dataset_name=name_of_data(result),
                dataset_config=result.get("dataset_config"),
                dataset_split=result["split"],
                metric_type=result["metric"],
                metric_value=result["value"],
                **describe(result),
            )
            for result in results
        ]
        or None,
        **fields,
    )


def comparable(results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The results for an index that compares models: an epoch chosen on the test split makes the number too high."""
    return [result for result in results if not result["protocol"].endswith(BEST_EPOCH)]


def figures_of(folder: Path) -> list[dict[str, str]]:
    """Path and caption of each picture: those that a run has first, in the order of their captions."""
    order = list(_CAPTIONS)
    found = sorted([*folder.glob("*.png"), *folder.glob("figures/*.png")])
    found.sort(key=lambda path: order.index(path.stem) if path.stem in order else len(order))
    return [
        {"path": path.relative_to(folder).as_posix(), "caption": _CAPTIONS.get(path.stem, _title_of(path))}
        for path in found
    ]


def is_own_figure(name: str) -> bool:
    """Whether a command of this package draws a figure of that name about an encoder or a classifier."""
    stem = name.removesuffix(".png")
    return stem != name and (stem in _CAPTIONS or stem.startswith(("evaluation-", "analysis-")))


def _title_of(picture: Path) -> str:
    kind, _, data = picture.stem.partition("-")
    if kind == "evaluation":
        return f"The results above on {data}, beside the baselines."
    return picture.stem.replace("_", " ").replace("-", " ")


def hub_id_of_data(data: Mapping[str, Any]) -> str | None:
    """The data set's Hub id, if its record says that it is one of the Hub."""
    return data["dataset"] if _kind_of(data) == "hub" else None


def _kind_of(data: Mapping[str, Any]) -> str | None:
    return data.get("dataset_kind") or ("object" if data.get("in_memory") else kind_by_name(data["dataset"]))


def name_of_data(data: Mapping[str, Any]) -> str:
    """The data set as a card names it: of a local one only the folder."""
    name, kind = data["dataset"], _kind_of(data)
    return f"{public_path(name)} (local)" if kind == "local" else name


def data_text(data: Mapping[str, Any]) -> str:
    """The training data within a sentence."""
    name = name_of_data(data)
    if _kind_of(data) != "object":
        return name
    return f"a {name}" if name.startswith("streamed") else f"an {name}"


def reference_text(reference: str, kind: str | None = None) -> str:
    """A reference to weights as a card shows it: a link to a repository of the Hub, or a name as code.

    Args:
        reference: What was typed.
        kind: `kind` of an origin, if it is known; see `EncoderStart`.
    """
    on_hub = re.fullmatch(r"(?:hf_hub:|hf-hub:)?([\w-][\w.-]*/[\w.-]+)(?:/pretraining)?(?:@\S+)?", reference)
    if on_hub is None or kind in ("run", "folder") or (kind is None and Path(reference).exists()):
        return setting_text(public_path(reference) if kind in ("run", "folder") else without_paths(reference))
    return f"[{on_hub[1]}](https://huggingface.co/{on_hub[1]})"


def license_of(card: Path) -> str | None:
    """The licence that a card names, if there is a card and it names one."""
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    return RepoCard(text, ignore_metadata_errors=True).data.get("license")


def duration_text(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"


def setting_text(value: Any) -> str:
    """A setting as it stands in a table; a bar would end the cell."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return "`" + text.replace("|", "\\|") + "`"


def protocol_text(protocol: str) -> str:
    """A protocol of `results.json` by its name in words."""
    kind, _, variant = protocol.removesuffix(BEST_EPOCH).partition("-")
    name = _PROTOCOLS.get(kind, kind) + (f" ({variant})" if variant else "")
    return f"{name}, best epoch*" if protocol.endswith(BEST_EPOCH) else name


class _Undefined(jinja2.StrictUndefined):
    """What a template uses and nothing defines; `StrictUndefined` forgets that numbers are formatted."""

    __format__ = jinja2.Undefined._fail_with_undefined_error


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parents[1]),
    undefined=_Undefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters |= {"duration": duration_text, "setting": setting_text, "protocol": protocol_text}
_ENVIRONMENT.filters["data_name"] = name_of_data
