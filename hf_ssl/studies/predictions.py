"""Predictions of a study's runs, in a file that is written before them and only added to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import read_json
from hf_ssl.settings import of_json
from hf_ssl.training.files import write_json

FILE = "predictions.json"


@dataclass(frozen=True)
class Entry:
    """What every prediction says of the run that it is about.

    Args:
        title: What the run is called in its study.
        seed: Its seed.
        before_run: Whether nothing of the run was there when this was written.
    """

    title: str
    seed: int
    before_run: bool


class Predictions:
    """Predictions by run; what was predicted once stays as it was written.

    Args:
        folder: Of the study; None keeps everything in memory.
        about: What all predictions have in common. `settings`, a mapping, says what all runs have in common.
        kind: Dataclass of what is predicted of a run, by which the file is checked.

    Raises:
        UserError: If the file there was made for other settings, or is none of this study.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, Any], kind: type[Entry]):
        self._path = None if folder is None else folder / FILE
        self._about = dict(about)
        self._entries: dict[tuple[str, int], dict[str, Any]] = {}
        if self._path is not None and self._path.exists():
            known = read_json(self._path)
            try:
                self.check(known, kind)
            except UserError as error:
                raise UserError(
                    f"`{self._path}` holds no predictions of this study: {str(error).rstrip('.')}. Put the file back, "
                    "or give another `output_dir`."
                ) from error
            self._compare(known)

    def check(self, record: Mapping[str, Any], kind: type[Entry]) -> None:
        """Take what a file holds, whose entries must be of a dataclass.

        Raises:
            UserError: If they are not.
        """
        if not isinstance(record.get("settings"), dict) or not isinstance(record.get("runs"), list):
            raise UserError("it must have an object `settings` and a list `runs`")
        for place, entry in enumerate(record["runs"]):
            of_json(kind, entry, f"runs.{place}.")
            self.take(entry)

    def take(self, entry: dict[str, Any]) -> None:
        """Take a prediction as it was written."""
        self._entries[entry["title"], entry["seed"]] = entry

    def _compare(self, known: Mapping[str, Any]) -> None:
        for name, value in self._about["settings"].items():
            if known["settings"].get(name) != value:
                raise UserError(
                    f"The predictions in `{self._path}` were made for `{name}` {known['settings'].get(name)}, got "
                    f"{value}. Predictions are not changed: give another `output_dir`."
                )
        # The command and the time of the first prediction, and whatever else stands there, stay.
        self._about = {name: value for name, value in known.items() if name != "runs"}

    def has(self, title: str, seed: int) -> bool:
        """Whether a run has been predicted."""
        return (title, seed) in self._entries

    def add(self, title: str, seed: int, said: Mapping[str, Any], *, before_run: bool) -> None:
        """Predict a run that has not been predicted, and write the file.

        Args:
            title: What it is called.
            seed: Its seed.
            said: What is predicted.
            before_run: Whether nothing of it is there yet.
        """
        assert not self.has(title, seed)
        self._entries[title, seed] = {"title": title, "seed": seed, "before_run": before_run, **said}
        if self._path is not None:
            write_json(self._path, self.record())

    def said(self, title: str, seed: int) -> dict[str, Any] | None:
        """What is predicted of a run; None if nothing is."""
        return self._entries.get((title, seed))

    def record(self) -> dict[str, Any]:
        """What the file holds."""
        return {**self._about, "runs": list(self._entries.values())}

    def late_text(self, runs: Iterable[tuple[str, int]]) -> list[str]:
        """A line about those of these runs, by title and seed, that had begun before they were predicted."""
        late = sum(not self._entries[run]["before_run"] for run in runs if run in self._entries)
        return [f"{late} of these runs had begun before they were predicted."] if late else []
