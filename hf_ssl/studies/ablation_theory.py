"""Ablations of BYOL's ingredients: what theory expects of each cell of a grid, and whether a run collapsed.

The theory is that of linear networks (Tian et al., 2021, arXiv 2102.06810). It takes each cell's own settings, and
starts where the fresh network starts.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.data.views.device import Normalize
from hf_ssl.diagnostics import feature_std
from hf_ssl.diagnostics.predictor import eigenbasis, predictor_values
from hf_ssl.dynamics.prediction import TrainingSetting, predict_training
from hf_ssl.errors import UserError
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.studies.ablation_grid import Cell
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.batches import inputs_of, open_stream
from hf_ssl.training.watch.collapse import LEAST_RANK_RATIO, LEAST_SPREAD, least_rank
from hf_ssl.training.watch.diagnosis import diagnose, linear_predictor

Collapse = Literal["no", "dimensional", "complete"]
Expected = Literal["no", "dimensional", "complete", "later", "open"]

SHOWN = 1e-2
"""Eigenvalues below this fraction of the largest are noise of the images that they are measured on."""
# The loss 2 - 2 cos of both directions is four times the |p - z|^2 / 2 of the theory, for unit vectors.
_LOSS_SCALE = 4.0
_BATCHES_AT_START = 8
_LEFT = 0.01  # of the variance at the start: a collapse that leaves more has not happened yet


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a fresh network makes of augmented images, in the terms of the theory.

    Args:
        noise: Variance sigma^2 that augmentation adds to the projections, relative to what two views share.
        correlation: Eigenvalues s of F, the covariance of the projections of two views of an image, largest first.
            The mean over images is taken off: what all images share says nothing about collapse.
        predictor: What W_p, or its linearisation, does along each eigenvector of F; ones without a predictor.
        spread: See `Measured`.
        projection_rank: See `Measured`.
        representation_rank: See `Measured`.
        eigenvalues: Of the covariance of the projections of one batch, largest first; empty in older records.
    """

    noise: float
    correlation: list[float]
    predictor: list[float]
    spread: float
    projection_rank: float
    representation_rank: float
    eigenvalues: list[float] = field(default_factory=list)


@torch.no_grad()
def measure_start(model: SSLPreTrainedModel, source: Source, data: DataSettings, settings: TrainingSettings) -> Start:
    """Measure a fresh network on some batches of views; BatchNorm statistics of `model` move.

    Args:
        model: The method, on the device that computes; with `projector`, and `predictor` if it has one.
        source: The images.
        data: How they become views.
        settings: Batch size and seed.

    Raises:
        UserError: If the two views of an image have nothing in common.
    """
    device = next(model.parameters()).device
    normalize = Normalize(model.config.image_mean, model.config.image_std, device, channels_last=False)
    stream = open_stream(model, source, data, settings, device)
    model.train()
    outputs = [model(**inputs_of(batch, normalize, device)) for batch in itertools.islice(stream, _BATCHES_AT_START)]
    noise, correlation = _two_views(torch.cat([output.projections for output in outputs]))
    eigenvalues, eigenvectors = eigenbasis(correlation)
    shown = eigenvalues >= SHOWN * eigenvalues[0]
    weight = linear_predictor(model, outputs[-1].projections[:, 0])
    along = torch.ones_like(eigenvalues) if weight is None else predictor_values(eigenvectors, weight)
    found = diagnose(model, outputs[-1])  # of one batch, as at the end of a run: ranks depend on its size
    return Start(
        noise=noise,
        correlation=eigenvalues[shown].tolist(),
        predictor=along[shown].tolist(),
        spread=_spread(outputs[-1].projections[:, 0]),
        projection_rank=found.figures["projection_effective_rank"],
        representation_rank=found.figures["representation_effective_rank"],
        eigenvalues=found.curves["projection"],
    )


def _two_views(projections: Tensor) -> tuple[float, Tensor]:
    """Noise sigma^2 and covariance of the two views, from projections (images, 2, dim)."""
    z = projections.double()
    first, second = (z - z.mean(dim=(0, 1))).unbind(dim=1)
    covariance = first.T @ second / len(z)
    shared = float(covariance.trace())
    added = float((first - second).square().sum()) / (2 * len(z))
    if not shared > 0:
        raise UserError(
            "The two views of an image have projections that do not correlate, so the theory has no signal to start "
            "from. Give a weaker `view_recipe`."
        )
    return added / shared, (covariance + covariance.T) / 2


def _spread(projections: Tensor) -> float:
    return float(feature_std(projections)) * projections.shape[-1] ** 0.5


@dataclass(frozen=True, kw_only=True)
class Theory:
    """What theory expects of a cell.

    Args:
        expected: Collapse that it expects: `no`, `dimensional` (fewer than `LEAST_RANK_RATIO` of the modes survive),
            `complete` (none does), `later` (none does, but more than 1 % of the variance is left at the end of the
            run), or `open` (a symmetric predictor whose modes all outgrow their alignment, after which theory ends).
        num_modes: Modes that were followed.
        num_survivors: Modes that keep their variance forever.
        variance_left: Variance at the end of the run as a fraction of that at the start.
        critical_weight_decay: Weight decay in the optimizer above which every start collapses; 0 where any does.
        reason: Why, in words.
    """

    expected: Expected
    num_modes: int
    num_survivors: int
    variance_left: float
    critical_weight_decay: float
    reason: str


def theory_of(
    cell: Cell, start: Start, *, learning_rate: float, momentum: float, ema_momentum: float, num_steps: int
) -> Theory:
    """Follow the modes of a fresh network through a run with the settings of a cell.

    Args:
        cell: The settings.
        start: Of the cell's network.
        learning_rate: Of the optimizer, positive.
        momentum: Of SGD, in [0, 1).
        ema_momentum: Fraction of the target that a step keeps, in [0, 1), where the cell has a moving average.
        num_steps: Optimizer steps of the run, at least 1.
    """
    form = "none" if cell.predictor == "none" else "symmetric" if cell.symmetrize else "learned"
    setting = TrainingSetting(
        learning_rate=_LOSS_SCALE * learning_rate / (1 - momentum),
        predictor_lr_multiplier=cell.predictor_lr,
        weight_decay=cell.weight_decay / _LOSS_SCALE,
        ema_momentum=ema_momentum if cell.use_ema else None,
        stop_gradient=cell.stop_gradient,
        predictor=form,
        noise=start.noise,
        predictor_scale=start.predictor,
        encoder_scale=[value**0.5 for value in start.correlation],
    )
    prediction = predict_training(setting, num_steps)
    left = float(prediction.s_after.sum()) / sum(start.correlation)
    safe = prediction.survives
    if cell.symmetrize:
        safe = safe & prediction.stays_aligned
    num_modes, num_safe = len(safe), int(safe.sum())
    expected: Expected = "no"
    if prediction.collapses:
        expected = "complete" if left < _LEFT else "later"
    elif num_safe == 0:
        expected = "open"
    elif num_safe < LEAST_RANK_RATIO * num_modes:
        expected = "dimensional"
    return Theory(
        expected=expected,
        num_modes=num_modes,
        num_survivors=int(prediction.survives.sum()),
        variance_left=left,
        critical_weight_decay=_LOSS_SCALE * float(prediction.critical_weight_decay.max()),
        reason=prediction.reason,
    )


@dataclass(frozen=True, kw_only=True)
class Look:
    """The projections at one step of a run.

    Args:
        step: Optimizer steps done.
        eigenvalues: The four largest of their covariance.
    """

    step: int
    eigenvalues: list[float]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run of a cell came to.

    Args:
        knn: k-NN accuracy of the encoder on images that it was not trained on, in [0, 1]; None without labels.
        knn_random: The same of the fresh encoder.
        loss: Of the last steps.
        spread: Standard deviation of the normalised projections times the root of their dimension, in [0, 1].
        projection_rank: Effective rank of the projections of the last batch.
        representation_rank: Effective rank of the representations of the last batch.
        seconds: Time of training.
        deaths: When each direction of the projections stops to carry variance; see `Forecast`. None in older records.
        looks: The projections during the run. Empty in older records.
    """

    knn: float | None
    knn_random: float | None
    loss: float
    spread: float
    projection_rank: float
    representation_rank: float
    seconds: float
    deaths: list[int | None] | None = None
    looks: list[Look] = field(default_factory=list)


def collapse_of(spread: float, projection_rank: float, rank_at_start: float) -> Collapse:
    """Whether a run collapsed, by the limits of the alarm, but with the rank of the projections.

    The theory is about the projections; the alarm watches the representations, which are what a run is for.

    Args:
        spread: See `Measured`.
        projection_rank: See `Measured`.
        rank_at_start: The same of the fresh network, on as many images.
    """
    if spread < LEAST_SPREAD:
        return "complete"
    if projection_rank < least_rank(rank_at_start):
        return "dimensional"
    return "no"


def agrees(expected: Expected, found: Collapse) -> bool | None:
    """Whether theory and measurement agree that a run collapses, of either kind; None where theory leaves it open."""
    if expected == "open":
        return None
    return (expected in ("complete", "dimensional")) == (found != "no")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one cell, or with `theory_only` what would be one.

    Args:
        cell: Its settings.
        seed: Its seed.
        start: Of the fresh network.
        theory: What is expected.
        measured: What came; None with theory alone.
    """

    cell: Cell
    seed: int
    start: Start
    theory: Theory
    measured: Measured | None = None

    @property
    def collapse(self) -> Collapse | None:
        """What was found; None with theory alone."""
        if self.measured is None:
            return None
        return collapse_of(self.measured.spread, self.measured.projection_rank, self.start.projection_rank)

    @property
    def agrees(self) -> bool | None:
        """Whether theory and measurement agree; None where one of them is missing or open."""
        return None if self.collapse is None else agrees(self.theory.expected, self.collapse)

    def record(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {**asdict(self), "title": self.cell.title, "collapse": self.collapse, "agrees": self.agrees}


def by_cell(runs: Iterable[Run]) -> Iterator[list[Run]]:
    """Runs of the same cell together, in the order in which cells come first."""
    together: dict[Cell, list[Run]] = {}
    for run in runs:
        together.setdefault(run.cell, []).append(run)
    yield from together.values()
