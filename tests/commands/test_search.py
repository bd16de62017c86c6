"""`hf-ssl search`: images find themselves and their kind among the features of a folder; the same from Python."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from hub_server import Repo
from PIL import Image

import hf_ssl
from hf_ssl.commands import main
from hf_ssl.data.decode.pictures import decode
from hf_ssl.data.order.rows import RowReader
from hf_ssl.data.sources.open import open_source
from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS


def search(words):
    """Exit code of the command."""
    return main(["search", *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return new_run(tmp_path_factory.mktemp("runs") / "first")


def new_run(folder):
    method = METHODS["simsiam"]
    export_run(method(method.config_class(architecture="test_resnet", image_size=32, projection_dim=8)), folder)
    return str(folder)


@pytest.fixture(scope="module")
def features(run, tmp_path_factory):
    """Features of the test split, with an index."""
    output = tmp_path_factory.mktemp("features") / "new"
    hf_ssl.extract_features(run, dataset="digits", num_workers=0, split=["test"], output=output, index="faiss")
    return output


def test_images_find_themselves_and_their_kind(features, tmp_path, capsys):
    rows = RowReader(open_source("digits", split="test")).images([5, 300])
    names = [str(tmp_path / f"{row}.png") for row in rows]
    for name, image in zip(names, rows.values(), strict=True):
        Image.fromarray(decode(image)).save(name)
    figure = tmp_path / "figures" / "neighbours.png"
    assert search([*names, "--index", str(features), "--k", "3", "--figure", str(figure)]) == 0
    by_index = capsys.readouterr().out
    labels = datasets.load_dataset(str(features), split="test")["label"]
    for name, row in zip(names, rows, strict=True):
        first = by_index.split(f"\n{name}\n")[1].splitlines()[1].split()
        assert first == ["1", "1.0000", str(row), str(labels[row])]
    assert min(Image.open(figure).size) > 200
    assert search([*names, "--index", str(features), "--k", "3", "--exact"]) == 0
    assert by_index.startswith(capsys.readouterr().out.rstrip("\n"))
    result = hf_ssl.search(names, index=str(features), k=3)
    assert [found[0]["row_id"] for found in result.neighbours] == list(rows)
    assert [found[0]["label"] for found in result.neighbours] == [str(labels[row]) for row in rows]


def test_neighbours_are_shown_with_their_files(run, tmp_path, capsys):
    for number in range(4):
        path = tmp_path / "photos" / ("cat", "dog")[number // 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(70 * number).save(path)
    photos, output = str(tmp_path / "photos"), str(tmp_path / "features")
    hf_ssl.extract_features(run, dataset=photos, num_workers=0, output=output)
    query = str(tmp_path / "photos" / "dog" / "2.png")
    assert search([query, "--index", output, "--k", "2", "--figure", str(tmp_path / "figure.png")]) == 0
    lines = capsys.readouterr().out.split(f"\n{query}\n")[1].splitlines()
    assert lines[0].split() == ["similarity", "row_id", "path", "label"]
    assert lines[1].split() == ["1", "1.0000", "2", "dog/2.png", "dog"]
    assert hf_ssl.search(query, index=output, k=2).neighbours[0][0]["path"] == "dog/2.png"


def test_an_encoder_or_data_set_that_has_moved_is_named(features, run, tmp_path):
    Image.new("L", (8, 8), 99).save(tmp_path / "one.png")
    copy = tmp_path / "features"
    copy.mkdir()
    for path in features.iterdir():
        if path.is_dir():
            (copy / path.name).symlink_to(path)
    record = json.loads((features / "features.json").read_text())
    record["encoder"]["name"] = "./gone"
    record["dataset"]["dataset"] = "./gone"
    (copy / "features.json").write_text(json.dumps(record))
    images, where = [str(tmp_path / "one.png")], {"index": str(copy), "figure": tmp_path / "figure.png"}
    with pytest.raises(hf_ssl.UserError, match="`./gone`, which is not at hand: .* where it is by `--encoder`"):
        hf_ssl.search(images, **where)
    with pytest.raises(hf_ssl.UserError, match="no file or folder `./gone`"):
        hf_ssl.search(images, **where, encoder=run)
    with pytest.raises(hf_ssl.UserError, match="`shapes` is not the data set whose features"):
        hf_ssl.search(images, **where, encoder=run, dataset="shapes")
    torch.manual_seed(7)
    with pytest.raises(hf_ssl.UserError, match="are of another encoder than .* is now"):
        hf_ssl.search(images, **where, encoder=new_run(tmp_path / "second"))
    hf_ssl.search(images, **where, encoder=run, dataset="digits")
    assert (tmp_path / "figure.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png"], "`none.png` cannot be read as an image: missing file. Give another"),
        (["README"], "`README` cannot be read as an image: not an image"),
        (["--k", "0"], "`k` must be at least 1, got 0"),
        (["--kk", "3"], "Unknown flag `--kk`. Did you mean `--k`?"),
        (["--split", "train"], "has no features of split `train`. It has: test"),
        (["--index", "./none"], "There is no folder `./none`"),
        (["--index", "."], "holds no features"),
    ],
)
def test_wrong_input_of_a_search_is_named(features, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("README").write_text("text")
    Image.new("L", (8, 8)).save("one.png")
    assert search(["one.png", "--index", str(features), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def photos(run, tmp_path_factory):
    """Photos of which two have a copy of other quality in the same split, and one in the test split."""
    folder = tmp_path_factory.mktemp("photos")
    rows = RowReader(open_source("digits", split="train")).images(range(100))
    for number, image in rows.items():
        split = ("train", "test")[number >= 60]
        (folder / split).mkdir(exist_ok=True)
        picture = Image.fromarray(decode(image)).resize((60, 60), Image.Resampling.BILINEAR)
        picture.save(folder / split / f"{number:03}.png")
        copies = {3: "train/copy-of-003.jpg", 9: "train/copy-of-009.jpg", 20: "test/copy-of-020.jpg"}
        if number in copies:
            (folder / copies[number]).parent.mkdir(exist_ok=True)
            picture.save(folder / copies[number], quality=50)
    output = str(tmp_path_factory.mktemp("features") / "photos")
    hf_ssl.extract_features(f"raw:{run}", dataset=str(folder), num_workers=0, split=["train", "test"], output=output)
    return output


def test_duplicates_of_a_split_are_listed_and_drawn(photos, tmp_path, capsys):
    figure = tmp_path / "figures" / "duplicates.png"
    assert search(["--index", photos, "--duplicates", "--figure", str(figure)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 groups of near-duplicates: 4 of 62 images of train."
    assert "chosen from the data" in lines[1]
    assert lines[2].split() == ["group", "similarity", "row_id", "path"]
    groups = {
        (line.split()[0], line.split()[3].removeprefix("train/").removeprefix("copy-of-")[:3]) for line in lines[3:7]
    }
    assert sorted(groups) in ([("1", "003"), ("2", "009")], [("1", "009"), ("2", "003")])
    assert lines[-1] == f"{figure}: the duplicates"
    width, height = Image.open(figure).size
    assert width > 300 and height > 300
    result = hf_ssl.search(index=photos, duplicates=True, threshold=1.0)
    assert result.duplicates.groups == []
    assert str(result).startswith("0 groups of near-duplicates: 0 of 62 images of train.")


def test_test_images_in_train_are_listed(photos, tmp_path):
    figure = tmp_path / "leakage.png"
    result = hf_ssl.search(index=photos, split="train", duplicates=True, against_split="test", figure=figure)
    assert [[(one.split, one.path) for one in group] for group in result.duplicates.groups] == [
        [("train", "train/020.png"), ("test", "test/copy-of-020.jpg")]
    ]
    assert figure.is_file()
    again = hf_ssl.search(index=photos, split="train", duplicates=True, against=photos, against_split="test")
    assert again.duplicates == result.duplicates


def test_outliers_are_listed_and_drawn(photos, tmp_path, capsys):
    figure = tmp_path / "outliers.png"
    assert search(["--index", photos, "--outliers", "11", "--figure", str(figure)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The 11 images of train that are farthest from all others."
    assert [line.split()[0] for line in lines[2:13]] == [str(number) for number in range(1, 12)]
    similarities = [float(line.split()[1]) for line in lines[2:13]]
    assert similarities == sorted(similarities)
    assert lines[-1] == f"{figure}: the outliers"
    assert figure.is_file()


def test_no_picture_is_drawn_of_nothing(photos, tmp_path, capsys):
    figure = tmp_path / "duplicates.png"
    assert search(["--index", photos, "--duplicates", "--threshold", "1", "--figure", str(figure)]) == 0
    assert "duplicates.png" not in capsys.readouterr().out
    assert not figure.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "One of `images`, `duplicates` and `outliers` must be given, got none. Name image files, or add"),
        (["one.png", "--duplicates"], "must be given, got `images` and `duplicates`."),
        (["--duplicates", "--outliers", "3"], "must be given, got `duplicates` and `outliers`."),
        (["--outliers", "0"], "`outliers` must be at least 1, got 0"),
        (["--duplicates", "--threshold", "0"], "`threshold` must be above 0 and at most 1, got 0.0"),
        (["--duplicates", "--threshold", "95"], "`threshold` must be above 0 and at most 1, got 95.0"),
        (["--outliers", "3", "--threshold", "0.9"], "`threshold` is for `duplicates`. Leave it out."),
        (["one.png", "--against_split", "test"], "`against_split` is for `duplicates` and `outliers`."),
        (["--duplicates", "--encoder", "resnet18"], "`encoder` is for `images`. Leave it out."),
        (["--duplicates", "--against_split", "dev"], "has no features of split `dev`. It has: train, test"),
        (["--duplicates", "--against_split", "train"], "`against` must be other features than `index`"),
        (["--duplicates", "--against", "./none"], "There is no folder `./none`"),
        (["--duplicates", "--dataset", "digits", "--figure", "a.png"], "`digits` is not the data set whose features"),
    ],
)
def test_wrong_input_of_a_comparison_is_named(photos, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("one.png")
    assert search([*arguments, "--index", photos]) == 2
    assert message in capsys.readouterr().err


def told(features, folder, **dataset):
    """A copy of features whose record tells of another data set."""
    shutil.copytree(features, folder)
    record = json.loads((folder / "features.json").read_text())
    record["dataset"] |= dataset
    (folder / "features.json").write_text(json.dumps(record))
    return record


@pytest.mark.parametrize(
    ("dataset", "only_on_hub"),
    [
        ({"dataset": "http://127.0.0.1:9/x.parquet"}, False),
        ({"dataset": "s3://bucket/x.parquet"}, False),
        ({"dataset": "file:///etc"}, False),
        ({"dataset": "org/photos", "data_files": "http://127.0.0.1:9/x.parquet"}, False),
        ({"dataset": "org/photos", "data_files": {"test": ["a.png", "zip://a.png::http://127.0.0.1:9/x.zip"]}}, False),
        ({"dataset": "/etc"}, True),
        ({"dataset": "photos"}, True),
        ({"dataset": "org/photos", "data_files": "../../etc/*.png"}, True),
        ({"dataset": "org/photos", "data_dir": "/etc"}, True),
    ],
)
def test_features_from_elsewhere_open_no_place_that_their_record_names(
    features, run, tmp_path, monkeypatch, online, dataset, only_on_hub
):
    def opened(dataset, **_):
        raise hf_ssl.UserError(f"opened {dataset}")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    told(features, tmp_path / "features", **dataset)
    if only_on_hub:
        online.repos["datasets/org/features"] = repo = Repo()
        files = {path: (tmp_path / "features" / path).read_bytes() for path in ("features.json", "index/test.faiss")}
        repo.add("main", files)
    monkeypatch.setattr("hf_ssl.commands.search.open_source", opened)
    index = "org/features" if only_on_hub else "features"
    with pytest.raises(hf_ssl.UserError, match=f"The features in `{index}` are of .*come from anyone. "):
        hf_ssl.search(index=index, outliers=3, figure=tmp_path / "figure.png")
    if set(dataset) == {"dataset"}:  # the user may name any
        with pytest.raises(hf_ssl.UserError, match=f"opened {dataset['dataset']}"):
            hf_ssl.search(index=index, outliers=3, figure=tmp_path / "figure.png", **dataset)
    if only_on_hub:  # what lies in a folder here may name a folder here
        with pytest.raises(hf_ssl.UserError, match=f"opened {dataset['dataset']}"):
            hf_ssl.search(index="features", outliers=3, figure=tmp_path / "figure.png")


@pytest.mark.parametrize(
    "change",
    [
        {"splits": {"../../test": {"shards": [3]}}},
        {"splits": {"test": {"shards": "many"}}},
        {"splits": ["test"]},
        {"encoder": "resnet18"},
        {"labels": None},
        {"dataset": {}},
    ],
)
def test_a_record_that_extract_did_not_write_is_refused(features, tmp_path, change):
    record = told(features, tmp_path / "features")
    (tmp_path / "features" / "features.json").write_text(json.dumps(record | change))
    with pytest.raises(hf_ssl.UserError, match=r"`.*features.json` must be as `hf-ssl extract` writes it"):
        hf_ssl.search(index=str(tmp_path / "features"), outliers=3)


def test_a_picture_that_cannot_be_written_is_refused_before_the_search(monkeypatch):
    monkeypatch.setattr("hf_ssl.commands.search.open_features", lambda *_: pytest.fail("searched"))
    with pytest.raises(hf_ssl.UserError, match=r"`figure` must end in one of .png, .*, got `n.foo`"):
        hf_ssl.search(index="features", duplicates=True, figure="n.foo")
