"""What the benchmarks share: how they read their flags, and what numbers depend on besides the program."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from hf_ssl.commands.flags import flags_of, parse_flags

_PACKAGES = (
    "hf_ssl",
    "torch",
    "torchvision",
    "timm",
    "datasets",
    "pyarrow",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "lightly",
)


def read_settings(arguments: Sequence[str], groups: Mapping[str, type], program: str, text: str) -> list[Any]:
    """The settings objects that a command line gives, in the order of `groups` (heading in `--help` -> class)."""
    flags = {heading: flags_of(kind) for heading, kind in groups.items()}
    values = parse_flags(arguments, flags, program=f"python scripts/benchmarks/{program}", description=text)
    own = [{field.name for field in fields(kind)} for kind in groups.values()]
    return [
        kind(**{name: value for name, value in values.items() if name in names})
        for kind, names in zip(groups.values(), own, strict=True)
    ]


def describe_machine() -> dict[str, Any]:
    """Processor, memory, device and versions, JSON-able."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: found for package in _PACKAGES if (found := _version(package)) is not None},
    }


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    models = [line for line in about.read_text().splitlines() if "model name" in line] if about.exists() else []
    return models[0].split(":")[1].strip() if models else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
