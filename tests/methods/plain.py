"""Reverse-mode differentiation of float64 numpy arrays, and the layers that methods are made of.

It shares no code with hf_ssl or PyTorch: what a method computes is written down a second time with it, from the
equations, and compared. Names of weights are those of the state dict.
"""

import itertools
from collections.abc import Callable, Sequence
from operator import attrgetter

import numpy as np

_numbers = itertools.count()


class Node:
    """A float64 array that remembers what it was computed from.

    Args:
        value: Number or array.
        parents: Pairs of a node that the value depends on, and the function that turns the gradient with respect to
            this value into the gradient with respect to that node.
    """

    __array_ufunc__ = None  # an array on the left leaves the operation to the node on the right

    def __init__(self, value, parents: Sequence[tuple["Node", Callable]] = ()):
        self.value = np.asarray(value, dtype=np.float64)
        self.parents = parents
        self.gradient: np.ndarray | None = None
        self.number = next(_numbers)  # parents have lower numbers

    def __len__(self) -> int:
        return len(self.value)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    def backward(self) -> None:
        """Give every node that this scalar was computed from its gradient; those of earlier calls add up."""
        assert self.shape == ()
        reached, waiting = {self}, [self]
        while waiting:
            new = {parent for parent, _ in waiting.pop().parents} - reached
            reached |= new
            waiting += new
        self.gradient = np.ones(())
        for node in sorted(reached, key=attrgetter("number"), reverse=True):
            for parent, pull in node.parents:
                gradient = _unbroadcast(pull(node.gradient), parent.shape)
                parent.gradient = gradient if parent.gradient is None else parent.gradient + gradient

    def __add__(self, other):
        other = as_node(other)
        return Node(self.value + other.value, [(self, lambda g: g), (other, lambda g: g)])

    def __mul__(self, other):
        other = as_node(other)
        pulls = [(self, lambda g: g * other.value), (other, lambda g: g * self.value)]
        return Node(self.value * other.value, pulls)

    def __pow__(self, exponent: float):
        return Node(self.value**exponent, [(self, lambda g: g * exponent * self.value ** (exponent - 1))])

    def __matmul__(self, other):
        """Product of two matrices."""
        other = as_node(other)
        assert self.value.ndim == other.value.ndim == 2
        pulls = [(self, lambda g: g @ other.value.T), (other, lambda g: self.value.T @ g)]
        return Node(self.value @ other.value, pulls)

    def __getitem__(self, place):
        """Part of the array; places may repeat."""

        def pull(g):
            gradient = np.zeros(self.shape)
            np.add.at(gradient, place, g)
            return gradient

        return Node(self.value[place], [(self, pull)])

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -as_node(other)

    def __truediv__(self, other):
        return self * as_node(other) ** -1.0

    def __rsub__(self, other):
        return as_node(other) - self

    def __rtruediv__(self, other):
        return as_node(other) / self

    def __rmatmul__(self, other):
        return as_node(other) @ self

    __radd__ = __add__
    __rmul__ = __mul__

    @property
    def T(self):  # noqa: N802
        """Matrix with rows and columns exchanged."""
        return self.transpose(1, 0)

    def transpose(self, *axes: int):
        return Node(self.value.transpose(axes), [(self, lambda g: g.transpose(np.argsort(axes)))])

    def reshape(self, *shape: int):
        return Node(self.value.reshape(shape), [(self, lambda g: g.reshape(self.shape))])

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False):
        kept = self.value.sum(axis, keepdims=True)
        pull = [(self, lambda g: np.broadcast_to(g.reshape(kept.shape), self.shape))]
        return Node(self.value.sum(axis, keepdims=keepdims), pull)

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False):
        total = self.sum(axis, keepdims)
        return total * (total.value.size / self.value.size)


def as_node(value) -> Node:
    return value if isinstance(value, Node) else Node(value)


def _unbroadcast(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Add up what a parent of this shape received in several places."""
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    return gradient.sum(axis=tuple(i for i, size in enumerate(shape) if size == 1), keepdims=True).reshape(shape)


def stop_gradient(x: Node) -> Node:
    return Node(x.value)


def relu(x: Node) -> Node:
    return Node(np.maximum(x.value, 0), [(x, lambda g: g * (x.value > 0))])


def exp(x: Node) -> Node:
    value = np.exp(x.value)
    return Node(value, [(x, lambda g: g * value)])


def log(x: Node) -> Node:
    return Node(np.log(x.value), [(x, lambda g: g / x.value)])


def sqrt(x: Node) -> Node:
    return x**0.5


def concatenate(parts: Sequence[Node], axis: int = 0) -> Node:
    ends = np.cumsum([part.shape[axis] for part in parts])

    def pull(i: int) -> Callable:
        return lambda g: np.split(g, ends[:-1], axis)[i]

    value = np.concatenate([part.value for part in parts], axis)
    return Node(value, [(part, pull(i)) for i, part in enumerate(parts)])


def logsumexp(x: Node, axis: int = -1, keepdims: bool = False) -> Node:
    largest = x.value.max(axis, keepdims=True)  # a constant: it cancels out
    total = log(exp(x - largest).sum(axis, keepdims=True)) + largest
    return total if keepdims else total.sum(axis)


def log_softmax(x: Node, axis: int = -1) -> Node:
    return x - logsumexp(x, axis, keepdims=True)


def l2_normalize(x: Node, axis: int = -1) -> Node:
    return x / sqrt((x * x).sum(axis, keepdims=True))


State = dict[str, Node]


def linear(state: State, name: str, x: Node) -> Node:
    """x W^T + b, with the bias that is there.

    Args:
        state: Weights, (outputs, inputs) and (outputs,).
        name: Name of the layer.
        x: (batch, inputs).
    """
    product = x @ state[f"{name}.weight"].T
    return product + state[f"{name}.bias"] if f"{name}.bias" in state else product


def batch_norm(state: State, name: str, x: Node, groups: int = 1) -> Node:
    """Normalise each channel by its mean and biased variance, scale and shift it, and move the running statistics.

    Args:
        state: Scale and shift, where the layer has them; running mean and unbiased variance, which are replaced.
        name: Name of the layer.
        x: (batch, channels).
        groups: Runs of neighbouring rows with statistics of their own; the running ones follow their mean.
    """
    outputs, means, variances = [], [], []
    for rows in np.array_split(np.arange(len(x)), groups):
        group = x[rows]
        mean = group.mean(0)
        variance = ((group - mean) ** 2.0).mean(0)
        outputs.append((group - mean) / sqrt(variance + 1e-5))
        means.append(mean.value)
        variances.append(variance.value * len(rows) / (len(rows) - 1))
    for key, new in (("running_mean", means), ("running_var", variances)):
        state[f"{name}.{key}"] = Node(0.9 * state[f"{name}.{key}"].value + 0.1 * np.mean(new, axis=0))
    state[f"{name}.num_batches_tracked"] = Node(state[f"{name}.num_batches_tracked"].value + 1)
    output = concatenate(outputs)
    if f"{name}.weight" in state:
        output = output * state[f"{name}.weight"]
    return output + state[f"{name}.bias"] if f"{name}.bias" in state else output


def sequential(state: State, name: str, x: Node, layers: str, groups: int = 1) -> Node:
    """Run numbered layers, and see that they have the weights that they should.

    Args:
        state: All weights and running statistics.
        name: Name of the module whose layers are `name`.0, `name`.1, ...
        x: (batch, inputs).
        layers: Words, one per layer: `linear` with bias, `matrix` without; `norm` with scale and shift, `plain_norm`
            without, `scale_norm` with scale alone; `relu`; `flatten`.
        groups: Groups of BatchNorm.
    """
    words = layers.split()
    stored = {key.removeprefix(f"{name}.").split(".")[0] for key in state if key.startswith(f"{name}.")}
    assert stored == {str(i) for i, word in enumerate(words) if word not in ("relu", "flatten")}, stored
    for i, word in enumerate(words):
        layer = f"{name}.{i}"
        if word in ("linear", "matrix"):
            assert (f"{layer}.bias" in state) == (word == "linear"), layer
            x = linear(state, layer, x)
        elif word in ("norm", "plain_norm", "scale_norm"):
            assert (f"{layer}.weight" in state) == (word != "plain_norm"), layer
            assert (f"{layer}.bias" in state) == (word == "norm"), layer
            x = batch_norm(state, layer, x, groups)
        else:
            x = {"relu": relu, "flatten": lambda x: x.reshape(len(x), -1)}[word](x)
    return x


def sgd_step(state: State, velocity: dict[str, np.ndarray], name: str, lr: float, momentum: float, decay: float):
    """v <- momentum v + gradient + decay w, then w <- w - lr v; the first v is the gradient with decay."""
    node = state[name]
    gradient = node.gradient + decay * node.value
    velocity[name] = momentum * velocity[name] + gradient if name in velocity else gradient
    state[name] = Node(node.value - lr * velocity[name])


def move_target(state: State, target: str, online: str, momentum: float) -> None:
    """t <- momentum t + (1 - momentum) o for every parameter; running statistics stay.

    Args:
        state: All weights.
        target: Name of the module that is moved.
        online: Name of the module that it follows.
        momentum: Fraction that is kept.
    """
    for name in [name for name in state if name.startswith(f"{target}.")]:
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            source = state[online + name.removeprefix(target)]
            state[name] = Node(momentum * state[name].value + (1 - momentum) * source.value)
