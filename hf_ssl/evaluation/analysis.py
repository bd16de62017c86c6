"""What a frozen encoder's features look like, without labels: spectrum, ranks, alignment, uniformity, predictor."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_ssl.diagnostics.alignment import alignment, uniformity
from hf_ssl.diagnostics.lidar import lidar
from hf_ssl.diagnostics.predictor import describe_predictor, mean_jacobian
from hf_ssl.diagnostics.rank import effective_rank
from hf_ssl.diagnostics.spectrum import (
    alpha_req,
    covariance_spectrum,
    ne_sum,
    participation_ratio,
    rank_me,
    stable_rank,
)
from hf_ssl.diagnostics.spread import feature_std

FEATURE_NUMBERS = {
    "effective_rank": "directions in use, by the entropy of the covariance; 1 is a line",
    "rank_me": "the same of uncentred features (RankMe); higher goes with better probes among like encoders",
    "ne_sum": "sum of the eigenvalues over the largest (NESum); 1 to dim",
    "participation_ratio": "how many eigenvalues share the variance; 1 to dim",
    "stable_rank": "NESum of uncentred features; near 1 their mean dominates",
    "alpha_req": "decay of the spectrum: about 1 healthy, far above collapsed, below flat or noisy",
    "alpha_req_r2": "how well a power law fits the spectrum; below 0.9 alpha says little",
    "collapsed": "share of eigenvalues below 1e-4 of the largest; 0 is full rank",
    "spread": "std of unit vectors x root of dim: 1 even over the sphere, 0 a single point",
    "alignment": "squared distance of two views of an image; 0 is invariance, 2 is chance",
    "uniformity": "log potential of pairs: even over the sphere -4 + 8 / dim, 0 a single point",
    "lidar": "directions that tell images from augmentation (LiDAR); compare at equal numbers of views",
}
"""Numbers of features, and what they say."""

PREDICTOR_NUMBERS = {
    "cosine": "of F's eigenvectors and what the predictor makes of them, weighted by variance; 1 once they tie up",
    "asymmetry": "|W - W^T| / |W|: 0 symmetric, 1.41 random",
    "commutator": "|FW - WF| / |F||W|: 0 with shared eigenvectors",
    "balance_residual": "|F - c W^T W| / |F| with the best c: 0 where theory ends under weight decay",
}
"""Numbers of a predictor beside the correlation F of the projections, and what they say."""

_COLLAPSED = 1e-4  # of the largest eigenvalue; counts directions, while `training.watch.collapse` judges runs
_JACOBIAN_IMAGES = 128
_LEAST_FOR_ALPHA = 16
_UNIFORMITY_IMAGES = 2048  # pairs of more take seconds and say the same


@dataclass(frozen=True)
class Analysis:
    """Numbers by name, and the curves behind them.

    Args:
        numbers: Keys of `FEATURE_NUMBERS` or `PREDICTOR_NUMBERS`; those that cannot be computed are left out.
        curves: Values by rank, for figures.
    """

    numbers: dict[str, float]
    curves: dict[str, list[float]]

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"numbers": self.numbers, "curves": self.curves}


def analyse_features(features: Tensor, views: Tensor) -> Analysis:
    """The numbers of `FEATURE_NUMBERS`.

    Args:
        features: Of images as they are, (images, dim), at least two.
        views: Of augmented views, (images, views, dim), at least two of each; perhaps of fewer images. LiDAR takes all
            views, alignment and uniformity the first two and the first.

    Returns:
        Numbers, and the curve `spectrum`: eigenvalues of the covariance that the number of images allows.
    """
    images, dim = features.shape
    spectrum = covariance_spectrum(features)[: min(dim, images - 1)]
    numbers = {
        "effective_rank": effective_rank(features),
        "rank_me": rank_me(features),
        "ne_sum": ne_sum(spectrum),
        "participation_ratio": participation_ratio(spectrum),
        "stable_rank": stable_rank(features),
        "collapsed": (spectrum < _COLLAPSED * spectrum[0]).double().mean(),
        "spread": feature_std(features) * dim**0.5,
        "alignment": alignment(views[:, 0], views[:, 1]),
        "uniformity": uniformity(views[:_UNIFORMITY_IMAGES, 0]),
        "lidar": lidar(views),
    }
    if len(spectrum) >= _LEAST_FOR_ALPHA:
        numbers["alpha_req"], numbers["alpha_req_r2"] = alpha_req(spectrum)
    found = {name: float(numbers[name]) for name in FEATURE_NUMBERS if name in numbers and numbers[name].isfinite()}
    return Analysis(found, {"spectrum": spectrum.tolist()})


@torch.no_grad()
def analyse_predictor(predictor: nn.Module, projections: Tensor) -> Analysis:
    """The numbers of `PREDICTOR_NUMBERS`.

    A predictor with hidden layers is replaced by its mean Jacobian at some of these projections.

    Args:
        predictor: In evaluation mode, on the CPU.
        projections: Its inputs, (images, dim), float32, on the CPU.

    Returns:
        Numbers, and the curves `correlation` (eigenvalues of F), `predictor` (u_j^T W_p u_j) and `cosine`, largest
        eigenvalue first, of the directions that the projections use.
    """
    z = projections.double()
    correlation = z.T @ z / len(z)
    weight = predictor.weight.detach() if isinstance(predictor, nn.Linear) else None
    if weight is None:
        apart = max(1, len(projections) // _JACOBIAN_IMAGES)
        weight = mean_jacobian(predictor, projections[::apart][:_JACOBIAN_IMAGES])
    numbers, curves = describe_predictor(correlation, weight)
    return Analysis(
        {name: float(value) for name, value in numbers.items()},
        {name: curve.tolist() for name, curve in curves.items()},
    )
