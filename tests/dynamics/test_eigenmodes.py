"""One eigenmode: golden values, the invariant, fixed points and their stability, the batch against scipy."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ssl.dynamics import EigenmodeFlow
from hf_ssl.dynamics.eigenmodes import target_lag
from hf_ssl.dynamics.integrate import integrate, integrate_batch

GOLDEN = EigenmodeFlow(alpha_p=1.0, eta=0.05, noise=0.5)


def test_golden_fixed_points():
    points = GOLDEN.fixed_points()
    assert points.p_minus.item() == pytest.approx(0.0544467, abs=1e-7)
    assert points.p_plus.item() == pytest.approx(0.6122200, abs=1e-7)
    assert points.s_plus.item() == pytest.approx(0.3748134, abs=1e-7)
    assert GOLDEN.critical_weight_decay().item() == pytest.approx(1 / 6)
    assert EigenmodeFlow(eta=0.16, noise=0.5).fixed_points().p_plus.item() == pytest.approx(0.4)
    assert EigenmodeFlow(eta=0.17, noise=0.5).fixed_points().p_plus.isnan()


@pytest.mark.parametrize(
    ("alpha_p", "eta", "p", "s", "p_end", "s_end"),
    [
        (1.0, 0.05, 0.05, 0.0025, 0, 0),
        (1.0, 0.05, 0.06, 0.0036, 0.61222, 0.37481),
        (1.0, 0.05, 1.0, 1.0, 0.61222, 0.37481),
        (1.0, 0.05, 0.01, 1.0, 0.61222, 0.37481),  # the invariant lifts it over the edge
        (5.0, 0.05, 0.05, 0.01, 0.61222, 0.07496),
        (1.0, 0.05, 0.05, 0.01, 0.61222, 0.37481),
        (0.2, 0.05, 0.05, 0.01, 0, 0),
        (1.0, 0.16, 1.0, 1.0, 0.4, 0.16),
        (1.0, 0.17, 1.0, 1.0, 0, 0),
    ],
)
def test_golden_ends(alpha_p, eta, p, s, p_end, s_end):
    mode = EigenmodeFlow(alpha_p=alpha_p, eta=eta, noise=0.5)
    path = mode.trajectory(p, s, times=torch.tensor([0.0, 1500.0]), method="LSODA")
    assert path[0][-1].item() == pytest.approx(p_end, abs=1e-5)
    assert path[1][-1].item() == pytest.approx(s_end, abs=1e-5)


def test_golden_stability():
    points = GOLDEN.fixed_points()
    at_plus = GOLDEN.stability(points.p_plus.item(), points.s_plus.item())
    at_minus = GOLDEN.stability(points.p_minus.item(), points.s_minus.item())
    torch.testing.assert_close(at_plus, torch.tensor([-0.1, -0.5122]).double(), atol=5e-5, rtol=0)
    torch.testing.assert_close(at_minus, torch.tensor([0.0456, -0.1]).double(), atol=5e-5, rtol=0)
    assert (GOLDEN.stability(0.0, 0.0) < 0).all()


positive = st.floats(0.2, 4.0)


@settings(deadline=None, max_examples=15)
@given(alpha_p=positive, eta=st.floats(0.0, 0.3), noise=st.floats(0.0, 2.0), p=positive, s=positive, signal=positive)
def test_the_invariant_decays_twice_as_fast_as_the_weights(alpha_p, eta, noise, p, s, signal):
    # Whatever the target does: with a moving average too.
    mode = EigenmodeFlow(alpha_p=alpha_p, eta=eta, noise=noise, signal=signal, beta=0.3)
    times = torch.linspace(0, 5, 6).double()
    p_path, s_path, _ = mode.trajectory(p, s, 0.5, times=times)
    expected = mode.invariant(p, s) * torch.exp(-2 * eta * times)
    torch.testing.assert_close(mode.invariant(p_path, s_path), expected, atol=1e-6, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    alpha_p=positive,
    share=st.floats(0.05, 0.95),
    noise=st.floats(0.0, 2.0),
    signal=positive,
    tau=st.floats(0.3, 1.5),
    ratio=st.floats(0.3, 3.0),
)
def test_fixed_points_stand_still_and_the_outer_one_is_stable(alpha_p, share, noise, signal, tau, ratio):
    critical = EigenmodeFlow(noise=noise, signal=signal).critical_weight_decay(tau).item()
    eta = share * critical
    mode = EigenmodeFlow(alpha_p=alpha_p, eta=eta, eta_p=ratio * eta, noise=noise, signal=signal)
    points = mode.fixed_points(tau)
    for p, s in ((points.p_minus, points.s_minus), (points.p_plus, points.s_plus)):
        rates = mode.rates(mode.start(p, s, tau))
        torch.testing.assert_close(rates, torch.zeros(3).double(), atol=1e-9, rtol=0)
    # Larger weight decay of the predictor moves s, not p; it makes both ends no less stable.
    assert (mode.stability(points.p_plus.item(), points.s_plus.item(), tau) < 0).all()
    assert mode.stability(points.p_minus.item(), points.s_minus.item(), tau)[0] > 0
    assert not EigenmodeFlow(eta=1.001 * critical, noise=noise, signal=signal).fixed_points(tau).p_plus.isfinite()


def test_the_jacobian_of_the_parabola_has_the_closed_form():
    mode = EigenmodeFlow(alpha_p=2.0, eta=0.03, noise=0.2)
    points, root = mode.fixed_points(0.9), math.sqrt(0.81 - 4 * 0.03 * 1.2)
    expected = sorted([-2 * 0.03, -points.p_plus.item() * root], reverse=True)
    found = mode.stability(points.p_plus.item(), points.s_plus.item(), 0.9).tolist()
    assert found == pytest.approx(expected)


def test_without_weight_decay_a_large_encoder_escapes_and_the_invariant_stays():
    mode = EigenmodeFlow(alpha_p=1.0, noise=0.5)
    times = torch.tensor([0.0, 400.0])
    p, s, _ = mode.trajectory(0.3, 0.5, times=times)
    assert p[-1].item() == pytest.approx(1 / 1.5, abs=1e-6)
    assert s[-1].item() == pytest.approx((1 / 1.5) ** 2 + 0.5 - 0.09, abs=1e-6)
    # Far below the parabola the mode is gone before p has fallen to its goal.
    assert mode.trajectory(1.0, 0.1, times=times)[1][-1].item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("others", [{"predictor": False}, {"stop_gradient": False}])
def test_theorem_2_every_mode_collapses_at_the_rate_of_the_theory(others):
    mode = EigenmodeFlow(alpha_p=1.0, eta=0.02, noise=0.5, **others)
    times = torch.linspace(0, 20, 5).double()
    p, s, _ = mode.trajectory(0.8, 1.0, times=times)
    assert s[-1] < 1e-6 and mode.critical_weight_decay().item() == 0 and mode.fixed_points().p_plus.isnan()
    if others == {"predictor": False}:
        torch.testing.assert_close(s, torch.exp(-2 * (0.5 + 0.02) * times), rtol=1e-6, atol=1e-12)
    else:
        fastest = 0.5 * (p.square() + 1) + (p - 1).square() + 0.02
        assert (s[1:] <= torch.exp(-2 * fastest.min() * times[1:]) + 1e-12).all()
    # With both the mode survives.
    assert EigenmodeFlow(eta=0.02, noise=0.5).trajectory(0.8, 1.0, times=times)[1][-1] > 0.3


def test_no_augmentation_and_no_weight_decay_need_no_stop_gradient():
    still = EigenmodeFlow(stop_gradient=False)
    assert still.trajectory(0.2, 1.0, times=torch.tensor([0.0, 60.0]))[0][-1].item() == pytest.approx(1, abs=1e-6)


def test_the_moving_average_is_a_curriculum():
    times = torch.linspace(0, 60, 601).double()
    slow = EigenmodeFlow(eta=0.02, noise=0.5, beta=0.1)
    p, s, tau = slow.trajectory(0.3, 0.09, 0.0, times=times)
    assert tau[0] == 0 and (tau.diff() > 0).all() and tau[-1] > 0.9
    # A fast target gives a higher goal at once, so the mode grows faster.
    fast = EigenmodeFlow(eta=0.02, noise=0.5, beta=10.0)
    p_fast, _, tau_fast = fast.trajectory(0.3, 0.09, 0.0, times=times)
    assert tau_fast[50] > tau[50] and fast.growth(p_fast, tau_fast).max() > slow.growth(p, tau).max()
    torch.testing.assert_close(target_lag(times, p, 0.1)[1:], tau[1:], atol=2e-5, rtol=1e-4)
    # It delays, and so loses what a fast one keeps (Obs. 10).
    p_start, end = 0.1, torch.tensor([0.0, 2000.0])
    kept = EigenmodeFlow(eta=0.05, noise=0.5, beta=4.0).trajectory(p_start, 0.01, 0.0, times=end, method="LSODA")
    lost = EigenmodeFlow(eta=0.05, noise=0.5, beta=0.02).trajectory(p_start, 0.01, 0.0, times=end, method="LSODA")
    assert kept[1][-1] > 0.3 and lost[1][-1] < 1e-6


def test_a_mode_of_signal_and_noise_learns_their_ratio():
    mode = EigenmodeFlow(alpha_p=1.0, beta=1.0, signal=0.5, noise=0.5)
    p, s, _ = mode.trajectory(0.1, 1.0, 0.0, times=torch.tensor([0.0, 100.0]))
    assert p[-1].item() == pytest.approx(0.5, abs=1e-5) and s[-1] > 0.5


def test_modes_equal_the_equations_of_their_weights():
    # dw_p/dt = [w_a l_d - w_p w l_s] w and so on (appendix D), by loops in plain numbers.
    w_p, w, w_a, step = 0.4, 0.7, 0.2, 1e-4
    mode = EigenmodeFlow(alpha_p=2.0, eta=0.03, eta_p=0.05, beta=0.6, signal=0.8, noise=0.3)
    expected = mode.trajectory(w_p, w**2, w_a / w, times=torch.tensor([0.0, 2.0]))
    for _ in range(20_000):
        gap = w_a * 0.8 - w_p * w * 1.1
        rates = 2.0 * gap * w - 0.05 * w_p, w_p * gap - 0.03 * w, 0.6 * (w - w_a)
        w_p, w, w_a = w_p + step * rates[0], w + step * rates[1], w_a + step * rates[2]
    assert [row[-1].item() for row in expected] == pytest.approx([w_p, w**2, w_a / w], rel=1e-4)


@pytest.mark.parametrize("beta", [None, 0.05, 2.0])
def test_the_batch_equals_scipy(beta):
    p = torch.linspace(0.02, 1.0, 4).double()[:, None]
    eta = torch.linspace(0, 0.2, 3).double()
    tau = 1.0 if beta is None else 0.0
    arrived = []
    batch = EigenmodeFlow(eta=eta, noise=0.5, alpha_p=2.0, beta=beta)
    ends = batch.final_state(p, p**2, tau, duration=60.0, on_step=arrived.append)
    assert arrived[-1] == 12 and arrived == sorted(arrived) and ends[0].shape == (4, 3)
    for row in range(4):
        for column in range(3):
            one = EigenmodeFlow(eta=eta[column].item(), noise=0.5, alpha_p=2.0, beta=beta)
            path = one.trajectory(p[row, 0], p[row, 0] ** 2, tau, times=torch.tensor([0.0, 60.0]), method="LSODA")
            for end, expected in zip(ends, path, strict=True):
                assert end[row, column].item() == pytest.approx(expected[-1].item(), rel=1e-5, abs=1e-5)


def test_every_run_of_a_batch_has_its_own_step():
    # Rates of 1 and 1000: exp(-rate t) of both, at a common error.
    rates = torch.tensor([1.0, 1000.0]).double()
    end = integrate_batch(lambda y: -rates * y, torch.ones(1, 2), 0.5, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(end[0], torch.exp(-rates * 0.5), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="1 of 2 runs are not at time 0.5 after 50 steps"):
        integrate_batch(lambda y: -rates * y, torch.ones(1, 2), 0.5, max_steps=50)


def test_a_vanishing_mode_with_a_slow_target_stays_finite():
    ends = EigenmodeFlow(eta=2.0, beta=0.01, noise=0.5).final_state(0.5, 0.25, 0.0, duration=500.0)
    assert all(bool(end.isfinite()) for end in ends) and ends[1] < 1e-100


def test_the_solver_says_when_it_gives_up():
    with pytest.raises(ValueError, match="RK45 gave up"):
        integrate(lambda y: y**2, torch.ones(1), torch.tensor([0.0, 2.0]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha_p": 0.0}, "`alpha_p` must be positive, got 0.0"),
        ({"eta": -0.1}, "`eta` must be at least 0, got -0.1"),
        ({"eta_p": -0.1}, "`eta_p` must be at least 0"),
        ({"noise": -1.0}, "`noise` must be at least 0"),
        ({"signal": 0.0}, "`signal` must be positive"),
        ({"beta": 0.4, "stop_gradient": False}, "`beta` needs `stop_gradient`"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        EigenmodeFlow(**wrong)


def test_wrong_starts_and_times():
    with pytest.raises(ValueError, match="`s` is an eigenvalue"):
        GOLDEN.start(0.1, -0.1)
    with pytest.raises(ValueError, match="`tau` must be 1 without `stop_gradient`"):
        EigenmodeFlow(stop_gradient=False).start(0.1, 0.1, 0.5)
    with pytest.raises(ValueError, match="`times` must be at least two increasing numbers"):
        GOLDEN.trajectory(0.1, 0.1, times=torch.tensor([0.0, 0.0]))
