"""Train several runs and compare them.

    hf-ssl study methods --dataset uoft-cs/cifar10 --seeds 3 --output_dir runs/methods
    hf-ssl study ablation --dataset uoft-cs/cifar10 --view_recipe moco_v2 --output_dir runs/ablation
    hf-ssl study reproduce directpred-cifar10 --dataset uoft-cs/cifar10 --output_dir runs/directpred-cifar10

A study that was killed or stopped continues with the same command.
"""

from hf_ssl.commands.command import Command, CommandGroup
from hf_ssl.data.settings import OF_DATA
from hf_ssl.studies import ablation, dictionaries, labels, methods, negatives, reproduce

_FIRST = ("dataset", "output_dir", "seeds", "num_steps", "recipe", "view_recipe", "encoder")
_DATA = (*OF_DATA, "split", "num_workers")

COMMAND = CommandGroup(
    "study",
    __doc__ or "",
    {
        "methods": Command(
            "study methods",
            methods.MethodsSettings,
            methods.run,
            methods.__doc__ or "",
            first=("dataset", "output_dir", "methods", "seeds", "num_epochs", "num_steps", "recipe", "view_recipe"),
            groups={"data": (*_DATA, "test_split", "eval_images")},
        ),
        "labels": Command(
            "study labels",
            labels.LabelsSettings,
            labels.run,
            labels.__doc__ or "",
            words=("encoders",),
            first=("dataset", "output_dir", "fractions", "seeds", "num_steps", "test_split"),
            groups={"data": _DATA},
        ),
        "ablation": Command(
            "study ablation",
            ablation.AblationSettings,
            ablation.run,
            ablation.__doc__ or "",
            first=(*_FIRST, "theory_only", "grid"),
            groups={
                "axes of a grid": ("ema", "predictor_lr", "weight_decay", "stop_gradient", "predictor", "symmetrize"),
                "data": (*_DATA, "knn_split", "knn_images"),
            },
        ),
        "negatives": Command(
            "study negatives",
            negatives.NegativesSettings,
            negatives.run,
            negatives.__doc__ or "",
            first=(*_FIRST, "methods"),
            groups={
                "data": (*_DATA, "test_split", "eval_images"),
                "negatives": (
                    *("queue_size", "num_hard_negatives", "num_mixed_negatives", "num_mixed_queries"),
                    "start_step",
                ),
            },
        ),
        "dictionaries": Command(
            "study dictionaries",
            dictionaries.DictionariesSettings,
            dictionaries.run,
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
            reproduce.run,
            reproduce.__doc__ or "",
            words=("table",),
            first=("dataset", "output_dir", "runs", "seeds", "list", "num_epochs", "num_steps"),
            groups={
                "data": (*_DATA, "probe_split", "test_split", "eval_images", "augmented_passes"),
                "to try it out": ("batch_size", "encoder"),
            },
        ),
    },
)
