"""Train a classifier on an encoder, with all labels or few, and export it for transformers and timm.

    hf-ssl finetune runs/first --dataset shapes --output_dir runs/shapes-classifier
    hf-ssl finetune ENCODER --dataset ORG/NAME --label_fraction 0.01 --num_steps 500 --output_dir runs/one-percent

On several devices start it as `accelerate launch -m hf_ssl finetune ...`. ENCODER is the folder of a run, an encoder
folder, a repository on the Hub or a timm name; with the prefix `random:` its architecture is trained from scratch,
which shows what pretraining was worth. The same command with `--resume auto` continues a run that was stopped, bit for
bit. `classifier/` in the output folder is the repository to publish: weights, labels, results of the last step,
figures and model card.
"""

import logging
import os
import signal
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from hf_ssl.commands.command import Command
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.data.sources.subset import class_names, labelled_subset
from hf_ssl.errors import UserError
from hf_ssl.evaluation.results import update_results
from hf_ssl.figures.confusion import confusion_matrix
from hf_ssl.figures.metrics_log import read_metrics
from hf_ssl.figures.training import training_curves
from hf_ssl.fine_tuning.classifier import Classifier, check_classes, open_classifier
from hf_ssl.fine_tuning.export import export_classifier, publish_classifier, write_classifier_card
from hf_ssl.fine_tuning.settings import FineTuningSettings
from hf_ssl.fine_tuning.task import FineTuningResult, fine_tune
from hf_ssl.hub.access import check_push_access
from hf_ssl.hub.names import check_license
from hf_ssl.invocation import command_line
from hf_ssl.private import folders_among, public_command, public_name
from hf_ssl.settings import checked
from hf_ssl.training.lock import locked_output_dir
from hf_ssl.training.loop import checkpoint_text
from hf_ssl.training.output import prepare_output_dir

logger = logging.getLogger(__name__)

_Part = TypeVar("_Part", DataSettings, FineTuningSettings)


@checked
class FineTuneSettings(DataSettings, FineTuningSettings):
    """What is fine-tuned, on which labelled images, and how.

    Args:
        encoder: Folder of a run, encoder folder, repository on the Hub or timm name; `random:` before it: the same
            architecture from scratch.
        label_column: Column of the classes; found by its type or name if not given.
        view_recipe: Augmentation, a name in `hf_ssl/data/views/recipes.py`; `crop_and_flip` if not given. Of its two
            views fine-tuning uses the first.
        views_on: Only `cpu` here: workers make the views.
        decode_on: Only `cpu` here.
        cache: Only `none` here.
    """

    encoder: str

    @property
    def data(self) -> DataSettings:
        """The part about the images."""
        return self._part(DataSettings)

    @property
    def fine_tuning(self) -> FineTuningSettings:
        """The part about the classifier and its training."""
        return self._part(FineTuningSettings)

    def _part(self, kind: type[_Part]) -> _Part:
        names = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
        return kind(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class FineTuneResult:
    """How a run of fine-tuning ended.

    Args:
        run_dir: Folder of the run.
        classifier: The exported classifier, a folder that transformers and timm load; None if the run was stopped
            early, and on all processes but the first.
        accuracy: Share of the test split that the weights at the end classify correctly, in [0, 1]; None if the run
            was stopped early or there is no such split.
        results: What stands in the classifier's `results.json`: the last step and the best one.
        metrics: The lines of `metrics.jsonl`: loss, learning rate and scores by step.
        finished: Whether all steps were done.
        published: Address of the repository it was pushed to, if any.
        exit_code: 0, or 128 + the number of the signal that stopped the run.
    """

    run_dir: Path
    classifier: Path | None
    accuracy: float | None
    results: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    finished: bool
    published: str | None
    exit_code: int

    def __str__(self) -> str:
        lines = []
        if self.results:
            last, *others = self.results
            best = "".join(f" (best, at step {one['settings']['step']}: {one['value']:.1%})" for one in others)
            lines.append(f"Accuracy on split {last['split']}: {last['value']:.1%}{best}")
        if self.classifier is not None:
            lines.append(f"Classifier: {self.classifier}")
        if self.published is not None:
            lines.append(f"Published: {self.published}")
        return "\n".join(lines)


def run(settings: FineTuneSettings) -> FineTuneResult:
    """Check, train, score, export."""
    data, own = settings.data, settings.fine_tuning
    prepare_output_dir(own.training, data)
    check_license(own.license)
    if own.push_to_hub and _is_first():
        check_push_access(own.repo_id or "", private=own.private)
    source = data.open()
    names = class_names(source)
    test = _open_test(data, own, source, names)
    classifier = open_classifier(
        settings.encoder, names, model_args=own.model_args, image_size=own.image_size, seed=own.seed
    )
    counts, fraction = None, None
    if own.label_fraction < 1:
        subset = labelled_subset(source, names, own.label_fraction, own.seed, show_progress=_is_first())
        source, counts, fraction = subset.source, subset.counts, subset.fraction
    with locked_output_dir(own.training):  # until the export is done: it writes into the same folder
        result = fine_tune(classifier, source, test, data, own, counts, fraction)
        return _finished(result, classifier, source, test, data, own)


def _finished(
    result: FineTuningResult,
    classifier: Classifier,
    source: Source,
    test: Source | None,
    data: DataSettings,
    own: FineTuningSettings,
) -> FineTuneResult:
    """Export and publish what was trained to its end, and say how the run ended."""
    stopped_by = result.signal
    if stopped_by and result.is_main_process:
        logger.warning(
            "Stopped by %s after step %d of %d, %s. The same command with `--resume auto` (in "
            'Python `resume="auto"`) continues.',
            signal.Signals(stopped_by).name,
            result.step,
            result.num_steps,
            checkpoint_text(result.last_checkpoint),
        )
    folder, entries, published = None, [], None
    if result.is_main_process and not stopped_by:
        if test is not None and result.score is not None:
            entries = _entries(classifier.encoder, source, test, data, own, result)
        folder = _export(classifier, entries, own, result)
        if own.push_to_hub:
            published = publish_classifier(
                folder,
                own.repo_id or "",
                private=own.private,
                license=own.license,
                hub_timeout=own.hub_timeout,
                retry=_command_that_resumes(own),
            )
    log = Path(own.output_dir) / "metrics.jsonl"
    return FineTuneResult(
        run_dir=Path(own.output_dir),
        classifier=folder,
        accuracy=None if result.score is None else result.score.accuracy,
        results=entries,
        metrics=read_metrics(log) if result.is_main_process and log.is_file() else [],
        finished=result.step == result.num_steps,
        published=published,
        exit_code=128 + stopped_by if stopped_by else 0,
    )


def _command_that_resumes(settings: FineTuningSettings) -> str:
    command = command_line()
    if settings.resume is not None:
        return command
    return f'{command[:-1]}, resume="auto")' if command.startswith("hf_ssl.") else f"{command} --resume auto"


def _open_test(data: DataSettings, settings: FineTuningSettings, train: Source, names: list[str]) -> Source | None:
    """The split to score on: the one that is named, else the usual one, else none."""
    column = next(iter(train.labels))
    if settings.test_split is not None:
        if settings.test_split == train.split:
            raise UserError(
                f"`split` and `test_split` are both `{train.split}`: score on other images than those that are "
                "trained on."
            )
        test = data.open(settings.test_split)
        check_classes(names, test, column)
        return test
    for split in ("test", "validation"):
        if split == train.split:
            continue
        try:
            test = data.open(split)
            check_classes(names, test, column)
        except ValueError:
            continue  # no such split, or one without these labels
        return test
    if _is_first():
        logger.warning("No labelled split `test` or `validation`: nothing is scored. `--test_split` names another.")
    return None


def _is_first() -> bool:
    """Whether this is the first process: the others are silent."""
    return os.environ.get("RANK", "0") == "0"


def _export(
    classifier: Classifier, entries: list[dict[str, Any]], settings: FineTuningSettings, result: FineTuningResult
) -> Path:
    """Write the repository of the classifier: weights, results, figures and card."""
    run_dir = Path(settings.output_dir)
    folder = export_classifier(
        classifier.module,
        run_dir,
        architecture=classifier.architecture,
        model_args=classifier.model_args,
        data_config=classifier.data_config,
        class_names=classifier.class_names,
    )
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    training_curves(run_dir / "metrics.jsonl").savefig(figures / "training.png")
    if entries and result.score is not None:
        last = entries[0]
        title = f"{Path(last['dataset']).name}, split {last['split']}: {last['value']:.1%} right"
        confusion_matrix(result.score.confusion, classifier.class_names, title).savefig(figures / "confusion.png")
        update_results(folder / "results.json", entries)
    write_classifier_card(folder, license=settings.license)
    return folder


def _entries(
    encoder: str,
    source: Source,
    test: Source,
    data: DataSettings,
    settings: FineTuningSettings,
    result: FineTuningResult,
) -> list[dict[str, Any]]:
    """What goes into `results.json`: the last step, and beside it the best one."""
    assert result.score is not None
    given = {
        "train": settings.train,
        "label_fraction": settings.label_fraction,
        "train_images": source.num_images,
        "seed": settings.seed,
    }
    entry = {
        "dataset": public_name(source.name, source.kind),
        "dataset_kind": source.kind,
        "dataset_config": data.dataset_config,
        "split": test.split,
        "train_split": source.split,
        "label": next(iter(source.labels)),
        "metric": "accuracy",
        "num_images": result.score.num_images,
        "command": public_command(command_line(), source.name, source.kind, folders_among([encoder])),
    }
    confusion = result.score.confusion
    last = {
        **entry,
        "protocol": "fine-tuning",
        "value": result.score.accuracy,
        "settings": {**given, "step": result.step, "test_loss": result.score.loss},
        "per_class": (confusion.diagonal() / confusion.sum(dim=1).clamp(min=1)).tolist(),
    }
    if result.best is None:
        return [last]
    step, value = result.best
    settings_of_best = {**given, "step": step, "chosen_on": "the test split"}
    return [last, {**entry, "protocol": "fine-tuning-best", "value": value, "settings": settings_of_best}]


COMMAND = Command(
    "finetune",
    FineTuneSettings,
    run,
    __doc__ or "",
    words=("encoder",),
    first=(
        "dataset",
        "output_dir",
        "train",
        "label_fraction",
        "test_split",
        "num_epochs",
        "batch_size",
        "image_size",
        "resume",
        "push_to_hub",
    ),
    groups={
        "data": [field.name for field in fields(DataSettings)],  # pyright: ignore[reportArgumentType]
        "classifier and training": [field.name for field in fields(FineTuningSettings)],  # pyright: ignore[reportArgumentType]
    },
    function="fine_tune",
)
