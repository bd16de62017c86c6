"""What the files of the study of augmentation hold, so that other files are refused by a sentence."""

from dataclasses import dataclass

from hf_ssl.errors import UserError
from hf_ssl.studies.augmentation_measures import CLAIMS
from hf_ssl.studies.predictions import Entry


@dataclass(frozen=True)
class MeasuredRun:
    """What was measured of a run; its result.json.

    Args:
        kept: R squared of each direction, as `retained` gives it; None where there was nothing to tell.
        loss: Training loss at the end.
        knn: Accuracy of k-NN; None without labels.
        effective_rank: Of the features of images.
        alignment: Of two views.
        uniformity: Of the features of images.
    """

    kept: list[float | None]
    loss: float
    knn: float | None
    effective_rank: float
    alignment: float
    uniformity: float

    @property
    def directions(self) -> int:
        """Directions that were measured."""
        return len(self.kept)


@dataclass(frozen=True)
class Said:
    """The prediction of a recipe; see `predict`."""

    lost_by_theorem: int
    dominated: int
    shares: list[float]


@dataclass(frozen=True)
class Spectra:
    """Variance along the directions; see `spectra_of`."""

    images: list[float]
    between: list[float]
    within: list[float]


@dataclass(frozen=True)
class Layer:
    """A linear layer beside the theorem; see `linear_layer`. None where training diverged or nothing varies."""

    negative: int
    shrunk: int | None
    agree: float | None
    rank_correlation: float | None


@dataclass(frozen=True)
class Layers:
    """Linear layers of a recipe that compare an image with a view of it, and two views."""

    image_and_view: Layer
    two_views: Layer


@dataclass(frozen=True)
class SaidEntry(Entry):
    """What predictions.json says of a run."""

    directions: int
    variances: list[float]
    prediction: Said
    spectra: Spectra
    linear_layer: Layers

    def __post_init__(self) -> None:
        lists = (
            self.variances,
            self.prediction.shares,
            self.spectra.images,
            self.spectra.between,
            self.spectra.within,
        )
        if {len(values) for values in lists} != {self.directions}:
            raise UserError(f"every list must have a number for each of its {self.directions} directions")


@dataclass(frozen=True)
class Score:
    """Prediction and loss of a recipe; see `scores_of`."""

    share_and_loss: float | None
    variance_and_loss: float | None
    mean_loss: float | None


@dataclass(frozen=True)
class Scores:
    """Those of all recipes; see `scores_of`."""

    by_recipe: dict[str, Score]
    differences: dict[str, float | None]
    claims: dict[str, bool]


@dataclass(frozen=True)
class SeedResults:
    """What is known of the runs of a seed."""

    seed: int
    directions: int
    variances: list[float]
    predictions: dict[str, Said]
    spectra: dict[str, Spectra]
    linear_layer: dict[str, Layers]
    runs: dict[str, MeasuredRun]
    scores: Scores

    def __post_init__(self) -> None:
        recipes = set(self.predictions)
        if not recipes or any(set(part) != recipes for part in (self.spectra, self.runs, self.scores.by_recipe)):
            raise UserError("`predictions`, `spectra`, `runs` and `scores` must be of the same recipes")
        if set(self.linear_layer) != recipes or set(self.scores.claims) - set(CLAIMS):
            raise UserError("`linear_layer` must be of the recipes of `predictions`, and `claims` those of the study")
        lists = [self.variances, *(one.shares for one in self.predictions.values())]
        lists += [one.kept for one in self.runs.values()]
        lists += [getattr(one, name) for one in self.spectra.values() for name in ("images", "between", "within")]
        if not self.directions or any(len(values) != self.directions for values in lists):
            raise UserError(f"every list of a seed must have a number for each of its {self.directions} directions")


@dataclass(frozen=True)
class AugmentationResults:
    """What augmentation.json holds."""

    seeds: list[SeedResults]

    def __post_init__(self) -> None:
        if not self.seeds:
            raise UserError("`seeds` is empty")
