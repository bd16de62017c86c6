"""The card says what the run's records say, in metadata that the Hub accepts, and nothing else."""

import json
import re
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_ssl.errors import UserError
from hf_ssl.hub.model_card import render_model_card, write_model_card
from hf_ssl.methods import METHODS

RESULTS = [
    {
        "dataset": "ORG/NAME",
        "split": "test",
        "train_split": "train",
        "label": "label",
        "protocol": protocol,
        "metric": "accuracy",
        "value": value,
        "settings": {"k": 200} if protocol == "knn" else {"epochs": 90},
        "baselines": {"raw": 0.2966, "random": 0.3344},
        "command": f"hf-ssl evaluate runs/x --dataset ORG/NAME {protocol}",
        "num_images": 10000,
    }
    for protocol, value in (("knn", 0.81234), ("linear", 0.85678))
]


EMBEDDING = {
    "dataset": "shapes",
    "dataset_config": None,
    "split": "validation",
    "label": "shape",
    "num_images": 1987,
    "num_pairs": 499,
    "encoders": {
        "random encoder": {
            "dim": 96,
            "rank_me": 7.77,
            "effective_rank": 3.33,
            "alignment": 0.5552,
            "uniformity": -0.666,
        },
        "this encoder": {
            "dim": 96,
            "rank_me": 44.44,
            "effective_rank": 22.22,
            "alignment": 0.1112,
            "uniformity": -2.988,
        },
    },
}


@pytest.fixture
def encoder_folder(make_run, tmp_path):
    make_run(tmp_path / "run")
    return tmp_path / "run" / "encoder"


def write_record(folder, name, value):
    (folder / name).write_text(json.dumps(value))


def metadata_of(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_metadata(encoder_folder):
    metadata = metadata_of(render_model_card(encoder_folder, "org/enc"))
    assert metadata == {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["transformers", "timm", "sentence-transformers", "self-supervised-learning", "hf_ssl", "simsiam"],
        "datasets": ["ORG/NAME"],
    }


def test_results_are_in_the_index_and_in_the_table(encoder_folder):
    write_record(encoder_folder, "results.json", {"results": RESULTS})
    text = render_model_card(encoder_folder, "org/enc")
    read = ModelCard(text).data.eval_results  # as the Hub's own library understands it
    assert [(r.dataset_type, r.dataset_split, r.metric_type, r.metric_value) for r in read] == [
        ("ORG/NAME", "test", "accuracy", 0.81234),
        ("ORG/NAME", "test", "accuracy", 0.85678),
    ]
    assert metadata_of(text)["model-index"][0]["name"] == "enc"
    rows = [line for line in text.splitlines() if line.startswith("| ORG/NAME |")]
    assert len(rows) == 2
    assert "81.2" in rows[0]
    assert "- weighted k-NN: k `200`\n" in text
    assert "| 85.7 | 29.7 | 33.4 |" in rows[1]
    for result in RESULTS:
        assert result["command"] in text
    assert "has not been evaluated" not in text


def test_a_number_chosen_on_the_test_split_is_marked_and_not_in_the_index(encoder_folder):
    best = RESULTS[1] | {"protocol": "linear-sgd-best", "value": 0.87}
    write_record(encoder_folder, "results.json", {"results": [*RESULTS, best]})
    text = render_model_card(encoder_folder, "org/enc")
    assert "| linear probe (sgd), best epoch* | 87.0 |" in text
    assert text.count("\\* The epoch was chosen") == 1
    assert len(ModelCard(text).data.eval_results) == 2
    assert "chosen" not in render_with(encoder_folder, RESULTS)


def test_results_with_and_without_baselines_share_a_table(encoder_folder):
    alone = {name: value for name, value in RESULTS[0].items() if name != "baselines"} | {"dataset": "shapes"}
    text = render_with(encoder_folder, [alone, RESULTS[1]])
    assert "| shapes | test | label | weighted k-NN | 81.2 |  |  | 10,000 |" in text


def test_baselines_are_told_by_their_titles_and_chance_is_no_encoder(encoder_folder):
    chance = {"most_frequent_class": 0.1}
    text = render_with(encoder_folder, [RESULTS[0] | {"baselines": chance}])
    assert "| accuracy (%) | most frequent class (%) | images |" in text and "| 81.2 | 10.0 | 10,000 |" in text
    assert "Always answering the most frequent class" in text and "protocols scored" not in text
    text = render_with(encoder_folder, [RESULTS[0] | {"baselines": chance | RESULTS[0]["baselines"]}])
    assert "| most frequent class (%) | raw pixels (%) | random encoder (%) |" in text
    assert "The same protocols scored raw pixels and random encoder beside it.\nAlways answering" in text
    assert "most_frequent_class" not in text


def render_with(folder, results):
    write_record(folder, "results.json", {"results": results})
    return render_model_card(folder, "org/enc")


def test_without_results_it_says_so(encoder_folder):
    text = render_model_card(encoder_folder, "org/enc")
    assert "This encoder has not been evaluated." in text
    assert "model-index" not in text


def test_it_tells_what_was_left_out_of_the_folder(encoder_folder):
    assert "left out of the folder" not in render_model_card(encoder_folder, "org/enc")
    path = encoder_folder / "run.json"
    run = json.loads(path.read_text())
    run["data"]["left_out"] = {"format not supported: .heic": 1200, "no permission": 1}
    path.write_text(json.dumps(run))
    row = "| left out of the folder | 1,200 format not supported: .heic, 1 no permission |\n| images skipped |"
    assert row in render_model_card(encoder_folder, "org/enc")


def test_it_tells_the_run(encoder_folder, run_record):
    text = render_model_card(encoder_folder, "org/enc")
    paper = METHODS["simsiam"].paper
    for expected in (
        "accelerate launch scripts/pretrain.py --method simsiam --dataset ORG/NAME --output_dir x",
        paper.bibtex,
        paper.url,
        "50,000",
        "64,000",
        "1 h 2 min 5 s",
        "0.0123 kWh (CPU and GPU",
        "3 truncated, 1 not an image",
        "500 of 500",
        "128 images each",
        "torch 2.15.0",
        "device `cpu`",
        "2 processes",
        "| config | projection_dim | `16` |",
        "| training | learning_rate | `0.015` |",
    ):
        assert expected in text, expected
    assert "Intermediate" not in text


@pytest.mark.parametrize("with_results", [False, True])
def test_no_number_is_invented_and_no_gap_is_left(encoder_folder, with_results):
    if with_results:
        write_record(encoder_folder, "results.json", {"results": RESULTS})
    body = render_model_card(encoder_folder, "org/enc").split("---\n", 2)[2]
    for gap in ("None", "null", "More Information", "{{", "{%", "nan", "\n\n\n"):
        assert gap not in body, gap
    assert "commit" not in body  # the record has none
    body = re.sub(r"```bibtex.*?```|<!--.*?-->|num_labels=10", "", body, flags=re.DOTALL)
    known = (encoder_folder / "run.json").read_text() + (encoder_folder / "config.json").read_text()
    known += json.dumps(RESULTS) + METHODS["simsiam"].paper.url
    known += " 81.2 85.7 29.7 33.4 1 2 5 3 2020 2011"  # rounded results, the duration, the paper's years
    known += " 5.4 5.23 256"  # versions of libraries; SHA-256
    numbers = {number.replace(",", "") for number in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)*", body)}
    unknown = {number for number in numbers if number not in known}
    assert not unknown


def test_an_intermediate_checkpoint_says_so(encoder_folder, run_record):
    run_record["progress"]["step"] = 250
    write_record(encoder_folder, "run.json", run_record)
    assert "**Intermediate checkpoint**: step 250 of 500." in render_model_card(encoder_folder)


@pytest.mark.parametrize(
    "name", ["shapes", "digits", "C:\\photos\\birds", "/data/photos/birds", "./birds", "a/birds.tar"]
)
def test_only_a_hub_data_set_is_named_in_the_metadata(encoder_folder, run_record, name):
    run_record["data"]["dataset"] = name
    write_record(encoder_folder, "run.json", run_record)
    text = render_model_card(encoder_folder)
    assert "datasets" not in metadata_of(text)
    title = re.search(r"^# .*", text, re.MULTILINE).group()
    assert title.endswith(
        (
            "pretrained on shapes",
            "pretrained on digits",
            "pretrained on birds (local)",
            "pretrained on birds.tar (local)",
        )
    )


def test_what_the_data_set_is_was_decided_in_training(make_run, run_record, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    named = {"dataset": "ORG/NAME", "split": "test", "protocol": "knn", "metric": "accuracy", "value": 0.5}
    for kind in ("local", "hub"):
        run_record["data"]["dataset_kind"] = kind
        make_run(tmp_path / kind, run_record)
        results = [RESULTS[0] | named | {"dataset_kind": kind}]
        write_record(tmp_path / kind / "encoder", "results.json", {"results": results})
    (tmp_path / "ORG" / "NAME").mkdir(parents=True)  # as if it had been the folder
    of_hub, of_folder = (render_model_card(tmp_path / kind / "encoder", "org/enc") for kind in ("hub", "local"))
    assert metadata_of(of_hub)["datasets"] == ["ORG/NAME"]
    assert ModelCard(of_hub).data.eval_results[0].dataset_type == "ORG/NAME"
    shutil.rmtree(tmp_path / "ORG")  # as if the card were made on another machine
    assert render_model_card(tmp_path / "local" / "encoder", "org/enc") == of_folder
    assert "datasets" not in metadata_of(of_folder) and "ORG/NAME" not in of_folder.replace("--dataset ORG/NAME", "")
    assert re.search(r"^# .* pretrained on NAME \(local\)$", of_folder, re.MULTILINE)
    assert ModelCard(of_folder).data.eval_results[0].dataset_type == "NAME (local)"
    assert "| NAME (local) | test |" in of_folder


@pytest.mark.parametrize("sign", ["listing", "folder", "none"])
def test_a_record_without_kind_is_decided_at_the_export(make_run, run_record, monkeypatch, tmp_path, sign):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    if sign == "listing":  # of the files that lay on the machine of the training
        (run / "data_files.json.gz").write_bytes(b"")
    elif sign == "folder":
        (tmp_path / "ORG" / "NAME").mkdir(parents=True)
    make_run(run, run_record)
    shutil.rmtree(tmp_path / "ORG", ignore_errors=True)
    data = json.loads((run / "encoder" / "run.json").read_text())["data"]
    assert (data["dataset"], data["dataset_kind"]) == (("ORG/NAME", "hub") if sign == "none" else ("NAME", "local"))
    text = render_model_card(run / "encoder", "org/enc")
    assert metadata_of(text).get("datasets") == (["ORG/NAME"] if sign == "none" else None)
    assert ("--dataset FOLDER" in text) == (sign != "none")


def test_the_licence_is_the_users_and_stays(encoder_folder):
    assert "No licence" in (encoder_folder / "README.md").read_text()
    text = write_model_card(encoder_folder, license="apache-2.0").read_text()
    assert metadata_of(text)["license"] == "apache-2.0"
    write_record(encoder_folder, "results.json", {"results": RESULTS})
    text = write_model_card(encoder_folder).read_text()
    assert metadata_of(text)["license"] == "apache-2.0"
    assert "81.2" in text


def test_a_card_edited_by_hand_is_left_as_it_is(encoder_folder):
    card = encoder_folder / "README.md"
    for text in (card.read_text() + "Mine.", card.read_text().replace("500", "501"), "Mine."):
        card.write_text(text)
        assert write_model_card(encoder_folder).read_text() == text
    card.unlink()
    assert "Mine." not in write_model_card(encoder_folder).read_text()


def test_figures_are_shown_with_captions(encoder_folder):
    (encoder_folder / "figures").mkdir()
    for name in ("mine", "evaluation-cifar10", "neighbours", "training", "spectrum"):
        (encoder_folder / "figures" / f"{name}.png").write_bytes(b"")
    text = render_model_card(encoder_folder)
    shown = re.findall(r"!\[(.+)\]\(figures/(.+)\.png\)\n\n\*(.+)\*\n", text)
    assert [name for _, name, _ in shown] == ["training", "spectrum", "neighbours", "evaluation-cifar10", "mine"]
    assert all(alternative == caption for alternative, _, caption in shown)
    assert shown[3][2] == "The results above on cifar10, beside the baselines."


def test_numbers_of_the_features_come_from_their_file(encoder_folder):
    assert "RankMe" not in render_model_card(encoder_folder)
    write_record(encoder_folder, "embedding.json", EMBEDDING)
    text = render_model_card(encoder_folder)
    assert "1,987 images of shapes, split validation" in text
    assert "| this encoder | 96 | 44.4 | 22.2 | 0.111 | -2.99 |" in text
    assert "| random encoder | 96 | 7.8 | 3.3 | 0.555 | -0.67 |" in text
    assert "(499 images)" in text


def test_pretrained_weights_are_the_base_model(encoder_folder, run_record):
    assert "base_model" not in metadata_of(render_model_card(encoder_folder))
    run_record |= {"base_model": "timm/resnet50.a1_in1k"}
    write_record(encoder_folder, "run.json", run_record)
    text = render_model_card(encoder_folder)
    metadata = metadata_of(text)
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("timm/resnet50.a1_in1k", "finetune")
    assert "[timm/resnet50.a1_in1k](https://huggingface.co/timm/resnet50.a1_in1k)" in text


def test_the_start_names_the_chain_of_origins(encoder_folder, run_record):
    assert "| start | random weights |" in render_model_card(encoder_folder)
    former = {"encoder": "timm/resnet50.a1_in1k", "kind": "timm", "former": None}
    origin = {"encoder": "org/second@v1.0", "kind": "hub", "former": {"encoder": "/data/first", "former": former}}
    run_record |= {"base_model": "org/second", "origin": origin}
    write_record(encoder_folder, "run.json", run_record)
    text = render_model_card(encoder_folder)
    assert metadata_of(text)["base_model"] == "org/second"
    assert (
        "| start | weights of [org/second](https://huggingface.co/org/second), which came from weights of "
        "`first`, which came from weights of [timm/resnet50.a1_in1k]" in text
    )


@pytest.mark.parametrize("kind", ["complete", "dimensional"])
def test_a_collapse_is_said_at_the_top_and_in_the_limits(encoder_folder, run_record, kind):
    assert "ollapsed" not in render_model_card(encoder_folder)
    seen = f"{kind.capitalize()} collapse at step 320: all images get nearly the same projection."
    advice = f"{seen} What usually cures it, with this run's values: a target network."
    run_record["collapse"] = {"kind": kind, "step": 320, "report": advice}
    write_record(encoder_folder, "run.json", run_record)
    text = render_model_card(encoder_folder)
    top, limits = text.split("## Use")[0], text.split("## Limits")[1]
    assert top.endswith(f"\n\n**Collapsed**: {seen}\n\n")
    assert f"- Its training collapsed ({kind}, step 320)" in limits
    assert "cures" not in text


@pytest.mark.parametrize(
    ("thresholds", "said"),
    [
        ({"lines": 4, "spread": 0.06}, "The alarm rang because in 4 log lines in a row this spread was below 0.06."),
        (
            {"lines": 4, "effective_rank": 3.0, "best_rank": 20.0},
            "The alarm rang because in 4 log lines in a row this rank was below 3.0, where its best was 20.0.",
        ),
    ],
)
def test_the_card_says_by_what_a_collapse_was_judged(encoder_folder, run_record, thresholds, said):
    run_record["collapse"] = {"kind": "complete", "step": 320, "report": "Seen.", "thresholds": thresholds}
    write_record(encoder_folder, "run.json", run_record)
    assert f"**Collapsed**: Seen. {said}" in render_model_card(encoder_folder).split("## Use")[0]


def test_a_collapse_of_the_training_before_is_said(encoder_folder, run_record):
    former = {"method": "byol", "steps": 400, "collapse": {"kind": "dimensional", "step": 1320}, "encoder": "org/x"}
    run_record["origin"] = {"encoder": "/data/first", "kind": "run", "former": {"method": "moco", "former": former}}
    write_record(encoder_folder, "run.json", run_record)
    top = render_model_card(encoder_folder).split("## Use")[0]
    assert "**Collapsed**" not in top and "\n\n\n" not in top
    assert "the training by byol behind the weights that it started from collapsed (dimensional, step 1,320)" in top


@pytest.mark.parametrize("name", ["in-memory data set (ORG/NAME)", "streamed data set", "ORG/NAME"])
def test_data_in_memory_is_no_data_set_of_the_hub(encoder_folder, run_record, name):
    run_record["data"] |= {"dataset": name, "in_memory": True}
    write_record(encoder_folder, "run.json", run_record)
    text = render_model_card(encoder_folder)
    assert "datasets" not in metadata_of(text) and "huggingface.co/datasets" not in text
    article = "a" if name.startswith("streamed") else "an"
    assert f"`test_resnet`, pretrained on {article} {name}\n" in text


def test_the_licence_given_at_pretraining_is_the_cards_unless_another_is_given(encoder_folder, run_record):
    run_record["license"] = "mit"
    write_record(encoder_folder, "run.json", run_record)
    assert metadata_of(render_model_card(encoder_folder))["license"] == "mit"
    assert metadata_of(render_model_card(encoder_folder, license="apache-2.0"))["license"] == "apache-2.0"


def test_a_method_without_paper_or_unknown_here_has_a_card(encoder_folder, run_record, monkeypatch):
    monkeypatch.setattr(METHODS["simsiam"], "paper", None)
    text = render_model_card(encoder_folder)
    assert "bibtex" not in text and "pretrained without labels by SimSiam on" in text
    run_record["method"] = "mine"
    write_record(encoder_folder, "run.json", run_record)
    text = render_model_card(encoder_folder)
    assert "# mine: encoder `test_resnet`, pretrained on ORG/NAME" in text
    for gap in ("None", "\n\n\n", "{{"):
        assert gap not in text


def test_metadata_that_would_be_read_otherwise_is_refused(encoder_folder):
    broken = RESULTS[0] | {"value": float("nan")}
    write_record(encoder_folder, "results.json", {"results": [broken]})
    with pytest.raises(ValueError, match=r"`results.json` holds numbers that the card's metadata cannot\. Measure"):
        render_model_card(encoder_folder)


def test_examples_load_the_repository_or_the_folder(encoder_folder, run_record):
    place = "./run/encoder"  # not the folders above the run, which others have no use for
    assert f'from_pretrained("{place}")' in render_model_card(encoder_folder)
    assert f'timm.create_model("local-dir:{place}"' in (encoder_folder / "README.md").read_text()
    run_record["training"]["repo_id"] = "org/planned"
    write_record(encoder_folder, "run.json", run_record)
    assert 'timm.create_model("hf_hub:org/planned"' in render_model_card(encoder_folder)
    assert "trust_remote_code" not in render_model_card(encoder_folder)


def test_an_encoder_that_no_timm_knows_says_first_how_to_load_it(make_run, tmp_path):
    make_run(tmp_path / "run", architecture="resnet18_cifar")
    text = render_model_card(tmp_path / "run" / "encoder", "org/enc")
    first = text.split("## Use")[0]
    assert "**Load it with `trust_remote_code=True`**" in first and "`import hf_ssl`" in first
    assert "\n\n\n" not in text
    metadata = metadata_of(text)  # by which the Hub shows its own example
    assert metadata["library_name"] == "transformers"
    assert "custom_code" in metadata["tags"] and "timm" not in metadata["tags"]
    calls = re.findall(r"(?:from_pretrained|pipeline|SentenceTransformer)\(.*\)", text.split("The whole method")[0])
    assert len(calls) == 7 and all("trust_remote_code=True" in call for call in calls)


def test_a_swin_says_which_timm_it_needs(encoder_folder):
    assert "1.0.31" not in render_model_card(encoder_folder)
    config = json.loads((encoder_folder / "config.json").read_text())
    write_record(encoder_folder, "config.json", config | {"architecture": "swin_tiny_patch4_window7_224"})
    assert "\n```\n\ntimm before 1.0.31 cannot load" in render_model_card(encoder_folder)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_card(encoder_folder, run_record, method):
    run_record["method"] = method
    write_record(encoder_folder, "run.json", run_record)
    text = render_model_card(encoder_folder)
    paper = {"moco": "2003.04297"}.get(method, METHODS[method].paper.arxiv)  # by default it is version 2
    assert f"https://arxiv.org/abs/{paper}" in text and f"journal={{arXiv preprint arXiv:{paper}}}" in text


@pytest.mark.parametrize(
    ("method", "config", "title", "idea", "arxiv"),
    [
        ("directpred", {"freq": 0}, "DirectPred's linear baseline", "is trained by gradients", "2102.06810"),
        ("directpred", {"freq": 1, "rule": "directcopy"}, "DirectCopy", "is a copy of the correlation", "2110.04947"),
        ("moco", {"projector": "mlp"}, "MoCo v2", "among many past keys", "2003.04297"),
        ("byol", {"use_ema": False}, "BYOL without the moving average", "by itself, held constant", "2006.07733"),
    ],
)
def test_title_and_idea_follow_the_settings(encoder_folder, run_record, method, config, title, idea, arxiv):
    write_record(encoder_folder, "run.json", run_record | {"method": method, "config": config})
    text = render_model_card(encoder_folder, "org/enc")
    assert f"\n# {title}: encoder `test_resnet`, pretrained on ORG/NAME\n" in text
    assert f"pretrained without labels by [{title}](https://arxiv.org/abs/{arxiv}) on" in text
    told = text.split("## Method\n\n")[1].split("## Results")[0]
    assert idea in told and f"journal={{arXiv preprint arXiv:{arxiv}}}" in told
    assert text.count("arxiv.org/abs/") == 2 == text.count(arxiv) - 1


def test_an_analysis_that_looks_at_labels_is_not_called_free_of_them(encoder_folder, run_record):
    for oracle, looks in (("measure", False), ("mask", True)):
        write_record(encoder_folder, "run.json", run_record | {"method": "mochi", "config": {"class_oracle": oracle}})
        text = render_model_card(encoder_folder, "org/enc")
        assert ("without labels" not in text) == ("with a look at labels" in text) == looks
        assert ("self-supervised-learning" not in metadata_of(text)["tags"]) == looks


def test_a_folder_without_record_has_no_card(encoder_folder):
    (encoder_folder / "run.json").unlink()
    with pytest.raises(ValueError, match="has no `run.json`.*Export the run again"):
        render_model_card(encoder_folder)


def test_a_record_that_is_none_of_a_run_is_named(encoder_folder, run_record):
    del run_record["config"]
    write_record(encoder_folder, "run.json", run_record)
    with pytest.raises(UserError, match=r"run\.json` is not the record of a run: it lacks `config`"):
        render_model_card(encoder_folder)
