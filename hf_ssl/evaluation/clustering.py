"""Clusters of images: made of features by k-means, compared with labels, and written to a file.

Clusters have no names, so every score is the same whatever number a cluster has.

scikit-learn is imported where it is used: it takes a second, and every script imports this module.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_ssl.errors import UserError
from hf_ssl.writing import replacing

K_MEANS = {"algorithm": "k-means", "init": "k-means++", "n_init": 10}


def clustering_scores(clusters: Tensor, labels: Tensor) -> dict[str, float]:
    """Compare clusters with labels (Li et al., 2020, section 4.3).

    Args:
        clusters: Cluster of each image, (images,), int64.
        labels: Class of each image, (images,), int64; images with a negative label take no part.

    Returns:
        - `accuracy`: share of images in the right cluster, each class matched with one cluster at best so that the
          share is largest (Hungarian matching), in [0, 1];
        - `nmi`: mutual information divided by the arithmetic mean of both entropies, in [0, 1];
        - `ari`: Rand index adjusted for chance: 1 at best, 0 on average for random clusters, at least -0.5;
        - `f`: Fowlkes-Mallows index, the geometric mean of precision and recall over pairs of images, in [0, 1].

    Raises:
        UserError: If the tensors differ in length or no image is labelled.
    """
    from sklearn.metrics import adjusted_rand_score, fowlkes_mallows_score, normalized_mutual_info_score

    if clusters.shape != labels.shape:
        raise UserError(f"There are {len(clusters)} clusters for {len(labels)} labels. Give one each for every image.")
    known = (labels >= 0).cpu()
    if not known.any():
        raise UserError("No image has a label. Choose another label column or split.")
    found, true = clusters.cpu()[known].numpy(), labels.cpu()[known].numpy()
    return {
        "accuracy": _matched_accuracy(found, true),
        "nmi": float(normalized_mutual_info_score(true, found)),
        "ari": float(adjusted_rand_score(true, found)),
        "f": float(fowlkes_mallows_score(true, found)),
    }


def _matched_accuracy(clusters: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics.cluster import contingency_matrix

    table = np.asarray(contingency_matrix(labels, clusters))
    # Classes without a cluster and clusters without a class, where their numbers differ, are all wrong.
    classes, matched = linear_sum_assignment(table, maximize=True)
    return float(table[classes, matched].sum() / len(labels))


def k_means(features: Tensor, num_clusters: int, seed: int = 0) -> Tensor:
    """Cluster features by k-means: the best of ten starts by k-means++, features as they are.

    Args:
        features: (images, dim).
        num_clusters: Clusters to find, at least 1.
        seed: Seed of the starts, at least 0.

    Returns:
        Cluster of each image, (images,), int64.

    Raises:
        UserError: If there are fewer images than clusters.
    """
    from sklearn.cluster import KMeans

    if len(features) < num_clusters:
        raise UserError(f"k-means cannot find {num_clusters} clusters in {len(features)} images. Use more images.")
    model = KMeans(num_clusters, init=K_MEANS["init"], n_init=K_MEANS["n_init"], random_state=seed)
    return torch.from_numpy(model.fit_predict(features.float().cpu().numpy())).long()


def write_assignments(path: Path, row_ids: Tensor, probabilities: Tensor, about: dict[str, str]) -> None:
    """Write `row_id`, `cluster` and `confidence` (the cluster's probability) of each image as parquet.

    The file appears when it is complete.

    Args:
        path: The file; an existing one is replaced.
        row_ids: Row of each image in its split, (images,), int64.
        probabilities: Probability of each cluster, (images, clusters).
        about: What the rows are of, such as data set and split, for the file's metadata.
    """
    confidence, cluster = probabilities.float().cpu().max(dim=1)
    columns = {"row_id": row_ids.cpu(), "cluster": cluster, "confidence": confidence}
    table = pa.table({name: pa.array(values.numpy()) for name, values in columns.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        pq.write_table(table.replace_schema_metadata(about), partial)
