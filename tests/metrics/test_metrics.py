"""Metrics as modules of `evaluate`: loaded offline by path, equal to the package's own functions, pushed as Spaces."""

import ast
import builtins
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from hf_ssl import metrics
from hf_ssl.commands import main
from hf_ssl.diagnostics import alignment, rank_me, uniformity
from hf_ssl.errors import UserError
from hf_ssl.evaluation.clustering import clustering_scores
from hf_ssl.evaluation.knn import knn_accuracy
from hf_ssl.evaluation.linear_probe import linear_probe_accuracy
from hf_ssl.metrics.inputs import as_features, as_labels
from hf_ssl.metrics.space import space_files

pytest.importorskip("evaluate")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """`evaluate` copies modules, and keeps what it is given, in caches of the user."""
    import evaluate

    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_METRICS_CACHE", "HF_EVALUATE_CACHE", "HF_MODULES_CACHE"):
            patch.setattr(evaluate.config, name, str(tmp_path_factory.mktemp(name)), raising=False)
        yield


def images(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 3
    features = torch.randn(number, 5, generator=generator)
    features[torch.arange(number), labels] += 1.5
    return features, labels


TRAIN, TEST = images(60, 0), images(30, 1)
LEARNT = {"train_features": TRAIN[0].numpy(), "train_labels": TRAIN[1].numpy()}
SCORED = {"features": TEST[0].tolist(), "references": TEST[1].tolist()}
SECOND = TEST[0] + 0.1
CLUSTERS = (TEST[1] + (torch.arange(30) % 7 == 0)) % 3
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "knn_accuracy": (SCORED, {**LEARNT, "k": 5}, lambda: knn_accuracy(*TRAIN, *TEST, 5)),
    "linear_probe_accuracy": (SCORED, LEARNT, lambda: linear_probe_accuracy(*TRAIN, *TEST)),
    "clustering_scores": (
        {"predictions": CLUSTERS.tolist(), "references": TEST[1].tolist()},
        {},
        lambda: clustering_scores(CLUSTERS, TEST[1]),
    ),
    "alignment": (
        {"first": TEST[0].tolist(), "second": SECOND.tolist()},
        {"exponent": 1.0},
        lambda: float(alignment(TEST[0], SECOND, 1.0)),
    ),
    "uniformity": ({"features": TEST[0].tolist()}, {"t": 3.0}, lambda: float(uniformity(TEST[0], 3.0))),
    "rank_me": ({"features": TEST[0].tolist()}, {}, lambda: float(rank_me(TEST[0]))),
}


def expected(name: str) -> dict[str, float]:
    value = CASES[name][2]()
    return value if isinstance(value, dict) else {name: value}


def test_there_is_a_case_for_every_metric():
    folders = {path.parent.name for path in Path(metrics.__file__).parent.glob("*/*.py") if "__" not in str(path)}
    assert set(CASES) == set(metrics.METRICS) == folders


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_metric_equals_the_function_of_the_package(name: str):
    inputs, options, _ = CASES[name]
    metric = metrics.load(name)
    assert metric.compute(**inputs, **options) == pytest.approx(expected(name), abs=1e-6)
    for start in range(0, 30, 8):  # in batches, the last one shorter
        metric.add_batch(**{column: values[start : start + 8] for column, values in inputs.items()})
    assert metric.compute(**options) == pytest.approx(expected(name), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        (
            "uniformity",
            {"features": [[1.0, 2.0], [3.0]]},
            "`features` must hold one vector for each image",
        ),
        ("rank_me", {"features": [[1.0, float("nan")], [3.0, 1.0]]}, "`features` holds values that are no finite"),
        ("uniformity", {"features": [[1.0, 2.0]]}, "at least two images"),
        ("alignment", {"first": [[1.0, 2.0]], "second": [[1.0, 2.0, 3.0]]}, "must both have shape"),
        (
            "knn_accuracy",
            {**SCORED, "train_features": [1.0, 2.0], "train_labels": [0, 1]},
            "`train_features` must hold one vector for each image",
        ),
        (
            "knn_accuracy",
            {**SCORED, "train_features": [[1.0] * 5] * 2, "train_labels": [0.5, 1.0]},
            "`train_labels` must hold one whole number",
        ),
        ("knn_accuracy", {**SCORED, **LEARNT, "k": 0}, "`k` must be at least 1"),
        ("clustering_scores", {"predictions": [0, 1], "references": [-1, -1]}, "No image has a label"),
    ],
)
def test_inputs_that_do_not_fit_are_a_sentence(name: str, inputs: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        metrics.load(name).compute(**inputs)


def test_a_metric_is_known_by_name():
    with pytest.raises(ValueError, match="Unknown metric `knn`. Known: alignment, "):
        metrics.load("knn")


def test_without_evaluate_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    import_ = builtins.__import__

    def without(name: str, *rest: Any, **named: Any):
        if name == "evaluate":
            raise ImportError(name)
        return import_(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"`pip install hf_ssl\[metrics\]`"):
        metrics.load("rank_me")


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_metric_as_a_space(name: str, tmp_path: Path):
    import evaluate

    files = space_files(metrics.path_of(name) / f"{name}.py", f"org/{name}")
    assert set(files) == {f"{name}.py", "README.md", "app.py", "requirements.txt"}
    _, head, text = files["README.md"].decode().split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and "evaluate" in card["tags"]
    assert len(card["short_description"]) <= 60
    assert f'evaluate.load("org/{name}")' in text and "@article{" in text and "Returns:" in text
    ast.parse(files["app.py"])
    # What is in the Space is what `evaluate` loads.
    folder = tmp_path / name
    folder.mkdir()
    for path, content in files.items():
        (folder / path).write_bytes(content)
    inputs, options, _ = CASES[name]
    assert evaluate.load(str(folder)).compute(**inputs, **options) == pytest.approx(expected(name), abs=1e-6)


def test_a_space_must_have_the_metrics_name():
    with pytest.raises(ValueError, match="must be called `rank_me`, got `org/rank`. Give `ORG/rank_me`"):
        space_files(metrics.path_of("rank_me") / "rank_me.py", "org/rank")


@pytest.mark.slow
def test_a_metric_is_pushed_and_loaded_from_a_hub(
    online, hub_server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The command, and then `evaluate` in a process of its own, against the Hub on loopback."""
    words = ["publish_metric", "rank_me", "--repo_id", "someone/rank_me"]
    assert main([*words, "--dry_run"]) == 0
    assert f"--- rank_me.py\n{(metrics.path_of('rank_me') / 'rank_me.py').read_text()}" in capsys.readouterr().out
    assert online.requests == []
    assert main(words) == 0
    assert capsys.readouterr().out == f"{hub_server.url}/spaces/someone/rank_me\n"
    assert set(online.files("spaces/someone/rank_me")) >= {"rank_me.py", "README.md", "app.py", "requirements.txt"}
    environment = {**os.environ, "HF_ENDPOINT": hub_server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    code = "import evaluate; print(evaluate.load('someone/rank_me').compute(features=[[1, 0], [0, 1]])['rank_me'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == pytest.approx(2, abs=1e-4)


def test_vectors_come_as_arrays_too():
    assert as_features(np.ones((3, 2)), "x").dtype == torch.float32
    assert as_labels(np.array([1.0, 2.0]), "x").dtype == torch.int64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("knn --repo_id org/knn", "Unknown metric `knn`. Known: alignment, "),
        ("rank_me --repo_id org/rank", "must be called `rank_me`, got `org/rank`. Give `ORG/rank_me`"),
        ("rank_me --repo_id a/b/rank_me", "`repo_id` must be `org/name`"),
        ("rank_me", "`repo_id` is needed: "),
    ],
)
def test_a_wrong_push_is_a_sentence(words: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["publish_metric", *words.split()]) == 2
    assert message in capsys.readouterr().err
