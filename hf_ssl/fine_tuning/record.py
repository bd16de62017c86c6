"""What a run of fine-tuning leaves to read: `run.json`, and scores among the lines of `metrics.jsonl`."""

import json
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import Source
from hf_ssl.fine_tuning.classifier import Classifier, Score
from hf_ssl.fine_tuning.settings import FineTuningSettings
from hf_ssl.tokens import record_without_tokens
from hf_ssl.training.plan import Plan
from hf_ssl.training.processes import with_precision
from hf_ssl.training.record import beginning_of_run
from hf_ssl.training.recorder import Recorder

VIEW_RECIPE = "crop_and_flip"
"""Augmentation of fine-tuning, unless another recipe is named; only the first of its two views is used."""


class FineTuningRecorder(Recorder):
    """The recorder of pretraining, with scores."""

    def add_score(self, step: int, score: Score) -> None:
        """Log a score; once for each step."""
        if not self.accelerator.is_main_process or step in {line["step"] for line in self._scored()}:
            return
        self._log(step, {"step": step, "accuracy": score.accuracy, "test_loss": round(score.loss, 6)})

    def best(self) -> tuple[int, float] | None:
        """Step and accuracy of the first of the best scorings of the whole run; None on other processes."""
        scored = self._scored() if self.accelerator.is_main_process else []
        best = max(scored, key=lambda line: line["accuracy"], default=None)
        return None if best is None else (best["step"], best["accuracy"])

    def _scored(self) -> list[dict[str, Any]]:
        if not self.metrics.path.is_file():
            return []
        lines = (json.loads(line) for line in self.metrics.path.read_text().splitlines())
        return [line for line in lines if "accuracy" in line]


def describe_run(
    classifier: Classifier,
    source: Source,
    test: Source | None,
    data: DataSettings,
    settings: FineTuningSettings,
    plan: Plan,
    accelerator: Accelerator,
    counts: dict[str, int] | None,
    fraction_reached: float | None = None,
) -> dict[str, Any]:
    """The content of `run.json` at the start of a run; in the groups that a run of pretraining has."""
    given = asdict(settings)
    given |= {name: value for name, value in asdict(settings.training).items() if name in given}
    names = ("train", "label_fraction", "layer_decay", "label_smoothing", "mixup", "cutmix")
    config = {
        "encoder": classifier.encoder,
        "architecture": classifier.architecture,
        "model_args": classifier.model_args,
        "image_size": classifier.image_size,
        "num_classes": len(classifier.class_names),
        **{name: given.pop(name) for name in names},
    }
    evaluation = {"test_split": None if test is None else test.split, "eval_every": given.pop("eval_every")}
    for name in ("test_split", "image_size", "model_args", "license", "change"):
        del given[name]
    parameters = list(classifier.module.parameters())
    record = {
        "method": "fine-tuning",
        "recipe": None,
        **beginning_of_run(accelerator.device),
        "base_model": classifier.base_model,
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "num_trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "images_per_class": counts,
        "label_fraction_reached": fraction_reached,
        "label_column": next(iter(source.labels)),
        "config": config,
        "data": {
            **data.described(),
            "view_recipe": data.view_recipe or VIEW_RECIPE,
            "num_images": source.num_images,
            "fingerprint": source.fingerprint,
            **({"left_out": source.left_out} if source.left_out else {}),
        },
        "training": {
            **given,
            "mixed_precision": with_precision(settings.training).mixed_precision,
            **{name: value for name, value in asdict(plan).items() if name != "lr_schedule"},
            "num_processes": accelerator.num_processes,
        },
        "evaluation": evaluation,
    }
    return record_without_tokens(record)
