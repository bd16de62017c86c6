"""Where a run starts: from an encoder or a method that exists, on this machine, on the Hub or in timm."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg, split_model_name_tag
from torch import Tensor, nn

from hf_ssl.errors import UserError, near_name
from hf_ssl.evaluation.references import encoder_folder, hub_file, read_json, timm_reference
from hf_ssl.modules.encoder import check_encoder, with_image_size
from hf_ssl.training.origin import commit_of, hub_record, sha256_of, training_of
from hf_ssl.training.record import RunRecord
from hf_ssl.training.start_method import ENCODERS, MethodStart, find_method
from hf_ssl.training.twins import TIMM_TWINS
from hf_ssl.training.weights import WEIGHTS, differences, fitted_weights, read_weights, weights_by_timm

__all__ = ["ENCODERS", "EncoderStart", "MethodStart", "Start", "check_encoder", "find_encoder", "find_method"]
__all__ += ["with_image_size"]


@dataclass(frozen=True)
class EncoderStart:
    """What a reference to an encoder comes to: architecture and preprocessing, and its weights if it has any to load.

    Args:
        architecture: timm name without a tag, or one of this package such as `resnet18_cifar`.
        model_args: Further arguments of `timm.create_model`, as published, with what the caller changed.
        image_size: Height and width in pixels that the encoder is built for; None if nothing says.
        image_mean: Mean of each channel, of images in [0, 1]; None if nothing says.
        image_std: Standard deviation of each channel, positive; None if nothing says.
        base_model: Hub id for the card's `base_model`; None for random weights and local ones that came from none.
        origin: What `run.json` tells: `encoder` (the reference), `kind` (`timm`, `hub`, `folder` or `run`),
            `revision` (commit), `sha256` of the weights, and `former`, the training that made them, with its own
            origin; see `training_of`. None for random weights.
        weights: The file of the weights; None if timm finds them itself, or if there are none.
        published: timm's description of the weights, such as `input_size` and `classifier`.
    """

    architecture: str
    model_args: dict[str, Any]
    image_size: int | None
    image_mean: tuple[float, ...] | None
    image_std: tuple[float, ...] | None
    base_model: str | None
    origin: dict[str, Any] | None
    weights: Path | None = None
    published: Mapping[str, Any] | None = None

    def load_into(self, encoder: nn.Module) -> None:
        """Load the weights into an encoder built from `architecture` and `model_args`; nothing without weights.

        Position embeddings and relative positions of another size are resampled, as timm does it.

        Raises:
            UserError: If the weights do not fit, or timm cannot get them.
        """
        if self.origin is None:
            return
        name = self.origin["encoder"]
        if self.weights is None:
            loaded = weights_by_timm(name, self.model_args, name)
        else:
            file = read_weights(self.weights)
            loaded = fitted_weights(encoder, file, self.architecture, self.model_args, self.published or {}, name)
        _load(encoder, loaded, name)


Start = EncoderStart | MethodStart
"""Where the weights of a run come from, if not from chance."""


def find_encoder(
    reference: str,
    *,
    pretrained: bool = False,
    model_args: Mapping[str, Any] | None = None,
    image_size: int | None = None,
) -> EncoderStart:
    """Find out what a reference to an encoder means, and download its weights if there are any to load.

    Args:
        reference: A timm name such as `resnet50` (its weights are loaded with `pretrained`) or `resnet50.a1_in1k`; a
            repository `ORG/NAME` or `ORG/NAME@REVISION`, also as `hf_hub:ORG/NAME`; an encoder folder, also as
            `local-dir:FOLDER`; the folder of a run.
        pretrained: Load the weights that timm published for a plain name; everything else brings its own.
        model_args: Arguments of `timm.create_model` that override the published ones.
        image_size: Height and width in pixels to build for; without it those of the published preprocessing.

    Raises:
        UserError: If there is no such encoder, it is one of transformers, or its weights cannot be had.
    """
    repo = reference.removeprefix("hf_hub:").removeprefix("hf-hub:").partition("@")[0]
    if repo in TIMM_TWINS and encoder_folder(reference) is None:
        raise UserError(
            f"`{reference}` is a model of transformers, and hf_ssl trains encoders of timm. Give its timm twin: "
            f"`timm/{TIMM_TWINS[repo]}`."
        )
    found = timm_reference(reference)
    if found is None or (found[1] and "architecture" not in found[1]):
        raise UserError(_not_of_timm(reference))
    if not found[1]:
        return _of_timm_name(reference, pretrained, model_args, image_size)
    name, config = found
    kind, _, place = name.partition(":")
    of_run = None
    if kind == "local-dir":
        folder = Path(place)
        weights = folder / WEIGHTS
        if not weights.is_file():
            raise UserError(f"The encoder folder `{folder}` has no `{WEIGHTS}`. Is it complete?")
        kind = "run" if folder != Path(reference.removeprefix("local-dir:")) else "folder"
        revision, of_run = None, RunRecord.read(folder)
        base_model = of_run.base_model if of_run is not None else None
    else:
        kind, weights = "hub", hub_file(place, WEIGHTS)
        revision, base_model = commit_of(weights), place.partition("@")[0]
        of_run = hub_record(place)
    origin = {
        "encoder": reference,
        "kind": kind,
        "revision": revision,
        "sha256": sha256_of(weights),
        "former": training_of(of_run),
    }
    architecture = split_model_name_tag(config["architecture"])[0]
    published = config.get("pretrained_cfg", config)
    own_args = {name: value for name, value in (config.get("model_args") or {}).items() if name != "num_classes"}
    return _start(architecture, own_args, published, model_args, image_size, base_model, origin, weights)


def _of_timm_name(
    name: str, pretrained: bool, model_args: Mapping[str, Any] | None, image_size: int | None
) -> EncoderStart:
    architecture, tag = split_model_name_tag(name)
    if not tag and not pretrained:
        return EncoderStart(architecture, dict(model_args or {}), image_size, None, None, None, None)
    tags = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tags:
        known = near_name(name, tags) or (f" Known: {', '.join(tags[:8])}." if tags else "")
        raise UserError(f"timm has no weights `{name}`.{known}")
    cfg = get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise UserError(
            f"timm has published no weights of `{architecture}`. Leave out `pretrained`, or choose another encoder."
        )
    weights = hub_file(cfg.hf_hub_id, WEIGHTS) if cfg.hf_hub_id and not cfg.hf_hub_filename else None
    origin = {
        "encoder": name,
        "kind": "timm",
        "revision": commit_of(weights) if weights else None,
        "sha256": sha256_of(weights) if weights else None,
        "former": None,
    }
    published = cfg.to_dict()
    return _start(architecture, {}, published, model_args, image_size, cfg.hf_hub_id, origin, weights)


def _start(
    architecture: str,
    own_args: Mapping[str, Any],
    published: Mapping[str, Any],
    model_args: Mapping[str, Any] | None,
    image_size: int | None,
    base_model: str | None,
    origin: dict[str, Any],
    weights: Path | None,
) -> EncoderStart:
    """The start from published weights, built for the size that is wanted."""
    height, width = tuple(published.get("input_size", (3, 224, 224)))[1:]
    if image_size is None and height != width:
        raise UserError(
            f"`{origin['encoder']}` was trained on images of {height} x {width} pixels, and hf_ssl's are square. Give "
            "`image_size`."
        )
    size = height if image_size is None else image_size
    given = dict(model_args or {})
    arguments = {**own_args, **given}
    if "img_size" in own_args and "img_size" not in given and image_size is not None:
        arguments["img_size"] = image_size
    channels = published.get("input_size", (3,))[0]
    if channels != 3:
        arguments.setdefault("in_chans", channels)  # `check_encoder` says what is wrong with it
    return EncoderStart(
        architecture=architecture,
        model_args=with_image_size(architecture, arguments, size),
        image_size=size,
        image_mean=_numbers(published.get("mean")),
        image_std=_numbers(published.get("std")),
        base_model=base_model,
        origin=origin,
        weights=weights,
        published=published,
    )


def _not_of_timm(reference: str) -> str:
    folder = encoder_folder(reference)
    if folder is not None and str(read_json(folder / "config.json").get("model_type")).startswith("hf_ssl"):
        return f"`{reference}` holds a whole method, not only an encoder. Give it as `start_from`."
    return (
        f"`{reference}` does not hold an encoder of timm, and hf_ssl trains only these. Give a timm name, a "
        "repository of timm such as `timm/resnet50.a1_in1k`, or the folder of a run."
    )


def _numbers(values: Iterable[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _load(encoder: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    wrong = differences(encoder.state_dict(), weights)
    if wrong:
        raise UserError(
            f"The weights of `{name}` do not fit the encoder: {len(wrong)} differ, such as `{wrong[0]}`. Build it "
            "with the published `model_args`."
        )
    encoder.load_state_dict(weights)
