"""The collapse alarm: what rings it, once, what does not, what it says, and that it can end a run."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_ssl.commands import main
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import open_source
from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.find import complete_checkpoints
from hf_ssl.training.loop import train
from hf_ssl.training.origin import training_of
from hf_ssl.training.record import RunRecord
from hf_ssl.training.watch.collapse import (
    LEAST_RANK,
    LEAST_RANK_RATIO,
    LEAST_SPREAD,
    Collapse,
    CollapseAlarm,
    advice,
)


def listen(spreads: list[float], ranks: list[float], warmup_steps: int = 0) -> list[Collapse]:
    """Collapses reported for log lines at steps 20, 40, ..."""
    alarm = CollapseAlarm(warmup_steps)
    lines = zip(range(20, 20 * len(spreads) + 1, 20), spreads, ranks, strict=True)
    return [collapse for line in lines if (collapse := alarm.add(*line)) is not None]


HEALTHY = [0.8] * 20
RANKS = [12.0] * 20


def test_complete_collapse_is_reported_once():
    (collapse,) = listen([0.5, 0.2, 0.05] + [0.03] * 17, RANKS)
    assert (collapse.kind, collapse.step) == ("complete", 120)
    assert "0.03" in collapse.seen


def test_spread_and_rank_of_exactly_zero_are_a_collapse():
    """Identical images, or a network that is dead, from the start or later."""
    for spreads, step in (([0.0] * 20, 100), ([0.5, 0.2] + [0.0] * 18, 120)):
        (collapse,) = listen(spreads, RANKS)
        assert (collapse.kind, collapse.step) == ("complete", step)
        assert "0.00" in collapse.seen
    (collapse,) = listen(HEALTHY, [12.0, 6.0] + [0.0] * 18)
    assert (collapse.kind, collapse.step) == ("dimensional", 120)
    assert listen([float("nan")] * 20, [float("nan")] * 20) == []  # what ends a run then is its loss


def test_dimensional_collapse_is_reported_once():
    (collapse,) = listen(HEALTHY, [17, 9, 5, 3] + [1.4] * 16)
    assert (collapse.kind, collapse.step) == ("dimensional", 160)
    assert "1.4 dimensions" in collapse.seen and "17.0 in this run" in collapse.seen


def test_a_rank_is_judged_by_what_the_run_had():
    (collapse,) = listen(HEALTHY, [30, 100, 300, 300, 200, 100] + [30] * 14)
    assert (collapse.kind, collapse.step) == ("dimensional", 200)


@pytest.mark.parametrize(
    ("spreads", "ranks"),
    [
        (HEALTHY, RANKS),
        (HEALTHY, [17, 9, 7, 6, 5, 5, 5.2, 5.5, 6, 7] * 2),  # the dip of methods without negatives
        (HEALTHY, [15] * 6 + [1.5, 1.5, 1.5] + [15] * 11),  # shorter than the lines that must agree
        ([0.8] * 6 + [0.05, 0.05, 0.05] + [0.8] * 11, RANKS),
        ([0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.09, 0.11] + [0.3] * 12, RANKS),  # a start from almost equal features
        (HEALTHY, [1.2, 1.2, 1.3, 1.4, 1.5] + [1.7] * 15),  # a method that never had more: nothing to compare with
    ],
    ids=["steady", "dip", "short-loss-of-rank", "short-loss-of-spread", "rising", "low-from-the-start"],
)
def test_what_is_no_collapse(spreads: list[float], ranks: list[float]):
    assert listen(spreads, ranks) == []


def test_nothing_is_said_during_the_warm_up():
    assert listen([0.03] * 20, RANKS, warmup_steps=400) == []
    (collapse,) = listen([0.03] * 20, RANKS, warmup_steps=200)
    assert collapse.step == 300


RUN: dict[str, Any] = {
    "method": "byol",
    "config": {},
    "training": {
        "weight_decay": 4e-4,
        "predictor_weight_decay": None,
        "predictor_lr_multiplier": 1.0,
        "base_learning_rate": 0.2,
        "batch_size": 128,
    },
    "data": {"view_recipe": "shapes"},
}
COMPLETE, DIMENSIONAL = (Collapse(kind, 120, "evidence", {}) for kind in ("complete", "dimensional"))


def test_the_advice_has_this_runs_values():
    byol = {"predictor": "mlp", "predictor_layers": 2, "use_ema": True, "ema_momentum": 0.9, "symmetrize": False}
    text = advice(COMPLETE, RunRecord(**{**RUN, "config": byol}))
    assert text.startswith("Complete collapse at step 120: evidence. What usually cures it, with this run's values: ")
    assert "`--predictor_weight_decay`, now 0.0004" in text and "`--predictor_lr_multiplier 10`, now 1)" in text
    assert "`--ema_momentum` closer to 1, now 0.9" in text and "now 128 images a step" in text
    assert "view_recipe" not in text and "symmetrize" not in text and "stop_gradient" not in text
    assert "weaker augmentation (`--view_recipe`, now shapes)" in advice(
        DIMENSIONAL, RunRecord(**{**RUN, "config": byol})
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"predictor": "none"}, "a predictor (`--predictor mlp`, now none)"),
        ({"predictor_layers": 2, "stop_gradient": False}, "`--stop_gradient true`, now false"),
        ({"projector_output_norm": False}, "`--projector_output_norm true`, now false"),
        ({"predictor": "linear", "symmetrize": True, "use_ema": False}, "`--symmetrize false`, now true"),
        ({"predictor": "linear", "use_ema": False, "ema_momentum": 0.9}, "`--use_ema true`, now false"),
    ],
)
def test_what_is_missing_comes_first(config: dict[str, Any], expected: str):
    cures = advice(COMPLETE, RunRecord(**{**RUN, "config": config})).partition("values: ")[2].split("; ")
    assert any(expected in cure for cure in cures)
    if config.get("predictor") == "none":
        assert expected == cures[0] and not any("predictor_weight_decay" in cure for cure in cures)


def run(folder: Path, **values: Any):
    """BYOL on scikit-learn's digits, which collapses without its predictor."""
    torch.manual_seed(0)
    method = METHODS["byol"]
    sizes = {"projector_hidden_dim": 64, "projection_dim": 32, "predictor_hidden_dim": 64, "ema_momentum": 0.9}
    predictor = values.pop("predictor", "none")
    config = method.config_class(architecture="test_resnet", image_size=16, predictor=predictor, **sizes)
    data = DataSettings(dataset="digits", view_recipe="moco_cifar", num_workers=0)
    options: dict[str, Any] = {"batch_size": 32, "num_steps": 110, "log_every": 10, "checkpoint_every": 500}
    options |= {"base_learning_rate": 0.1, "learning_rate_scaling": "none", "lr_schedule": "constant"}
    options |= {"weight_decay": 5e-4, "diagnostics_every": 0}
    settings = TrainingSettings(output_dir=str(folder), **{**options, **values})
    return train(method(config), open_source("digits"), data, settings)


def test_a_run_that_collapses_is_stopped_and_can_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="hf_ssl"):
        result = run(tmp_path, on_collapse="stop")
    assert (result.finished, result.signal, result.step) == (False, 0, 100)
    assert result.collapse and result.collapse.startswith("Complete collapse at step 100: all images get nearly")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-000100"]
    assert [record.message for record in caplog.records] == [result.collapse]
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["collapse"]["kind"] == "complete" and written["collapse"]["report"] == result.collapse
    assert written["collapse"]["thresholds"] == {"lines": 4, "spread": 0.06}
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="hf_ssl"):
        assert run(tmp_path, on_collapse="stop", resume="auto").finished
    assert caplog.records == []  # it has been said
    assert json.loads((tmp_path / "run.json").read_text())["collapse"] == written["collapse"]
    other = tmp_path / "other"  # a run that begins with these weights has collapsed as well, whatever it sees itself
    assert run(other, on_collapse="stop", resume=str(tmp_path / "checkpoints" / "step-000100")).finished
    record = RunRecord.read(other)
    assert record is not None and record.collapse == written["collapse"]
    former = training_of(record)
    assert former is not None and former["collapse"] == {"kind": "complete", "step": 100}


@pytest.mark.slow
def test_a_run_with_its_predictor_rings_no_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="hf_ssl"):
        result = run(tmp_path, predictor="mlp", on_collapse="stop")
    assert result.finished and result.collapse is None and caplog.records == []


def test_what_to_do_on_collapse_must_be_known():
    with pytest.raises(ValueError, match="`on_collapse` must be one of warn, stop, got `panic`"):
        TrainingSettings(output_dir="not_used", on_collapse="panic")  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_command_ends_a_collapsed_run_by_a_sentence(tmp_path: Path, capsys):
    words = "--method byol --recipe quickstart --predictor none --dataset digits --image_size 16 --log_every 5"
    words += " --projector_hidden_dim 64 --projection_dim 32 --view_recipe moco_cifar --base_learning_rate 0.1"
    words += " --learning_rate_scaling none --lr_schedule constant --weight_decay 5e-4"
    words += f" --num_steps 120 --num_workers 0 --batch_size 32 --cpu true --on_collapse stop --output_dir {tmp_path}"
    assert main(["pretrain", *words.split()]) == 3
    said = capsys.readouterr().err
    assert "Complete collapse at step" in said and "`--predictor mlp`, now none" in said
    assert "Stopped after step" in said and "`--resume auto` goes on all the same." in said
    assert not (tmp_path / "encoder").exists()


def test_the_guides_name_the_limits_of_the_alarm():
    guides = Path(__file__).parents[3] / "scripts" / "guides"
    reading, studies = ((guides / f"{name}.md").read_text() for name in ("reading_a_run", "studies"))
    spread, rank, share = f"{LEAST_SPREAD:g}", f"{LEAST_RANK:g}", f"{100 * LEAST_RANK_RATIO:g} %"
    assert (
        f"| spread above {spread} |" in reading and f"| above {rank}, and above {share} of the run's best |" in reading
    )
    limits = f"complete below a spread of {spread}, dimensional below a rank of z of {rank} or {share} of the fresh"
    assert limits in studies
