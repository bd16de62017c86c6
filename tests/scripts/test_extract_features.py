"""scripts/extract_features.py: a parquet file that datasets reads, or a sentence."""

import importlib.util
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from hf_ssl.data.sources import open_source
from hf_ssl.evaluation.features import extract_features, load_encoder
from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS

SCRIPT = Path(__file__).parents[2] / "scripts" / "extract_features.py"


@pytest.fixture(scope="module")
def extract():
    spec = importlib.util.spec_from_file_location("extract_features_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    method = METHODS["simsiam"]
    folder = tmp_path_factory.mktemp("runs") / "first"
    export_run(method(method.config_class(architecture="test_resnet", image_size=32, projection_dim=8)), folder)
    return str(folder)


ARGUMENTS = ["--dataset", "digits", "--split", "test", "--num_workers", "0"]


def test_the_file_holds_the_features_and_the_class_names(extract, run, tmp_path, capsys):
    output = tmp_path / "features.parquet"
    assert extract([run, *ARGUMENTS, "--output", str(output), "--batch_size", "50"]) == 0
    table = datasets.load_dataset("parquet", data_files=str(output), split="train")
    expected = extract_features(load_encoder(run), open_source("digits", split="test"), batch_size=50)
    assert torch.equal(torch.tensor(table["embedding"][:]), expected.features)
    assert table["row_id"][:] == list(range(360))
    assert table["label"][:] == expected.labels["label"].tolist()
    assert table.features["label"].names == [str(digit) for digit in range(10)]
    assert "360 rows" in capsys.readouterr().out


def test_an_existing_output_is_kept_unless_told_otherwise(extract, run, tmp_path):
    output = tmp_path / "features.parquet"
    output.write_text("precious")
    few = [run, *ARGUMENTS, "--output", str(output), "--max_images", "20", "--dtype", "float16"]
    with pytest.raises(ValueError, match="exists. Choose another file, or add `--overwrite`"):
        extract(few)
    assert output.read_text() == "precious"
    extract([*few, "--overwrite"])
    table = datasets.load_dataset("parquet", data_files=str(output), split="train")
    assert len(table) == 20
    assert table.features["embedding"].feature.dtype == "float16"


def test_labels_are_not_needed(extract, run, tmp_path):
    Image.new("L", (20, 40), 77).save(tmp_path / "one.png")
    output = tmp_path / "out" / "features.parquet"
    extract([f"raw:{run}", "--dataset", str(tmp_path), "--output", str(output), "--num_workers", "0"])
    table = datasets.load_dataset("parquet", data_files=str(output), split="train")
    assert table.column_names == ["row_id", "embedding"]
    assert len(table[0]["embedding"]) == 3 * 32 * 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "validation"], "`digits` has no split `validation`"),
        (["--batch_sise", "3"], r"Unknown flag `--batch_sise`. Did you mean `--batch_size`\?"),
        (["--batch_size", "0"], "`--batch_size` must be at least 1, got 0"),
        (["--output", "."], "exists. Choose another file"),
    ],
)
def test_wrong_input_is_named(extract, run, tmp_path, arguments, message):
    output = tmp_path / "features.parquet"
    with pytest.raises(ValueError, match=message):
        extract([run, *ARGUMENTS, "--output", str(output), *arguments])
    assert not output.exists()
