"""The encoder that every method pretrains and publishes: a timm model without classifier.

timm builds it, with timm's own initialisation. Going through transformers' `TimmWrapperModel(config)` would redraw
every weight from N(0, 0.02).
"""

import difflib
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from hf_ssl.modules import resnet_cifar as resnet_cifar  # registers the encoders with CIFAR stem


def build_encoder(
    architecture: str, model_args: Mapping[str, Any] | None = None, pretrained: bool = False
) -> nn.Module:
    """Create a timm model that returns pooled features, (batch, hidden size).

    Args:
        architecture: Any name that timm knows, such as `resnet50`, and `resnet18_cifar` (also 34, 50) of this package.
        model_args: Further arguments of `timm.create_model`, such as `{"img_size": 32, "patch_size": 4}`.
        pretrained: Load timm's published weights instead of its random initialisation.

    Returns:
        The model in training mode.

    Raises:
        ValueError: If timm does not know `architecture` or refuses `model_args`.
    """
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        hint = f" Did you mean `{close[0]}`?" if close else " `timm.list_models()` names them all."
        raise ValueError(f"timm knows no encoder `{architecture}`.{hint}")
    arguments = dict(model_args or {})
    if "num_classes" in arguments:
        raise ValueError("`model_args` must not contain `num_classes`: an encoder has no classifier. Remove it.")
    try:
        encoder = timm.create_model(architecture, pretrained=pretrained, num_classes=0, **arguments)
    except (TypeError, AssertionError) as error:
        raise ValueError(
            f"timm cannot build `{architecture}` with `model_args` {arguments}: {error}. Give `model_args` that this "
            "encoder takes, `{}` for none; a recipe brings those of its own encoder."
        ) from error
    if hidden_size_of(encoder) == 0:
        raise ValueError(f"`{architecture}` gives no pooled features. Choose another encoder.")
    return encoder


def hidden_size_of(encoder: nn.Module) -> int:
    """Width of an encoder's pooled features, read from the model without running it.

    A dry run in training mode would already move BatchNorm's running statistics. Models such as MobileNetV3 have a
    wider layer after pooling (`head_hidden_size`), which is what their pooled features are.
    """
    channels = int(getattr(encoder, "num_features", 0))
    width = int(getattr(encoder, "head_hidden_size", None) or channels)
    # Before 1.0.31, timm's ResNets forget that pooling by `catavgmax` doubles the width.
    pooled = getattr(getattr(encoder, "global_pool", None), "feat_mult", lambda: 1)()
    return width * pooled if width == channels else width
