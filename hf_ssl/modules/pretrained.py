"""A timm encoder as transformers loads it: what a method and its encoder have in common, and the encoder by itself.

`AutoModel` and `AutoImageProcessor` give `SSLEncoder` and `SSLImageProcessor` for the folder of a saved method.
"""
# pyright: basic
# (the types of transformers are incomplete)

import importlib
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import torch
from huggingface_hub.dataclasses import strict, type_validator
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, TimmWrapperImageProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_ssl.errors import UserError, near_name
from hf_ssl.modules.encoder import build_encoder, hidden_size_of
from hf_ssl.modules.preprocessing import preprocessing
from hf_ssl.settings import as_declared, wrong_value

_T = TypeVar("_T")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Keys that transformers itself writes into a config.json or passes on loading, beside the fields of PreTrainedConfig.
_KEYS_OF_TRANSFORMERS = frozenset(
    {
        *("model_type", "torch_dtype", "auto_map", "name_or_path", "num_labels", "attn_implementation"),
        *("experts_implementation", "output_attentions", "use_cache"),
    }
)


class _Checked(type):
    """Makes configs: what a field's type or a rule of the class refuses is a `UserError`.

    A metaclass, because `strict`, which a method's author applies to the class, wraps all else that a class can have.
    """

    def __call__(cls: type[_T], *args: Any, **values: Any) -> _T:
        kinds = {field.name: field.type for field in fields(cls)}  # pyright: ignore[reportArgumentType]
        given = {name: _fitting(name, value, kinds.get(name, Any)) for name, value in values.items()}
        try:
            return type.__call__(cls, *args, **given)
        except StrictDataclassClassValidationError as error:
            # What a rule refuses is a `UserError`; any other error in a rule is a bug.
            raise (error.__cause__ or error) from None


def _fitting(name: str, value: Any, annotation: Any) -> Any:
    """A value as its field takes it, such as a whole number as a `float`; one that fits is left as it is."""
    for fitting in (value, as_declared(value, annotation)):
        try:
            type_validator(name, fitting, annotation)
        except (TypeError, ValueError):
            continue
        return fitting
    raise UserError(wrong_value(name, annotation, value))


@strict
class SSLConfig(PreTrainedConfig, metaclass=_Checked):
    """Settings that every method shares: the encoder and the images that it expects.

    Args:
        architecture: timm name of the encoder. `--encoder` also takes a Hub id, an encoder folder or a run, and then
            starts from its weights.
        model_args: Further arguments of `timm.create_model` as a JSON object, such as `{"patch_size": 4}`.
        image_size: Height and width of a view, in pixels, at least 8.
        image_mean: Mean of each channel, subtracted from images in [0, 1].
        image_std: Standard deviation of each channel, positive; images are divided by it.
    """

    model_type = "hf_ssl"

    architecture: str = "resnet50"
    model_args: dict[str, Any] | None = None
    image_size: int = 224
    image_mean: list[float] | tuple[float, ...] = IMAGENET_MEAN
    image_std: list[float] | tuple[float, ...] = IMAGENET_STD

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse settings that no field declares: transformers would keep them as silent attributes."""
        own = [field.name for field in fields(self)]
        for name in kwargs:
            if name not in _KEYS_OF_TRANSFORMERS and not name.startswith("_"):
                hint = near_name(name, own) or " Remove it."
                raise UserError(f"`{type(self).__name__}` has no setting `{name}`.{hint}")
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings that were saved, and the arguments that are left.

        Raises:
            UserError: If another kind of model was saved, whose settings would be refused one by one.
        """
        saved, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        kind = saved.get("model_type", cls.model_type)
        if kind != cls.model_type:
            loader = "AutoModel" if cls is SSLConfig else "AutoModelForPreTraining"
            cure = (
                f"Load it by `{loader}.from_pretrained`."
                if kind.startswith("hf_ssl_")
                else 'Give the folder of a saved method: `pretraining` of a run, or `subfolder="pretraining"`.'
            )
            raise UserError(
                f"`{pretrained_model_name_or_path}` holds `{kind.removeprefix('hf_ssl_')}`, not "
                f"`{cls.model_type.removeprefix('hf_ssl_')}`. {cure}"
            )
        return saved, rest

    def to_dict(self) -> dict[str, Any]:
        """The settings as they are saved."""
        settings = super().to_dict()
        # Of models that generate text; transformers' Trainer sets it in every config.
        settings.pop("use_cache", None)
        return settings

    def validate_images(self) -> None:
        """Check the image settings once, when the config is made."""
        if self.image_size < 8:
            raise UserError(f"`image_size` must be at least 8 pixels, got {self.image_size}.")
        if len(self.image_mean) != 3 or len(self.image_std) != 3:
            raise UserError(
                f"`image_mean` and `image_std` need one value per channel (3), got {len(self.image_mean)} and "
                f"{len(self.image_std)}."
            )
        if min(self.image_std) <= 0:
            raise UserError(f"`image_std` must be positive, got {min(self.image_std)}.")

    def validate_numbers_are_finite(self) -> None:
        """Refuse NaN and infinity, which many rules of the form `positive` let through."""
        for field in fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, list | tuple) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise UserError(f"`{field.name}` must be finite, got {number}.")

    def adapt_to_data(self, num_images: int | None) -> None:
        """Fill in what only the data set tells; called before the model of a new run is built.

        Args:
            num_images: Images of the training split; None if only reading them all would tell.
        """


class WithEncoder(PreTrainedModel):
    """A transformers model with a timm encoder, which keeps timm's initialisation and loads completely or not at all.

    Subclasses build what else they have in `__init__` and end it with `self.post_init()`.

    Args:
        config: Config of a method; `architecture` and `model_args` describe the encoder.

    Raises:
        UserError: If it is the config of another method.
    """

    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # pyright: ignore[reportAssignmentType]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False

    def __init__(self, config: SSLConfig):
        wanted: type[SSLConfig] = self.config_class  # pyright: ignore[reportAssignmentType]
        if not isinstance(config, wanted):
            raise UserError(
                f"`{type(self).__name__}` is made of a `{wanted.__name__}`, got `{type(config).__name__}`."
            )
        super().__init__(config)
        self.encoder = build_encoder(config.architecture, config.model_args)

    @property
    def hidden_size(self) -> int:
        """Width of the representation h."""
        return hidden_size_of(self.encoder)

    def _init_weights(self, module: nn.Module) -> None:
        # timm has initialised the encoder and PyTorch the heads; the target is a copy of both, which a second draw
        # would break. Only what no checkpoint holds is made again after loading (tables of Swin, RoPE, ...).
        init = getattr(module, "init_non_persistent_buffers", None)
        if init is not None:
            init()

    def _set_gradient_checkpointing(self, enable: bool = True, **_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.encoder.set_grad_checkpointing(enable)  # pyright: ignore[reportCallIssue]

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load what `save_pretrained` wrote, complete or not at all.

        Takes the arguments of `PreTrainedModel.from_pretrained`. The weights stay float32 unless `dtype` says
        otherwise: a moving average in half precision stands still.

        Raises:
            UserError: If the checkpoint lacks weights, which transformers would leave at random, or has other shapes.
        """
        kwargs.setdefault("dtype", torch.float32)
        loaded: Any = super().from_pretrained(
            *args, output_loading_info=True, **{"ignore_mismatched_sizes": True, **kwargs}
        )
        model, info = loaded
        mismatched = sorted(info["mismatched_keys"])
        if mismatched:
            name, saved, built = mismatched[0]
            raise UserError(
                f"The checkpoint has other shapes than the config for {len(mismatched)} weights of `{cls.__name__}`, "
                f"such as `{name}`: {tuple(saved)} instead of {tuple(built)}. Load it with its own config."
            )
        missing = sorted(info["missing_keys"])
        if missing:
            raise UserError(
                f"The checkpoint lacks {len(missing)} weights of `{cls.__name__}`, such as `{missing[0]}`. "
                "Was it saved by another method?"
            )
        for tensor in (*model.parameters(), *model.buffers()):
            # They lie as in the file, rarely on a boundary of 64 bytes, and on others CPU kernels round differently:
            # training would not go on bit for bit.
            tensor.data = tensor.data.clone()
        return (model, info) if output_loading_info else model  # pyright: ignore[reportReturnType]


class SSLEncoder(WithEncoder):
    """The encoder of a saved method, without its heads; gives the features of the published encoder.

    encoder = AutoModel.from_pretrained("runs/first/pretraining")
    """

    config_class = SSLConfig
    _keys_to_ignore_on_load_unexpected = [r"^(?!encoder\.)"]  # noqa: RUF012 (the heads, target and queue)

    def __init__(self, config: SSLConfig):
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Features of a batch of images.

        Args:
            pixel_values: Normalised images, (batch, 3, height, width).
            output_hidden_states: Also give the feature map of each stage or block.
            return_dict: False: give a tuple of what the result holds.

        Returns:
            `pooler_output` are the features, (batch, hidden size); `last_hidden_state` what they were pooled from.
        """
        encoder: Any = self.encoder
        pixel_values = pixel_values.to(self.device, self.dtype)
        hidden_states = None
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            last, maps = encoder.forward_intermediates(pixel_values)
            hidden_states = tuple(maps)
        else:
            last = encoder.forward_features(pixel_values)
        output = BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=encoder.forward_head(last),
            hidden_states=hidden_states,  # pyright: ignore[reportArgumentType]
        )
        return output.to_tuple() if return_dict is False else output

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write an encoder folder, which timm and transformers load without hf_ssl.

        Args:
            save_directory: Where to write; made if missing.
        """
        # The room of the Hub stands above this one; it is imported when an object asks for it.
        importlib.import_module("hf_ssl.hub.export").export_encoder(self.encoder, self.config, Path(save_directory))

    def push_to_hub(self, repo_id: str, **_: Any) -> NoReturn:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refused: a repository holds the whole method, and its root is this encoder.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "An encoder is published with its method. Load the method by "
            f'`AutoModelForPreTraining.from_pretrained(...)` and call its `push_to_hub("{repo_id}")`.'
        )


class SSLImageProcessor(TimmWrapperImageProcessor):
    """The preprocessing of a saved method's images, as its config tells it; the same as that of its encoder folder.

    `preprocessor_config.json` names this class and holds nothing else: transformers looks for the class only there.
    """

    FILE = "preprocessor_config.json"

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the processor is made of: the architecture, and the preprocessing as timm describes it."""
        saved, rest = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        config: Any = AutoConfig.for_model(**saved)
        data = preprocessing(config.image_size, config.image_mean, config.image_std)
        return {"pretrained_cfg": data, "architecture": config.architecture}, rest

    @classmethod
    def write(cls, folder: Path) -> None:
        """Write the file by which `AutoImageProcessor` finds this class."""
        text = json.dumps({"image_processor_type": cls.__name__}, indent=2)
        (folder / cls.FILE).write_text(text + "\n", encoding="utf-8")
