"""Loads published encoders through one door, in a process where importing hf_ssl is impossible.

Called by test_export.py: `python load_without_hf_ssl.py DOOR JOBS REPORT`. Writes the largest difference that the door
makes to what training computed: {encoder: {check: difference}}.
"""

import base64
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.modules["hf_ssl"] = None  # from now on, `import hf_ssl` raises
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp()

import torch  # noqa: E402
from PIL import Image  # noqa: E402

NAMES = {0: "cat", 1: "dog", 2: "owl"}
INDICES = (0, 1, 2)
ALONE = ("timm", "endpoint")  # doors that need no transformers


def difference(first, second):
    assert first.shape == second.shape, f"{first.shape} != {second.shape}"
    return (first - second).abs().max().item()


def map_difference(maps, expected):
    """Of feature maps; timm gives those of some encoders as (batch, height, width, channels)."""
    maps = [
        one if one.shape == two.shape else one.permute(0, 3, 1, 2) for one, two in zip(maps, expected, strict=True)
    ]
    return max(difference(one, two) for one, two in zip(maps, expected, strict=True))


def trusted(job):
    return {"trust_remote_code": True} if job["needs_code"] else {}


def timm_names(job):
    """As timm knows them; an encoder of own code is made known first, as the model card tells."""
    if job["needs_code"] and "resnet_cifar" not in sys.modules:
        sys.path.append(job["folder"])
        import resnet_cifar  # noqa: F401
    return [f"local-dir:{job['folder']}"] + ([f"hf_hub:{job['repo_id']}"] if job["repo_id"] else [])


def sources(job):
    return [job["folder"]] + ([job["repo_id"]] if job["repo_id"] else [])


def opened(job):
    return [Image.open(file).convert("RGB") for file in job["images"]]


def through_transformers(job, expected):
    from transformers import AutoImageProcessor, AutoModel

    for source in sources(job):
        pixels = AutoImageProcessor.from_pretrained(source, **trusted(job))(opened(job), return_tensors="pt")
        yield f"AutoImageProcessor {source}", difference(pixels["pixel_values"], expected["pixels"])
        model = AutoModel.from_pretrained(source, **trusted(job))
        assert not model.training
        output = model(**pixels, output_hidden_states=list(INDICES))
        yield f"feature maps {source}", map_difference(output.hidden_states, expected["maps"])
        yield f"AutoModel {source}", difference(model(**pixels).pooler_output, expected["features"])


def through_pipeline(job, expected):
    from transformers import pipeline

    extract = pipeline("image-feature-extraction", job["folder"], pool=True, return_tensors=True, **trusted(job))
    yield "pipeline", difference(torch.cat(extract(job["images"])), expected["features"])
    if job["repo_id"]:
        # Without a task, the pipeline takes the one that the card's metadata names.
        extract = pipeline(model=job["repo_id"], pool=True, return_tensors=True, **trusted(job))
        assert extract.task == "image-feature-extraction"
        yield "pipeline, Hub", difference(torch.cat(extract(job["images"])), expected["features"])


def through_classification(job, expected):
    from transformers import AutoModelForImageClassification

    labels = {"id2label": NAMES, "label2id": {name: i for i, name in NAMES.items()}}
    for source in sources(job):
        classifier = AutoModelForImageClassification.from_pretrained(source, num_labels=3, **labels, **trusted(job))
        inner = classifier.timm_model
        pooled = inner.forward_head(inner.forward_features(expected["pixels"]), pre_logits=True)
        yield f"features {source}", difference(pooled, expected["features"])
    with tempfile.TemporaryDirectory() as folder:
        classifier.save_pretrained(folder)
        again = AutoModelForImageClassification.from_pretrained(folder, **trusted(job))
    assert again.config.id2label == NAMES
    yield "saved again", difference(again(expected["pixels"]).logits, classifier(expected["pixels"]).logits)


def through_timm(job, expected):
    import timm

    for name in timm_names(job):
        model = timm.create_model(name, pretrained=True).eval()
        assert model.num_classes == 0
        yield name, difference(model(expected["pixels"]), expected["features"])
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
        yield (
            f"{name}, transform",
            difference(torch.stack([transform(one) for one in opened(job)]), expected["pixels"]),
        )
        maps = timm.create_model(name, pretrained=True, features_only=True, out_indices=INDICES).eval()
        yield f"{name}, features_only", map_difference(maps(expected["pixels"]), expected["maps"])


def through_backbone(job, expected):
    from transformers import AutoBackbone, TimmBackbone, TimmBackboneConfig

    if job["has_batch_norm"]:
        return  # transformers (5.23) sets its running statistics back when it makes a TimmBackbone
    for name in timm_names(job):
        backbone = TimmBackbone.from_pretrained(name, out_indices=INDICES).eval()
        yield f"TimmBackbone {name}", map_difference(backbone(expected["pixels"]).feature_maps, expected["maps"])
        config = TimmBackboneConfig(backbone=name, out_indices=list(INDICES))
        backbone = AutoBackbone.from_config(config, pretrained=True).eval()
        yield f"AutoBackbone {name}", map_difference(backbone(expected["pixels"]).feature_maps, expected["maps"])


def through_sentence_transformers(job, expected):
    from sentence_transformers import SentenceTransformer

    for source in sources(job):
        model = SentenceTransformer(source, device="cpu", **trusted(job))
        features = model.encode(opened(job), convert_to_tensor=True)
        yield f"SentenceTransformer {source}", difference(features, expected["features"])
        assert model.get_embedding_dimension() == features.shape[1]


def through_endpoint(job, expected):
    """As the endpoint's toolkit loads it: from the file, with the folder on the path and as argument."""
    sys.path.insert(0, job["folder"])
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", Path(job["folder"]) / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(job["folder"])
    handler.device, handler.model = torch.device("cpu"), handler.model.to("cpu")
    files = [Path(file).read_bytes() for file in job["images"]]
    coded = [base64.b64encode(file).decode() for file in files]
    for name, inputs in {"base64": coded, "bytes": files, "pictures": opened(job)}.items():
        answer = torch.tensor(json.loads(json.dumps(handler({"inputs": inputs}))))
        yield name, difference(answer, expected["features"])
    yield "one image", difference(torch.tensor(handler({"inputs": coded[0]})), expected["features"][:1])


def check_what_the_card_warns_of(folder):
    """Without the code of the repository nothing loads it, and what is said does not help."""
    import timm
    from transformers import AutoModel

    for load, said in (
        (lambda: AutoModel.from_pretrained(folder), "Please upgrade timm"),
        (lambda: timm.create_model(f"local-dir:{folder}", pretrained=True), "Unknown model"),
    ):
        try:
            load()
        except (ImportError, RuntimeError) as error:
            assert said in str(error)
        else:
            raise AssertionError("it loads without the code")


def through_card(job, expected):
    """What the model card tells to run, as it stands there."""
    os.chdir(Path(job["folder"]).parents[1])  # the card names the folder of the run and nothing above it
    shutil.copyfile(job["images"][0], "photo.jpg")
    if job["needs_code"]:
        check_what_the_card_warns_of(job["folder"])
    for number, snippet in enumerate(job["snippets"]):
        names = {}
        exec(compile(snippet, f"card, snippet {number}", "exec"), names)
        if "features" in names:
            features = torch.as_tensor(names["features"]).reshape(1, -1)
            yield f"snippet {number}", difference(features, expected["features"][:1])


@torch.no_grad()
def main(door, jobs, report):
    if door in ALONE:
        sys.modules["transformers"] = None
    try:
        import hf_ssl  # noqa: F401
    except ImportError:
        pass
    else:
        raise AssertionError("hf_ssl can be imported here")
    torch.set_num_threads(1)
    go_through = globals()[f"through_{door}"]
    found = {
        name: dict(go_through(job, torch.load(job["expected"])))
        for name, job in json.loads(Path(jobs).read_text()).items()
    }
    Path(report).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
