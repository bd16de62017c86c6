"""The class-oracle study: what is measured, against second computations, and which claims runs show."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from hf_ssl.data.sources.open import open_source
from hf_ssl.evaluation.encoders import Encoder, encoder_of
from hf_ssl.evaluation.features import extract_features
from hf_ssl.modules.encoder import build_encoder
from hf_ssl.settings import of_json
from hf_ssl.studies.negatives_measures import (
    METHODS,
    Measured,
    Run,
    by_method,
    claims_of,
    ends_of_log,
    measure_encoder,
    share_of_own_class,
    values_of,
)


class Pooled(nn.Module):
    """Coarse pixels, 16, as representation, and half of them as projection."""

    def forward(self, pixel_values):
        h = nn.functional.adaptive_avg_pool2d(pixel_values[:, :1], 4).flatten(1)
        return torch.cat([h, h[:, :8]], dim=1)


@pytest.fixture(scope="module")
def measured():
    train, test = open_source("digits"), open_source("digits", split="test")
    transform = encoder_of(build_encoder("test_resnet"), 16, (0.5,) * 3, (0.25,) * 3).transform
    module = Pooled()
    module.anchor = nn.Parameter(torch.zeros(1))
    encoder = Encoder(module, transform, 24, "pooled")
    how = {
        "view_recipe": "crop_and_flip",
        "view_settings": None,
        "image_size": 16,
        "batch_size": 64,
        "num_workers": 0,
        "max_images": 200,
    }
    numbers = measure_encoder(encoder, 16, train, test, **how)
    return numbers, extract_features(encoder, test, 64, 0, max_images=200)


def test_h_and_z_are_measured_apart_on_held_out_images(measured):
    numbers, features = measured
    rows = nn.functional.normalize(features.features[:, :16].double(), dim=1)
    labels = features.labels["label"]
    same = [(i, j) for i in range(200) for j in range(i) if labels[i] == labels[j]]
    distances = [math.dist(rows[i].tolist(), rows[j].tolist()) ** 2 for i, j in same]
    assert numbers["class_alignment_h"] == pytest.approx(sum(distances) / len(distances), rel=1e-5)
    for name, part in (("h", features.features[:, :16]), ("z", features.features[:, 16:])):
        squared = torch.cdist(*[nn.functional.normalize(part.double(), dim=1)] * 2).square()
        pairs = squared[~torch.eye(200, dtype=torch.bool)]
        assert numbers[f"uniformity_{name}"] == pytest.approx(float((-2 * pairs).exp().mean().log()), rel=1e-5)
    assert numbers["linear"] > 0.6 and numbers["knn"] > 0.6  # digits are easy


def test_chance_is_the_sum_of_squared_class_shares():
    train = open_source("digits")
    labels = [row["label"] for row in train.records]
    expected = sum((labels.count(number) / len(labels)) ** 2 for number in range(10))
    assert share_of_own_class(train) == pytest.approx(expected, rel=1e-12)
    unlabelled = replace(train, records=train.records.map(lambda row: {"label": -1}))
    with pytest.raises(ValueError, match="No image of split `train` of `digits` has a label in `label`"):
        share_of_own_class(unlabelled)


@pytest.mark.parametrize("with_mixtures", [False, True])
def test_the_ends_of_a_log_are_its_second_and_last_tenth(tmp_path, with_mixtures):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {
            "step": step,
            "false_negative_share": step / 100,
            "contrast_accuracy": 1 - step / 50,
            "contrast_accuracy_with_mixed": 0.25,
        }
        for step in range(1, 21)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:5], lines[3], *lines[4:]]))  # resumed
    expected = {
        "false_negative_share": 0.195,
        "false_negative_share_early": 0.035,
        "contrast_accuracy": 1 - 0.39,
    } | ({"contrast_accuracy_with_mixed": 0.25} if with_mixtures else {})
    assert ends_of_log(path, with_mixtures=with_mixtures) == pytest.approx(expected)
    path.write_text(json.dumps(lines[9]) + "\n")
    assert ends_of_log(path, with_mixtures=False)["false_negative_share_early"] == 0.1


def result(method: str, seed: int = 0, **numbers) -> Run:
    given = dict.fromkeys(("linear", "knn", "view_alignment_h", "class_alignment_h", "uniformity_h"), 0.5) | numbers
    return Run(method=method, seed=seed, measured=Measured(**given))


def test_claims_compare_runs_of_the_same_seed():
    runs = [
        result("moco_v2", linear=0.5, false_negative_share=0.3, false_negative_share_early=0.2, uniformity_z=-2.0),
        result("moco_v2", 1, linear=0.7, false_negative_share=0.3, false_negative_share_early=0.4),
        result("moco_v2-oracle", linear=0.6, class_alignment_h=0.4),
        result("moco_v2-oracle", 1, linear=0.6, class_alignment_h=0.6),
        result("mochi-oracle", linear=0.9),
    ]
    claims = {claim.text: claim for claim in claims_of(runs, chance=0.25)}
    assert {text: claim.holds for text, claim in claims.items()} == {
        "the oracle raises MoCo v2's linear accuracy": [True, False],
        "MoCo v2's hardest keys are of the query's class more often than the queue's keys": [True, True],
        "that share rises during MoCo v2's training": [True, False],
        "the oracle brings the representations of a class closer together": [True, False],
    }
    assert str(claims["that share rises during MoCo v2's training"]).endswith("training: in 1 of 2 seeds")
    assert claims_of(runs[:1], chance=0.35)[0].holds == [False]


def test_every_claim_can_hold_and_fail():
    """Better in every way the paper says, and worse."""
    good = {
        "moco_v2": {"linear": 0.5, "uniformity_h": -2.0, "class_alignment_h": 0.8},
        "mochi": {"linear": 0.6, "uniformity_h": -2.5, "class_alignment_h": 0.8},
        "moco_v2-oracle": {"linear": 0.7, "class_alignment_h": 0.6},
        "mochi-oracle": {"linear": 0.7},
        "supervised": {"linear": 0.8, "class_alignment_h": 0.2, "uniformity_h": -1.5},
    }
    good["moco_v2"] |= {"false_negative_share": 0.4, "false_negative_share_early": 0.2, "contrast_accuracy": 0.6}
    good["moco_v2"] |= {"uniformity_z": -3.0}
    good["mochi"] |= {"contrast_accuracy_with_mixed": 0.5, "uniformity_z": -3.5}
    bad = {method: {name: 1 - value for name, value in numbers.items()} for method, numbers in good.items()}
    for numbers, holds in ((good, True), (bad, False)):
        claims = claims_of([result(method, **numbers[method]) for method in METHODS], chance=0.3 if holds else 0.7)
        assert len(claims) == 12
        assert [claim.holds for claim in claims] == [[holds]] * 12


def test_runs_survive_their_record_and_are_grouped():
    runs = [result("mochi", seed, linear=0.1 * seed, uniformity_z=-1.0) for seed in (1, 2)]
    runs.append(result("supervised"))
    again = [of_json(Run, json.loads(json.dumps(run.record()))) for run in runs]
    assert again == runs
    groups = by_method(again)
    assert list(groups) == ["mochi", "supervised"]
    assert values_of(groups["mochi"], "linear") == [0.1, 0.2] and values_of(groups["supervised"], "uniformity_z") == []
