"""`metrics.jsonl` and `diagnostics.jsonl`: how a run went, one line at a time."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_ssl.figures.metrics_log import logged_line
from hf_ssl.training.files import storage_errors_explained
from hf_ssl.writing import write_whole

logger = logging.getLogger(__name__)


class MetricsLog:
    """A file with one JSON object a line.

    Args:
        path: The file; made with the first line.
        step: Lines after this step are removed, and those that cannot be read: the run resumes from there. 0 empties
            the file.

    Attributes:
        former: The lines that were kept.

    Raises:
        UserError: If the disk refuses to write.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        self.former: list[dict[str, Any]] = []
        if path.exists():
            with storage_errors_explained(path):
                # What a disk has damaged may be no text at all.
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                kept = [line for line in lines if _step_of(line) <= step and step > 0]
                write_whole(path, "".join(f"{line}\n" for line in kept))
            self.former = [json.loads(line) for line in kept]
            damaged = sum(_step_of(line) == float("inf") for line in lines[:-1])  # a kill may cut the last one
            if damaged and step > 0:
                logger.warning("%d damaged lines of `%s` are left out.", damaged, path)

    def append(self, values: Mapping[str, Any]) -> None:
        """Add one line."""
        with storage_errors_explained(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _step_of(text: str) -> float:
    line = logged_line(text)
    return float("inf") if line is None else line["step"]  # a kill cut it off, or a disk damaged it
