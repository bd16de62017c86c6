"""What the cards of encoders, classifiers and features share: their mark, figures, names and ways to write values."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import RepoCard

from hf_ssl.evaluation.references import read_json

BEST_EPOCH = "-best"
"""Ending of protocols whose epoch was chosen on the split that they are scored on."""

_MARK = "<!-- Written by hf_ssl, checksum {checksum}. An edited card is left as it is. -->\n"
_IN_MEMORY = ("in-memory data set", "streamed data set")  # what the records of runs call objects of `datasets`
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
    text = card.read_text(encoding="utf-8")
    body, _, mark = text.rpartition("<!-- ")
    return f"<!-- {mark}" != marked(body)[len(body) :]


def figures_of(folder: Path) -> list[dict[str, str]]:
    """Path and caption of each picture: those that a run has first, in the order of their captions."""
    order = list(_CAPTIONS)
    found = sorted([*folder.glob("*.png"), *folder.glob("figures/*.png")])
    found.sort(key=lambda path: order.index(path.stem) if path.stem in order else len(order))
    return [
        {"path": path.relative_to(folder).as_posix(), "caption": _CAPTIONS.get(path.stem, _title_of(path))}
        for path in found
    ]


def _title_of(picture: Path) -> str:
    kind, _, data = picture.stem.partition("-")
    if kind == "evaluation":
        return f"The results above on {data}, beside the baselines."
    return picture.stem.replace("_", " ").replace("-", " ")


def hub_id_of_data(data: Mapping[str, Any]) -> str | None:
    """The data set's Hub id; None for a local one, one in memory, and those that the package draws itself."""
    name = data["dataset"]
    if data.get("in_memory"):
        return None
    hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(?<!\.parquet)(?<!\.tar)", name)
    return name if hub_id and not Path(name).exists() else None


def name_of_data(data: Mapping[str, Any]) -> str:
    """The data set as a card names it: of a local one only the folder."""
    name = data["dataset"]
    if data.get("in_memory") or name.startswith(_IN_MEMORY):
        return name
    local = ("/" in name or "\\" in name) and hub_id_of_data(data) is None
    if not local:
        return name
    folder = [part for part in re.split(r"[/\\]", name) if part][-1]
    return f"{folder} (local)"


def reference_text(reference: str) -> str:
    """A reference to weights as a card shows it: a link to a repository of the Hub, or a path as code."""
    on_hub = re.fullmatch(r"(?:hf_hub:|hf-hub:)?([\w-][\w.-]*/[\w.-]+)(?:/pretraining)?(?:@\S+)?", reference)
    if on_hub is None or Path(reference).exists():
        return setting_text(reference)
    return f"[{on_hub[1]}](https://huggingface.co/{on_hub[1]})"


def license_of(card: Path) -> str | None:
    """The licence that a card names, if there is a card and it names one."""
    return RepoCard.load(card, ignore_metadata_errors=True).data.get("license") if card.is_file() else None


def content_of(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    return read_json(path) if path.is_file() else {}


def duration_text(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"


def setting_text(value: Any) -> str:
    """A setting as it stands in a table; a bar would end the cell."""
    text = value if isinstance(value, str) else json.dumps(value)
    return "`" + text.replace("|", "\\|") + "`"
