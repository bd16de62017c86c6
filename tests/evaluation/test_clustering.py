"""Scores of clusters against their definitions by brute force, k-means, and the file of assignments."""

import itertools
import math

import datasets
import pyarrow.parquet as pq
import pytest
import torch

from hf_ssl.evaluation.clustering import clustering_scores, k_means, write_assignments

CASES = [
    ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]),
    ([2, 2, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2]),
    ([0, 1, 0, 1, 1, 2, 2, 0], [0, 0, 0, 1, 1, 1, 2, 2]),
    ([0, 0, 0, 0, 1, 1, 1], [0, 1, 2, 2, 3, 3, 0]),  # fewer clusters than classes
    ([4, 3, 2, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1, 1]),  # more clusters than classes
    ([7, 7, 9, 9, 9], [5, 5, 5, 2, 2]),  # numbers with gaps
    ([0, 0, 0, 0], [0, 1, 2, 0]),
]


def best_accuracy(clusters, labels):
    """The largest share over all ways to name clusters by classes, no class twice; a cluster may stay unnamed."""
    numbers = sorted(set(clusters))
    names = [*sorted(set(labels)), *[None] * len(numbers)]
    best = 0
    for chosen in set(itertools.permutations(names, len(numbers))):
        name = dict(zip(numbers, chosen, strict=True))
        best = max(best, sum(name[c] == label for c, label in zip(clusters, labels, strict=True)))
    return best / len(labels)


def entropy(values):
    shares = [values.count(value) / len(values) for value in set(values)]
    return -sum(share * math.log(share) for share in shares)


def normalised_mutual_information(clusters, labels):
    mutual = entropy(clusters) + entropy(labels) - entropy(list(zip(clusters, labels, strict=True)))
    return mutual / ((entropy(clusters) + entropy(labels)) / 2)


def pairs(clusters, labels):
    """Pairs of images that are together in both, in clusters, in classes; and all pairs."""
    both = in_clusters = in_classes = count = 0
    for i, j in itertools.combinations(range(len(labels)), 2):
        together, same = clusters[i] == clusters[j], labels[i] == labels[j]
        both += together and same
        in_clusters += together
        in_classes += same
        count += 1
    return both, in_clusters, in_classes, count


@pytest.mark.parametrize(("clusters", "labels"), CASES)
def test_scores_are_those_of_the_definitions(clusters, labels):
    scores = clustering_scores(torch.tensor(clusters), torch.tensor(labels))
    both, in_clusters, in_classes, count = pairs(clusters, labels)
    expected = in_clusters * in_classes / count
    largest = (in_clusters + in_classes) / 2
    assert scores == pytest.approx(
        {
            "accuracy": best_accuracy(clusters, labels),
            "nmi": normalised_mutual_information(clusters, labels),
            "ari": (both - expected) / (largest - expected),
            "f": both / math.sqrt(in_clusters * in_classes),
        }
    )


def test_perfect_clusters_score_one_and_a_single_one_scores_the_largest_class():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert set(clustering_scores((labels + 1) % 3, labels).values()) == {1.0}
    single = clustering_scores(torch.zeros(6, dtype=torch.long), labels)
    assert (single["accuracy"], single["nmi"], single["ari"]) == (0.5, 0.0, 0.0)


def test_unlabelled_images_take_no_part():
    clusters, labels = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([1, 0, 0, -1, -1])
    assert clustering_scores(clusters, labels) == clustering_scores(clusters[:3], labels[:3])
    with pytest.raises(ValueError, match="No image has a label. Choose another label column or split"):
        clustering_scores(clusters, torch.full((5,), -1))
    with pytest.raises(ValueError, match="There are 5 clusters for 4 labels"):
        clustering_scores(clusters, labels[:4])


def test_k_means_finds_clusters_that_are_apart():
    labels = torch.arange(60) % 3
    features = 10 * torch.eye(3, 5)[labels] + torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    clusters = k_means(features, 3, seed=1)
    assert clusters.dtype == torch.int64
    assert clustering_scores(clusters, labels)["accuracy"] == 1
    assert torch.equal(clusters, k_means(features, 3, seed=1))
    with pytest.raises(ValueError, match="k-means cannot find 3 clusters in 2 images"):
        k_means(features[:2], 3)


def test_assignments_are_read_by_datasets(tmp_path):
    probabilities = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])
    path = tmp_path / "encoder" / "assignments.parquet"
    for row_ids in (torch.tensor([8, 9]), torch.tensor([3, 5])):  # the second replaces the first
        write_assignments(path, row_ids, probabilities, {"dataset": "shapes", "split": "test"})
    table = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert table.column_names == ["row_id", "cluster", "confidence"]
    assert table["row_id"][:] == [3, 5] and table["cluster"][:] == [1, 0]
    assert table["confidence"][:] == pytest.approx([0.7, 0.5])
    assert pq.read_schema(path).metadata == {b"dataset": b"shapes", b"split": b"test"}
    assert [file.name for file in path.parent.iterdir()] == ["assignments.parquet"]
