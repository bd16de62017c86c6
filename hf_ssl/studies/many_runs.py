"""What studies of many runs share: a folder of one choice of settings, an orderly stop, means over seeds."""

import os
import signal
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import read_json
from hf_ssl.studies.settings import StudySettings
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.files import write_json
from hf_ssl.training.output import make_folder


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


def check_one_process() -> None:
    """Refuse several processes: a study trains one run after another in the process that it is called in.

    Raises:
        UserError: If a launcher started more than one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"A study trains one run after another in one process, but {os.environ['WORLD_SIZE']} were launched. "
            "Start it by `hf-ssl study`, without a launcher."
        )


def choice_of(settings: StudySettings, names: Sequence[str], source: Source) -> dict[str, Any]:
    """The settings that change the numbers of a study's runs, for `claim_folder`.

    Args:
        settings: Of the study.
        names: Fields of `settings`; of an object of `datasets`, its name and what tells its content from another's.
        source: The opened training split.
    """
    values = {name: getattr(settings, name) for name in names} | {"dataset": source.name}
    return values if isinstance(settings.dataset, str | Path) else values | {"fingerprint": source.fingerprint}


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder whose runs all have the same of these settings, so that finished runs need not be made again.

    Args:
        folder: Its `settings.json` is written, or compared if there is one.
        settings: Every setting that changes the numbers of its runs, JSON-able.

    Raises:
        UserError: If its runs were trained with other settings; names the first.
    """
    path = folder / "settings.json"
    if path.exists():
        before = read_json(path)
        for name, value in settings.items():
            if before.get(name) != value:
                raise UserError(
                    f"The runs in `{folder}` have `{name}` {before.get(name)}, got {value}. Give another "
                    "`output_dir`, or the same settings to go on."
                )
    make_folder(folder, "output_dir")
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
