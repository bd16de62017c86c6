"""`--recipe auto`: what it takes for few photos on a laptop, for small pictures, and for ImageNet on GPUs."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.recipe import choose_recipe


def source_of(number: int | None, width: int, height: int, unreadable: int = 0) -> Any:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    records = [{"image": {"bytes": b"no picture", "path": None}}] * unreadable
    records += [{"image": {"bytes": file.getvalue(), "path": None}}] * 16
    return SimpleNamespace(
        num_images=number, image_column="image", records=SimpleNamespace(take=lambda count: records[:count])
    )


def choose(method: str, number: int | None, side: int, *, gpu: float | None = None, processes: int = 1, **given: Any):
    return choose_recipe(
        METHODS[method],
        source_of(number, side * 2, side),
        given,
        gpu_gib=gpu,
        num_processes=processes,
        embedded=False,
    )


@pytest.mark.parametrize("method", METHODS)
def test_three_thousand_photos_on_a_laptop(method: str):
    choice = choose(method, 3000, 480)
    values = choice.values
    assert values["architecture"] == "resnet18" and values["image_size"] == 96
    assert 16 <= values["batch_size"] <= 128
    assert values["num_epochs"] * 3000 == pytest.approx(8 * 40_000, rel=0.01)
    assert values["warmup_epochs"] <= values["num_epochs"] / 10
    assert values["view_recipe"] == METHODS[method].view_recipe
    # The settings are ones that the method and the training take; photos are normalised as in the method's paper.
    fields = {name for name in METHODS[method].config_class.__dataclass_fields__}
    of_method = {name: value for name, value in values.items() if name in fields}
    clusters = {"num_clusters": 10} if method == "contrastive_clustering" else {}
    config = METHODS[method].config_class(**{**of_method, **clusters})
    assert tuple(config.image_mean) == tuple(METHODS[method].config_class(**clusters).image_mean)
    known = set(TrainingSettings.__dataclass_fields__)
    TrainingSettings(output_dir="x", **{name: value for name, value in values.items() if name in known})
    if hasattr(config, "queue_size"):
        assert values["batch_size"] <= config.queue_size < 3000
    first, second = choice.why.splitlines()
    assert "3,000 images of about 480 px and no GPU" in first and "resnet18 at 96 px" in first
    assert "`--recipe paper-imagenet`" in second


def test_imagenet_on_gpus_gets_the_papers_settings():
    paper = METHODS["directpred"].recipes["paper-imagenet"]
    choice = choose("directpred", 1_281_167, 375, gpu=79.0, processes=8)
    assert choice.values == paper and paper["batch_size"] == 4096
    # Fewer and smaller GPUs: the same images of a step; how many fit into a forward pass is measured.
    assert choose("directpred", 1_281_167, 375, gpu=24.0, processes=2).values == paper
    # A stream of unknown length is taken for a large one.
    assert choose("moco", None, 375, gpu=79.0).values["num_epochs"] == 200


def test_small_pictures():
    on_gpu, on_cpu = choose("moco", 50_000, 32, gpu=16.0).values, choose("moco", 50_000, 32).values
    assert on_gpu["architecture"] == "resnet18_cifar" and on_gpu["image_size"] == 32
    assert on_gpu["queue_size"] == 4096 and on_gpu["batch_size"] == 512
    assert on_cpu["architecture"] == "resnet18" and on_cpu["batch_size"] == 128


def test_very_few_images():
    values = choose("mochi", 24, 200).values
    assert 2 <= values["batch_size"] <= 24
    assert values["batch_size"] <= values["queue_size"] < 24
    assert values["num_hard_negatives"] <= values["queue_size"]


def test_fewer_cores_see_fewer_images():
    source = source_of(3000, 960, 480)
    options = {"gpu_gib": None, "num_processes": 1, "embedded": False}
    epochs = [
        choose_recipe(METHODS["byol"], source, {}, num_cores=n, **options).values["num_epochs"] for n in (1, 2, 16)
    ]
    assert epochs == [20, 27, 213]


@pytest.mark.parametrize("number", [24, 64, 100])
def test_groups_of_batch_norm_keep_two_images(number: int):
    values = choose("moco", number, 200).values
    assert values.get("bn_splits", 8) * 2 <= values["batch_size"]


def test_images_that_cannot_be_read_do_not_decide():
    choice = choose_recipe(
        METHODS["byol"],
        source_of(5000, 300, 200, unreadable=3),
        {},
        gpu_gib=None,
        num_processes=1,
        embedded=False,
    )
    assert "about 200 px" in choice.why


def test_a_method_without_recipes_and_what_the_user_said():
    class Plain(METHODS["simsiam"]):
        recipes = {}

    source = source_of(3000, 960, 480)
    choice = choose_recipe(
        Plain, source, {"image_size": 64, "num_steps": 7}, gpu_gib=None, num_processes=1, embedded=False
    )
    assert choice.values["architecture"] == "resnet18" and choice.values["batch_size"] == 128
    assert "resnet18 at 64 px, batches of 128, 7 steps" in choice.why and "the rest from" not in choice.why


def test_the_embedded_data_has_its_own():
    source = source_of(5000, 48, 48)
    choice = choose_recipe(METHODS["byol"], source, {}, gpu_gib=None, num_processes=1, embedded=True)
    assert choice.values == dict(METHODS["byol"].recipes["quickstart"])


def test_the_warmup_is_at_most_a_tenth_of_the_length_that_the_user_gave():
    chosen = choose("end_to_end", 3000, 480).values
    assert chosen["warmup_epochs"] > 1  # what a run of ten epochs would not have room for
    assert choose("end_to_end", 3000, 480, num_epochs=10.0).values["warmup_epochs"] == 1
    assert choose("end_to_end", 3000, 480, num_epochs=1000.0).values == chosen
    batch = chosen["batch_size"]
    assert choose("end_to_end", 3000, 480, num_steps=40).values["warmup_epochs"] == 4 / (3000 // batch)
    assert choose("end_to_end", 3000, 480, num_steps=40, batch_size=30).values["warmup_epochs"] == 4 / 100
    # Of a stream no one knows the epochs.
    endless = choose("end_to_end", None, 375, gpu=79.0, num_steps=40).values
    assert (endless["warmup_epochs"], endless["warmup_steps"]) == (None, 4)
