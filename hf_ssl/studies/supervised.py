"""Training with labels, beside which studies show what training without them reaches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.fine_tuning.classifier import RANDOM, open_classifier
from hf_ssl.fine_tuning.settings import FineTuningSettings
from hf_ssl.fine_tuning.task import fine_tune
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.modules.preprocessing import preprocessing
from hf_ssl.studies.many_runs import StoppedError

_SHARED = (
    *("num_epochs", "num_steps", "batch_size", "log_every", "keep_checkpoints", "weight_decay"),
    *("optimizer_momentum", "lr_schedule", "mixed_precision"),
)


def train_supervised(
    method: SSLPreTrainedModel,
    source: Source,
    names: Sequence[str],
    data: DataSettings,
    training: Mapping[str, Any],
    *,
    folder: Path,
    seed: int,
    learning_rate: float,
) -> tuple[nn.Module, float]:
    """Train a classifier by SGD from the weights of a method's encoder, on one of the two views of each image.

    Args:
        method: Freshly made; it stays as it is.
        source: Labelled images.
        names: Of its classes.
        data: How images become batches.
        training: Settings of the methods beside it, of which length, batch and schedule are taken.
        folder: Of the run, which goes on if it was begun before.
        seed: Of the classifier's last layer and of the order of images.
        learning_rate: For 256 images a step.

    Returns:
        The encoder, and the seconds of training.

    Raises:
        StoppedError: If a signal ended it.
    """
    config = method.config
    classifier = open_classifier(
        f"{RANDOM}{config.architecture}", list(names), model_args=config.model_args, seed=seed
    )
    classifier.data_config = preprocessing(config.image_size, config.image_mean, config.image_std)
    start: Any = method.encoder
    assert not classifier.module.load_state_dict(start.state_dict(), strict=False).unexpected_keys
    given = {name: training[name] for name in _SHARED if name in training}
    settings = FineTuningSettings(
        **given,
        optimizer="sgd",
        base_learning_rate=learning_rate,
        output_dir=str(folder),
        seed=seed,
        resume="auto" if folder.exists() else None,
    )
    ended = fine_tune(classifier, source, None, data, settings)
    if ended.signal:
        raise StoppedError(ended.signal)
    encoder: Any = classifier.module
    encoder.reset_classifier(0)
    return encoder, ended.seconds
