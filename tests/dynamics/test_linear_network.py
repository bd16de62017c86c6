"""The matrices: their gradient by finite differences and autograd, and each theorem of the paper."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ssl.dynamics import EigenmodeFlow, LinearNetworkFlow, Weights
from hf_ssl.dynamics.linear_network import commutator, eigenvector_cosines

DIM, INPUTS = 3, 4


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments() -> dict[str, torch.Tensor]:
    between, within = random(INPUTS, INPUTS, seed=1), random(INPUTS, INPUTS, seed=2)
    return {"between": between @ between.T / INPUTS, "within": within @ within.T / INPUTS / 2}


def weights() -> Weights:
    return Weights(random(DIM, INPUTS, seed=3), random(DIM, DIM, seed=4), random(DIM, INPUTS, seed=5))


def isotropic(dim: int, noise: float, **others) -> LinearNetworkFlow:
    return LinearNetworkFlow(between=torch.eye(dim), within=noise * torch.eye(dim), **others)


def test_the_objective_is_the_mean_squared_error_of_drawn_views():
    flow, (online, predictor, target) = LinearNetworkFlow(**moments()), weights()
    count = 400_000
    roots = [torch.linalg.cholesky(moment + 1e-9 * torch.eye(INPUTS)) for moment in (flow.between, flow.within)]
    x = random(count, INPUTS, seed=6) @ roots[0].T
    first, second = (x + random(count, INPUTS, seed=seed) @ roots[1].T for seed in (7, 8))
    errors = first @ (predictor @ online).T - second @ target.T
    expected = errors.square().sum(dim=1).mean() / 2
    assert flow.objective(Weights(online, predictor, target)).item() == pytest.approx(expected.item(), rel=0.01)


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("predictor", [True, False])
def test_rates_are_finite_differences_of_the_objective(stop_gradient, predictor):
    flow = LinearNetworkFlow(
        **moments(), alpha_p=2.5, eta=0.1, eta_p=0.3, stop_gradient=stop_gradient, predictor=predictor
    )
    start = flow.start(weights().online, weights().predictor)
    rates, step = flow.rates(start), 1e-6

    def slope(which: str, row: int, column: int) -> float:
        ends = []
        for sign in (1, -1):
            moved = getattr(start, which).clone()
            moved[row, column] += sign * step
            shifted = start._replace(**{which: moved})
            if which == "online" and not stop_gradient:
                shifted = shifted._replace(target=moved)  # the gradient runs through both branches
            ends.append(flow.objective(shifted).item())
        return (ends[0] - ends[1]) / (2 * step)

    for row in range(DIM):
        for column in range(INPUTS):
            expected = -slope("online", row, column) - 0.1 * start.online[row, column].item()
            assert rates.online[row, column].item() == pytest.approx(expected, abs=1e-6)
        for column in range(DIM if predictor else 0):
            expected = -2.5 * slope("predictor", row, column) - 0.3 * start.predictor[row, column].item()
            assert rates.predictor[row, column].item() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(rates.target, rates.online)
    if not predictor:
        assert not rates.predictor.any() and torch.equal(start.predictor, torch.eye(DIM).double())


def test_rates_are_autograd_of_the_objective_behind_a_moving_average():
    flow = LinearNetworkFlow(**moments(), beta=0.7, alpha_p=0.5)
    online, predictor, target = (weight.requires_grad_() for weight in weights())
    flow.objective(Weights(online, predictor, target)).backward()
    with torch.no_grad():
        rates = flow.rates(Weights(online, predictor, target))
    torch.testing.assert_close(rates.online, -online.grad)
    torch.testing.assert_close(rates.predictor, -0.5 * predictor.grad)
    torch.testing.assert_close(rates.target, 0.7 * (online - target).detach())


@settings(deadline=None, max_examples=15)
@given(alpha_p=st.floats(0.2, 5.0), eta=st.floats(0.0, 0.4), beta=st.none() | st.floats(0.01, 3.0))
def test_theorem_1_balance_decays_for_any_moments_and_target(alpha_p, eta, beta):
    flow = LinearNetworkFlow(**moments(), alpha_p=alpha_p, eta=eta, beta=beta)
    times = torch.linspace(0, 3, 4).double()
    path = flow.path(flow.start(*weights()), times)
    assert (flow.balance_residual(path, times) < 1e-6).all()
    # W W^T and W_p^T W_p / alpha_p alone do move.
    assert (flow.correlation(path)[-1] - flow.correlation(path)[0]).norm() > 1e-3


def test_theorem_1_with_two_weight_decays_is_refused():
    flow = LinearNetworkFlow(**moments(), eta=0.1, eta_p=0.3)
    times = torch.linspace(0, 1, 3).double()
    with pytest.raises(ValueError, match="`eta_p` must equal `eta`, got 0.3 and 0.1"):
        flow.balance_residual(flow.path(flow.start(*weights()), times), times)


@pytest.mark.parametrize("missing", [{"stop_gradient": False}, {"predictor": False}])
def test_theorem_1_without_its_ingredients_is_refused(missing):
    flow = LinearNetworkFlow(**moments(), eta=0.1, **missing)
    times = torch.linspace(0, 1, 3).double()
    path = flow.path(flow.start(*weights()), times)
    with pytest.raises(ValueError, match="Theorem 1 needs `stop_gradient` and a `predictor`"):
        flow.balance_residual(path, times)
    # It does not hold there: what it would leave unexplained is no rounding.
    balance = flow.balance(path)
    decay = torch.exp(-0.2 * times)[:, None, None]
    assert (balance - decay * balance[0]).norm(dim=(-2, -1))[-1] > 0.1


def test_theorem_1_at_the_euler_steps_of_the_golden_value():
    generator = torch.Generator().manual_seed(0)
    online, predictor = (0.3 * torch.randn(8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    flow = isotropic(8, 0.5, eta=0.05, beta=0.4)
    path = flow.descend(flow.start(online, predictor), 1e-3, 10_000, every=10_000)
    residual = flow.balance_residual(path, torch.tensor([0.0, 10.0]))[-1]
    assert 1e-6 < residual < 2e-3 * flow.balance(path).norm(dim=(-2, -1))[0]


def test_theorem_2_h_is_the_operator_of_the_flow_without_stop_gradient():
    flow = LinearNetworkFlow(**moments(), eta=0.07, stop_gradient=False)
    start = flow.start(weights().online, weights().predictor)
    operator = flow.decay_operator(start.predictor)
    columns = start.online.T.flatten()  # vec stacks columns
    expected = -(operator @ columns).reshape(INPUTS, DIM).T
    torch.testing.assert_close(flow.rates(start).online, expected)
    assert torch.linalg.eigvalsh(operator)[0] >= 0.07


def test_theorem_2_both_ingredients_are_needed():
    times = torch.tensor([0.0, 60.0]).double()
    online, predictor = random(6, 6, seed=9) / 6**0.5, torch.eye(6).double() * 0.8
    norms = {}
    for name, others in {"both": {}, "predictor": {"predictor": False}, "stop": {"stop_gradient": False}}.items():
        flow = isotropic(6, 0.5, eta=0.01, **others)
        norms[name] = flow.path(flow.start(online, predictor), times).online[-1].norm().item()
    assert norms["both"] > 0.5 and norms["predictor"] < 1e-8 and norms["stop"] < 1e-8


def test_theorem_2_without_predictor_weights_follow_the_noise_and_the_weight_decay():
    flow = LinearNetworkFlow(**moments(), eta=0.2, predictor=False)
    start = flow.start(weights().online)
    times = torch.linspace(0, 2, 3).double()
    path = flow.path(start, times)
    decay = flow.within + 0.2 * torch.eye(INPUTS)
    torch.testing.assert_close(
        path.online[-1], start.online @ torch.linalg.matrix_exp(-decay * 2.0), atol=1e-7, rtol=1e-6
    )


def symmetric_start(flow: LinearNetworkFlow, dim: int) -> Weights:
    predictor = random(dim, dim, seed=11) / dim**0.5
    return flow.start(random(dim, dim, seed=10) / dim**0.5, (predictor + predictor.T) / 2)


@pytest.mark.parametrize("eta_p", [None, 0.9, 0.0])
@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_theorem_3_the_commutator_follows_k(tau, eta_p):
    flow = isotropic(5, 0.3, alpha_p=2.0, eta=0.15, eta_p=eta_p, tau=tau, symmetric=True)
    start = symmetric_start(flow, 5)
    rates, step = flow.rates(start), 1e-6
    ends = []
    for sign in (1, -1):
        moved = Weights(*(weight + sign * step * rate for weight, rate in zip(start, rates, strict=True)))
        ends.append(commutator(flow.correlation(moved), moved.predictor))
    slope = (ends[0] - ends[1]) / (2 * step)
    operator = flow.alignment_operator(start)
    now = commutator(flow.correlation(start), start.predictor)
    torch.testing.assert_close(slope, -(operator @ now + now @ operator), atol=1e-8, rtol=1e-6)
    assert now.norm() > 0.1


@pytest.mark.parametrize("eta_p", [None, 0.9])
def test_growth_below_its_bound_is_k_above_zero(eta_p):
    flow = isotropic(3, 0.3, alpha_p=2.0, eta=0.15, eta_p=eta_p, tau=0.6, symmetric=True)
    p, s = torch.tensor([0.2, 0.7, 1.1]).double(), torch.tensor([0.9, 0.4, 0.1]).double()
    operator = flow.alignment_operator(flow.start(s.sqrt().diag(), p.diag()))
    mode = EigenmodeFlow(alpha_p=2.0, eta=0.15, eta_p=eta_p, noise=0.3)
    torch.testing.assert_close(mode.alignment_bound(s) - mode.growth(p, 0.6), operator.diagonal())


def test_the_symmetric_flow_is_that_of_the_paper():
    # dW_p/dt = -a (1 + v) {W_p, F} / 2 + a tau F - eta W_p; dF/dt = -(1 + v) {W_p^2, F} + tau {W_p, F} - 2 eta F.
    flow = isotropic(4, 0.3, alpha_p=2.0, eta=0.15, tau=0.6, symmetric=True)
    start = symmetric_start(flow, 4)
    rates, predictor, correlation = flow.rates(start), start.predictor, flow.correlation(start)
    both = predictor @ correlation + correlation @ predictor
    torch.testing.assert_close(rates.predictor, -1.3 * both + 2 * 0.6 * correlation - 0.15 * predictor)
    squares = predictor @ predictor @ correlation + correlation @ predictor @ predictor
    found = rates.online @ start.online.T + start.online @ rates.online.T
    torch.testing.assert_close(found, -1.3 * squares + 0.6 * both - 0.3 * correlation)


def test_eigenvectors_align_and_a_fast_predictor_aligns_them_faster():
    times = torch.tensor([0.0, 6.0]).double()
    left = {}
    for alpha_p in (0.3, 1.0, 5.0):
        flow = isotropic(8, 0.5, alpha_p=alpha_p, eta=0.05, symmetric=True)
        path = flow.path(symmetric_start(flow, 8), times, "LSODA")
        left[alpha_p] = commutator(flow.correlation(path), path.predictor, normalise=True)[-1].norm().item()
    assert left[5.0] < left[1.0] < left[0.3]


def test_the_surviving_modes_of_a_network_sit_at_the_fixed_point():
    flow = isotropic(8, 0.5, eta=0.05, symmetric=True)
    path = flow.path(symmetric_start(flow, 8), torch.tensor([0.0, 1200.0]).double(), "LSODA")
    last = path.at(-1)
    p, s = torch.linalg.eigvalsh(last.predictor), torch.linalg.eigvalsh(flow.correlation(last))
    alive = s > 1e-3
    assert 1 <= alive.sum() < 8
    torch.testing.assert_close(p[alive], torch.full_like(p[alive], 0.6122200), atol=1e-6, rtol=0)
    torch.testing.assert_close(s[alive], torch.full_like(s[alive], 0.3748134), atol=1e-6, rtol=0)
    assert p[~alive].abs().max() < 1e-6 and s[~alive].abs().max() < 1e-6
    assert commutator(flow.correlation(last), last.predictor, normalise=True).norm() < 1e-9


@pytest.mark.parametrize("beta", [None, 0.4])
def test_an_aligned_network_follows_its_eigenmodes(beta):
    basis, right = (torch.linalg.qr(random(8, 8, seed=seed))[0] for seed in (12, 13))
    p, s = torch.linspace(0.03, 1.2, 8).double(), torch.linspace(0.9, 0.05, 8).double()
    flow = isotropic(8, 0.5, alpha_p=2.0, eta=0.05, beta=beta)
    online = basis * s.sqrt() @ right
    times = torch.linspace(0, 30, 7).double()
    path = flow.path(flow.start(online, basis * p @ basis.T, 0 * online), times)
    expected = EigenmodeFlow(alpha_p=2.0, eta=0.05, noise=0.5, beta=beta).trajectory(
        p, s, 1.0 if beta is None else 0.0, times=times
    )
    for matrix, values in ((path.predictor, expected[0]), (flow.correlation(path), expected[1])):
        torch.testing.assert_close(matrix, basis * values[:, None, :] @ basis.T, atol=1e-6, rtol=1e-5)


def test_gradient_descent_follows_the_flow_and_drawn_views_follow_gradient_descent():
    flow = LinearNetworkFlow(**moments(), alpha_p=2.0, eta=0.05, beta=0.4)
    start = flow.start(*weights())
    path = flow.path(start, torch.tensor([0.0, 2.0]).double())
    descent = flow.descend(start, 0.001, 2000, every=1000)
    assert descent.online.shape == (3, DIM, INPUTS)
    drawn = flow.descend(start, 0.001, 2000, every=2000, batch_size=256, generator=torch.Generator().manual_seed(0))
    for exact, found, noisy in zip(path, descent, drawn, strict=True):
        torch.testing.assert_close(found[-1], exact[-1], atol=5e-3, rtol=0)
        torch.testing.assert_close(noisy[-1], exact[-1], atol=5e-2, rtol=0)


def test_draws_without_stop_gradient_use_the_gradient_of_both_branches():
    flow = LinearNetworkFlow(**moments(), stop_gradient=False)
    start = flow.start(weights().online, weights().predictor)
    exact = flow.descend(start, 0.001, 500, every=500)
    drawn = flow.descend(start, 0.001, 500, every=500, batch_size=512, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.online[-1], exact.online[-1], atol=5e-2, rtol=0)


def test_cosines_of_shared_and_rotated_eigenvectors():
    basis = torch.linalg.qr(random(4, 4))[0]
    correlation = basis * torch.tensor([4.0, 3.0, 2.0, 1.0]).double() @ basis.T
    predictor = basis * torch.tensor([0.5, -0.2, 0.1, 0.9]).double() @ basis.T
    torch.testing.assert_close(eigenvector_cosines(correlation, predictor), torch.tensor([1.0, -1, 1, 1]).double())
    # A quarter turn in the plane of the first two eigenvectors: W_p u is orthogonal to u there.
    turn = torch.eye(4).double()
    turn[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    torch.testing.assert_close(
        eigenvector_cosines(correlation, basis @ turn @ basis.T),
        torch.tensor([0.0, 0, 1, 1]).double(),
        atol=1e-12,
        rtol=0,
    )


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"tau": 0.5, "beta": 0.4}, "`tau` scales a target without moving average"),
        ({"stop_gradient": False, "beta": 0.4}, "`beta` needs `stop_gradient`"),
        ({"alpha_p": -1.0}, "`alpha_p` must be positive"),
        ({"within": torch.tensor([[0.0, 1.0], [0.0, 0.0]])}, "`within` must be a symmetric matrix"),
    ],
)
def test_wrong_settings(others, message):
    with pytest.raises(ValueError, match=message):
        LinearNetworkFlow(**{"between": torch.eye(2), "within": torch.eye(2), **others})


def test_theorem_3_says_what_it_needs():
    flow = LinearNetworkFlow(**moments(), symmetric=True)
    with pytest.raises(ValueError, match="Theorem 3 needs `between` I"):
        flow.alignment_operator(flow.start(*weights()))
    skew = torch.tensor([[1.0, 0.5], [0.0, 1.0]]).double()
    flow = isotropic(2, 0.5, symmetric=True)
    with pytest.raises(ValueError, match="needs weights whose predictor is symmetric"):
        flow.alignment_operator(Weights(skew, skew, skew))
