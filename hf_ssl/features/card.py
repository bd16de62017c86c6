"""The data set card of a folder of features, and what a push of the folder consists of.

Everything that the card says comes from the folder's `features.json`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from hf_ssl.data.sources.opened import kind_by_name
from hf_ssl.errors import UserError
from hf_ssl.features.folder import RECORD, has_paths, read_record
from hf_ssl.hub.cards import card_to_push, render_card, write_card
from hf_ssl.private import public_command, public_name, public_path, public_place, public_places, without_paths

_HUB = "https://huggingface.co"
_SIZES = (  # as the Hub names them
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
_NAMES_SHOWN = 10


def write_feature_card(folder: Path, command: str) -> None:
    """Write `README.md` into a folder of features; a card edited by hand is left as it is.

    Args:
        folder: What `hf-ssl extract` wrote; its splits are complete.
        command: The command that wrote it.
    """
    write_card(folder / "README.md", lambda: render_feature_card(folder, command))


def files_to_push(folder: Path, repo_id: str, command: str) -> dict[str, Path | bytes]:
    """What a push consists of: a local file, or the content of one, by its path in the repository.

    Args:
        folder: What `hf-ssl extract` wrote.
        repo_id: Repository that the card's examples load; a card edited by hand is pushed as it is.
        command: The command that wrote the folder.

    Raises:
        UserError: If a file is a link that leads out of the folder.
    """
    record = _record(folder)
    files: dict[str, Path | bytes] = {"features.json": folder / "features.json", "README.md": folder / "README.md"}
    for split, about in _complete_splits(record).items():
        for path in _shards(folder, split, about):
            files[path.relative_to(folder).as_posix()] = path
        if "index" in about:
            files[f"index/{split}.faiss"] = folder / "index" / f"{split}.faiss"
    for path in files.values():
        if isinstance(path, Path) and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"`{path}` is a link that leads out of its folder, and is not pushed. Copy the file there."
            )
    files["features.json"] = f"{json.dumps(record, indent=2)}\n".encode()
    files["README.md"] = card_to_push(folder / "README.md", lambda: render_feature_card(folder, command, repo_id))
    return files


def render_feature_card(folder: Path, command: str, repo_id: str | None = None) -> str:
    """The card's text.

    Args:
        folder: What `hf-ssl extract` wrote.
        command: The command that wrote it.
        repo_id: Repository that the examples load; None: the folder.
    """
    own = _read(folder)
    record = public_record(own)
    encoder, settings = record["encoder"], record["settings"]
    data, kind = record["dataset"]["dataset"], record["dataset_kind"]
    splits = _complete_splits(record)
    total = sum(sum(about["shards"]) for about in splits.values())
    local = [own["encoder"]["name"]] if encoder["local"] else []
    name_of_data, name_of_encoder = _name(data, kind == "local"), _name(encoder["name"], encoder["local"])
    facts = {
        "data": name_of_data,
        "data_link": f"[{data}]({_HUB}/datasets/{data})" if kind == "hub" else f"`{name_of_data}`",
        "encoder": name_of_encoder,
        "encoder_link": _encoder_link(encoder["name"], encoder["local"]),
        "total": total,
        "dim": encoder["dim"],
        "dtype": settings["dtype"],
        "bf16": settings["bf16"],
        "fingerprint": encoder["fingerprint"],
        "splits": [
            {
                "name": split,
                "num_rows": about["num_rows"],
                "rows": sum(about["shards"]),
                "skipped": ", ".join(f"{number} {reason}" for reason, number in about["skipped"].items()) or "none",
            }
            for split, about in splits.items()
        ],
        "has_paths": has_paths(record),
        "labels": {label: _described(names) for label, names in record["labels"].items()},
        "first_split": next(iter(splits)),
        "indexed": "index" in next(iter(splits.values())),
        "source": repo_id or public_place(folder),
        "on_hub": repo_id is not None,
        "command": public_command(command, own["dataset"]["dataset"], kind, local),
        "command_language": "python" if command.startswith("hf_ssl.") else "bash",
    }
    return render_card("features/card_template.md", facts, _metadata(folder, record, total))


def public_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as it is published, without paths of this machine, which `hf-ssl search` uses here.

    It says of data set and encoder whether they are of this machine; of a record by an older version the names tell.
    """
    encoder, dataset = dict(record["encoder"]), dict(record["dataset"])
    kind = record.get("dataset_kind") or kind_by_name(dataset["dataset"])
    dataset |= public_places(dataset) if kind == "local" else {}
    dataset["dataset"] = public_name(dataset["dataset"], kind)
    place = encoder["name"].rpartition(":")[2].partition("@")[0]
    encoder.setdefault("local", kind_by_name(place) == "local")
    if encoder["local"]:
        encoder["name"] = public_path(encoder["name"])
    return without_paths({**record, "encoder": encoder, "dataset": dataset, "dataset_kind": kind})


def _metadata(folder: Path, record: Mapping[str, Any], total: int) -> DatasetCardData:
    encoder, data = record["encoder"], record["dataset"]["dataset"]
    kind = record["dataset_kind"]
    named = f"Features of {_name(data, kind == 'local')} by {_name(encoder['name'], encoder['local'])}"
    splits = _complete_splits(record)
    files = {split: _shards(folder, split, about) for split, about in splits.items()}
    card_data = DatasetCardData(
        pretty_name=named,
        size_categories=next((name for bound, name in _SIZES if total < bound), "n>1T"),
        task_categories=["image-feature-extraction"],
        source_datasets=[data] if kind == "hub" else None,
        tags=["embeddings", "hf_ssl", *(["faiss"] if any("index" in about for about in splits.values()) else [])],
        # Patterns, because only three names of splits are found by the names of files.
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits],
            }
        ],
    )
    sizes = {split: sum(path.stat().st_size for path in paths) for split, paths in files.items()}
    info = datasets.DatasetInfo(
        features=datasets.Features.from_arrow_schema(pq.read_schema(next(iter(files.values()))[0])),
        splits=datasets.SplitDict(
            {
                split: datasets.SplitInfo(split, num_bytes=sizes[split], num_examples=sum(about["shards"]))
                for split, about in splits.items()
            }
        ),
        download_size=sum(sizes.values()),
        dataset_size=sum(sizes.values()),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(card_data)
    return card_data


def _record(folder: Path) -> dict[str, Any]:
    return public_record(_read(folder))


def _read(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    if record is None:
        raise UserError(f"`{folder}` has no `{RECORD}`, so it holds no features. `hf-ssl extract` writes them.")
    return record


def _complete_splits(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {split: about for split, about in record["splits"].items() if "shards" in about}


def _shards(folder: Path, split: str, about: Mapping[str, Any]) -> list[Path]:
    return [folder / "data" / f"{split}-{number:05d}.parquet" for number in range(len(about["shards"]))]


def _name(name: str, local: bool) -> str:
    """A name to show: of something local the last part of its path."""
    return f"{public_path(name)} (local)" if local else name


def _encoder_link(name: str, local: bool) -> str:
    kind, _, place = name.rpartition(":")
    repo = place.partition("@")[0]
    if local or kind not in ("", "hf_hub", "hf-hub"):
        return f"`{_name(name, local)}`"
    if "/" in repo:
        return f"[{place}]({_HUB}/{repo})"
    return f"[{name}]({_HUB}/timm/{name}) of timm"


def _described(names: list[str]) -> str:
    if not names:
        return "label, an integer"
    listed = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f"label, {len(names)} classes: {listed}; -1 where unknown"
