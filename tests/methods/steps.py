"""Run a method of hf_ssl and a plain second implementation side by side, and compare all they compute.

The encoder is tiny and the images have 2 x 2 pixels. Both sides work in float64, the method too, so that they agree
to many digits after ten steps and a small mistake shows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from plain import Node, State, sequential, sgd_step
from timm.models import register_model
from torch import nn
from torch.overrides import TorchFunctionMode

from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLPreTrainedModel

ENCODER = "flatten linear norm relu linear"
PIXELS, HIDDEN_SIZE = 3 * 2 * 2, 6


class TinyEncoder(nn.Sequential):
    """What timm returns for `tiny_for_steps`: the layers of `ENCODER`."""

    num_features = HIDDEN_SIZE

    def __init__(self):
        super().__init__(
            nn.Flatten(), nn.Linear(PIXELS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, self.num_features)
        )


def tiny_for_steps(**_: Any) -> TinyEncoder:
    return TinyEncoder()


if not timm.is_model("tiny_for_steps"):
    register_model(tiny_for_steps)


class _Float64(TorchFunctionMode):
    """Whatever asks for float32 by name gets float64; losses and statistics of the package do."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


@contextmanager
def in_float64() -> Iterator[None]:
    """Compute in float64 what is meant to be float32, random numbers included."""
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@dataclass
class Batch:
    """One batch as the plain side sees it.

    Args:
        views: Two arrays (batch, 3, 2, 2).
        indices: Number of each image, (batch,).
        labels: Class of each image, (batch,).
        step: Number of the step, from 1. It also is the seed of PyTorch's generator before the method's forward pass:
            what the method draws, `forward` draws again by the same calls after `torch.manual_seed(step)`.
        num_steps: Steps of the run.
    """

    views: list[Node]
    indices: np.ndarray
    labels: np.ndarray
    step: int
    num_steps: int


@dataclass(frozen=True)
class Rates:
    """How the optimizer moves one parameter: learning rate, momentum and weight decay."""

    lr: float = 0.1
    momentum: float = 0.9
    decay: float = 0.01


def make_tiny(name: str, seed: int = 0, **settings: Any) -> SSLPreTrainedModel:
    """A method with the tiny encoder, in float64; no weight at a special value: targets differ from the start."""
    torch.manual_seed(seed)
    method = METHODS[name]
    model = method(method.config_class(architecture="tiny_for_steps", image_size=8, **settings)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_batch(step: int, batch_size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    pictures = torch.randn(batch_size, 1, 3, 2, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(batch_size, 2, 3, 2, 2, generator=generator, dtype=torch.float64)
    # Images come back after some steps, as in epochs.
    indices = (torch.arange(batch_size) + (step - 1) * batch_size) % (3 * batch_size)
    return {"pixel_values": pictures + 0.5 * noise, "indices": indices, "labels": indices % 3}


def state_of(model: nn.Module) -> State:
    return {name: Node(tensor.numpy().copy()) for name, tensor in model.state_dict().items()}


def encode(state: State, name: str, view: Node, groups: int = 1) -> Node:
    """Representations by the encoder (or target encoder) called `name`, which moves its running statistics."""
    return sequential(state, name, view, ENCODER, groups)


def compare_steps(
    model: SSLPreTrainedModel,
    forward: Callable[[State, Batch], Node],
    after: Callable[[State, Batch], None] = lambda state, batch: None,
    *,
    num_steps: int = 10,
    batch_size: int = 8,
    optimizer: torch.optim.Optimizer | None = None,
    rates: Callable[[str], Rates] = lambda name: Rates(),
    tolerance: float = 1e-8,
) -> None:
    """Take optimizer steps on both sides; compare the loss, every gradient, every parameter and every buffer.

    Args:
        model: From `make_tiny`.
        forward: The loss of a batch; may replace entries of the state, as the method's forward pass writes buffers.
        after: What happens to the state after the optimizer step.
        num_steps: Steps to take.
        batch_size: Images of a batch.
        optimizer: The one of the model; by default SGD as in `Rates()`.
        rates: What it does with the parameter of this name.
        tolerance: Relative difference that is allowed, and absolute one in units of the largest entry.
    """
    state, velocity = state_of(model), {}
    default = Rates()
    optimizer = optimizer or torch.optim.SGD(
        model.trainable_parameters().values(), default.lr, default.momentum, weight_decay=default.decay
    )

    def check(what: str, ours: torch.Tensor, plain: np.ndarray) -> None:
        atol = tolerance * max(1e-3, np.abs(plain).max())
        np.testing.assert_allclose(
            ours.detach().numpy(), plain, rtol=tolerance, atol=atol, err_msg=f"step {step}: {what}"
        )

    for step in range(1, num_steps + 1):
        tensors = make_batch(step, batch_size)
        torch.manual_seed(step)
        with in_float64():
            loss = model(**tensors).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.after_optimizer_step(step, num_steps)

        batch = Batch(
            [Node(view.numpy()) for view in tensors["pixel_values"].unbind(1)],
            tensors["indices"].numpy(),
            tensors["labels"].numpy(),
            step,
            num_steps,
        )
        leaves = dict(state)
        with in_float64():
            plain_loss = forward(state, batch)
        plain_loss.backward()
        check("loss", loss, plain_loss.value)
        moved = {name for name, leaf in leaves.items() if leaf.gradient is not None}
        gradients = {
            name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
        }
        assert moved == set(gradients), f"step {step}: gradients of {moved ^ set(gradients)} on one side only"
        for name, gradient in gradients.items():
            check(f"gradient of {name}", gradient, leaves[name].gradient)
            assert state[name] is leaves[name], f"{name} has a gradient and was written by the forward pass"
            rate = rates(name)
            sgd_step(state, velocity, name, rate.lr, rate.momentum, rate.decay)
        after(state, batch)
        # The next step starts from leaves.
        state = {name: Node(node.value) for name, node in state.items()}
        actual = model.state_dict()
        assert list(actual) == list(state)
        for name, tensor in actual.items():
            check(name, tensor, state[name].value)
