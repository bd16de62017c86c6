"""The settings of `hf-ssl evaluate`, and which of them go together."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from hf_ssl.commands.encoder_settings import ReadingSettings
from hf_ssl.data.settings import OF_DATA
from hf_ssl.errors import UserError, near_name
from hf_ssl.evaluation.comparison import BASELINES
from hf_ssl.evaluation.protocols import AUGMENTED, PROTOCOLS, check_protocol
from hf_ssl.settings import check_least, checked, refuse_unused

_USUAL = ("knn", "linear")  # protocols
_OF_VERIFY = {"verify", "encoder", "dataset", "device", "batch_size", "num_workers", *OF_DATA}
_OF_VERIFY -= {"label_column"}


@checked
class EvaluationSettings(ReadingSettings):
    """What is scored, on what and how.

    Args:
        dataset: Like `--dataset` of pretraining: `shapes`, `digits`, a folder, a file, an address or a Hub id.
        encoder: Folder, repository on the Hub or timm name; `random:ENCODER` has fresh weights.
        protocols: How to score it: any of knn, linear, linear-sgd, linear-byol, linear-luckmatters and clustering;
            knn and linear if not given.
        split: Split that is scored.
        train_split: Split that the labels are learnt from.
        label_column: Label column, or `all`; the main one, found by its type or name, if not given.
        baselines: What to compare with: `raw` (pixels) and `random` (the same architecture, not trained).
        k: Neighbours of k-NN, at least 1.
        temperature: Temperature of k-NN, positive.
        augmented_passes: Train linear-sgd and linear-byol on random crops and flips, from features of so many passes
            over the training split. Costs so many times the time, and twice as many bytes of memory for each image
            and feature. Exact for 100 (linear-byol: 80); fewer are used again. 0: no augmentation.
        max_images: Use a sample of so many images from all over each split; all if not given.
        bf16: Compute features in bfloat16, on CUDA.
        output: Results file to write, instead of the files of the encoder's folder. Its figure lies beside it.
        card: Update results, figures and model card of a local encoder, which are published with it. If not given:
            yes for `shapes`, `digits`, data sets on the Hub and the one that the encoder was trained on, no for other
            images on this machine.
        gallery: Show images of the split beside their nearest neighbours on the model card, which is published with
            the encoder. If not given: only those of shapes and digits.
        show_loading: End with the lines that load a local encoder.
        verify: Write nothing: measure again what the results beside the encoder say, each by the settings that stand
            there.
    """

    dataset: Any = None
    encoder: str
    protocols: list[str] = field(default_factory=list)
    split: str = "test"
    train_split: str = "train"
    baselines: list[str] = field(default_factory=list)
    k: int = 200
    temperature: float = 0.1
    augmented_passes: int = 0
    max_images: int | None = None
    bf16: bool = False
    output: Path | None = None
    card: bool | None = None
    gallery: bool | None = None
    show_loading: bool = True
    verify: bool = False

    def __post_init__(self) -> None:
        # On the command line `--baselines raw random knn` takes every word that follows it.
        protocols = [*self.protocols, *(word for word in self.baselines if word in PROTOCOLS)]
        self.protocols = list(dict.fromkeys(protocols or _USUAL))
        self.baselines = list(dict.fromkeys(word for word in self.baselines if word not in PROTOCOLS))

    def validate_numbers(self) -> None:
        """Check the numbers."""
        self.check_reading()
        if self.dataset is None and not self.verify:
            raise UserError("`dataset` is needed: labelled images to score on, such as `--dataset uoft-cs/cifar10`.")
        check_least(self, k=1, max_images=1)
        if self.temperature <= 0:
            raise UserError(f"`temperature` must be positive, got {self.temperature}.")

    def validate_protocols(self) -> None:
        """Check protocols, baselines and splits, which depend on each other."""
        for protocol in self.protocols:
            check_protocol(protocol)
        for baseline in self.baselines:
            if baseline not in BASELINES:
                hint = near_name(baseline, [*BASELINES, *PROTOCOLS])
                raise UserError(f"Unknown baseline `{baseline}`. Known: {', '.join(BASELINES)}.{hint}")
        if self.split == self.train_split and not self.only_clusters():
            raise UserError(
                f"`split` and `train_split` are both `{self.split}`: score an encoder on other images than those that "
                "its probe learns from. Without a second labelled split, `hf-ssl analyze` looks at the features."
            )

    def validate_augmented_passes(self) -> None:
        """Check that the passes are used."""
        number = self.augmented_passes
        check_least(self, augmented_passes=0)
        epochs = {protocol: AUGMENTED[protocol] for protocol in self.protocols if protocol in AUGMENTED}
        if number and not epochs:
            raise UserError(
                f"`augmented_passes` is for {' and '.join(AUGMENTED)}, not for {', '.join(self.protocols)}. "
                "Add one of them, or leave it out."
            )
        if number and number > max(epochs.values()):
            longest = max(epochs, key=lambda protocol: epochs[protocol])
            raise UserError(
                f"`augmented_passes` must be at most {epochs[longest]}, the epochs of {longest}, got {number}: no "
                "epoch would use the others."
            )

    def validate_card(self) -> None:
        """Check that what is asked for the card can go there."""
        if self.card and self.output:
            raise UserError("`card` writes into the encoder's folder and `output` elsewhere. Leave one of them out.")
        if self.gallery and (self.output or self.card is False):
            raise UserError("`gallery` shows images on the model card, which stays as it is here. Leave it out.")

    @classmethod
    def check_given(cls, given: Mapping[str, Any]) -> None:
        """Refuse what verifying does not use: each number has its own settings."""
        if given.get("verify"):
            reason = "`verify` measures all numbers of the results, each by the settings that stand beside it"
            refuse_unused(cls, given, _OF_VERIFY, reason)

    def only_clusters(self) -> bool:
        """Whether nothing is learnt from labels, so that the training split is not needed."""
        return self.protocols == ["clustering"]
