"""The command as users type and call it: what a run on few labels leaves; wrong input ends in a sentence."""

import io
import json
import re
import signal

import datasets
import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from huggingface_hub import ModelCard, constants
from PIL import Image

from hf_ssl.commands import main
from hf_ssl.commands.command import python_function
from hf_ssl.commands.finetune import COMMAND, FineTuneSettings
from hf_ssl.errors import UserError
from hf_ssl.fine_tuning.task import Supervised

TINY = ["--image_size", "16", "--batch_size", "8", "--num_steps", "4", "--warmup_steps", "1", "--num_workers", "0"]


fine_tune = python_function(COMMAND)


def finetune(*arguments):
    """Run the command in this process; returns its exit code."""
    return main(["finetune", *map(str, arguments)])


def test_a_run_on_a_tenth_of_the_labels(tmp_path, capsys):
    flags = ["--dataset", "digits", "--label_fraction", "0.1", "--train", "last-1", "--eval_every", "2"]
    assert finetune("random:test_resnet", *flags, *TINY, "--output_dir", tmp_path / "run") == 0
    captured = capsys.readouterr()
    assert "Training on 140 labelled images: 0 14, 1 14, " in captured.err
    folder = tmp_path / "run" / "classifier"
    last, best = json.loads((folder / "results.json").read_text())["results"]
    assert (last["protocol"], best["protocol"]) == ("fine-tuning", "fine-tuning-best")
    assert last["num_images"] == 360 and last["settings"]["train_images"] == 140 and last["settings"]["step"] == 4
    assert best["value"] >= last["value"] and len(last["per_class"]) == 10
    assert f"Accuracy on split test: {last['value']:.1%}" in captured.out
    run = json.loads((folder / "run.json").read_text())
    assert run["images_per_class"] == {str(digit): 14 for digit in range(10)}
    assert run["num_trained_parameters"] < run["num_parameters"] and run["evaluation"]["test_split"] == "test"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "accuracy" in line] == [2, 4]
    assert {path.name for path in (folder / "figures").iterdir()} == {"training.png", "confusion.png"}
    assert "](figures/confusion.png)" in (folder / "README.md").read_text()


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """Pictures with a column of floats and one of a single class."""
    folder = tmp_path_factory.mktemp("pictures")
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
    features = datasets.Features(
        {"image": datasets.Image(), "weight": datasets.Value("float32"), "kind": datasets.Value("int64")}
    )
    rows = [{"image": {"bytes": file.getvalue(), "path": None}, "weight": 0.5, "kind": 0}] * 20
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`output_dir` is needed: Folder of this run"),
        (["--dataset=digits"], "`encoder` is needed: Folder of a run"),
        (["random:test_resnet", "--train", "last-99"], "`train` last-N needs N from 1 to 5, .* got `last-99`"),
        (
            ["random:test_resnet", "--train", "half"],
            "`train` must be full, linear or last-N such as last-2, got `half`",
        ),
        (["random:test_resnett"], "no folder `test_resnett` .* Did you mean `test_resnet`"),
        (["random:test_resnet", "--label_fraction", "0"], "`label_fraction` must be above 0 and at most 1"),
        (["random:test_resnet", "--label_fraction", "2"], "`label_fraction` must be above 0 and at most 1"),
        (["random:test_resnet", "--label_fractoin", "1"], "Unknown flag .* Did you mean `--label_fraction`"),
        (["random:test_resnet", "--test_split", "train"], "`split` and `test_split` are both `train`"),
        (["random:test_resnet", "--dataset", "PICTURES"], "has no label column of integers or classes"),
        (
            ["random:test_resnet", "--dataset", "PICTURES", "--label_column", "weight"],
            "must hold integers or class labels",
        ),
        (
            ["random:test_resnet", "--dataset", "PICTURES", "--label_column", "kind"],
            "two classes or more, .* only `0`",
        ),
        (
            ["random:test_resnet", "--output_dir", "TAKEN"],
            "is not empty and holds no run: it has `notes.md`. Give another",
        ),
        (["random:test_resnet", "--push_to_hub"], "`push_to_hub` needs `repo_id`"),
        (["random:test_resnet", "--optimizer", "adm"], "optimizer of timm, got `adm`. Did you mean `adam`"),
        (["random:test_resnet", "--model_args", '{"num_classes": 3}'], "must not contain `num_classes`"),
        (["random:test_resnet", "--cache", "uint8"], "`cache` are for pretraining"),
        (["raw:test_resnet"], "`raw:` has no weights to train"),
        (
            ["random:test_resnet", "--label_fraction", "0.001", "--batch_size", "64"],
            "has 10 images, fewer than one batch of",
        ),
    ],
)
def test_wrong_input_ends_in_a_sentence(arguments, message, unlabelled, tmp_path, capfd):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.md").write_text("mine")
    words = {"PICTURES": unlabelled, "TAKEN": taken}
    defaults = ["--dataset", "digits", "--output_dir", tmp_path / "run", *TINY] if arguments else []
    encoder, flags = arguments[:1], [words.get(word, word) for word in arguments[1:]]
    assert finetune(*encoder, *defaults, *flags) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line


def test_a_push_arrives_and_a_failed_one_says_how_to_go_on(tmp_path, online, capfd):
    """A Hub that refuses at the end leaves the folder intact, and the command in the error pushes it."""
    words = ["random:test_resnet", "--dataset", "digits", *TINY, "--output_dir", tmp_path / "run"]
    words += ["--push_to_hub", "--repo_id", "org/digits"]
    online.faults = [("POST", "repos/create", "403")]
    assert finetune(*words) == 4
    printed = capfd.readouterr()
    error = [line for line in printed.err.splitlines() if line.startswith("error: ")][-1]
    assert "may not write to `org/digits`" in error and error.rstrip(".").endswith("--resume auto")
    assert online.token not in printed.err + printed.out
    assert (tmp_path / "run" / "classifier" / "model.safetensors").is_file() and online.repos == {}

    assert finetune(*words, "--resume", "auto") == 0
    assert f"Published: {constants.ENDPOINT}/org/digits" in capfd.readouterr().out
    pushed = online.files("org/digits")
    assert pushed["model.safetensors"] == (tmp_path / "run" / "classifier" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("token", "message"), [("", "needs a Hub token"), ("hf_reader", "may only read"), ("hf_stranger", "not among")]
)
def test_a_push_that_cannot_work_is_refused_before_any_training(token, message, tmp_path, online, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message):
        fine_tune(
            "random:test_resnet", dataset="digits", output_dir=str(tmp_path / "run"), push_to_hub=True, repo_id="org/x"
        )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def small(folder, **values):
    """A tiny run from Python.

    Of 32 pixels, because PyTorch's bf16 convolutions on the CPU read memory that nobody wrote where a map is 1 x 1.
    """
    tiny = {"image_size": 32, "batch_size": 8, "num_steps": 4, "num_workers": 0, "log_every": 1, "cpu": True}
    given = {"dataset": "digits", "output_dir": str(folder)}
    return fine_tune("random:test_resnet", **given | tiny | values)


def losses(result):
    return [line["loss"] for line in result.metrics if "loss" in line]


def test_from_python_twice_with_other_precision_and_accumulation(tmp_path, capsys):
    before = [dict(state._shared_state) for state in (PartialState, AcceleratorState, GradientState)]
    first = small(tmp_path / "first", mixed_precision="bf16", images_per_device=2)
    second = small(tmp_path / "second")
    again = small(tmp_path / "again")
    assert capsys.readouterr().out == ""
    runs = [json.loads((one.run_dir / "run.json").read_text())["training"] for one in (first, second)]
    assert [(run["mixed_precision"], run["images_per_device"]) for run in runs] == [("bf16", 2), ("no", 8)]
    # The first left nothing behind: what follows it is what follows a run like itself.
    assert losses(second) == losses(again) and len(losses(second)) == 4
    assert losses(first)[0] != losses(second)[0]
    states = (PartialState, AcceleratorState, GradientState)
    assert [state._shared_state for state in states] == before

    assert second.finished and second.exit_code == 0 and second.published is None
    assert second.classifier == tmp_path / "second" / "classifier"
    last, best = second.results
    assert json.loads((second.classifier / "results.json").read_text())["results"] == second.results
    assert second.accuracy == last["value"] <= best["value"]
    assert last["command"].startswith("hf_ssl.fine_tune(encoder='random:test_resnet', dataset='digits', ")
    chosen = f"best, at step {best['settings']['step']}: {best['value']:.1%}"
    assert str(second) == (f"Accuracy on split test: {last['value']:.1%} ({chosen})\nClassifier: {second.classifier}")


def test_a_data_set_in_memory_is_recorded_as_one(tmp_path):
    """The card names no data set that others could load; the test split is found in the same object."""
    splits = {}
    for split, number in (("train", 16), ("test", 6)):
        pictures = [np.full((32, 32, 3), 40 * (row % 4), np.uint8) for row in range(number)]
        kinds = datasets.ClassLabel(names=["dark", "bright"])
        features = datasets.Features({"image": datasets.Image(), "kind": kinds})
        rows = [{"image": Image.fromarray(picture), "kind": row % 4 > 1} for row, picture in enumerate(pictures)]
        splits[split] = datasets.Dataset.from_list(rows, features=features)
    result = small(tmp_path / "run", dataset=datasets.DatasetDict(splits))
    assert result.classifier is not None and result.results[0]["num_images"] == 6
    run = json.loads((result.classifier / "run.json").read_text())
    assert run["data"]["in_memory"] and run["data"]["dataset"] == result.results[0]["dataset"]
    assert run["data"]["dataset"].startswith("in-memory data set")
    assert json.loads((result.classifier / "config.json").read_text())["label2id"] == {"dark": 0, "bright": 1}
    metadata = ModelCard.load(result.classifier / "README.md").data
    assert metadata.datasets is None


def test_a_stopped_run_says_so_and_its_program_ends_with_the_signal(tmp_path, monkeypatch, capfd):
    forward, calls = Supervised.forward, []

    def stopped(*arguments, **more):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return forward(*arguments, **more)

    words = ["random:test_resnet", "--dataset", "digits", *TINY, "--output_dir", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "forward", stopped)
        assert finetune(*words) == 128 + signal.SIGTERM
    printed = capfd.readouterr()
    assert printed.out == "" and "Stopped by SIGTERM after step 2 of 4, with a checkpoint in" in printed.err
    assert not (tmp_path / "run" / "classifier").exists()
    assert finetune(*words, "--resume", "auto") == 0
    assert "Classifier: " in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "epochs", "steps", "warmup"),
    [
        ([], 20.0, None, (1.0, None)),
        (["--num_epochs", "5"], 5.0, None, (0.25, None)),
        (["--num_steps", "500"], None, 500, (None, 25)),
        (["--num_steps", "4"], None, 4, (None, 0)),
        (["--num_steps", "500", "--warmup_epochs", "2"], None, 500, (2.0, None)),
        (["--warmup_steps", "7"], 20.0, None, (None, 7)),
    ],
)
def test_a_typed_length_replaces_the_default_one(words, epochs, steps, warmup):
    """And the default warm-up is a twentieth of the run, so that it is never longer than a short run."""
    settings = COMMAND.parse(["x", "--output_dir", "y", *words])
    training = settings.fine_tuning.training
    assert (training.num_epochs, training.num_steps) == (epochs, steps)
    assert (training.warmup_epochs, training.warmup_steps) == warmup


def test_the_two_parts_hold_every_setting():
    settings = FineTuneSettings(encoder="x", output_dir="y", dataset="digits", train="linear", layer_decay=1)
    assert settings.data.dataset == "digits" and settings.fine_tuning.train == "linear"
    assert settings.fine_tuning.training.base_learning_rate == 0.03
    assert isinstance(settings.layer_decay, float)
    with pytest.raises(UserError, match="exclude each other"):
        FineTuneSettings(encoder="x", output_dir="y", num_steps=1, num_epochs=1)
    with pytest.raises(UserError, match="`batch_size` must be a whole number, got 2.5"):
        FineTuneSettings(encoder="x", output_dir="y", batch_size=2.5)
