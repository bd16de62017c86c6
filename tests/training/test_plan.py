"""Epochs become steps, and lengths that make no sense are refused."""

from dataclasses import replace

import datasets
import pytest

from hf_ssl.data.sources.open import Source
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.plan import make_plan

SOURCE = Source("pictures", "train", datasets.IterableDataset.from_generator(lambda: iter(())), "image", {}, 100, "ab")


def settings(**values) -> TrainingSettings:
    return TrainingSettings(**{"output_dir": "runs/x", "batch_size": 8, **values})


def test_epochs_count_whole_batches_of_all_processes():
    for num_processes in (1, 2, 4):
        plan = make_plan(SOURCE, settings(num_epochs=3, warmup_epochs=1, batch_size=16), num_processes)
        assert plan.steps_per_epoch == 6  # 100 // 16: the last 4 images fill no batch
        assert (plan.num_steps, plan.warmup_steps, plan.lanes) == (18, 6, 8)


@pytest.mark.parametrize(
    ("batch_size", "num_processes", "lanes"),
    [(64, 1, 8), (100, 2, 4), (33, 1, 1), (48, 3, 3), (64, 16, 16), (6, 2, 2)],
)
def test_lanes_are_the_same_for_most_numbers_of_processes(batch_size: int, num_processes: int, lanes: int):
    assert make_plan(SOURCE, settings(num_steps=3, batch_size=batch_size), num_processes).lanes == lanes


@pytest.mark.parametrize(
    ("values", "num_processes", "lanes", "message"),
    [
        ({"batch_size": 10}, 4, None, "must be a multiple of 4, the number of processes, got 10. Give 8"),
        ({"batch_size": 16, "lanes": 3}, 1, None, "must be a multiple of `lanes`, which is 3, got 16. Give 15"),
        ({"batch_size": 24}, 3, 8, "must divide `lanes`, .* is 8, got 3. Start 1, 2, 4, 8 processes"),
        ({"batch_size": 24, "images_per_device": 5}, 2, None, "must divide the 12 images of one process .* Give 4"),
        ({"batch_size": 24, "images_per_device": 50}, 1, None, "must divide the 24 images .* got 50. Give 24"),
    ],
)
def test_batches_that_cannot_be_dealt_are_refused(values: dict, num_processes: int, lanes: int | None, message: str):
    with pytest.raises(ValueError, match=message):
        make_plan(SOURCE, settings(num_steps=3, **values), num_processes, lanes)


def test_a_cosine_by_epoch_moves_every_step_where_epochs_have_no_length():
    by_epoch = make_plan(SOURCE, settings(num_epochs=3, lr_schedule="cosine_by_epoch"), num_processes=1)
    assert by_epoch.lr_schedule == "cosine_by_epoch" and by_epoch.steps_per_epoch == 12
    assert by_epoch.factor(11) == 1.0 and by_epoch.factor(12) == by_epoch.factor(23) == pytest.approx(0.75)
    endless = replace(SOURCE, num_images=None)
    plan = make_plan(endless, settings(num_steps=36, lr_schedule="cosine_by_epoch"), num_processes=1)
    assert plan == make_plan(endless, settings(num_steps=36), num_processes=1)


def test_steps_need_no_known_size():
    plan = make_plan(replace(SOURCE, num_images=None), settings(num_steps=9, warmup_steps=2), num_processes=1)
    assert (plan.num_steps, plan.warmup_steps, plan.steps_per_epoch) == (9, 2, None)


@pytest.mark.parametrize(
    ("source", "values", "message"),
    [
        (SOURCE, {}, "Give `num_steps`, `num_epochs` or `max_hours`"),
        (replace(SOURCE, num_images=None), {"num_epochs": 2}, "Give `num_steps`"),
        (replace(SOURCE, num_images=None), {"num_steps": 5, "warmup_epochs": 2}, "Give `warmup_steps`"),
        (replace(SOURCE, num_images=7), {"num_steps": 5}, "7 images, fewer than one batch of 8"),
        (
            SOURCE,
            {"num_steps": 5, "warmup_epochs": 1},
            r"warm-up of 12 steps \(`warmup_epochs` 1\) must be shorter than the run of 5. Give a smaller `warmup_e",
        ),
        (SOURCE, {"num_steps": 5, "warmup_steps": 5}, r"\(`warmup_steps` 5\).* Give a smaller `warmup_steps`"),
    ],
)
def test_impossible_lengths_are_refused(source: Source, values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_plan(source, settings(**values), num_processes=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output_dir": ""}, "`output_dir` is needed"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num_steps": -3}, "`num_steps` must be at least 1, got -3"),
        ({"base_learning_rate": -1.0}, "`base_learning_rate` must be positive, got -1.0"),
        ({"weight_decay": float("nan")}, "`weight_decay` must be a finite number, got nan"),
        ({"optimizer_momentum": 1.0}, r"`optimizer_momentum` must be in \[0, 1\), got 1.0"),
        ({"num_steps": 3, "num_epochs": 3}, "`num_epochs` and `num_steps` exclude each other"),
        ({"warmup_steps": 3, "warmup_epochs": 3}, "`warmup_epochs` and `warmup_steps` exclude each other"),
        ({"knn_every": 5}, "`knn_every` needs `knn_split`"),
        ({"push_to_hub": True}, "`push_to_hub` needs `repo_id`"),
        ({"private": True, "repo_id": "org/x"}, "`private` is for what is published. Add `--push_to_hub`"),
        ({"mixed_precision": "fp8"}, "`mixed_precision` must be one of auto, no, bf16, fp16, got `fp8`"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        settings(**values)
