"""`hf-ssl evaluate`: what it prints, what it leaves in the encoder folder, and how it refuses wrong input."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_ssl.commands import main
from hf_ssl.commands.command import python_function
from hf_ssl.commands.evaluate import COMMAND
from hf_ssl.data.order.ordered import sampled_rows
from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.clustering import clustering_scores, k_means
from hf_ssl.evaluation.features import extract_augmented_features, extract_features, load_encoder
from hf_ssl.evaluation.knn import knn_accuracy
from hf_ssl.evaluation.linear_probe import linear_probe_accuracy, linear_probes
from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS

RUN = {
    "hf_ssl": "0.1.0",
    "method": "simsiam",
    "recipe": "cifar",
    "command": "accelerate launch scripts/pretrain.py --method simsiam",
    "started": "2031-01-01T00:00:00",
    "finished": "2031-01-01T01:02:05",
    "config": {"architecture": "test_resnet", "image_size": 32},
    "data": {"dataset": "shapes", "dataset_config": None, "dataset_revision": None, "split": "train"}
    | {"num_images": 100, "fingerprint": "0123"},
    "training": {"batch_size": 8, "num_steps": 5, "num_processes": 1, "repo_id": None} | {"encoder_pretrained": False},
    "versions": {"torch": "2.15.0"},
    "commit": None,
    "hardware": {"device": "cpu"},
    "progress": {"step": 5, "epoch": 1, "images_seen": 40, "seconds": 3.0},
    "skipped": {},
}


@pytest.fixture
def evaluate(monkeypatch):
    """The command line, in this process, with errors as they are raised."""

    def call(arguments):
        monkeypatch.setattr(sys, "argv", ["hf-ssl", "evaluate", *arguments])
        return COMMAND.main(arguments)

    return call


@pytest.fixture
def run(tmp_path, data):
    """A run that was trained on `data`."""
    method = METHODS["simsiam"]
    torch.manual_seed(1)
    model = method(method.config_class(architecture="test_resnet", image_size=32, projection_dim=8))
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(RUN | {"data": RUN["data"] | {"dataset": data}}))
    export_run(model, folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Squares: `tone` is plain to see, `coin` is independent of the picture, `same` has one class."""
    folder = tmp_path_factory.mktemp("squares")
    features = {
        "image": datasets.Image(),
        "tone": datasets.ClassLabel(names=["dark", "middle", "light"]),
        "coin": datasets.ClassLabel(names=["heads", "tails"]),
        "same": datasets.ClassLabel(names=["one", "other"]),
    }
    for split, count in (("train", 90), ("test", 60)):
        generator = np.random.default_rng(count)
        tones, coins = np.arange(count) % 3, generator.integers(2, size=count)
        pixels = 60 + 60 * tones[:, None, None] + generator.normal(0, 25, size=(count, 24, 24))
        columns = {
            "image": [Image.fromarray(picture.clip(0, 255).astype(np.uint8)) for picture in pixels],
            "tone": tones,
            "coin": coins,
            "same": np.zeros(count, dtype=int),
        }
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


FAST = ["--num_workers", "0", "--label_column", "tone"]


def results_of(path):
    return {(result["label"], result["protocol"]): result for result in json.loads(path.read_text())["results"]}


def test_numbers_go_into_the_table_the_results_the_card_and_a_figure(evaluate, run, data, capsys):
    card = (run / "encoder" / "README.md").read_text()
    arguments = [str(run), "--dataset", data, *FAST[:2], "--label_column", "tone", "--baselines", "raw", "random"]
    assert evaluate([*arguments, "knn", "linear"]) == 0
    text = capsys.readouterr().out

    results = results_of(run / "encoder" / "results.json")
    assert list(results) == [("tone", "knn"), ("tone", "linear")]
    own, raw, random = (
        [extract_features(load_encoder(f"{kind}{run}"), open_source(data, split=s)) for s in ("train", "test")]
        for kind in ("", "raw:", "random:")
    )
    for name, (train, test) in {"own": own, "raw": raw, "random": random}.items():
        labelled = (train.features, train.labels["tone"], test.features, test.labels["tone"])
        for protocol, accuracy in (("knn", knn_accuracy), ("linear", linear_probe_accuracy)):
            result = results["tone", protocol]
            value = result["value"] if name == "own" else result["baselines"][name]
            assert value == pytest.approx(accuracy(*labelled))
            assert f"{100 * value:.1f}" in text

    result = results["tone", "knn"]
    assert result["settings"]["k"] == 90  # of 200, there are no more images
    assert "Note: k-NN uses all 90 training images" in text
    assert result["baselines"]["most_frequent_class"] == pytest.approx(1 / 3)
    assert result["num_images"] == 60
    assert result["metric"] == "accuracy"
    assert (result["dataset"], result["split"], result["train_split"]) == (Path(data).name, "test", "train")
    shown = ["FOLDER" if word.startswith("/") else word for word in arguments]  # it is published
    assert shlex.split(result["command"]) == ["hf-ssl", "evaluate", *shown, "knn", "linear"]

    new_card = (run / "encoder" / "README.md").read_text()
    assert new_card != card
    assert f"{100 * result['value']:.1f}" in new_card
    (figure,) = (run / "encoder" / "figures").glob("evaluation-*.png")
    assert {path.stem for path in figure.parent.iterdir()} == {figure.stem, "spectrum", "embedding_map"}  # no gallery
    assert list(json.loads((run / "encoder" / "embedding.json").read_text())["encoders"])[-1] == "this encoder"
    assert figure.name in new_card
    with Image.open(figure) as image:
        assert min(image.size) > 200
    for line in ("AutoModel.from_pretrained", "AutoImageProcessor.from_pretrained", str(run / "encoder")):
        assert line in text


def test_all_label_columns_are_measured_and_an_older_result_is_replaced(evaluate, run, data, capsys):
    folder = run / "encoder"
    evaluate([str(folder), "linear-sgd", "--dataset", data, *FAST])
    assert evaluate([str(folder), "--dataset", data, *FAST[:2], "--label_column", "all", "knn", "--k", "5"]) == 0
    evaluate([str(folder), "knn", "--dataset", data, *FAST, "--k", "7"])
    results = results_of(folder / "results.json")
    assert set(results) == {("tone", "linear-sgd"), ("tone", "knn"), ("coin", "knn"), ("same", "knn")}
    assert results["tone", "knn"]["settings"]["k"] == 7
    assert results["coin", "knn"]["settings"]["k"] == 5
    assert results["same", "knn"]["value"] == 1
    text = capsys.readouterr().out
    assert len([line for line in text.splitlines() if line.split()[-3:] == ["tone", "coin", "same"]]) == 1


def test_results_can_go_elsewhere(evaluate, run, data, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    output = tmp_path / "other" / "numbers.json"
    evaluate([f"random:{run}", "--dataset", data, *FAST, "--output", str(output), "--max_images", "30", "linear"])
    evaluate([str(run), "--dataset", data, *FAST, "knn", "--no_show_loading", "--output", str(output)])
    results = results_of(output)
    assert results["tone", "linear"]["num_images"] == 30
    assert results["tone", "linear"]["settings"]["train_images"] == 30
    assert output.with_suffix(".png").stat().st_size > 1000
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert "from_pretrained" not in capsys.readouterr().out


@pytest.fixture
def clusters_run(tmp_path, data):
    method = METHODS["contrastive_clustering"]
    torch.manual_seed(1)
    model = method(method.config_class(architecture="test_resnet", image_size=32, num_clusters=5)).eval()
    with torch.no_grad():  # at the start all clusters are almost equally probable
        model.cluster_head[-1].weight.mul_(100)
    folder = tmp_path / "runs" / "clusters"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps(RUN | {"method": "contrastive_clustering", "data": RUN["data"] | {"dataset": data}})
    )
    export_run(model, folder)
    return model, folder


def test_clusters_of_the_method_are_scored_and_written_beside_the_encoder(evaluate, clusters_run, data, capsys):
    model, run = clusters_run
    arguments = ["--dataset", data, *FAST, "clustering", "--baselines", "raw"]
    # Nothing is learnt from labels: any split will do.
    assert evaluate([str(run), *arguments, "--split", "train"]) == 0
    folder = run / "encoder"
    source = open_source(data, split="train")
    encoder = load_encoder(str(run))
    pixels = torch.stack(
        [
            encoder.transform(record["image"])
            for record in datasets.load_dataset(
                "parquet", data_files=f"{data}/train-*.parquet", split="train", cache_dir=str(run / "cache")
            )
        ]
    )
    probabilities = model.assign(pixels)
    raw = extract_features(load_encoder(f"raw:{run}"), source)
    tones = raw.labels["tone"]
    expected = clustering_scores(probabilities.argmax(dim=1), tones)
    baseline = clustering_scores(k_means(raw.features, 3), tones)
    results = results_of(folder / "results.json")
    assert list(results) == [("tone", f"clustering-{name}") for name in expected]
    for name, value in expected.items():
        result = results["tone", f"clustering-{name}"]
        assert result["value"] == pytest.approx(value)
        assert result["baselines"]["raw"] == pytest.approx(baseline[name])
        assert ("most_frequent_class" in result["baselines"]) == (name == "accuracy")
        assert result["settings"] == {"algorithm": "cluster head", "num_clusters": 5, "bf16": False}
        assert (result["split"], result["train_split"], result["num_images"]) == ("train", None, 90)
    assert results["tone", "clustering-nmi"]["metric"] == "normalised mutual information"

    table = pq.read_table(folder / "assignments.parquet")
    assert table["row_id"].to_pylist() == list(range(90))
    assert table["cluster"].to_pylist() == probabilities.argmax(dim=1).tolist()
    assert table["confidence"].to_pylist() == pytest.approx(probabilities.amax(dim=1).tolist(), abs=1e-4)
    text, card = capsys.readouterr().out, (folder / "README.md").read_text()
    assert "clusters (%) of 90 images of split train" in text and "clustering, NMI" in text
    assert "were compared with its labels; those of the baselines come from k-means." in card
    assert "clustering (nmi)" in card


def test_other_encoders_are_clustered_by_k_means(evaluate, run, data, capsys):
    assert evaluate([str(run), "--dataset", data, *FAST, "clustering", "knn"]) == 0
    results = results_of(run / "encoder" / "results.json")
    test = extract_features(load_encoder(str(run)), open_source(data, split="test"))
    expected = clustering_scores(k_means(test.features, 3), test.labels["tone"])
    values = {name: results["tone", f"clustering-{name}"]["value"] for name in expected}
    assert values == pytest.approx(expected)
    assert results["tone", "clustering-f"]["settings"]["algorithm"] == "k-means"
    assert results["tone", "knn"]["train_split"] == "train" and results["tone", "clustering-f"]["train_split"] is None
    assert not (run / "encoder" / "assignments.parquet").exists()
    text, card = capsys.readouterr().out, (run / "encoder" / "README.md").read_text()
    assert "scores (%) on 60 images of split test, from 90 labelled images of split train" in text
    assert "| score (%) |" in card


def test_augmented_passes_are_for_the_probes_of_the_papers_alone(evaluate, run, data, capsys):
    arguments = [
        str(run),
        "--dataset",
        data,
        *FAST[:2],
        "--label_column",
        "coin",
        "--seed",
        "2",
        "--baselines",
        "raw",
        "linear",
        "linear-sgd",
    ]
    evaluate(arguments)
    before = results_of(run / "encoder" / "results.json")
    evaluate([*arguments, "--augmented_passes", "2"])
    after = results_of(run / "encoder" / "results.json")
    assert after["coin", "linear"]["value"] == before["coin", "linear"]["value"]
    assert after["coin", "linear"]["settings"] == before["coin", "linear"]["settings"]

    for kind in ("", "raw:"):
        encoder = load_encoder(f"{kind}{run}")
        train, test = (extract_features(encoder, open_source(data, split=split)) for split in ("train", "test"))
        passes = extract_augmented_features(encoder, open_source(data, split="train"), 2, seed=2)
        columns = {"coin": train.labels["coin"]}, {"coin": test.labels["coin"]}
        probed = linear_probes(train.features, columns[0], test.features, columns[1], "sgd", 2, passes)["coin"]
        result = after["coin", "linear-sgd"]
        assert (result["baselines"]["raw"] if kind else result["value"]) == pytest.approx(probed.accuracy)
        assert result["settings"] == {**probed.settings, "train_images": 90, "bf16": False}
    card = (run / "encoder" / "README.md").read_text()
    assert "augmented_passes `2`" in card and "reads pass e mod 2" in card
    assert "train, 2 augmented passes: " in capsys.readouterr().err


def test_words_after_baselines_may_be_protocols(evaluate, run, data):
    evaluate([str(run), "--dataset", data, *FAST, "--baselines", "raw", "knn"])
    results = results_of(run / "encoder" / "results.json")
    assert list(results) == [("tone", "knn")]
    assert set(results["tone", "knn"]["baselines"]) == {"most_frequent_class", "raw"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "validation"], r"has no split `validation`. It has: .*(train.*test|test.*train)"),
        (["--split", "train"], "`split` and `train_split` are both `train`"),
        (["--label_column", "colour"], "colour.*tone"),
        (["--label_column", "same", "linear"], "at least two classes, got one"),
        (["--labl_column", "tone"], r"Unknown flag `--labl_column`. Did you mean `--label_column`\?"),
        (["knnn"], r"Unknown protocol `knnn`. Did you mean `knn`\?"),
        (["--baselines", "row"], r"Unknown baseline `row`.* Did you mean `raw`\?"),
        (["--k", "0"], "`k` must be at least 1, got 0"),
        (["--max_images", "0"], "`max_images` must be at least 1, got 0"),
        (["linear-sgd", "--augmented_passes", "-1"], "`augmented_passes` must be at least 0, got -1"),
        (["--augmented_passes", "2"], "`augmented_passes` is for linear-sgd and linear-byol, not for knn, linear"),
        (["linear-sgd", "--augmented_passes", "101"], "must be at most 100, the epochs of linear-sgd, got 101"),
        (["linear-byol", "--augmented_passes", "100"], "must be at most 80, the epochs of linear-byol, got 100"),
        (["--card", "--output", "numbers.json"], "`card` writes into the encoder's folder and `output` elsewhere"),
        (["--gallery", "--no_card"], "`gallery` shows images on the model card, which stays as it is"),
        (["--temperature", "0"], "`temperature` must be positive, got 0.0"),
        (["--bf16", "--device", "cpu"], "`bf16` needs a CUDA device"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(evaluate, run, data, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate([str(run), "--dataset", data, "--num_workers", "0", *arguments])
    assert not (run / "encoder" / "results.json").exists()


def test_data_without_labels_are_named(evaluate, run, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "bare" / split).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "bare" / split / "one.png")
    with pytest.raises(ValueError, match="Evaluation needs labels, but split `train` of .* has no label column"):
        evaluate([str(run), "--dataset", str(tmp_path / "bare")])


def test_a_user_sees_one_sentence_and_exit_code_2(capsys):
    assert main(["evaluate", "resnet5O", "--dataset", "digits", "knn"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "Did you mean `resnet50" in error
    assert len(error.strip().splitlines()) == 1


@pytest.fixture
def elsewhere(data, tmp_path):
    """The same images in a folder that no run was trained on."""
    return str(shutil.copytree(data, tmp_path / "elsewhere"))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_numbers_of_other_images_on_this_machine_are_not_published(evaluate, run, elsewhere, capsys):
    before = contents(run / "encoder")
    for _ in range(2):  # the second time takes the place of the first
        assert evaluate([str(run), "--dataset", elsewhere, *FAST, "knn"]) == 0
    assert contents(run / "encoder") == before
    kept = run / "evaluations"
    assert {path.name for path in kept.iterdir()} == {"results.json", "elsewhere.png"}
    assert results_of(kept / "results.json")["tone", "knn"]["dataset"] == elsewhere
    lines = capsys.readouterr().out.splitlines()
    assert f"Results: {kept / 'results.json'}" in lines and not [line for line in lines if line.startswith("Card")]
    (note,) = {line for line in lines if "model card" in line}
    assert note.startswith("Note: the model card stays as it is") and "`--card`" in note

    assert evaluate([str(run), "--dataset", elsewhere, *FAST, "knn", "--card"]) == 0
    card = (run / "encoder" / "README.md").read_text()
    assert "elsewhere" in card and card != before[run / "encoder" / "README.md"].decode()
    assert json.loads((run / "encoder" / "embedding.json").read_text())["dataset"] == "elsewhere"


def test_the_card_can_be_left_alone(evaluate, run):
    before = contents(run / "encoder")
    assert (
        evaluate([str(run), "--dataset", "digits", "--num_workers", "0", "--max_images", "50", "knn", "--no_card"])
        == 0
    )
    assert contents(run / "encoder") == before
    assert results_of(run / "evaluations" / "results.json")["label", "knn"]["num_images"] == 50


def test_the_training_data_are_known_under_another_path(evaluate, run, data, monkeypatch):
    monkeypatch.chdir(Path(data).parent)
    assert evaluate([str(run), "--dataset", f"./{Path(data).name}/", *FAST, "knn"]) == 0
    assert (run / "encoder" / "results.json").is_file() and not (run / "evaluations").exists()


def test_an_encoder_folder_without_a_run_keeps_its_numbers_beside_it(evaluate, run, data):
    folder = run.parent / "downloaded"
    shutil.copytree(run / "encoder", folder)
    (folder / "run.json").unlink()
    before = contents(folder)
    assert evaluate([str(folder), "--dataset", data, *FAST, "knn"]) == 0
    assert contents(folder) == before
    assert results_of(run.parent / "downloaded-evaluations" / "results.json")
    with pytest.raises(UserError, match="`card` needs the folder of a run, got the encoder `.*downloaded`"):
        evaluate([str(folder), "--dataset", data, *FAST, "knn", "--card"])


def test_a_sample_of_sorted_images_is_scored_as_all_of_them_would_be(evaluate, run, data, tmp_path):
    """The first images of a split sorted by class are of one class, on which every encoder is right."""
    for split in ("train", "test"):
        (table,) = (pq.read_table(path) for path in Path(data).glob(f"{split}-*"))
        (tmp_path / "sorted").mkdir(exist_ok=True)
        pq.write_table(table.sort_by("tone"), tmp_path / "sorted" / f"{split}-00000-of-00001.parquet")
    folder, output = str(tmp_path / "sorted"), tmp_path / "numbers.json"
    evaluate([str(run), "--dataset", folder, *FAST, "--max_images", "30", "knn", "--output", str(output), "--k", "10"])
    result = results_of(output)["tone", "knn"]
    assert result["num_images"] == 30 and result["settings"]["train_images"] == 30
    encoder = load_encoder(str(run))
    train, test = (extract_features(encoder, open_source(folder, split=split)) for split in ("train", "test"))
    of_train, of_test = sampled_rows(90, 30), sampled_rows(60, 30)
    expected = knn_accuracy(
        train.features[of_train],
        train.labels["tone"][of_train],
        test.features[of_test],
        test.labels["tone"][of_test],
        k=10,
    )
    assert result["value"] == pytest.approx(expected)
    assert result["baselines"]["most_frequent_class"] < 0.5


def test_an_encoder_whose_features_are_not_finite_has_no_accuracy(evaluate, run, data):
    path = run / "encoder" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("weight"))
    weights[name].fill_(float("nan"))
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"must be finite, but those of 60 of 60 images hold NaN"):
        evaluate([str(run), "--dataset", data, *FAST, "knn"])
    assert not (run / "encoder" / "results.json").exists()


def test_from_python_it_returns_what_the_command_line_prints(evaluate, run, data, capsys):
    call = python_function(COMMAND)
    result = call(str(run), ["knn"], dataset=data, label_column="tone", num_workers=0, baselines=["raw"])
    assert capsys.readouterr().out == ""
    (entry,) = result.results
    assert entry["value"] == result.table["knn"]["first"]["tone"] and set(result.table["knn"]) == {
        "raw pixels",
        "first",
    }
    assert entry["command"].startswith("hf_ssl.evaluate(encoder=")
    assert results_of(result.results_file) == {("tone", "knn"): entry}
    assert (
        result.folder == run / "encoder" and result.card == run / "encoder" / "README.md" and result.figure.is_file()
    )
    evaluate([str(run), "knn", "--dataset", data, *FAST, "--baselines", "raw"])
    assert capsys.readouterr().out == f"{result}\n"


def test_a_quick_look_leaves_the_numbers_of_all_images(evaluate, run, data, capsys):
    words = [str(run), "--dataset", data, *FAST]
    assert evaluate([*words, "knn", "--baselines", "random"]) == 0
    kept = {path: path.read_bytes() for path in (run / "encoder").rglob("*") if "evaluation" in str(path)}
    before = results_of(run / "encoder" / "results.json")
    assert kept
    capsys.readouterr()
    assert evaluate([*words, "knn", "--max_images", "7"]) == 0
    text = capsys.readouterr().out
    assert "7 images of split test" in text and "Figure:" not in text
    assert f"Note: `{run / 'encoder' / 'results.json'}` keeps what it says of knn of tone, with its figure" in text
    assert results_of(run / "encoder" / "results.json") == before
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_damaged_results_file_is_told_before_the_work(evaluate, run, data, monkeypatch):
    (run / "encoder" / "results.json").write_text("{")
    monkeypatch.setattr("hf_ssl.commands.evaluate.compare", lambda *_, **__: pytest.fail("images were encoded"))
    with pytest.raises(UserError, match="does not hold results: .*Move it away and measure again"):
        evaluate([str(run), "--dataset", data, *FAST, "knn"])


def test_of_a_whole_method_the_note_names_the_run_that_has_the_card(evaluate, run, data, capsys):
    card = (run / "encoder" / "README.md").read_bytes()
    assert evaluate([str(run / "pretraining"), "--dataset", data, *FAST, "knn"]) == 0
    text = capsys.readouterr().out
    assert f"Note: the model card is that of the run: evaluate `{run}` to put the numbers on it." in text
    assert "was not trained" not in text and (run / "encoder" / "README.md").read_bytes() == card
