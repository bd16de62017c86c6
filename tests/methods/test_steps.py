"""Ten optimizer steps of each method against a plain second implementation, written from the papers' equations."""

import math

import numpy as np
import pytest
import torch
from plain import (
    Node,
    State,
    concatenate,
    exp,
    l2_normalize,
    linear,
    log,
    log_softmax,
    logsumexp,
    move_target,
    sequential,
    stop_gradient,
)
from steps import Batch, Rates, compare_steps, encode, make_tiny

from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.optimizers import build_optimizer, set_learning_rate

# So wide that ReLU does not cut off all of an image: a vector of zeros has no direction.
HEADS = {"projector_hidden_dim": 16, "projection_dim": 5, "predictor_hidden_dim": 12}


def mean_cosine(p: Node, z: Node) -> Node:
    return (l2_normalize(p) * l2_normalize(z)).sum(1).mean()


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("stopped", [True, False])
def test_simsiam(layers, stopped):
    model = make_tiny("simsiam", **HEADS, projector_layers=layers, stop_gradient=stopped)

    def forward(state: State, batch: Batch) -> Node:
        z, p = [], []
        for view in batch.views:
            h = encode(state, "encoder", view)
            z.append(sequential(state, "projector", h, "matrix norm relu " * (layers - 1) + "matrix plain_norm"))
            p.append(sequential(state, "predictor", z[-1], "matrix norm relu linear"))
        if stopped:
            z = [stop_gradient(z_i) for z_i in z]
        return mean_cosine(p[0], z[1]) * -0.5 - mean_cosine(p[1], z[0]) * 0.5

    compare_steps(model, forward)


def byol_loss(
    state: State, batch: Batch, predict, use_ema: bool = True, projector: str = "linear norm relu matrix"
) -> Node:
    """Squared distances of unit vectors, from each online view to the target's other view, added up."""
    z = [sequential(state, "projector", encode(state, "encoder", view), projector) for view in batch.views]
    p = [predict(z_i) for z_i in z]
    targets = z
    if use_ema:
        h = [encode(state, "target_encoder", view) for view in batch.views]
        targets = [sequential(state, "target_projector", h_i, projector) for h_i in h]
    loss = Node(0)
    for i, j in ((0, 1), (1, 0)):
        difference = l2_normalize(p[i]) - l2_normalize(stop_gradient(targets[j]))
        loss = loss + (difference * difference).sum(1).mean()
    return loss


def move_targets(state: State, momentum: float) -> None:
    for part in ("encoder", "projector"):
        move_target(state, f"target_{part}", part, momentum)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_byol(schedule):
    model = make_tiny("byol", **HEADS, ema_momentum=0.8, ema_schedule=schedule)

    def forward(state: State, batch: Batch) -> Node:
        return byol_loss(state, batch, lambda z: sequential(state, "predictor", z, "linear norm relu matrix"))

    def after(state: State, batch: Batch) -> None:
        done = (batch.step - 1) / batch.num_steps
        rising = 1 - (1 - 0.8) * (1 + math.cos(math.pi * done)) / 2
        move_targets(state, rising if schedule == "cosine" else 0.8)

    compare_steps(model, forward, after)


@pytest.mark.parametrize("use_ema", [True, False])
def test_byol_with_the_heads_of_directpreds_authors(use_ema):
    heads = {"projector_affine": False, "projector_bias": True, "predictor_affine": False}
    settings = {"use_ema": use_ema, "ema_momentum": 0.8, "ema_schedule": "constant", "target_init": "independent"}
    model = make_tiny("byol", **HEADS, **heads, **settings)

    def forward(state: State, batch: Batch) -> Node:
        def predict(z: Node) -> Node:
            return sequential(state, "predictor", z, "linear plain_norm relu matrix")

        return byol_loss(state, batch, predict, use_ema, "linear plain_norm relu linear")

    def after(state: State, batch: Batch) -> None:
        if use_ema:
            move_targets(state, 0.8)

    compare_steps(model, forward, after)


@pytest.mark.parametrize("use_ema", [True, False])
@pytest.mark.parametrize("symmetrize", [True, False])
def test_byol_with_a_linear_predictor_and_its_own_rate(symmetrize, use_ema):
    settings = {"symmetrize": symmetrize, "use_ema": use_ema, "ema_momentum": 0.8, "ema_schedule": "constant"}
    model = make_tiny("byol", **HEADS, predictor="linear", **settings)
    training = TrainingSettings(
        output_dir="not_used",
        optimizer="sgd",
        optimizer_momentum=0.9,
        weight_decay=0.02,
        decay_norm_and_bias=False,
        predictor_lr_multiplier=3.0,
        predictor_weight_decay=0.05,
    )

    def forward(state: State, batch: Batch) -> Node:
        return byol_loss(state, batch, lambda z: linear(state, "predictor", z), use_ema)

    def after(state: State, batch: Batch) -> None:
        if symmetrize:
            weight = state["predictor.weight"].value
            state["predictor.weight"] = Node((weight + weight.T) / 2)
        if use_ema:
            move_targets(state, 0.8)

    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim == 1}

    def rates(name: str) -> Rates:
        if name == "predictor.weight":
            return Rates(lr=0.15, decay=0.05)
        return Rates(lr=0.05, decay=0.0 if name in vectors else 0.02)

    optimizer = build_optimizer(model, training, 0.05)
    set_learning_rate(optimizer, 0.05, 1.0)
    compare_steps(model, forward, after, optimizer=optimizer, rates=rates)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("projector", "temperature", "splits"), [("linear", 0.07, 1), ("mlp", 0.2, 1), ("linear", 0.1, 2), ("mlp", 0.2, 3)]
)
def test_moco(projector, temperature, splits, shuffle, symmetric):
    """The queue of 19 keys goes round several times, never in whole steps; the second view's keys come first."""
    model = make_tiny(
        "moco",
        projector=projector,
        projection_dim=5,
        queue_size=19,
        temperature=temperature,
        ema_momentum=0.8,
        symmetric=symmetric,
        shuffle_keys=shuffle,
        bn_splits=splits,
    )
    for part in ("encoder", "projector"):
        model.get_submodule(f"target_{part}").load_state_dict(model.get_submodule(part).state_dict())
    official: State = {}

    def move_first(state: State) -> None:
        """The official code moves the target at the start of a step, by the weights that the last step left."""
        official.update({name: node for name, node in state.items() if name not in official or "target" not in name})
        move_targets(official, 0.8)
        for name in official:
            if name.startswith("target_") and name.endswith(("weight", "bias")):
                np.testing.assert_allclose(state[name].value, official[name].value, atol=1e-12)

    def project(state: State, branch: str, view: Node) -> Node:
        h = encode(state, f"{branch}encoder", view, splits)
        if projector == "linear":
            return l2_normalize(linear(state, f"{branch}projector", h))
        return l2_normalize(sequential(state, f"{branch}projector", h, "linear relu linear"))

    def forward(state: State, batch: Batch) -> Node:
        torch.manual_seed(batch.step)
        move_first(state)
        negatives, keys, loss = state["queue"].value, [], Node(0)
        for i, j in ((0, 1), (1, 0))[: 1 + symmetric]:
            query = project(state, "", batch.views[i])
            order = np.arange(8)
            if shuffle and splits > 1:
                order = torch.randperm(8).numpy()
            key = np.empty((8, 5))
            key[order] = project(state, "target_", batch.views[j][order]).value
            logits = concatenate([(query * key).sum(1, keepdims=True), query @ negatives], axis=1) / temperature
            loss = loss - log_softmax(logits)[:, 0].mean()
            keys += list(key)
        queue, position = negatives.copy(), int(state["queue_position"].value)
        for key in keys:
            queue[:, position] = key
            position = (position + 1) % 19
        state["queue"], state["queue_position"] = Node(queue), Node(position)
        return loss

    compare_steps(model, forward, lambda state, batch: move_targets(state, 0.8))


def pick_across(queries: Node, keys: Node, temperature: float) -> Node:
    """Each row of `queries` picks the row of `keys` with its number."""
    scores = l2_normalize(queries) @ l2_normalize(keys).T / temperature
    own = np.arange(len(queries))
    return (logsumexp(scores) - scores[own, own]).mean()


def pick_partner(first: Node, second: Node, temperature: float) -> Node:
    """Each row of both picks its partner among all rows of both but itself."""
    vectors = l2_normalize(concatenate([first, second]))
    scores, count = vectors @ vectors.T / temperature, len(vectors)
    rows = np.arange(count)
    others = np.array([[k for k in rows if k != i] for i in rows])
    return (logsumexp(scores[rows[:, None], others]) - scores[rows, (rows + count // 2) % count]).mean()


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(("layers", "symmetric"), [(1, True), (2, True), (3, False), (2, False)])
def test_end_to_end(layers, symmetric, joined):
    settings = {"projector_layers": layers, "symmetric": symmetric, "join_views": joined, "temperature": 0.3}
    model = make_tiny("end_to_end", projector_hidden_dim=16, projection_dim=5, **settings)
    words = "matrix norm relu " * (layers - 1) + "matrix scale_norm"

    def forward(state: State, batch: Batch) -> Node:
        views = [concatenate(batch.views)] if joined else batch.views
        h = [encode(state, "encoder", view) for view in views]
        z = [sequential(state, "projector", h_i, words) for h_i in h]
        if joined:
            z = [z[0][np.arange(8)], z[0][np.arange(8, 16)]]
        return pick_partner(*z, 0.3) if symmetric else pick_across(*z, 0.3)

    compare_steps(model, forward)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_end_to_end_with_two_networks(layers, symmetric):
    """Figure 2a of MoCo's paper: gradient moves the keys' network as it moves the queries'."""
    settings = {"projector_layers": layers, "symmetric": symmetric, "temperature": 0.3, "projector_norm": "none"}
    settings |= {"join_views": False, "separate_keys": True}
    model = make_tiny("end_to_end", projector_hidden_dim=16, projection_dim=5, **settings)
    words = "linear relu " * (layers - 1) + "linear"

    def forward(state: State, batch: Batch) -> Node:
        first = sequential(state, "projector", encode(state, "encoder", batch.views[0]), words)
        second = sequential(state, "key_projector", encode(state, "key_encoder", batch.views[1]), words)
        return pick_partner(first, second, 0.3) if symmetric else pick_across(first, second, 0.3)

    compare_steps(model, forward)


@pytest.mark.parametrize("dim", [4, 6])
def test_directclr(dim):
    model = make_tiny("directclr", subvector_dim=dim, temperature=0.2)

    def forward(state: State, batch: Batch) -> Node:
        first, second = (encode(state, "encoder", view)[:, :dim] for view in batch.views)
        return (pick_across(first, second, 0.2) + pick_across(second, first, 0.2)) * 0.5

    compare_steps(model, forward)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_contrastive_clustering(weight):
    settings = {"temperature": 0.3, "cluster_temperature": 0.7, "entropy_weight": weight}
    model = make_tiny("contrastive_clustering", projection_dim=5, num_clusters=3, **settings)
    with torch.no_grad():
        model.cluster_head[-1].weight.mul_(5)  # clusters of unequal size

    def forward(state: State, batch: Batch) -> Node:
        h = [encode(state, "encoder", view) for view in batch.views]
        z = [sequential(state, "projector", h_i, "linear relu linear") for h_i in h]
        tables = [exp(log_softmax(sequential(state, "cluster_head", h_i, "linear relu linear"))) for h_i in h]
        loss = pick_partner(*z, 0.3) + pick_partner(tables[0].T, tables[1].T, 0.7)
        for table in tables:
            sizes = table.mean(0)
            loss = loss + weight * (math.log(3) + (sizes * log(sizes)).sum())
        return loss

    compare_steps(model, forward)


DIRECTPRED = {
    "defaults": {},
    "code of the authors": {"projector_affine": False, "projector_bias": True, "ema_schedule": "cosine"},
    "output norm": {"projector_output_norm": True},
    "hybrid": {"freq": 2},
    "hybrid, plain average": {"freq": 3, "rho": None},
    "plain average": {"rho": None},
    "no memory": {"rho": 0.0},
    "literal epsilon": {"epsilon_form": "paper"},
    "offset": {"epsilon_form": "paper", "offset": 0.05, "epsilon": 0.02},
    "offset, code": {"offset": 0.2, "epsilon": 0.0},
    "covariance": {"remove_mean": True},
    "no moving average": {"use_ema": False},
    "trained by gradients": {"freq": 0},
    "one direction": {"symmetric": False, "freq": 2},
    "one direction, no moving average": {"symmetric": False, "use_ema": False},
    "directset": {"rule": "directset", "exponent": 0.8},
    "directset, literal epsilon": {"rule": "directset", "exponent": 1.5, "epsilon_form": "paper"},
    "directcopy": {"rule": "directcopy", "epsilon": 0.3},
    "directcopy of the covariance": {"rule": "directcopy", "remove_mean": True, "use_ema": False},
    "directcopy, code": {"rule": "directcopy", "copy_norm": "none", "rho": None, "freq": 2},
}


@pytest.mark.parametrize("case", DIRECTPRED)
def test_directpred(case):
    model = make_tiny("directpred", projector_hidden_dim=16, projection_dim=5, ema_momentum=0.8, **DIRECTPRED[case])
    config = model.config
    layers = " ".join(
        [
            "linear norm relu" if config.projector_affine else "linear plain_norm relu",
            "linear" if config.projector_bias else "matrix",
            *(["plain_norm"] if config.projector_output_norm else []),
        ]
    )

    def correlation(state: State) -> np.ndarray:
        mean = state["projection_mean"].value
        return state["correlation"].value - config.remove_mean * np.outer(mean, mean)

    def forward(state: State, batch: Batch) -> Node:
        weight = state["predictor.weight"] if config.freq != 1 else stop_gradient(state["predictor.weight"])
        online = batch.views if config.symmetric else batch.views[:1]
        z = [sequential(state, "projector", encode(state, "encoder", view), layers) for view in online]
        targets = z
        if config.use_ema or not config.symmetric:
            branch = "target_" if config.use_ema else ""
            predicted = batch.views if config.symmetric else batch.views[1:]
            h = [encode(state, f"{branch}encoder", view) for view in predicted]
            targets = [sequential(state, f"{branch}projector", h_i, layers) for h_i in h]
        loss = Node(0)
        for i, j in ((0, 1), (1, 0)) if config.symmetric else ((0, 0),):
            loss = loss - 2.0 * mean_cosine(z[i] @ weight.T, stop_gradient(targets[j]))
        # Mean over the views of the mean outer product, and of the mean.
        outer = sum(z_i.value.T @ z_i.value / 8 for z_i in z) / len(z)
        mean = sum(z_i.value.mean(0) for z_i in z) / len(z)
        batches = state["correlation_batches"].value
        kept = 0.0 if batches == 0 else batches / (batches + 1) if config.rho is None else config.rho
        state["correlation"] = Node(kept * state["correlation"].value + (1 - kept) * outer)
        state["projection_mean"] = Node(kept * state["projection_mean"].value + (1 - kept) * mean)
        state["correlation_batches"] = Node(batches + 1)
        if config.rule == "directcopy" and config.copy_norm == "spectral":
            direction = state["top_direction"].value
            for _ in range(8):
                direction = correlation(state) @ direction
                direction = direction / np.sqrt(direction @ direction)
            state["top_direction"] = Node(direction)
        return loss

    def predictor(state: State) -> np.ndarray:
        f = correlation(state)
        if config.rule == "directcopy":
            direction = state["top_direction"].value
            norm = direction @ f @ direction if config.copy_norm == "spectral" else 1.0
            return f / norm + config.epsilon * np.eye(5)
        s, u = np.linalg.eigh(f)
        s = np.maximum(s, 0)
        if config.epsilon_form == "paper":
            p = np.maximum(s - config.offset, 0) ** config.exponent + config.epsilon * s.max()
        else:
            relative = s / s.max()
            if config.offset != 0:
                relative = np.maximum(relative - config.offset, 1e-4)
            p = np.maximum(relative**config.exponent + config.epsilon, 1e-4)
        return u @ np.diag(p) @ u.T

    def after(state: State, batch: Batch) -> None:
        if config.freq and (batch.step - 1) % config.freq == 0:
            state["predictor.weight"] = Node(predictor(state))
        if config.use_ema:
            done = (batch.step - 1) / batch.num_steps
            rising = 1 - (1 - 0.8) * (1 + math.cos(math.pi * done)) / 2
            move_targets(state, rising if config.ema_schedule == "cosine" else 0.8)

    compare_steps(model, forward, after)
