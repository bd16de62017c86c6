"""The files of an exported folder as they are published, whichever version of hf_ssl wrote them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_ssl.data.sources.opened import kind_by_name
from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import read_json
from hf_ssl.evaluation.results import results_in
from hf_ssl.private import public_command, public_name, without_paths
from hf_ssl.settings import of_json
from hf_ssl.training.files import RUN_FILE
from hf_ssl.training.record import RunRecord


def public_files(folder: Path, files: Mapping[str, Path]) -> dict[str, Path | bytes]:
    """What is pushed of an exported folder: the records among its files without paths of this machine.

    Args:
        folder: The folder.
        files: Its files, by their path in it.

    Raises:
        UserError: If one of the records is damaged.
    """
    run = RunRecord.read(folder)
    data = run.data if run is not None else {}
    public: dict[str, Any] = {}
    if run is not None:
        public[RUN_FILE] = run.public().to_json()
    for name in ("results.json", "embedding.json", "analysis.json"):
        if name in files:
            content = read_json(files[name])
            if name == "results.json":
                content["results"] = public_results(results_in(files[name]), data)
                public[name] = content
                continue
            try:
                of_json(_About, content)
            except UserError as error:
                raise UserError(
                    f"`{files[name]}` is not what hf_ssl writes: {error}. Move it away, or bring back a copy of it."
                ) from error
            public[name] = public_about(content, data)
    written = {name: f"{json.dumps(content, indent=2)}\n".encode() for name, content in public.items()}
    same = [name for name, content in written.items() if name in files and files[name].read_bytes() == content]
    return {**files, **{name: content for name, content in written.items() if name in files and name not in same}}


@dataclass(frozen=True)
class _About:
    """What a file of measures says of its data set, for the check of its types."""

    dataset: str
    dataset_kind: str | None = None
    command: str | None = None


def public_results(results: Iterable[Mapping[str, Any]], data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of a `results.json` as they are published; see `public_about`."""
    return [public_about(result, data) for result in results]


def public_about(about: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """A record that names a data set, with its kind, and without paths of this machine.

    Args:
        about: Has a `dataset`, and perhaps a `dataset_kind` and a `command`. An older version recorded no kind: it is
            that of the data set that the run was trained on, if that is the same, else what the name tells.
        data: The part `data` of the run's record.
    """
    name = about["dataset"]
    kind = about.get("dataset_kind")
    if kind is None and data:
        of_run = data.get("dataset_kind")
        same = name == data.get("dataset") or (of_run == "local" and public_name(name, "local") == data["dataset"])
        kind = of_run if same else None
    kind = kind_by_name(name) if kind is None else kind
    content = {**about, "dataset": public_name(name, kind), "dataset_kind": kind}
    if isinstance(about.get("command"), str):
        content["command"] = public_command(about["command"], name, kind)
    return without_paths(content)
