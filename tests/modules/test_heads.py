import pytest
import torch
from torch import nn

from hf_ssl.modules.heads import mlp


def _describe(head: nn.Module) -> list[tuple]:
    description = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            description.append(("linear", layer.in_features, layer.out_features, layer.bias is not None))
        elif isinstance(layer, nn.BatchNorm1d):
            description.append(("norm", layer.num_features, layer.affine))
        else:
            description.append((type(layer).__name__,))
    return description


def test_byol_head_has_one_affine_norm_and_no_output_bias():
    assert _describe(mlp(6, 5, 4, output_bias=False)) == [
        ("linear", 6, 5, True),
        ("norm", 5, True),
        ("ReLU",),
        ("linear", 5, 4, False),
    ]


def test_simsiam_projector_ends_with_a_norm_without_scale_and_shift():
    head = mlp(6, 5, 4, num_layers=3, output_norm="plain", hidden_bias=False, output_bias=False)
    assert _describe(head) == [
        ("linear", 6, 5, False),
        ("norm", 5, True),
        ("ReLU",),
        ("linear", 5, 5, False),
        ("norm", 5, True),
        ("ReLU",),
        ("linear", 5, 4, False),
        ("norm", 4, False),
    ]


def test_moco_projector_has_no_norm():
    assert _describe(mlp(6, 5, 4, hidden_norm="none")) == [("linear", 6, 5, True), ("ReLU",), ("linear", 5, 4, True)]


def test_simclr_projector_ends_with_a_norm_that_scales_and_does_not_shift():
    head = mlp(6, 5, 4, output_norm="scale", hidden_bias=False, output_bias=False)
    assert _describe(head)[1:] == [("norm", 5, True), ("ReLU",), ("linear", 5, 4, False), ("norm", 4, True)]
    assert [name for name, _ in head[-1].named_parameters()] == ["weight"]
    with torch.no_grad():
        head[-1].weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    output = head(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(output.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.std(0, correction=0), torch.tensor([1.0, 2.0, 3.0, 4.0]), atol=0.01, rtol=0)


def test_one_layer_is_a_matrix_and_maps_the_batch():
    head = mlp(6, 5, 4, num_layers=1)
    assert _describe(head) == [("linear", 6, 4, True)]
    assert head(torch.ones(3, 6)).shape == (3, 4)


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match="`num_layers` must be at least 1, got 0"):
        mlp(6, 5, 4, num_layers=0)
