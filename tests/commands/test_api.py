"""The package from Python: its surface, a run in five lines, several in one process, and from former runs."""

import inspect
import json
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import hf_ssl
from hf_ssl.commands import COMMANDS, main
from hf_ssl.commands import pretrain as pretrain_command
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import load_encoder
from hf_ssl.methods import METHODS

SURFACE = [
    "METHODS",
    "DataSettings",
    "FineTuningSettings",
    "SSLConfig",
    "SSLOutput",
    "SSLPreTrainedModel",
    "TrainingSettings",
    "UserError",
    "__version__",
    "analyze",
    "evaluate",
    "extract_features",
    "fine_tune",
    "list_methods",
    "load_encoder",
    "open_demo",
    "open_source",
    "pretrain",
    "publish",
    "publish_metric",
    "register_method",
    "search",
    "simulate",
    "study",
    "views",
]
SMALL: dict[str, Any] = {
    "method": "simsiam",
    "encoder": "test_resnet",
    "image_size": 32,
    "num_steps": 3,
    "warmup_steps": 0,
    "batch_size": 16,
    "num_workers": 0,
    "projector_hidden_dim": 32,
    "projection_dim": 32,
    "predictor_hidden_dim": 16,
}


def pictures(number: int, seed: int = 0) -> datasets.Dataset:
    generator = np.random.default_rng(seed)
    images = [Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(number)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict({"image": images, "label": [n % 2 for n in range(number)]}, features=features)


def test_the_surface_is_what_it_was():
    assert sorted(hf_ssl.__all__) == sorted(SURFACE)
    for name in SURFACE:
        assert getattr(hf_ssl, name) is not None
    assert dir(hf_ssl) == sorted(hf_ssl.__all__) and set(SURFACE) <= set(dir(hf_ssl))
    with pytest.raises(AttributeError, match="no attribute `pretrian`"):
        hf_ssl.pretrian  # noqa: B018


def test_every_command_is_a_documented_function():
    functions = {
        "extract": "extract_features",
        "finetune": "fine_tune",
        "demo": "open_demo",
        "methods": "list_methods",
    }
    for command in COMMANDS:
        function = getattr(hf_ssl, functions.get(command, command))
        text = function.__doc__ or ""
        assert f"`hf-ssl {command}" in text and ("Raises:" in text or "Kinds:" in text)
    signature = inspect.signature(hf_ssl.evaluate)
    assert list(signature.parameters)[:2] == ["encoder", "protocols"]
    assert signature.parameters["batch_size"].default == 256


PROGRAM = """
    import sys
    import datasets
    import hf_ssl

    data = datasets.load_from_disk(sys.argv[1])
    small = dict(image_size=32, num_steps=3, warmup_steps=0, batch_size=16, num_workers=0, queue_size=64)
    run = hf_ssl.pretrain(method="moco", dataset=data, encoder="test_resnet", output_dir="one", **small)
    again = hf_ssl.pretrain(
        method="moco", dataset=data, encoder="test_resnet", output_dir="two", images_per_device=8,
        mixed_precision="bf16", **small,
    )
    third = hf_ssl.pretrain(method="moco", dataset=data, encoder="test_resnet", output_dir="three", **small)
    print([run.encoder, [one["split"] for one in run.results], run.metrics[-1]["step"], again.step, third.exit_code])
    same = (run.encoder / "model.safetensors").read_bytes() == (third.encoder / "model.safetensors").read_bytes()
    print(same, len(again.metrics))
"""


@pytest.mark.slow
def test_a_run_in_a_fresh_interpreter_and_others_after_it(tmp_path: Path):
    """The third run equals the first one, bit for bit, though the second had another precision and accumulation."""
    datasets.DatasetDict({"train": pictures(96), "test": pictures(24, 1)}).save_to_disk(tmp_path / "data")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "data")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[PosixPath('one/encoder'), ['test'], 3, 3, 0]", "True 1"]
    run = json.loads((tmp_path / "one" / "run.json").read_text())
    card = (tmp_path / "one" / "encoder" / "README.md").read_text()
    assert run["data"]["dataset"].startswith("in-memory data set") and run["data"]["in_memory"] is True
    assert run["command"].startswith("hf_ssl.pretrain(method='moco', dataset=<DatasetDict>, output_dir='one'")
    assert "in-memory data set" in card and "shapes" not in card and "huggingface.co/datasets" not in card
    assert json.loads((tmp_path / "two" / "run.json").read_text())["training"]["images_per_device"] == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "mocov2"}, "Unknown method `mocov2`.*Did you mean `moco`"),
        ({"queue_sise": 3}, "has no setting `queue_sise`"),
        ({"batch_size": 2.5}, "`batch_size` must be a whole number, got 2.5"),
        ({"optimizer": "adm"}, "optimizer of timm, got `adm`. Did you mean `adam`"),
        ({"projection_dim": "wide"}, "projection_dim"),
        ({"dataset": 3}, "`dataset` must be"),
        ({"image_size": 4}, "`image_size` must be at least 8 pixels, got 4"),
        ({"knn_split": "validation"}, "has no `validation`"),
        ({"batch_size": 1}, "`batch_size` must give BatchNorm at least 2 images"),
        # Before `auto` counts with them.
        ({"num_steps": "2"}, "`num_steps` must be a whole number or none, got `2`"),
        ({"num_steps": None, "num_epochs": "2"}, "`num_epochs` must be a number or none, got `2`"),
        ({"num_steps": None, "max_hours": "2"}, "`max_hours` must be a number or none, got `2`"),
        ({"model_args": "x"}, "`model_args` must be a JSON object or none, got `x`"),
        ({"model_args": [1]}, r"`model_args` must be a JSON object or none, got \[1\]"),
        ({"encoder": 3}, "`encoder` must be text, got 3"),
        ({"base_learning_rate": 10**400}, "`base_learning_rate` must be a finite number, got inf"),
        ({"base_learning_rate": -(10**400)}, "`base_learning_rate` must be a finite number, got -inf"),
    ],
)
def test_what_the_user_can_put_right_is_a_user_error(values: dict, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        hf_ssl.pretrain(**{"dataset": pictures(32), "output_dir": tmp_path / "run", **SMALL, **values})
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("splits", "flags"), [(["."], "--split train clustering"), (["train", "validation"], "--split validation")]
)
def test_the_evaluation_that_is_named_at_the_end_can_be_typed(splits: list[str], flags: str, tmp_path: Path):
    data, run = tmp_path / "data", tmp_path / "run"
    for number, split in enumerate(splits):
        for name in ("a", "b"):
            (data / split / name).mkdir(parents=True)
            for place, picture in enumerate(pictures(16, number)["image"]):
                picture.save(data / split / name / f"{place}.png")
    ended = hf_ssl.pretrain(dataset=data, output_dir=run, **{**SMALL, "num_steps": 1})
    assert ended.next_commands[0] == f"hf-ssl evaluate {run} --dataset {data} {flags}"
    assert main([*shlex.split(ended.next_commands[0])[1:], "--num_workers", "0"]) == 0


def test_images_that_were_skipped_are_counted_in_the_last_lines(tmp_path: Path):
    for place, picture in enumerate(pictures(33)["image"]):
        picture.save(tmp_path / f"{place}.png")
    options = {"dataset": tmp_path, "max_skipped_ratio": 0.5, **SMALL}
    assert "Skipped" not in str(hf_ssl.pretrain(output_dir=tmp_path.parent / "whole", **options))
    (tmp_path / "17.png").write_bytes(b"no picture")
    ended = hf_ssl.pretrain(output_dir=tmp_path.parent / "holed", **options)
    number = ended.skipped["not an image"]
    assert number in (1, 2) and f"\nSkipped: {number} not an image, counted in each epoch; " in str(ended)


def test_a_bug_of_a_method_keeps_its_traceback(tmp_path: Path):
    class Buggy(METHODS["simsiam"]):
        recipes = {}

        def forward(self, pixel_values, indices=None, labels=None):
            raise ValueError("a shape that nobody expected")

    with pytest.raises(ValueError, match="nobody expected") as bug:
        hf_ssl.pretrain(**{"dataset": pictures(32), "output_dir": tmp_path / "run", **SMALL, "method": Buggy})
    assert not isinstance(bug.value, UserError)


class Started(Exception):  # noqa: N818
    """Stands for the training, which a test does not need."""


@pytest.fixture
def model_at_step_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Start a run, and return its model, start and settings as training would get them."""
    caught = {}

    def stop(model, source, data, settings, *, start=None, on_checkpoint=None):
        caught.update(model=model, settings=settings, start=start)
        raise Started

    def begin(heads: bool = True, **values: Any):
        with monkeypatch.context() as patch, pytest.raises(Started):
            patch.setattr(pretrain_command, "train", stop)
            left_out = {"encoder", "image_size"}
            if values.get("method", "simsiam") != "simsiam" or not heads:
                left_out |= {"projector_hidden_dim", "predictor_hidden_dim", "projection_dim"}
            options = {name: value for name, value in SMALL.items() if name not in left_out}
            folder = tmp_path / f"run-{len(caught)}-{len(list(tmp_path.iterdir()))}"
            hf_ssl.pretrain(**{"dataset": pictures(32), "output_dir": folder, **options, **values})
        return caught["model"].eval(), caught["start"], caught["settings"]

    return begin


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    hf_ssl.pretrain(dataset=pictures(64), output_dir=folder, **SMALL)
    return folder


def features_of(module: torch.nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return module(torch.randn(4, 3, 32, 32))


def test_a_run_starts_where_the_other_one_ended(trained: Path, model_at_step_0):
    expected = features_of(load_encoder(str(trained)).module)
    for values in (
        {"encoder": str(trained)},
        {"encoder": str(trained / "encoder")},
        {"encoder": f"local-dir:{trained / 'encoder'}"},
        {"start_from": str(trained)},
        {"start_from": str(trained / "pretraining")},
    ):
        model, start, settings = model_at_step_0(**values)
        assert torch.equal(features_of(model.encoder), expected), values
        assert model.config.image_size == 32 and model.config.architecture == "test_resnet"
        assert start.origin is not None and start.base_model is None
        # Weights that are worth keeping: a tenth of the recipe's rate.
        recipe = METHODS["simsiam"].recipes["cifar"]["base_learning_rate"]
        assert settings.base_learning_rate == pytest.approx(0.1 * recipe)


def test_another_method_takes_the_encoder_and_its_target(trained: Path, model_at_step_0):
    expected = features_of(load_encoder(str(trained)).module)
    for values in ({"encoder": str(trained)}, {"start_from": str(trained)}):
        model, *_ = model_at_step_0(method="moco", **values, queue_size=64)
        assert torch.equal(features_of(model.encoder), expected)
        assert torch.equal(features_of(model.target_encoder.eval()), expected)


def test_the_same_method_goes_on_with_its_heads(trained: Path, model_at_step_0):
    model, *_ = model_at_step_0(start_from=str(trained), heads=False)
    former = METHODS["simsiam"].from_pretrained(trained / "pretraining").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, former[name]), name


def test_a_run_starts_from_the_hub(trained: Path, model_at_step_0, online, tmp_path: Path):
    hf_ssl.publish(trained, repo_id="org/first")
    expected = features_of(load_encoder(str(trained)).module)
    for values in (
        {"encoder": "org/first"}, {"encoder": "hf_hub:org/first"}, {"start_from": "org/first"},
        {"start_from": "org/first/pretraining"},
    ):  # fmt: skip
        model, start, _ = model_at_step_0(**values)
        assert torch.equal(features_of(model.encoder), expected), values
        assert start.base_model == "org/first"
