"""A folder that timm and transformers load without hf_ssl: weights and config of an encoder or a classifier."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.data.imagenet_info import infer_imagenet_subset
from torch import Tensor, nn

from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import json_object
from hf_ssl.modules import resnet_cifar
from hf_ssl.modules.encoder import hidden_size_of
from hf_ssl.settings import of_json

_CODE = "resnet_cifar"  # module beside the weights of a ResNet with CIFAR stem
_CLASSES = {  # of transformers, and for a CIFAR stem of that module
    "encoder": ("TimmWrapperModel", "ResNetCifarModel"),
    "classifier": ("TimmWrapperForImageClassification", "ResNetCifarForImageClassification"),
}


def write_timm_folder(
    module: nn.Module,
    folder: Path,
    *,
    architecture: str,
    model_args: Mapping[str, Any],
    data_config: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
) -> None:
    """Write `config.json` and `model.safetensors`, which timm and transformers load without hf_ssl.

    A ResNet with CIFAR stem, which timm cannot describe, brings its model code, `resnet_cifar.py`.

    Args:
        module: timm model; BatchNorm may be synchronised or split, layers may be compiled.
        folder: Where to write; made if missing.
        architecture: Name that timm knows.
        model_args: Further arguments of `timm.create_model` that the model was built with.
        data_config: timm's data config: how an image becomes pixels, as `preprocessing` gives it.
        class_names: Classes in the order of the logits; None for an encoder, which has no classifier.

    Raises:
        UserError: If the weights are not those of the architecture, so that nothing could load them.
    """
    module = getattr(module, "_orig_mod", module)
    weights = {name: _as_published(value) for name, value in plain_state_dict(module).items()}
    _check_loadable(weights, architecture, model_args, class_names)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", _config(module, architecture, model_args, data_config, class_names))
    if architecture in resnet_cifar.default_cfgs:
        shutil.copyfile(resnet_cifar.__file__, folder / f"{_CODE}.py")


def write_json(path: Path, content: Any) -> None:
    """Write a file of an exported folder."""
    path.write_text(json.dumps(content, indent=2) + "\n")


@dataclass(frozen=True)
class _Pretrained:
    """What `pretrained_cfg` holds in the `config.json` of timm, for the check of its types."""

    input_size: list[int]


@dataclass(frozen=True)
class _Config:
    """What cards show of the `config.json` of timm, for the check of its types."""

    architecture: str
    num_features: int
    pretrained_cfg: _Pretrained
    num_classes: int = 0
    id2label: dict[str, str] = field(default_factory=dict)


def config_in(folder: Path) -> dict[str, Any]:
    """The content of an exported folder's `config.json`.

    Raises:
        UserError: If there is none, or it is not one of timm.
    """
    path = folder / "config.json"
    try:
        content = json_object(path)
        config = of_json(_Config, content)
        if not config.pretrained_cfg.input_size:
            raise UserError("`pretrained_cfg.input_size` must not be empty")
        if config.id2label and set(config.id2label) != set(map(str, range(config.num_classes))):
            raise UserError("`id2label` must name each of the `num_classes` classes")
    except (FileNotFoundError, UserError) as error:
        reason = "there is none" if isinstance(error, FileNotFoundError) else str(error).rstrip(".")
        raise UserError(f"`{path}` is not the config of an exported model: {reason}. Export it again.") from error
    return content


def plain_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """State dict with the names that the module has without `torch.compile`, which wraps modules as `_orig_mod`."""
    return {name.replace("_orig_mod.", ""): value.detach() for name, value in module.state_dict().items()}


def _as_published(value: Tensor) -> Tensor:
    """A weight as it is stored: on the CPU, contiguous, no floating point below float32."""
    # transformers 5 loads in the stored precision: anything below float32 would silently become the user's.
    value = value.float() if value.is_floating_point() else value
    return value.cpu().contiguous()


def _check_loadable(
    weights: Mapping[str, Tensor],
    architecture: str,
    model_args: Mapping[str, Any],
    class_names: Sequence[str] | None,
) -> None:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = timm.create_model(architecture, num_classes=len(class_names or ()), **model_args)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    wrong = sorted(
        name for name in expected.keys() | weights.keys()
        if name not in weights or expected.get(name) != weights[name].shape
    )  # fmt: skip
    if wrong:
        kind = "encoder" if class_names is None else "classifier"
        raise UserError(
            f"The {kind} cannot be exported as `{architecture}`: {len(wrong)} weights differ from timm's, such as "
            f"`{wrong[0]}`. Export the {kind} as it was built, without wrappers."
        )


def _config(
    module: nn.Module,
    architecture: str,
    model_args: Mapping[str, Any],
    data_config: Mapping[str, Any],
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """What timm and transformers read; every key is needed by one of them, and no other may be added.

    `model_args.num_classes` makes transformers fail, and the source of timm's own weights (`hf_hub_id`, `license`,
    ...) would be a false statement.

    Names of classes are `id2label` for transformers and, inside of `pretrained_cfg`, `label_names` for timm. At the
    top level transformers would read `label_names` too, but forget the labels of a model that is fine-tuned on other
    classes. They must stand there all the same where timm's number of classes is ImageNet's, whose names transformers
    takes otherwise.
    """
    source: dict[str, Any] = module.pretrained_cfg  # pyright: ignore[reportAssignmentType]
    names = list(class_names or ())
    classes = _CLASSES["encoder" if class_names is None else "classifier"]
    own_code = architecture in resnet_cifar.default_cfgs
    pooling = _pooling_of(module)
    same_size = tuple(source.get("input_size", ())) == tuple(data_config["input_size"])
    written = {
        "architecture": architecture,
        "num_classes": len(names),
        "num_features": hidden_size_of(module),
        **({"global_pool": pooling} if pooling else {}),
        "model_args": dict(model_args),
        "pretrained_cfg": {
            **data_config,
            "fixed_input_size": bool(source.get("fixed_input_size", False)),
            "num_classes": len(names),
            "pool_size": source.get("pool_size") if same_size else None,
            "first_conv": source.get("first_conv"),
            "classifier": source.get("classifier"),
            "custom_load": False,
            **({"label_names": names} if names else {}),
        },
        "model_type": "timm_wrapper",
        "architectures": [classes[own_code]],
    }
    if names:
        written["id2label"] = {str(number): name for number, name in enumerate(names)}
        written["label2id"] = {name: number for number, name in enumerate(names)}
    written |= {"do_pooling": True, "dtype": "float32"}
    if infer_imagenet_subset({"num_classes": len(names)}):
        written["label_names"] = names
    if own_code:
        written["auto_map"] = {
            "AutoConfig": f"{_CODE}.ResNetCifarConfig",
            "AutoImageProcessor": f"{_CODE}.ResNetCifarImageProcessor",
            "AutoModel": f"{_CODE}.ResNetCifarModel",
            "AutoModelForImageClassification": f"{_CODE}.ResNetCifarForImageClassification",
        }
    return written


def _pooling_of(module: nn.Module) -> str | None:
    """Name of the pooling of a timm model, such as `avg`; None if it has none."""
    head = getattr(module, "head", None)
    for pool in (getattr(head, "global_pool", None), getattr(module, "global_pool", None)):
        pool = getattr(pool, "pool_type", pool)
        if isinstance(pool, str) and pool:
            return pool
    return None
