"""Grids of ablations: their cells, what is measured at the start, what theory says, when a run has collapsed."""

import math
from typing import Literal

import pytest
import torch

from hf_ssl.data.settings import DataSettings
from hf_ssl.diagnostics import feature_std
from hf_ssl.diagnostics.spectrum import covariance_spectrum, entropy_rank
from hf_ssl.methods.byol import BYOLConfig, BYOLForPreTraining
from hf_ssl.settings import of_json
from hf_ssl.studies.ablation_grid import GRIDS, Cell, cells_of
from hf_ssl.studies.ablation_theory import (
    Measured,
    Run,
    Start,
    _two_views,
    agrees,
    by_cell,
    collapse_of,
    measure_start,
    theory_of,
)
from hf_ssl.training.arguments import TrainingSettings

START = Start(
    noise=0.5,
    correlation=[1.0, 0.4, 0.1],
    predictor=[0.05, -0.02, 0.03],
    spread=0.8,
    projection_rank=20.0,
    representation_rank=15.0,
)


def expected(cell: Cell, start: Start = START, num_steps: int = 300):
    return theory_of(cell, start, learning_rate=0.05, momentum=0.9, ema_momentum=0.9, num_steps=num_steps)


def test_a_grid_leaves_out_what_makes_no_network_and_says_why():
    cells, left_out = cells_of(
        [{"ema": [True, False], "stop_gradient": [True, False], "predictor": ["linear", "mlp"]}]
    )
    assert [(cell.use_ema, cell.stop_gradient, cell.predictor) for cell in cells] == [
        (True, True, "linear"),
        (True, True, "mlp"),
        (False, True, "linear"),
        (False, True, "mlp"),
        (False, False, "linear"),
        (False, False, "mlp"),
    ]
    assert list(left_out.values()) == [2] and "moving average receives no gradient" in next(iter(left_out))
    full, left_out = cells_of(GRIDS["full"])
    assert len(full) == 42 and sum(left_out.values()) == 96 - 42 and len(left_out) == 3


def test_every_named_grid_has_distinct_cells_folders_and_networks():
    for name, products in GRIDS.items():
        cells, _ = cells_of(products)
        assert len({cell.folder for cell in cells}) == len(cells), name
        for cell in cells:
            BYOLConfig(
                predictor=cell.predictor,
                use_ema=cell.use_ema,
                stop_gradient=cell.stop_gradient,
                symmetrize=cell.symmetrize,
            )
    assert len(cells_of(GRIDS["core"] + GRIDS["core"])[0]) == len(cells_of(GRIDS["core"])[0]) == 12


def test_a_grid_without_cells_and_wrong_values_are_refused():
    with pytest.raises(ValueError, match="The grid has no cell: only a linear predictor can be symmetric"):
        cells_of([{"predictor": ["mlp"], "symmetrize": [True]}])
    with pytest.raises(ValueError, match="`predictor_lr` must be positive, got 0"):
        cells_of([{"predictor_lr": [0.0]}])
    with pytest.raises(ValueError, match="`weight_decay` must be at least 0, got -1"):
        cells_of([{"weight_decay": [-1.0]}])


def features(kind: str) -> torch.Tensor:
    spread = torch.randn(256, 32)
    if kind == "complete":
        return 0.02 * spread + 1
    if kind == "dimensional":
        return spread[:, :1] * torch.randn(1, 32) + 0.01 * spread
    return spread


@pytest.mark.parametrize("kind", ["no", "dimensional", "complete"])
def test_made_features_are_told_apart(kind: str):
    z = features(kind)
    rank = float(entropy_rank(covariance_spectrum(z)))
    assert collapse_of(float(feature_std(z)) * math.sqrt(32), rank, rank_at_start=30.0) == kind


def test_the_rank_is_judged_against_that_of_the_fresh_network():
    assert collapse_of(0.5, 4.0, rank_at_start=20.0) == "no"
    assert collapse_of(0.5, 4.0, rank_at_start=30.0) == "dimensional"
    assert collapse_of(0.5, 1.9, rank_at_start=3.0) == "dimensional"


def test_theory_and_measurement_are_compared_where_theory_decides():
    assert agrees("no", "no") and agrees("complete", "dimensional") and agrees("later", "no")
    assert agrees("no", "dimensional") is False and agrees("later", "complete") is False
    assert agrees("open", "complete") is None


@pytest.mark.parametrize(
    ("cell", "collapse", "reason"),
    [
        (Cell(), "no", "3 of 3 modes survive"),
        (Cell(use_ema=False), "no", "3 of 3 modes survive"),
        (Cell(predictor="none"), "complete", "without predictor"),
        (Cell(use_ema=False, stop_gradient=False), "complete", "without stop-gradient"),
        (Cell(use_ema=False, weight_decay=1.0), "complete", "not below the critical"),
    ],
)
def test_theory_takes_the_settings_of_the_cell(cell: Cell, collapse: str, reason: str):
    theory = expected(cell)
    assert theory.expected == collapse and reason in theory.reason
    assert (theory.variance_left < 0.01) == (collapse == "complete")


def test_the_critical_weight_decay_is_that_of_the_optimizer():
    # tau^2 / (4 (1 + sigma^2)) of the squared loss, of which the loss of both directions is four times as much.
    critical = 4 / (4 * 1.5)
    assert expected(Cell()).critical_weight_decay == pytest.approx(critical)
    assert expected(Cell(weight_decay=1.1 * critical)).expected == "complete"
    assert expected(Cell(weight_decay=0.5 * critical)).expected == "no"


def test_a_collapse_that_takes_longer_than_the_run_comes_later():
    cell = Cell(predictor="none", use_ema=False)
    assert expected(cell, num_steps=2000).expected == "complete"
    slow = theory_of(cell, START, learning_rate=1e-5, momentum=0.9, ema_momentum=0.9, num_steps=100)
    assert slow.expected == "later" and slow.variance_left > 0.5


def test_a_symmetric_predictor_that_outgrows_its_alignment_is_left_open():
    small = Start(**{**vars(START), "correlation": [1e-3, 5e-4], "predictor": [0.02, 0.02], "noise": 0.1})
    assert expected(Cell(use_ema=False), small).expected == "no"
    assert expected(Cell(use_ema=False, symmetrize=True), small).expected == "open"


def test_noise_is_what_two_views_do_not_share():
    shared, mean = torch.randn(20_000, 3) * torch.tensor([2.0, 1.0, 0.5]), torch.tensor([5.0, 0.0, 0.0])
    views = mean + shared[:, None] + 0.7 * torch.randn(20_000, 2, 3)
    noise, covariance = _two_views(views)
    assert noise == pytest.approx(3 * 0.49 / 5.25, rel=0.03)
    torch.testing.assert_close(covariance.float().diagonal(), torch.tensor([4.0, 1.0, 0.25]), atol=0.1, rtol=0.05)
    with pytest.raises(ValueError, match="do not correlate"):
        _two_views(torch.stack([shared, -shared], dim=1))


@pytest.mark.parametrize("predictor", ["linear", "mlp", "none"])
def test_a_fresh_network_is_measured(predictor: Literal["linear", "mlp", "none"]):
    config = BYOLConfig(
        architecture="test_resnet",
        image_size=16,
        projector_hidden_dim=16,
        projection_dim=8,
        predictor=predictor,
        predictor_hidden_dim=16,
    )
    model = BYOLForPreTraining(config)
    data = DataSettings(dataset="digits", view_recipe="crop_and_flip", num_workers=0, shuffle_window=100)
    start = measure_start(model, data.open(), data, TrainingSettings(output_dir="not_used", batch_size=16))
    assert start.noise > 0 and 0 < start.spread < 1
    assert 1 < start.projection_rank <= 8 and start.representation_rank > 1
    assert start.correlation == sorted(start.correlation, reverse=True) and start.correlation[-1] > 0
    assert len(start.predictor) == len(start.correlation)
    assert (set(start.predictor) == {1.0}) == (predictor == "none")


def test_runs_survive_being_written_and_are_grouped_by_cell():
    measured = Measured(
        knn=0.3, knn_random=0.2, loss=1.0, spread=0.02, projection_rank=5.0, representation_rank=6.0, seconds=1.0
    )
    runs = [
        Run(cell=cell, seed=seed, start=START, theory=expected(cell), measured=measured)
        for seed in range(2)
        for cell in (Cell(), Cell(predictor="none"))
    ]
    assert [of_json(Run, run.record()) for run in runs] == runs
    assert [[run.seed for run in group] for group in by_cell(runs)] == [[0, 1], [0, 1]]
    assert [run.agrees for run in runs[:2]] == [False, True]
