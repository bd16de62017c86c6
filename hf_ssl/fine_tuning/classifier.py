"""An encoder with a classifier on top: how it is made, which of its weights are trained, and how it is scored."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional as F

from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError, first_line
from hf_ssl.evaluation.encoders import Encoder, ImageTransform, encoder_folder, loading_by_timm, timm_reference
from hf_ssl.evaluation.features import extract_features
from hf_ssl.evaluation.protocols import with_classes_of
from hf_ssl.modules.preprocessing import preprocessing
from hf_ssl.seeded import seeded

_logger = logging.getLogger(__name__)

RANDOM = "random:"
"""Prefix of an encoder whose weights are drawn anew: training from scratch."""


@dataclass
class Classifier:
    """A timm model with a classifier, and what it takes to build and to publish it.

    Args:
        module: Maps pixels (batch, 3, height, width) to logits (batch, classes).
        encoder: What it was made of, as the user typed it.
        base_model: Hub id of the encoder, if it has one.
        architecture: Name that timm knows.
        model_args: Further arguments of `timm.create_model`.
        data_config: timm's data config: how an image becomes pixels.
        class_names: In the order of the logits.
    """

    module: nn.Module
    encoder: str
    base_model: str | None
    architecture: str
    model_args: dict[str, Any]
    data_config: dict[str, Any]
    class_names: list[str]

    @property
    def image_size(self) -> int:
        """Height and width of the input, in pixels."""
        return self.data_config["input_size"][-1]


@dataclass(frozen=True)
class Score:
    """How well a classifier does on labelled images.

    Args:
        accuracy: Share of them that are classified correctly, in [0, 1].
        loss: Mean cross-entropy, in nats.
        confusion: Number of images of each class (row) that are taken for each class (column), (classes, classes).
        num_strangers: Images of classes that the classifier does not have; all count as wrong, and only in `accuracy`.
    """

    accuracy: float
    loss: float
    confusion: Tensor
    num_strangers: int = 0

    @property
    def num_images(self) -> int:
        """Images that have a label."""
        return int(self.confusion.sum()) + self.num_strangers


def open_classifier(
    encoder: str,
    class_names: list[str],
    *,
    model_args: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Classifier:
    """Put a new classifier on an encoder, with timm's own initialisation of both the classifier and what is random.

    Args:
        encoder: Folder of a run, encoder folder, repo of the Hub or timm name, as `load_encoder` takes them; with the
            prefix `random:` the same architecture with fresh weights.
        class_names: At least two.
        model_args: Arguments of `timm.create_model` beside those that the encoder was published with, such as
            `{"drop_path_rate": 0.1}`.
        image_size: Height and width of the input, in pixels; None: what the encoder was published with.
        seed: Of all random weights, at least 0.

    Raises:
        UserError: If there is no such encoder, timm cannot build it, or its weights cannot be had.
    """
    name = encoder.removeprefix(RANDOM)
    if name.startswith("raw:"):
        raise UserError("`raw:` has no weights to train. Give an encoder, or `random:ENCODER` to train from scratch.")
    found = timm_reference(name)
    if found is None:
        raise UserError(
            f"`{name}` is a model of transformers, which timm cannot load. Fine-tune it with transformers' own "
            "run_image_classification.py."
        )
    reference, config = found
    arguments = dict(model_args or {})
    if "num_classes" in arguments:
        raise UserError("`model_args` must not contain `num_classes`: the labels say how many there are. Remove it.")
    published = config.get("model_args") or {}
    architecture = config.get("architecture") or re.split(r"[.:]", name)[0]
    if image_size is not None and _has_fixed_size(architecture):
        arguments.setdefault("img_size", image_size)
    pretrained = not encoder.startswith(RANDOM)
    try:
        with loading_by_timm(reference), seeded(seed):
            module: Any = timm.create_model(
                reference, pretrained=pretrained, num_classes=len(class_names), **arguments
            )
    except (TypeError, AssertionError) as error:
        raise UserError(
            f"timm cannot build `{architecture}` with `model_args` {published | arguments}: {first_line(error)}. Give "
            "`model_args` that this encoder takes."
        ) from error
    data_config = resolve_data_config(pretrained_cfg=module.pretrained_cfg)
    if image_size is not None and image_size != data_config["input_size"][-1]:
        data_config = preprocessing(image_size, data_config["mean"], data_config["std"])
    return Classifier(
        module=module,
        encoder=encoder,
        base_model=_base_model(name, config, module.pretrained_cfg) if pretrained else None,
        architecture=architecture,
        model_args=published | arguments,
        data_config=data_config,
        class_names=class_names,
    )


def _has_fixed_size(architecture: str) -> bool:
    known = timm.get_pretrained_cfg(architecture)
    return known is not None and known.fixed_input_size


def _base_model(name: str, config: Mapping[str, Any], pretrained_cfg: Mapping[str, Any]) -> str | None:
    """Hub id of an encoder that came from there."""
    if encoder_folder(name) is not None:
        return None
    if config:
        return name.removeprefix("hf_hub:").removeprefix("hf-hub:").partition("@")[0]
    return pretrained_cfg.get("hf_hub_id")


def choose_trained(module: nn.Module, train: str) -> None:
    """Freeze what is not to be trained.

    Args:
        module: A timm model with a classifier.
        train: `full`; `linear`, the classifier alone; or `last-N`, the classifier and the last N blocks in timm's own
            grouping of the model's parameters, which for most models are residual or transformer blocks.

    Raises:
        UserError: If `train` is something else, or the model has fewer blocks than N.
    """
    names = {name for name, _ in module.named_parameters()}
    if train != "full":
        names = _names_of_classifier(module)
    if train.startswith("last-"):
        names |= _last_blocks(module, train)
    elif train not in ("full", "linear"):
        raise UserError(f"`train` must be full, linear or last-N such as last-2, got `{train}`.")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)


def _names_of_classifier(module: nn.Module) -> set[str]:
    heads: Any = module.get_classifier()  # pyright: ignore[reportCallIssue]
    heads = heads if isinstance(heads, tuple) else (heads,)  # models with distillation have two
    own = {id(parameter) for head in heads for parameter in head.parameters()}
    return {name for name, parameter in module.named_parameters() if id(parameter) in own}


def _last_blocks(module: nn.Module, train: str) -> set[str]:
    """Names of the parameters of the last blocks and of what lies between them and the classifier."""
    number = train.removeprefix("last-")
    matcher = getattr(module, "group_matcher", None)
    if matcher is None:
        raise UserError(f"timm does not know the blocks of this encoder, which `train` {train} needs. Give `full`.")
    groups = group_parameters(module, matcher(coarse=False))
    head = max(groups)
    if not number.isdecimal() or not 1 <= int(number) <= head:
        raise UserError(f"`train` last-N needs N from 1 to {head}, the blocks of this encoder, got `{train}`.")
    return {name for group in range(head - int(number), head + 1) for name in groups[group]}


def training_mode(module: nn.Module, train: str) -> None:
    """Training mode for the parts that are trained; frozen ones keep statistics and drop nothing.

    Args:
        module: After `choose_trained`.
        train: See `choose_trained`; with `linear` the whole encoder is in evaluation mode.
    """
    module.train()
    if train == "full":
        return
    if train == "linear":
        module.eval()
        return
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


def check_classes(class_names: list[str], test: Source, column: str) -> None:
    """Refuse a test split without the label column, and warn of classes that a classifier does not know.

    Raises:
        UserError: If the column is missing.
    """
    if column not in test.labels:
        raise UserError(
            f"Split `{test.split}` of `{test.name}` has no label column `{column}` as the training split does. Give "
            "another `test_split`."
        )
    strangers = [name for name in test.labels[column] if name not in class_names]
    if strangers:
        _logger.warning(
            "Split `%s` of `%s` has a class `%s` that the training split lacks: its images count as wrong.",
            test.split,
            test.name,
            strangers[0],
        )


def score(classifier: Classifier, test: Source, column: str, batch_size: int, num_workers: int) -> Score:
    """Score a classifier in evaluation mode and float32, each image once whatever the number of processes.

    All processes must call this; all get the same result.

    Args:
        classifier: The classifier; the mode of each of its parts is restored.
        test: Labelled images; those without a label do not count.
        column: Label column.
        batch_size: Images of one process in a forward pass, at least 1.
        num_workers: Worker processes that decode, at least 0.

    Raises:
        UserError: If no image has a label of a class that the classifier has.
    """
    names = classifier.class_names
    frozen = Encoder(classifier.module, ImageTransform(classifier.data_config), len(names), classifier.architecture)
    images = extract_features(frozen, test, batch_size, num_workers)
    images = with_classes_of(images, {column: test.labels[column]}, {column: names})
    known = (images.labels[column] >= 0) & (images.labels[column] < len(names))
    num_strangers = int((images.labels[column] >= len(names)).sum())
    logits, labels = images.features[known], images.labels[column][known]
    if len(labels) == 0:
        what = "a class of the training split" if num_strangers else "a label"
        raise UserError(
            f"No image of split `{test.split}` of `{test.name}` has {what} in `{column}`. Give another `test_split`."
        )
    answers = logits.argmax(dim=1)
    confusion = torch.bincount(labels * len(names) + answers, minlength=len(names) ** 2).view(len(names), -1)
    return Score(
        accuracy=int((answers == labels).sum()) / (len(labels) + num_strangers),
        loss=float(F.cross_entropy(logits.double(), labels)),
        confusion=confusion,
        num_strangers=num_strangers,
    )
