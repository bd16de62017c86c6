"""From what the user said of a pretraining run to what it needs: data opened, recipe chosen, weights found."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from hf_ssl.commands.flags import ALIASES
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.data.views.cpu import VIEW_RECIPES
from hf_ssl.errors import UserError, near_name
from hf_ssl.evaluation.references import json_object
from hf_ssl.hub.access import check_push_access
from hf_ssl.hub.names import check_license
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLConfig, SSLPreTrainedModel, check_method_class, method_name
from hf_ssl.settings import as_declared, as_typed, has_type, refuse_unknown, wrong_value
from hf_ssl.training.arguments import ALTERNATIVES, TrainingSettings
from hf_ssl.training.files import write_json
from hf_ssl.training.output import prepare_output_dir
from hf_ssl.training.recipe import Choice, choose_recipe
from hf_ssl.training.record import RunRecord
from hf_ssl.training.start import EncoderStart, MethodStart, check_encoder, find_encoder, find_method, with_image_size
from hf_ssl.training.watch.knn import open_knn

logger = logging.getLogger(__name__)

DEFAULT_METHOD = "directpred"
INHERITED = frozenset(field.name for field in fields(PreTrainedConfig))
"""Fields of a method's config that are transformers' and no settings of ours."""

_OF_ENCODER = ("architecture", "model_args", "image_size", "image_mean", "image_std")
_CHOICE = "recipe.json"  # in the run's folder: what `auto` has chosen
_EMBEDDED = ("shapes", "digits")
_SLOWER = 0.1  # of a recipe's learning rate, for weights that were loaded: scripts/guides/existing_weights.md
_LOADED_WARMUP = 10  # of loaded weights it is this part of the run


@dataclass(frozen=True)
class Request:
    """What a run needs, made from what the user said.

    Args:
        method: Class of the method.
        config: Its config.
        data: Settings of the data.
        training: Settings of the training.
        source: The opened split to train on.
        start: Where the weights come from, if not from chance.
    """

    method: type[SSLPreTrainedModel]
    config: SSLConfig
    data: DataSettings
    training: TrainingSettings
    source: Source
    start: EncoderStart | MethodStart | None


def request_of(given: Mapping[str, Any]) -> Request:
    """Open the data, choose what was left open, and check what can be known before training."""
    values = {ALIASES.get(name, name): value for name, value in given.items() if name != "method"}
    method = method_of(given.get("method", DEFAULT_METHOD))
    known = _kinds_of(method)
    refuse_unknown(values, {**known, "method": str}, f"Pretraining by `{method.__name__}` has no setting")
    values = {name: as_declared(value, known[name]) for name, value in values.items()}
    _check_types(values, known)
    refuse_unknown(
        dict.fromkeys(values.get("change") or ()), {**known, **ALIASES}, "`change` names the unknown setting"
    )
    recipe = values.get("recipe") or "auto"
    check_recipe(method, recipe)
    if "output_dir" not in values:
        raise UserError("`output_dir` is needed: the folder of this run, such as `runs/first`.")
    data = _only(DataSettings, values)
    prepare_output_dir(TrainingSettings(output_dir=values["output_dir"], resume=values.get("resume")), data)
    source = data.open()
    start, of_start = _start_of(method, values)
    choice = _choice_of(method, recipe, source, {**of_start, **values})
    chosen = dict(choice.values)
    if start is not None:
        chosen = _for_loaded_weights(chosen, values) | of_start
    for one, other in (*ALTERNATIVES, *((other, one) for one, other in ALTERNATIVES)):
        if values.get(one) is not None and values.get(other) is None:
            chosen[other] = None
    if values.get("max_hours") is not None and values.get("num_epochs") is None and values.get("num_steps") is None:
        chosen |= {"num_epochs": None, "num_steps": None}
    final = {**chosen, **values, "recipe": recipe}
    if isinstance(start, EncoderStart):
        # Its `model_args` are the published ones, with what the user said and the image size.
        final |= {"architecture": start.architecture, "model_args": start.model_args or None}
    data, training = _only(DataSettings, final), _only(TrainingSettings, final)
    config = _config_of(method, final)
    config.adapt_to_data(source.num_images)
    check_license(training.license)
    if training.push_to_hub or training.push_checkpoints:
        check_push_access(training.repo_id or "", private=training.private)
    open_knn(source, data, training)
    _keep_choice(choice, training)  # not before all else is known to be right
    return Request(method, config, data, training, source, start)


def _check_types(values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse values of a wrong type before `auto` and the encoder are chosen by them; the method's config has its own.

    Raises:
        UserError: Names the first.
    """
    own = {*_OF_ENCODER, *(field.name for kind in (DataSettings, TrainingSettings) for field in fields(kind))}  # pyright: ignore[reportArgumentType]
    shown = {field: alias for alias, field in ALIASES.items()}
    for name, value in values.items():
        if name in own and not has_type(value, known[name]):
            raise UserError(wrong_value(shown.get(name, name), known[name], value))


def method_of(method: Any) -> type[SSLPreTrainedModel]:
    """The class of a method.

    Args:
        method: Its name, or a class of the user's own, which is checked.

    Raises:
        UserError: If there is no such method, or the class breaks the contract.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise UserError(f"Unknown method `{method}`. Known: {', '.join(METHODS)}.{near_name(method, METHODS)}")
        return METHODS[method]
    check_method_class(method)
    return method


def _kinds_of(method: type[SSLPreTrainedModel]) -> dict[str, Any]:
    """Every setting of a run by this method and its type."""
    found: dict[str, Any] = {}
    for kind in (method.config_class, DataSettings, TrainingSettings):
        for field in fields(kind):  # pyright: ignore[reportArgumentType]
            if not (issubclass(kind, PreTrainedConfig) and field.name in INHERITED):
                found[field.name] = field.type
    return found


def _only(kind: Any, values: Mapping[str, Any]) -> Any:
    """A settings object from those values that it has."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def own_fields(method: type[SSLPreTrainedModel]) -> set[str]:
    """Settings of a method's config, without those of transformers."""
    return {field.name for field in fields(method.config_class)} - INHERITED  # pyright: ignore[reportArgumentType]


def _config_of(method: type[SSLPreTrainedModel], values: Mapping[str, Any]) -> SSLConfig:
    own = {name: value for name, value in values.items() if name in own_fields(method)}
    config = method.config_class(**own)
    config.model_args = with_image_size(config.architecture, config.model_args or {}, config.image_size) or None
    check_encoder(config.architecture, config.model_args or {}, config.image_size)
    return config


def check_recipe(method: type[SSLPreTrainedModel], recipe: str) -> None:
    """Refuse a recipe that the method does not have, and a method whose recipes name what is no setting.

    Raises:
        UserError: Names the recipe or the setting, and the nearest known one.
    """
    known = ["auto", *method.recipes]
    if recipe not in known:
        raise UserError(
            f"Method `{method.config_class.model_type.removeprefix('hf_ssl_')}` has no recipe `{recipe}`. Known: "
            f"{', '.join(known)}.{near_name(recipe, known)}"
        )
    names = _kinds_of(method)
    for name, values in method.recipes.items():
        refuse_unknown(values, names, f"Recipe `{name}` of `{method.__name__}` names the unknown setting")
        view_recipe = values.get("view_recipe", method.view_recipe)
        if view_recipe not in VIEW_RECIPES:
            raise UserError(
                f"Recipe `{name}` of `{method.__name__}` has the unknown `view_recipe` `{view_recipe}`."
                f"{near_name(view_recipe, VIEW_RECIPES)}"
            )


def _choice_of(method: type[SSLPreTrainedModel], recipe: str, source: Source, values: Mapping[str, Any]) -> Choice:
    """The recipe's values; those of `auto` are chosen once, with a text that says why."""
    if recipe != "auto":
        return Choice(dict(method.recipes[recipe]), "")
    kept = Path(values["output_dir"]) / _CHOICE
    if values.get("resume") is not None and kept.is_file():
        _refuse_other_method(kept.parent, method)
        return Choice(_kept_choice(kept, _kinds_of(method)), "")  # on another machine `auto` might choose otherwise
    return auto_choice(method, source, values)


def _refuse_other_method(run: Path, method: type[SSLPreTrainedModel]) -> None:
    """Refuse to go on with the run of another method, whose settings this one does not have."""
    try:
        record = RunRecord.read(run)
    except UserError:  # a damaged record is made again from a checkpoint, which tells the method too
        return
    if record is not None and record.method != method_name(method):
        raise UserError(
            f"The run in `{run}` is of the method `{record.method}`, and `resume` cannot go on with it as "
            f"`{method_name(method)}`. Give the former method, or another `output_dir`."
        )


def _kept_choice(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """What `auto` chose when a run began.

    Raises:
        UserError: If the file holds something else.
    """
    try:
        values = json_object(path)
        refuse_unknown(values, kinds, "this method has no setting")
        return {name: as_typed(name, value, kinds[name]) for name, value in values.items()}
    except UserError as error:
        raise UserError(
            f"`{path}` is not what `recipe` auto chose for this run: {str(error).rstrip('.')}. Bring back a copy of "
            "it, or give the settings of the run by flags with another `recipe`."
        ) from error


def auto_choice(method: type[SSLPreTrainedModel], source: Source, values: Mapping[str, Any]) -> Choice:
    """What the recipe `auto` comes to on this machine.

    Args:
        method: The method.
        source: The images.
        values: What the user said.
    """
    gpu = None
    if torch.cuda.is_available() and not values.get("cpu"):
        gpu = torch.cuda.get_device_properties(0).total_memory / 2**30
    return choose_recipe(
        method,
        source,
        values,
        gpu_gib=gpu,
        num_processes=int(os.environ.get("WORLD_SIZE", "1")),
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        embedded=isinstance(values.get("dataset", "shapes"), str) and values.get("dataset", "shapes") in _EMBEDDED,
    )


def _keep_choice(choice: Choice, training: TrainingSettings) -> None:
    """Say what `auto` has chosen, and keep it in the run's folder."""
    if choice.why:
        logger.info(choice.why)
        if os.environ.get("RANK", "0") == "0":
            write_json(Path(training.output_dir) / _CHOICE, choice.values)


def _start_of(
    method: type[SSLPreTrainedModel], values: Mapping[str, Any]
) -> tuple[EncoderStart | MethodStart | None, dict[str, Any]]:
    """Where the weights come from, and the settings that come with them."""
    reference = values.get("start_from")
    if reference is not None:
        if "architecture" in values or values.get("pretrained"):
            raise UserError("`start_from` brings its encoder. Leave out `encoder` and `pretrained`.")
        former = find_method(reference)
        same = former.model_type == method.config_class.model_type
        names = own_fields(method) if same else _OF_ENCODER
        taken = {name: former.config[name] for name in names if name in former.config}
        if values.get("image_size", taken["image_size"]) != taken["image_size"]:
            taken["model_args"] = {
                name: value for name, value in (taken.get("model_args") or {}).items() if name != "img_size"
            }
        return former, taken
    if "architecture" not in values:
        if values.get("pretrained"):
            raise UserError("`pretrained` needs `encoder`, the timm name whose weights are loaded.")
        return None, {}
    start = find_encoder(
        values["architecture"],
        pretrained=values.get("pretrained", False),
        model_args=values.get("model_args"),
        image_size=values.get("image_size"),
    )
    if start.origin is None:
        return None, {}
    of_start = {
        "model_args": start.model_args or None,
        "image_size": start.image_size,
        "image_mean": start.image_mean,
        "image_std": start.image_std,
    }
    return start, {name: value for name, value in of_start.items() if value is not None}


def _for_loaded_weights(chosen: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for weights that are worth keeping: a slower learning rate, and a warm-up over a tenth of the run.

    Args:
        chosen: The recipe's values.
        given: What the user said, whose length counts before the recipe's. The length that `max_hours` allows is not
            known yet: the recipe's stands for it, and `Plan.fitted` shortens the warm-up to a tenth of the run.
    """
    values = dict(chosen)
    values["base_learning_rate"] = _SLOWER * values.get("base_learning_rate", TrainingSettings.base_learning_rate)
    values.pop("architecture", None)
    of = given if any(given.get(name) is not None for name in ("num_epochs", "num_steps")) else values
    if of.get("num_steps") is not None:
        values |= {"warmup_steps": of["num_steps"] // _LOADED_WARMUP, "warmup_epochs": None}
    elif of.get("num_epochs") is not None:
        values |= {"warmup_epochs": of["num_epochs"] / _LOADED_WARMUP, "warmup_steps": None}
    return values
