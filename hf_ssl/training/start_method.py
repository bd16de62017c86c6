"""Where a run starts that continues a trained method: from another run, a saved method or a repository."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import hub_file, read_json
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.settings import of_json
from hf_ssl.training.find import complete_checkpoints
from hf_ssl.training.integrity import damage_of
from hf_ssl.training.origin import commit_of, hub_record, sha256_of, training_of
from hf_ssl.training.record import RunRecord
from hf_ssl.training.weights import WEIGHTS, differences, fitted_weights, of_part, read_weights

ENCODERS = ("encoder", "target_encoder", "key_encoder")
"""Networks of a method that start as one encoder, where it has them."""

_OF_TRANSFORMERS = frozenset(field.name for field in fields(PreTrainedConfig))
_OF_ENCODER = ("architecture", "model_args", "image_size")


@dataclass(frozen=True)
class MethodStart:
    """What a reference to a trained method comes to.

    Args:
        model_type: `model_type` of its config, such as `hf_ssl_moco`.
        config: Its config, field by field.
        folder: Where its weights are, in `model.safetensors`.
        origin: What `run.json` tells: as in `EncoderStart`, and the `method`.
        base_model: Hub id for the card's `base_model`; None for local ones that came from none.
    """

    model_type: str
    config: dict[str, Any]
    folder: Path
    origin: dict[str, Any]
    base_model: str | None

    def load_into(self, model: SSLPreTrainedModel) -> list[str]:
        """Load all weights and buffers into the same method, only the encoder into another one.

        Another method's `target_encoder` or `key_encoder` starts as its encoder does. Position embeddings of another
        size are resampled.

        Args:
            model: The method to be trained.

        Returns:
            What was taken, in words, such as `["encoder", "projector", "queue"]`.

        Raises:
            UserError: If the weights do not fit; names the settings that differ.
        """
        saved = read_weights(self.folder / WEIGHTS)
        same = model.config.model_type == self.model_type
        taken: dict[str, Tensor] = dict(saved) if same else {}
        for part in ENCODERS:
            if not hasattr(model, part):
                continue
            own = of_part(saved, part if same else "encoder")
            fitted = self._fitted_encoder(model, part, own)
            taken |= {f"{part}.{name}": value for name, value in fitted.items()}
        current = model.state_dict()
        wrong = differences(current, taken) if same else []
        if wrong:
            raise UserError(self._misfit(model, wrong))
        model.load_state_dict(taken, strict=same)
        parts = {name.split(".")[0] for name in taken}
        names = dict.fromkeys([*(name for name, _ in model.named_children()), *current])
        return [name.replace("_", " ") for name in names if name in parts]

    def _fitted_encoder(self, model: SSLPreTrainedModel, part: str, saved: dict[str, Tensor]) -> dict[str, Tensor]:
        config, encoder = model.config, model.get_submodule(part)
        if self.config["architecture"] != config.architecture:
            raise UserError(self._misfit(model, list(encoder.state_dict())))
        name = self.origin["encoder"]
        try:
            fitted = fitted_weights(encoder, saved, config.architecture, config.model_args or {}, {}, name)
        except UserError as error:
            raise UserError(self._misfit(model, differences(encoder.state_dict(), saved))) from error
        return fitted

    def _misfit(self, model: SSLPreTrainedModel, wrong: list[str]) -> str:
        """What to tell the user: which weights differ, and which settings may be why."""
        theirs, ours = self.config, model.config
        same = ours.model_type == self.model_type
        names = {field.name for field in fields(ours)} - _OF_TRANSFORMERS if same else _OF_ENCODER
        differing = [
            f"`{name}` is {value} there and {getattr(ours, name)} here"
            for name, value in theirs.items()
            # Numbers with a fraction, such as a momentum, do not change a shape.
            if name in names and not isinstance(value, float | list) and _differ(value, getattr(ours, name))
        ]
        reasons = "; ".join(differing) or "the versions of hf_ssl may differ"
        return (
            f"`start_from` `{self.origin['encoder']}` does not fit: {len(wrong)} weights differ, such as "
            f"`{wrong[0]}`, and {reasons}. Give the same settings, or take only its encoder by `encoder`."
        )


def _differ(one: Any, other: Any) -> bool:
    return (one or None) != (other or None)  # no `model_args` and empty ones are the same


def find_method(reference: str) -> MethodStart:
    """Find a trained method, with its heads, target, queue and statistics.

    Args:
        reference: The folder of a run (its `pretraining/`, or the newest checkpoint of one that has not finished); a
            folder that `save_pretrained` wrote; a repository `ORG/NAME` or `ORG/NAME/pretraining`, each with
            `@REVISION` if wanted.

    Raises:
        UserError: If there is no method.
    """
    path = Path(reference)
    if path.is_dir():
        return _local_method(reference, path)
    repo, _, revision = reference.removeprefix("hf_hub:").removeprefix("hf-hub:").partition("@")
    repo = repo.removesuffix("/pretraining")
    if repo.count("/") != 1:
        raise UserError(
            f"`start_from` must be the folder of a run, its `pretraining` folder or a repository `ORG/NAME`, got "
            f"`{reference}`, and there is no such folder."
        )
    place = f"{repo}@{revision}" if revision else repo
    config = read_json(hub_file(place, "pretraining/config.json"))
    weights = hub_file(place, f"pretraining/{WEIGHTS}")
    record = hub_record(place)
    origin = _origin_of_method(reference, config, "hub", commit_of(weights), weights, record)
    return MethodStart(_method_type(reference, config), config, weights.parent, origin, repo)


def _local_method(reference: str, path: Path) -> MethodStart:
    for folder, run in ((path / "pretraining", path), (path, path.parent)):
        if (folder / "config.json").is_file() and (folder / WEIGHTS).is_file():
            config, record = read_json(folder / "config.json"), RunRecord.read(run)
            kind = "run" if folder != path else "folder"
            origin = _origin_of_method(reference, config, kind, None, folder / WEIGHTS, record)
            model_type = _method_type(reference, config)
            return MethodStart(model_type, config, folder, origin, record.base_model if record is not None else None)
    checkpoints, record = complete_checkpoints(path), RunRecord.read(path)
    if not checkpoints or record is None:
        raise UserError(
            f"The folder `{reference}` holds no method: it has no `pretraining` folder and no checkpoint, and "
            "no method was saved to it. Give the folder of a run."
        )
    damage = damage_of(checkpoints[-1])
    if damage is not None:
        raise UserError(f"`{checkpoints[-1]}`, the newest checkpoint of `{reference}`, is damaged: {damage}.")
    config = {**record.config, "model_type": f"hf_ssl_{record.method}"}
    origin = _origin_of_method(reference, config, "run", None, checkpoints[-1] / WEIGHTS, record)
    return MethodStart(config["model_type"], config, checkpoints[-1], origin, record.base_model)


@dataclass(frozen=True)
class _Config:
    """What is looked up in the config of a method, for the check of its types."""

    architecture: str = ""
    image_size: int = 0
    model_args: dict[str, Any] | None = None


def _origin_of_method(
    reference: str,
    config: Mapping[str, Any],
    kind: str,
    revision: str | None,
    weights: Path,
    record: RunRecord | None,
) -> dict[str, Any]:
    return {
        "encoder": reference,
        "method": str(config.get("model_type", "")).removeprefix("hf_ssl_"),
        "kind": kind,
        "revision": revision,
        "sha256": sha256_of(weights),
        "former": training_of(record),
    }


def _method_type(reference: str, config: Mapping[str, Any]) -> str:
    model_type = str(config.get("model_type", ""))
    try:
        of_json(_Config, config)
    except UserError as error:
        raise UserError(
            f"The `config.json` of the method in `{reference}` is damaged: {error}. Resume or publish its run again, "
            "which writes it anew."
        ) from error
    if not model_type.startswith("hf_ssl_"):
        raise UserError(
            f"`start_from` must name a method of hf_ssl, but `{reference}` holds something else. Give an encoder by "
            "`encoder` instead."
        )
    return model_type
