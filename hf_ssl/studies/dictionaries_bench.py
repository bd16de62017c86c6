"""What all runs of the study of dictionaries share, and how one of them is made."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed

from hf_ssl.data.settings import OF_DATA, DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.data.sources.subset import check_part, spaced_subset
from hf_ssl.errors import UserError
from hf_ssl.figures.metrics_log import curve_of, read_metrics
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.methods.end_to_end import EndToEndConfig, EndToEndForPreTraining
from hf_ssl.methods.memory_bank import MemoryBankConfig, MemoryBankForPreTraining
from hf_ssl.methods.moco import MoCoConfig, MoCoForPreTraining
from hf_ssl.studies.dictionaries_models import bytes_of
from hf_ssl.studies.dictionaries_probe import ObservedPretraining, Probe
from hf_ssl.studies.dictionaries_runs import BANK, FRESH, MOCO, TWO_NETWORKS, Cell, Measured, Run, cells_of
from hf_ssl.studies.dictionaries_settings import BN_SPLITS, DictionariesSettings
from hf_ssl.studies.dictionaries_theory import Predictions, predict
from hf_ssl.studies.many_runs import StoppedError, finished_run, parts_of_recipe
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.files import write_json
from hf_ssl.training.loop import run_task
from hf_ssl.training.watch.knn import KNN, open_knn

RESULT = "result.json"
"""What a finished run leaves in its folder."""

_LOG_LINES = 100


def runs_to_fit(folder: Path) -> list[Run]:
    """The finished runs of `moco` in the folder of a study.

    Raises:
        UserError: If there are none.
    """
    found = [finished_run(result, Run) for result in sorted(folder.glob(f"{MOCO}-*/seed*/{RESULT}"))]
    if not found:
        what = f"holds no finished run of `{MOCO}`" if folder.is_dir() else "is not there"
        raise UserError(
            f"`fit_from` must name folders of `study dictionaries`, but `{folder}` {what}. Name the `output_dir` of "
            "such a study."
        )
    return found


class Bench:
    """Data and settings that all runs share; refuses wrong ones before anything is trained.

    Args:
        options: The settings of the study.
    """

    def __init__(self, options: DictionariesSettings):
        self.options = options
        recipe = dict(MoCoForPreTraining.recipes[options.recipe])
        given = {"architecture": options.encoder, "temperature": options.temperature}
        config, self.training = parts_of_recipe(recipe | {name: one for name, one in given.items() if one is not None})
        shared = ("architecture", "model_args", "image_size", "image_mean", "image_std", "projection_dim")
        self.config = {name: config[name] for name in (*shared, "temperature") if name in config}
        # A schedule would age keys by its own clock, and rounding would age them too.
        self.training |= {"lr_schedule": "constant", "mixed_precision": "no"}
        self.training |= {"num_epochs": None, "warmup_epochs": None, "num_steps": options.num_steps}
        self.training |= {"diagnostics_every": 0, "keep_checkpoints": 1}
        self.training |= {"log_every": max(1, options.num_steps // _LOG_LINES)}
        self.data = DataSettings(
            dataset=options.dataset or "",
            **{name: getattr(options, name) for name in OF_DATA},
            split=options.split,
            view_recipe=options.view_recipe or recipe.get("view_recipe"),
            num_workers=options.num_workers,
        )
        self.source: Source = self.data.open()
        numbers = options.num_images or [self.source.num_images or 1]
        for number in numbers:
            check_part(self.source, number)
        self.cells = cells_of(
            options.methods,
            momenta=options.momentum,
            queue_sizes=options.queue_size,
            batch_sizes=options.batch_size,
            numbers_of_images=numbers,
            learning_rates=options.learning_rate,
        )
        self.fresh = replace(self.cells[0], method=FRESH, momentum=None, queue_size=None)
        for cell in self.cells:
            if cell.method == MOCO and (cell.queue_size or 0) < cell.batch_size:
                raise UserError(
                    f"`queue_size` must be at least the batch size, {cell.batch_size}, got {cell.queue_size}. Raise "
                    "it, or lower the batch size."
                )
        settings = self._settings(self.fresh, 0)
        self.knn: KNN | None = open_knn(self.source, self.data, settings)
        self._parts: dict[int, Source] = {}

    def foretell(self) -> Predictions | None:
        """Predictions of this study: read, or made and written before anything is trained; None without `fit_from`."""
        options, path = self.options, self.options.output_dir / Predictions.FILE
        if not options.fit_from:
            return Predictions.read(path) if path.exists() else None
        fitted = [run for folder in options.fit_from for run in runs_to_fit(folder)]
        made = predict(
            [cell for cell in self.cells if cell.method == MOCO],
            fitted,
            until=options.fit_steps,
            num_steps=options.num_steps,
            look_every=options.look_every,
            bound=options.bound,
        )
        if path.exists():
            before = Predictions.read(path)
            if before.says_of() != made.says_of():
                raise UserError(
                    f"`{path}` foretells other runs, or from other ones: predictions are not changed afterwards. Give "
                    "another `output_dir`, or the same settings to go on."
                )
            return before
        if any(options.output_dir.glob(f"{MOCO}-*/seed*/{RESULT}")):
            raise UserError(
                f"`{options.output_dir}` holds finished runs already, and what is known cannot be foretold. Give "
                "another `output_dir`."
            )
        write_json(path, made.record())
        return made

    def run(self, cell: Cell, seed: int) -> Run:
        """The finished run of a cell: read or made.

        Raises:
            StoppedError: If a signal ended it.
        """
        settings = self._settings(cell, seed)
        folder = Path(settings.output_dir)
        result = folder / RESULT
        if result.exists():
            # What axes say does not matter to the fresh encoder, which studies with other axes share.
            return finished_run(result, Run, seed=seed, **({} if cell.method == FRESH else {"cell": cell}))
        if folder.exists():  # what was looked at is not in a checkpoint, so a run that was cut short begins again
            shutil.rmtree(folder)
        model = self._model(cell, seed)
        measured = (
            self._trained(model, cell, settings) if cell.method != FRESH else Measured(knn=self._accuracy(model))
        )
        run = Run(cell=cell, seed=seed, measured=measured)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(result, run.record())
        return run

    def _trained(self, model: SSLPreTrainedModel, cell: Cell, settings: TrainingSettings) -> Measured:
        source = self._part(cell.num_images)
        model.needs_labels = bool(source.labels)
        probe = Probe(model, self.options.num_steps, self.options.look_every, cell.batch_size)
        task = ObservedPretraining(probe, model, source, self.data, settings)
        ended = run_task(task)
        if ended.signal:
            raise StoppedError(ended.signal)
        lines = read_metrics(Path(settings.output_dir) / "metrics.jsonl")
        ends = {name: curve_of(lines, name)[1] for name in ("loss", "contrast_accuracy")}
        ends = {name: values[-max(1, len(values) // 10) :] for name, values in ends.items()}
        stored, fresh = probe.consistency or (None, None)
        return Measured(
            knn=self._accuracy(model),
            loss=float(np.mean(ends["loss"])),
            loss_spread=float(np.std(ends["loss"])),
            contrast_accuracy=float(np.mean(ends["contrast_accuracy"])),
            looks=tuple(probe.looks),
            stored_age_share=stored,
            fresh_age_share=fresh,
            dictionary_bytes=bytes_of(model),
            held_bytes=probe.held,
            step_milliseconds=1000 * probe.step_seconds,
        )

    def _accuracy(self, model: SSLPreTrainedModel) -> float | None:
        return None if self.knn is None else self.knn(model).value

    def _part(self, num_images: int) -> Source:
        if num_images not in self._parts:
            self._parts[num_images] = spaced_subset(self.source, num_images)
        return self._parts[num_images]

    def _model(self, cell: Cell, seed: int) -> SSLPreTrainedModel:
        """A method whose encoder and projector are those of all methods with that seed."""
        set_seed(seed)
        if cell.method in (MOCO, FRESH):
            config = MoCoConfig(
                **self.config,
                projector="linear",
                symmetric=False,
                bn_splits=BN_SPLITS,
                queue_size=cell.queue_size or 1,
                ema_momentum=0.0 if cell.momentum is None else cell.momentum,
            )
            return MoCoForPreTraining(config)
        if cell.method == BANK:
            config = MemoryBankConfig(
                **self.config, bank_size=cell.num_images, objective="sampled", num_negatives=cell.queue_size or 1
            )
            return MemoryBankForPreTraining(config)
        config = EndToEndConfig(
            **self.config,
            projector_layers=1,
            projector_norm="none",
            symmetric=False,
            join_views=False,
            separate_keys=cell.method == TWO_NETWORKS,
        )
        return EndToEndForPreTraining(config)

    def _settings(self, cell: Cell, seed: int) -> TrainingSettings:
        options = self.options
        own: dict[str, Any] = {
            "output_dir": str(options.output_dir / cell.folder / f"seed{seed}"),
            "seed": seed,
            "batch_size": cell.batch_size,
            "images_per_device": cell.batch_size,
            "base_learning_rate": cell.learning_rate,
            "knn_split": options.knn_split,
            "knn_images": options.knn_images,
        }
        return TrainingSettings(**(self.training | own))
