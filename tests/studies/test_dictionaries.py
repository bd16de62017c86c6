"""The study of dictionaries: what is looked at, against second computations, and that looking changes nothing."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.sources.subset import spaced_subset
from hf_ssl.dynamics.staleness import Drift
from hf_ssl.errors import UserError
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.settings import of_json
from hf_ssl.studies.dictionaries_claims import claims_of
from hf_ssl.studies.dictionaries_models import bytes_held, copy_queries
from hf_ssl.studies.dictionaries_probe import Look, ObservedPretraining, Probe
from hf_ssl.studies.dictionaries_runs import FRESH, MOCO, Cell, Measured, Run, cells_of
from hf_ssl.studies.dictionaries_score import r_squared, score
from hf_ssl.studies.dictionaries_theory import Foretold, Predictions, choose, predict
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.loop import run_task
from hf_ssl.training.pretraining import Pretraining

SMALL = {"architecture": "test_resnet", "image_size": 32, "projection_dim": 16}
ENDS = {"projector_layers": 1, "projector_norm": "none", "symmetric": False, "join_views": False}
MODELS = {
    "moco": {"projector": "linear", "queue_size": 40, "bn_splits": 4, "ema_momentum": 0.5},
    "memory_bank": {"bank_size": 64, "objective": "sampled", "num_negatives": 32},
    "end_to_end": ENDS,
    "end_to_end-two": ENDS | {"separate_keys": True},
}
STEPS, BATCH = 9, 16


def make_model(name: str, **settings) -> SSLPreTrainedModel:
    method = METHODS[name.split("-")[0]]
    torch.manual_seed(3)
    model = method(method.config_class(**{**SMALL, **MODELS[name], **settings}))
    model.needs_labels = True
    return model


def train(folder: Path, model: SSLPreTrainedModel, observed: bool = True) -> Probe:
    source, data = spaced_subset(open_source("digits"), 64), DataSettings(dataset="digits", num_workers=0)
    settings = TrainingSettings(
        output_dir=str(folder), batch_size=BATCH, images_per_device=BATCH, num_steps=STEPS, base_learning_rate=1.0,
        lr_schedule="constant", mixed_precision="no", cpu=True, diagnostics_every=0,
    )  # fmt: skip
    probe = Probe(model, STEPS, 2, BATCH)
    arguments = (model, source, data, settings)
    run_task(ObservedPretraining(probe, *arguments) if observed else Pretraining(*arguments))
    return probe


@pytest.mark.parametrize("name", MODELS)
def test_looking_does_not_change_a_bit_of_training(name: str, tmp_path: Path):
    looked, alone = make_model(name), make_model(name)
    probe = train(tmp_path / "looked", looked)
    train(tmp_path / "alone", alone, observed=False)
    assert [look.step for look in probe.looks] == [0, 2, 4, 6, 8]
    others = alone.state_dict()
    for key, value in looked.state_dict().items():
        assert torch.equal(value, others[key]), key


def test_keys_of_an_encoder_that_stands_still_do_not_age(tmp_path: Path):
    """Shuffled keys in groups of BatchNorm, encoded again up to eight steps later: the same bit for bit."""
    probe = train(tmp_path, make_model("moco", ema_momentum=1.0))
    for look in probe.looks:
        assert look.keys == pytest.approx([1.0] * len(look.ages), abs=1e-12)
        assert all(cosine < 1 - 1e-6 for cosine in look.queries)
    assert [look.ages for look in probe.looks] == [[], [1, 2], [1, 2, 4], [1, 2, 4], [1, 2, 4, 8]]
    assert probe.looks[0].lag == pytest.approx(1) and probe.looks[-1].lag < 0.999
    stored, fresh = probe.consistency
    assert stored == pytest.approx(fresh, abs=1e-9)


def test_without_momentum_keys_age_as_queries_do(tmp_path: Path):
    probe = train(tmp_path, make_model("moco", ema_momentum=0.0, bn_splits=1))
    for look in probe.looks[1:]:
        assert look.lag == pytest.approx(1)
        # Other views of the same images, by the same weights.
        assert look.keys == pytest.approx(look.queries, abs=0.1)
        assert max(look.keys) < 1 - 1e-5


def test_a_queue_holds_keys_as_they_were_made_until_they_are_written_over(tmp_path: Path):
    probe = train(tmp_path, make_model("moco"))
    for look in probe.looks[1:]:
        for age, key, entry in zip(look.ages, look.keys, look.entries, strict=True):
            # 40 keys are two batches of 16 and a half.
            assert entry == (pytest.approx(key, abs=1e-6) if age <= 2 else None)
    assert [look.negatives for look in probe.looks] == [40] * 5
    assert probe._in_dictionary == [5, 6, 7]  # two batches and a half before the last step
    assert all(1 <= look.effective <= 40 for look in probe.looks)
    assert probe.looks[0].false_share is None and 0 <= probe.looks[-1].false_share <= 1


def test_entries_of_a_bank_are_the_features_if_nothing_is_averaged(tmp_path: Path):
    probe = train(tmp_path / "plain", make_model("memory_bank", bank_momentum=0.0))
    averaged = train(tmp_path / "averaged", make_model("memory_bank", bank_momentum=0.5))
    seen = 0
    for look in probe.looks[1:]:
        for key, entry in zip(look.keys, look.entries, strict=True):
            if entry is not None:
                seen += 1
                assert entry == pytest.approx(key, abs=0.05)  # of some images only, which were not seen since
        assert look.lag == 1
    assert seen >= 4
    pairs = [
        (k, e) for look in averaged.looks[1:2] for k, e in zip(look.keys, look.entries, strict=True) if e is not None
    ]
    assert len(pairs) == 2 and all(abs(entry) < abs(key) - 0.05 for key, entry in pairs)


def test_the_batch_is_the_dictionary_end_to_end(tmp_path: Path):
    probe = train(tmp_path, make_model("end_to_end"))
    assert [look.negatives for look in probe.looks] == [BATCH - 1] * 5
    assert all(look.lag == pytest.approx(1) and set(look.entries) <= {None} for look in probe.looks)
    assert probe.consistency is None
    assert all(look.effective <= BATCH - 1 + 1e-3 for look in probe.looks)


def test_two_networks_start_equal_and_part(tmp_path: Path):
    model = make_model("end_to_end-two")
    probe = train(tmp_path, model)
    assert probe.looks[0].lag == pytest.approx(1) and probe.looks[-1].lag < 0.999
    copy_queries(model)
    for one, other in zip(model.encoder.parameters(), model.get_submodule("key_encoder").parameters(), strict=True):
        assert torch.equal(one, other)


def held(name: str, images: int, **settings) -> int:
    model = make_model(name, **settings).train()
    inputs = {"pixel_values": torch.randn(images, 2, 3, 32, 32), "indices": torch.arange(images)}
    return bytes_held(model, inputs)


def test_memory_grows_with_the_batch_and_not_with_the_queue():
    assert held("end_to_end", 32) / held("end_to_end", 16) == pytest.approx(2, rel=0.02)
    small, large = held("moco", 16, queue_size=64), held("moco", 16, queue_size=4096)
    assert large == pytest.approx(small, rel=0.01)
    assert held("end_to_end", 16) / small == pytest.approx(2, rel=0.1)  # gradient reaches the keys


def test_a_part_of_a_data_set_is_evenly_spaced():
    source = open_source("digits")
    part = spaced_subset(source, 10)
    rows, chosen = list(source.records), list(part.records)
    expected = [rows[number * len(rows) // 10] for number in range(10)]
    assert [row["label"] for row in chosen] == [row["label"] for row in expected]
    assert [row["image"]["bytes"] for row in chosen] == [row["image"]["bytes"] for row in expected]
    assert part.num_images == 10 and part.has_indices and part.fingerprint != source.fingerprint
    assert spaced_subset(source, len(rows)) is source
    with pytest.raises(UserError, match="must be at most the 14.. images of split `train` of `digits`, got 5000"):
        spaced_subset(source, 5000)


AXES = {"momenta": [0.0, 0.9], "queue_sizes": [64, 128], "batch_sizes": [32], "numbers_of_images": [512]}


def test_axes_change_only_what_a_method_has():
    cells = cells_of(["end_to_end", "memory_bank", "moco"], **AXES, learning_rates=[0.1, 0.2])
    assert [cell.method for cell in cells] == ["end_to_end"] * 2 + ["memory_bank"] * 4 + ["moco"] * 8
    assert len({cell.folder for cell in cells}) == len(cells) == len(set(cells))
    assert cells[0].step_rate == pytest.approx(0.1 / 8)


def look(step: int, ages: list[int], keys: list[float], **numbers) -> Look:
    given = {"queries": keys, "entries": [None] * len(ages), "length": 1.0, "lag": 1.0, "effective": 10.0}
    given |= {"negatives": 20, "false_share": 0.1, "false_weight": 0.1, "spread": 1.0}
    return Look(step=step, ages=ages, keys=keys, **given | numbers)


def run_of(cell: Cell, drift: Drift, seed: int = 0, knn: float = 0.5, **numbers) -> Run:
    looks = tuple(
        look(step, ages, [float(drift.cosine(step - age, step, cell.step_rate)) for age in ages])
        for step in (10, 20, 30, 39)
        for ages in [[age for age in (1, 2, 4, 8, 16, 32) if age <= step]]
    )
    return Run(cell=cell, seed=seed, measured=Measured(knn=knn, looks=looks, **numbers))


LAW = Drift(walk=0.004, turn=0.01, speed=0.3)


def test_what_is_known_of_one_setting_foretells_another_and_is_scored():
    fitted = cells_of([MOCO], **AXES | {"momenta": [0.0], "queue_sizes": [64]}, learning_rates=[0.1, 0.4])
    asked = cells_of([MOCO], **AXES | {"momenta": [0.0]}, learning_rates=[0.2])
    runs = [run_of(cell, LAW) for cell in fitted]
    said = predict(asked, runs, until=20, num_steps=40, look_every=10, bound=0.9)
    assert said.fitted == tuple(sorted(cell.folder for cell in fitted)) and said.misfit < 1e-3
    found = [
        run_of(cell, LAW, seed, 0.5 + 0.1 * seed + 0.01 * place) for place, cell in enumerate(asked) for seed in (0, 1)
    ]
    scored = score(said, found)
    assert scored is not None
    assert scored.settings == 2 and scored.points == 12 and scored.r2 > 0.999 and scored.largest_error < 0.01
    assert scored.r2_own is not None and scored.r2_own > 0.999 and (scored.r2_own_start or 0) > 0.999
    assert scored.best == asked[1] and scored.best_knn == pytest.approx(0.56)
    assert scored.spread == pytest.approx(math.sqrt(0.005))
    read = Predictions.from_record(said.record())
    assert read.says_of() == said.says_of() and read.record() == said.record()
    with pytest.raises(UserError, match="needs runs of `moco` with at least two learning rates"):
        predict(asked, runs[:1], until=20, num_steps=40, look_every=10, bound=0.9)
    with pytest.raises(UserError, match="needs runs of `moco`"):
        predict(fitted, runs, until=20, num_steps=40, look_every=10, bound=0.9)  # what is fitted is not foretold


def test_the_choice_is_the_largest_queue_that_stays_consistent():
    cells = cells_of([MOCO], **AXES, learning_rates=[0.2])
    oldest = {(0.0, 64): 0.99, (0.0, 128): 0.93, (0.9, 64): 1.0, (0.9, 128): 0.95}
    said = [
        Foretold(cell=cell, keys={}, oldest=oldest[cell.momentum or 0.0, cell.queue_size or 0], lag=0.9, variance=0.5)
        for cell in cells
    ]
    assert said[3].consistency == pytest.approx(0.9)

    def chosen(bound: float) -> tuple:
        cell = choose(said, bound)
        return cell.momentum, cell.queue_size

    assert chosen(0.8) == (0.0, 128)  # both momenta are consistent with 128 keys: the smaller one
    assert chosen(0.89) == (0.9, 128)
    assert chosen(0.97) == (0.0, 64)
    variants = [replace(one, oldest=0.5 + one.oldest / 10) for one in said]
    assert (choose(variants, 0.9).momentum, choose(variants, 0.9).queue_size) == (0.9, 64)  # none: the best of all


def test_r_squared_by_hand():
    assert r_squared([1, 2, 3], [1, 2, 3]) == 1
    assert r_squared([2, 2, 2], [1, 2, 3]) == 0
    assert r_squared([3, 2, 1], [1, 2, 3]) == -3


def test_claims_hold_and_fail_and_wait_for_their_settings():
    base = {"batch_sizes": [32], "numbers_of_images": [512], "learning_rates": [0.2]}
    queues = cells_of([MOCO], momenta=[0.0, 0.99], queue_sizes=[64, 128, 256], **base)
    fresh = replace(queues[0], method=FRESH, momentum=None, queue_size=None)
    knn = {(0.0, 64): 0.31, (0.99, 64): 0.4, (0.99, 128): 0.44, (0.99, 256): 0.45}

    def runs(seed: int, better: float) -> list[Run]:
        known = [Run(cell=fresh, seed=seed, measured=Measured(knn=0.3))]
        for cell in queues:
            value = knn.get((cell.momentum, cell.queue_size), 0.31) + better * (cell.momentum == 0)
            known.append(run_of(cell, LAW, seed, value, held_bytes=1000))
        return known

    claims = {claim.text: claim for claim in claims_of([*runs(0, 0.0), *runs(1, 0.5)])}
    # In seed 1 it is the best, and so nothing to compare.
    assert claims["without momentum MoCo's encoder does not learn from the first queue"].holds == [True]
    assert claims["without momentum it does not learn from the largest queue"].holds == [True]
    assert claims["the best momentum is at least 0.99"].holds == [True, False]
    assert claims["more keys in the queue pay less and less"].holds[0]
    assert claims["fewer negatives count than there are"].holds == [True, True]
    assert not any("bank" in text for text in claims)
    text = str(claims["the best momentum is at least 0.99"])
    assert text == "the best momentum is at least 0.99: in 1 of 2 seeds (of the first: best k-NN with momentum 0.99)"


def test_a_run_reads_its_second_half_and_survives_its_record():
    cell = cells_of([MOCO], **AXES | {"momenta": [0.9], "queue_sizes": [256]}, learning_rates=[0.1])[0]
    looks = (look(10, [1], [0.0]), look(30, [1, 8], [0.9, 0.8], lag=0.5), look(39, [1, 8], [0.7, 0.4], lag=0.7))
    run = Run(cell=cell, seed=0, measured=Measured(knn=None, looks=looks))
    assert run.curve("keys") == pytest.approx({1: 0.8, 8: 0.6}) and run.late("lag") == pytest.approx(0.6)
    assert run.oldest == 8 and run.oldest_agreement == pytest.approx(0.6)
    assert of_json(Run, run.record()) == run
    assert np.isclose(of_json(Run, {**run.record()}).late("spread"), 1)
