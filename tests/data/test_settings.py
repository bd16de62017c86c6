"""`DataSettings`: what it refuses, what it records, and recipes with changed parameters."""

import dataclasses
import json
from pathlib import Path

import datasets
import pytest

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.views.recipes import VIEW_RECIPES, ViewParameters
from hf_ssl.errors import UserError


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_workers": -1}, "`num_workers` must be at least 0, got -1"),
        ({"num_workers": 1.5}, "`num_workers` must be a whole number, got 1.5"),
        ({"shuffle_window": 0}, "`shuffle_window` must be at least 1, got 0"),
        ({"max_skipped_ratio": 1.1}, r"`max_skipped_ratio` must be in \[0, 1\], got 1.1"),
        ({"max_skipped_ratio": float("nan")}, r"`max_skipped_ratio` must be a finite number, got nan"),
        ({"views_on": "cuda"}, "`views_on` must be one of cpu, gpu, got `cuda`"),
        ({"cache": "float"}, "`cache` must be one of none, uint8, got `float`"),
        ({"split": ""}, "`split` must not be empty"),
        ({"dataset": ""}, "`dataset` must not be empty"),
        ({"dataset": 3}, "`dataset` must be text or .*, got 3"),
        ({"view_recipe": "moco_v4"}, "`moco_v4`. Did you mean `moco_v"),
        ({"view_receipt": "moco_v2"}, "`DataSettings` has no setting `view_receipt`. Did you mean `view_recipe`"),
        ({"view_settings": [1]}, r"`view_settings` must be a JSON object or none, got \[1\]"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(values, sentence):
    with pytest.raises(UserError, match=sentence):
        DataSettings(**values)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"crop_scal": [0.1, 1]}, "has no parameter `crop_scal`. Did you mean `crop_scale`"),
        ({"colour": 1}, "has no parameter `colour`. It has: crop_scale, .*; `first` and `second`"),
        ({"fist": {}}, "has no parameter `fist`. Did you mean `first`"),
        ({"first": 3}, "`view_settings` `first` must be a JSON object for one view, got 3"),
        ({"second": {"first": {}}}, "has no parameter `first`"),
        ({"crop_scale": [0.5, 0.1]}, r"`crop_scale` of a view must be two fractions in \(0, 1\], the smaller first"),
        ({"crop_scale": [0, 1]}, "`crop_scale` of a view"),
        ({"crop_scale": [0.5, 1.5]}, "`crop_scale` of a view"),
        ({"crop_scale": 0.5}, "`crop_scale` of a view .*, got 0.5"),
        ({"crop_ratio": [-1, 1]}, "`crop_ratio` of a view must be two positive numbers"),
        ({"crop_ratio": [1, float("inf")]}, "`crop_ratio` of a view must be two positive numbers"),
        ({"interpolation": "cubic"}, "`interpolation` of a view must be one of bilinear, bicubic, got 'cubic'"),
        ({"policy": "augmix"}, "`policy` of a view must be one of randaugment, autoaugment, none"),
        ({"grey_probability": 1.2}, r"`grey_probability` of a view must be a probability in \[0, 1\], got 1.2"),
        ({"flip_probability": True}, "`flip_probability` of a view"),
        ({"invert_probability": "1"}, "`invert_probability` of a view .*, got '1'"),
        ({"grey_first": 1}, "`grey_first` of a view must be true or false, got 1"),
        ({"jitter": [0.4, 0.4, 0.4]}, "`jitter` of a view must be four numbers of at least 0"),
        ({"jitter": [0.4, -0.1, 0.4, 0]}, "`jitter` of a view"),
        ({"jitter": [0.4, 0.4, 0.4, 0.6]}, "the last at most 0.5"),
        ({"blur_sigma": [0, 2]}, "`blur_sigma` of a view must be two positive numbers of pixels"),
        ({"blur_kernel_ratio": 0}, r"`blur_kernel_ratio` of a view must be a fraction in \(0, 1\]"),
        ({"blur_filter": "box"}, "`blur_filter` of a view must be one of gaussian, boxes, got 'box'"),
    ],
)
def test_wrong_parameters_of_views_are_refused_in_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        DataSettings(view_settings=changes)


def test_parameters_of_views_are_refused_wherever_they_are_made():
    with pytest.raises(UserError, match="`solarize_probability` of a view"):
        ViewParameters(solarize_probability=-0.1)


def test_a_kernel_that_a_blur_by_boxes_would_ignore_is_refused():
    sentence = "needs `blur_filter` gaussian, got 0.1 with boxes. Set that too, or leave it at none"
    for recipe, changes in (("byol", {"blur_filter": "boxes"}), ("moco_v2", {"blur_kernel_ratio": 0.1})):
        with pytest.raises(UserError, match=sentence):
            DataSettings(view_settings=changes).find_recipe(recipe)
    both = DataSettings(view_settings={"blur_filter": "boxes", "blur_kernel_ratio": None}).find_recipe("byol")
    assert (both.first, both.second) == (VIEW_RECIPES["directclr"].first, VIEW_RECIPES["directclr"].second)


def test_a_recipe_is_changed_for_both_views_or_for_one():
    byol = VIEW_RECIPES["byol"]
    changes = {
        "grey_probability": 0,
        "blur_kernel_ratio": None,
        "second": {"crop_scale": [0.4, 1.0], "grey_probability": 1},
    }
    changed = DataSettings(view_settings=changes).find_recipe("byol")
    assert changed.first == dataclasses.replace(byol.first, grey_probability=0, blur_kernel_ratio=None)
    assert changed.second == dataclasses.replace(
        byol.second, grey_probability=1, blur_kernel_ratio=None, crop_scale=(0.4, 1.0)
    )
    assert changed.source == byol.source and VIEW_RECIPES["byol"] == byol
    assert DataSettings().find_recipe("byol") == byol
    assert DataSettings(view_recipe="simclr").find_recipe("byol") == VIEW_RECIPES["simclr"]


def test_what_is_recorded_is_json_and_makes_the_same_settings():
    settings = DataSettings(dataset=Path("photos"), view_settings={"crop_scale": (0.4, 1)}, cache="uint8")
    assert settings.views_on == "gpu" and settings.dataset == "photos"
    about = json.loads(json.dumps(settings.described()))
    assert about == settings.described() and about["view_settings"] == {"crop_scale": [0.4, 1]}
    assert not about.pop("in_memory")
    assert DataSettings(**about) == settings
    assert DataSettings(view_settings={}).view_settings is None


def test_objects_survive_a_change_of_settings():
    data = datasets.Dataset.from_dict({"image": [b"x"]})
    changed = dataclasses.replace(DataSettings(dataset=data), num_workers=0)
    assert changed.dataset is data and changed.num_workers == 0
