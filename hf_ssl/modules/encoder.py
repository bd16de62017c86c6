"""The encoder that every method pretrains and publishes: a timm model without classifier.

timm builds it, with timm's own initialisation. Going through transformers' `TimmWrapperModel(config)` would redraw
every weight from N(0, 0.02).
"""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models import get_pretrained_cfg
from torch import nn

from hf_ssl.errors import UserError, first_line, near_name
from hf_ssl.modules import resnet_cifar as resnet_cifar  # registers the encoders with CIFAR stem


def build_encoder(architecture: str, model_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Create a timm model that returns pooled features, (batch, hidden size), with timm's random initialisation.

    Args:
        architecture: Any name that timm knows, such as `resnet50`, and `resnet18_cifar` (also 34, 50) of this package.
        model_args: Further arguments of `timm.create_model`, such as `{"img_size": 32, "patch_size": 4}`.

    Returns:
        The model in training mode.

    Raises:
        UserError: If timm does not know `architecture` or refuses `model_args`.
    """
    _check_known(architecture)
    arguments = dict(model_args or {})
    if "num_classes" in arguments:
        raise UserError("`model_args` must not contain `num_classes`: an encoder has no classifier. Remove it.")
    try:
        encoder = timm.create_model(architecture, num_classes=0, **arguments)
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(
            f"timm cannot build `{architecture}` with `model_args` {arguments}: {first_line(error)}. Give "
            "`model_args` that this encoder takes, `{}` for none; a recipe brings those of its own encoder."
        ) from error
    if hidden_size_of(encoder) == 0:
        raise UserError(f"`{architecture}` gives no pooled features. Choose another encoder.")
    return encoder


def with_image_size(architecture: str, model_args: Mapping[str, Any] | None, image_size: int) -> dict[str, Any]:
    """`model_args` with the `img_size` that an encoder built for one size of images needs, such as a ViT or a Swin.

    Nothing is added for encoders that take images of any size, or whose own size it is already.

    Args:
        architecture: timm name.
        model_args: Further arguments of `timm.create_model`.
        image_size: Height and width of the images, in pixels.

    Raises:
        UserError: If timm does not know `architecture`, or `model_args` has another `img_size`.
    """
    _check_known(architecture)
    arguments = dict(model_args or {})
    any_size = arguments.get("dynamic_img_size") or arguments.get("use_naflex")
    if any_size or arguments.get("strict_img_size") is False:
        return arguments
    built_for = arguments.get("img_size")
    if built_for is not None:
        if built_for != image_size and tuple(_pair(built_for)) != (image_size, image_size):
            raise UserError(
                f"`model_args` builds `{architecture}` for an `img_size` of {built_for}, but `image_size` is "
                f"{image_size}. Leave `img_size` out: it follows from `image_size`."
            )
        return arguments
    published = get_pretrained_cfg(architecture)
    if published is not None and published.fixed_input_size and published.input_size[1:] != (image_size, image_size):
        arguments["img_size"] = image_size
    return arguments


def check_encoder(architecture: str, model_args: Mapping[str, Any] | None, image_size: int) -> None:
    """Refuse an encoder that cannot turn RGB images of a size into one vector each.

    A blank image goes through a model without memory or weights, which takes a fraction of a second.

    Args:
        architecture: timm name.
        model_args: Further arguments of `timm.create_model`, with the `img_size` that `with_image_size` gives.
        image_size: Height and width of the images, in pixels.

    Raises:
        UserError: Names the setting, and what the encoder cannot do.
    """
    arguments = dict(model_args or {})
    published = get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
    channels = arguments.get("in_chans", published.input_size[0] if published is not None else 3)
    if channels != 3:
        raise UserError(
            f"`in_chans` of `{architecture}` must be 3, because every image is turned into RGB, got {channels}. Leave "
            "it out of `model_args`."
        )
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # pyright: ignore[reportUnknownMemberType]
        encoder = build_encoder(architecture, arguments).eval()
        _check_patches(encoder, architecture, image_size)
        try:
            with torch.inference_mode():
                features = encoder(torch.zeros(1, 3, image_size, image_size))
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"`{architecture}` cannot take images of `image_size` {image_size}: {first_line(error)}. Give another "
                "size, or another encoder."
            ) from error
    width = hidden_size_of(encoder)
    if not isinstance(features, torch.Tensor) or tuple(features.shape) != (1, width):
        got = tuple(features.shape) if isinstance(features, torch.Tensor) else f"a {type(features).__name__}"
        pooling = f" `global_pool` is `{arguments['global_pool']}`:" if "global_pool" in arguments else ""
        raise UserError(
            f"`{architecture}` must give one vector of {width} numbers for each image, but for one image it gives "
            f"{got}.{pooling} Leave {'it' if pooling else 'what changes its output'} out of `model_args`."
        )


def _check_patches(encoder: nn.Module, architecture: str, image_size: int) -> None:
    """Refuse a size that patches do not divide: timm would leave out the last rows and columns of each image."""
    patches = getattr(encoder, "patch_embed", None)
    if not isinstance(patches, PatchEmbed) or patches.dynamic_img_pad:
        return
    side = max(int(length) for length in patches.patch_size)  # pyright: ignore
    if image_size % side:
        raise UserError(
            f"`image_size` must be a multiple of {side}, the patch size of `{architecture}`, got {image_size}. Give "
            f"{max(1, round(image_size / side)) * side}."
        )


def _check_known(architecture: str) -> None:
    if not timm.is_model(architecture):
        hint = near_name(architecture, timm.list_models()) or " `timm.list_models()` names them all."
        raise UserError(f"timm knows no encoder `{architecture}`.{hint}")


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


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
