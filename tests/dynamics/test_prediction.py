"""Whether a training setting collapses by theory: the rules, the correspondence with an optimizer, and the words."""

import itertools
import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from hf_ssl.dynamics import LinearNetworkFlow, TrainingSetting, predict_training

# Equal weight decays in time, as in the paper's equations.
GOLDEN = {"learning_rate": 0.01, "weight_decay": 0.05, "predictor_weight_decay": 0.05, "noise": 0.5}


def predict(num_steps: int | None = None, **values: Any):
    return predict_training(TrainingSetting(**{**GOLDEN, **values}), num_steps)


def test_the_golden_edge_of_the_basin():
    found = predict(predictor_scale=[0.05, 0.06, 1.0], encoder_scale=[0.05, 0.06, 1.0])
    assert found.survives.tolist() == [False, True, True] and not found.collapses
    assert found.p.tolist() == pytest.approx([0, 0.61222, 0.61222], abs=1e-5)
    assert found.s.tolist() == pytest.approx([0, 0.374813, 0.374813], abs=1e-5)
    assert "2 of 3 modes survive" in found.reason and "start below p = 0.05445" in found.reason
    lifted = predict(predictor_scale=0.01, encoder_scale=1.0)
    assert lifted.survives.all() and "lifts them over it" in lifted.reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"stop_gradient": False}, "without stop-gradient"),
        ({"stop_gradient": False, "ema_momentum": 0.99}, "without stop-gradient"),
        ({"predictor": "none"}, "without predictor"),
        ({"predictor": "none", "ema_momentum": 0.99}, "without predictor"),
        (
            {"weight_decay": 0.17, "predictor_weight_decay": 0.17},
            "weight decay 0.17 is not below the critical 0.166667",
        ),
        (
            {"weight_decay": 0.0, "predictor_weight_decay": 0.0, "encoder_scale": 0.1},
            r"s\(0\) is too far below p\(0\)\^2 / alpha_p",
        ),
        (
            {"ema_momentum": 0.9996, "target_scale": 0.0, "predictor_scale": 0.1, "encoder_scale": 0.1},
            "the target was small while they started",
        ),
    ],
)
def test_what_collapses_and_why(values, reason):
    found = predict(**values)
    assert found.collapses and found.s.tolist() == [0.0]
    assert re.search(reason, found.reason), found.reason


def test_without_noise_and_weight_decay_nothing_needs_the_ingredients():
    still: dict[str, Any] = {"weight_decay": 0.0, "predictor_weight_decay": 0.0, "noise": 0.0}
    for values in ({"stop_gradient": False}, {"predictor": "none"}):
        found = predict(None, **still, **values)
        assert found.survives.all() and "are both 0" in found.reason


def test_settings_of_an_optimizer_become_rates():
    flow = TrainingSetting(
        learning_rate=0.01, ema_momentum=0.996, weight_decay=4e-4, predictor_lr_multiplier=10.0
    ).flow()
    assert flow.beta == pytest.approx(0.4)  # the paper's example
    assert flow.alpha_p == 10 and flow.eta == 4e-4 and flow.eta_p == pytest.approx(4e-3)
    assert TrainingSetting(learning_rate=0.01).flow().beta is None


@pytest.mark.parametrize("multiplier", [1.0, 4.0])
def test_s_after_so_many_steps_is_that_of_gradient_descent(multiplier):
    # Weights of one optimizer with two learning rates and one weight decay, step by step as torch's SGD does it.
    values = {"learning_rate": 0.002, "weight_decay": 0.05, "predictor_lr_multiplier": multiplier}
    setting = TrainingSetting(**values, ema_momentum=0.995, noise=0.5, encoder_scale=0.7, predictor_scale=0.3)
    predictor, online = (torch.tensor([[value]], requires_grad=True) for value in (0.3, 0.7))
    target = torch.tensor([[0.7]])
    flow = LinearNetworkFlow(between=torch.eye(1), within=0.5 * torch.eye(1))
    groups = [{"params": [online]}, {"params": [predictor], "lr": 0.002 * multiplier}]
    optimizer = torch.optim.SGD(groups, lr=0.002, weight_decay=0.05)
    for _ in range(2000):
        loss = flow.objective(flow.start(online, predictor, target)._replace(target=target.double()))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        target = 0.995 * target + 0.005 * online.detach()
    found = predict_training(setting, 2000)
    assert found.p_after.item() == pytest.approx(predictor.item(), rel=5e-3)
    assert found.s_after.item() == pytest.approx(online.item() ** 2, rel=5e-3)


def test_modes_of_their_own_signal_and_noise():
    found = predict(signal=[1.0, 0.3], noise=[0.1, 0.9], predictor_scale=1.0, encoder_scale=1.0)
    assert found.survives.tolist() == [True, False]
    assert found.critical_weight_decay.tolist() == pytest.approx([1 / 4.4, 0.09 / 4.8])
    assert "weight decay 0.05 is not below the critical 0.01875" in found.reason
    assert "1 survives: the weight decay is below the critical one, and p tends to 0.856" in found.reason


NO_DECAY: dict[str, Any] = {"weight_decay": 0.0, "predictor_weight_decay": 0.0, "noise": 0.0}


@pytest.mark.parametrize(
    "values", [{"predictor": "none"}, {"stop_gradient": False}, {"predictor": "none", "ema_momentum": 0.9}]
)
def test_a_mode_with_little_noise_dies_as_one_with_much(values):
    found = predict(**(NO_DECAY | {"noise": [1.0, 1e-3]}), **values)
    assert found.survives.tolist() == [False, False] and found.s.tolist() == [0.0, 0.0]
    assert "theorem 2" in found.reason and found.reason.startswith("All modes collapse")


def test_modes_of_weak_signal_are_followed_to_their_end():
    found = predict(**NO_DECAY, signal=[1.0, 0.03, 0.01], predictor_scale=0.2, encoder_scale=0.3)
    assert found.survives.all()
    assert found.p.tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert found.s.tolist() == pytest.approx([0.09 - 0.04 + 1.0] * 3)  # s - p^2 never changes
    assert "p tends to 1." in found.reason


def test_a_small_mode_near_its_end_stays_without_decay():
    found = predict(**NO_DECAY, predictor_scale=0.999, encoder_scale=0.004**0.5)
    assert found.survives.all() and "All modes collapse" not in found.reason
    assert found.s.item() == pytest.approx(0.004 + 1 - 0.999**2)
    # The edge is where p has to fall to its goal before s is gone: p(0)^2 - s(0) = 1.
    for s, survives in ((0.21 - 1e-6, False), (0.21 + 1e-6, True)):
        edge = predict(**NO_DECAY, predictor_scale=1.1, encoder_scale=s**0.5)
        assert edge.survives.tolist() == [survives], s


def test_a_start_beside_the_end_that_repels_is_called_at_once():
    # p^2 - s is 1, where p would end, but for the last digits: the mode leaves that end after any time one likes.
    found = predict_training(TrainingSetting(learning_rate=0.05, predictor_scale=1.5, encoder_scale=1.11803399))
    assert found.survives.all() and found.p.item() == 1.0 and 0 < found.s.item() < 1e-7


@pytest.mark.parametrize(("factor", "survives"), [(1.0001, False), (1.0, False), (0.9999, True)])
def test_verdict_and_reason_agree_beside_the_critical_decay(factor, survives):
    critical = 1 / 6
    decay = {"weight_decay": factor * critical, "predictor_weight_decay": factor * critical}
    found = predict(**decay, predictor_scale=1.0, encoder_scale=1.0)
    assert found.survives.tolist() == [survives]
    assert ("is not below the critical" in found.reason) == (not survives)
    assert ("below the critical one, and p tends" in found.reason) == survives


def test_a_decay_of_one_of_both_weights():
    # The predictor alone: s grows forever, at last by 2 eta_p p^2 / alpha_p a unit of time.
    found = predict(1_000_000, weight_decay=0.0)
    assert found.survives.all() and found.s.tolist() == [float("inf")] and found.p.item() == pytest.approx(1 / 1.5)
    assert found.s_after.item() == pytest.approx(0.1 * (1 / 1.5) ** 2 * 10_000, rel=0.02)
    # One that a negative p makes tiny first needs 1e21 of it to come back.
    found = predict(weight_decay=0.0, predictor_weight_decay=0.046, predictor_scale=-1.0, encoder_scale=0.3)
    assert found.survives.all() and found.s.tolist() == [float("inf")]
    # The encoder alone.
    found = predict(predictor_weight_decay=0.0)
    assert found.collapses and "the encoder decays and the predictor does not" in found.reason


def weights_followed(setting: TrainingSetting, mode: dict[str, float]) -> list[tuple[float, float, float]]:
    """p, encoder and target of a mode after times that grow tenfold, or until it is gone, by equations of its own."""
    rate = setting.learning_rate
    alpha, eta = setting.predictor_lr_multiplier, setting.weight_decay
    eta_p = alpha * (eta if setting.predictor_weight_decay is None else setting.predictor_weight_decay)
    shared, added = mode["signal"], mode["noise"]
    lags = setting.ema_momentum is not None and setting.stop_gradient

    def slopes(_, state):
        p, w, a = state
        a = a if lags else w
        # Gradients of E (p w x1 - a x2)^2 / 2 by hand.
        to_prediction = p * w * (shared + added) - a * shared
        to_p, to_w = to_prediction * w, to_prediction * p
        if not setting.stop_gradient:
            to_w += a * (shared + added) - p * w * shared
        dw = -to_w - eta * w
        da = (1 - (setting.ema_momentum or 0.0)) / rate * (w - a) if lags else dw
        return [0.0 if setting.predictor == "none" else -alpha * to_p - eta_p * p, dw, da]

    state, states, span = np.array([mode["p"], mode["w"], mode["w"] * mode["tau"]]), [], 10.0
    for _ in range(6):
        way: Any = solve_ivp(slopes, (0.0, span), state, method="LSODA", rtol=1e-8, atol=1e-40, first_step=1e-4)
        assert way.success
        state = way.y[:, -1]
        states.append(tuple(state.tolist()))
        if np.abs(state).max() < 1e-6 * mode["w"]:
            break
        span *= 10
    return states


def drawn_setting(draw: random.Random) -> tuple[TrainingSetting, list[dict[str, float]]]:
    """A setting with two modes, decays of zero and around the critical one among them."""
    shared: dict[str, Any] = {"signal": [draw.choice([1.0, 0.3, draw.uniform(0.05, 2)]) for _ in range(2)]}
    shared["noise"] = [draw.choice([0.0, 1e-3, 0.1, 0.5, draw.uniform(0, 3)]) for _ in range(2)]
    critical = shared["signal"][0] ** 2 / (4 * (shared["signal"][0] + shared["noise"][0]))
    decay = critical * draw.choice([0.0, 0.05, 0.5, 0.9, 0.99, 1.01, 1.1, 3.0])
    alpha = draw.choice([1.0, 0.3, 10.0])
    values: dict[str, Any] = {
        "learning_rate": 0.05,
        "predictor_lr_multiplier": alpha,
        "weight_decay": decay,
        "predictor_weight_decay": draw.choice([None, 0.0, decay / alpha, 0.5 * critical]),
        "ema_momentum": draw.choice([None, None, 0.9, 0.996]),
        "stop_gradient": draw.random() < 0.8,
        "predictor": draw.choice(["learned", "symmetric", "learned", "none"]),
        "predictor_scale": [draw.choice([-1, 1, 1]) * draw.choice([0.02, 0.2, 1.0, 2.0]) for _ in range(2)],
        "encoder_scale": [draw.choice([0.03, 0.3, 1.0]) for _ in range(2)],
        "target_scale": draw.choice([1.0, 1.0, 0.0]),
    }
    lags = values["ema_momentum"] is not None and values["stop_gradient"]
    modes = [
        {
            "signal": shared["signal"][place],
            "noise": shared["noise"][place],
            "p": 1.0 if values["predictor"] == "none" else values["predictor_scale"][place],
            "w": values["encoder_scale"][place],
            "tau": values["target_scale"] if lags else 1.0,
        }
        for place in range(2)
    ]
    return TrainingSetting(**values, **shared), modes


@pytest.mark.parametrize("seed", [0, 1])
def test_verdicts_are_those_of_an_integration_of_its_own(seed):
    draw, decided, kinds = random.Random(seed), 0, set()
    for _ in range(60):
        setting, modes = drawn_setting(draw)
        found = predict_training(setting)
        for place, mode in enumerate(modes):
            states = weights_followed(setting, mode)
            s = [w * w for _, w, _ in states]
            gone = s[-1] < 1e-11 * mode["w"] ** 2 and abs(states[-1][2]) < 1e-4 * mode["w"]
            # At rest away from zero, or growing without end.
            rests = s[-1] > 1e-6 and all(abs(a - b) < 1e-3 * b for a, b in itertools.pairwise(s[-2:]))
            grows = s[-1] > 10 * mode["w"] ** 2 and s[-1] > 2 * s[-2] > 4 * s[-3]
            if not (gone or rests or grows):
                continue
            decided += 1
            survives = bool(found.survives[place])
            kinds.add((survives, setting.predictor == "none", setting.stop_gradient, setting.ema_momentum is None))
            assert survives == (not gone), (setting, place, states[-1], found.reason)
            if rests:
                assert found.s[place].item() == pytest.approx(s[-1], rel=2e-2), (setting, place)
                assert found.p[place].item() == pytest.approx(states[-1][0], rel=2e-2, abs=1e-3), (setting, place)
            assert (found.s[place].item() == 0) == (not survives)
        counted = re.match(r"(\d+) of 2 modes survive", found.reason)
        assert (int(counted[1]) if counted else 0) == int(found.survives.sum()), found.reason
        # Which rule is named, by conditions of its own.
        ingredients = setting.stop_gradient and setting.predictor != "none"
        above = [setting.weight_decay >= m["signal"] ** 2 / (4 * (m["signal"] + m["noise"])) for m in modes]
        decays = setting.weight_decay > 0 and setting.predictor_weight_decay != 0
        assert ("is not below the critical" in found.reason) == (ingredients and decays and any(above)), found.reason
        assert ("without stop-gradient, W follows" in found.reason) <= (not setting.stop_gradient)
        assert ("without predictor, W follows" in found.reason) <= (setting.predictor == "none")
        only_encoder = ingredients and setting.weight_decay > 0 and setting.predictor_weight_decay == 0
        assert ("the encoder decays and the predictor does not" in found.reason) == only_encoder, found.reason
    assert decided > 100 and len(kinds) > 8, (decided, len(kinds))


def test_slow_collapse_shows_after_many_steps_alone():
    found = predict(1000, predictor="none", weight_decay=0.0, noise=0.001)
    assert found.collapses and found.s_after.item() == pytest.approx(0.980, abs=1e-3)


def test_growth_against_the_bound_of_alignment():
    assert predict(predictor_scale=1.0, encoder_scale=1.0).stays_aligned.all()
    # Without a moving average a small symmetric start grows faster than its alignment allows (paper, section 3.3).
    loose = {"weight_decay": 4e-4, "predictor_weight_decay": 4e-4, "predictor": "symmetric"}
    small = {"predictor_scale": 0.1, "encoder_scale": 0.1}
    found = predict(None, **loose, **small)
    assert not found.stays_aligned.any() and "grow faster than their alignment allows" in found.reason
    assert predict(None, **loose, **small, predictor_lr_multiplier=20.0).stays_aligned.all()


@pytest.mark.parametrize(
    ("tiny", "survives", "p"),
    [
        ({"weight_decay": 0.0, "predictor_weight_decay": 1e-20}, True, 2 / 3),
        ({"weight_decay": 1e-20, "predictor_weight_decay": 0.0}, False, 2 / 3),
        ({"weight_decay": 1e-20, "predictor_weight_decay": 0.05}, True, 2 / 3),
    ],
)
def test_a_tiny_decay_that_decides_early_is_no_obstacle(tiny, survives, p):
    found = predict(**tiny)
    assert found.survives.tolist() == [survives] and found.p.item() == pytest.approx(p)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "`learning_rate` must be positive"),
        ({"weight_decay": -1.0}, "`weight_decay` must be at least 0"),
        ({"ema_momentum": 1.0}, r"`ema_momentum` must be in \[0, 1\)"),
        ({"noise": -1.0}, "`noise` must be at least 0"),
        ({"signal": [1.0, 0.0]}, "`signal` must be positive"),
        ({"encoder_scale": -1.0}, "`encoder_scale` must be at least 0, got -1.0"),
        ({"predictor": "foo"}, "`predictor` must be one of learned, symmetric, none, got foo"),
        ({"learning_rate": float("inf")}, "`learning_rate` must be finite, got inf"),
        ({"target_scale": float("nan")}, "`target_scale` must be finite, got nan"),
        ({"predictor_scale": float("nan")}, "`predictor_scale` must be finite, got nan"),
        ({"predictor_scale": [1.0, float("inf")]}, r"`predictor_scale` must be finite, got \[1.0, inf\]"),
        ({"signal": []}, r"`signal` must be one number, or a list with one for each mode, got \[\]"),
        ({"signal": [1.0, 2.0], "noise": [1.0, 2.0, 3.0]}, "must be of as many modes, got `signal` 2, `noise` 3"),
        *(
            ({"weight_decay": decay, "predictor_weight_decay": decay}, "for double precision. Set a tiny decay to 0")
            for decay in (1e-20, 1e-30)
        ),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        predict(**wrong)
    with pytest.raises(ValueError, match="`num_steps` must be at least 1, got 0"):
        predict(0)
