"""Recipes against the codes and papers that they name: values that are easily missed, with the files they are from."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from hf_ssl.data.views.recipes import VIEW_RECIPES
from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.plan import make_plan

CIFAR: Any = SimpleNamespace(num_images=50_000, name="cifar10", split="train")
IMAGENET: Any = SimpleNamespace(num_images=1_281_167, name="imagenet", split="train")

OF_MOCO = (
    0.2023,
    0.1994,
    0.2010,
)  # moco_cifar10_demo.ipynb, luckmatters transforms.py, lemniscate cifar.py
OF_CIFAR = (0.2470, 0.2435, 0.2616)  # solo-learn; the deviations of CIFAR-10 itself
OF_IMAGENET = (0.229, 0.224, 0.225)  # lightly cifar10_benchmark.py
NONE = (1.0, 1.0, 1.0)  # simclr data_util.py, Contrastive-Clustering train.py


def plan_of(method: str, recipe: str, source: Any):
    names = TrainingSettings.__dataclass_fields__
    training = {name: value for name, value in METHODS[method].recipes[recipe].items() if name in names}
    return make_plan(source, TrainingSettings(output_dir="runs/x", **training), num_processes=1)


@pytest.mark.parametrize(
    ("method", "std"),
    [
        *[(method, OF_MOCO) for method in ("directpred", "moco", "mochi", "memory_bank")],
        *[(method, OF_CIFAR) for method in ("moco_v3", "simsiam", "directclr")],
        *[("byol", OF_IMAGENET), ("end_to_end", NONE), ("contrastive_clustering", NONE)],
    ],
)
def test_cifar_is_normalised_as_in_its_source(method: str, std: tuple[float, ...]):
    assert tuple(METHODS[method].recipes["cifar"]["image_std"]) == std


@pytest.mark.parametrize(
    ("method", "recipe", "source", "steps"),
    [
        ("moco", "paper-imagenet", IMAGENET, 5004),  # drop_last in main_moco.py
        ("mochi", "paper-imagenet", IMAGENET, 5004),
        ("simsiam", "paper-imagenet", IMAGENET, 2502),
        ("moco", "cifar", CIFAR, 97),  # as the demo's log has it
        ("mochi", "cifar", CIFAR, 97),
        ("simsiam", "cifar", CIFAR, 97),
        ("byol", "cifar", CIFAR, 390),  # CosineAnnealingLR of lightly's benchmark, once an epoch
    ],
)
def test_codes_that_move_the_cosine_every_epoch(method: str, recipe: str, source: Any, steps: int):
    plan = plan_of(method, recipe, source)
    assert plan.steps_per_epoch == steps and plan.num_steps % steps == 0
    epochs = plan.num_steps // steps
    for epoch in (0, 1, epochs // 2, epochs - 1):
        expected = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        assert plan.factor(epoch * steps) == plan.factor(epoch * steps + steps - 1) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("method", "recipe", "source"),
    [("byol", "paper-imagenet", IMAGENET), ("moco_v3", "paper-imagenet", IMAGENET), ("moco_v3", "cifar", CIFAR)],
)
def test_codes_that_move_the_cosine_every_step(method: str, recipe: str, source: Any):
    plan = plan_of(method, recipe, source)
    middle = (plan.num_steps + plan.warmup_steps) // 2
    assert plan.factor(middle + 1) < plan.factor(middle) < plan.factor(middle - 1)


@pytest.mark.parametrize("method", ["directpred", "memory_bank"])
def test_the_last_smaller_batch_of_an_epoch_is_left_out_and_the_recipe_says_so(method: str):
    assert plan_of(method, "cifar", CIFAR).steps_per_epoch == 390
    assert "(CIFAR-10: 391 steps" in " ".join((METHODS[method].__doc__ or "").split())


def test_simsiams_views_of_cifar_are_those_of_imagenet_without_blur():
    recipe = VIEW_RECIPES[METHODS["simsiam"].recipes["cifar"]["view_recipe"]]
    assert recipe.first == recipe.second == replace(VIEW_RECIPES["simsiam"].first, blur_probability=0.0)
    assert recipe.first.crop_scale == (0.2, 1.0)


def test_the_runs_of_directpreds_tables_are_recipes():
    directpred, byol = METHODS["directpred"].recipes, METHODS["byol"].recipes
    # Table 9: 300 epochs with BYOL's settings, 60 with SGD and the loss of one direction.
    for name in ("paper-imagenet", "paper-imagenet-linear"):
        assert directpred[name]["num_epochs"] == 300 and directpred[name]["batch_size"] == 4096
        same = {key: value for key, value in byol["paper-imagenet-300"].items() if key in directpred[name]}
        assert {key: directpred[name][key] for key in same} == same
    for name in ("paper-imagenet-60", "paper-imagenet-60-linear"):
        short = directpred[name]
        assert (short["num_epochs"], short["batch_size"], short["optimizer"]) == (60, 256, "sgd")
        assert short["symmetric"] is False
    # Table 8: luckmatters byol_config.yaml, with rho (`dyn_lambda`) and epsilon (`dyn_eps`) of the table.
    for name in ("cifar", "stl10"):
        rows = [directpred[name], directpred[f"{name}-freq5"], directpred[f"{name}-linear"]]
        assert [row.get("freq", 1) for row in rows] == [1, 5, 0]
        assert all({**row, "freq": 1} == {**rows[0], "freq": 1} for row in rows)
        assert (rows[0]["rho"], rows[0]["epsilon"], rows[0]["ema_momentum"]) == (0.3, 0.1, 0.996)
        assert plan_of("directpred", name, CIFAR).learning_rate == pytest.approx(0.03)
    assert (directpred["stl10"]["image_mean"], directpred["stl10"]["image_std"]) == ((0, 0, 0), NONE)
    # Table 3: the same, with the predictor of byol_config.yaml that gradients train.
    heads = {"predictor_hidden_dim": 512, "predictor_affine": False, "ema_schedule": "constant"}
    others = {key: value for key, value in directpred["stl10"].items() if key not in ("rho", "epsilon")}
    assert byol["stl10"] == {**others, **heads}
