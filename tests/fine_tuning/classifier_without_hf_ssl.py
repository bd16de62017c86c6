"""Loads exported classifiers in a process where importing hf_ssl is impossible; called by test_classifier.py."""

import json
import os
import sys
import tempfile
from pathlib import Path

sys.modules["hf_ssl"] = None  # from now on, `import hf_ssl` raises
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp()

import timm  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline  # noqa: E402

NEW = {0: "red", 1: "green", 2: "blue"}


def difference(first, second):
    assert first.shape == second.shape, f"{first.shape} != {second.shape}"
    return (first - second).abs().max().item()


@torch.no_grad()
def check(job):
    folder, names = job["folder"], dict(enumerate(job["names"]))
    trust = {"trust_remote_code": True} if job["needs_code"] else {}
    expected = torch.load(job["expected"])
    image = Image.open(job["image"]).convert("RGB")
    doors = {}
    pixels = AutoImageProcessor.from_pretrained(folder, **trust)(image, return_tensors="pt")["pixel_values"]
    doors["pixels"] = difference(pixels, expected["pixels"])
    model = AutoModelForImageClassification.from_pretrained(folder, **trust)
    assert model.config.id2label == names and model.config.label2id == {n: i for i, n in names.items()}
    doors["transformers"] = difference(model(pixels).logits, expected["logits"])
    answers = pipeline("image-classification", model=folder, **trust)(job["image"])
    best = expected["logits"].softmax(dim=1).max(dim=1)
    assert answers[0]["label"] == names[best.indices.item()]
    doors["pipeline"] = abs(answers[0]["score"] - best.values.item())
    doors["AutoModel"] = difference(
        AutoModel.from_pretrained(folder, **trust)(pixels).pooler_output, expected["features"]
    )
    with tempfile.TemporaryDirectory() as again:
        model.save_pretrained(again)
        saved = AutoModelForImageClassification.from_pretrained(again, **trust)
    assert saved.config.id2label == names
    doors["saved again"] = difference(saved(pixels).logits, expected["logits"])
    if job["new_classes"]:
        other = AutoModelForImageClassification.from_pretrained(
            folder,
            num_labels=3,
            id2label=NEW,
            label2id={n: i for i, n in NEW.items()},
            ignore_mismatched_sizes=True,
            **trust,
        )
        with tempfile.TemporaryDirectory() as again:
            other.save_pretrained(again)
            assert AutoModelForImageClassification.from_pretrained(again, **trust).config.id2label == NEW
    if job["needs_code"]:
        sys.path.append(folder)
        import resnet_cifar  # noqa: F401
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert list(model.pretrained_cfg["label_names"]) == job["names"]
    doors["timm"] = difference(model(pixels), expected["logits"])
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    doors["timm transform"] = difference(transform(image)[None], expected["pixels"])
    for snippet in job["snippets"]:
        os.chdir(Path(job["image"]).parent)
        exec(compile(snippet, f"card of {folder}", "exec"), {})
    return doors


def main():
    torch.set_num_threads(1)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    report = {name: check(job) for name, job in jobs.items()}
    Path(sys.argv[1]).with_suffix(".report").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
