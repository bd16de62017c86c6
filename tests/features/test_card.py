"""The card of a folder of features: true, loadable, and its examples run."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
from huggingface_hub import DatasetCard

from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import encoder_of
from hf_ssl.features.card import files_to_push, render_feature_card, write_feature_card
from hf_ssl.features.extract import extract_shards
from hf_ssl.features.folder import ExtractionSettings, begin_split, describe, finish_split
from hf_ssl.features.search import build_index, nearest, open_features
from hf_ssl.hub.push import push_files

COMMAND = "hf-ssl extract ENCODER --dataset digits --output features"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two splits of digits, of which one is indexed."""
    folder = tmp_path_factory.mktemp("features")
    encoder = encoder_of(timm.create_model("test_resnet", num_classes=0).eval(), 16, (0.5,) * 3, (0.2,) * 3)
    settings = ExtractionSettings(rows_per_shard=30, max_images=70)
    for split in ("test", "train"):
        source = open_source("digits", split=split)
        dataset = {"dataset": "digits"}
        begin_split(folder, describe(encoder, source, settings, seed=0, dataset=dataset), source)
        extract_shards(folder, encoder, source, settings, set())
        finish_split(folder, split, 70)
    build_index(folder, "test")
    write_feature_card(folder, COMMAND)
    return folder


def record_with(folder, tmp_path, **changes):
    """A copy of the folder whose record says something else."""
    copy = tmp_path / "copy"
    (copy / "data").mkdir(parents=True)
    for path in folder.glob("data/*"):
        shutil.copy(path, copy / "data")
    record = json.loads((folder / "features.json").read_text())
    for name, values in changes.items():
        record[name] = record[name] | values if isinstance(values, dict) else values
    (copy / "features.json").write_text(json.dumps(record))
    return copy


def test_metadata_name_splits_columns_and_sizes(folder):
    data = DatasetCard.load(folder / "README.md").data.to_dict()
    assert data["task_categories"] == ["image-feature-extraction"]
    assert data["size_categories"] == "n<1K"
    assert set(data["tags"]) == {"embeddings", "hf_ssl", "faiss"}
    assert [entry["split"] for entry in data["configs"][0]["data_files"]] == ["test", "train"]
    info = data["dataset_info"]
    assert [column["name"] for column in info["features"]] == ["row_id", "path", "label", "embedding"]
    assert [split["num_examples"] for split in info["splits"]] == [70, 70]
    assert info["download_size"] == sum(path.stat().st_size for path in folder.glob("data/*.parquet"))
    assert "source_datasets" not in data


def test_the_text_says_what_was_done(folder, tmp_path):
    text = (folder / "README.md").read_text()
    assert COMMAND in text
    assert "| `path` | file of the image" in text
    assert "| test | 70 | 70 | none |" in text
    changes = {
        "encoder": {"name": "org/encoder@v1"},
        "dataset": {"dataset": "org/pictures"},
        "dataset_kind": "hub",
        "splits": {"test": {"num_rows": 80, "shards": [30, 30, 10], "skipped": {"truncated": 7, "empty": 3}}},
    }
    text = render_feature_card(record_with(folder, tmp_path, **changes), COMMAND, "org/features")
    assert "[org/encoder@v1](https://huggingface.co/org/encoder)" in text
    assert "[org/pictures](https://huggingface.co/datasets/org/pictures)" in text
    assert "| test | 80 | 70 | 7 truncated, 3 empty |" in text
    assert 'load_dataset("org/features", split="test")' in text
    assert "--index org/features" in text


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("resnet50.a1_in1k", "[resnet50.a1_in1k](https://huggingface.co/timm/resnet50.a1_in1k) of timm"),
        ("/home/me/runs/first", "`first (local)`"),
        ("raw:/home/me/runs/first", "`raw:first (local)`"),
        ("random:resnet18", "`random:resnet18`"),
        ("hf_hub:org/encoder", "[org/encoder](https://huggingface.co/org/encoder)"),
    ],
)
def test_the_encoder_is_linked_where_it_can_be_had(folder, tmp_path, name, link):
    encoder = {"name": name, "local": "/" in name and "home" in name}
    text = render_feature_card(record_with(folder, tmp_path, encoder=encoder), COMMAND)
    assert f"the encoder {link} computes" in " ".join(text.split())
    assert "/home/me" not in text


def test_an_edited_card_stays(folder, tmp_path):
    copy = record_with(folder, tmp_path)
    write_feature_card(copy, COMMAND)
    (copy / "README.md").write_text((copy / "README.md").read_text().replace("## Limits", "## Our limits"))
    write_feature_card(copy, "another command")
    assert "## Our limits" in (copy / "README.md").read_text()
    assert files_to_push(copy, "org/features", COMMAND)["README.md"] == copy / "README.md"


def examples(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_a_pushed_folder_loads_as_its_card_says(online, hub_server, folder, tmp_path, monkeypatch):
    push = {"repo_type": "dataset", "message": "Features", "retry": COMMAND}
    push_files(lambda name: files_to_push(folder, name, COMMAND), "org/features", **push)
    card = online.files("datasets/org/features")["README.md"].decode()
    program = "\n".join([*examples(card), "print(len(features), [int(row) for row in nearest['row_id']])"])
    assert str(folder) not in program
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=hub_server.environment(tmp_path / "home")
    )
    assert done.returncode == 0, done.stderr
    number, found = done.stdout.strip().split(" ", 1)
    assert int(number) == 70

    address = f"{hub_server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.chdir(tmp_path)
    saved = open_features("org/features", "test")
    first = np.stack([saved.shard(0, ["embedding"])["embedding"][0].values.to_numpy()])
    assert nearest(saved, first, 9).row_ids[0].tolist() == json.loads(found)
    with pytest.raises(ValueError, match="There is no folder `org/none`, and the Hub gave no `features.json`"):
        open_features("org/none")


def test_the_example_without_an_index_finds_the_same(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the card names the folder, and nothing above it
    copy = record_with(folder, tmp_path)
    record = json.loads((copy / "features.json").read_text())
    del record["splits"]["test"]["index"]
    (copy / "features.json").write_text(json.dumps(record))
    write_feature_card(copy, COMMAND)
    names = {}
    exec("\n".join(examples((copy / "README.md").read_text())), names)
    saved = open_features(str(folder), "test")
    first = np.stack([saved.shard(0, ["embedding"])["embedding"][0].values.to_numpy()])
    assert [int(row) for row in names["nearest"]["row_id"]] == nearest(saved, first, 9).row_ids[0].tolist()


def test_a_call_in_python_is_shown_as_one(folder):
    assert f"```bash\n{COMMAND}\n```" in render_feature_card(folder, COMMAND)
    call = "hf_ssl.extract_features(encoder='x', dataset=<Dataset>)"
    assert f"```python\n{call}\n```" in render_feature_card(folder, call)


def test_a_link_that_leads_out_of_a_folder_is_not_pushed(folder, tmp_path):
    copy = tmp_path / "features"
    shutil.copytree(folder, copy)
    (tmp_path / "secret").write_text("secret")
    shard = sorted((copy / "data").iterdir())[0]
    shard.rename(copy / "data" / "moved")
    shard.symlink_to("moved")
    assert files_to_push(copy, "org/features", COMMAND)[f"data/{shard.name}"] == shard
    shard.unlink()
    shard.symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=f"`{shard}` is a link that leads out of its folder"):
        files_to_push(copy, "org/features", COMMAND)
