"""Why contrastive learning uses fewer dimensions than it has: the two mechanisms of Jing et al. (2021).

Strong augmentation shrinks the directions in which views differ more than images; a network of several layers grows
its large singular values first and leaves the small ones behind (arXiv 2110.09348, sections 4 and 5). Beside the
simulations stand predictions: those of the paper for fixed statistics, and one for whole trainings of the toy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_ssl.dynamics.integrate import Method, integrate
from hf_ssl.errors import UserError


class Spreads(NamedTuple):
    """The two sides of the balance that decides about each direction, (inputs, inputs) each.

    Args:
        data: Sigma_0, weighted spread between images.
        augmentation: Sigma_1, weighted spread between the views of an image.
    """

    data: Tensor
    augmentation: Tensor

    @property
    def growth(self) -> Tensor:
        """X = Sigma_0 - Sigma_1: the gradient flow of one layer is dW/dt = W X."""
        return self.data - self.augmentation


def distance_info_nce(z: Tensor, positive: Tensor) -> Tensor:
    """InfoNCE with half the negative squared distance as similarity and the first views as negatives (equation 1).

    Args:
        z: Embeddings of the first views, (..., batch, dim).
        positive: Embeddings of the second views, (..., batch, dim).

    Returns:
        Mean over the batch, in nats, (...).
    """
    logits = _logits(z, positive)
    return (logits.logsumexp(dim=-1) - logits.diagonal(dim1=-2, dim2=-1)).mean(dim=-1)


def _logits(z: Tensor, positive: Tensor) -> Tensor:
    """Similarities with the other first views and, on the diagonal, with the second view of the same image."""
    among = -(z.unsqueeze(-2) - z.unsqueeze(-3)).square().sum(dim=-1) / 2
    own = -(z - positive).square().sum(dim=-1) / 2
    same = torch.eye(z.shape[-2], dtype=torch.bool)
    return torch.where(same, own.unsqueeze(-1), among)


def contrastive_spreads(weight: Tensor, x: Tensor, positive: Tensor) -> Spreads:
    """Weighted spreads of data and augmentation for a linear layer under `distance_info_nce` (theorem 1).

    Sigma_0 is the mean over images i of the sum over others j of a_ij (x_i - x_j)(x_i - x_j)^T, Sigma_1 that of
    (1 - a_ii)(x'_i - x_i)(x'_i - x_i)^T, where a_ij are the softmax probabilities of the loss. The paper sums over
    images; the mean here goes with the mean in the loss.

    Args:
        weight: W, (dim, inputs).
        x: First views, (batch, inputs).
        positive: Second views, (batch, inputs).
    """
    return weighted_spreads(_logits(x @ weight.T, positive @ weight.T).softmax(dim=-1), x, positive)


def weighted_spreads(probabilities: Tensor, x: Tensor, positive: Tensor) -> Spreads:
    """The spreads of `contrastive_spreads` for given softmax probabilities.

    The sum over pairs of a_ij (x_i - x_j)(x_i - x_j)^T is x^T L x with a Laplacian L of the weights, so that no
    difference of a pair need be kept.

    Args:
        probabilities: a_ij, with the second view of the same image on the diagonal; each row adds up to 1, (batch,
            batch).
        x: First views, (batch, inputs).
        positive: Second views, (batch, inputs).
    """
    others = probabilities - probabilities.diagonal().diag()
    degrees = others.sum(dim=0) + others.sum(dim=1)
    data = x.T @ ((degrees.diag() - others - others.T) @ x) / len(x)
    shifts = positive - x
    own = (1 - probabilities.diagonal()) / len(x)
    return Spreads(data, shifts.T @ (own[:, None] * shifts))


def frozen_growth(weight: Tensor, growth: Tensor, time: float) -> Tensor:
    """W(t) = W(0) exp(X t): one layer whose statistics X stay as they are (paper, equation 6).

    Directions in which X is negative, augmentation above data, shrink exponentially.

    Args:
        weight: W(0), (dim, inputs).
        growth: X, symmetric, (inputs, inputs).
        time: t, at least 0.
    """
    return weight @ torch.linalg.matrix_exp(growth * time)


def collapsing_directions(growth: Tensor) -> int:
    """Number of directions that one layer loses: the negative eigenvalues of X (paper, corollary 1)."""
    return int((torch.linalg.eigvalsh(growth) < 0).sum())


def layers_path(layers: list[Tensor], growth: Tensor, times: Tensor, method: Method = "RK45") -> list[Tensor]:
    """Gradient flow of a deep linear network under fixed statistics X (paper, section 5.1).

    With the product P = W_L ... W_1, each layer follows dW_l/dt = (W_L ... W_{l+1})^T P X (W_{l-1} ... W_1)^T.
    W_l W_l^T - W_{l+1}^T W_{l+1} stays as it is.

    Args:
        layers: Square matrices W_1, ..., W_L, (dim, dim).
        growth: X, symmetric, (dim, dim).
        times: Increasing times, (times,). For L of 2 and more, positive X lets the weights grow without bound in a
            finite time.
        method: Solver of `hf_ssl.dynamics.integrate`.

    Returns:
        The layers at those times, (times, dim, dim) each.
    """

    def rates(state: Tensor) -> Tensor:
        weights = list(state)
        pull = _product(weights) @ growth
        above = [_product(weights[place + 1 :], len(growth)) for place in range(len(weights))]
        below = [_product(weights[:place], len(growth)) for place in range(len(weights))]
        return torch.stack([up.T @ pull @ down.T for up, down in zip(above, below, strict=True)])

    path = integrate(rates, torch.stack(layers).double(), times, method)
    return list(path.unbind(dim=1))


def _product(layers: list[Tensor], dim: int | None = None) -> Tensor:
    """W_L ... W_1; the identity of no layers."""
    product = torch.eye(dim or layers[0].shape[-1], dtype=torch.float64 if not layers else layers[0].dtype)
    for layer in layers:
        product = layer @ product
    return product


def singular_value_rates(values: Tensor, force: Callable[[Tensor], Tensor]) -> Tensor:
    """Rates of the singular values of aligned layers (paper, theorem 3, for any depth).

    The rate of sigma_l is the product of the others times `force` of the product of all. With force x sigma it is the
    paper's: sigma_1 grows by sigma_1 sigma_2^2 x, so large ones grow faster and small ones stay behind.

    Args:
        values: Singular values, (layers, modes).
        force: Minus the derivative of the loss by the product of the singular values of a mode, (modes,) to (modes,).
    """
    product = values.prod(dim=0)
    others = torch.stack(
        [torch.cat([values[:place], values[place + 1 :]]).prod(dim=0) for place in range(len(values))]
    )
    return others * force(product)


def alignment(lower: Tensor, upper: Tensor) -> Tensor:
    """Absolute cosines |V_2^T U_1| between right singular vectors of a layer and left ones of that below (theorem 2).

    Args:
        lower: W_1, (dim, inputs).
        upper: W_2, (dim, dim).

    Returns:
        (dim, dim), by decreasing singular value; near the identity up to rotations among equal singular values.
    """
    left = torch.linalg.svd(lower)[0]
    right = torch.linalg.svd(upper)[2]
    return (right @ left).abs()


@dataclass(frozen=True, kw_only=True)
class ContrastiveToy:
    """A network of square layers that learns normal inputs by InfoNCE, as in the toys of facebookresearch/directclr.

    Deviation: no biases; the authors' first toy has one.

    Args:
        depth: Layers, at least 1.
        relu: ReLU between layers.
        dim: Width of inputs and layers, at least 1.
        noise: Standard deviation that augmentation adds to the last `noisy_dims` inputs, at least 0; inputs have 1.
        noisy_dims: Inputs that augmentation changes, up to `dim`.
        similarity: `dot` compares by z . z' / temperature with the second views of the batch, as in the authors' code;
            `distance` is `distance_info_nce`, the loss of the paper's theorems.
        temperature: Of `dot`, positive.
        noisy_views: Views with noise: `both`, as in the code, or `second`, the paper's image and its augmentation.
        start: `default` draws each entry uniformly up to 1 / sqrt(dim), as torch does; `decaying` gives every layer
            the singular values exp(-0.35 k), k from 0, and random singular vectors.
        learning_rate: Positive.
        num_steps: Steps, at least 1.
        batch_size: Images in a step, at least 2.
    """

    depth: int = 1
    relu: bool = False
    dim: int = 16
    noise: float = 0.01
    noisy_dims: int = 8
    similarity: Literal["dot", "distance"] = "dot"
    temperature: float = 0.1
    noisy_views: Literal["both", "second"] = "both"
    start: Literal["default", "decaying"] = "default"
    learning_rate: float = 0.001
    num_steps: int = 6000
    batch_size: int = 128

    def __post_init__(self):
        for name, least in {"depth": 1, "dim": 1, "num_steps": 1, "batch_size": 2}.items():
            if getattr(self, name) < least:
                raise UserError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.noisy_dims <= self.dim:
            raise UserError(f"`noisy_dims` must be from 0 to `dim` {self.dim}, got {self.noisy_dims}.")
        for name in ("temperature", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if not self.noise >= 0:
            raise UserError(f"`noise` must be at least 0, got {self.noise}.")

    def initial_layers(self, generator: torch.Generator) -> list[Tensor]:
        """Draw the layers W_1, ..., W_L, (dim, dim) each, float32."""
        shape = (self.dim, self.dim)
        if self.start == "default":
            bound = 1 / math.sqrt(self.dim)
            return [(2 * torch.rand(shape, generator=generator) - 1) * bound for _ in range(self.depth)]
        values = torch.exp(-0.35 * torch.arange(self.dim))
        layers: list[Tensor] = []
        for _ in range(self.depth):
            left, right = (torch.linalg.qr(torch.randn(shape, generator=generator))[0] for _ in range(2))
            layers.append(left * values @ right)
        return layers

    def views(self, num_images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw two views of so many images, (images, dim) each."""
        shape = (num_images, self.dim)
        amplitude = self._noise_of_inputs()
        x, first, second = (torch.randn(shape, generator=generator) for _ in range(3))
        return (x + amplitude * first if self.noisy_views == "both" else x), x + amplitude * second

    def _noise_of_inputs(self) -> Tensor:
        return torch.cat([torch.zeros(self.dim - self.noisy_dims), torch.full((self.noisy_dims,), self.noise)])

    def embed(self, layers: list[Tensor], x: Tensor) -> Tensor:
        """Embeddings (..., dim) of inputs (..., dim)."""
        for place, layer in enumerate(layers):
            x = (F.relu(x) if self.relu and place > 0 else x) @ layer.T
        return x

    def loss(self, layers: list[Tensor], first: Tensor, second: Tensor) -> Tensor:
        """InfoNCE of two views in nats, a scalar."""
        z, positive = self.embed(layers, first), self.embed(layers, second)
        if self.similarity == "distance":
            return distance_info_nce(z, positive)
        return F.cross_entropy(z @ positive.T / self.temperature, torch.arange(len(z)))

    def train(
        self,
        generator: torch.Generator,
        layers: list[Tensor] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Train by plain SGD on fresh images.

        Args:
            generator: Source of all draws.
            layers: Layers to start from; None to draw them.
            on_step: Called after each step with its number, from 1.

        Returns:
            The trained layers W_1, ..., W_L.
        """
        drawn = self.initial_layers(generator) if layers is None else layers
        layers = [layer.clone().requires_grad_() for layer in drawn]
        for step in range(1, self.num_steps + 1):
            loss = self.loss(layers, *self.views(self.batch_size, generator))
            gradients = torch.autograd.grad(loss, layers)
            with torch.no_grad():
                for layer, gradient in zip(layers, gradients, strict=True):
                    layer -= self.learning_rate * gradient
            if on_step is not None:
                on_step(step)
        return [layer.detach() for layer in layers]

    def embedding_spectrum(self, layers: list[Tensor], generator: torch.Generator, num_images: int = 1000) -> Tensor:
        """Standard deviations of the embeddings of fresh views along their principal axes, largest first, (dim,)."""
        z = self.embed(layers, self.views(num_images, generator)[1]).double()
        return torch.linalg.svdvals(z - z.mean(dim=0)) / math.sqrt(num_images - 1)

    def predicted_singular_values(self) -> Tensor:
        """Singular values of the product of the layers after training, by theory; largest first, (dim,).

        Own derivation, not in the paper: for normal inputs, aligned layers and many negatives, the mean of the loss is
        a sum over modes, and each follows `singular_value_rates` with the force of `mode_force`. Modes of the
        `default` start have the root mean square of its singular values. With few negatives real values end higher,
        by a common factor; ReLU is not in the theory.

        Raises:
            UserError: For `similarity` distance, whose kernel is too narrow for that limit.
        """
        if self.similarity != "dot":
            raise UserError("Predictions are for `similarity` dot; for distance count the negative eigenvalues of X.")
        noise = self._noise_of_inputs().double()
        if self.start == "decaying":
            first = torch.exp(-0.35 * torch.arange(self.dim, dtype=torch.float64))
        else:
            first = torch.full_like(noise, 1 / math.sqrt(3))
        times = torch.tensor([0.0, self.learning_rate * self.num_steps], dtype=torch.float64)
        path = integrate(
            lambda values: singular_value_rates(values, lambda product: self.mode_force(product, noise)),
            first.expand(self.depth, -1),
            times,
            "LSODA",
        )
        return path[-1].prod(dim=0).sort(descending=True).values

    def mode_force(self, product: Tensor, noise: Tensor) -> Tensor:
        """Minus the derivative of the mean loss by a mode's singular value, for normal inputs and many negatives.

        With v and v' the variance of the mode's input in the first and the second view, the terms of the loss that
        belong to it are -sigma^2 / T + sigma^4 v v' / (2 T^2); they are least at sigma^2 = T / (v v').

        Args:
            product: Singular value sigma of the whole network, (modes,).
            noise: Standard deviation of the augmentation in the mode, (modes,).
        """
        second = 1 + noise.square()
        first = second if self.noisy_views == "both" else torch.ones_like(second)
        return 2 * product / self.temperature * (1 - product.square() * first * second / self.temperature)


def collapsed_dimensions(values: Tensor, threshold: float = 0.5) -> int:
    """Number of singular values, or standard deviations, below a fraction of the largest.

    It counts directions of a simulated network. Whether a real run has collapsed is judged by other figures, with the
    limits of `hf_ssl.training.watch.collapse`.

    Args:
        values: Any order, (dim,).
        threshold: Fraction in (0, 1). Half separates what a toy has learnt from what it has not.
    """
    return int((values < threshold * values.max()).sum())
