"""Projectors and predictors: every method's heads are one multilayer perceptron with different switches."""

from typing import Literal

from torch import nn

Norm = Literal["none", "plain", "scale", "affine"]


def mlp(
    input_dim: int,
    hidden_dim: int,
    output_dim: int,
    *,
    num_layers: int = 2,
    hidden_norm: Norm = "affine",
    output_norm: Norm = "none",
    hidden_bias: bool = True,
    output_bias: bool = True,
) -> nn.Sequential:
    """Build linear layers with BatchNorm and ReLU between them.

    The switches cover the heads of MoCo v2 (no normalisation), BYOL (no bias at the output), SimSiam (no hidden bias,
    BatchNorm without scale and shift at the output), DirectPred (BatchNorm without scale and shift inside) and SimCLR
    (BatchNorm with scale alone at the output).

    Args:
        input_dim: Width of the input, at least 1.
        hidden_dim: Width of the hidden layers, at least 1.
        output_dim: Width of the output, at least 1.
        num_layers: Linear layers, at least 1; one layer has no hidden width.
        hidden_norm: BatchNorm after each hidden layer: `none`, `plain` (no scale and shift), `scale` (no shift) or
            `affine`.
        output_norm: The same after the last layer.
        hidden_bias: Whether hidden layers have a bias.
        output_bias: Whether the last layer has a bias.

    Returns:
        A module from (batch, `input_dim`) to (batch, `output_dim`).

    Raises:
        ValueError: If `num_layers` is below 1.
    """
    if num_layers < 1:
        raise ValueError(f"`num_layers` must be at least 1, got {num_layers}.")
    layers: list[nn.Module] = []
    width = input_dim
    for _ in range(num_layers - 1):
        layers += [nn.Linear(width, hidden_dim, bias=hidden_bias), *_norm(hidden_norm, hidden_dim), nn.ReLU()]
        width = hidden_dim
    layers += [nn.Linear(width, output_dim, bias=output_bias), *_norm(output_norm, output_dim)]
    return nn.Sequential(*layers)


def _norm(norm: Norm, width: int) -> list[nn.Module]:
    if norm == "none":
        return []
    layer = nn.BatchNorm1d(width, affine=norm != "plain")
    if norm == "scale":
        layer.register_parameter("bias", None)
    return [layer]
