"""Pretrain an image encoder without labels, and export it for transformers and timm.

    hf-ssl pretrain --dataset photos --output_dir runs/photos
    accelerate launch -m hf_ssl pretrain --method moco --dataset uoft-cs/cifar10 --output_dir runs/moco

The first trains DirectPred on a folder of images, with settings that fit their number and the machine; the second, on
all GPUs of the machine, on a data set of the Hub, which is streamed. Killed, or stopped by Ctrl-C or a cluster? The
same command with `--resume auto` continues bit for bit.
"""

import dataclasses
import logging
import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from hf_ssl.commands.command import call_text
from hf_ssl.commands.errors import as_user_errors
from hf_ssl.commands.flags import flags_of, parse_flags
from hf_ssl.commands.log import show_log
from hf_ssl.commands.resolve import DEFAULT_METHOD, INHERITED, Request, check_recipe, method_of, request_of
from hf_ssl.data.settings import DataSettings
from hf_ssl.errors import NotPublishedError, UserError
from hf_ssl.evaluation.results import results_in
from hf_ssl.figures.metrics_log import read_metrics
from hf_ssl.hub.background import BackgroundPublisher
from hf_ssl.hub.finish import Finish, finish_run
from hf_ssl.invocation import called_as
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.private import public_name
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.find import complete_checkpoints
from hf_ssl.training.lock import locked_output_dir
from hf_ssl.training.loop import TrainingResult, checkpoint_text, train
from hf_ssl.training.output import prepare_output_dir
from hf_ssl.training.plan import UNKNOWN_LENGTH
from hf_ssl.training.record import RunRecord
from hf_ssl.training.start import ENCODERS, EncoderStart, MethodStart

logger = logging.getLogger(__name__)

FIRST = (
    *("method", "dataset", "output_dir", "architecture", "recipe"),
    *("num_epochs", "max_hours", "batch_size", "image_size", "resume"),
)

GROUPS = {
    "run": ("output_dir", "recipe", "seed"),
    "length": ("num_epochs", "num_steps", "max_hours", "batch_size", "images_per_device"),
    "weights to start from": ("pretrained", "start_from"),
    "optimizer": (
        *("optimizer", "base_learning_rate", "learning_rate_scaling", "lr_schedule", "warmup_epochs", "warmup_steps"),
        *("weight_decay", "decay_norm_and_bias", "optimizer_momentum", "lars_trust_coefficient", "max_grad_norm"),
        *("predictor_lr_multiplier", "predictor_weight_decay"),
    ),
    "machine": (
        *("lanes", "mixed_precision", "compile", "activation_checkpointing", "deterministic", "channels_last"),
        *("batch_norm", "cpu"),
    ),
    "checkpoints and log": (
        *("checkpoint_every", "keep_checkpoints", "grace_seconds", "resume", "change", "log_every"),
        *("diagnostics_every", "on_collapse"),
        "report_to",
    ),
    "evaluation": ("knn_every", "knn_split", "knn_images"),
    "Hub": ("push_to_hub", "push_checkpoints", "repo_id", "private", "license", "gallery", "hub_timeout"),
}
"""Headings in `--help` of the fields of `TrainingSettings`, each of which stands under one."""

_FEW_EPOCHS = 5
_COLLAPSED = 3  # exit code of a run that `on_collapse` stopped


@dataclass(frozen=True)
class PretrainResult:
    """How a run ended, and where its parts are.

    Args:
        run_dir: Folder of the run.
        encoder: Folder of the exported encoder, for transformers and timm; None if the run was stopped early.
        pretraining: Folder of the whole method, for `AutoModelForPreTraining`; None if the run was stopped early.
        results: What was measured of the encoder, as in its results.json.
        metrics: The lines of metrics.jsonl: loss, learning rate, speed, spread and rank of the features.
        step: Optimizer steps done.
        num_steps: Optimizer steps of the whole run.
        skipped: Reason -> images that could not be used, each counted in every epoch.
        collapse: What the collapse alarm reported, in plain words; None if nothing.
        next_commands: What is usually typed next.
        url: Address of the published encoder, if it was published.
        unpublished: What should have been published and was not, where it lies, and which command publishes it.
        exit_code: 0, 3 after a collapse that stopped the run, 4 if something is unpublished, 128 plus its number after
            a signal.
    """

    run_dir: Path
    encoder: Path | None
    pretraining: Path | None
    results: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    step: int
    num_steps: int
    collapse: str | None
    next_commands: list[str]
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    url: str | None = None
    unpublished: list[str] = dataclasses.field(default_factory=list)
    exit_code: int = 0

    def __str__(self) -> str:
        if self.encoder is None:
            return ""  # what ended it has been logged
        lines = [f"Encoder: {self.encoder}"]
        for one in self.results:
            lines.append(f"k-NN:    {one['value']:.1%} of {one['label']} on split {one['split']}")
        lines.append(f"Collapse: {self.collapse or 'none was seen'}")
        if self.skipped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()))
            cure = "with `--max_skipped_ratio 0` a run stops and names some"
            lines.append(f"Skipped: {reasons}, counted in each epoch; {cure}")
        epochs = self.metrics[-1].get("epoch") if self.metrics else None
        if epochs is not None and epochs < _FEW_EPOCHS:
            lines.append(
                f"Short:   the run saw each image {epochs:.2g} times; useful features usually take tens of epochs"
            )
        if self.url:
            lines.append(f"Published: {self.url}")
        lines += ["\nNext:", *(f"  {command}" for command in self.next_commands)]
        if self.unpublished:
            lines += ["\nNot published:", *(f"  {one}" for one in self.unpublished)]
        return "\n".join(lines)


def pretrain(
    method: str | type[SSLPreTrainedModel] = DEFAULT_METHOD,
    *,
    dataset: Any = "shapes",
    output_dir: str | os.PathLike[str],
    encoder: str | None = None,
    recipe: str = "auto",
    **settings: Any,
) -> PretrainResult:
    """Pretrain an image encoder without labels, and export it for transformers and timm.

    The same as `hf-ssl pretrain`, whose `--method NAME --help` lists every setting.

    Args:
        method: Name of a method, such as `moco`, or a class of your own.
        dataset: `shapes`, `digits`, a folder of images, parquet or tar files, the id of a data set on the Hub, or a
            `datasets.Dataset`, `DatasetDict` or `IterableDataset`.
        output_dir: Folder of the run; empty or absent, unless `resume="auto"` continues what is in it.
        encoder: What is trained: a timm name, a Hub id, an encoder folder or a run, whose weights it starts from.
        recipe: `auto`, or the name of one of the method's recipes.
        settings: Further settings of the method's config, of `DataSettings` and of `TrainingSettings` by name.

    Returns:
        Where the encoder is, what was measured, and how the run went.

    Raises:
        UserError: If a setting or an input cannot be used; says which, why and what to do.
    """
    given = {"method": method, "dataset": dataset, "output_dir": output_dir, "recipe": recipe, **settings}
    if encoder is not None:
        given["architecture"] = encoder
    shown = {**given, "method": method if isinstance(method, str) else getattr(method, "__name__", repr(method))}
    if encoder is not None:
        shown["encoder"] = shown.pop("architecture")
    show_log(in_python=True)
    with as_user_errors(), called_as(call_text("pretrain", shown)):
        return run(given)


def run(given: Mapping[str, Any]) -> PretrainResult:
    """Train, export and measure.

    Args:
        given: What the user said, by the names of the settings; `method` is a name or a class.

    Returns:
        The result; on other processes than the first one without what only that one knows.
    """
    request = request_of(given)
    training = request.training
    set_seed(training.seed)
    model = request.method(request.config)
    resumed = training.resume not in (None, "auto") or (
        training.resume == "auto" and complete_checkpoints(Path(training.output_dir))
    )
    if request.start is not None and not resumed:
        _load(request.start, model)
    prepare_output_dir(training)
    with locked_output_dir(training):  # until the export is done: it writes into the same folder
        return _train_and_export(request, model)


def _train_and_export(request: Request, model: SSLPreTrainedModel) -> PretrainResult:
    training = request.training
    publisher = BackgroundPublisher.of(training)
    result = train(
        model,
        request.source,
        request.data,
        training,
        start=request.start,
        on_checkpoint=publisher.submit if publisher else None,
    )
    if not result.is_main_process:
        return _result(request, result, None)
    if result.signal or not result.finished:
        _report_early_end(result, publisher)
        return _result(request, result, None)
    return _result(request, result, finish_run(model, request.source, request.data, training, publisher))


def _load(start: EncoderStart | MethodStart, model: SSLPreTrainedModel) -> None:
    if isinstance(start, MethodStart):
        logger.info("start    takes from %s: %s", start.folder, ", ".join(start.load_into(model)))
    else:
        for name in ENCODERS:
            if hasattr(model, name):
                start.load_into(model.get_submodule(name))
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise UserError(
                f"The weights to start from must be finite, but `{name}` of them holds NaN or infinity. Its training "
                "has diverged: start from another checkpoint."
            )


def _next_commands(request: Request, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What users of such data usually type next, with the split that the end of the run was measured on."""
    run_dir, source = shlex.quote(request.training.output_dir), request.source
    name = shlex.quote(source.name) if isinstance(request.data.dataset, str) else "..."
    data = " ".join([f"--dataset {name}", *request.data.place_flags()])
    search = [
        f"hf-ssl extract {run_dir} {data} --output features    # then: hf-ssl search PHOTO --index features",
        f"hf-ssl analyze {run_dir} {data} --split {shlex.quote(source.split)}",
    ]
    of_data = [one for one in results if one["dataset"] == public_name(source.name, source.kind)]
    split = next((one["split"] for one in of_data if one.get("train_split") == source.split), None)
    evaluate = [f"hf-ssl evaluate {run_dir} {data}"]
    if split is None:  # k-NN and probes need a second split, clusters do not
        evaluate += [f"--split {shlex.quote(source.split)} clustering"]
    else:
        evaluate += [f"--split {shlex.quote(split)}"] * (split != "test")
        evaluate += [f"--train_split {shlex.quote(source.split)}"] * (source.split != "train")
    measured = [" ".join(evaluate)] if source.labels else []
    return [*measured, *search, f"hf-ssl publish {run_dir} --repo_id ORG/NAME --dry_run"]


def _result(request: Request, result: TrainingResult, finish: Finish | None) -> PretrainResult:
    run_dir = Path(request.training.output_dir)
    lines = run_dir / "metrics.jsonl"
    encoder = finish.encoder if finish is not None else None
    results = results_in(encoder / "results.json") if encoder is not None else []
    signal_number = result.signal or (finish.signal if finish is not None else 0)
    unpublished = finish.unpublished if finish is not None else []
    record = RunRecord.read(encoder) if encoder is not None else None
    code = NotPublishedError.exit_code if unpublished else 0 if result.finished else _COLLAPSED
    return PretrainResult(
        run_dir=run_dir,
        encoder=encoder,
        pretraining=None if encoder is None else run_dir / "pretraining",
        results=results,
        metrics=read_metrics(lines) if lines.exists() else [],
        step=result.step,
        num_steps=result.num_steps,
        collapse=result.collapse,
        next_commands=_next_commands(request, results),
        skipped=record.skipped if record is not None else {},
        url=finish.url if finish is not None else None,
        unpublished=unpublished,
        exit_code=128 + signal_number if signal_number else code,
    )


def _report_early_end(result: TrainingResult, publisher: BackgroundPublisher | None) -> None:
    left = [snapshot.name for snapshot in publisher.snapshots()] if publisher else []
    of_all = "" if result.num_steps == UNKNOWN_LENGTH else f" of {result.num_steps}"  # `max_hours` sets it at step 20
    where = f"after step {result.step}{of_all}, {checkpoint_text(result.last_checkpoint)}."
    unpublished = f" and publishes {' and '.join(left)}" if left else ""
    if result.signal:
        name = signal.Signals(result.signal).name
        logger.warning("Stopped by %s %s The same command with `--resume auto` continues%s.", name, where, unpublished)
    else:
        again = "The same command with `--resume auto` goes on all the same"
        logger.warning("%s Stopped %s %s%s.", result.collapse, where, again, unpublished)


class _Pretrain:
    """The command line of pretraining, whose flags depend on the method."""

    name = "pretrain"

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """What was typed, by the names of the settings."""
        choice = dataclasses.make_dataclass("Method", [("method", str, DEFAULT_METHOD)])
        choice.__doc__ = (
            f"What to train.\n\nArgs:\n    method: One of {', '.join(METHODS)}. `--method NAME --help` shows its "
            "settings and its recipes.\n"
        )
        name = _typed(arguments, "method") or DEFAULT_METHOD
        method = method_of(name)
        recipe = _typed(arguments, "recipe") or "auto"
        check_recipe(method, recipe)
        text = (
            f"{__doc__}\nRecipes of {name}: auto, {', '.join(method.recipes)}. A value in brackets is the default. A "
            "recipe\nreplaces some of them: `--recipe NAME --help` shows which, and `auto` says which when the run "
            "starts.\n"
        )
        training = {field.name: field for field in flags_of(TrainingSettings)}
        return parse_flags(
            arguments,
            {
                "method": flags_of(choice),
                f"settings of {name}": flags_of(method.config_class, without=sorted(INHERITED)),
                "data": flags_of(DataSettings),
                **{heading: [training[one] for one in names] for heading, names in GROUPS.items()},
            },
            program="hf-ssl pretrain",
            description=text,
            first=FIRST,
            defaults={"recipe": recipe, **method.recipes.get(recipe, {})},
        )

    def main(self, arguments: Sequence[str]) -> int:
        """Run the command line, print the result, return the exit code."""
        show_log()
        result = run(self.parse(arguments))
        text = str(result)
        if text:
            print(text)  # noqa: T201
        return result.exit_code


def _typed(arguments: Sequence[str], name: str) -> str | None:
    """The value of one flag, read before the others are known."""
    for position, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if flag.replace("-", "_") == f"__{name}":
            return value if equals else next(iter(arguments[position + 1 : position + 2]), None)
    return None


COMMAND = _Pretrain()
