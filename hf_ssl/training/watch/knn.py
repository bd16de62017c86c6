"""k-NN accuracy of the encoder in training."""

from typing import Any

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.features import encoder_of, extract_features
from hf_ssl.evaluation.protocols import Measurement, measure, with_classes_of
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.checkpoint import random_state, set_random_state
from hf_ssl.training.processes import averaged_batch_norm
from hf_ssl.training.watch.base import Moment, Watch


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


class KNNWatch(Watch):
    """k-NN accuracy every so many steps; the exported encoder is measured after the last one.

    Args:
        every: Optimizer steps between two evaluations.
        knn: Measures.
        model: The method, without wrapper.
    """

    name = "k-NN"
    interruptible = True

    def __init__(self, every: int, knn: KNN, model: SSLPreTrainedModel):
        super().__init__(every, at_end=False)
        self._knn, self._model = knn, model

    def look(self, moment: Moment) -> dict[str, Any]:
        """The accuracy."""
        return {"knn": round(self._knn(self._model).value, 6)}


def open_knn(source: Source, data: DataSettings, settings: TrainingSettings) -> KNN | None:
    """The k-NN evaluation that the settings ask for.

    Args:
        source: The split that is trained on.
        data: Where its other splits are.
        settings: `knn_split` names the split to classify.

    Returns:
        None without `knn_split`.

    Raises:
        UserError: If that split cannot be opened or has no label, or is the one that is trained on.
    """
    if settings.knn_split is None:
        return None
    if settings.knn_split == source.split:
        raise UserError(
            f"`split` and `knn_split` are both `{source.split}`: k-NN would find each image among those "
            "that it knows. Classify another split, or none."
        )
    return KNN(
        source,
        data.open(settings.knn_split),
        batch_size=settings.batch_size,
        num_workers=data.num_workers,
        max_images=settings.knn_images,
    )
