"""A method as an object of Hugging Face: it describes itself where saved, publishes itself, and is found again."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining, pipeline

from hf_ssl.errors import UserError
from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS, register_method
from hf_ssl.methods.base import SSLConfig, SSLOutput, SSLPreTrainedModel

SIZES = {"projection_dim": 16, "projector_hidden_dim": 16}


def make_method(name="byol", **config):
    config = {"architecture": "test_resnet", "image_size": 40, "image_mean": [0.5, 0.4, 0.3], **SIZES, **config}
    return METHODS[name](METHODS[name].config_class(**config)).eval()


@pytest.fixture
def photo(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.jpg")
    return Image.open(tmp_path / "photo.jpg")


def metadata_of(text):
    return yaml.safe_load(text.split("---\n")[1])


def features_of(source, photo, **options):
    pixels = AutoImageProcessor.from_pretrained(source, **options)(photo, return_tensors="pt")
    model = AutoModel.from_pretrained(source, **options).eval()
    with torch.no_grad():
        return pixels["pixel_values"], model(**pixels).pooler_output


@pytest.mark.parametrize(
    ("architecture", "model_args"),
    [
        ("test_resnet", None),
        ("test_vit", {"img_size": 40, "patch_size": 8}),
        ("resnet18_cifar", None),
        ("mobilenetv3_small_050", None),
    ],
)
def test_auto_classes_give_the_encoder_of_a_saved_method(tmp_path, photo, architecture, model_args, caplog):
    method = make_method(architecture=architecture, model_args=model_args)
    encoder = export_run(method, tmp_path / "run")
    capture = {"trust_remote_code": True} if architecture == "resnet18_cifar" else {}
    pixels, features = features_of(tmp_path / "run" / "pretraining", photo)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    expected_pixels, expected = features_of(encoder, photo, **capture)
    assert torch.equal(pixels, expected_pixels) and pixels.shape == (1, 3, 40, 40)
    torch.testing.assert_close(features, expected)
    with torch.no_grad():
        assert torch.equal(features, method.encode(pixels))


def test_what_auto_model_gives_is_complete(tmp_path, photo):
    method = make_method()
    method.save_pretrained(tmp_path / "method")
    model = AutoModel.from_pretrained(tmp_path / "method")
    assert {f"encoder.{name}" for name in method.encoder.state_dict()} == set(model.state_dict())
    pixels = torch.randn(2, 3, 40, 40)
    output = model(pixels, output_hidden_states=True)
    assert [maps.shape[0] for maps in output.hidden_states] == [2] * len(output.hidden_states)
    assert torch.equal(model(pixels, return_dict=False)[1], output.pooler_output)
    given = pipeline("image-feature-extraction", model=str(tmp_path / "method"), pool=True)(photo)
    torch.testing.assert_close(torch.tensor(given), features_of(tmp_path / "method", photo)[1])
    # Saved again it is an encoder folder, which needs no hf_ssl.
    model.save_pretrained(tmp_path / "encoder")
    assert AutoConfig.from_pretrained(tmp_path / "encoder").model_type == "timm_wrapper"
    again = AutoModel.from_pretrained(tmp_path / "encoder")
    torch.testing.assert_close(again(pixels).pooler_output, output.pooler_output)
    with pytest.raises(UserError, match="published with its method"):
        model.push_to_hub("org/x")


def test_auto_model_refuses_a_folder_without_the_encoder(tmp_path):
    make_method().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.architecture = "test_resnet.r160_in1k"
    config.model_args = {"layers": [2, 1, 1, 1]}
    with pytest.raises(UserError, match=r"lacks \d+ weights of `SSLEncoder`"):
        AutoModel.from_pretrained(tmp_path, config=config)


def test_a_setting_that_the_config_leaves_out_has_its_default(tmp_path, photo):
    make_method(image_size=224).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["image_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AutoImageProcessor.from_pretrained(tmp_path)(photo)["pixel_values"].shape == (1, 3, 224, 224)


def test_the_readme_of_a_saved_method_says_how_to_load_it(tmp_path, photo, monkeypatch):
    monkeypatch.chdir(tmp_path)
    method = make_method()
    method.save_pretrained("saved")
    text = (tmp_path / "saved" / "README.md").read_text()
    assert "# BYOL: encoder `test_resnet`" in text and METHODS["byol"].paper.url in text
    assert metadata_of(text)["tags"] == ["self-supervised-learning", "hf_ssl", "hf_ssl_byol"]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for gap in ("None", "{{", "\n\n\n", "More Information"):
        assert gap not in text
    found = {}
    for block in blocks:
        exec(block, found)
    assert type(found["method"]) is METHODS["byol"]
    assert torch.equal(found["features"], features_of("saved", photo)[1])


def test_an_edited_readme_stays_and_none_is_written_if_unwanted(tmp_path):
    method = make_method()
    method.save_pretrained(tmp_path / "saved")
    readme = tmp_path / "saved" / "README.md"
    readme.write_text("Mine.")
    method.save_pretrained(tmp_path / "saved")
    assert readme.read_text() == "Mine."
    method.save_pretrained(tmp_path / "plain", readme=False)
    assert not (tmp_path / "plain" / "README.md").exists()


def test_a_method_publishes_itself_in_one_commit(online, photo):
    method = make_method(image_size=32)
    address = method.push_to_hub("org/x", private=True, commit_message="First", tag="v1.0", license="mit")
    assert address.endswith("/org/x")
    repo, files = online.repos["org/x"], online.files("org/x")
    assert len(repo.commits["main"]) == 2 and repo.private and "v1.0" in repo.tags
    assert repo.commits["main"][-1].title == "First"
    assert {"config.json", "model.safetensors", "handler.py", "pretraining/model.safetensors"} <= set(files)
    assert "run.json" not in files and "pretraining/README.md" not in files
    text = files["README.md"].decode()
    assert metadata_of(text) == {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "license": "mit",
        "tags": ["transformers", "timm", "sentence-transformers", "self-supervised-learning", "hf_ssl", "byol"],
    }
    for gap in ("None", "{{", "\n\n\n", "More Information", "pretrained on"):
        assert gap not in text.split("---\n", 2)[2]
    assert "nothing about its training is recorded" in text
    assert "| config | image_size | `32` |" in text and 'from_pretrained("org/x")' in text
    expected = AutoModel.from_pretrained("org/x")
    assert type(expected).__name__ == "TimmWrapperModel"
    root, folder = features_of("org/x", photo), features_of("org/x", photo, subfolder="pretraining")
    assert torch.equal(root[0], folder[0])
    torch.testing.assert_close(root[1], folder[1])
    again = AutoModelForPreTraining.from_pretrained("org/x", subfolder="pretraining")
    assert all(torch.equal(value, method.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_token_of_ones_own(online, monkeypatch, tmp_path):
    token = online.token
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(UserError, match="may not write to `org/x`"):
        make_method().push_to_hub("org/x")
    make_method().push_to_hub("org/x", token=token)
    make_method().save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="org/y", token=token)
    assert "model.safetensors" in online.files("org/x") and "model.safetensors" in online.files("org/y")


def test_saving_can_push_as_well(online, tmp_path):
    make_method().save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="org/y", revision="dev")
    assert "pretraining/model.safetensors" in online.files("org/y", "dev")
    make_method().save_pretrained(tmp_path / "named", push_to_hub=True)
    assert "README.md" in online.files("someone/named")


def test_a_method_of_a_run_is_published_as_that_run_until_it_changes(online, make_run, tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "run" / "encoder" / "results.json").write_text('{"results": []}')
    for source, options in ((tmp_path / "run" / "pretraining", {}), (tmp_path / "run", {"subfolder": "pretraining"})):
        method = AutoModelForPreTraining.from_pretrained(source, **options)
        method.push_to_hub("org/z")
        files = online.files("org/z")
        assert {"run.json", "results.json"} <= set(files) and b"pretrained on ORG/NAME" in files["README.md"]
    with torch.no_grad():
        next(method.predictor.parameters()).add_(1)
    method.push_to_hub("org/z")
    files = online.files("org/z")
    assert not {"run.json", "results.json"} & set(files)  # they tell of other weights
    assert b"pretrained on ORG/NAME" not in files["README.md"]


@pytest.mark.parametrize(
    ("arguments", "message"), [({"repo_id": "a/b/c"}, "`repo_id` must"), ({"tag": "a b"}, "`tag` must")]
)
def test_names_that_the_hub_refuses_are_refused_before_anything_is_written(online, arguments, message):
    with pytest.raises(UserError, match=message):
        make_method().push_to_hub(**{"repo_id": "org/x", **arguments})
    assert not online.requests


def test_the_readme_of_a_runs_method_does_not_go_to_the_hub(online, make_run, tmp_path):
    method = make_run(tmp_path / "run")
    method.save_pretrained(tmp_path / "run" / "pretraining")
    AutoModelForPreTraining.from_pretrained(tmp_path / "run" / "pretraining").push_to_hub("org/x")
    assert "pretraining/README.md" not in online.files("org/x")
    (tmp_path / "run" / "pretraining" / "README.md").write_text("Mine.")
    AutoModelForPreTraining.from_pretrained(tmp_path / "run" / "pretraining").push_to_hub("org/x")
    assert online.files("org/x")["pretraining/README.md"] == b"Mine."


class OwnConfig(SSLConfig):
    model_type = "hf_ssl_own"


class OwnForPreTraining(SSLPreTrainedModel):
    """Features of two views are drawn together."""

    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.post_init()

    def forward(self, pixel_values, indices=None, labels=None):
        first, second = (self.encode(view) for view in self.split_views(pixel_values))
        return SSLOutput(loss=(first - second).square().mean())


def test_a_method_of_ones_own_needs_neither_paper_nor_recipe(online, tmp_path, monkeypatch):
    method = OwnForPreTraining(OwnConfig(architecture="test_resnet", image_size=32))
    method.save_pretrained(tmp_path / "unregistered")
    text = (tmp_path / "unregistered" / "README.md").read_text()
    assert f"from {__name__} import OwnForPreTraining" in text and "AutoModel" not in text and "Paper" not in text
    monkeypatch.setattr("hf_ssl.methods.METHODS", METHODS)
    register_method("own", OwnForPreTraining)
    try:
        method.push_to_hub("org/own")
        assert type(AutoModelForPreTraining.from_pretrained("org/own", subfolder="pretraining")) is OwnForPreTraining
    finally:
        del METHODS["own"]
    text = online.files("org/own")["README.md"].decode()
    assert "# Own: encoder `test_resnet`\n" in text and "Features of two views are drawn together." in text
    assert "bibtex" not in text and "own" in metadata_of(text)["tags"]


def test_a_bare_import_is_enough(tmp_path):
    make_method().save_pretrained(tmp_path / "method")
    code = (
        "import sys\nimport hf_ssl\n"
        "assert 'hf_ssl.hub' not in sys.modules and 'matplotlib' not in sys.modules\n"
        "from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining\n"
        "AutoModel.from_pretrained('method'), AutoImageProcessor.from_pretrained('method')\n"
        "AutoModelForPreTraining.from_pretrained('method').save_pretrained('again')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert (tmp_path / "again" / "README.md").is_file()
