"""Files that cards and pushes are made of, with each value missing or of another type: always a sentence."""

import json
import re
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from hf_ssl.commands.resolve import _kept_choice, _kinds_of
from hf_ssl.errors import UserError
from hf_ssl.evaluation.results import results_in
from hf_ssl.fine_tuning.export import render_classifier_card
from hf_ssl.hub.model_card import render_model_card
from hf_ssl.hub.public import public_files
from hf_ssl.hub.publish import files_in
from hf_ssl.hub.timm_folder import config_in
from hf_ssl.methods import METHODS
from hf_ssl.studies.ablation_predictions import Forecasts
from hf_ssl.training.record import RunRecord
from hf_ssl.training.start import find_encoder
from hf_ssl.training.start_method import find_method

_WRONG = (None, [1], "x", {"a": 1}, 2.5, True, float("nan"))
_ENTRY = {
    "dataset": "org/pets",
    "dataset_config": None,
    "split": "test",
    "label": "kind",
    "protocol": "knn",
    "metric": "accuracy",
    "value": 0.4321,
    "num_images": 77,
    "settings": {"label_fraction": 0.1, "train_images": 21, "step": 50, "test_loss": 1.25},
    "baselines": {"raw pixels": 0.2},
    "command": "hf-ssl evaluate runs/x --dataset org/pets",
}
_NUMBERS = {"dim": 8} | dict.fromkeys(("rank_me", "effective_rank", "alignment", "uniformity"), 1.5)
_EMBEDDING = {
    "dataset": "digits",
    "dataset_kind": "embedded",
    "split": "test",
    "num_images": 40,
    "num_pairs": 20,
    "encoders": {"this encoder": _NUMBERS},
}
_OF_RUN = {
    "collapse": {"kind": "complete", "step": 2, "report": "Seen.", "thresholds": {"lines": 3, "spread": 0.1}},
    "changes": [{"step": 1, "name": "log_every", "from": 1, "to": 2}],
    "origin": {
        "encoder": "org/x",
        "kind": "hub",
        "former": {"method": "moco", "collapse": {"kind": "complete", "step": 2}, "former": {"steps": 3}},
    },
    "versions": {},
    "hardware": {},
}
_OF_CLASSIFIER = {
    "method": "fine-tuning",
    "num_parameters": 1000,
    "num_trained_parameters": 10,
    "images_per_class": {"cat": 9, "dog": 12},
    "label_column": "kind",
    "config": {"encoder": "org/base", "train": "last-2", "label_fraction": 0.1, "image_size": 32},
}


def damaged(content: Any) -> Iterator[str]:
    """A JSON file with each of its values missing or of another type, and what a full disk leaves of it."""
    places: list[list[Any]] = [[]]
    for place in places:
        value = reduce(lambda value, key: value[key], place, content)
        keys = list(value) if isinstance(value, dict) else [0] if isinstance(value, list) and value else []
        places += [[*place, key] for key in keys]
    for *above, last in places[1:]:
        for wrong in ("missing", *_WRONG):
            copy = json.loads(json.dumps(content))
            at = reduce(lambda value, key: value[key], above, copy)
            if wrong == "missing":
                del at[last]
            else:
                at[last] = wrong
            yield json.dumps(copy)
    yield from ("", "{", "[]", "{}", "null", '"x"', "\xff", json.dumps(content)[:40], "[1]", "nan")


def check(
    folder: Path, name: str, content: dict[str, Any], *uses: Callable[[Path], Any], but: str = "never said"
) -> None:
    """Whatever is wrong with a file, each use of it is fine or is refused in words that name the file, `but` for some.

    What is of the right type and means nothing is told by what it should mean.
    """
    path = folder / name
    path.write_text(json.dumps(content))
    for use in uses:
        use(folder)
    refused = []
    for text in damaged(content):
        path.write_bytes(text.encode("latin-1"))
        for use in uses:
            try:
                use(folder)
            except UserError as error:
                refused.append(str(error))
    # A licence or a number that is of the right type may still be none that the card's metadata can hold.
    assert len(refused) > 20
    assert not [one for one in refused if not re.search(f"^The card's `|{name}`|{but}", one)]


def published(folder: Path) -> Any:
    return public_files(folder, files_in(folder))


@pytest.mark.parametrize("name", ["run.json", "results.json", "embedding.json", "analysis.json", "config.json"])
def test_files_of_an_encoder(make_run, run_record, tmp_path: Path, name: str):
    make_run(tmp_path / "run")
    folder = tmp_path / "run" / "encoder"
    contents = {
        "run.json": run_record | _OF_RUN,
        "results.json": {"results": [_ENTRY]},
        "embedding.json": _EMBEDDING,
        "analysis.json": {"dataset": "data/x", "dataset_kind": "local", "encoders": {"run": {"dim": 4}}},
        "config.json": json.loads((folder / "config.json").read_text()),
    }
    check(folder, name, contents[name], render_model_card, published)


@pytest.mark.parametrize("name", ["run.json", "results.json", "config.json"])
def test_files_of_a_classifier(make_run, run_record, tmp_path: Path, name: str):
    make_run(tmp_path / "run")
    folder = tmp_path / "run" / "encoder"
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_classes": 2, "id2label": {"0": "cat", "1": "dog"}}
    run_record["training"]["seed"] = 0
    contents = {
        "run.json": run_record | _OF_RUN | _OF_CLASSIFIER,
        "results.json": {"results": [_ENTRY]},
        "config.json": config,
    }
    for other, content in contents.items():
        (folder / other).write_text(json.dumps(content))
    check(folder, name, contents[name], render_classifier_card)


@pytest.mark.parametrize("part", ["encoder", "pretraining"])
def test_configs_that_a_run_starts_from(make_run, tmp_path: Path, part: str):
    make_run(tmp_path / "run")
    folder = tmp_path / "run" / part
    config = json.loads((folder / "config.json").read_text())
    name = "config.json"
    if part == "encoder":
        check(folder, name, config, lambda folder: find_encoder(str(folder), pretrained=True), but="encoder")
    else:
        check(folder, name, config, lambda folder: find_method(str(folder)), but="`start_from` must name")


def test_what_auto_chose_for_a_run(tmp_path: Path):
    content = {"num_epochs": 3.0, "batch_size": 4, "view_recipe": "shapes", "architecture": "resnet18"}
    kinds = _kinds_of(METHODS["directpred"])
    check(tmp_path, "recipe.json", content, lambda folder: _kept_choice(folder / "recipe.json", kinds))


def test_predictions_of_an_ablation(tmp_path: Path):
    forecast = {"expected": "no", "spread": 0.5, "rank": 3.0, "deaths": [1, None]}
    entry = {"title": "linear", "seed": 0, "before_run": True, "forecasts": {"all": forecast}}
    content = {"settings": {"dataset": "x"}, "runs": [entry]}
    check(tmp_path, "predictions.json", content, lambda folder: Forecasts(folder, {"dataset": "x"}))


@pytest.mark.parametrize("text", ['{"results": [', "[1]"])
def test_a_file_that_is_cut_short_is_told_in_whole_sentences(tmp_path: Path, text: str):
    readers: dict[str, Callable[[Path], Any]] = {"results.json": results_in}
    readers |= {
        "config.json": lambda path: config_in(path.parent),
        "run.json": lambda path: RunRecord.read(path.parent),
    }
    for name, read in readers.items():
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(UserError, match="it cannot be read as JSON|it must hold a JSON object") as caught:
            read(path)
        assert str(caught.value).count(name) == 1
        assert re.search(r"Bring back a copy of it|measure again|Export it again", str(caught.value))
        assert str(caught.value).endswith(".") and not re.search(r"[.?!][.?!]", str(caught.value))
