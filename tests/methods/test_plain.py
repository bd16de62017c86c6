"""The plain implementation that methods are compared with is itself right."""

import numpy as np
import plain
import pytest
from plain import Node

POSITIVE = np.array([[0.3, 1.2, 2.0], [0.7, 0.4, 1.5]])
SIGNED = np.array([[-0.3, 1.2, -2.0], [0.7, -0.4, 1.5]])
ROW = np.array([0.5, -1.5, 2.5])
COLUMN = np.array([[0.6], [-0.8]])
PAIR = np.array([0.4, -1.3])
OTHER_PAIR = np.array([1.7, 0.2])
SQUARE = np.array([[1.0, -2.0, 0.5], [0.3, 0.8, -1.1], [2.0, 0.1, 0.9]])
BATCH = np.array([[0.1, -1.0], [2.0, 0.5], [-0.7, 1.5], [1.1, 0.2], [-0.2, -0.9]])
OPERATIONS = {
    "add": (lambda a, b: a + b, [SIGNED, ROW]),
    "add a number": (lambda a: 2.0 + a + ROW, [SIGNED]),
    "subtract": (lambda a, b: a - b, [COLUMN, SIGNED]),
    "subtract from an array": (lambda a: ROW - a, [SIGNED]),
    "negate": (lambda a: -a, [SIGNED]),
    "multiply": (lambda a, b: a * b, [SIGNED, COLUMN]),
    "multiply with itself": (lambda a: a * a, [SIGNED]),
    "multiply an array": (lambda a: ROW * a, [SIGNED]),
    "divide": (lambda a, b: a / b, [SIGNED, ROW]),
    "divide a number": (lambda a: 3.0 / a, [SIGNED]),
    "power": (lambda a: a**3.0, [SIGNED]),
    "root": (plain.sqrt, [POSITIVE]),
    "matrix product": (lambda a, b: a @ b, [SIGNED, SQUARE]),
    "array times matrix": (lambda a: SIGNED @ a, [SQUARE]),
    "exchange rows and columns": (lambda a: a.T, [SIGNED]),
    "transpose": (lambda a: a.reshape(1, 2, 3).transpose(2, 0, 1), [SIGNED]),
    "reshape": (lambda a: a.reshape(3, 2), [SIGNED]),
    "sum": (lambda a: a.sum(), [SIGNED]),
    "sum over columns": (lambda a: a.sum(1), [SIGNED]),
    "sum, kept": (lambda a: a.sum(-1, keepdims=True), [SIGNED]),
    "mean over rows": (lambda a: a.mean(0), [SIGNED]),
    "mean over two axes": (lambda a: a.reshape(1, 2, 3).mean((0, 2)), [SIGNED]),
    "relu": (plain.relu, [SIGNED]),
    "exp": (plain.exp, [SIGNED]),
    "log": (plain.log, [POSITIVE]),
    "slice": (lambda a: a[:, 1:], [SIGNED]),
    "places that repeat": (lambda a: a[np.array([0, 1, 1, 0, 1])], [SIGNED]),
    "single entries": (lambda a: a[np.arange(2), np.array([2, 0])], [SIGNED]),
    "concatenate": (lambda a, b: plain.concatenate([a, b, a]), [SIGNED, SQUARE]),
    "concatenate columns": (lambda a, b: plain.concatenate([a, b], axis=1), [SIGNED, COLUMN]),
    "logsumexp": (plain.logsumexp, [SIGNED]),
    "logsumexp over rows": (lambda a: plain.logsumexp(a, 0, keepdims=True), [SIGNED]),
    "log_softmax": (plain.log_softmax, [SIGNED]),
    "normalize": (plain.l2_normalize, [SIGNED]),
    "linear": (lambda w, b, x: plain.linear({"l.weight": w, "l.bias": b}, "l", x), [SIGNED, PAIR, SQUARE]),
    "linear without bias": (lambda w, x: plain.linear({"l.weight": w}, "l", x), [SIGNED, SQUARE]),
    "batch norm": (lambda w, b, x: plain.batch_norm(norm_state(w, b), "n", x), [PAIR, OTHER_PAIR, BATCH]),
    "batch norm of groups": (lambda x: plain.batch_norm(norm_state(), "n", x, groups=2), [BATCH]),
}  # fmt: skip


def norm_state(weight: Node | None = None, bias: Node | None = None) -> plain.State:
    state = {
        "n.running_mean": Node(np.zeros(2)),
        "n.running_var": Node(np.ones(2)),
        "n.num_batches_tracked": Node(0),
    }
    return state if weight is None else {"n.weight": weight, "n.bias": bias, **state}


def weighted_sum(output: Node) -> Node:
    """A scalar to which every entry contributes differently."""
    return (output * np.sin(1 + np.arange(output.value.size)).reshape(output.shape)).sum()


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_are_those_of_finite_differences(name):
    operation, values = OPERATIONS[name]
    inputs = [Node(value) for value in values]
    weighted_sum(operation(*inputs)).backward()
    for number, node in enumerate(inputs):
        for place in np.ndindex(node.shape):
            values_around = []
            for shift in (1e-5, -1e-5):
                shifted = node.value.copy()
                shifted[place] += shift
                others = [Node(shifted) if i == number else other for i, other in enumerate(inputs)]
                values_around.append(weighted_sum(operation(*others)).value)
            difference = (values_around[0] - values_around[1]) / 2e-5
            assert node.gradient[place] == pytest.approx(difference, rel=1e-6, abs=1e-8)


def test_gradients_add_up_where_a_value_is_used_twice():
    x = Node([1.0, -2.0])
    y = plain.relu(x * 3.0) + x
    (y * y + x).sum().backward()
    np.testing.assert_allclose(x.gradient, [2 * 4 * 4 + 1, 2 * -2 * 1 + 1])


def test_a_stopped_gradient_reaches_nothing():
    x = Node([1.0, 2.0])
    (plain.stop_gradient(x * x) * 2.0).sum().backward()
    assert x.gradient is None


def test_running_statistics_are_those_of_the_rows():
    state = norm_state()
    normalised = plain.batch_norm(state, "n", Node(BATCH), groups=2)
    groups = [BATCH[:3], BATCH[3:]]
    mean = sum(group.mean(0) for group in groups) / 2
    variance = sum(((group - group.mean(0)) ** 2).sum(0) / (len(group) - 1) for group in groups) / 2
    np.testing.assert_allclose(state["n.running_mean"].value, 0.1 * mean)
    np.testing.assert_allclose(state["n.running_var"].value, 0.9 + 0.1 * variance)
    assert state["n.num_batches_tracked"].value == 1
    np.testing.assert_allclose(normalised.value[3:].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(normalised.value[:3].std(0), 1, atol=1e-4)


def test_sequential_refuses_other_layers_than_it_was_told():
    state = {"p.0.weight": Node(SQUARE), "p.2.weight": Node(SQUARE), "p.2.bias": Node(ROW)}
    expected = np.maximum(SIGNED @ SQUARE.T, 0) @ SQUARE.T + ROW
    np.testing.assert_allclose(plain.sequential(state, "p", Node(SIGNED), "matrix relu linear").value, expected)
    for layers in ("linear relu linear", "matrix relu matrix", "matrix relu", "matrix relu linear plain_norm"):
        with pytest.raises(AssertionError):
            plain.sequential(state, "p", Node(SIGNED), layers)


def test_sgd_keeps_its_velocity():
    state, velocity = {"w": Node(2.0)}, {}
    for gradient in (1.0, 3.0):
        state["w"].gradient = np.array(gradient)
        plain.sgd_step(state, velocity, "w", lr=0.5, momentum=0.9, decay=0.1)
    first = 1.0 + 0.1 * 2.0
    second = 0.9 * first + 3.0 + 0.1 * (2.0 - 0.5 * first)
    assert state["w"].value == pytest.approx(2.0 - 0.5 * first - 0.5 * second)


def test_targets_move_without_their_statistics():
    state = {
        "t.weight": Node([1.0]),
        "t.running_mean": Node([5.0]),
        "o.weight": Node([3.0]),
        "o.running_mean": Node([0]),
    }
    plain.move_target(state, "t", "o", 0.75)
    assert state["t.weight"].value == 1.5 and state["t.running_mean"].value == 5.0
