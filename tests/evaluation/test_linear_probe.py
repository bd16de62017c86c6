"""Linear probes: the optimum of logistic regression, the recipes of papers, and that test labels choose nothing."""

import math

import numpy as np
import pytest
import torch

from hf_ssl.evaluation import probe_protocols as module
from hf_ssl.evaluation.linear_probe import linear_probe, linear_probe_accuracy, linear_probes
from hf_ssl.evaluation.probe_protocols import PROBES, held_out


def blobs(num_train=200, num_test=100, noise=0.3, dim=5, classes=3):
    centres = 2 * torch.randn(classes, dim)
    train_labels, test_labels = torch.arange(num_train) % classes, torch.arange(num_test) % classes
    return (
        centres[train_labels] + noise * torch.randn(num_train, dim),
        train_labels,
        centres[test_labels] + noise * torch.randn(num_test, dim),
        test_labels,
    )


@pytest.mark.parametrize("protocol", PROBES)
def test_separable_classes_are_separated(protocol):
    # The small rate of luckmatters needs many steps.
    data = blobs(num_train=1200 if protocol == "luckmatters" else 200)
    result = linear_probe(*data, protocol=protocol)
    assert result.accuracy > 0.98
    assert result.settings["probe"] == protocol
    assert linear_probe_accuracy(*data, protocol=protocol) == result.accuracy


def test_logistic_ignores_scale_shift_rotation_and_constant_features():
    train, train_labels, test, test_labels = blobs(noise=2.5)
    plain = linear_probe(train, train_labels, test, test_labels)

    def changed(features):
        scaled = features * torch.tensor([1e-3, 1.0, 1e3, 5.0, 0.2]) + torch.tensor([0.0, 7.0, -3.0, 0.0, 1.0])
        return torch.cat([scaled, torch.full((len(features), 1), 0.1), scaled[:, :0]], dim=1)

    other = linear_probe(changed(train), train_labels, changed(test), test_labels)
    assert other.accuracy == pytest.approx(plain.accuracy, abs=0.011)  # one image of 100
    assert other.settings["l2"] == plain.settings["l2"]


@pytest.mark.parametrize("num_train", [200, 12])  # more, and fewer images than features
def test_preparing_for_logistic_regression_is_a_rotation_that_drops_empty_directions(num_train):
    train, _, test, _ = blobs(num_train=num_train, noise=2.5)
    train, test = train.repeat(1, 3), test.repeat(1, 3)  # grey pictures: three equal channels
    prepared, prepared_test = PROBES["logistic"][0](train, test)
    assert prepared.shape == (num_train, 5)
    mean, deviation = train.mean(dim=0), train.std(dim=0, correction=0)
    standardised, standardised_test = (train - mean) / deviation, (test - mean) / deviation
    torch.testing.assert_close(prepared @ prepared.T, standardised @ standardised.T, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(prepared_test @ prepared.T, standardised_test @ standardised.T, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("protocol", ["logistic", "byol"])
def test_settings_are_chosen_without_the_test_split(protocol):
    train, train_labels, test, test_labels = blobs(noise=3.0)
    honest = linear_probe(train, train_labels, test, test_labels, protocol)
    poisoned = linear_probe(train, train_labels, 1e3 * torch.randn(77, 5), torch.randint(3, (77,)), protocol)
    assert poisoned.settings == honest.settings
    assert 0 < honest.settings["held_out_accuracy"] < 1


def test_the_held_out_part_is_a_fifth_of_every_class():
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 4)
    mask = held_out(labels, seed=0)
    assert [int(mask[labels == label].sum()) for label in range(3)] == [10, 4, 0]
    assert torch.equal(mask, held_out(labels, seed=0))
    assert not torch.equal(mask, held_out(labels, seed=1))
    with pytest.raises(ValueError, match="needs 5 training images of some class, got at most 4"):
        held_out(labels[-4:], seed=0)


@pytest.mark.parametrize("num_passes", [0, 3, 100])
def test_sgd_follows_the_recipe_of_moco(monkeypatch, num_passes):
    # Classes of very different frequency: a rate of 30 is stable only where a class is improbable.
    labels = (torch.arange(201) % 50 == 1).long()
    train = 0.1 * torch.randn(201, 5) + 0.1 * labels[:, None]
    passes = train + 0.05 * torch.randn(num_passes, 201, 5)
    labels[0] = -1  # has no label, hence no part
    weight = torch.empty(2, 5).normal_(0, 0.01, generator=torch.Generator().manual_seed(0)).double().numpy()
    bias, velocity, bias_velocity = np.zeros(2), np.zeros((2, 5)), np.zeros(2)
    y = np.eye(2)[labels[1:].numpy()]
    for epoch in range(100):  # 200 images: one batch an epoch
        x = (passes[epoch % num_passes] if num_passes else train)[1:].double().numpy()
        logits = x @ weight.T + bias
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (probabilities / probabilities.sum(axis=1, keepdims=True) - y) / len(x)
        rate = 30.0 * (0.1 if epoch >= 60 else 1) * (0.1 if epoch >= 80 else 1)
        velocity, bias_velocity = 0.9 * velocity + error.T @ x, 0.9 * bias_velocity + error.sum(axis=0)
        weight, bias = weight - rate * velocity, bias - rate * bias_velocity
    trained = []
    monkeypatch.setattr(module, "_accuracy", lambda classifier, *_: trained.append(classifier) or 0.0)
    columns = {"label": labels}
    linear_probes(train, columns, train, columns, "sgd", augmented=passes if num_passes else None)
    torch.testing.assert_close(trained[0].weight.data.double(), torch.tensor(weight), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(trained[0].bias.data.double(), torch.tensor(bias), atol=1e-3, rtol=1e-3)


def augmented_probe(data, protocol, passes):
    train, train_labels, test, test_labels = data
    return linear_probes(train, {"label": train_labels}, test, {"label": test_labels}, protocol, 0, passes)["label"]


@pytest.mark.parametrize(("protocol", "num_epochs"), [("sgd", 100), ("byol", 80)])
def test_settings_tell_how_images_were_augmented(protocol, num_epochs):
    data = blobs(num_train=60)
    none, some, whole, more = (
        augmented_probe(data, protocol, data[0].expand(number, -1, -1) if number else None).settings
        for number in (0, 3, num_epochs, num_epochs + 1)
    )
    assert "without the paper's random crops and flips" in none["deviation"]
    assert not {"augmentation", "augmented_passes", "exact"} & set(none)
    assert (some["augmented_passes"], some["augmented_features"]) == (3, "float32")
    assert some["deviation"].endswith(f"epoch e of {num_epochs}, from 0, reads pass e mod 3")
    assert "exact" not in some
    assert whole["augmented_passes"] == num_epochs
    assert "every epoch has crops and flips of its own" in whole["exact"]
    assert "deviation" not in whole
    assert more == whole
    assert all("crops (area 0.08 to 1, ratio 3/4 to 4/3) and flips" in one["augmentation"] for one in (some, whole))


@pytest.mark.parametrize("protocol", PROBES)
def test_passes_without_change_change_nothing(protocol):
    data = blobs(noise=3.0)
    plain = linear_probe(*data, protocol=protocol)
    augmented = augmented_probe(data, protocol, data[0].expand(7, -1, -1))
    assert augmented.accuracy == plain.accuracy
    assert augmented.best_over_epochs == plain.best_over_epochs
    assert (augmented.settings == plain.settings) == (protocol in ("logistic", "luckmatters"))


@pytest.mark.parametrize("protocol", ["logistic", "luckmatters"])
def test_probes_of_unaugmented_images_do_not_look_at_augmented_ones(protocol):
    data = blobs(noise=3.0)
    assert augmented_probe(data, protocol, torch.full((2, *data[0].shape), math.nan)) == linear_probe(*data, protocol)


def test_byol_chooses_its_rate_on_images_that_are_neither_augmented_nor_learnt_from(monkeypatch):
    data = blobs(noise=3.0)
    train, labels = data[:2]
    hold = held_out(labels, seed=0)
    passes = (train + 0.1 * torch.randn(2, *train.shape)).masked_fill(hold[:, None], math.nan)
    seen = []
    monkeypatch.setattr(module, "_accuracy", lambda classifier, *data: seen.append((classifier, *data)) or 0.5)
    settings = augmented_probe(data, "byol", passes).settings
    assert settings["chosen_on"] == "a fifth of the training images, held out, without augmentation"
    assert len(seen) == 6  # five rates, then the test
    for classifier, features, classes in seen[:-1]:
        assert torch.equal(features, train[hold]) and torch.equal(classes, labels[hold])
        assert classifier.weight.isfinite().all()
    assert seen[-1][0].weight.isnan().all()  # the final classifier learns from all images
    assert torch.equal(seen[-1][1], data[2])


def test_byol_chooses_from_the_papers_rates():
    result = linear_probe(*blobs(noise=3.0), protocol="byol")
    assert result.settings["learning_rate"] in (0.4, 0.3, 0.2, 0.1, 0.05)


def test_luckmatters_reports_the_last_epoch_and_the_best_apart():
    result = linear_probe(*blobs(noise=3.0), protocol="luckmatters")
    assert result.best_over_epochs is not None
    assert result.best_over_epochs > result.accuracy  # with this seed, the best epoch is not the last
    assert all(linear_probe(*blobs(), protocol=other).best_over_epochs is None for other in ("logistic", "sgd"))


@pytest.mark.parametrize("protocol", PROBES)
def test_the_seed_decides(protocol):
    data = blobs(noise=3.0)
    state = torch.get_rng_state()
    first = linear_probe(*data, protocol=protocol)
    assert linear_probe(*data, protocol=protocol) == first
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator stays


def test_classes_may_be_sparse_and_a_class_unseen_in_training_counts_as_wrong():
    train, train_labels, test, test_labels = blobs()
    result = linear_probe(train, 10 * train_labels + 3, test, torch.where(test_labels == 2, 30, 10 * test_labels + 3))
    assert result.accuracy == pytest.approx(float((test_labels != 2).double().mean()), abs=0.02)


def test_columns_together_equal_each_alone_also_with_gaps():
    train, train_labels, test, test_labels = blobs(noise=3.0)
    columns = {"whole": train_labels, "gaps": train_labels.masked_fill(torch.arange(200) % 5 == 0, -1)}
    together = linear_probes(train, columns, test, dict.fromkeys(columns, test_labels), "sgd")
    known = columns["gaps"] >= 0
    alone = linear_probe(train[known], train_labels[known], test, test_labels, "sgd")
    assert together["gaps"] == alone
    assert together["whole"] == linear_probe(train, train_labels, test, test_labels, "sgd")


def test_wrong_input_is_named():
    train, train_labels, test, test_labels = blobs()
    with pytest.raises(ValueError, match=r"Unknown probe `logistik`. Did you mean `logistic`\?"):
        linear_probe(train, train_labels, test, test_labels, "logistik")
    with pytest.raises(ValueError, match="at least two classes, got one"):
        linear_probe(train, torch.zeros(200, dtype=torch.int64), test, test_labels)
    with pytest.raises(ValueError, match="No test image has a label in `label`"):
        linear_probe(train, train_labels, test, torch.full((100,), -1))
    with pytest.raises(ValueError, match=r"training features must have shape \(images, dim\)"):
        linear_probe(train[:-1], train_labels, test, test_labels)
    with pytest.raises(ValueError, match=r"must have shape \(passes, 200, 5\), as the training.* got \(3, 199, 5\)"):
        augmented_probe((train, train_labels, test, test_labels), "sgd", torch.zeros(3, 199, 5))


def test_chance_is_what_unrelated_features_reach():
    labels = torch.arange(600) % 2
    accuracy = linear_probe_accuracy(torch.randn(600, 4), labels, torch.randn(600, 4), labels)
    assert abs(accuracy - 0.5) < 4 * math.sqrt(0.25 / 600)
