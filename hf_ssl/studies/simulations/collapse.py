"""Train small contrastive networks that lose dimensions, for each of two reasons.

One layer loses the directions in which augmentation varies more than data, where X = Sigma_0 - Sigma_1 is
negative; W(t) = W(0) exp(X t) while X stands still. Several layers grow each singular value at a rate that rises
with it, so small ones are left behind even without augmentation, the more the deeper the network.

    hf-ssl simulate collapse --noises 0 1 2 --depths 1 2 3 4
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from hf_ssl.dynamics.dimensional_collapse import (
    ContrastiveToy,
    collapsed_dimensions,
    collapsing_directions,
    contrastive_spreads,
    frozen_growth,
)
from hf_ssl.figures.dynamics import Line, Panel, line_panels
from hf_ssl.settings import check_least, checked
from hf_ssl.studies.simulations.result import SimulationResult, simulate

_TIME = r"time $t$ (steps $\times$ learning rate)"
# Times at which the training beside fixed statistics is looked at.
_NUM_PARTS = 20


@checked
class CollapseSettings:
    """Contrastive learning of normal inputs.

    Args:
        noises: Standard deviations of the augmentation of half of the inputs, at least 0; inputs have 1.
        depths: Numbers of layers, at least 1.
        num_steps: Steps of each training, at least 1.
        batch_size: Images in a step, at least 2.
        dim: Width of inputs and layers, at least 2.
        seed: Seed of weights and images.
        output_dir: Folder for figures and collapse.json.
    """

    noises: tuple[float, ...] = (0.01, 0.5, 1.5, 2.0)
    depths: tuple[int, ...] = (1, 2, 3, 4)
    num_steps: int = 6000
    batch_size: int = 128
    dim: int = 16
    seed: int = 0
    output_dir: Path = Path("dynamics")

    def validate_collapse(self) -> None:
        """Check the numbers."""
        check_least(self, dim=2, num_steps=1, batch_size=2)


def run(settings: CollapseSettings) -> SimulationResult:
    """Simulate, and write figures and numbers."""
    return simulate("collapse", settings, collapse)


def collapse(settings: CollapseSettings) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Figures and numbers of the trainings."""
    base = ContrastiveToy(dim=settings.dim, num_steps=settings.num_steps, batch_size=settings.batch_size)
    strong = {noise: replace(base, noise=noise, noisy_dims=settings.dim // 2) for noise in settings.noises}
    weak = replace(base, noise=0.001, noisy_dims=settings.dim, start="decaying", learning_rate=0.01)
    deep = {depth: replace(weak, depth=depth) for depth in settings.depths}
    trainings = len(strong) + len(deep) + sum(depth > 1 for depth in deep)
    part = max(1, settings.num_steps // (4 * _NUM_PARTS))
    total = trainings * settings.num_steps + _NUM_PARTS * part
    with tqdm(total=total, desc="trainings", unit="step") as bar:
        frozen, frozen_numbers = _frozen_statistics(settings, part, bar)
        first, first_numbers = _strong_augmentation(strong, settings.seed, bar)
        second, second_numbers = _implicit_regularisation(deep, settings.seed, bar)
    figures = {"frozen_statistics": frozen, "strong_augmentation": first, "implicit_regularisation": second}
    numbers = {
        "frozen_statistics": frozen_numbers,
        "strong_augmentation_by_noise": first_numbers,
        "implicit_regularisation_by_depth": second_numbers,
    }
    return figures, numbers


def _strong_augmentation(toys: dict[float, ContrastiveToy], seed: int, bar: Any) -> tuple[Figure, dict[str, Any]]:
    panels, numbers = [], {}
    for noise, toy in toys.items():
        lines, counts = _spectrum(toy, seed, bar)
        title = f"$k$ = {noise:g}: {counts['collapsed']} lost, {counts['collapsed_by_theory']} predicted"
        panels.append(_spectrum_panel(title, lines, (0.03, 1.0)))
        numbers[f"{noise:g}"] = counts
    return line_panels(panels, 2), numbers


def _implicit_regularisation(toys: dict[int, ContrastiveToy], seed: int, bar: Any) -> tuple[Figure, dict[str, Any]]:
    panels, numbers = [], {}
    for depth, toy in toys.items():
        lines, counts = _spectrum(toy, seed, bar)
        layers = "1 layer" if depth == 1 else f"{depth} layers"
        title = f"{layers}: {counts['collapsed']} lost, {counts['collapsed_by_theory']} predicted"
        if depth > 1:
            generator = torch.Generator().manual_seed(seed)
            curved = replace(toy, relu=True)
            values = curved.embedding_spectrum(curved.train(generator, on_step=lambda _: bar.update()), generator)
            lines.append(Line(x=lines[0].x, y=values, style="o", colour=2, label="embedding, ReLU"))
            counts |= {"collapsed_with_relu": collapsed_dimensions(values), "values_with_relu": values.tolist()}
            title += f", {counts['collapsed_with_relu']} with ReLU"
        panels.append(_spectrum_panel(title, lines, (1e-9, 3.0)))
        numbers[str(depth)] = counts
    return line_panels(panels, 2), numbers


def _spectrum(toy: ContrastiveToy, seed: int, bar: Any) -> tuple[list[Line], dict[str, Any]]:
    """Singular values of a trained linear network and those by theory, as curves and as numbers."""
    layers = toy.train(torch.Generator().manual_seed(seed), on_step=lambda _: bar.update())
    product = torch.eye(toy.dim)
    for layer in layers:
        product = layer @ product
    values = torch.linalg.svdvals(product.double())
    predicted = toy.predicted_singular_values()
    places = torch.arange(1, toy.dim + 1)
    lines = [
        Line(x=places, y=predicted, colour=1, style="--", label="prediction"),
        Line(x=places, y=values, style="o", label="simulation"),
    ]
    return lines, {
        "collapsed": collapsed_dimensions(values),
        "collapsed_by_theory": collapsed_dimensions(predicted),
        "values": values.tolist(),
        "values_by_theory": predicted.tolist(),
    }


def _spectrum_panel(title: str, lines: list[Line], y_range: tuple[float, float]) -> Panel:
    return Panel(
        title=title,
        x_label="rank of the direction",
        y_label="singular value or std",
        lines=lines,
        logarithmic=True,
        y_range=y_range,
    )


def _frozen_statistics(settings: CollapseSettings, part: int, bar: Any) -> tuple[Figure, dict[str, Any]]:
    """The paper's first mechanism with its own loss: training beside W(0) exp(X t) with the X of the start."""
    generator = torch.Generator().manual_seed(settings.seed)
    toy = ContrastiveToy(
        noise=2.0,  # above the root of 2, augmentation exceeds data
        noisy_dims=settings.dim // 2,
        similarity="distance",
        noisy_views="second",
        learning_rate=0.005,
        dim=settings.dim,
        batch_size=settings.batch_size,
        num_steps=part,
    )
    layers = [0.1 * layer for layer in toy.initial_layers(generator)]
    first, second = toy.views(2000, generator)
    growth = contrastive_spreads(layers[0], first, second).growth.double()
    start = layers[0].double()
    trained, frozen = [torch.linalg.svdvals(start)], [torch.linalg.svdvals(start)]
    times = torch.arange(_NUM_PARTS + 1) * toy.num_steps * toy.learning_rate
    for time in times[1:].tolist():
        layers = toy.train(generator, layers, on_step=lambda _: bar.update())
        trained.append(torch.linalg.svdvals(layers[0].double()))
        frozen.append(torch.linalg.svdvals(frozen_growth(start, growth, time)))
    lost = collapsing_directions(growth)
    panel = Panel(
        title=rf"$k$ = 2: {lost} of {settings.dim} eigenvalues of $X$ negative",
        x_label=_TIME,
        y_label="singular values of $W$",
        lines=[
            Line(x=times, y=torch.stack(trained), label="training"),
            Line(x=times, y=torch.stack(frozen), label=r"$W(0)\,e^{Xt}$", colour=1, style="--"),
        ],
        logarithmic=True,
        y_range=(1e-7, 30),
    )
    eigenvalues = torch.linalg.eigvalsh(growth)
    counts = {"negative_eigenvalues": lost, "collapsed": collapsed_dimensions(trained[-1])}
    return line_panels([panel]), {**counts, "eigenvalues": eigenvalues.tolist(), "values": trained[-1].tolist()}
