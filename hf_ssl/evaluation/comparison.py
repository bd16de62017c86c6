"""An encoder beside its baselines on the labels of a data set: what the command `evaluate` measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import Encoder
from hf_ssl.evaluation.features import Features, extract_augmented_features, extract_features
from hf_ssl.evaluation.protocols import Measurement, measure, most_frequent_class_accuracy, with_classes_of

BASELINES = {"raw": "raw pixels", "random": "random encoder"}
"""Encoders to compare with, as `raw:ENCODER` names them, and what tables call them."""


@dataclass(frozen=True)
class Comparison:
    """Numbers of an encoder and of its baselines on the same images.

    Args:
        measurements: Title of each encoder -> its numbers, in the same order for all; the encoder itself is last.
        chance: Label column -> accuracy of always answering the most frequent class, in [0, 1].
        clusters: Probability of each cluster of the encoder's own method, (test images, clusters), with the rows of
            the images; None unless they were compared with the labels.
        num_train_images: Usable images of the training split.
    """

    measurements: dict[str, list[Measurement]]
    chance: dict[str, float]
    clusters: Features | None
    num_train_images: int

    @property
    def own(self) -> list[Measurement]:
        """Numbers of the encoder itself."""
        return list(self.measurements.values())[-1]


class _Assign(nn.Module):
    """A method that has clusters of its own, as an encoder whose features are their probabilities."""

    def __init__(self, method: nn.Module):
        super().__init__()
        self.method = method

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.method.assign(pixel_values)  # pyright: ignore[reportCallIssue]


def compare(
    encoders: Mapping[str, Encoder],
    train_source: Source,
    test_source: Source,
    labels: Sequence[str],
    protocols: Sequence[str],
    *,
    k: int = 200,
    temperature: float = 0.1,
    seed: int = 0,
    augmented_passes: int = 0,
    method: nn.Module | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    max_images: int | None = None,
    bf16: bool = False,
) -> Comparison:
    """Measure some encoders in the same way, with progress bars.

    Args:
        encoders: By their titles; the last one is the one that the comparison is about.
        train_source: The split whose labels are learnt from; the same object as `test_source` if none are.
        test_source: The split that is scored.
        labels: Label columns that both splits have.
        protocols: Names in `PROTOCOLS`.
        k: Neighbours of k-NN, at least 1.
        temperature: Temperature of k-NN, positive.
        seed: Seed of the probes, of k-means and of the crops of augmented passes, at least 0.
        augmented_passes: Passes over the training split for the protocols in `AUGMENTED`, at least 0.
        method: Method of the last encoder whose `assign` gives cluster probabilities; None: k-means finds clusters.
        batch_size: Images in a forward pass.
        num_workers: Worker processes that decode.
        max_images: Size of the sample of each split; None for all images.
        bf16: Compute in bfloat16; CUDA only.

    Raises:
        UserError: As extraction and protocols do.
    """
    reading: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
    reading |= {"max_images": max_images, "bf16": bf16}
    measurements: dict[str, list[Measurement]] = {}
    chance: dict[str, float] = {}
    clusters, num_train_images = None, 0
    for place, (title, encoder) in enumerate(encoders.items()):
        augmented = None
        if augmented_passes:  # first: what may be too much for the memory
            shown = f"{title}, {train_source.split}, {augmented_passes} augmented passes"
            augmented = extract_augmented_features(
                encoder, train_source, augmented_passes, seed=seed, description=shown, **reading
            )
        train, test = _features_of_splits(encoder, title, train_source, test_source, reading)
        is_own = place == len(encoders) - 1
        if method is not None and is_own:
            assigning = Encoder(_Assign(method), encoder.transform, method.config.num_clusters, f"clusters of {title}")  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
            clusters = extract_features(
                assigning, test_source, description=f"clusters, {test_source.split}", **reading
            )
        measured = measure(
            train,
            test,
            labels,
            protocols,
            k=k,
            temperature=temperature,
            seed=seed,
            probabilities=clusters.features if clusters is not None else None,
            augmented=augmented,
        )
        # Of the features and not of a protocol, but every number depends on it.
        measurements[title] = [replace(one, settings={**one.settings, "bf16": bf16}) for one in measured]
        num_train_images = len(train.row_ids)
        chance = {label: most_frequent_class_accuracy(train, test, label) for label in labels}
    return Comparison(measurements, chance, clusters, num_train_images)


def _features_of_splits(
    encoder: Encoder, title: str, train_source: Source, test_source: Source, reading: Mapping[str, Any]
) -> tuple[Features, Features]:
    """Features of both splits, which are one object where nothing is learnt from labels."""
    test = extract_features(encoder, test_source, description=f"{title}, {test_source.split}", **reading)
    if train_source is test_source:
        return test, test
    train = extract_features(encoder, train_source, description=f"{title}, {train_source.split}", **reading)
    return train, with_classes_of(test, test_source.labels, train_source.labels)


def shared_labels(train_source: Source, test_source: Source, label_column: str | None) -> list[str]:
    """The label columns to measure.

    Args:
        train_source: The split whose labels are learnt from.
        test_source: The split that is scored.
        label_column: A column, `all` for every one that both splits have, or None for the main one.

    Raises:
        UserError: If a split has no labels or the splits share none.
    """
    for source in (train_source, test_source):
        if not source.labels:
            raise UserError(
                f"Evaluation needs labels, but split `{source.split}` of `{source.name}` has no label column. "
                "Give `label_column`, or use `hf-ssl extract`, which needs none."
            )
    labels = [label for label in test_source.labels if label in train_source.labels]
    named = None if label_column == "all" else label_column
    if not labels or (named is not None and named not in labels):
        raise UserError(
            f"The splits share no label column: `{train_source.split}` has {', '.join(train_source.labels)}, "
            f"`{test_source.split}` has {', '.join(test_source.labels)}. Choose other splits."
        )
    if label_column == "all":
        return labels
    return [named] if named else labels[:1]
