"""MoCHi's study of its negatives: what labels would change, measured beside supervised training.

Kalantidis et al., 2020 (https://arxiv.org/abs/2010.01028): an oracle leaves out the negatives of the query's class;
alignment and uniformity show where each way of training ends. The paper's numbers, and whether its alignment is that
of views or of classes, are UNVERIFIED: both are measured here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hf_ssl.data.sources.open import Source
from hf_ssl.diagnostics import alignment, class_alignment, uniformity
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import Encoder
from hf_ssl.evaluation.features import extract_features
from hf_ssl.evaluation.protocols import measure, with_classes_of
from hf_ssl.evaluation.view_features import extract_view_features
from hf_ssl.figures.metrics_log import curve_of, read_metrics

_WITHOUT_MIXTURES = {"num_mixed_negatives": 0, "num_mixed_queries": 0}
CONTRASTIVE: dict[str, dict[str, Any]] = {
    "moco_v2": {"class_oracle": "measure", **_WITHOUT_MIXTURES},
    "mochi": {"class_oracle": "measure"},
    "moco_v2-oracle": {"class_oracle": "mask", **_WITHOUT_MIXTURES},
    "mochi-oracle": {"class_oracle": "mask"},
}
"""What MoCHi's settings become in each contrastive method of the study; without mixtures it is MoCo version 2."""

SUPERVISED = "supervised"
FRESH = "fresh"
METHODS = (*CONTRASTIVE, SUPERVISED)
"""Methods that are trained; the fresh encoder is measured beside them."""

_PAIRED_IMAGES = 2048  # of view alignment and uniformity: pairs of more take seconds and say the same
_TENTHS = 10  # parts of a log
_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run came to; h are representations and z projections, of held-out images, as unit vectors.

    Args:
        linear: Accuracy of a linear probe on h, in [0, 1].
        knn: Accuracy of weighted k-NN on h, in [0, 1].
        view_alignment_h: Mean squared distance of two views of an image, in [0, 4]; lower is closer together.
        class_alignment_h: Mean squared distance of two images of a class, as they are, in [0, 4].
        uniformity_h: Log potential of pairs of images, as they are, in [-8, 0]; lower is more even.
        view_alignment_z: As of h; None without a projector.
        uniformity_z: As of h; None without a projector.
        false_negative_share: Share of the query's class among its hardest keys, mean over the log of the last tenth of
            the run, in [0, 1]; None without a queue, as are all that follow.
        false_negative_share_early: The same over the second tenth; in the first the queue still fills.
        contrast_accuracy: Share of queries whose positive scores above all keys that are not left out, last tenth.
        contrast_accuracy_with_mixed: The same above the mixtures too; None without mixtures.
    """

    linear: float
    knn: float
    view_alignment_h: float
    class_alignment_h: float
    uniformity_h: float
    view_alignment_z: float | None = None
    uniformity_z: float | None = None
    false_negative_share: float | None = None
    false_negative_share_early: float | None = None
    contrast_accuracy: float | None = None
    contrast_accuracy_with_mixed: float | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run.

    Args:
        method: One of `METHODS`, or `FRESH`.
        seed: Its seed.
        measured: What came.
    """

    method: str
    seed: int
    measured: Measured

    def record(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return asdict(self)


def measure_encoder(
    encoder: Encoder,
    dim: int,
    train: Source,
    test: Source,
    *,
    view_recipe: str,
    view_settings: Mapping[str, Any] | None,
    image_size: int,
    batch_size: int,
    num_workers: int,
    max_images: int,
    description: str | None = None,
) -> dict[str, float]:
    """The numbers of `Measured` that an encoder gives, by name.

    Args:
        encoder: Its features are h, followed by z if there are projections; it is left in evaluation mode.
        dim: Width of h.
        train: Labelled images from which probe and k-NN learn.
        test: Labelled images that were not trained on, on which everything is measured.
        view_recipe: Augmentation of the views.
        view_settings: Single parameters of it that were changed.
        image_size: Height and width of a view, in pixels.
        batch_size: Images in a forward pass.
        num_workers: Worker processes that decode.
        max_images: Images of either split at most.
        description: Text of the progress bars; None for no bars.

    Raises:
        UserError: If there are too few labelled images for a probe or a pair.
    """
    label = next(iter(train.labels))
    encoder.module.eval()
    learnt, held_out = (
        extract_features(encoder, each, batch_size, num_workers, max_images=max_images, description=description)
        for each in (train, test)
    )
    held_out = with_classes_of(held_out, test.labels, train.labels)
    views = extract_view_features(
        encoder,
        test,
        view_recipe,
        2,
        image_size=image_size,
        batch_size=batch_size,
        num_workers=num_workers,
        max_images=min(max_images, _PAIRED_IMAGES),
        view_settings=view_settings,
        description=description,
    )
    h, z = held_out.features[:, :dim], held_out.features[:, dim:]
    learnt.features, held_out.features = learnt.features[:, :dim], h
    linear, knn = measure(learnt, held_out, [label], ["linear", "knn"])
    numbers = {
        "linear": linear.value,
        "knn": knn.value,
        "view_alignment_h": float(alignment(views[:, 0, :dim], views[:, 1, :dim])),
        "class_alignment_h": float(class_alignment(h, held_out.labels[label])),
        "uniformity_h": float(uniformity(h[:_PAIRED_IMAGES])),
    }
    if z.shape[1]:
        numbers["view_alignment_z"] = float(alignment(views[:, 0, dim:], views[:, 1, dim:]))
        numbers["uniformity_z"] = float(uniformity(z[:_PAIRED_IMAGES]))
    return numbers


def ends_of_log(metrics_path: Path, *, with_mixtures: bool) -> dict[str, float]:
    """The numbers of `Measured` that the log of a contrastive run gives, by name.

    Args:
        metrics_path: Its `metrics.jsonl`, in which each line is of one batch.
        with_mixtures: Whether the run has mixtures.
    """
    lines = read_metrics(metrics_path)
    numbers = {}
    for name in ("false_negative_share", "contrast_accuracy", *(["contrast_accuracy_with_mixed"] * with_mixtures)):
        _, values = curve_of(lines, name)
        count = max(1, len(values) // _TENTHS)
        numbers[name] = float(np.mean(values[-count:]))
        if name == "false_negative_share":
            numbers[f"{name}_early"] = float(np.mean(values[count : 2 * count] or values))
    return numbers


def share_of_own_class(source: Source) -> float:
    """Probability that two labelled images, drawn with replacement, are of the same class, in (0, 1].

    It is what the share of false negatives would be among keys that are drawn at random: the sum of the squared shares
    of the classes in the split, one over their number where they are equally large. Reads all labels.

    Raises:
        UserError: If no image has a label.
    """
    column = next(iter(source.labels))
    batches = source.records.select_columns([column]).iter(_ROWS)
    labels = [label for batch in batches for label in batch[column] if label is not None and label >= 0]
    if not labels:
        raise UserError(f"No image of split `{source.split}` of `{source.name}` has a label in `{column}`.")
    return float(np.square(np.bincount(labels) / len(labels)).sum())


AnyRun = TypeVar("AnyRun", bound=Run)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and whether the runs show it.

    Args:
        text: The claim.
        holds: Whether it holds, of each seed that has what it takes.
    """

    text: str
    holds: list[bool]

    def __str__(self) -> str:
        """The claim and in how many seeds it holds."""
        return f"{self.text}: in {sum(self.holds)} of {len(self.holds)} seed{'s' if len(self.holds) > 1 else ''}"


# Each with the methods it compares; its test gets the chance level and what those came to.
_CLAIMS: list[tuple[str, tuple[str, ...], Callable[..., bool]]] = [
    (
        "the oracle raises MoCo v2's linear accuracy",
        ("moco_v2", "moco_v2-oracle"),
        lambda _, moco, oracle: oracle.linear > moco.linear,
    ),
    (
        "the oracle raises MoCHi's linear accuracy",
        ("mochi", "mochi-oracle"),
        lambda _, mochi, oracle: oracle.linear > mochi.linear,
    ),
    (
        "MoCHi's linear accuracy is above MoCo v2's",
        ("moco_v2", "mochi"),
        lambda _, moco, mochi: mochi.linear > moco.linear,
    ),
    (
        "supervised training has the highest linear accuracy",
        METHODS,
        lambda _, *all_of_them: all_of_them[-1].linear > max(each.linear for each in all_of_them[:-1]),
    ),
    (
        "MoCo v2's hardest keys are of the query's class more often than the queue's keys",
        ("moco_v2",),
        lambda chance, moco: moco.false_negative_share > chance,
    ),
    (
        "that share rises during MoCo v2's training",
        ("moco_v2",),
        lambda _, moco: moco.false_negative_share > moco.false_negative_share_early,
    ),
    (
        "with mixtures the positive is harder to pick than in MoCo v2",
        ("moco_v2", "mochi"),
        lambda _, moco, mochi: mochi.contrast_accuracy_with_mixed < moco.contrast_accuracy,
    ),
    (
        "MoCHi spreads projections more evenly than MoCo v2",
        ("moco_v2", "mochi"),
        lambda _, moco, mochi: mochi.uniformity_z < moco.uniformity_z,
    ),
    (
        "MoCHi spreads representations more evenly than MoCo v2",
        ("moco_v2", "mochi"),
        lambda _, moco, mochi: mochi.uniformity_h < moco.uniformity_h,
    ),
    (
        "the oracle brings the representations of a class closer together",
        ("moco_v2", "moco_v2-oracle"),
        lambda _, moco, oracle: oracle.class_alignment_h < moco.class_alignment_h,
    ),
    (
        "MoCHi's representations are more even than supervised ones",
        ("mochi", SUPERVISED),
        lambda _, mochi, supervised: mochi.uniformity_h < supervised.uniformity_h,
    ),
    (
        "MoCHi's classes lie less close together than supervised ones",
        ("mochi", SUPERVISED),
        lambda _, mochi, supervised: mochi.class_alignment_h > supervised.class_alignment_h,
    ),
]


def claims_of(runs: Iterable[Run], chance: float) -> list[Claim]:
    """Which claims about negatives, alignment and uniformity (as the paper is quoted, UNVERIFIED) the runs show.

    Args:
        runs: Finished runs; a claim whose methods are missing is left out.
        chance: From `share_of_own_class`.
    """
    by_seed: dict[int, dict[str, Measured]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, {})[run.method] = run.measured
    claims = []
    for text, needed, test in _CLAIMS:
        seeds = [found for found in by_seed.values() if all(method in found for method in needed)]
        if seeds:
            claims.append(Claim(text, [test(chance, *(found[method] for method in needed)) for found in seeds]))
    return claims


def by_method(runs: Iterable[AnyRun]) -> dict[str, list[AnyRun]]:
    """Runs of the same method together, in the order in which methods come first."""
    together: dict[str, list[AnyRun]] = {}
    for run in runs:
        together.setdefault(run.method, []).append(run)
    return together


def values_of(runs: Sequence[Run], name: str) -> list[float]:
    """A number of `Measured` of each run that has it."""
    values = [getattr(run.measured, name) for run in runs]
    return [value for value in values if value is not None]
