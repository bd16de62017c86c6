"""`hf-ssl views`: the sheet shows what training would see; the same from Python."""

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_ssl.commands import main, views
from hf_ssl.commands.command import python_function
from hf_ssl.commands.resolve import request_of
from hf_ssl.data.order.stream import TrainingStream
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.views.cpu import Views
from hf_ssl.errors import UserError
from hf_ssl.training.recipe import Choice

draw_views = python_function(views.COMMAND)


@pytest.fixture
def drawn(monkeypatch):
    """What the command gave to the figure, by argument."""
    given = {}

    def record(images, made, title, notes, names):
        given.update(images=images, views=made, title=title, notes=notes, names=names)
        return sheet(images, made, title, notes, names)

    sheet = views.view_sheet
    monkeypatch.setattr(views, "view_sheet", record)
    return given


def test_the_first_pairs_are_those_of_the_first_batch_of_training(tmp_path, capsys, drawn):
    output = tmp_path / "new" / "sheet.png"
    words = ["--dataset", "digits", "--view_recipe", "byol", "--num_images", "5", "--views", "2", "--image_size", "16"]
    changes = ["--seed", "3", "--view_settings", '{"crop_scale": [0.4, 1.0], "second": {"grey_probability": 0}}']
    assert main(["views", *words, *changes, "--output", str(output)]) == 0
    assert f"{output}: 5 images with 2 pairs of views of 16 x 16 pixels each, recipe byol" in capsys.readouterr().out
    assert min(Image.open(output).size) > 500
    settings = DataSettings(view_settings={"crop_scale": [0.4, 1.0], "second": {"grey_probability": 0}})
    asked = request_of({"dataset": "digits", "output_dir": str(tmp_path / "run")}).training
    make = Views(settings.find_recipe("byol"), 16)
    stream = TrainingStream(open_source("digits"), make, asked.batch_size, seed=3, window_size=settings.shuffle_window)
    batch = next(iter(stream))
    assert np.array_equal([pairs[0] for pairs in drawn["views"]], batch.views[:5].numpy())
    assert all((pairs[0] != pairs[1]).any() for pairs in drawn["views"])
    assert drawn["title"] == "digits, split train: views by byol, 16 x 16 pixels"
    assert drawn["notes"][0].startswith("recipe: Grill et al., 2020")
    assert drawn["notes"][1] == "changed: crop_scale 0.4 to 1.0; second (grey_probability 0)"
    assert len(drawn["images"]) == 5 and all(name in "0123456789" for name in drawn["names"])


def test_images_that_cannot_be_used_are_left_out(tmp_path, drawn):
    for number in range(7):
        Image.new("RGB", (30 + number, 20), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "7.png").write_bytes(b"text")
    result = draw_views(dataset=str(tmp_path), views=1, output=tmp_path / "sheets" / "v.pdf")
    assert (result.num_images, result.image_size, result.skipped) == (7, 32, {"not an image": 1})
    assert "left out, since they cannot be used: 1 not an image" in str(result) and result.figure.is_file()
    assert drawn["title"].startswith(f"{tmp_path.name}, split train: views by directpred_cifar")
    assert drawn["names"] == [None] * 7


def test_objects_are_drawn_too(tmp_path, drawn):
    data = datasets.Dataset.from_dict({"image": [Image.new("RGB", (9, 9))] * 2})
    draw_views(dataset=data, view_recipe="simclr", views=1, output=tmp_path / "v.png")
    assert drawn["title"] == "in-memory data set, split train: views by simclr, 32 x 32 pixels"


@pytest.mark.parametrize("method", ["directpred", "moco"])
def test_without_a_recipe_the_views_are_those_of_pretraining(method, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(20):
        Image.new("RGB", (300, 200), (number, 0, 0)).save(photos / f"{number}.png")
    result = draw_views(dataset=str(photos), method=method, views=1, num_images=2, output=tmp_path / "v.png")
    asked = request_of({"method": method, "dataset": str(photos), "output_dir": str(tmp_path / "run")})
    assert (result.recipe, result.image_size) == (asked.data.view_recipe, asked.config.image_size)


def test_a_method_without_recipes_has_views_of_imagenets_size(tmp_path, monkeypatch):
    """On a GPU `auto` takes the settings for ImageNet as they are, and such a method has none."""
    monkeypatch.setattr(views, "auto_choice", lambda *_: Choice({}, ""))
    result = draw_views(dataset="digits", method="byol", views=1, num_images=1, output=tmp_path / "v.png")
    assert (result.recipe, result.image_size) == ("byol", 224)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"method": "mocco"}, "`method` must be the name of a method, got `mocco`. Did you mean `moco`"),
        ({"num_images": 0}, "`num_images` must be at least 1, got 0"),
        ({"num_images": 10**6}, "must not ask for more than 4,096 pictures"),
        ({"image_size": 0}, "`image_size` must be at least 1, got 0"),
        (
            {"image_size": 10**6},
            "`image_size` must leave at most 268,435,456 pixels on a sheet, got 1,000,000 with 8 ",
        ),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"output": "views.docx"}, "`output` must end in one of .png, .*, got `views.docx`"),
        ({"view_recipe": "moco_v9"}, "`view_recipe` must be the name of a recipe, got `moco_v9`"),
        ({"view_settings": {"crop": 1}}, "`view_settings` has no parameter `crop`"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(values, sentence, capsys):
    with pytest.raises(UserError, match=sentence):
        draw_views(**values)


def test_a_data_set_without_usable_images_is_refused(tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="holds no usable image: 1 empty"):
        draw_views(dataset=str(tmp_path), output=tmp_path / "v.png")
    assert not (tmp_path / "v.png").exists()
