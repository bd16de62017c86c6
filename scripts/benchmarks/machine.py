"""What numbers depend on besides the program; every benchmark writes it beside its results."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

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
