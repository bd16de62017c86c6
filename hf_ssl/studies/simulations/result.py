"""What simulations share: one thread, files of figures and numbers, and the result."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure

from hf_ssl.training.output import make_results_folder

_Settings = TypeVar("_Settings")


@dataclass(frozen=True)
class SimulationResult:
    """What a simulation came to.

    Args:
        numbers: The settings under `settings`, and the numbers that the figures show; None where a number does not
            exist, such as a fixed point.
        figures: The pictures that were drawn.
        json_file: The file of the numbers.
    """

    numbers: dict[str, Any]
    figures: list[Path]
    json_file: Path

    def __str__(self) -> str:
        return "\n".join(map(str, [*self.figures, self.json_file]))


def simulate(
    kind: str,
    settings: _Settings,
    simulation: Callable[[_Settings], tuple[dict[str, Figure], dict[str, Any]]],
) -> SimulationResult:
    """Run a simulation and write its figures and numbers.

    Args:
        kind: Its name, which is also that of the file of numbers.
        settings: Its settings; `output_dir` is the folder of the files.
        simulation: Gives the figures by name, and the numbers.
    """
    plain = asdict(settings)  # pyright: ignore[reportArgumentType]
    folder = Path(plain["output_dir"])
    plain["output_dir"] = str(folder)
    make_results_folder(folder, "output_dir")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are small
    try:
        figures, numbers = simulation(settings)
    finally:
        torch.set_num_threads(threads)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
    # JSON has no NaN, which stands where a fixed point does not exist.
    numbers = _without_nan({"settings": plain, **numbers})
    json_file = folder / f"{kind}.json"
    json_file.write_text(json.dumps(numbers, indent=1) + "\n")
    return SimulationResult(numbers, paths, json_file)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and value != value else value
