"""Nothing that is published tells the folders of this machine: every byte of it is searched for a tell-tale name."""

import json
import re
import shlex

import numpy as np
import pytest
import yaml
from PIL import Image

import hf_ssl
from hf_ssl.commands import main
from hf_ssl.hub.publish import publish
from hf_ssl.training.record import RunRecord

SECRET = "secret-user"
SPLITS = ("train", "test")
HEADS = {"projection_dim": 8, "projector_hidden_dim": 8, "predictor_hidden_dim": 4, "recipe": "paper-imagenet"}
METHOD = ["--method", "simsiam", *(f"--{name}={value}" for name, value in HEADS.items())]
TINY = ["--batch_size", "8", "--num_steps", "4", "--warmup_steps", "1", "--num_workers", "0", "--image_size", "16"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tell-tale name, and pictures in it."""
    home = tmp_path_factory.mktemp("nfs") / SECRET
    generator = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 4)):
        for label in ("dark", "bright"):
            folder = home / "data" / "c10" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 128, (16, 16, 3), dtype=np.uint8) + 100 * (label == "bright")
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return home


def run(*words):
    assert main([*map(str, words)]) == 0


@pytest.fixture(scope="module")
def first(home):
    """A run on the pictures, evaluated and analysed, each with absolute paths."""
    data = home / "data" / "c10"
    run("pretrain", *METHOD, "--encoder", "test_resnet", *TINY, "--dataset", data, "--output_dir", home / "first")
    reading = ["--dataset", data, "--num_workers", 0]
    run("evaluate", home / "first" / "encoder", "knn", "clustering", *reading, "--baselines", "random", "--k", 4)
    run("analyze", home / "first", *reading, "--max_images", 8)
    return home / "first"


def leaks(files):
    return sorted(path for path, content in files.items() if SECRET.encode() in content or SECRET in path)


def commands_of(card):
    return [shlex.split(line) for line in re.findall(r"^(?:hf-ssl|python|accelerate).*", card, re.MULTILINE)]


def test_an_encoder_and_its_card(online, first, home):
    publish(first, "org/enc")
    files = online.files("org/enc")
    assert not leaks(files) and not leaks(exported(first / "encoder"))
    card = files["README.md"].decode()
    assert "datasets" not in yaml.safe_load(card.split("---\n")[1]) and "pretrained on c10 (local)" in card
    placeholders = [words[words.index("--dataset") + 1] for words in commands_of(card)]
    assert placeholders and set(placeholders) == {"FOLDER"}
    record = json.loads(files["run.json"])
    assert (record["data"]["dataset"], record["data"]["dataset_kind"]) == ("c10", "local")
    assert record["training"]["output_dir"] == "first"
    results = json.loads(files["results.json"])["results"]
    assert {(one["dataset"], one["dataset_kind"]) for one in results} == {("c10", "local")}
    assert {"embedding.json", "analysis.json"} <= set(files)
    assert json.loads((first / "run.json").read_text())["data"]["dataset"] == str(home / "data" / "c10")  # to resume


def test_what_starts_from_a_private_run(online, first, home):
    flags = [*METHOD, "--start_from", first / "pretraining", *TINY, "--dataset", home / "data", "--resume", "auto"]
    flags += ["--data_files", json.dumps({split: f"{home}/data/c10/{split}/**" for split in ("train", "test")})]
    run("pretrain", *flags, "--output_dir", home / "second")
    run("pretrain", *flags, "--output_dir", home / "second")  # nothing is left to do, but to export again
    publish(home / "second", "org/second")
    files = online.files("org/second")
    assert not leaks(files)
    assert "| start | weights of `first`" in files["README.md"].decode()
    assert json.loads(files["run.json"])["data"]["data_files"] == {"train": "**", "test": "**"}


@pytest.mark.parametrize("encoder", ["{}/first/encoder", "random:{}/first", "local-dir:{}/first/encoder"])
def test_a_classifier(online, first, home, encoder):
    folder, name = home / "classifiers" / str(abs(hash(encoder))), f"org/classifier{len(encoder)}"
    flags = [encoder.format(home), "--dataset", home / "data" / "c10", *TINY, "--output_dir", folder]
    run("finetune", *flags, "--push_to_hub", "--repo_id", name)
    files = online.files(name)
    assert not leaks(files) and not leaks(exported(folder / "classifier"))
    card = files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert "datasets" not in metadata and "base_model" not in metadata
    assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == "c10 (local)"


def test_features_and_a_space_of_them(online, first, home):
    flags = ["--dataset", home / "data" / "c10", "--split", "test", "--num_workers", 0]
    run("extract", first, *flags, "--output", home / "features", "--push", "org/features")
    files = online.files("datasets/org/features")
    assert not leaks(files)
    record, card = json.loads(files["features.json"]), files["README.md"].decode()
    assert (record["encoder"]["name"], record["dataset"]["dataset"]) == ("first", "c10")
    assert "source_datasets" not in yaml.safe_load(card.split("---\n")[1]) and "--dataset FOLDER" in card
    assert SECRET not in online.repos["datasets/org/features"].commit("main").title
    assert SECRET not in (home / "features" / "README.md").read_text()
    publish(first, "org/enc")
    run("demo", "org/enc", *flags, "--space", "org/demo", "--publish_images", "--max_images", 4)
    assert not leaks(online.files("spaces/org/demo"))


def test_from_python_in_another_folder(online, first, home, monkeypatch):
    monkeypatch.chdir(home)
    data = "data/c10"  # as a data set of the Hub is called
    settings = {"encoder": "test_resnet", "image_size": 16, "batch_size": 8, "num_steps": 4, "num_workers": 0}
    output = f"{home}/third"
    hf_ssl.pretrain("simsiam", dataset=data, output_dir=output, warmup_steps=1, **HEADS, **settings)
    hf_ssl.evaluate(output, ["knn"], dataset=data, num_workers=0, card=True)
    monkeypatch.chdir("/")
    publish(home / "third", "org/third")
    files = online.files("org/third")
    assert not leaks(files)
    for path in ("README.md", "run.json", "results.json", "embedding.json"):
        assert data.encode() not in files[path], path
    assert "dataset='FOLDER'" in files["README.md"].decode()


def test_files_below_the_folder_that_one_works_in(online, home, monkeypatch):
    monkeypatch.chdir(home.parent)
    reading = [
        "--dataset",
        ".",
        "--data_files",
        json.dumps({split: f"{SECRET}/data/c10/{split}/**" for split in SPLITS}),
    ]
    run("pretrain", *METHOD, "--encoder", "test_resnet", *TINY, *reading, "--output_dir", home / "below")
    run(
        "pretrain",
        *METHOD,
        "--encoder",
        "test_resnet",
        *TINY,
        *reading,
        "--output_dir",
        home / "below",
        "--resume=auto",
    )
    publish(home / "below", "org/below")
    assert not leaks(online.files("org/below"))
    flags = [*reading, "--split", "test", "--num_workers", 0, "--output", home / "features-below"]
    run("extract", home / "below", *flags, "--push", "org/features-below")
    files = online.files("datasets/org/features-below")  # its column of paths is in the data set, as the card says
    assert not leaks({name: content for name, content in files.items() if not name.endswith(".parquet")})


STUDY = ["--num_steps", "2", "--batch_size", "8", "--num_workers", "0", "--test_split", "test"]


@pytest.mark.parametrize(
    "given",
    [
        {"data_dir": "clients/acme/c10"},
        {"data_files": {split: f"clients/acme/c10/{split}/**" for split in SPLITS}},
        {"data_files": {split: f"{{here}}/clients/acme/c10/{split}/**" for split in SPLITS}},
    ],
    ids=["data_dir", "data_files", "absolute data_files"],
)
def test_a_study_tells_the_last_parts_of_its_places(tmp_path, home, monkeypatch, given):
    (tmp_path / "clients" / "acme").mkdir(parents=True)
    (tmp_path / "clients" / "acme" / "c10").symlink_to(home / "data" / "c10", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "."]
    for name, value in given.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += [f"--{name}", text.replace("{here}", str(tmp_path))]
    small = ["--encoder", "test_resnet", "--image_size", "16"]
    run("study", "methods", *words, *STUDY, *small, "--methods", "simsiam", "--output_dir", "clients/acme/m")
    encoder = tmp_path / "clients" / "acme" / "m" / "simsiam" / "seed0"
    place = str(encoder.relative_to(tmp_path))
    run("study", "labels", place, *words, *STUDY, "--fractions", "1", "--output_dir", "clients/acme/l")
    for kind in ("methods", "labels"):
        (written,) = (tmp_path / "clients" / "acme").glob(f"*/{kind}.json")
        assert "acme" not in written.read_text() and str(tmp_path) not in written.read_text()
    kept = json.loads((tmp_path / "clients" / "acme" / "m" / "settings.json").read_text())
    assert "acme" in json.dumps(kept)  # whole here, to compare with


def test_relative_paths_of_runs_and_encoders(online, tmp_path, home, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ["--dataset", home / "data" / "c10"]
    place = "clients/acme/first"
    run("pretrain", *METHOD, "--encoder", "test_resnet", *TINY, *data, "--output_dir", place)
    run("evaluate", place, "knn", *data, "--num_workers", 0, "--k", 4, "--card")
    run("pretrain", *METHOD, "--start_from", place, *TINY, *data, "--output_dir", "acme/second")
    flags = [*data, *TINY, "--output_dir", "acme/third", "--push_to_hub", "--repo_id", "org/classified"]
    run("finetune", f"{place}/encoder", *flags)
    flags = [*data, "--split", "test", "--num_workers", 0, "--output", "acme/features", "--push", "org/vectors"]
    run("extract", "acme/second", *flags)
    monkeypatch.chdir("/")  # where there is nothing of these names
    publish(tmp_path / place, "org/relative")
    publish(tmp_path / "acme" / "second", "org/relative-second")
    for name in ("org/relative", "org/relative-second", "org/classified", "datasets/org/vectors"):
        files = {path: text for path, text in online.files(name).items() if not path.endswith(".parquet")}
        told = [(path, line) for path, text in files.items() for line in text.splitlines() if b"acme" in line]
        assert not told, name
    record = json.loads(online.files("org/relative-second")["run.json"])
    assert shlex.split(record["command"])[-2:] == ["--output_dir", "second"]
    assert shlex.split(record["command"])[shlex.split(record["command"]).index("--start_from") + 1] == "first"


def test_a_tracker_gets_what_is_published(tmp_path, home, monkeypatch):
    sent = {}
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", lambda self, name, config, **_: sent.update(config))
    monkeypatch.chdir(home)
    flags = ["--encoder", "test_resnet", *TINY, "--dataset", "data/c10", "--report_to", "tensorboard"]
    run("pretrain", *METHOD, *flags, "--output_dir", home / "runs" / "tracked")
    assert (sent["dataset"], sent["output_dir"]) == ("c10", "tracked")
    assert SECRET not in json.dumps(sent)


def test_what_an_earlier_version_exported(online, first):
    """Its records were copies of those of the run."""
    record = json.loads((first / "run.json").read_text())
    del record["data"]["dataset_kind"]
    (first / "run.json").write_text(json.dumps(record))
    old = {"run.json": record}
    for name in ("results.json", "embedding.json", "analysis.json"):
        content = json.loads((first / "encoder" / name).read_text())
        for one in content.get("results", [content]):
            one["dataset"] = record["data"]["dataset"]
            del one["dataset_kind"]
        old[name] = content
    before = {name: (first / "encoder" / name).read_bytes() for name in old}
    for name, content in old.items():
        (first / "encoder" / name).write_text(json.dumps(content))
    publish(first, "org/old")
    files = online.files("org/old")
    assert not leaks(files)
    assert {name: json.loads(files[name]) for name in old} == {name: json.loads(before[name]) for name in old}
    read = RunRecord.read(first)
    assert read is not None and read.data["dataset_kind"] == "local"  # by the list of its files


def exported(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
