"""Loads published encoders through every door, in a process where importing hf_ssl is impossible.

Called by test_export.py with a JSON file of jobs; writes, beside it, the largest difference that each door makes.
"""

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
from transformers import (  # noqa: E402
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    pipeline,
)

NAMES = {0: "cat", 1: "dog", 2: "owl"}


def difference(first, second):
    assert first.shape == second.shape, f"{first.shape} != {second.shape}"
    return (first - second).abs().max().item()


@torch.no_grad()
def check(source, job, timm_name):
    """`source` is a folder or a repository; returns {door: largest difference}."""
    trust = {"trust_remote_code": True} if job["needs_code"] else {}
    expected = torch.load(job["expected"])
    files = job["images"]
    images = [Image.open(file).convert("RGB") for file in files]
    doors = {}

    pixels = AutoImageProcessor.from_pretrained(source, **trust)(images, return_tensors="pt")["pixel_values"]
    doors["AutoImageProcessor"] = difference(pixels, expected["pixels"])

    model = AutoModel.from_pretrained(source, **trust)
    assert not model.training
    doors["AutoModel"] = difference(model(pixel_values=pixels).pooler_output, expected["features"])
    del model

    extract = pipeline("image-feature-extraction", model=source, pool=True, return_tensors=True, **trust)
    doors["pipeline"] = difference(torch.cat(extract(files)), expected["features"])
    del extract

    labels = {"id2label": NAMES, "label2id": {name: i for i, name in NAMES.items()}}
    classifier = AutoModelForImageClassification.from_pretrained(source, num_labels=3, **labels, **trust)
    inner = classifier.timm_model
    pooled = inner.forward_head(inner.forward_features(pixels), pre_logits=True)
    doors["AutoModelForImageClassification"] = difference(pooled, expected["features"])
    if job["fine_tune"]:
        with tempfile.TemporaryDirectory() as folder:
            classifier.save_pretrained(folder)
            again = AutoModelForImageClassification.from_pretrained(folder, **trust)
        assert again.config.id2label == NAMES
        doors["saved again"] = difference(again(pixels).logits, classifier(pixels).logits)
    del classifier, inner

    if job["needs_code"] and "resnet_cifar" not in sys.modules:
        sys.path.append(job["folder"])
        import resnet_cifar  # noqa: F401  # as the model card tells users of timm
    model = timm.create_model(timm_name, pretrained=True).eval()
    assert model.num_classes == 0
    doors["timm"] = difference(model(pixels), expected["features"])
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    doors["timm transform"] = difference(torch.stack([transform(image) for image in images]), expected["pixels"])
    maps = timm.create_model(timm_name, pretrained=True, features_only=True)(pixels)
    assert len(maps) >= 3
    return doors


def main():
    try:
        import hf_ssl  # noqa: F401
    except ImportError:
        pass
    else:
        raise AssertionError("hf_ssl can be imported here")
    torch.set_num_threads(1)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    report = {}
    for name, job in jobs.items():
        report[name] = check(job["folder"], job, f"local-dir:{job['folder']}")
        if job["repo_id"]:
            report[f"{name} on the Hub"] = check(job["repo_id"], job, f"hf_hub:{job['repo_id']}")
            # Without a task, the pipeline takes the one that the card's metadata names.
            trust = {"trust_remote_code": True} if job["needs_code"] else {}
            assert pipeline(model=job["repo_id"], **trust).task == "image-feature-extraction"
        for snippet in job["snippets"]:
            os.chdir(Path(job["images"][0]).parent)
            exec(compile(snippet, f"card of {name}", "exec"), {})
    Path(sys.argv[1]).with_suffix(".report").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
