"""Energy that a run has used, where the machine can tell: GPUs by NVML (extra `gpu`), processors by RAPL on Linux."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from hf_ssl.errors import first_line
from hf_ssl.training.record import Progress
from hf_ssl.training.watch.base import Watch

logger = logging.getLogger(__name__)

_RAPL = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6


class EnergyMeter:
    """Energy used since it was made by this process's GPU and, in one process of a machine, by the processors.

    What it reads are counters of the whole device, so other programs that share it are counted too; memory, disks and
    cooling are not.

    Args:
        device: The device that trains.
        first_on_machine: Whether this process reads the processors' counters.
        rapl: Folder of the kernel's power capping interface.

    Attributes:
        parts: What is measured: `GPU`, `CPU`, both or nothing.
    """

    def __init__(self, device: torch.device, first_on_machine: bool, rapl: Path = _RAPL):
        self.parts: list[str] = []
        self._counters: list[_Counter] = []
        gpu = _gpu_counter(device)
        if gpu is not None:
            self.parts.append("GPU")
            self._counters.append(gpu)
        packages = _processor_counters(rapl) if first_on_machine else []
        if packages:
            self.parts.append("CPU")
            self._counters += packages

    def kwh(self) -> float | None:
        """Kilowatt-hours so far; None if nothing can be measured. A counter that wraps must be read once a round."""
        if not self._counters:
            return None
        return sum(counter.joules() for counter in self._counters) / JOULES_PER_KWH


class EnergyWatch(Watch):
    """Energy of all processes of a run, those before a resume included.

    Args:
        meter: Of this process; None where nothing is trained any more, perhaps on another machine.
        former: What the run had used before.
    """

    name = "The energy meter"

    def __init__(self, meter: EnergyMeter | None, former: Progress):
        super().__init__(at_end=False)  # it is in the record, and in no line of the log
        self._meter, self._former = meter, former

    def progress(self) -> dict[str, Any]:
        """Kilowatt-hours and what they are of; nothing where no machine tells."""
        former = {"energy_kwh": self._former.energy_kwh, "energy_of": self._former.energy_of}
        if self._meter is None:
            return former
        readings = gather_object([(self._meter.kwh(), self._meter.parts)])
        measured = [kwh for kwh, _ in readings if kwh is not None]
        if not measured:
            return {}
        parts = sorted({part for _, parts in readings for part in parts})
        return {"energy_kwh": round((self._former.energy_kwh or 0.0) + sum(measured), 6), "energy_of": parts}


class _Counter:
    """Joules counted by a device since the first reading; `wraps_at` is where its counter starts anew."""

    def __init__(self, read: Callable[[], float], wraps_at: float | None = None):
        self._read, self._wraps_at = read, wraps_at
        self._last, self._total = read(), 0.0
        self._silent = False  # told once

    def joules(self) -> float:
        try:
            now = self._read()
        except (OSError, ValueError) as error:
            if not self._silent:
                logger.warning("The energy is not counted while its counter cannot be read: %s.", first_line(error))
            self._silent = True
            return self._total
        used = now - self._last
        if used < 0 and self._wraps_at is not None:
            used += self._wraps_at
        self._total += max(used, 0.0)
        self._last = now
        return self._total


def _gpu_counter(device: torch.device) -> _Counter | None:
    if device.type != "cuda":
        return None
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # By its identity: `CUDA_VISIBLE_DEVICES` renumbers GPUs for torch and not for NVML.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

        def read() -> float:
            try:
                return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
            except pynvml.NVMLError as error:
                raise OSError(str(error)) from error

        return _Counter(read)
    except (pynvml.NVMLError, OSError):  # a GPU or a virtual machine that does not tell
        return None


def _processor_counters(rapl: Path) -> list[_Counter]:
    counters = []
    for package in sorted(rapl.glob("intel-rapl:*")):  # AMD's have this name too
        if package.name.count(":") > 1:  # a part of a package
            continue
        try:
            wraps_at = int((package / "max_energy_range_uj").read_text()) / 1e6
            counters.append(_Counter(lambda path=package / "energy_uj": int(path.read_text()) / 1e6, wraps_at))
        except (OSError, ValueError):  # most systems let only root read it
            continue
    return counters
