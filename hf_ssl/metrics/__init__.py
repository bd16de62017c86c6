"""The measures of this package as modules of `evaluate`: `hf_ssl.metrics.load("knn_accuracy")`, without network.

Each folder `NAME` holds one module, which `evaluate.load` also reads by its path, or from a Space that
`hf-ssl publish_metric` made of it.
"""

from pathlib import Path
from typing import Any

from hf_ssl.errors import UserError

__all__ = ["METRICS", "load", "path_of"]

METRICS = ("alignment", "clustering_scores", "knn_accuracy", "linear_probe_accuracy", "rank_me", "uniformity")
"""Names of the modules."""


def path_of(name: str) -> Path:
    """The folder of a module, which `evaluate.load` takes.

    Raises:
        UserError: If there is no such module.
    """
    if name not in METRICS:
        raise UserError(f"Unknown metric `{name}`. Known: {', '.join(METRICS)}.")
    return Path(__file__).parent / name


def load(name: str, **options: Any) -> Any:
    """The module as `evaluate.load` returns it.

    Args:
        name: One of `METRICS`.
        options: Further arguments of `evaluate.load`, such as `experiment_id`.

    Returns:
        An `evaluate.EvaluationModule` with `compute`, `add` and `add_batch`.

    Raises:
        UserError: If there is no such module.
        UserError: If `evaluate` is not installed.
    """
    path = path_of(name)
    try:
        import evaluate
    except ImportError:
        raise UserError("Metrics need the package evaluate: `pip install hf_ssl[metrics]`.") from None
    return evaluate.load(str(path), **options)
