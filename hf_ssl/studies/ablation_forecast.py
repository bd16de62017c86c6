"""Ablations of BYOL's ingredients: a forecast of each run from its fresh network.

A forecast trains projector and predictor of a fresh network on features that it has at step 0
(`hf_ssl.dynamics.last_layers`), with all terms, without each of them, and with none.
"""

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.data.views.device import Normalize
from hf_ssl.dynamics.last_layers import Descent, LastLayers, Terms, descend
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.studies.ablation_grid import Cell
from hf_ssl.studies.ablation_theory import SHOWN, Start, collapse_of
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.batches import inputs_of, open_stream

ALL = "all"
"""Name of the forecast that has all terms."""
WITHOUT = {name: f"without {name}" for name in Terms().names}
VARIANTS = {
    ALL: Terms(),
    **{title: Terms.of([other for other in WITHOUT if other != name]) for name, title in WITHOUT.items()},
    "none": Terms.of([]),
}
"""Terms of each forecast by its name."""
LOOKS = 20
"""How often in a run the directions of z are looked at."""

_PAIRS = 8192
"""Pairs at most; a run that sees fewer is forecast from as many as it sees."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What becomes of z in a run.

    Args:
        expected: Collapse at its last step, by the limits of the measurement; `diverges` if weights become infinite.
        spread: See `Measured`.
        rank: Effective rank of the projections of a batch at the last step.
        deaths: By direction, largest first, of those that carry variance at the start (at least 1 % of the largest
            one's): the step from which on it carries less; None for those that survive.
    """

    expected: Literal["no", "dimensional", "complete", "diverges"]
    spread: float
    rank: float
    deaths: list[int | None]

    @property
    def survivors(self) -> int:
        """Directions that carry variance at start and end."""
        return self.deaths.count(None)


@torch.no_grad()
def measure_layers(
    model: SSLPreTrainedModel, source: Source, data: DataSettings, settings: TrainingSettings
) -> LastLayers:
    """Features of a fresh network under the recipe's views; BatchNorm statistics of `model` move.

    Args:
        model: A fresh BYOL, on the device that computes.
        source: The images.
        data: How they become views.
        settings: Batch size and seed.
    """
    projector = list(model.get_submodule("projector").children())
    start = {
        "hidden": copy.deepcopy(nn.Sequential(*projector[:-1])).cpu(),
        "last": copy.deepcopy(projector[-1]).cpu(),
        "predictor": copy.deepcopy(model.get_submodule("predictor")).cpu(),
    }
    seen: list[Tensor] = []
    hook = projector[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].float().cpu()))
    device = next(model.parameters()).device
    normalize = Normalize(model.config.image_mean, model.config.image_std, device, channels_last=False)
    stream = open_stream(model, source, data, settings, device)
    model.train()
    assert settings.num_steps is not None
    num_pairs = min(_PAIRS, settings.num_steps * settings.batch_size)
    try:
        for batch in itertools.islice(stream, math.ceil(num_pairs / settings.batch_size)):
            model(**inputs_of(batch, normalize, device))
    finally:
        hook.remove()
    # Each batch has gone through once for each view.
    pairs = [torch.stack(views, dim=1) for views in zip(seen[::2], seen[1::2], strict=True)]
    return LastLayers(features=torch.cat(pairs), **start)  # pyright: ignore[reportArgumentType]


def forecast(layers: LastLayers, how: Descent, start: Start, terms: Terms) -> Forecast:
    """Follow projector and predictor through a run, and judge z as a measurement is judged.

    Args:
        layers: Of the fresh network.
        how: Settings of the run.
        start: Of the fresh network.
        terms: What is taken into account.
    """
    looks = descend(layers, how, terms, LOOKS)
    last = looks[-1]
    curves = [(look.step, look.eigenvalues) for look in looks]
    if last.step < how.num_steps:
        return Forecast(expected="diverges", spread=last.spread, rank=last.rank, deaths=deaths_of(curves))
    return Forecast(
        expected=collapse_of(last.spread, last.rank, start.projection_rank),
        spread=last.spread,
        rank=last.rank,
        deaths=deaths_of(curves),
    )


def deaths_of(curves: Sequence[tuple[int, Sequence[float]]]) -> list[int | None]:
    """When each direction of z stops to carry variance; see `Forecast`.

    Args:
        curves: Step and eigenvalues, largest first, from the start on.
    """
    carry = [
        (step, sum(value >= SHOWN * values[0] for value in values) if values and values[0] > 0 else 0)
        for step, values in curves
    ]
    deaths: list[int | None] = []
    for place in range(carry[0][1]):
        alive = [number for number, (_, count) in enumerate(carry) if count > place]
        deaths.append(carry[alive[-1] + 1][0] if alive[-1] + 1 < len(carry) else None)
    return deaths


def descent_of(cell: Cell, settings: TrainingSettings, *, learning_rate: float, ema_momentum: float) -> Descent:
    """A cell's run in the terms of `Descent`.

    Args:
        cell: Its ingredients.
        settings: Of its training.
        learning_rate: Of the optimizer at this batch size.
        ema_momentum: Where the cell has a moving average.
    """
    assert settings.num_steps is not None
    return Descent(
        learning_rate=learning_rate,
        momentum=settings.optimizer_momentum,
        weight_decay=cell.weight_decay,
        predictor_lr_multiplier=cell.predictor_lr,
        ema_momentum=ema_momentum if cell.use_ema else None,
        stop_gradient=cell.stop_gradient,
        symmetrize=cell.symmetrize,
        decay_vectors=settings.decay_norm_and_bias,
        batch_size=settings.batch_size,
        num_steps=settings.num_steps,
        seed=settings.seed,
    )
