"""Train and follow linear networks with predictor and target, and check the theorems on the way.

W W^T - W_p^T W_p / alpha_p decays as exp(-2 eta t) (theorem 1), without predictor or without stop-gradient W
decays to 0 (theorem 2), and the eigenvectors of predictor and correlation align as long as growth stays below a
bound that a fast predictor and weight decay raise (theorem 3). A moving average starts the target small, which
sets a low goal first: a curriculum.

    hf-ssl simulate flow --etas 0 0.01 0.1 --beta 0.4 --noise 0.0009
"""

from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from hf_ssl.dynamics.eigenmodes import EigenmodeFlow
from hf_ssl.dynamics.linear_network import LinearNetworkFlow, commutator, eigenvector_cosines
from hf_ssl.figures.dynamics import Line, Panel, line_panels
from hf_ssl.settings import check_least, check_positive, checked
from hf_ssl.studies.simulations.result import SimulationResult, simulate

_TIME = r"time $t$ (steps $\times$ learning rate)"
_P = r"$p$, eigenvalue of $W_p$"


@checked
class FlowSettings:
    """Networks of three matrices.

    Args:
        etas: Weight decays, at least 0; one curve or panel each.
        alpha_p: Learning rate of the predictor relative to that of the encoder, positive.
        beta: Speed of the target's moving average where there is one, positive; (1 - ema_momentum) / learning rate.
        noise: Variance sigma^2 of the augmentation, at least 0; that of the data is 1.
        dim: Width of inputs and outputs, at least 2.
        predictor_scale: Entries of the predictor at the start relative to those of the encoder, whose variance is 1 /
            dim, at least 0. A larger one loses directions; those that survive align with the predictor in any case.
        num_runs: Trainings from random weights, at least 1.
        learning_rate: Of these trainings, positive.
        num_steps: Steps of these trainings, at least 10.
        batch_size: Images in a step of these trainings, at least 1.
        duration: Time that exact flows are followed for, positive.
        solver: Solver of scipy for the flows: RK45, or one for stiff problems.
        seed: Seed of weights and images.
        output_dir: Folder for figures and flow.json.
    """

    etas: tuple[float, ...] = (0.0, 0.01, 0.1)
    alpha_p: float = 1.0
    beta: float = 0.4
    noise: float = 0.0009
    dim: int = 8
    predictor_scale: float = 0.1
    num_runs: int = 10
    learning_rate: float = 0.01
    num_steps: int = 5000
    batch_size: int = 128
    duration: float = 60.0
    solver: Literal["RK45", "DOP853", "Radau", "BDF", "LSODA"] = "RK45"
    seed: int = 0
    output_dir: Path = Path("dynamics")

    def validate_flow(self) -> None:
        """Check the numbers."""
        check_least(self, dim=2, num_runs=1, num_steps=10, batch_size=1, noise=0, predictor_scale=0)
        check_positive(self, "beta", "learning_rate", "duration", "alpha_p")


def run(settings: FlowSettings) -> SimulationResult:
    """Simulate, and write figures and numbers."""
    return simulate("flow", settings, flow)


def flow(settings: FlowSettings) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Figures and numbers of trainings and of exact flows."""
    generator = torch.Generator().manual_seed(settings.seed)
    figures, numbers = {}, {}
    for name, part in {
        "eigenspace_alignment": _alignment_of_trainings,
        "hyperparameters": _hyperparameters,
        "constant_lag": _constant_lag,
        "theorems": _theorems,
        "signal_and_noise": _signal_and_noise,
    }.items():
        figures[name], numbers[name] = part(settings, generator)
    return figures, numbers


def _random_weights(dim: int, generator: torch.Generator, runs: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """W and W_p with entries of variance 1 / dim, (runs, dim, dim)."""
    online, predictor = torch.randn(2, runs, dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    return online, (predictor + predictor.mT) / 2 if symmetric else predictor


def _flow_of(settings: FlowSettings, eta: float, **others: Any) -> LinearNetworkFlow:
    eye = torch.eye(settings.dim)
    return LinearNetworkFlow(between=eye, within=settings.noise * eye, alpha_p=settings.alpha_p, eta=eta, **others)


def _alignment_of_trainings(settings: FlowSettings, generator: torch.Generator) -> tuple[Figure, dict[str, Any]]:
    """Figure 7 of the paper: trainings from W_a = 0, by weight decay; sizes of the random weights are not known."""
    online, predictor = _random_weights(settings.dim, generator, settings.num_runs, symmetric=False)
    every = max(1, settings.num_steps // 100)
    lines, numbers = [], {}
    for place, eta in enumerate(tqdm(settings.etas, desc="trainings", unit="weight decay")):
        network = _flow_of(settings, eta, beta=settings.beta)
        path = network.descend(
            network.start(online, settings.predictor_scale * predictor, torch.zeros_like(online)),
            settings.learning_rate,
            settings.num_steps,
            batch_size=settings.batch_size,
            generator=generator,
            every=every,
        )
        cosines = eigenvector_cosines(network.correlation(path), path.predictor).mean(dim=-1)
        steps = torch.arange(len(cosines)) * every
        lines.append(
            Line(
                x=steps,
                y=cosines.mean(dim=1),
                label=rf"$\eta$ = {eta:g}",
                colour=place % 7,
                band=(cosines.amin(dim=1), cosines.amax(dim=1)),
            )
        )
        numbers[f"{eta:g}"] = {"last_mean": cosines[-1].mean().item(), "last_lowest": cosines[-1].min().item()}
    panel = Panel(
        title=f"mean and range of {settings.num_runs} trainings",
        x_label="step",
        y_label=r"cosine of $u_j$ and $W_p u_j$, mean over $j$",
        lines=lines,
        y_range=(min(0.0, *(line.y.min().item() for line in lines)), 1.03),
    )
    return line_panels([panel]), {"cosine_by_eta": numbers}


def _hyperparameters(settings: FlowSettings, generator: torch.Generator) -> tuple[Figure, dict[str, Any]]:
    """Figure 5 of the paper, whose start is not known: one mode, by weight decay and by speed of the target."""
    times = torch.linspace(0, 2.5 * settings.duration, 400).double()
    rows = {
        r"$\eta$": [({"eta": eta, "beta": settings.beta}, eta) for eta in (0.0, 0.04, 0.2)],
        r"$\beta$": [({"eta": 0.04, "beta": beta}, beta) for beta in (0.05, 0.4, 4.0)],
    }
    panels, numbers = [], {}
    for symbol, cases in rows.items():
        curves: dict[str, list[Line]] = {name: [] for name in ("p", "s", "tau", "growth")}
        for place, (values, shown) in enumerate(cases):
            mode = EigenmodeFlow(
                alpha_p=settings.alpha_p, noise=settings.noise, eta=values["eta"], beta=values["beta"]
            )
            p, s, tau = mode.trajectory(0.3, 0.3, 0.0, times=times, method="LSODA")
            label = f"{symbol} = {shown:g}"
            for name, y in {"p": p, "s": s, "tau": tau}.items():
                curves[name].append(Line(x=times, y=y, colour=place))
            curves["growth"] += [
                Line(x=times, y=mode.growth(p, tau), label=label, colour=place),
                Line(x=times, y=mode.alignment_bound(s), label=f"bound, {label}", colour=place, style=":"),
            ]
            numbers[f"eta {values['eta']:g}, beta {values['beta']:g}"] = {
                "p": p[-1].item(),
                "s": s[-1].item(),
                "tau": tau[-1].item(),
            }
        titles = {"p": _P, "s": r"$s$, eigenvalue of $F$", "tau": r"$\tau$, lag of the target"}
        titles["growth"] = r"growth $\Delta$ and alignment bound"
        panels += [
            Panel(
                title=titles[name],
                x_label=_TIME,
                y_label="",
                lines=lines,
                # Where a mode collapses, its target lags without bound: what survives is of interest.
                y_range=(-0.03, 1.3) if name == "tau" else None,
            )
            for name, lines in curves.items()
        ]
    return line_panels(panels, 4), {"ends": numbers}


def _constant_lag(settings: FlowSettings, generator: torch.Generator) -> tuple[Figure, dict[str, Any]]:
    """Figure 8 of the paper, whose spectrum is not known: F = W_p^T W_p / alpha_p at the start, constant lag."""
    panels, numbers = [], {}
    times = torch.linspace(0, 2 * settings.duration, 200).double()
    eigenvalues = torch.logspace(-2.3, 0.1, settings.dim).double()
    basis = torch.linalg.qr(torch.randn(settings.dim, settings.dim, generator=generator, dtype=torch.float64))[0]
    predictor = basis * eigenvalues @ basis.T
    for eta in (0.001, 0.01, 0.05):
        network = _flow_of(settings, eta, symmetric=True)
        path = network.path(network.start(predictor / settings.alpha_p**0.5, predictor), times, settings.solver)
        values = torch.linalg.eigvalsh(path.predictor)
        points = EigenmodeFlow(alpha_p=settings.alpha_p, eta=eta, noise=settings.noise).fixed_points()
        edge, end = points.p_minus.item(), points.p_plus.item()
        panels.append(
            Panel(
                title=rf"$\eta$ = {eta:g}",
                x_label=_TIME,
                y_label=_P,
                lines=[Line(x=times, y=values)],
                levels={"$p_+$": end, "$p_-$": edge},
            )
        )
        numbers[f"{eta:g}"] = {
            "p_minus": edge,
            "p_plus": end,
            "first": values[0].tolist(),
            "last": values[-1].tolist(),
        }
    return line_panels(panels), {"eigenvalues_by_eta": numbers}


def _theorems(settings: FlowSettings, generator: torch.Generator) -> tuple[Figure, dict[str, Any]]:
    """The three theorems along exact flows; the right panel is figure 9 of the paper, of unknown starts."""
    times = torch.linspace(0, settings.duration, 300).double()
    online, predictor = (part[0] for part in _random_weights(settings.dim, generator, 1, symmetric=True))
    # K of theorem 3 is positive where the encoder is large beside the predictor.
    left, _, right = torch.linalg.svd(online)
    large = left * torch.linspace(1.0, 1.8, settings.dim).double() @ right
    early = times / 3
    balances, alignments, numbers = [], [], {}
    for place, eta in enumerate(settings.etas):
        label = rf"$\eta$ = {eta:g}"
        network = _flow_of(settings, eta, beta=settings.beta)
        path = network.path(network.start(online, predictor, torch.zeros_like(online)), times, settings.solver)
        balance = network.balance(path).norm(dim=(-2, -1))
        expected = balance[0] * torch.exp(-2 * eta * times)
        balances += [
            Line(x=times, y=balance, label=label, colour=place % 7),
            Line(x=times[::30], y=expected[::30], colour=place % 7, style="o"),
        ]
        symmetric = _flow_of(settings, eta, symmetric=True)
        aligned = symmetric.path(symmetric.start(large, predictor), early, settings.solver)
        norm = commutator(symmetric.correlation(aligned), aligned.predictor).norm(dim=(-2, -1))
        smallest = torch.linalg.eigvalsh(symmetric.alignment_operator(aligned))[:, 0]
        bound = norm[0] * torch.exp(-2 * torch.cumulative_trapezoid(smallest, early))
        alignments += [
            Line(x=early, y=norm, label=label, colour=place % 7),
            Line(x=early[1:], y=bound, label=f"bound, {label}", colour=place % 7, style=":"),
        ]
        numbers[f"{eta:g}"] = {
            "largest_balance_residual": network.balance_residual(path, times).max().item(),
            "first_commutator": norm[0].item(),
            "last_commutator": norm[-1].item(),
        }
    decays = []
    cases = {"as it is": {}, "no predictor": {"predictor": False}, "no stop-gradient": {"stop_gradient": False}}
    for place, (label, others) in enumerate(cases.items()):
        eye = torch.eye(settings.dim)
        network = LinearNetworkFlow(between=eye, within=0.5 * eye, alpha_p=settings.alpha_p, eta=0.01, **others)
        path = network.path(network.start(online, predictor @ predictor), times, settings.solver)
        size = path.online.norm(dim=(-2, -1))
        decays.append(Line(x=times, y=size, label=label, colour=place))
        numbers[f"norm of W, {label}"] = size[-1].item()
    panels = [
        Panel(
            title=r"theorem 1 (dots: $e^{-2\eta t}$)",
            x_label=_TIME,
            y_label=r"$\|WW^T - W_p^TW_p/\alpha_p\|$",
            lines=balances,
            logarithmic=True,
        ),
        Panel(
            title=r"theorem 2 ($\sigma^2$ = 0.5, $\eta$ = 0.01)",
            x_label=_TIME,
            y_label=r"$\|W\|$",
            lines=decays,
            logarithmic=True,
            y_range=(1e-10, 10),
        ),
        Panel(
            title="theorem 3",
            x_label=_TIME,
            y_label=r"$\|[F, W_p]\|$",
            lines=alignments,
            logarithmic=True,
            y_range=(1e-8, 30),
        ),
    ]
    return line_panels(panels), numbers


def _signal_and_noise(settings: FlowSettings, generator: torch.Generator) -> tuple[Figure, dict[str, Any]]:
    """Figure 10 of the paper: a mode of which half is noise, lambda_s = 1, lambda_d = 1/2, alpha_p = beta = 1."""
    mode = EigenmodeFlow(alpha_p=1.0, beta=1.0, signal=0.5, noise=0.5)
    times = torch.linspace(0, 40, 300).double()
    panels, ends = [], []
    curves: dict[str, list[Line]] = {"p": [], "w": [], "target": []}
    for place, (p0, w0) in enumerate(((0.1, 1.0), (0.5, 0.5), (1.0, 1.0), (1.5, 0.3), (0.1, 2.0))):
        p, s, tau = mode.trajectory(p0, w0**2, 0.0, times=times)
        w = s.clamp(min=0).sqrt()  # solvers leave -1e-30 of nothing
        for name, y in {"p": p, "w": w, "target": tau * w}.items():
            label = f"$w_p$ = {p0:g}, $w$ = {w0:g}" if name == "target" else ""
            curves[name].append(Line(x=times, y=y, label=label, colour=place))
        ends.append({"w_p": p[-1].item(), "w": w[-1].item(), "start": [p0, w0, 0.0]})
    titles = {"p": "$w_p$, predictor", "w": "$w$, online network", "target": "$w_a$, target"}
    for name, lines in curves.items():
        levels = {r"$\lambda_d/\lambda_s$": 0.5} if name == "p" else {}
        panels.append(Panel(title=titles[name], x_label=_TIME, y_label="", lines=lines, levels=levels))
    return line_panels(panels), {"signal_over_total": 0.5, "ends": ends}
