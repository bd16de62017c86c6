"""What `diagnostics_every` measures of a run: spectra, alignment, uniformity, predictor beside correlation.

Everything comes from the batch in hand, so that it costs no forward pass of the encoder: numbers are those of a few
hundred images and compare within a run. Processes add up their moments, so several are exactly one with all images.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor, nn

from hf_ssl.diagnostics.alignment import alignment, uniformity
from hf_ssl.diagnostics.predictor import describe_predictor, mean_jacobian
from hf_ssl.diagnostics.spectrum import entropy_rank, ne_sum, participation_ratio
from hf_ssl.distributed import gather, mean_over_processes, rank, world_size
from hf_ssl.figures.diagnostics import diagnosis_curves
from hf_ssl.methods.base import SSLOutput, SSLPreTrainedModel
from hf_ssl.modules.evaluation_mode import evaluation_mode
from hf_ssl.training.plan import Plan
from hf_ssl.training.watch.base import Moment, Watch
from hf_ssl.training.watch.log import MetricsLog

_STEPS_BETWEEN = 500
_MOST_DIAGNOSES = 100  # of a long run
_DIGITS = 5  # of the curves: more cannot be seen
_MOST_POINTS = 256  # of a curve: wide spectra would make the file of a long run large
_RANK_ME_EPSILON = 1e-7  # the paper's
_ROUNDING = 1e-12  # of the mean square: the variance that rounding leaves in features that are all equal
_JACOBIAN_IMAGES = 32  # more change the mean by less than a step of training does
_UNIFORMITY_IMAGES = 1024  # pairs of more cost seconds and say the same


def steps_between_diagnoses(every: int | None, num_steps: int) -> int:
    """The setting `diagnostics_every`, or what is taken without it: less than a hundredth of the time of a run."""
    return max(_STEPS_BETWEEN, num_steps // _MOST_DIAGNOSES) if every is None else every


@dataclass
class Diagnosis:
    """The numbers of one step, and the curves behind them.

    Args:
        figures: Numbers by the name that `metrics.jsonl` gives them.
        curves: Values by rank, largest eigenvalue first: `projection` and `representation` are eigenvalues of the
            covariance, without those that must be zero because the batch has fewer views than dimensions;
            `correlation`, `predictor` and `cosine` those of F, what W_p does along its eigenvectors, and the cosine of
            each with its image.
        ranks: Rank of each value, from 1, for curves that leave some out; by the name of the curve.
    """

    figures: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    ranks: dict[str, list[int]] = field(default_factory=dict)

    def line(self, step: int) -> dict[str, Any]:
        """The curves as a line of `diagnostics.jsonl`."""
        return {"step": step, "curves": self.curves, "ranks": self.ranks}


class DiagnosisWatch(Watch):
    """Diagnoses of a run: numbers for the line of the log, curves for `diagnostics.jsonl` and for trackers.

    Args:
        every: The setting `diagnostics_every`.
        model: The method, without wrapper.
        predictor_speed: See `diagnose`.
        log: Takes the curves; None but on the first process.
        accelerator: Its trackers get the curves so far as a picture, where they take pictures.
    """

    name = "The diagnosis"

    def __init__(
        self,
        every: int | None,
        model: SSLPreTrainedModel,
        predictor_speed: float,
        log: MetricsLog | None,
        accelerator: Accelerator,
    ):
        super().__init__()
        self._setting, self._model, self._predictor_speed = every, model, predictor_speed
        self._log, self._accelerator = log, accelerator

    def is_due(self, step: int, plan: Plan) -> bool:
        """Every so many steps of a plan whose length may still be fitted, and after the last one."""
        self.every = steps_between_diagnoses(self._setting, plan.num_steps)
        return self.every > 0 and super().is_due(step, plan)

    def look(self, moment: Moment) -> dict[str, Any]:
        """The numbers of the batch in hand; nothing for a method that shows no projections."""
        if moment.output.projections is None:
            return {}
        found = diagnose(self._model, moment.output, self._predictor_speed)
        if self._log is not None:
            self._log.append(found.line(moment.step))
            self._show(moment.step, self._log)
        return {name: float(f"{value:.6g}") for name, value in found.figures.items()}

    def _show(self, step: int, log: MetricsLog) -> None:
        trackers = [tracker for tracker in self._accelerator.trackers if hasattr(tracker, "log_images")]
        figure = diagnosis_curves(log.path) if trackers else None
        if figure is None:
            return
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())[..., :3]
        for tracker in trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"diagnostics": picture[None]}, step=step, **options)


@torch.no_grad()
def diagnose(model: SSLPreTrainedModel, output: SSLOutput, predictor_speed: float = 1.0) -> Diagnosis:
    """Measure the batch that a forward pass has just seen, on all processes; changes nothing that is trained.

    All processes must call it, with equally many images each.

    A predictor with hidden layers is replaced by its mean Jacobian at some projections of the batch, in evaluation
    mode: BatchNorm takes its running statistics.

    Args:
        model: The method, without wrapper.
        output: Of the forward pass.
        predictor_speed: alpha_p of theorem 1 (Tian et al., 2021), positive.

    Returns:
        Everything on the first process; nothing on the others, or where a number is not finite.
    """
    assert output.projections is not None and output.representations is not None
    projections, representations = output.projections.float(), output.representations.float()
    first, second = projections[:, 0], projections[:, 1]
    means = {"alignment": alignment(first, second)}
    z, h = (features.flatten(0, 1).double() for features in (projections, representations))
    means |= {"z": z.mean(dim=0), "zz": z.T @ z / len(z), "h": h.mean(dim=0), "hh": h.T @ h / len(h)}
    means = {name: mean_over_processes(value) for name, value in means.items()}
    images = gather(first.contiguous())
    if rank() != 0 or not all(bool(value.isfinite().all()) for value in means.values()):
        return Diagnosis()
    weight = linear_predictor(model, images)
    images = images[:_UNIFORMITY_IMAGES]
    found = Diagnosis({"alignment": float(means["alignment"]), "uniformity": float(uniformity(images))})
    num_views = len(z) * world_size()
    _add_spectrum(found, "projection", means["z"], means["zz"], num_views)
    _add_spectrum(found, "representation", means["h"], means["hh"], num_views)
    if weight is not None:
        _add_predictor(found, means["zz"], weight, predictor_speed)
    return found


def linear_predictor(model: nn.Module, projections: Tensor) -> Tensor | None:
    """W_p, or its linearisation where the predictor has hidden layers; None without a predictor.

    Args:
        model: The method.
        projections: Where a predictor with hidden layers is linearised, (images, dim).
    """
    predictor = getattr(model, "predictor", None)
    if not isinstance(predictor, nn.Module) or isinstance(predictor, nn.Identity):
        return None
    if isinstance(predictor, nn.Linear):
        return predictor.weight.detach()
    with evaluation_mode(predictor), torch.autocast(projections.device.type, enabled=False):
        return mean_jacobian(predictor, projections[:_JACOBIAN_IMAGES])


def _add_spectrum(found: Diagnosis, name: str, mean: Tensor, moment: Tensor, num_views: int) -> None:
    uncentred = _eigenvalues(moment)
    eigenvalues = _eigenvalues(moment - torch.outer(mean, mean))[: num_views - 1]
    if eigenvalues.sum() <= _ROUNDING * uncentred.sum():
        eigenvalues = torch.zeros_like(eigenvalues)
    numbers = {
        "effective_rank": entropy_rank(eigenvalues),
        "rank_me": entropy_rank(uncentred.sqrt(), _RANK_ME_EPSILON),
        "ne_sum": ne_sum(eigenvalues),
        "participation_ratio": participation_ratio(eigenvalues),
        "stable_rank": ne_sum(uncentred),
        "eigenvalue_ratio": eigenvalues[-1] / eigenvalues[0].clamp(min=torch.finfo(eigenvalues.dtype).tiny),
    }
    values = torch.stack([value.double() for value in numbers.values()]).tolist()
    found.figures |= {f"{name}_{number}": value for number, value in zip(numbers, values, strict=True)}
    _add_curve(found, name, eigenvalues)


def _add_predictor(found: Diagnosis, correlation: Tensor, weight: Tensor, speed: float) -> None:
    numbers, curves = describe_predictor(correlation, weight, speed)
    values = torch.stack(list(numbers.values())).tolist()
    found.figures |= {f"predictor_{number}": value for number, value in zip(numbers, values, strict=True)}
    for name, curve in curves.items():
        _add_curve(found, name, curve)


def _add_curve(found: Diagnosis, name: str, values: Tensor) -> None:
    ranks = torch.arange(len(values))
    if len(values) > _MOST_POINTS:
        ranks = torch.logspace(0, 1, _MOST_POINTS, base=len(values), dtype=torch.float64).round().long().unique() - 1
    found.curves[name] = [float(f"{value:.{_DIGITS}g}") for value in values.cpu()[ranks].tolist()]
    found.ranks[name] = (ranks + 1).tolist()


def _eigenvalues(matrix: Tensor) -> Tensor:
    """Of a symmetric matrix, largest first, not negative."""
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2).flip(0).clamp(min=0)
