"""Publishing in training: somebody is called after each checkpoint."""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator

from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.training.processes import averaged_batch_norm
from hf_ssl.training.watch.base import Watch


class Publisher(Watch):
    """Calls somebody on the first process after each checkpoint but the last.

    Args:
        call: Gets step and model, whose BatchNorm statistics are those of all processes.
        model: The method, without wrapper.
        accelerator: The run's accelerator.
    """

    name = "Publishing"

    def __init__(
        self, call: Callable[[int, SSLPreTrainedModel], Any], model: SSLPreTrainedModel, accelerator: Accelerator
    ):
        super().__init__(at_end=False)
        self._call, self._model, self._accelerator = call, model, accelerator

    def saved(self, step: int) -> None:
        """Call, while the other processes wait."""
        with averaged_batch_norm(self._model):
            try:
                if self._accelerator.is_main_process:
                    self._call(step, self._model)
            finally:
                self._accelerator.wait_for_everyone()
