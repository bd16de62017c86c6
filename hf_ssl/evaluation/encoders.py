"""Frozen encoders from anywhere, each with the preprocessing that its published config names.

So evaluation sees exactly the pixels that `AutoImageProcessor` would give where the encoder is loaded. Pillow resizes
as it does there, and every image of Pillow becomes upright RGB first, as those of a data set do.
"""

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from hf_ssl.answers import hub_answers
from hf_ssl.data.decode.pillow import upright_rgb
from hf_ssl.errors import UserError, first_line
from hf_ssl.evaluation.references import encoder_folder, timm_reference
from hf_ssl.modules.encoder import build_encoder, hidden_size_of
from hf_ssl.modules.preprocessing import preprocessing
from hf_ssl.modules.quiet import quiet_transformers
from hf_ssl.seeded import seeded

Picture = NDArray[np.uint8]  # RGB, (height, width, 3)
_LONGEST = 400  # times its width may a picture be high, or the other way round


class ImageTransform:
    """timm's evaluation transform of a data config; picklable.

    Args:
        data_config: `input_size`, `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`, as timm publishes them.
    """

    def __init__(self, data_config: dict[str, Any]):
        self._data_config = data_config
        found = resolve_data_config(pretrained_cfg=data_config)
        transform: Any = create_transform(**found, is_training=False)
        *self._resizing, self._to_tensor, self._normalize = transform.transforms
        self._size_as_it_is = found["input_size"][1:] if found["crop_pct"] == 1 else None

    def __call__(self, image: Image.Image | Picture) -> Tensor:
        """Pixels of one image, (3, height, width), float32."""
        if not isinstance(image, np.ndarray) or image.shape[:2] != self._size_as_it_is:
            image = _as_rgb(image)
            for resize_or_crop in self._resizing:
                image = resize_or_crop(image)
        return self._normalize(self._to_tensor(image))

    def settings(self) -> dict[str, Any]:
        """What the pixels depend on."""
        return resolve_data_config(pretrained_cfg=self._data_config)

    def of_crops(self) -> "ImageTransform":
        """The transform of pictures that are crops already: all of one is resized to the input size."""
        return ImageTransform({**self._data_config, "crop_pct": 1.0, "crop_mode": "squash"})


def _as_rgb(image: Image.Image | Picture) -> Image.Image:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else upright_rgb(image)
    width, height = picture.size
    longest = _LONGEST * min(width, height)
    if max(width, height) <= longest:
        return picture
    # Resized to the height of an input, a thin strip would not fit into memory; of its length only the middle is used.
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return picture.crop((left, top, left + min(width, longest), top + min(height, longest)))


class ProcessorTransform:
    """A transformers image processor; picklable.

    Args:
        processor: What `AutoImageProcessor.from_pretrained` returns.
    """

    def __init__(self, processor: Any):
        self._processor = processor

    def __call__(self, image: Image.Image | Picture) -> Tensor:
        """Pixels of one image, (3, height, width), float32."""
        # By way of Pillow, which all processors take: not all take an array, and some take three rows for channels.
        return self._processor(_as_rgb(image), return_tensors="pt")["pixel_values"][0]

    def settings(self) -> dict[str, Any]:
        """What the pixels depend on."""
        return self._processor.to_dict()

    def of_crops(self) -> Callable[[Image.Image | Picture], Tensor]:
        """The transform of pictures that are crops already: all of one is resized to the input size."""
        return _WholeImage(self._processor)


class _WholeImage:
    """A transformers image processor that leaves out nothing of an image: what it resizes and crops is done here."""

    def __init__(self, processor: Any):
        self._processor = processor
        height, width = ProcessorTransform(processor)(Image.new("RGB", (64, 64))).shape[1:]
        self._size = width, height
        resample = getattr(processor, "resample", None)
        self._resample = Image.Resampling.BILINEAR if resample is None else Image.Resampling(int(resample))

    def __call__(self, image: Image.Image | Picture) -> Tensor:
        resized = _as_rgb(image).resize(self._size, self._resample)
        kept = {"do_resize": False, "do_center_crop": False}
        return self._processor(resized, return_tensors="pt", **kept)["pixel_values"][0]


class PooledTransformersEncoder(nn.Module):
    """A transformers vision model that returns one vector an image.

    In this order: `pooler_output`, if the model has one whose weights came with the checkpoint; the class token of
    `last_hidden_state`, if the model has one; the mean of `last_hidden_state` over positions.

    Args:
        model: What `AutoModel.from_pretrained` returns; of a model of images and text, only the vision part is used.
        use_pooler: False where the checkpoint lacks the pooler's weights, which would be random numbers.
    """

    def __init__(self, model: nn.Module, use_pooler: bool):
        super().__init__()
        self.model: nn.Module = getattr(model, "vision_model", model)
        self.use_pooler = use_pooler
        names = [name for name, _ in self.model.named_parameters()]
        self.has_class_token = any(name.endswith(("cls_token", "class_embedding")) for name in names)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features of a batch, (batch, dim), from pixels of shape (batch, 3, height, width)."""
        output = self.model(pixel_values=pixel_values)
        pooled = getattr(output, "pooler_output", None)
        if self.use_pooler and pooled is not None:
            return pooled.flatten(1)
        hidden = output.last_hidden_state
        if hidden.ndim == 4:  # convolutional: (batch, dim, height, width)
            return hidden.mean(dim=(2, 3))
        return hidden[:, 0] if self.has_class_token else hidden.mean(dim=1)


class WithProjection(nn.Module):
    """A method as an encoder whose features are representation and projection, one after the other.

    Args:
        method: Has `encode`, and perhaps a `projector`.
    """

    def __init__(self, method: nn.Module):
        super().__init__()
        self.method = method

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features of a batch, (batch, hidden size + projection dim), from pixels (batch, 3, height, width)."""
        method: Any = self.method
        h = method.encode(pixel_values)
        projector = getattr(method, "projector", None)
        if projector is not None:
            return torch.cat([h, projector(h)], dim=1)
        # DirectCLR has no projector: it contrasts the first entries of the representation.
        return torch.cat([h, h[:, : getattr(method.config, "subvector_dim", 0)]], dim=1)


@dataclass
class Encoder:
    """A frozen encoder with its preprocessing.

    Args:
        module: Maps pixels (batch, 3, height, width) to features (batch, dim).
        transform: Maps an RGB picture, (height, width, 3), uint8, or a Pillow image of any mode to pixels (3, height,
            width).
        dim: Width of the features.
        name: What tables and figures call it.
    """

    module: nn.Module
    transform: ImageTransform | ProcessorTransform
    dim: int
    name: str

    def fingerprint(self) -> str:
        """Hexadecimal; changes with the weights and the preprocessing, not with the name or the device."""
        content = hashlib.sha256(json.dumps(self.transform.settings(), sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return content.hexdigest()[:32]


def load_encoder(name_or_folder: str | Path, device: torch.device | str = "cpu", seed: int = 0) -> Encoder:
    """Load an encoder for evaluation, in evaluation mode and float32.

    Args:
        name_or_folder: One of

            - the folder of a run (its `encoder/` is used), or an encoder folder; `local-dir:FOLDER`;
            - a repo of the Hub, `ORG/NAME` or `ORG/NAME@REVISION`, of timm or of transformers; `hf_hub:ORG/NAME`;
            - a timm name such as `resnet50.a1_in1k`, with timm's published weights;
            - `raw:ENCODER`: the pixels that any of the above would see, flattened;
            - `random:ENCODER`: the same architecture and preprocessing with a fresh initialisation, drawn from `seed`
              by the library that defines the model. BatchNorm stays as initialised (mean 0, variance 1).
        device: Where the module lives.
        seed: Seed of `random:`, at least 0.

    Returns:
        The encoder.

    Raises:
        UserError: If there is no such encoder or it gives no pooled features.
    """
    name_or_folder = str(name_or_folder)
    kind, _, reference = name_or_folder.partition(":")
    if kind in ("raw", "random") and not reference:
        raise UserError(
            f"The baseline `{kind}` needs an encoder whose preprocessing it takes. Write `{kind}:ENCODER`."
        )
    if kind == "raw":
        # The architecture does not matter here, and its weights need not be read.
        _, transform = _open(reference, seed)
        return _finish(nn.Flatten(), transform, name_or_folder, device)
    if kind == "random":
        return _finish(*_open(reference, seed), name_or_folder, device)
    return _finish(*_open(name_or_folder, None), name_or_folder, device)


def encoder_of(module: nn.Module, image_size: int, mean: Sequence[float], std: Sequence[float]) -> Encoder:
    """The encoder of a method that is being trained, with the preprocessing that its export will carry.

    Args:
        module: The timm model; it stays as it is and where it is.
        image_size: Height and width in pixels.
        mean: Mean of each channel, of images in [0, 1].
        std: Standard deviation of each channel, positive.
    """
    return Encoder(module, ImageTransform(preprocessing(image_size, mean, std)), hidden_size_of(module), "encoder")


def _finish(
    module: nn.Module, transform: ImageTransform | ProcessorTransform, name: str, device: torch.device | str
) -> Encoder:
    """Move an encoder to its device and learn its width from one blank image."""
    module = module.to(device).eval().requires_grad_(False)
    with torch.inference_mode():
        features = module(transform(Image.new("RGB", (64, 64)))[None].to(device))
    if features.ndim != 2:
        raise UserError(
            f"`{name}` gives features of shape {tuple(features.shape)}, not (batch, dim). Set its pooling."
        )
    return Encoder(module, transform, features.shape[1], name)


def _open(name: str, seed: int | None) -> tuple[nn.Module, ImageTransform | ProcessorTransform]:
    """Model and preprocessing; published weights if `seed` is None, else a fresh initialisation."""
    found = timm_reference(name)
    if found is not None:
        return _open_timm(found[0], seed)
    folder = encoder_folder(name)
    if folder is not None:
        return _open_transformers(str(folder), None, seed)
    repo, _, revision = name.partition("@")
    return _open_transformers(repo, revision or None, seed)


@contextmanager
def loading_by_timm(reference: str) -> Iterator[None]:
    """Raise `UserError` where timm cannot load the weights of a reference, see `timm_reference`."""
    try:
        with hub_answers():
            yield
    except UserError:
        raise
    except (RuntimeError, OSError, HfHubHTTPError, SafetensorError) as error:
        names = "`timm.list_pretrained()` lists the names that have weights."
        raise UserError(
            f"timm could not load the weights of `{reference}`: {first_line(error)}. "
            f"{'Are its files complete?' if ':' in reference else names}"
        ) from error


def _open_timm(name: str, seed: int | None) -> tuple[nn.Module, ImageTransform]:
    if seed is None:
        with loading_by_timm(name):
            model = timm.create_model(name, pretrained=True, num_classes=0)
    else:
        with seeded(seed):
            # A plain name goes through the one place that knows the encoders of this package.
            model = timm.create_model(name, num_classes=0) if ":" in name else build_encoder(name)
    return model, ImageTransform(model.pretrained_cfg)  # pyright: ignore[reportArgumentType]


@quiet_transformers()
def _open_transformers(
    name: str, revision: str | None, seed: int | None
) -> tuple[PooledTransformersEncoder, ProcessorTransform]:
    try:
        with hub_answers():
            config = AutoConfig.from_pretrained(name, revision=revision)
            processor = AutoImageProcessor.from_pretrained(name, revision=revision)
        if hasattr(config, "mask_ratio"):
            config.mask_ratio = 0.0  # a masked autoencoder sees the whole image after pretraining
        if seed is None:
            model, info = AutoModel.from_pretrained(
                name, revision=revision, config=config, dtype=torch.float32, output_loading_info=True
            )
            missing = sorted(info["missing_keys"])
        else:
            with seeded(seed):
                model, missing = AutoModel.from_config(config, dtype=torch.float32), []
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError, pickle.UnpicklingError) as error:  # the last where weights hold code
        raise UserError(f"transformers could not load the encoder `{name}`: {first_line(error)}.") from error
    without_pooler = [key for key in missing if "pooler" not in key.split(".")]
    if without_pooler:
        raise UserError(
            f"The checkpoint of `{name}` lacks {len(without_pooler)} weights of its encoder, such as "
            f"`{without_pooler[0]}`. Was it saved completely?"
        )
    return PooledTransformersEncoder(model, use_pooler=not missing), ProcessorTransform(processor)
