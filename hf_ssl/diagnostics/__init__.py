"""Numbers that tell whether representations collapse: a tensor in, a scalar out; no models, no data."""

from hf_ssl.diagnostics.rank import effective_rank
from hf_ssl.diagnostics.spread import feature_std

__all__ = ["effective_rank", "feature_std"]
