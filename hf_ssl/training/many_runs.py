"""What commands share that train many runs: a folder of one choice of settings, an orderly stop, means over seeds."""

import json
import signal
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_ssl.data.settings import DataSettings
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.checkpoint import write_json


class StoppedError(Exception):
    """A signal ended a run early.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.exit_code = 128 + number
        self._name = signal.Signals(number).name

    def message(self, done: int, total: int) -> str:
        """What to tell the user after `done` of `total` runs."""
        return f"Stopped by {self._name} after {done} of {total} runs. The same command continues."


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder that of these settings holds one choice alone, so that its finished runs can be counted on.

    Args:
        folder: Its `settings.json` is written, or compared if there is one.
        settings: Every setting that changes the numbers of its runs, JSON-able.

    Raises:
        ValueError: If its runs were trained with other settings; names the first.
    """
    path = folder / "settings.json"
    if path.exists():
        before = json.loads(path.read_text())
        for name, value in settings.items():
            if before.get(name) != value:
                raise ValueError(
                    f"The runs in `{folder}` have `{name}` {before.get(name)}, got {value}. Give another "
                    "`--output_dir`, or the same settings to go on."
                )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def parts_of_recipe(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the method and those of the training in a recipe; those of the data are left out."""
    data, training = ({field.name for field in fields(kind)} for kind in (DataSettings, TrainingSettings))
    of_method = {name: value for name, value in recipe.items() if name not in data | training}
    return of_method, {name: value for name, value in recipe.items() if name in training}


def mean_text(values: Sequence[float], digits: int) -> str:
    """Mean, and with several values the standard deviation; empty without values."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} \N{PLUS-MINUS SIGN} {statistics.stdev(values):.{digits}f}"
