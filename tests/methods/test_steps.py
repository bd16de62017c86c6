"""Ten optimizer steps of each method against a plain second implementation, written from the papers' equations."""

from plain import Node, State, l2_normalize, sequential, stop_gradient
from steps import Batch, compare_steps, encode, make_tiny


def mean_cosine(p: Node, z: Node) -> Node:
    return (l2_normalize(p) * l2_normalize(z)).sum(1).mean()


def test_simsiam():
    model = make_tiny("simsiam", projector_hidden_dim=7, projection_dim=5, predictor_hidden_dim=4)

    def forward(state: State, batch: Batch) -> Node:
        z, p = [], []
        for view in batch.views:
            h = encode(state, "encoder", view)
            z.append(sequential(state, "projector", h, "matrix norm relu matrix norm relu matrix plain_norm"))
            p.append(sequential(state, "predictor", z[-1], "matrix norm relu linear"))
        z = [stop_gradient(z_i) for z_i in z]
        return mean_cosine(p[0], z[1]) * -0.5 - mean_cosine(p[1], z[0]) * 0.5

    compare_steps(model, forward)
