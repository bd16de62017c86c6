"""The theory of stale keys, against simulated networks, closed forms and laws that are known."""

import math

import numpy as np
import pytest

from hf_ssl.dynamics.staleness import Drift, KeyTheory, Seen, average_weights, fit_drifts

WALK = Drift(walk=1e-6, turn=0.0, speed=0.0, slowing=0.0)
STRAIGHT = Drift(walk=0.0, turn=math.sqrt(2e-8), speed=0.0, slowing=0.0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 1.0])
def test_weights_are_those_of_the_moving_average(momentum: float):
    past = np.random.default_rng(0).normal(size=31)
    average = past[0]
    for value in past[1:]:
        average = momentum * average + (1 - momentum) * value
    weights = average_weights(30, momentum)
    assert weights @ past == pytest.approx(average, rel=1e-12)
    assert weights.sum() == pytest.approx(1, rel=1e-12) and (weights >= 0).all()


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.9, 0.98])
@pytest.mark.parametrize("age", [1, 4, 16])
def test_old_runs_have_the_closed_forms(momentum: float, age: int):
    """600 steps are long for these momenta: of a random walk, and of a constant velocity that m does not slow."""
    walk = 1 - KeyTheory(WALK, 0.1, momentum).agreement(600, age)
    expected = age - 2 * momentum * (1 - momentum**age) / (1 - momentum**2)
    assert walk == pytest.approx(1e-6 * expected, rel=2e-3)
    straight = 1 - KeyTheory(STRAIGHT, 0.1, momentum).agreement(600, age)
    assert straight == pytest.approx(1e-8 * age**2, rel=2e-2)


def test_a_key_encoder_that_follows_at_once_has_the_drift_of_the_queries():
    drift = Drift(walk=0.01, turn=0.02, speed=0.7, slowing=0.3)
    theory = KeyTheory(drift, 0.05, 0.0)
    for age in (1, 10, 100):
        assert theory.agreement(200, age) == pytest.approx(drift.cosine(200 - age, 200, 0.05), rel=1e-9)
    assert theory.lag(200) == pytest.approx(1)
    frozen = KeyTheory(drift, 0.05, 1.0)
    assert frozen.agreement(200, 100) == pytest.approx(1)
    assert frozen.lag(200) == pytest.approx(drift.cosine(0, 200, 0.05))


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("slowing", [0.0, 0.5])
def test_a_simulated_network_and_its_average_agree_with_the_theory(momentum: float, slowing: float):
    """Weights with the correlations of the law, drawn; vectors are the weights, keys their moving average."""
    drift = Drift(walk=0.02, turn=0.05, speed=0.1, slowing=slowing, lengths=((0, 0.5), (20, 2.0), (40, 3.0)))
    steps = np.arange(61)
    correlation = drift.cosine(steps[:, None], steps[None], 0.5)
    root = np.linalg.cholesky(correlation + 1e-10 * np.eye(61))
    queries = root @ np.random.default_rng(0).normal(size=(61, 40_000))
    queries *= np.interp(steps, [0, 20, 40], [0.5, 2.0, 3.0])[:, None]
    keys = [queries[0]]
    for query in queries[1:]:
        keys.append(momentum * keys[-1] + (1 - momentum) * query)
    theory = KeyTheory(drift, 0.5, momentum)
    for age in (1, 8, 50):
        measured = keys[60] @ keys[60 - age] / math.sqrt((keys[60] ** 2).sum() * (keys[60 - age] ** 2).sum())
        assert theory.agreement(60, age) == pytest.approx(measured, abs=0.015)
    lag = keys[60] @ queries[60] / math.sqrt((keys[60] ** 2).sum() * (queries[60] ** 2).sum())
    assert theory.lag(60) == pytest.approx(lag, abs=0.015)


def test_fitting_finds_the_law():
    laws = {
        0.0: Drift(walk=0.01, turn=0.03, speed=0.4),
        0.99: Drift(walk=0.005, turn=0.01, speed=0.4),
    }
    seen = [
        Seen(later - age, later, rate, momentum, float(drift.cosine(later - age, later, rate)))
        for momentum, drift in laws.items()
        for rate in (0.005, 0.03)
        for later in (50, 100, 200)
        for age in (1, 4, 16, 40)
    ]
    found = fit_drifts(seen)
    assert list(found) == [0.0, 0.99]
    for momentum, drift in laws.items():
        for name in ("walk", "turn", "speed"):
            assert getattr(found[momentum], name) == pytest.approx(getattr(drift, name), rel=0.02), name
        assert found[momentum].cosine(300, 400, 0.01) == pytest.approx(drift.cosine(300, 400, 0.01), rel=1e-2)


def test_fitting_refuses_what_cannot_tell_the_learning_rates_apart():
    with pytest.raises(ValueError, match="two learning rates"):
        fit_drifts([Seen(0, step, 0.1, 0.0, 0.9) for step in range(1, 9)])
