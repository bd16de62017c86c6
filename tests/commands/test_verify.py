"""`hf-ssl evaluate --verify`: what is equal, what is not, and what cannot be checked."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import hf_ssl
from hf_ssl.commands import main


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("verify") / "run"
    hf_ssl.pretrain(
        method="contrastive_clustering",
        dataset="digits",
        encoder="test_resnet",
        recipe="quickstart",
        num_steps=4,
        batch_size=16,
        num_workers=0,
        knn_images=300,
        output_dir=str(run),
    )
    hf_ssl.evaluate(str(run), ["linear", "clustering"], dataset="digits", max_images=200, num_workers=0)
    return run


@pytest.fixture
def encoder(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "run")) / "encoder"


def entries_of(encoder: Path) -> list[dict[str, Any]]:
    return json.loads((encoder / "results.json").read_text())["results"]


def verify(encoder: Path, *arguments: str, capsys: pytest.CaptureFixture) -> tuple[int, list[str]]:
    code = main(["evaluate", str(encoder), "--verify", "--num_workers", "0", *arguments])
    return code, capsys.readouterr().out.strip().splitlines()


def test_all_numbers_of_a_run_come_out_again(encoder: Path, capsys: pytest.CaptureFixture):
    before = {path: path.read_bytes() for path in encoder.rglob("*") if path.is_file()}
    code, lines = verify(encoder, capsys=capsys)
    protocols = [one["protocol"] for one in entries_of(encoder)]
    assert {"knn", "linear", "clustering-nmi", "clustering-ari"} <= set(protocols)
    assert code == 0 and lines[-1].startswith(f"{len(lines) - 1} equal, 0 different, 0 not checkable here")
    for one, line in zip(entries_of(encoder), lines[-1 - len(protocols) : -1], strict=True):
        shown = f"{100 * one['value']:.2f}"
        assert f"{shown} -> {shown}  equal" in line
    assert {path: path.read_bytes() for path in encoder.rglob("*") if path.is_file()} == before


def test_a_wrong_number_is_different_and_ends_with_1(encoder: Path, capsys: pytest.CaptureFixture):
    entries = entries_of(encoder)
    entries[1]["value"] -= 0.02
    (encoder / "results.json").write_text(json.dumps({"results": entries}))
    code, lines = verify(encoder, capsys=capsys)
    assert code == 1 and ", 1 different, 0 not checkable here" in lines[-1]
    assert [line.endswith("  different") for line in lines[-1 - len(entries) : -1]] == [
        place == 1 for place in range(len(entries))
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dataset": "my-photos"}, "`my-photos`"),
        ({"protocol": "fine-tuning"}, "`fine-tuning` is no number of a frozen encoder"),
        ({"split": "holdout"}, "holdout"),
        ({"label": "colour"}, "colour"),
        ({"num_images": 150}, "it is of 150 labelled images, and here are "),
        ({"settings": {"k": 5, "temperature": 0.1, "train_images": 300, "metric": "L1"}}, "it has `metric` L1"),
    ],
)
def test_what_cannot_be_checked_says_why(encoder: Path, change: dict, reason: str, capsys: pytest.CaptureFixture):
    first = entries_of(encoder)[0]
    (encoder / "results.json").write_text(json.dumps({"results": [first | change]}))
    code, lines = verify(encoder, capsys=capsys)
    assert code == 0 and "1 not checkable here" in lines[-1]
    assert "not checkable here: " in lines[-2] and reason in lines[-2]


def test_a_claim_about_a_folder_is_checked_on_a_copy_of_it(encoder: Path, capsys: pytest.CaptureFixture):
    first = entries_of(encoder)[0]
    (encoder / "results.json").write_text(json.dumps({"results": [first | {"dataset": "my-digits"}]}))
    code, lines = verify(encoder, "--dataset", "digits", capsys=capsys)
    assert code == 0 and lines[-1].startswith(f"{len(lines) - 1} equal, 0 different, 0 not")
    assert lines[-2].startswith("my-digits, split test")


def test_weights_are_compared_with_the_card(encoder: Path, capsys: pytest.CaptureFixture):
    card = encoder / "README.md"
    right = hashlib.sha256((encoder / "model.safetensors").read_bytes()).hexdigest()
    for digest, verdict in ((right, "equal"), ("0" * 64, "different")):
        card.write_text(f"SHA-256 of `model.safetensors`: {digest}\n")
        code, lines = verify(encoder, capsys=capsys)
        assert lines[0].startswith("weights: SHA-256 on the card") and lines[0].endswith(f"  {verdict}")
        assert code == (verdict == "different")


def test_an_encoder_without_numbers_is_refused(encoder: Path, capsys: pytest.CaptureFixture):
    (encoder / "results.json").unlink()
    assert main(["evaluate", str(encoder), "--verify"]) == 2
    assert "has no `results.json`, so there is nothing to verify" in capsys.readouterr().err
    (encoder / "results.json").write_text('{"results": 3}')
    assert main(["evaluate", str(encoder), "--verify"]) == 2
    assert "must have a list `results` of objects" in capsys.readouterr().err
    assert main(["evaluate", str(encoder)]) == 2
    assert "`dataset` is needed: labelled images to score on" in capsys.readouterr().err
