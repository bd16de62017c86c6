"""The contract between a method and everything around it: config, output and model base class.

A method is one file with one `SSLConfig` and one `SSLPreTrainedModel`; the training loop, the exporter, the command
line and the contract tests know methods through these classes alone.
"""

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput  # pyright: ignore[reportPrivateImportUsage]

from hf_ssl.errors import UserError, near_name
from hf_ssl.modules.description import Description, Paper
from hf_ssl.modules.pretrained import SSLConfig, SSLImageProcessor, WithEncoder


@dataclass
class SSLOutput(ModelOutput):
    """What a method's `forward` returns: the loss, and enough to diagnose it without a second pass.

    Args:
        loss: Scalar, float32.
        representations: Encoder outputs h of all views, (batch, views, hidden size); detached.
        projections: Projector outputs z of all views before normalisation, (batch, views, projection dim); detached.
        metrics: Named scalar tensors without gradient, on the model's device.
    """

    loss: Tensor | None = None
    representations: Tensor | None = None
    projections: Tensor | None = None
    metrics: dict[str, Tensor] | None = None


class SSLPreTrainedModel(WithEncoder, ABC):
    """Base of every method: one online encoder, the heads of the method, and its frozen branch.

    Subclasses build their modules in `__init__`, end it with `self.post_init()`, and define `forward`. State rule:
    `forward` writes buffers, in training mode only and from tensors gathered over all processes;
    `after_optimizer_step` writes parameters; nothing else changes state.

    Attributes:
        config_class: The method's config.
        paper: The publication, if there is one.
        recipes: Named settings, `{recipe: {flag: value}}`, of the original papers and codes, if there are any. Keys
            may name fields of the config, the data settings or the training settings.
        view_recipe: Augmentation used unless the recipe or the user names another, a name in `data/views.py`.
        batch_norm: `sync` for BatchNorm statistics over all processes, `local` for those of each process, unless the
            training settings say otherwise.
        frozen_modules: Names of submodules that gradient descent must not move.
        frozen_parameters: Names of single parameters that it must not move either.
        constant_lr_modules: Names of submodules whose learning rate does not follow the schedule.
        least_images: Images that the loss needs in one forward pass of all processes; 2 where it compares the images
            of a batch with each other.
        needs_indices: Whether `forward` needs the stable number of each image.
        needs_labels: Whether `forward` needs labels.
    """

    config_class: ClassVar[type[SSLConfig]]  # pyright: ignore[reportIncompatibleVariableOverride]
    paper: ClassVar[Paper | None] = None
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    view_recipe: ClassVar[str] = "moco_v2"
    batch_norm: ClassVar[str] = "sync"
    frozen_modules: tuple[str, ...] = ()
    frozen_parameters: tuple[str, ...] = ()
    constant_lr_modules: tuple[str, ...] = ()
    least_images: ClassVar[int] = 1
    needs_indices: bool = False
    needs_labels: bool = False

    @abstractmethod
    def forward(self, pixel_values: Tensor, indices: Tensor | None = None, labels: Tensor | None = None) -> SSLOutput:
        """Compute the loss of one batch.

        Args:
            pixel_values: Normalised views, (batch, 2, 3, height, width).
            indices: Stable number of each image in the data set, (batch,), int64; None where the source has none.
            labels: Class of each image, (batch,), int64, -1 where it has none. None unless `needs_labels`: methods
                train without labels, and only an analysis may look at them.
        """

    @classmethod
    def described(cls, plain: Description, settings: Mapping[str, Any]) -> Description:
        """What cards say of the method with these settings, where these make it another than its docstring says.

        Args:
            plain: Name of the class, first sentence of its docstring, and `paper`.
            settings: All settings of the config, by name.
        """
        return plain

    def after_optimizer_step(self, step: int, num_steps: int) -> None:
        """Update parameters that gradients do not move; called once after each optimizer step.

        Args:
            step: Optimizer steps done so far, at least 1.
            num_steps: Optimizer steps of the whole run.
        """

    def encode(self, view: Tensor) -> Tensor:
        """Representation h of a batch of views.

        Args:
            view: (batch, 3, height, width).

        Returns:
            (batch, hidden size).
        """
        return self.encoder(view)

    def split_views(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """The two views of each image.

        Args:
            pixel_values: (batch, 2, 3, height, width).

        Returns:
            Two tensors of shape (batch, 3, height, width).

        Raises:
            ValueError: If the shape is another.
        """
        if pixel_values.ndim != 5 or pixel_values.shape[1] != 2:
            raise ValueError(
                "`pixel_values` must have shape (batch, 2, channels, height, width), got "
                f"{tuple(pixel_values.shape)}. Give two views of each image."
            )
        first, second = pixel_values.unbind(dim=1)
        return first, second

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that the optimizer may move, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def post_init(self) -> None:
        """Finish construction: freeze what gradients must not move.

        Raises:
            UserError: If the method names modules or parameters that it does not have.
        """
        super().post_init()
        self._freeze()
        self._named("constant_lr_modules", dict(self.named_modules()))

    def _freeze(self) -> None:
        for module in self._named("frozen_modules", dict(self.named_modules())):
            module.requires_grad_(False)
        for parameter in self._named("frozen_parameters", dict(self.named_parameters())):
            parameter.requires_grad_(False)

    def _named(self, attribute: str, known: Mapping[str, Any]) -> list[Any]:
        """The modules or parameters that an attribute of the class names."""
        names = getattr(self, attribute)
        for name in names:
            if name not in known:
                raise UserError(
                    f"`{attribute}` of `{type(self).__name__}` names `{name}`, which the model does not have."
                    f"{near_name(name, known)}"
                )
        return [known[name] for name in names]

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load a saved method, complete or not at all, with the same frozen parameters as when it was made.

        Takes the arguments of `PreTrainedModel.from_pretrained`. The weights stay float32 unless `dtype` says
        otherwise: a moving average in half precision stands still.

        Raises:
            UserError: If the checkpoint lacks weights, which transformers would leave at random, or has other shapes.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        model._freeze()
        return (model, info) if output_loading_info else model  # pyright: ignore[reportReturnType]

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, *, push_to_hub: bool = False, readme: bool = True, **kwargs: Any
    ) -> None:
        """Write the whole method, a `README.md` that says how to load it, and the file that names its preprocessing.

        A `README.md` that somebody edited is left as it is.

        Args:
            save_directory: Where to write; made if missing.
            push_to_hub: Also publish it, by `push_to_hub`; `repo_id` and its other arguments may be given as well.
                Without `repo_id` the repository is called like the folder.
            readme: Write the `README.md`.
            **kwargs: Further arguments of `PreTrainedModel.save_pretrained`, or of `push_to_hub`.

        Raises:
            UserError: If it cannot be pushed.
        """
        pushed = {name: kwargs.pop(name) for name in _PUSHED if name in kwargs} if push_to_hub else {}
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            SSLImageProcessor.write(Path(save_directory))
            if readme:
                _hub_objects().write_readme(self, Path(save_directory))
            if push_to_hub:
                self.push_to_hub(**{"repo_id": Path(save_directory).name, **pushed})

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        tag: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
        token: str | None = None,
    ) -> str:
        """Publish what `hf-ssl publish` publishes: the encoder as the root, the method in `pretraining/`, the card.

        A method that was loaded from the folder of a run, and is still the same, is published as that run: its card
        tells the training and the results. Of any other the card tells the method and how to load it.

        Args:
            repo_id: Repository, `org/name`, or `name` for one of the token's user; made if missing.
            private: Make it a private one.
            revision: Branch to push to; made from `main` if missing. Without it `main`.
            tag: Name for what is pushed, such as `v1.0`; a tag that names something else is an error.
            commit_message: Title of the commit.
            license: Licence of the weights for the card, such as `apache-2.0`; none is assumed.
            token: Token of the Hub; that of `hf auth login` or `HF_TOKEN` if not given.

        Returns:
            Address of what was pushed.

        Raises:
            UserError: If a name cannot be used, or the Hub cannot be reached or refuses.
        """
        return _hub_objects().push_method(
            self,
            repo_id,
            private=bool(private),
            revision=revision,
            tag=tag,
            message=commit_message,
            license=license,
            token=token,
        )


_PUSHED = tuple(set(inspect.signature(SSLPreTrainedModel.push_to_hub).parameters) - {"self"})


def method_name(method: type[SSLPreTrainedModel]) -> str:
    """A method's name on the command line, such as `directpred`."""
    return method.config_class.model_type.removeprefix("hf_ssl_")


def own_settings(config: SSLConfig) -> dict[str, Any]:
    """A config's settings, without those that every config of transformers has."""
    inherited = {field.name for field in fields(PreTrainedConfig)}  # pyright: ignore[reportArgumentType]
    return {
        field.name: getattr(config, field.name)
        for field in fields(config)  # pyright: ignore[reportArgumentType]
        if field.name not in inherited
    }


def _hub_objects() -> Any:
    """The room of the Hub stands above this one, so it is imported when an object asks for it."""
    return importlib.import_module("hf_ssl.hub.objects")


def check_method_class(model_class: Any) -> None:
    """Check what can be known of a method before a model is made.

    Args:
        model_class: Class of the method.

    Raises:
        UserError: If it does not keep the contract of `SSLPreTrainedModel`.
    """
    if not (isinstance(model_class, type) and issubclass(model_class, SSLPreTrainedModel)):
        raise UserError(f"A method must be a subclass of `SSLPreTrainedModel`, got {model_class!r}.")
    fault = _fault_of_config_class(getattr(model_class, "config_class", None)) or _fault_of_method(model_class)
    if fault is not None:
        raise UserError(f"The method `{model_class.__name__}` cannot be trained: {fault}.")


def _fault_of_config_class(config_class: Any) -> str | None:
    if not (isinstance(config_class, type) and issubclass(config_class, SSLConfig)):
        got = getattr(config_class, "__name__", config_class)
        return f"`config_class` must be a subclass of `SSLConfig`, got `{got}`"
    if config_class is SSLConfig or "model_type" not in vars(config_class):
        return (
            f"its config `{config_class.__name__}` must have a `model_type` of its own, such as "
            "`hf_ssl_mine`, by which the saved method is found"
        )
    return None


def _fault_of_method(model_class: type[SSLPreTrainedModel]) -> str | None:
    if model_class.forward is SSLPreTrainedModel.forward:
        return "it has no `forward`, which computes the loss"
    arguments = inspect.signature(model_class.forward).parameters
    takes_all = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    lacking = [name for name in ("pixel_values", "indices", "labels") if name not in arguments and not takes_all]
    if lacking:
        return f"its `forward` must take `pixel_values`, `indices` and `labels`, and lacks `{'`, `'.join(lacking)}`"
    if inspect.isabstract(model_class):
        return f"it does not define `{'`, `'.join(sorted(model_class.__abstractmethods__))}`"
    if model_class.paper is not None and not isinstance(model_class.paper, Paper):
        return f"`paper` must be a `Paper` or None, got {model_class.paper!r}"
    recipes: Any = model_class.recipes
    if not isinstance(recipes, Mapping) or not all(_is_recipe(name, recipe) for name, recipe in recipes.items()):
        return '`recipes` must be a dictionary of dictionaries, such as `{"mine": {"learning_rate": 0.1}}`'
    if model_class.batch_norm not in ("sync", "local"):
        return f"`batch_norm` must be `sync` or `local`, got `{model_class.batch_norm}`"
    return None


def _is_recipe(name: Any, recipe: Any) -> bool:
    return isinstance(name, str) and isinstance(recipe, Mapping) and all(isinstance(flag, str) for flag in recipe)
