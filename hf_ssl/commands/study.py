"""Train several runs and compare them.

    hf-ssl study methods --dataset uoft-cs/cifar10 --seeds 3 --output_dir runs/methods
    hf-ssl study ablation --dataset uoft-cs/cifar10 --view_recipe moco_v2 --output_dir runs/ablation
    hf-ssl study reproduce directpred-cifar10 --dataset uoft-cs/cifar10 --output_dir runs/directpred-cifar10

A study that was killed or stopped continues with the same command.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from hf_ssl.commands.command import Command, CommandGroup
from hf_ssl.commands.evaluation_settings import EvaluationSettings
from hf_ssl.data.settings import OF_DATA, DataSettings
from hf_ssl.errors import UserError
from hf_ssl.fine_tuning.settings import FineTuningSettings
from hf_ssl.methods import METHODS
from hf_ssl.studies import ablation, augmentation, curriculum, dictionaries, labels, methods, negatives, reproduce
from hf_ssl.training.arguments import TrainingSettings

_FIRST = ("dataset", "output_dir", "seeds", "num_steps", "recipe", "view_recipe", "encoder")
_DATA = (*OF_DATA, "split", "num_workers")
_OF_RUNS = {
    field.name
    for kind in (DataSettings, TrainingSettings, FineTuningSettings, EvaluationSettings)
    for field in fields(kind)  # pyright: ignore[reportArgumentType]
}
_OF_RUNS |= {field.name for method in METHODS.values() for field in fields(method.config_class)}
_OF_RUNS -= {"train"}  # in an error it is the name of a split


def _of_study(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function, whose errors name each setting that they advise and the study lacks."""

    @functools.wraps(run)
    def call(settings: Any) -> Any:
        try:
            return run(settings)
        except UserError as error:
            named = re.findall(r"`(?:--)?(\w+)(?: [^`]*)?`", str(error))
            own = {field.name for field in fields(settings)}
            lacking = [f"`{name}`" for name in dict.fromkeys(named) if name in _OF_RUNS - own]
            if lacking:
                which = ", ".join(lacking)
                error.args = (f"{error} (A study has no {which}: its runs have the recipe's, or the default.)",)
            raise

    return call


COMMAND = CommandGroup(
    "study",
    __doc__ or "",
    {
        "methods": Command(
            "study methods",
            methods.MethodsSettings,
            _of_study(methods.run),
            methods.__doc__ or "",
            first=("dataset", "output_dir", "methods", "seeds", "num_epochs", "num_steps", "recipe", "view_recipe"),
            groups={"data": (*_DATA, "test_split", "eval_images")},
        ),
        "labels": Command(
            "study labels",
            labels.LabelsSettings,
            _of_study(labels.run),
            labels.__doc__ or "",
            words=("encoders",),
            first=("dataset", "output_dir", "fractions", "seeds", "num_steps", "test_split"),
            groups={"data": _DATA},
        ),
        "ablation": Command(
            "study ablation",
            ablation.AblationSettings,
            _of_study(ablation.run),
            ablation.__doc__ or "",
            first=(*_FIRST, "theory_only", "grid", "drawn_from"),
            groups={
                "axes of a grid": ("ema", "predictor_lr", "weight_decay", "stop_gradient", "predictor", "symmetrize"),
                "data": (*_DATA, "knn_split", "knn_images"),
            },
        ),
        "negatives": Command(
            "study negatives",
            negatives.NegativesSettings,
            _of_study(negatives.run),
            negatives.__doc__ or "",
            first=(*_FIRST, "methods", "drawn_from"),
            groups={
                "data": (*_DATA, "test_split", "eval_images"),
                "negatives": (
                    *("queue_size", "num_hard_negatives", "num_mixed_negatives", "num_mixed_queries"),
                    "start_step",
                ),
            },
        ),
        "augmentation": Command(
            "study augmentation",
            augmentation.AugmentationSettings,
            _of_study(augmentation.run),
            augmentation.__doc__ or "",
            first=("dataset", "output_dir", "views", "seeds", "num_steps", "start_from", "predict_only", "drawn_from"),
            groups={"data": (*_DATA, "test_split", "eval_images", "view_images", "num_views")},
        ),
        "curriculum": Command(
            "study curriculum",
            curriculum.CurriculumSettings,
            _of_study(curriculum.run),
            curriculum.__doc__ or "",
            first=("dataset", "output_dir", "targets", "num_steps", "view_recipe", "predict_only", "drawn_from"),
            groups={"data": _DATA},
        ),
        "dictionaries": Command(
            "study dictionaries",
            dictionaries.DictionariesSettings,
            _of_study(dictionaries.run),
            dictionaries.__doc__ or "",
            first=("dataset", "output_dir", "methods", "seeds", "num_steps", "recipe", "view_recipe", "encoder"),
            groups={
                "axes": ("momentum", "queue_size", "batch_size", "num_images", "learning_rate"),
                "predictions": ("fit_from", "fit_steps", "bound", "predict_only"),
                "data": (*_DATA, "knn_split", "knn_images"),
            },
        ),
        "reproduce": Command(
            "study reproduce",
            reproduce.ReproduceSettings,
            _of_study(reproduce.run),
            reproduce.__doc__ or "",
            words=("table",),
            first=("dataset", "output_dir", "runs", "seeds", "list", "num_epochs", "num_steps"),
            groups={
                "data": (*_DATA, "probe_split", "test_split", "eval_images", "augmented_passes"),
                "machine": ("mixed_precision", "compile", "cache"),
                "to try it out": ("batch_size", "encoder"),
            },
        ),
    },
)
