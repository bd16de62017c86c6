"""Pretrain image encoders without labels; publish them so that transformers and timm load them.

Importing the package registers its methods with transformers' Auto classes and `resnet18_cifar` (34, 50) with timm.
Every command is a function here, with its flags as keyword arguments:

    import hf_ssl

    run = hf_ssl.pretrain(method="moco", dataset="photos", encoder="resnet18", output_dir="runs/photos")
    print(run.encoder, run.results)
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ssl.imports import import_modules

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hf_ssl.commands.api import (
        analyze,
        evaluate,
        extract_features,
        fine_tune,
        list_methods,
        open_demo,
        pretrain,
        publish,
        publish_metric,
        search,
        simulate,
        study,
        views,
    )
    from hf_ssl.data.settings import DataSettings
    from hf_ssl.data.sources.open import open_source
    from hf_ssl.errors import UserError
    from hf_ssl.evaluation.encoders import load_encoder
    from hf_ssl.fine_tuning.settings import FineTuningSettings
    from hf_ssl.methods import METHODS, register_method
    from hf_ssl.methods.base import SSLConfig, SSLOutput, SSLPreTrainedModel
    from hf_ssl.training.arguments import TrainingSettings

__all__ = [
    "METHODS",
    "DataSettings",
    "FineTuningSettings",
    "SSLConfig",
    "SSLOutput",
    "SSLPreTrainedModel",
    "TrainingSettings",
    "UserError",
    "__version__",
    "analyze",
    "evaluate",
    "extract_features",
    "fine_tune",
    "list_methods",
    "load_encoder",
    "open_demo",
    "open_source",
    "pretrain",
    "publish",
    "publish_metric",
    "register_method",
    "search",
    "simulate",
    "study",
    "views",
]

_HOMES = {
    "DataSettings": "data.settings",
    "FineTuningSettings": "fine_tuning.settings",
    "METHODS": "methods",
    "SSLConfig": "methods.base",
    "SSLOutput": "methods.base",
    "SSLPreTrainedModel": "methods.base",
    "TrainingSettings": "training.arguments",
    "UserError": "errors",
    "load_encoder": "evaluation.encoders",
    "open_source": "data.sources.open",
    "register_method": "methods",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: the commands and the data need libraries that a loaded encoder does not."""
    if name not in __all__:
        raise AttributeError(f"module `hf_ssl` has no attribute `{name}`")
    value = getattr(import_modules(f"hf_ssl.{_HOMES.get(name, 'commands.api')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


def _starts_a_command() -> bool:
    """Whether this is `hf-ssl` or `python -m hf_ssl`, which import what their command needs, and no more for help."""
    return Path(sys.argv[0]).stem == "hf-ssl" or sys.orig_argv[1:3] == ["-m", "hf_ssl"]


if not _starts_a_command():
    import_modules("hf_ssl.methods")
