"""What studies of many runs share: a folder of one choice of settings, an orderly stop, means over seeds."""

import logging
import os
import signal
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import hf_ssl
from hf_ssl.data.settings import DataSettings, PlaceSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import json_object, read_json
from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLConfig, SSLPreTrainedModel
from hf_ssl.modules.encoder import check_encoder, with_image_size
from hf_ssl.private import public_places, without_paths
from hf_ssl.settings import of_json
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.changes import defaults_of
from hf_ssl.training.files import RUN_FILE, write_json
from hf_ssl.training.loop import train
from hf_ssl.training.output import check_outside_data, make_results_folder
from hf_ssl.training.plan import make_plan
from hf_ssl.writing import alone_in, leftovers_of

logger = logging.getLogger(__name__)

_Run = TypeVar("_Run")

SETTINGS_FILE = "settings.json"
"""What `claim_folder` writes into the folder of a study."""

_VERSION = "hf_ssl"  # name of this package's version in it


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


def public_settings(settings: PlaceSettings, names: Sequence[str], source: Source) -> dict[str, Any]:
    """Settings of a study as its results tell them, which are published: of local paths the last part.

    Args:
        settings: Of the study.
        names: Fields of `settings`.
        source: The opened training split.
    """
    values = {name: getattr(settings, name) for name in names}
    return without_paths(values | (public_places(values) if source.kind == "local" else {}))


def claim_folder(folder: Path, settings: PlaceSettings, names: Sequence[str], source: Source) -> None:
    """Make a folder whose runs all have the same settings, so that finished runs need not be made again.

    Of several commands that begin in it at the same time, the first one's settings count. If another version of this
    package began it, a warning says so.

    Args:
        folder: Its `settings.json` is written, or compared if there is one. A setting that the version which wrote it
            did not have counts as its default.
        settings: Of the study.
        names: Fields of `settings` that change the numbers of its runs.
        source: The opened training split. Of an object of `datasets` its content is compared too.

    Raises:
        UserError: If its runs were trained with other settings, of which the first is named.
        UserError: If it lies in a run or in the data set, or holds something else.
    """
    place = folder.resolve()
    run = next((one for one in (place, *place.parents) if (one / RUN_FILE).is_file()), None)
    if run is not None:
        raise UserError(f"`output_dir` `{folder}` lies in the run `{run}`, which stays as it is. Give another folder.")
    choice = {name: getattr(settings, name) for name in names} | {"dataset": source.name}
    if not isinstance(getattr(settings, "dataset"), str | Path):  # noqa: B009
        choice["fingerprint"] = source.fingerprint
    path = folder / SETTINGS_FILE
    check_outside_data(folder, "output_dir", settings)
    make_results_folder(folder, "output_dir")
    with alone_in(folder):
        found = read_json(path) if path.exists() else None
        if found is not None and "dataset" not in found:
            raise UserError(f"`{path}` is not of a study: it lacks `dataset`. Give another `output_dir`.")
        before = {**defaults_of(type(settings)), **(choice if found is None else found)}
        for name, value in choice.items():
            if before.get(name) != value:
                raise UserError(
                    f"The runs in `{folder}` have `{name}` {before.get(name)}, got {value}. Give another "
                    "`output_dir`, or the same settings to go on."
                )
        began = hf_ssl.__version__ if found is None else found.get(_VERSION)
        write_json(path, choice | {_VERSION: began})
        for left in leftovers_of(path):
            left.unlink(missing_ok=True)
    if began != hf_ssl.__version__:
        logger.warning(
            "The runs in `%s` were begun with %s, and this is hf_ssl %s: finished runs stay as they are. If the "
            "changelog names what differs between them, give another `output_dir`.",
            folder,
            "an hf_ssl that did not record its version" if began is None else f"hf_ssl {began}",
            hf_ssl.__version__,
        )


def finished_run(path: Path, kind: type[_Run], **own: Any) -> _Run:
    """The result of a finished run.

    Args:
        path: Its `result.json`.
        kind: The dataclass that was written there.
        own: Fields whose values the place of the file tells.

    Raises:
        UserError: If something else stands there.
    """
    try:
        found = of_json(kind, json_object(path))
        for name, value in own.items():
            if getattr(found, name) != value:
                raise UserError(f"its `{name}` is {getattr(found, name)}, and the folder is of {value}")
    except UserError as error:
        raise UserError(
            f"`{path}` is not the result of a run of this study: {str(error).rstrip('.')}. Remove the file, and the "
            "same command measures that run again."
        ) from error
    return found


def tell_missing_encoders(folder: Path) -> None:
    """Say which finished runs of a study have no encoder any more: their numbers stand in the tables all the same.

    Args:
        folder: Of the study, with the runs in `NAME/seedN`.
    """
    runs = [path.parent for path in sorted(folder.glob("*/seed*/result.json"))]
    missing = [run for run in runs if _has_lost_encoder(run)]
    if missing:
        logger.warning(
            "The encoder is gone of %s. Remove `result.json` there, and the same command writes the encoder again "
            "from the last checkpoint; without `checkpoints`, remove the whole folder, and it trains again.",
            ", ".join(f"`{run}`" for run in missing),
        )


def _has_lost_encoder(run: Path) -> bool:
    """Whether the folder `encoder` of a run that pretrained is not there; a run of a fresh encoder has no record."""
    if (run / "encoder" / "model.safetensors").is_file() or not (run / RUN_FILE).is_file():
        return False
    return read_json(run / RUN_FILE).get("method") in METHODS


def results_to_draw(path: Path, study: str, kind: type) -> dict[str, Any]:
    """The results of a study that are to be drawn again.

    Args:
        path: The file that it wrote.
        study: Its name.
        kind: The dataclass of its results, whose rules raise `UserError`.

    Raises:
        UserError: If the file holds no results of that study, or only its predictions.
    """
    if not path.is_file():
        found = f"`{path}` is a folder" if path.is_dir() else f"there is no `{path}`"
        raise UserError(f"`drawn_from` must be a file, but {found}. Name the {study}.json of a study.")
    results = read_json(path)
    try:
        if results.get("study") != study:
            raise UserError(f"its `study` is {results.get('study')!r:.80}")
        of_json(kind, results)
    except UserError as error:
        raise UserError(
            f"`drawn_from` must be results of `study {study}`, but `{path}` holds none: {str(error).rstrip('.')}. "
            f"Name its {study}.json."
        ) from error
    return results


def parts_of_recipe(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the method and those of the training in a recipe; those of the data are left out."""
    data, training = ({field.name for field in fields(kind)} for kind in (DataSettings, TrainingSettings))
    of_method = {name: value for name, value in recipe.items() if name not in data | training}
    return of_method, {name: value for name, value in recipe.items() if name in training}


def settings_of_run(training: Mapping[str, Any], folder: Path, seed: int) -> TrainingSettings:
    """The settings of one run of a study, which goes on if it was begun before.

    Args:
        training: Settings of the training by name.
        folder: Of the run.
        seed: Of the run.
    """
    own: dict[str, Any] = {"output_dir": str(folder), "resume": "auto" if folder.exists() else None, "seed": seed}
    return TrainingSettings(**{**training, **own, "keep_checkpoints": 1, "diagnostics_every": 0})


def config_of_run(method: str, of_method: Mapping[str, Any], source: Source, settings: TrainingSettings) -> SSLConfig:
    """The config of a method for a run, which may be shorter than its recipe's.

    Args:
        method: Name in `METHODS`.
        of_method: Settings of its config by name.
        source: What it trains on.
        settings: Length of the run. MoCHi mixes after a tenth of it where its recipe would start after the end.

    Raises:
        UserError: If the encoder cannot take images of that size.
    """
    values = dict(of_method)
    num_steps = make_plan(source, settings, 1).num_steps
    if values.get("start_step", 0) >= num_steps:
        values["start_step"] = num_steps // 10
    config = METHODS[method].config_class(**values)
    config.model_args = with_image_size(config.architecture, config.model_args or {}, config.image_size) or None
    check_encoder(config.architecture, config.model_args or {}, config.image_size)
    config.adapt_to_data(source.num_images)
    return config


def train_run(model: SSLPreTrainedModel, source: Source, data: DataSettings, settings: TrainingSettings) -> float:
    """Train one run and export its encoder.

    Returns:
        Seconds of training.

    Raises:
        StoppedError: If a signal ended it.
    """
    ended = train(model, source, data, settings)
    if ended.signal:
        raise StoppedError(ended.signal)
    export_run(model, Path(settings.output_dir))
    return ended.seconds


def length_of(recipe: Mapping[str, Any], num_epochs: float | None, num_steps: int | None) -> dict[str, Any]:
    """The settings of a run's length, with a warm-up that keeps its share of the recipe's run.

    Args:
        recipe: Settings of the recipe by name.
        num_epochs: Epochs of the run; None if `num_steps` is given.
        num_steps: Its optimizer steps; None if `num_epochs` is given.

    Returns:
        `num_epochs`, `num_steps`, `warmup_epochs` and `warmup_steps`; None for what is in the other unit.
    """
    share = 0.0
    for unit in ("epochs", "steps"):
        if recipe.get(f"num_{unit}"):
            share = (recipe.get(f"warmup_{unit}") or 0) / recipe[f"num_{unit}"]
    values: dict[str, Any] = dict.fromkeys(("num_epochs", "num_steps", "warmup_epochs", "warmup_steps"))
    if num_steps is not None:
        return values | {"num_steps": num_steps, "warmup_steps": int(share * num_steps)}
    return values | {"num_epochs": num_epochs, "warmup_epochs": share * (num_epochs or 0)}


def written_text(files: Sequence[Path]) -> list[str]:
    """The last line of what a study prints: what it wrote, and where; none if it wrote nothing."""
    return [f"\nWrote {', '.join(path.name for path in files)} to {files[0].parent}"] if files else []


def mean_text(values: Sequence[float], digits: int) -> str:
    """Mean, and with several values the standard deviation; empty without values."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} \N{PLUS-MINUS SIGN} {statistics.stdev(values):.{digits}f}"
