"""The exported classifier: loads without hf_ssl with its labels, and a card that says only what files say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import ImageTransform
from hf_ssl.fine_tuning.classifier import open_classifier
from hf_ssl.fine_tuning.export import (
    export_classifier,
    publish_classifier,
    render_classifier_card,
    write_classifier_card,
)

NAMES = ["tabby cat", "dog", "owl, snowy", "eel"]
RUN = {
    "method": "fine-tuning",
    "hf_ssl": "0.1",
    "command": "hf-ssl finetune org/base --dataset org/pets --label_fraction 0.1",
    "base_model": "org/base",
    "num_parameters": 1000,
    "num_trained_parameters": 10,
    "images_per_class": {"cat": 9, "dog": 12},
    "label_column": "kind",
    "config": {"encoder": "org/base", "train": "last-2", "label_fraction": 0.1, "image_size": 32},
    "data": {
        "dataset": "org/pets",
        "dataset_config": None,
        "dataset_revision": None,
        "split": "train",
        "num_images": 21,
        "fingerprint": "abc",
    },
    "training": {"seed": 3, "num_steps": 50, "batch_size": 8, "num_processes": 1, "repo_id": None},
    "progress": {"step": 50, "images_seen": 400, "seconds": 61.0},
    "skipped": {"truncated": 2},
    "hardware": {"device": "cpu"},
    "versions": {"torch": "2"},
    "commit": None,
}
ENTRY = {
    "dataset": "org/pets",
    "dataset_config": None,
    "split": "test",
    "label": "kind",
    "metric": "accuracy",
    "num_images": 77,
    "protocol": "fine-tuning",
    "value": 0.4321,
    "settings": {"label_fraction": 0.1, "train_images": 21, "step": 50, "test_loss": 1.25},
}


def export(folder, encoder, names=NAMES, **options):
    classifier = open_classifier(encoder, names, **options)
    module = classifier.module.eval()
    (folder / "run.json").write_text(json.dumps(RUN))
    with torch.no_grad():  # statistics that a training would leave
        for buffer_name, buffer in module.named_buffers():
            if "running" in buffer_name:
                buffer.uniform_(0.5, 1.5)
    path = export_classifier(
        module,
        folder,
        architecture=classifier.architecture,
        model_args=classifier.model_args,
        data_config=classifier.data_config,
        class_names=names,
    )
    return classifier, path


def test_it_loads_without_hf_ssl(tmp_path):
    """Through every door, with the same logits and the same labels; the card's own examples run."""
    image = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(image)
    thousand = [f"thing {number}" for number in range(1000)]  # transformers would give them ImageNet's names
    kinds = {
        "resnet": ("random:test_resnet", {"image_size": 32}, NAMES),
        "vit": ("random:test_vit", {"image_size": 32, "model_args": {"drop_path_rate": 0.1}}, NAMES),
        "cifar": ("random:resnet18_cifar", {}, NAMES),
        "thousand": ("random:test_resnet", {"image_size": 32}, thousand),
    }
    jobs = {}
    for name, (encoder, options, names) in kinds.items():
        folder = tmp_path / name
        folder.mkdir()
        classifier, path = export(folder, encoder, names, **options)
        config = json.loads((path / "config.json").read_text())
        assert "drop_path_rate" not in config["model_args"]
        with torch.no_grad():
            pixels = ImageTransform(classifier.data_config)(Image.open(image))[None]
            features = classifier.module.forward_head(classifier.module.forward_features(pixels), pre_logits=True)
            torch.save(
                {"pixels": pixels, "logits": classifier.module(pixels), "features": features}, folder / "expected.pt"
            )
        card = write_classifier_card(path).read_text()
        jobs[name] = {
            "folder": str(path),
            "names": names,
            "image": str(image),
            "expected": str(folder / "expected.pt"),
            "needs_code": name == "cifar",
            "new_classes": name != "thousand",
            "snippets": re.findall(r"```python\n(.*?)```", card, re.DOTALL) if name in ("vit", "cifar") else [],
        }
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps(jobs))
    script = Path(__file__).with_name("classifier_without_hf_ssl.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, script, file], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.with_suffix(".report").read_text())
    assert report.keys() == kinds.keys()
    for name, doors in report.items():
        assert len(doors) == 7 and max(doors.values()) < 1e-5, (name, doors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    _, path = export(tmp_path_factory.mktemp("run"), "random:test_resnet", image_size=32)
    best = {**ENTRY, "protocol": "fine-tuning-best", "value": 0.5, "settings": {**ENTRY["settings"], "step": 30}}
    (path / "results.json").write_text(json.dumps({"results": [ENTRY, best]}))
    return path


def test_the_metadata_is_what_the_hub_reads(folder):
    data = ModelCard(render_classifier_card(folder, "org/pets-classifier", license="mit")).data
    assert (data.pipeline_tag, data.library_name, data.license) == ("image-classification", "transformers", "mit")
    assert (data.base_model, data.datasets) == ("org/base", ["org/pets"])
    (result,) = data.eval_results  # not the best step, which the test split chose
    assert (result.metric_value, result.dataset_split, result.dataset_type) == (0.4321, "test", "org/pets")
    assert result.task_name == "Image classification from 10 % of the labels"


def test_the_card_says_what_the_files_say(folder):
    card = render_classifier_card(folder, "org/pets-classifier")
    for text in (
        "fine-tuned from [org/base]",
        "10 % of the labels of [org/pets]",
        "| 43.2 | 77 |",
        "| 50.0* | 77 |",
        "chosen on the split that it is scored on",
        "the classifier and the last 2 blocks: 10 of 1,000 parameters",
        "21 images, 9 to 12 of each class, chosen by seed 3",
        "2 truncated",
        RUN["command"],
        '"hf_hub:org/pets-classifier"',
        "`owl, snowy`",
    ):
        assert text in card, text


def test_weights_that_nothing_could_load_are_refused(tmp_path):
    classifier = open_classifier("random:test_resnet", NAMES, image_size=32)
    described = {"model_args": {}, "data_config": classifier.data_config, "class_names": NAMES}
    with pytest.raises(
        UserError, match=r"classifier cannot be exported as `resnet18`: \d+ weights differ.*Export the"
    ):
        export_classifier(classifier.module, tmp_path, architecture="resnet18", **described)
    with pytest.raises(UserError, match="2 weights differ from timm's, such as `fc.bias`"):
        export_classifier(
            classifier.module, tmp_path, architecture="test_resnet", **described | {"class_names": NAMES[:3]}
        )
    assert not list(tmp_path.iterdir())


def test_a_card_without_results_says_so(tmp_path):
    _, path = export(tmp_path, "random:test_resnet", image_size=32)
    card = render_classifier_card(path)
    assert "has not been evaluated" in card and "model-index" not in card
    (path / "run.json").unlink()
    with pytest.raises(ValueError, match="has no `run.json`"):
        render_classifier_card(path)


def test_a_card_edited_by_hand_stays(tmp_path):
    _, path = export(tmp_path, "random:test_resnet", image_size=32)
    card = write_classifier_card(path)
    card.write_text(card.read_text().replace("## Limits", "## Known limits"))
    write_classifier_card(path)
    assert "## Known limits" in card.read_text()


def test_metadata_that_would_be_read_otherwise_is_refused(tmp_path):
    _, path = export(tmp_path, "random:test_resnet", image_size=32)
    (path / "results.json").write_text(json.dumps({"results": [ENTRY | {"value": float("nan")}]}))
    with pytest.raises(UserError, match=r"`results.json` holds numbers that the card's metadata cannot\. Measure"):
        write_classifier_card(path)
    assert not (path / "README.md").exists()


def test_the_card_says_that_the_encoder_has_collapsed(tmp_path):
    _, path = export(tmp_path, "random:test_resnet", image_size=32)
    former = {"method": "byol", "steps": 400, "collapse": {"kind": "complete", "step": 320}}
    run = RUN | {"origin": {"encoder": "org/base", "kind": "hub", "former": former}}
    (path / "run.json").write_text(json.dumps(run))
    top = render_classifier_card(path).split("## Use")[0]
    assert "training by byol behind the weights that it started from collapsed (complete, step 320)" in top
    assert "\n\n\n" not in top


def test_data_in_memory_has_its_article(tmp_path):
    _, path = export(tmp_path, "random:test_resnet", image_size=32)
    run = RUN | {"data": RUN["data"] | {"dataset": "in-memory data set (a1b2)", "in_memory": True}}
    (path / "run.json").write_text(json.dumps(run))
    card = render_classifier_card(path)
    assert "# `test_resnet`, classifier of 4 classes of an in-memory data set (a1b2)\n" in card
    assert "10 % of the labels of an in-memory data set (a1b2)." in card


def test_a_push_leaves_out_hidden_files_and_removes_what_is_stale(tmp_path, online):
    _, path = export(tmp_path, "random:test_resnet", image_size=32)
    (path / "figures").mkdir()
    (path / "figures" / "confusion.png").write_bytes(b"png")
    (path / ".DS_Store").write_bytes(b"hidden")
    publish_classifier(path, "org/pets", license="mit", retry="again")
    pushed = online.files("org/pets")
    assert pushed.keys() == {"README.md", "config.json", "figures/confusion.png", "model.safetensors", "run.json"}
    assert b'pipeline("image-classification", model="org/pets")' in pushed["README.md"]
    (path / "figures" / "confusion.png").unlink()
    write_classifier_card(path).write_text("Mine.")
    online.edit("org/pets", "notes.md", b"Somebody's.")
    publish_classifier(path, "org/pets", retry="again")
    pushed = online.files("org/pets")
    assert pushed["README.md"] == b"Mine."
    assert "figures/confusion.png" not in pushed and "notes.md" in pushed
