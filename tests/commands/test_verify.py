"""`hf-ssl evaluate --verify`: what is equal, what is not, and what cannot be checked."""

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

import hf_ssl
from hf_ssl.commands import main
from hf_ssl.evaluation import features
from hf_ssl.hub.model_card import write_model_card


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
    # The card, in its table and its metadata, still has the number that was measured.
    assert code == 1 and ", 3 different, 0 not checkable here" in lines[-1]
    assert [line.split(" of the card")[0] for line in lines if " of the card: " in line] == ["table", "metadata"]
    assert [line.endswith("  different") for line in lines[-1 - len(entries) : -1]] == [
        place == 1 for place in range(len(entries))
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dataset": "my-photos"}, "`my-photos`"),
        ({"protocol": "fine-tuning"}, "`fine-tuning` does not measure a frozen encoder"),
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


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--split", "validation"], "`split` would not be used. Leave it out."),
        (["--k", "5", "--temperature", "0.2"], "`k` and `temperature` would not be used. Leave them out."),
        (["knn"], "`protocols` would"),
        (["--baselines", "random"], "`baselines` would"),
        (["--label_column", "label"], "`label_column` would"),
        (["--max_images", "50"], "`max_images` would"),
        (["--seed", "1"], "`seed` would"),
        (["--train_split", "all", "--bf16"], "`train_split` and `bf16` would"),
        (["--augmented_passes", "2", "linear-sgd"], "`protocols` and `augmented_passes` would"),
        (["--output", "x.json"], "`output` would"),
        (["--no_card"], "`card` would"),
        (["--gallery"], "`gallery` would"),
        (["--split", "test"], "`split` would not be used. Leave it out."),
        (["--k", "200", "--no_bf16"], "`k` and `bf16` would not be used. Leave them out."),
        (["knn", "linear"], "`protocols` would"),
        (["--split", "train"], "`split` would"),
        (["--seed", "0", "--show_loading"], "`seed` and `show_loading` would"),
    ],
)
def test_a_flag_that_would_not_be_used_is_refused(flags: list[str], names: str, capsys: pytest.CaptureFixture):
    assert main(["evaluate", "no-such-encoder", "--verify", *flags]) == 2
    assert f"each by the settings that stand beside it, so {names}" in capsys.readouterr().err


def test_python_refuses_them_too():
    with pytest.raises(hf_ssl.UserError, match="so `split` would not be used. Leave it out."):
        hf_ssl.evaluate("no-such-encoder", verify=True, split="test")


@pytest.mark.parametrize("where", ["table", "metadata"])
def test_a_number_that_the_card_alone_has_is_different(encoder: Path, where: str, capsys: pytest.CaptureFixture):
    card, entry = encoder / "README.md", next(one for one in entries_of(encoder) if one["protocol"] == "knn")
    text = card.read_text()
    shown = f"{100 * entry['value']:.1f}"
    old = f"| weighted k-NN | {shown} |" if where == "table" else f"value: {entry['value']}\n"
    assert old in text
    card.write_text(text.replace(old, "| weighted k-NN | 99.9 |" if where == "table" else "value: 0.999\n", 1))
    code, lines = verify(encoder, capsys=capsys)
    (told,) = [line for line in lines if " of the card: " in line]
    assert told.startswith(f"{where} of the card: digits, split test, ") and "99.90 -> " in told
    assert told.endswith("different: this is what `results.json` says") and code == 1


def test_a_card_that_cannot_be_read_is_somebody_elses(encoder: Path, capsys: pytest.CaptureFixture):
    (encoder / "README.md").write_bytes(b"\xff\xfe\x00---\na: [")
    code, lines = verify(encoder, capsys=capsys)
    assert code == 0 and " 0 different, 0 not checkable here" in lines[-1]
    assert write_model_card(encoder).read_bytes() == b"\xff\xfe\x00---\na: ["


def without(entry: dict, *names: str) -> dict:
    return {name: value for name, value in entry.items() if name not in names}


def test_entries_of_another_form_are_not_checkable(encoder: Path, capsys: pytest.CaptureFixture):
    """The file may come from anywhere."""
    first = entries_of(encoder)[0]
    settings = first["settings"]
    broken = [without(first, name) for name in ("split", "label", "num_images", "train_split", "value", "settings")]
    values = (None, [1], {"a": 1}, -1, float("nan"), float("inf"), 10**30, True)
    broken += [first | {name: value} for name in ("split", "label", "num_images", "settings") for value in values]
    broken += [first | {"settings": settings | {name: value}} for name in ("k", "train_images") for value in values]
    broken += [first | {"settings": settings | {"augmented_passes": value}} for value in (-1, 10**12, "x")]
    broken += [first | {"settings": settings | {name: "x"}} for name in ("seed", "temperature")]
    broken += [first | {"settings": settings | {"bf16": value}} for value in (None, 1, "true")]
    broken += [first | {"settings": settings | {"seed": -1}}, first | {"value": float("nan")}]
    broken += [first | {name: [1]} for name in ("dataset_config", "train_split", "protocol", "dataset")]
    (encoder / "results.json").write_text(json.dumps({"results": broken}))
    code, lines = verify(encoder, capsys=capsys)
    assert code == 0 and f", {len(broken)} not checkable here" in lines[-1]


def test_a_number_in_bfloat16_says_so_and_is_checked_on_cuda_alone(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    asked: list[bool] = []
    computed = features._computed

    def as_on_cuda(encoder, batches, bf16):  # autocast of a CPU would give other numbers
        asked.append(bf16)
        return computed(encoder, batches, False)

    entries = {one["protocol"]: one for one in entries_of(encoder)}
    assert all(one["settings"]["bf16"] is False for one in entries.values())
    (encoder / "results.json").write_text(json.dumps({"results": [entries["knn"], entries["linear"]]}))
    with monkeypatch.context() as there:
        there.setattr(features, "_computed", as_on_cuda)
        there.setattr("hf_ssl.commands.evaluate.take_portrait", lambda *_, **__: {})
        there.setattr("hf_ssl.commands.evaluate.write_embedding", lambda *_: None)
        code = main(
            ["evaluate", str(encoder), "linear", "--dataset", "digits", "--max_images", "200", "--bf16"]
            + ["--num_workers", "0"]
        )
    changed = {one["protocol"]: one["settings"]["bf16"] for one in entries_of(encoder)}
    assert code == 0 and asked == [True, True] and changed == {"knn": False, "linear": True}
    assert "bf16 `true`" in (encoder / "README.md").read_text()
    capsys.readouterr()
    code, lines = verify(encoder, capsys=capsys)
    assert code == 0 and ", 0 different, 1 not checkable here" in lines[-1]
    (told,) = [line for line in lines if "not checkable here: " in line]
    assert told.endswith("its features were computed in bfloat16 (`bf16`), which needs a CUDA device, not `cpu`.")
    asked.clear()
    monkeypatch.setattr(features, "_computed", as_on_cuda)
    monkeypatch.setattr("hf_ssl.evaluation.verification.device_of", lambda _: torch.device("cuda"))
    code, lines = verify(encoder, capsys=capsys)
    assert code == 0 and ", 0 different, 0 not checkable here" in lines[-1] and set(asked) == {True, False}


def test_results_of_a_version_that_did_not_note_bf16_are_checked(encoder: Path, capsys: pytest.CaptureFixture):
    entries = [one | {"settings": without(one["settings"], "bf16")} for one in entries_of(encoder)[:1]]
    (encoder / "results.json").write_text(json.dumps({"results": entries}))
    assert " 0 different, 0 not checkable here" in verify(encoder, capsys=capsys)[1][-1]


def test_images_that_do_not_count_are_no_obstacle(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """A damaged file and images without a label: a split has more rows than images that were scored."""
    for split in ("train", "test"):
        rows = [
            {"image": image_bytes(number), "label": None if number % 5 == 4 else number % 2} for number in range(30)
        ]
        rows[6]["image"] = b"\x89PNG\r\n broken"
        features = datasets.Features(
            {"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=["a", "b"])}
        )
        table = datasets.Dataset.from_list(rows, features=features).cast_column("image", datasets.Image())
        (tmp_path / "data").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "data" / f"{split}.parquet")
    (encoder / "results.json").unlink()
    copy = ["--dataset", str(tmp_path / "data")]
    assert main(["evaluate", str(encoder), "knn", "--card", "--num_workers", "0", *copy]) == 0
    assert [one["num_images"] for one in entries_of(encoder)] == [23]
    capsys.readouterr()
    code, lines = verify(encoder, *copy, capsys=capsys)
    assert code == 0 and lines[-1].startswith("2 equal, 0 different, 0 not")


def image_bytes(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (number * 8, 100, 100 * (number % 2))).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_copy_that_no_claim_is_about_is_refused(encoder: Path, capsys: pytest.CaptureFixture):
    first = entries_of(encoder)[0]
    (encoder / "results.json").write_text(json.dumps({"results": [first, first | {"dataset": "birds"}]}))
    assert main(["evaluate", str(encoder), "--verify", "--dataset", "shapes"]) == 2
    assert "one of the data sets in the results, birds, digits" in capsys.readouterr().err


def test_numbers_are_checked_without_a_card_too(encoder: Path, capsys: pytest.CaptureFixture):
    count = len(entries_of(encoder))
    (encoder / "README.md").write_bytes(b"\xff\xfe")
    assert verify(encoder, capsys=capsys)[1][-1].startswith(f"{count} equal, 0 different, 0 not")
    (encoder / "README.md").unlink()
    assert verify(encoder, capsys=capsys)[1][-1].startswith(f"{count} equal, 0 different, 0 not")


@pytest.mark.parametrize("name", ["resnet18", "random:{}", "raw:{}"])
def test_what_has_no_results_of_its_own_is_refused(encoder: Path, name: str, capsys: pytest.CaptureFixture):
    assert main(["evaluate", name.format(encoder), "--verify"]) == 2
    assert "`verify` needs an encoder with results beside it" in capsys.readouterr().err


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
