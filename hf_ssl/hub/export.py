"""From a method in training to two folders: the encoder as timm and transformers load it, and the whole method."""

import contextlib
import ctypes
import filecmp
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_ssl.data.decode import pillow
from hf_ssl.errors import UserError
from hf_ssl.hub import handler
from hf_ssl.hub.cards import is_edited
from hf_ssl.hub.model_card import write_model_card
from hf_ssl.methods.base import SSLConfig, SSLPreTrainedModel
from hf_ssl.modules import resnet_cifar
from hf_ssl.modules.encoder import hidden_size_of
from hf_ssl.modules.preprocessing import preprocessing
from hf_ssl.modules.quiet import quiet_transformers

# What sentence-transformers reads since 5.4. Without these it would average the tokens of a ViT, class token included.
_SENTENCE_TRANSFORMERS: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"image": {"method": "forward", "method_output_name": "pooler_output"}},
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    },
}
_REQUIREMENTS = "timm>=1.0.31\n"  # what the image of an Inference Endpoint lacks of what `handler.py` imports
_DECODER = "pillow_decoder"  # module that `handler.py` imports from beside it

_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_HERE = -100  # AT_FDCWD of fcntl.h


def export_encoder(encoder: nn.Module, config: SSLConfig, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`, which timm and transformers load without hf_ssl.

    Beside them go three files that sentence-transformers needs, and for Inference Endpoints `handler.py`, the decoder
    that it imports, and `requirements.txt`. A ResNet with CIFAR stem, which timm cannot describe, brings its model
    code, `resnet_cifar.py`.

    Args:
        encoder: Model made by `build_encoder`; BatchNorm may be synchronised or split, layers may be compiled.
        config: Config that the encoder was built from.
        folder: Where to write; made if missing.

    Raises:
        UserError: If the weights are not those of the config's architecture, so that nothing could load them.
    """
    encoder = getattr(encoder, "_orig_mod", encoder)
    weights = {name: as_published(value) for name, value in plain_state_dict(encoder).items()}
    _check_loadable(weights, config)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in {"config.json": _encoder_config(encoder, config), **_SENTENCE_TRANSFORMERS}.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    # An endpoint puts the folder on Python's path before it runs `handler.py`, so that it finds the decoder there:
    # `check_and_register_custom_pipeline_from_directory` in huggingface-inference-toolkit.
    shutil.copyfile(pillow.__file__, folder / f"{_DECODER}.py")
    (folder / "handler.py").write_text(Path(handler.__file__).read_text().replace(pillow.__name__, _DECODER))
    (folder / "requirements.txt").write_text(_REQUIREMENTS)
    if has_cifar_stem(config.architecture):
        shutil.copyfile(resnet_cifar.__file__, folder / "resnet_cifar.py")


def export_run(model: SSLPreTrainedModel, run_dir: Path) -> Path:
    """Write `run_dir/encoder` (a complete Hub repository) and `run_dir/pretraining` (the whole method).

    Each folder is replaced as a whole: a process killed in between leaves the old or the new one. The encoder folder
    gets a copy of `run_dir/run.json`, of `run_dir/metrics.jsonl`, and the model card made from them, if there are any.
    Results, figures and a card edited by hand stay as long as the weights are the same, because they describe these
    weights.

    Args:
        model: The method, without wrappers for several processes. If each process keeps its own BatchNorm statistics,
            average them first.
        run_dir: Folder of the run; made if missing.

    Returns:
        The encoder folder.
    """
    model = getattr(model, "_orig_mod", model)
    encoder_folder = run_dir / "encoder"
    with replacing(encoder_folder) as new:
        export_encoder(model.encoder, model.config, new)  # pyright: ignore[reportArgumentType]
        for record in ("run.json", "metrics.jsonl"):
            if (run_dir / record).is_file():
                shutil.copyfile(run_dir / record, new / record)
        if _same_file(encoder_folder / "model.safetensors", new / "model.safetensors"):
            _keep_what_describes_the_weights(encoder_folder, new)
        if (new / "run.json").is_file():
            write_model_card(new, shown_as=encoder_folder)
    with replacing(run_dir / "pretraining") as new, quiet_transformers():
        weights = {name: value.contiguous() for name, value in plain_state_dict(model).items()}
        model.save_pretrained(new, state_dict=weights, readme=False)  # the encoder's card tells of both
    return encoder_folder


def has_cifar_stem(architecture: str) -> bool:
    """Whether an encoder needs the model file `resnet_cifar.py` beside its weights."""
    return architecture in resnet_cifar.default_cfgs


def plain_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """State dict with the names that the module has without `torch.compile`, which wraps modules as `_orig_mod`."""
    return {name.replace("_orig_mod.", ""): value.detach() for name, value in module.state_dict().items()}


def as_published(value: Tensor) -> Tensor:
    """A weight as it is stored: on the CPU, contiguous, no floating point below float32."""
    # transformers 5 loads in the stored precision: anything below float32 would silently become the user's.
    value = value.float() if value.is_floating_point() else value
    return value.cpu().contiguous()


def _check_loadable(weights: dict[str, Tensor], config: SSLConfig) -> None:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = timm.create_model(config.architecture, num_classes=0, **(config.model_args or {}))
    expected = {name: value.shape for name, value in model.state_dict().items()}
    wrong = sorted(
        name for name in expected.keys() | weights.keys()
        if name not in weights or expected.get(name) != weights[name].shape
    )  # fmt: skip
    if wrong:
        raise UserError(
            f"The encoder cannot be exported as `{config.architecture}`: {len(wrong)} weights differ from timm's, "
            f"such as `{wrong[0]}`. Export the encoder that `build_encoder` made, without wrappers."
        )


def _encoder_config(encoder: nn.Module, config: SSLConfig) -> dict[str, Any]:
    """What timm and transformers read; every key is needed by one of them, and no other may be added.

    `model_args.num_classes` makes transformers fail, `label_names` makes it forget the labels of a fine-tuned model,
    and the source of timm's own weights (`hf_hub_id`, `license`, ...) would be a false statement.
    """
    source: dict[str, Any] = encoder.pretrained_cfg  # pyright: ignore[reportAssignmentType]
    data = preprocessing(config.image_size, config.image_mean, config.image_std)
    pooling = pooling_of(encoder)
    same_size = tuple(source.get("input_size", ())) == data["input_size"]
    written = {
        "architecture": config.architecture,
        "num_classes": 0,
        "num_features": hidden_size_of(encoder),
        **({"global_pool": pooling} if pooling else {}),
        "model_args": dict(config.model_args or {}),
        "pretrained_cfg": {
            **data,
            "fixed_input_size": bool(source.get("fixed_input_size", False)),
            "num_classes": 0,
            "pool_size": source.get("pool_size") if same_size else None,
            "first_conv": source.get("first_conv"),
            "classifier": source.get("classifier"),
            "custom_load": False,
        },
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperModel"],
        "do_pooling": True,
        "dtype": "float32",
    }
    if has_cifar_stem(config.architecture):
        written["architectures"] = ["ResNetCifarModel"]
        written["auto_map"] = {
            "AutoConfig": "resnet_cifar.ResNetCifarConfig",
            "AutoImageProcessor": "resnet_cifar.ResNetCifarImageProcessor",
            "AutoModel": "resnet_cifar.ResNetCifarModel",
            "AutoModelForImageClassification": "resnet_cifar.ResNetCifarForImageClassification",
        }
    return written


def pooling_of(encoder: nn.Module) -> str | None:
    """Name of the pooling of a timm model, such as `avg`; None if it has none."""
    head = getattr(encoder, "head", None)
    for pool in (getattr(head, "global_pool", None), getattr(encoder, "global_pool", None)):
        pool = getattr(pool, "pool_type", pool)
        if isinstance(pool, str) and pool:
            return pool
    return None


def _same_file(first: Path, second: Path) -> bool:
    return first.is_file() and filecmp.cmp(first, second, shallow=False)


def _keep_what_describes_the_weights(old: Path, new: Path) -> None:
    """Copy what this module does not write: results, figures, files added or a card edited by hand."""
    for path in old.iterdir():
        if path.is_dir():
            shutil.copytree(path, new / path.name)
        elif not (new / path.name).exists() and (path.name != "README.md" or is_edited(path)):
            shutil.copyfile(path, new / path.name)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, and put it in the place of `folder` when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    _put_back(old, folder)  # an earlier process was killed between the two renames below
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        for weights in new.glob("*.safetensors"):
            # safetensors lets nobody but the owner read its files.
            weights.chmod((new / "config.json").stat().st_mode)
        if not folder.exists():
            new.rename(folder)
        elif not _exchange(new, folder):
            folder.rename(old)
            new.rename(folder)
    finally:
        _put_back(old, folder)
        shutil.rmtree(new, ignore_errors=True)


def _put_back(old: Path, folder: Path) -> None:
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux); a folder cannot be renamed onto a full one."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0
