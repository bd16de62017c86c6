"""Draw the flow of an eigenmode, whose two ends are collapse and a fixed point with variance.

An eigenvalue p of the predictor and s of the correlation end either at 0 or at p+ = (tau + root) / (2 (1 +
noise)), root^2 = tau^2 - 4 eta (1 + noise); p- with the minus sign is the edge between them. Weight decay leads
to the parabola s = p^2 / alpha_p, but raises p-, and above tau^2 / (4 (1 + noise)) only collapse is left.

    hf-ssl simulate phase_portrait --etas 0 0.05 0.17 --alpha_p 5
"""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from hf_ssl.dynamics.eigenmodes import EigenmodeFlow
from hf_ssl.figures.dynamics import Line, Panel, Portrait, line_panels, phase_portraits
from hf_ssl.settings import check_positive, checked
from hf_ssl.studies.simulations.result import SimulationResult, simulate

_P = r"$p$, eigenvalue of $W_p$"


@checked
class PhasePortraitSettings:
    """Eigenmodes without a moving average.

    Args:
        etas: Weight decays, at least 0; one panel each. Figure 3 of the paper has 0, 0.01 and 1.
        alpha_p: Learning rate of the predictor relative to that of the encoder, positive.
        noise: Variance sigma^2 of the augmentation, at least 0; that of the data is 1.
        tau: Target relative to the online network, positive; 1 is SimSiam.
        output_dir: Folder for figures and phase_portrait.json.
    """

    etas: tuple[float, ...] = (0.0, 0.01, 0.05, 1.0)
    alpha_p: float = 1.0
    noise: float = 0.5
    tau: float = 1.0
    output_dir: Path = Path("dynamics")

    def validate_phase_portrait(self) -> None:
        """Check the numbers."""
        check_positive(self, "tau", "alpha_p")


def run(settings: PhasePortraitSettings) -> SimulationResult:
    """Simulate, and write figures and numbers."""
    return simulate("phase_portrait", settings, phase_portrait)


def phase_portrait(settings: PhasePortraitSettings) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Figures and numbers of the flow of an eigenmode, for each weight decay."""
    goal = settings.tau / (1 + settings.noise)
    p, s = torch.linspace(0, 1.2 * goal, 61).double(), torch.linspace(0, 1.2 * goal**2, 61).double()
    portraits, panels, numbers = [], [], {}
    for eta in settings.etas:
        flow = EigenmodeFlow(alpha_p=settings.alpha_p, eta=eta, noise=settings.noise)
        p_rate, s_rate, _ = flow.rates(flow.start(p[None, :], s[:, None], settings.tau))
        points = flow.fixed_points(settings.tau)
        critical = flow.critical_weight_decay(settings.tau).item()
        ends = {name: value.item() for name, value in points._asdict().items()}
        alive = eta > 0 and eta < critical
        stable, unstable = [(0.0, 0.0)], []
        if alive:
            stable.append((ends["p_plus"], ends["s_plus"]))
            unstable.append((ends["p_minus"], ends["s_minus"]))
        title = rf"$\eta$ = {eta:g}"
        in_sight = [point for point in stable if eta > 0]
        portraits.append(
            Portrait(
                title=title,
                p=p,
                s=s,
                p_rate=p_rate,
                s_rate=s_rate,
                parabola=p.square() / settings.alpha_p,
                stable=in_sight,
                unstable=unstable,
                stable_line=goal if eta == 0 else None,
            )
        )
        line = torch.linspace(-0.15 * goal, 1.2 * goal, 200).double()
        # On the parabola the rate does not depend on alpha_p.
        rate, _, _ = flow.rates(flow.start(line, line.square() / settings.alpha_p, settings.tau))
        on_line = {"stable": [(point, 0.0) for point, _ in (stable if eta else [(goal, 0.0)])]}
        on_line["unstable"] = [(point, 0.0) for point, _ in (unstable if eta else [(0.0, 0.0)])]
        panels.append(
            Panel(
                title=title,
                x_label=_P,
                y_label=r"$\dot p$ on $s = p^2/\alpha_p$",
                lines=[Line(x=line, y=rate)],
                levels={"": 0.0},
                dots=on_line,
            )
        )
        numbers[f"{eta:g}"] = {
            **ends,
            "critical_weight_decay": critical,
            "eigenvalues_at_plus": flow.stability(ends["p_plus"], ends["s_plus"], settings.tau).tolist()
            if alive
            else None,
            "eigenvalues_at_minus": flow.stability(ends["p_minus"], ends["s_minus"], settings.tau).tolist()
            if alive
            else None,
        }
    figures = {"phase_portrait": phase_portraits(portraits), "one_dimensional_flow": line_panels(panels, 2)}
    return figures, {"fixed_points_by_eta": numbers}
