"""Augmentation beside data in features: counts of known spreads, softmax weights by loops, k-NN without directions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_ssl.dynamics.dimensional_collapse import contrastive_spreads
from hf_ssl.evaluation.augmentation import AUGMENTATION_NUMBERS, _softmax_spreads, analyse_augmentation
from hf_ssl.evaluation.knn import knn_accuracy


def made(noise: float, images: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """Six directions: two tell the classes, four do not; augmentation moves the third and the fourth."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 3
    centres = torch.tensor([[3.0, 0], [0, 3.0], [-3.0, -3.0]])
    x = torch.randn(images, 6, generator=generator)
    x[:, :2] += centres[labels]
    moved = torch.tensor([0.1, 0.1, noise, noise, 0.1, 0.1])
    return x, x[:, None] + moved * torch.randn(images, 8, 6, generator=generator), labels


def test_directions_that_augmentation_dominates_are_counted_and_hold_no_class():
    images, views, labels = made(3.0)
    found = analyse_augmentation(images, views, {"label": labels})
    numbers = found["numbers"]
    assert set(numbers) == {*AUGMENTATION_NUMBERS, "directions"} and numbers["directions"] == 6
    # Variances 1 between and 9 within: more than once, and more than twice, the data.
    assert numbers["dominated"] == numbers["lost_by_theorem"] == 2
    assert numbers["dominated_variance"] == pytest.approx(2 / (6 + 2 * 6.0), abs=0.03)
    assert numbers["knn_kept"] > 0.95 and numbers["knn_dominated"] < 0.5
    assert numbers["knn_kept"] >= numbers["knn"]
    curves = found["curves"]
    assert [len(curves[name]) for name in ("images", "between", "within")] == [6, 6, 6]
    assert curves["shares"][:2] == pytest.approx([0.9, 0.9], abs=0.03) and curves["shares"][2] < 0.05
    torch.testing.assert_close(torch.tensor(curves["between"]), torch.tensor(curves["images"]), rtol=0.25, atol=0.1)
    assert sum(curves["within"]) == pytest.approx(18 + 4 * 0.01, rel=0.1)


def test_between_once_and_twice_the_data_the_theorem_keeps_what_augmentation_dominates():
    images, views, _ = made(1.2)
    numbers = analyse_augmentation(images, views)["numbers"]
    assert (numbers["dominated"], numbers["lost_by_theorem"]) == (2, 0)
    assert not {"knn", "knn_kept", "knn_dominated"} & set(numbers)  # no labels


def test_without_dominated_directions_there_is_nothing_to_compare():
    images, views, labels = made(0.1)
    numbers = analyse_augmentation(images, views, {"label": labels})["numbers"]
    assert numbers["dominated"] == 0 and "knn_dominated" not in numbers
    half = len(images) // 2
    centred = images - images.mean(dim=0)
    expected = knn_accuracy(centred[:half], labels[:half], centred[half:], labels[half:], k=20)
    assert numbers["knn"] == numbers["knn_kept"] == expected


def test_softmax_weights_are_those_of_the_theorem_at_this_length():
    _, views, _ = made(1.0, images=40)
    unit = F.normalize(views[:, :2].double(), dim=2)
    found = _softmax_spreads(views)
    expected = contrastive_spreads(torch.eye(6, dtype=torch.float64) / 0.1**0.5, unit[:, 0], unit[:, 1])
    torch.testing.assert_close(found.between, expected.data)
    torch.testing.assert_close(found.within, expected.augmentation)
