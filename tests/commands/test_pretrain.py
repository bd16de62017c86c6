"""The script as users start it: two processes, SIGKILL in the middle, resume; wrong input ends with a sentence."""

import contextlib
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from hf_ssl import commands
from hf_ssl.commands import pretrain as pretrain_command
from hf_ssl.data.order.stream import merged_positions
from hf_ssl.hub.finish import Finish
from hf_ssl.methods import METHODS
from hf_ssl.training.find import complete_checkpoints

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain.py"
HELD = """
import sys, threading
from hf_ssl.commands import program
from hf_ssl.methods import METHODS

last = int(sys.argv.pop(1))
method = METHODS[sys.argv[sys.argv.index("--method") + 1]]
after_optimizer_step = method.after_optimizer_step

def held(self, step, num_steps):
    if step == last:
        threading.Event().wait()
    after_optimizer_step(self, step, num_steps)

method.after_optimizer_step = held
program("pretrain")
"""
NUM_IMAGES = 230


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of parquet files, three of them for training, as a Hub data set has; sorted by class."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "bright"])})

    def rows(count: int) -> list[dict[str, Any]]:
        made = []
        for number in range(count):
            pixels = generator.integers(0, 128, (16, 16, 3), dtype=np.uint8) + 100 * (2 * number // count)
            file = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
            made.append({"image": {"bytes": file.getvalue(), "path": None}, "label": 2 * number // count})
        return made

    everything, cuts = rows(NUM_IMAGES), (0, 90, 150, NUM_IMAGES)
    for number, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
        part = datasets.Dataset.from_list(everything[start:stop], features=features)
        part.to_parquet(folder / f"train-{number:05d}-of-00003.parquet")
    datasets.Dataset.from_list(rows(40), features=features).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def words(parquet: Path, output_dir: Path, *more: Any, method: str = "moco", **values: Any) -> list[str]:
    """A command line of a run of about two seconds."""
    flags = {
        "method": method,
        "recipe": "paper-imagenet",
        "encoder": "test_resnet",
        "image_size": 16,
        "dataset": parquet,
        "output_dir": output_dir,
        "batch_size": 8,
        "num_steps": 34,
        "warmup_steps": 0,
        "num_workers": 0,
        "shuffle_window": 40,
        "checkpoint_every": 5,
        "log_every": 4,
        "view_recipe": "simclr",
        **({"queue_size": 50, "projection_dim": 16, "bn_splits": 2} if method in ("moco", "mochi") else {}),
        **values,
    }
    return [str(word) for name, value in flags.items() for word in (f"--{name}", value)] + [str(word) for word in more]


def main(arguments: list[str]) -> int:
    """Run the command in this process; returns its exit code."""
    return commands.main(["pretrain", *arguments])


def launch(arguments: list[str], num_processes: int, *program: str) -> subprocess.Popen:
    command = [sys.executable, *(program or (str(SCRIPT),)), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if num_processes > 1:
        options = ["--multi_gpu", "--num_processes", str(num_processes), "--main_process_port", "0"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, *command[1:]]
        environment["ACCELERATE_USE_CPU"] = "true"
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def kill_after(checkpoint: Path, arguments: list[str], num_processes: int, last: int) -> None:
    """SIGKILL all processes of a run that holds before step `last` ends, a moment after a checkpoint is there."""
    program = checkpoint.parents[2] / "held.py"
    program.write_text(HELD)
    process = launch(arguments, num_processes, str(program), str(last))
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    time.sleep(0.1)
    # The launcher starts its processes in sessions of their own, so killing its group would leave them at work.
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(everyone[1:], timeout=30)  # one that nobody waits for stays as a zombie
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def same_weights(one: Path, other: Path) -> bool:
    names = ("encoder/model.safetensors", "pretraining/model.safetensors")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def places(run: Path) -> dict[str, Any]:
    """Where every lane of the data stands in the newest checkpoint."""
    files = complete_checkpoints(run)[-1].glob("process-*.pt")
    return merged_positions(json.loads(torch.load(file, weights_only=True)["position"]) for file in files)["at"]


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_exactly(method: str, parquet: Path, tmp_path: Path, capsys, monkeypatch):
    """What a run leaves when it dies after its first checkpoint is enough to end with the same bits."""
    for pictures in ("_draw", "_portray"):  # which no method changes
        monkeypatch.setattr(f"hf_ssl.hub.finish.{pictures}", lambda *_: None)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = ["--method", method, "--recipe", "quickstart", "--dataset", str(parquet), "--image_size", "16"]
    flags += ["--batch_size", "16", "--num_steps", "6", "--checkpoint_every", "3", "--keep_checkpoints", "9"]
    flags += ["--warmup_epochs", "0", "--num_workers", "0", "--resume", "auto", "--output_dir"]
    assert main([*flags, str(whole)]) == 0
    shutil.copytree(whole, cut)
    for lost in ("encoder", "pretraining", "checkpoints/step-000006"):
        shutil.rmtree(cut / lost)
    assert main([*flags, str(cut)]) == 0
    assert "Resuming after step 3" in capsys.readouterr().err
    assert same_weights(whole, cut)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """In one process, in the second epoch, and resumed with another number of workers."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = {"method": "byol", "projector_hidden_dim": 32, "view_recipe": "byol"}
    assert main(words(parquet, whole, **options)) == 0
    arguments = words(parquet, cut, "--resume", "auto", **options, num_workers=2)
    kill_after(cut / "checkpoints" / "step-000030", arguments, 1, last=33)
    assert not (cut / "encoder").exists()
    assert main([*arguments, "--num_workers", "0"]) == 0
    assert "Resuming after step" in capsys.readouterr().err
    assert same_weights(whole, cut)
    assert steps(whole) == steps(cut) == [4, 8, 12, 16, 20, 24, 28, 32, 34]
    assert json.loads((cut / "run.json").read_text())["progress"]["epoch"] > 1


@pytest.mark.slow
def test_two_processes_killed_and_resumed(parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = {"batch_size": 32, "images_per_device": 8, "num_steps": 22, "knn_split": "test"}
    output = finish(launch(words(parquet, whole, **options), 2))
    assert output.count("Encoder: ") == 1, "only the first process exports"
    run = json.loads((whole / "run.json").read_text())
    assert run["training"]["num_processes"] == 2 and run["training"]["lanes"] == 8
    assert run["training"]["learning_rate"] == pytest.approx(0.03 * 32 / 256)
    assert run["command"].startswith("ACCELERATE_USE_CPU=true accelerate launch --multi_gpu")
    result = json.loads((whole / "encoder" / "results.json").read_text())["results"][0]
    assert result["protocol"] == "knn" and result["num_images"] == 40 and 0 <= result["value"] <= 1

    arguments = words(parquet, cut, "--resume", "auto", "--knn_every", "3", **options)
    kill_after(cut / "checkpoints" / "step-000010", [*arguments, "--num_workers", "1"], 2, last=21)
    # One process goes on in a copy: with the same images in the same steps, up to the same places in the data.
    alone = tmp_path / "alone"
    shutil.copytree(cut, alone)
    replaced = words(parquet, alone, "--resume", "auto", "--knn_every", "3", **{**options, "images_per_device": 16})
    assert main(replaced) == 0
    assert "goes on with 1 process(es) and 16 images each in a forward pass, after 2 and 8" in capsys.readouterr().err
    assert places(alone) == places(whole) and not same_weights(whole, alone)
    assert not (cut / "encoder").exists()
    output = finish(launch(arguments, 2))
    assert "Resuming after step" in output
    assert same_weights(whole, cut)


@pytest.mark.slow
def test_a_request_for_two_processes_that_starts_one_is_noticed(parquet: Path, tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", str(SCRIPT)]
        + words(parquet, tmp_path / "run"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output, _ = process.communicate()
    assert process.returncode != 0
    assert "error: At least 2 processes were requested, but 1 would run. Type `ACCELERATE_USE_CPU=true" in output
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_finished_run_is_exported_again_if_its_encoder_is_gone(
    parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    arguments = words(parquet, tmp_path / "run", num_steps=3)
    assert main(arguments) == 0
    said = capsys.readouterr()
    # Labelled images: what to type next measures them. Three steps are too few, and it is said.
    assert f"hf-ssl evaluate {tmp_path / 'run'} --dataset {parquet}\n" in said.out
    assert "Short:   the run saw each image 0.11 times" in said.out and "Collapse: none was seen" in said.out
    assert "labels `label` (2 classes) are for k-NN and figures only" in said.err
    encoder = tmp_path / "run" / "encoder"
    weights = (encoder / "model.safetensors").read_bytes()
    results = json.loads((encoder / "results.json").read_text())["results"]  # the split `test` was found
    assert [result["split"] for result in results] == ["test"]
    # A method that does not look at its negatives has no figure of them.
    figures = {path.name for path in (encoder / "figures").iterdir()}
    # No picture of a data set of the user's own.
    assert figures == {"training.png", "diagnostics.png", "spectrum.png", "embedding_map.png"}
    (encoder / "model.safetensors").unlink()
    assert main([*arguments, "--resume", "auto"]) == 0
    assert (encoder / "model.safetensors").read_bytes() == weights
    assert str(encoder) in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_no_other_run_takes_the_folder_while_it_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    attempt = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    attempts = []

    def try_to_lock(*_):
        command = [sys.executable, "-S", "-c", attempt, str(tmp_path / "run" / ".lock")]
        attempts.append(subprocess.run(command, capture_output=True, check=False).returncode)
        return Finish(tmp_path / "run" / "encoder")

    monkeypatch.setattr("hf_ssl.commands.pretrain.finish_run", try_to_lock)
    few = {"architecture": "test_resnet", "image_size": 16, "num_steps": 1, "batch_size": 8, "num_workers": 0}
    pretrain_command.run({"method": "simsiam", "dataset": "digits", "output_dir": str(tmp_path / "run"), **few})
    assert len(attempts) == 1 and attempts[0] != 0
    try_to_lock()
    assert attempts[1] == 0


def test_a_run_that_is_stopped_before_its_length_is_known(parquet: Path, tmp_path: Path, capsys, monkeypatch):
    def stop(model, step, num_steps):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(METHODS["moco"], "after_optimizer_step", stop)
    arguments = words(parquet, tmp_path / "run", "--max_hours", "1")
    place = arguments.index("--num_steps")
    del arguments[place : place + 2]
    assert main(arguments) == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert "Stopped by SIGTERM after step 2, with a checkpoint in" in said and "as many as fit into 1 hours" in said


def test_a_class_oracle_leaves_a_figure_of_the_negatives(parquet: Path, tmp_path: Path):
    mixing = {"num_hard_negatives": 8, "num_mixed_negatives": 4, "num_mixed_queries": 4, "start_step": 2}
    arguments = words(parquet, tmp_path / "run", method="mochi", class_oracle="measure", num_steps=8, **mixing)
    assert main(arguments) == 0
    encoder = tmp_path / "run" / "encoder"
    assert (encoder / "figures" / "negatives.png").stat().st_size > 10_000
    assert "](figures/negatives.png)" in (encoder / "README.md").read_text()
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["false_negative_share"] <= 1 and 0 < last["match_probability_rank_16"] < 1


WRONG = [
    ({"image_column": "picture"}, [], "picture"),
    ({"image_column": "picture"}, [], "image"),  # the columns that there are
    ({"split": "validation"}, [], "validation"),
    ({"dataset": "nowhere/at/all"}, [], "nowhere/at/all"),
    ({"batch_size": 1000}, [], "230 images, fewer than one batch of 1000"),
    ({"queue_size": 7}, [], "queue_size"),
    ({"encoder": "resnet18x"}, [], "timm knows no encoder of that name. Did you mean `resnet18`?"),
    ({"output_dir": "/proc/hf_ssl/run"}, [], "`output_dir` `/proc/hf_ssl/run` cannot be written"),
    ({"view_recipe": "moco_v4"}, [], "moco_v"),
    ({"knn_split": "validation", "knn_every": 1}, [], "validation"),
    ({"report_to": "wandb"}, [], "`report_to` wandb needs a package"),
    ({}, ["--resume", "somewhere"], "`resume` must be `auto`, a checkpoint of this run or the folder"),
    ({}, ["--push_to_hub", "--repo_id", "org/name"], "`push_to_hub` needs a Hub token. Run `hf auth login`"),
    ({"base_learning_rate": 1e30, "learning_rate_scaling": "none"}, [], "not finite"),
    ({}, ["--mixed_precision", "fp16"], "needs a GPU"),
    ({}, ["--queue_sise", "3"], "Unknown flag `--queue_sise`. Did you mean `--queue_size`?"),
]


@pytest.mark.parametrize(("values", "more", "message"), WRONG, ids=[message[:30] for *_, message in WRONG])
def test_wrong_input_ends_with_a_sentence(
    values: dict,
    more: list[str],
    message: str,
    parquet: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    find_spec = importlib.util.find_spec
    missing = values.get("report_to")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == missing else find_spec(name, *more)
    )
    output_dir = values.pop("output_dir", tmp_path / "run")
    assert main(words(parquet, output_dir, *more, **{"num_steps": 4, **values})) == 2
    printed = capsys.readouterr().err
    answer = printed[printed.index("error: ") :]
    assert message in answer
    assert answer.count("\n") == 1 and "Traceback" not in printed
    assert answer.count(". ") <= 3, "one or two sentences"


def test_an_empty_data_set_and_a_full_folder_are_refused(parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    for dataset, output_dir, message in (
        (tmp_path / "empty", tmp_path / "run", "holds no images"),
        (parquet, tmp_path / "full", "is not empty and holds no run: it has `thesis.tex`. Give another folder"),
    ):
        assert main(words(dataset, output_dir)) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
