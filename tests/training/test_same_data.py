"""A run that goes on finds out which file or setting of its data is another one."""

import gzip
import json
import shutil
from pathlib import Path

import datasets
import pytest
from PIL import Image
from test_loop import DATA, new_model, settings  # pyright: ignore[reportMissingImports]

from hf_ssl.errors import UserError
from hf_ssl.training.files import LISTING
from hf_ssl.training.find import complete_checkpoints
from hf_ssl.training.loop import train


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    """Pictures in two classes, the same as a table with two columns of images, and the run that began with each."""
    root = tmp_path_factory.mktemp("same_data")
    for number in range(16):
        place = root / "photos" / f"class{number % 2}" / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number, 9 * number, 0)).save(place)
    paths = sorted(map(str, (root / "photos").rglob("*.png")))
    columns = datasets.Features({"left": datasets.Image(), "right": datasets.Image()})
    datasets.Dataset.from_dict({"left": paths, "right": paths[::-1]}, features=columns).to_parquet(root / "t.parquet")
    for name, values in (("photos", {}), ("t.parquet", {"image_column": "left"})):
        start(root / name, root / f"run-{name}", **values)
    return root


def start(dataset: Path, run: Path, resume: str | None = None, **values):
    data = type(DATA)(**{**vars(DATA), "dataset": str(dataset), **values})
    options = {"batch_size": 8, "num_steps": 4, "checkpoint_every": 2, "keep_checkpoints": 9, "resume": resume}
    return train(new_model("simsiam"), data.open(), data, settings(run, **options))


@pytest.fixture
def run(folders: Path, tmp_path: Path):
    """A copy of photos, and of the run as it was after two steps."""
    shutil.copytree(folders / "photos", tmp_path / "photos")
    shutil.copytree(folders / "run-photos", tmp_path / "run")
    shutil.rmtree(complete_checkpoints(tmp_path / "run")[-1])
    return tmp_path


def test_a_copy_of_the_data_elsewhere_is_the_same(run: Path):
    assert start(run / "photos", run / "run", resume="auto").step == 4


def _resize(folder: Path) -> None:
    Image.new("RGB", (300, 7)).save(folder / "class1" / "07.png")


def _remove(folder: Path) -> None:
    (folder / "class0" / "04.png").unlink()


def _add(folder: Path) -> None:
    shutil.copy(folder / "class0" / "04.png", folder / "class1" / "new.png")


def _rename(folder: Path) -> None:
    (folder / "class1" / "01.png").rename(folder / "class0" / "01.png")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_resize, "`class1/07.png` has .* bytes, and had"),
        (_remove, "`class0/04.png` is gone"),
        (_add, "`class1/new.png` is new"),
        (_rename, "`class0/01.png` is new"),
    ],
)
def test_the_first_file_that_differs_is_named(run: Path, change, found: str):
    change(run / "photos")
    with pytest.raises(UserError, match=f"is not the one of .*step-000002`: {found}"):
        start(run / "photos", run / "run", resume="auto")


def test_another_column_of_images_is_named(folders: Path, tmp_path: Path):
    shutil.copytree(folders / "run-t.parquet", tmp_path / "run")
    with pytest.raises(UserError, match="`image_column` was `left` and is `right` now. Give the data that it was"):
        start(folders / "t.parquet", tmp_path / "run", resume="auto", image_column="right")


def test_a_refused_start_leaves_no_list_of_its_data(folders: Path, tmp_path: Path):
    """The corrected command begins in the folder, and the list there is of the files that it reads."""
    for number in range(16, 20):
        place = tmp_path / "others" / f"class{number % 2}" / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(place)
    data = type(DATA)(**{**vars(DATA), "dataset": str(folders / "photos")})
    with pytest.raises(UserError, match="The queue holds 8 keys but one step brings 16"):
        options = {"batch_size": 16, "num_steps": 1}
        train(new_model("moco", queue_size=8), data.open(), data, settings(tmp_path / "run", **options))
    assert (tmp_path / "run" / LISTING).exists()
    data = type(DATA)(**{**vars(DATA), "dataset": str(tmp_path / "others")})
    train(new_model("simsiam"), data.open(), data, settings(tmp_path / "run", batch_size=4, num_steps=1))
    with gzip.open(tmp_path / "run" / LISTING, "rt") as file:
        assert [name for name, _ in json.load(file)["files"]] == [f"class{n % 2}/{n}.png" for n in (16, 18, 17, 19)]
