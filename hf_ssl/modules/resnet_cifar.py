"""ResNets for small images: 3x3 stem with stride 1 and no max-pooling (He et al., 2015, https://arxiv.org/abs/1512.03385).

timm cannot express this stem in a config. Importing this file registers `resnet18_cifar`, `resnet34_cifar` and
`resnet50_cifar` with timm. The file imports nothing of hf_ssl because it is also published beside the weights, as the
model code that transformers runs with `trust_remote_code=True`.
"""
# pyright: basic
# (timm's types are incomplete)

from importlib.util import find_spec
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn


class ResNetCifar(ResNet):
    """timm's ResNet with the stem for images of about 32 pixels, as in the CIFAR experiments of SimCLR and MoCo.

    Its weights have the names of timm's ResNet of the same depth; only the shape of `conv1.weight` differs.

    Args:
        block: Residual block, `BasicBlock` or `Bottleneck` of timm.
        layers: Number of blocks of each stage.
        in_chans: Number of channels of an image.
        **kwargs: Further arguments of timm's `ResNet`, except those of the stem.

    Raises:
        TypeError: If an argument describes another stem.
    """

    def __init__(self, block: type[nn.Module], layers: tuple[int, ...], in_chans: int = 3, **kwargs: Any):
        for name in ("stem_type", "stem_width", "replace_stem_pool"):
            if name in kwargs:
                raise TypeError(f"A ResNet with CIFAR stem takes no `{name}`. Remove it, or use `resnet18`.")
        super().__init__(block, layers, in_chans=in_chans, **kwargs)  # pyright: ignore[reportArgumentType]
        stem = self.conv1.weight
        assert isinstance(stem, torch.Tensor)
        # It keeps PyTorch's own initialisation, as in the CIFAR codes of MoCo (moco_cifar10_demo.ipynb) and DirectPred
        # (luckmatters, resnet_base_network.py), which replace the stem of a finished network too.
        self.conv1 = nn.Conv2d(
            in_chans, stem.shape[0], 3, stride=1, padding=1, bias=False, device=stem.device, dtype=stem.dtype
        )
        self.maxpool = nn.Identity()
        for level in self.feature_info:
            # Neither the stem nor the pooling halves the image.
            level["reduction"] = max(1, int(level["reduction"]) // 4)


def _cfg() -> dict[str, Any]:
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (4, 4),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "first_conv": "conv1",
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs({name: _cfg() for name in ("resnet18_cifar", "resnet34_cifar", "resnet50_cifar")})


def _build(name: str, pretrained: bool, arguments: dict[str, Any]) -> ResNetCifar:
    return build_model_with_cfg(ResNetCifar, name, pretrained, **arguments)


def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-18 with CIFAR stem; takes the arguments of `timm.create_model`."""
    return _build("resnet18_cifar", pretrained, {"block": BasicBlock, "layers": (2, 2, 2, 2), **kwargs})


def resnet34_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-34 with CIFAR stem; takes the arguments of `timm.create_model`."""
    return _build("resnet34_cifar", pretrained, {"block": BasicBlock, "layers": (3, 4, 6, 3), **kwargs})


def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-50 with CIFAR stem; takes the arguments of `timm.create_model`."""
    return _build("resnet50_cifar", pretrained, {"block": Bottleneck, "layers": (3, 4, 6, 3), **kwargs})


for _entrypoint in (resnet18_cifar, resnet34_cifar, resnet50_cifar):
    # The package and a published copy of this file may meet in one process: the first one stays.
    if not is_model(_entrypoint.__name__):
        register_model(_entrypoint)


if find_spec("transformers") is not None:  # users of timm alone may lack it
    from transformers import (
        TimmWrapperConfig,
        TimmWrapperForImageClassification,
        TimmWrapperImageProcessor,
        TimmWrapperModel,
    )

    class ResNetCifarConfig(TimmWrapperConfig):
        """Config of a published ResNet with CIFAR stem; named in its `auto_map`."""

    class ResNetCifarImageProcessor(TimmWrapperImageProcessor):
        """Preprocessing of a published ResNet with CIFAR stem: transformers has none for a config of another class."""

    class ResNetCifarModel(TimmWrapperModel):
        """Encoder with CIFAR stem; named in the `auto_map` of a published repository."""

        config_class = ResNetCifarConfig

    class ResNetCifarForImageClassification(TimmWrapperForImageClassification):
        """Encoder with CIFAR stem and a classifier; named in the `auto_map` of a published repository."""

        config_class = ResNetCifarConfig
