"""The methods by name. A new one needs its file, an import and an entry here; everything else follows."""

from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoModelForPreTraining

from hf_ssl.errors import UserError
from hf_ssl.methods.base import SSLPreTrainedModel, check_method_class
from hf_ssl.methods.byol import BYOLForPreTraining
from hf_ssl.methods.contrastive_clustering import ContrastiveClusteringForPreTraining
from hf_ssl.methods.directclr import DirectCLRForPreTraining
from hf_ssl.methods.directpred import DirectPredForPreTraining
from hf_ssl.methods.end_to_end import EndToEndForPreTraining
from hf_ssl.methods.memory_bank import MemoryBankForPreTraining
from hf_ssl.methods.mochi import MoCHiForPreTraining
from hf_ssl.methods.moco import MoCoForPreTraining
from hf_ssl.methods.moco_v3 import MoCoV3ForPreTraining
from hf_ssl.methods.simsiam import SimSiamForPreTraining
from hf_ssl.modules.pretrained import SSLEncoder, SSLImageProcessor

METHODS: dict[str, type[SSLPreTrainedModel]] = {
    "end_to_end": EndToEndForPreTraining,
    "memory_bank": MemoryBankForPreTraining,
    "moco": MoCoForPreTraining,
    "moco_v3": MoCoV3ForPreTraining,
    "mochi": MoCHiForPreTraining,
    "byol": BYOLForPreTraining,
    "simsiam": SimSiamForPreTraining,
    "directpred": DirectPredForPreTraining,
    "directclr": DirectCLRForPreTraining,
    "contrastive_clustering": ContrastiveClusteringForPreTraining,
}


def register_method(name: str, model_class: type[SSLPreTrainedModel]) -> None:
    """Make a method known: to the commands by its name, and to transformers' Auto classes.

    `AutoModelForPreTraining` gives the method for a folder that it was saved to, `AutoModel` its encoder, and
    `AutoImageProcessor` the preprocessing of its images.

    Args:
        name: What `--method` takes; the config's `model_type` is `hf_ssl_` and this name.
        model_class: Class of the method.

    Raises:
        UserError: If the class does not keep the contract, or its config has another `model_type`.
    """
    check_method_class(model_class)
    config_class = model_class.config_class
    if config_class.model_type != f"hf_ssl_{name}":
        raise UserError(
            f"`{config_class.__name__}.model_type` must be `hf_ssl_{name}` for the method `{name}`, got "
            f"`{config_class.model_type}`. Give the method a config of its own with that type."
        )
    METHODS[name] = model_class
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForPreTraining.register(config_class, model_class, exist_ok=True)
    # Not by `AutoModel.register`, which wants a model class for each config.
    MODEL_MAPPING.register(config_class, SSLEncoder, exist_ok=True)  # pyright: ignore[reportArgumentType]
    processors: dict[str, type] = {"pil": SSLImageProcessor, "torchvision": SSLImageProcessor}
    AutoImageProcessor.register(config_class, image_processor_classes=processors, exist_ok=True)


for _name, _method in METHODS.items():
    register_method(_name, _method)
