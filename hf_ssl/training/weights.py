"""Weights from a file into an encoder, as timm fits them: without classifier, with positions resampled."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import Tensor, nn

from hf_ssl.errors import UserError
from hf_ssl.seeded import seeded

WEIGHTS = "model.safetensors"
"""Name of the file of weights: nothing that is stored as code is loaded."""

_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
_CFG_FIELDS = frozenset(field.name for field in fields(PretrainedCfg))


def fitted_weights(
    encoder: nn.Module,
    weights: dict[str, Tensor],
    architecture: str,
    model_args: Mapping[str, Any],
    published: Mapping[str, Any],
    name: str,
) -> dict[str, Tensor]:
    """Weights as an encoder takes them: without the classifier, with names of today and positions resampled."""
    wanted = encoder.state_dict()
    if published.get("num_classes", 0) != 0:
        classifiers = published.get("classifier") or ()
        classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
        dropped = {f"{classifier}.{kind}" for classifier in classifiers for kind in ("weight", "bias")}
        # Some heads have more than the classifier; an encoder that has such a part keeps it.
        heads = {classifier.split(".")[0] for classifier in classifiers} - {key.split(".")[0] for key in wanted}
        weights = {
            key: value for key, value in weights.items() if key not in dropped and key.split(".")[0] not in heads
        }
    if not differences(wanted, weights):
        return weights
    # timm knows what its networks were called before, and how each resamples its positions.
    described = {key: value for key, value in published.items() if key in _CFG_FIELDS and key not in _SOURCES}
    default = get_pretrained_cfg(architecture)
    described = {**(default.to_dict(remove_source=True) if default is not None else {}), **described, "num_classes": 0}
    overlay = {"pretrained_cfg": {**described, "custom_load": False, "state_dict": weights}}
    return weights_by_timm(architecture, {**model_args, **overlay}, name)


def weights_by_timm(timm_name: str, arguments: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """Build an encoder with its weights by timm and give them.

    timm leaves at random what a file lacks. What depends on the seed was not in the file.
    """
    built: list[dict[str, Tensor]] = []
    for seed in (0, 1):
        try:
            with seeded(seed):
                model = timm.create_model(timm_name, pretrained=True, num_classes=0, **arguments)
        except (RuntimeError, OSError, HfHubHTTPError, LookupError, TypeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"The weights of `{name}` do not fit `{timm_name}`: {reason}") from error
        built.append(model.state_dict())
    random = [key for key, value in built[0].items() if not torch.equal(value, built[1][key])]
    if random:
        raise UserError(
            f"The weights of `{name}` lack {len(random)} of those that `{timm_name}` has, such as `{random[0]}`. Are "
            "they those of another encoder?"
        )
    return built[0]


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Names that only one of two state dicts has, or whose shapes differ."""
    return [
        *(name for name, value in wanted.items() if name not in found or found[name].shape != value.shape),
        *(name for name in found if name not in wanted),
    ]


def of_part(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The state dict of one submodule."""
    return {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(f"{part}.")}


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"The weights in `{file}` cannot be read: {error}. Is the file complete?") from error
