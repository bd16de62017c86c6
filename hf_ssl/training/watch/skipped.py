"""Images that a run could not use."""

from collections import Counter
from typing import Any

from accelerate.utils import gather_object

from hf_ssl.data.order.stream import Batch
from hf_ssl.training.watch.base import Moment, Watch


class Skipped(Watch):
    """Counts the images that were skipped, by reason.

    Args:
        every: Optimizer steps between two log lines.
    """

    name = "The count of skipped images"
    may_fail = False

    def __init__(self, every: int):
        super().__init__(every)
        self._counts: dict[str, int] = {}

    def note(self, batch: Batch) -> None:
        """Take what this process has skipped up to a batch."""
        self._counts = batch.skipped

    def on_all(self) -> dict[str, int]:
        """What all processes have skipped; all must call it."""
        return dict(sum((Counter(part) for part in gather_object([self._counts])), Counter()))

    def look(self, moment: Moment) -> dict[str, Any]:
        """How many, if there are any."""
        number = sum(self.on_all().values())
        return {"skipped": number} if number else {}
