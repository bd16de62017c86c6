"""Numbers that tell what training does to representations: tensors in, numbers out; no models, no data."""

from hf_ssl.diagnostics.alignment import alignment, class_alignment, uniformity
from hf_ssl.diagnostics.dictionary import age_share, key_agreement
from hf_ssl.diagnostics.lidar import lidar
from hf_ssl.diagnostics.negatives import (
    effective_negatives,
    false_negative_share,
    false_negative_weight,
    matching_probabilities,
)
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

__all__ = [
    "age_share",
    "alignment",
    "alpha_req",
    "class_alignment",
    "covariance_spectrum",
    "effective_negatives",
    "effective_rank",
    "false_negative_share",
    "false_negative_weight",
    "feature_std",
    "key_agreement",
    "lidar",
    "matching_probabilities",
    "ne_sum",
    "participation_ratio",
    "rank_me",
    "stable_rank",
    "uniformity",
]
