"""Numbers that tell what training does to representations: tensors in, numbers out; no models, no data."""

from hf_ssl.diagnostics.negatives import false_negative_share, matching_probabilities
from hf_ssl.diagnostics.rank import effective_rank
from hf_ssl.diagnostics.spread import feature_std

__all__ = ["effective_rank", "false_negative_share", "feature_std", "matching_probabilities"]
