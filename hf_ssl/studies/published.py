"""Published tables and the runs behind them: recipe, length, protocol, and each number with where it is printed.

Numbers were read in the papers or the official repositories, except those marked as not verified: of MoCHi's paper no
text and no official code could be read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One run of a table.

    Args:
        method: Name in `hf_ssl.METHODS`.
        recipe: Name of its recipe.
        published: Measurement, as `hf_ssl.evaluation.protocols` names it -> the number in percent as printed, with its
            deviation after `+-`.
        source: Where it is printed.
        changes: Settings that differ from the recipe's.
        verified: Whether the numbers were read in their source.
    """

    method: str
    recipe: str
    published: Mapping[str, str]
    source: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    verified: bool = True


@dataclass(frozen=True)
class Table:
    """What `hf-ssl study reproduce` makes again.

    Args:
        title: What it is, with the paper.
        data: Name of the data set.
        place: An example for `--dataset`.
        split: Split that is trained on.
        probe_split: Labelled split that the probe learns from; None if the protocol learns from no labels.
        test_split: Labelled split that is measured.
        protocol: Name in `hf_ssl.evaluation.protocols.PROTOCOLS`.
        rows: The runs, by name.
        notes: What differs from the publication.
    """

    title: str
    data: str
    place: str
    split: str
    probe_split: str | None
    test_split: str
    protocol: str
    rows: Mapping[str, Row]
    notes: tuple[str, ...] = ()


_BEST = "linear-luckmatters-best"
_PROBE = (
    "The published numbers are mean and deviation of 5 seeds. They are of the probe's epoch that is best on the test "
    "split, and so are those here."
)


def _directpred(recipe: str, published: Mapping[str, Sequence[str]]) -> dict[str, Row]:
    """Table 8: predictors by the suffix of their recipe, each trained for 100, 300 and 500 epochs."""
    names = {"": "directpred", "-freq5": "directpred-freq5", "-linear": "linear"}
    return {
        f"{names[suffix]}-{epochs}": Row(
            "directpred", f"{recipe}{suffix}", {_BEST: number}, "2102.06810, table 8", {"num_epochs": epochs}
        )
        for suffix, numbers in published.items()
        for epochs, number in zip((100, 300, 500), numbers, strict=True)
    }


def _stl10(rho: float, epsilon: float, number: str) -> tuple[str, Row]:
    """A cell of table 6."""
    changes = {"rho": rho, "epsilon": epsilon}
    return f"rho{rho}-epsilon{epsilon}", Row("directpred", "stl10", {_BEST: number}, "2102.06810, table 6", changes)


# A linear predictor has no BatchNorm that could do without scale and shift.
_SYMMETRIC = {"predictor": "linear", "symmetrize": True, "predictor_affine": True}


def _predictor(name: str, changes: Mapping[str, Any], number: str) -> tuple[str, Row]:
    """A cell of table 3, of a predictor without bias that gradients train."""
    return name, Row("byol", "stl10", {_BEST: number}, "2102.06810, table 3", changes)


def _imagenet(method: str, recipe: str, top_1: str, top_5: str) -> Row:
    return Row(method, recipe, {"linear-byol": top_1}, f"2102.06810, table 9 (top-5: {top_5})")


def _offset(offset: float, freq: int, number: str) -> tuple[str, Row]:
    """A cell of table 7."""
    changes = {"epsilon": 0.0, "offset": offset} | ({} if freq == 1 else {"freq": freq})
    name = f"offset{offset}" + ("" if freq == 1 else f"-freq{freq}")
    return name, Row("directpred", "stl10", {_BEST: number}, "2102.06810, table 7", changes)


_IMAGENET_PLACE = "ILSVRC/imagenet-1k"
_CROPS = (
    "The publications' probes learn from random crops and flips, others in each epoch; `--augmented_passes` makes "
    "some where the memory holds their features."
)
_AT_ZERO = "The recipes start the last BatchNorm of each residual block at zero, as timm does (`zero_init_last`); "
_AT_ONE = f"{_AT_ZERO}the authors start it at one."
_CLUSTERING = {"clustering-nmi": "70.5", "clustering-accuracy": "79.0", "clustering-ari": "63.7"}

TABLES = {
    "directpred-cifar10": Table(
        title="DirectPred on CIFAR-10 (Tian et al., 2021)",
        data="CIFAR-10",
        place="uoft-cs/cifar10",
        split="train",
        probe_split="train",
        test_split="test",
        protocol="linear-luckmatters",
        rows=_directpred(
            "cifar",
            {
                "": ("85.21 +- 0.23", "88.88 +- 0.15", "89.52 +- 0.04"),
                "-freq5": ("84.93 +- 0.29", "88.83 +- 0.10", "89.56 +- 0.13"),
                "-linear": ("84.49 +- 0.20", "88.57 +- 0.15", "89.33 +- 0.27"),
            },
        ),
        notes=(
            _PROBE,
            _AT_ONE,
            "The authors also train on the last, smaller batch of an epoch, 391 steps of 128 images; the recipes "
            "leave it out, 390 steps.",
        ),
    ),
    "directpred-stl10": Table(
        title="DirectPred on STL-10 (Tian et al., 2021)",
        data="STL-10",
        place="data/stl10",
        split="unlabeled",
        probe_split="train",
        test_split="test",
        protocol="linear-luckmatters",
        rows={
            **_directpred(
                "stl10",
                {
                    "": ("77.86 +- 0.16", "78.77 +- 0.97", "78.86 +- 1.15"),
                    "-freq5": ("77.54 +- 0.11", "79.90 +- 0.66", "80.28 +- 0.62"),
                    "-linear": ("75.06 +- 0.52", "75.25 +- 0.74", "75.25 +- 0.74"),
                },
            ),
            **dict(
                [
                    _predictor("mlp-100", {}, "78.85 +- 0.25"),
                    _predictor("mlp-no-ema-100", {"use_ema": False}, "65.98 +- 0.71"),
                    _predictor("linear-symmetric-100", _SYMMETRIC, "75.09 +- 0.48"),
                    _predictor("linear-symmetric-no-ema-100", _SYMMETRIC | {"use_ema": False}, "36.62 +- 1.85"),
                ]
            ),
            "linear-no-ema-100": Row(
                "directpred", "stl10-linear", {_BEST: "72.85 +- 0.16"}, "2102.06810, table 3", {"use_ema": False}
            ),
            **dict(
                [
                    _stl10(0.3, 0.0, "76.77 +- 0.24"),
                    _stl10(0.3, 0.01, "77.11 +- 0.35"),
                    _stl10(0.3, 0.5, "75.06 +- 1.10"),
                    _stl10(0.5, 0.0, "76.65 +- 0.20"),
                    _stl10(0.5, 0.01, "76.76 +- 0.33"),
                    _stl10(0.5, 0.1, "77.56 +- 0.25"),
                    _stl10(0.5, 0.5, "75.22 +- 0.81"),
                    _offset(0.1, 1, "46.57 +- 18.43"),
                    _offset(0.05, 1, "65.31 +- 18.22"),
                    _offset(-0.05, 1, "77.11 +- 0.66"),
                    _offset(-0.1, 1, "76.46 +- 0.55"),
                    _offset(0.1, 2, "75.01 +- 0.48"),
                    _offset(0.05, 2, "75.10 +- 0.35"),
                    _offset(-0.05, 2, "76.83 +- 0.52"),
                    _offset(-0.1, 2, "76.31 +- 0.27"),
                ]
            ),
        },
        notes=(
            _PROBE,
            "The authors pretrain on the splits train and unlabeled together, 105,000 images; unlabeled alone has "
            "100,000. `--data_files` makes a split that holds both, and `--split` names it.",
            _AT_ONE,
            "The authors also train on the last, smaller batch of an epoch, 821 steps of 128 images; the recipes "
            "leave it out, 820 steps, or 781 of unlabeled alone.",
            "Offsets are taken off eigenvalues that are divided by the largest, as in the official code; whether the "
            "numbers of table 7 were made so is UNVERIFIED.",
        ),
    ),
    "directpred-imagenet": Table(
        title="DirectPred on ImageNet (Tian et al., 2021)",
        data="ImageNet-1k",
        place=_IMAGENET_PLACE,
        split="train",
        probe_split="train",
        test_split="validation",
        protocol="linear-byol",
        rows={
            "directpred-300": _imagenet("directpred", "paper-imagenet", "72.4", "91.0"),
            "linear-300": _imagenet("directpred", "paper-imagenet-linear", "69.9", "89.6"),
            "mlp-300": _imagenet("byol", "paper-imagenet-300", "72.5", "90.8"),
            "directpred-60": _imagenet("directpred", "paper-imagenet-60", "64.4", "85.8"),
            "linear-60": _imagenet("directpred", "paper-imagenet-60-linear", "59.4", "82.3"),
        },
        notes=(
            _CROPS,
            f"{_AT_ZERO}BYOL's code leaves it to its users, and what the authors do is UNVERIFIED.",
            "How the paper's probe is trained, and what else the 60-epoch runs have, is UNVERIFIED; the probe here is "
            "BYOL's. Top-5 is not measured.",
        ),
    ),
    "moco-imagenet": Table(
        title="MoCo on ImageNet (He et al., 2019; Chen et al., 2020)",
        data="ImageNet-1k",
        place=_IMAGENET_PLACE,
        split="train",
        probe_split="train",
        test_split="validation",
        protocol="linear-sgd",
        rows={
            "moco_v1-200": Row(
                "moco", "paper-imagenet-v1", {"linear-sgd": "60.6"}, "1911.05722; its repository: 60.8 +- 0.2, 5 runs"
            ),
            "moco_v2-200": Row(
                "moco", "paper-imagenet", {"linear-sgd": "67.5 +- 0.1"}, "README of facebookresearch/moco, 5 runs"
            ),
            "moco_v2-800": Row(
                "moco",
                "paper-imagenet",
                {"linear-sgd": "71.1"},
                "2003.04297; README of facebookresearch/moco",
                {"num_epochs": 800},
            ),
        },
        notes=(_CROPS, _AT_ONE),
    ),
    "mochi": Table(
        title="MoCHi on ImageNet-100 (Kalantidis et al., 2020)",
        data="ImageNet-100",
        place="data/imagenet100",
        split="train",
        probe_split="train",
        test_split="validation",
        protocol="linear-sgd",
        rows={
            "moco_v2-200": Row(
                "moco",
                "paper-imagenet",
                {"linear-sgd": "78.0"},
                "2010.01028",
                {"queue_size": 16384, "batch_size": 128, "base_learning_rate": 0.06},
                verified=False,
            ),
            "mochi-200": Row("mochi", "paper-imagenet100", {"linear-sgd": "79.0"}, "2010.01028", verified=False),
        },
        notes=(
            _CROPS,
            f"{_AT_ZERO}MoCo's code starts it at one.",
            "The probe's learning rate is MoCo's 30; what the paper takes here is UNVERIFIED.",
        ),
    ),
    "contrastive-clustering": Table(
        title="Contrastive Clustering on CIFAR-10 (Li et al., 2020)",
        data="CIFAR-10",
        place="uoft-cs/cifar10",
        split="train",
        probe_split=None,
        test_split="test",
        protocol="clustering",
        rows={
            "resnet34-1000": Row(
                "contrastive_clustering",
                "paper-imagenet",
                _CLUSTERING,
                "2009.09687; Yunfan-Li/Contrastive-Clustering train.py, config.yaml",
                {"num_clusters": 10, "view_recipe": "simclr_cifar"},
            )
        },
        notes=(
            "The authors train on the splits train and test together, and measure on both.",
            _AT_ONE,
        ),
    ),
}
"""What `hf-ssl study reproduce` takes."""
