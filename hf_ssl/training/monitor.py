"""What is watched while a run trains: loss, speed, collapse, k-NN; nothing here changes what is trained."""

import importlib.util
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from hf_ssl.data.order.stream import Batch, TrainingStream
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.diagnostics import effective_rank, feature_std
from hf_ssl.distributed import gather, mean_over_processes
from hf_ssl.errors import UserError
from hf_ssl.evaluation.features import encoder_of, extract_features
from hf_ssl.evaluation.protocols import Measurement, measure, with_classes_of
from hf_ssl.methods.base import SSLOutput, SSLPreTrainedModel
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.checkpoint import random_state, set_random_state
from hf_ssl.training.processes import averaged_batch_norm

_SAME_SIGNAL_SECONDS = 3.0
_ROWS_FOR_RANK = 1024  # the spectrum of more rows costs seconds and says the same


class LossMonitor:
    """Mean loss since the last log line, and the first step with a loss that is no number, kept on the device.

    Args:
        device: Where losses live. Nothing is copied from it between two log lines.
    """

    def __init__(self, device: torch.device):
        self._sum = torch.zeros((), device=device)
        self._count = 0
        self._first_bad = torch.full((1,), -1, dtype=torch.int64, device=device)

    def add(self, loss: Tensor, step: int) -> None:
        """Take the loss of one forward pass.

        Args:
            loss: Scalar.
            step: Optimizer step that it belongs to, from 1.
        """
        loss = loss.detach().float()
        self._sum += loss
        self._count += 1
        is_first = (self._first_bad < 0) & ~loss.isfinite()
        self._first_bad = torch.where(is_first, step, self._first_bad)

    def mean(self) -> Tensor:
        """Mean loss since the last call on this process, a scalar."""
        mean = self._sum / max(self._count, 1)
        self._sum, self._count = torch.zeros_like(self._sum), 0
        return mean

    def check(self, last_good: Path | None) -> None:
        """Stop all processes together if any had a loss that is not finite.

        Raises:
            UserError: Names step, process and the last checkpoint.
        """
        found = [(step, number) for number, step in enumerate(gather(self._first_bad).tolist()) if step >= 0]
        if found:
            step, number = min(found)
            raise UserError(
                f"The loss was not finite at step {step} on process {number}. {_advice(last_good)} Lower "
                "`base_learning_rate`, or give `max_grad_norm`."
            )


def check_weights(model: SSLPreTrainedModel, step: int, last_good: Path | None) -> None:
    """Refuse to save weights or buffers that are no numbers, on all processes together.

    Raises:
        UserError: If any process has some.
    """
    finite = [value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point()]
    bad = gather((~torch.stack(finite).all()).long()[None])
    if bad.any():
        raise UserError(
            f"Weights were not finite after step {step} on process {int(bad.argmax())}. {_advice(last_good)} Lower "
            "`base_learning_rate`, or give `max_grad_norm`."
        )


def _advice(last_good: Path | None) -> str:
    return f"The last good checkpoint is `{last_good}`." if last_good else "No checkpoint was written before."


def collapse_figures(output: SSLOutput) -> dict[str, Tensor]:
    """Spread of the projections and effective rank of the representations of one batch of all processes.

    Takes the first view of each image. All processes must call it.
    """
    assert output.projections is not None and output.representations is not None
    projections = gather(output.projections[:, 0].contiguous())
    representations = gather(output.representations[:, 0].contiguous())[:_ROWS_FOR_RANK]
    return {"feature_std": feature_std(projections), "effective_rank": effective_rank(representations)}


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process; all processes must call it."""
    return bool(gather(torch.tensor([flag], dtype=torch.int64, device=device)).any())


def mean_figures(figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean of each scalar over processes, copied from the device at once."""
    stacked = torch.stack([value.detach().float().reshape(()) for value in figures.values()])
    return dict(zip(figures, mean_over_processes(stacked).tolist(), strict=True))


class Clock:
    """Seconds of training and of waiting for data since the last log line; evaluation and saving do not count.

    Args:
        total: Seconds of training before this process started.
    """

    def __init__(self, total: float):
        self.total = total
        self._seconds = self._waiting = 0.0
        self._images = 0
        self._resumed_at = time.perf_counter()

    def batches(self, stream: TrainingStream) -> Iterator[Batch]:
        """The stream's batches, timing how long each was waited for."""
        batches = iter(stream)
        while True:
            started = time.perf_counter()
            batch = next(batches)
            self._waiting += time.perf_counter() - started
            self._images += len(batch.views)
            yield batch

    def pause(self) -> None:
        """Leave out what follows, until `resume`."""
        elapsed = time.perf_counter() - self._resumed_at
        self._seconds += elapsed
        self.total += elapsed

    def now(self) -> float:
        """Seconds of training so far, those since `resume` included; not to be called while paused."""
        return self.total + time.perf_counter() - self._resumed_at

    def resume(self) -> None:
        """Count again."""
        self._resumed_at = time.perf_counter()

    def read(self, num_processes: int) -> dict[str, float]:
        """Speed since the last call, to be made while paused."""
        seconds = max(self._seconds, 1e-9)
        figures = {
            "images_per_second": round(self._images * num_processes / seconds, 1),
            "data_wait": round(min(self._waiting / seconds, 1.0), 4),
        }
        self._seconds = self._waiting = 0.0
        self._images = 0
        return figures


class KNN:
    """k-NN accuracy of a method's encoder on a labelled split, during and after training.

    Args:
        train_source: The split that is trained on; its labels are the memory.
        test_source: The split that is classified.
        batch_size: Images in one forward pass.
        num_workers: Worker processes that decode.
        max_images: Images of either split at most.

    Raises:
        UserError: If the splits have no label column in common.
    """

    def __init__(
        self, train_source: Source, test_source: Source, *, batch_size: int, num_workers: int, max_images: int | None
    ):
        shared = [label for label in test_source.labels if label in train_source.labels]
        if not shared:
            raise UserError(
                f"k-NN needs a label column that splits `{train_source.split}` and `{test_source.split}` of "
                f"`{test_source.name}` share, but they have none. Give `--label_column`, or leave out `knn_every`."
            )
        self.train_source, self.test_source, self.label = train_source, test_source, shared[0]
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "num_workers": num_workers,
            "max_images": max_images,
        }

    def __call__(self, model: SSLPreTrainedModel) -> Measurement:
        """Measure; random generators and training mode are left as they were.

        All processes must call it; each extracts its share of the features.
        """
        config = model.config
        encoder = encoder_of(model.encoder, config.image_size, config.image_mean, config.image_std)
        device = next(model.parameters()).device
        before = random_state(device)
        try:
            with averaged_batch_norm(model):
                train = extract_features(encoder, self.train_source, **self._options)
                test = extract_features(encoder, self.test_source, **self._options)
        finally:
            set_random_state(before, device)
        test = with_classes_of(test, self.test_source.labels, self.train_source.labels)
        return measure(train, test, [self.label], ["knn"])[0]


def open_knn(source: Source, data: DataSettings, settings: TrainingSettings) -> KNN | None:
    """The k-NN evaluation that the settings ask for.

    Args:
        source: The split that is trained on.
        data: Where its other splits are.
        settings: `knn_split` names the split to classify.

    Returns:
        None without `knn_split`.

    Raises:
        UserError: If that split cannot be opened or has no label.
    """
    if settings.knn_split is None:
        return None
    return KNN(
        source,
        data.open(settings.knn_split),
        batch_size=settings.batch_size,
        num_workers=data.num_workers,
        max_images=settings.knn_images,
    )


def check_tracker(report_to: str) -> None:
    """Refuse a tracker whose package is missing; Accelerate would ignore it silently.

    Raises:
        UserError: Names the package.
    """
    if report_to != "none" and importlib.util.find_spec(report_to) is None:
        raise UserError(f"`report_to` {report_to} needs a package: `pip install {report_to}`.")


class StopSignal:
    """Ctrl-C or a cluster's SIGTERM asks for the end of the run after the step in hand; a later Ctrl-C ends it now.

    A launcher passes the signal on that the terminal has already sent, so repetitions within seconds are one request.

    Attributes:
        received: Number of the signal, 0 if none came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._received_at = 0.0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received and number == signal.SIGINT and time.monotonic() > self._received_at + _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._received_at = number, time.monotonic()

    def on_any_process(self, device: torch.device) -> int:
        """The signal that any process received; all processes must call it."""
        return int(gather(torch.tensor([self.received], device=device)).max())
