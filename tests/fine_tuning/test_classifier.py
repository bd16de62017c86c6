"""A classifier on an encoder: which weights are trained, where they come from, and how it is scored."""

import dataclasses

import pytest
import timm
import torch

from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError
from hf_ssl.fine_tuning.classifier import check_classes, choose_trained, open_classifier, score, training_mode

DIGITS = [str(number) for number in range(10)]


def trained(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    "architecture", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet"]
)
def test_what_is_trained(architecture):
    module = timm.create_model(architecture, num_classes=3)
    everything = {name for name, _ in module.named_parameters()}
    classifier = {name for name in everything if module.pretrained_cfg["classifier"] in name}
    parts = {}
    for train in ("linear", "last-1", "last-2", "full"):
        choose_trained(module, train)
        parts[train] = trained(module)
    assert parts["linear"] == classifier
    assert parts["linear"] < parts["last-1"] < parts["last-2"] < parts["full"] == everything


def test_the_last_block_of_a_vit_is_its_last_transformer_block():
    module = timm.create_model("test_vit", num_classes=3)
    choose_trained(module, "last-1")
    assert {name.split(".")[0] for name in trained(module)} == {"blocks", "norm", "head"}
    assert {name.split(".")[1] for name in trained(module) if name.startswith("blocks")} == {"5"}


@pytest.mark.parametrize("train", ["last-99", "last-0", "last-", "last-two"])
def test_a_wrong_number_of_blocks_is_named(train):
    with pytest.raises(ValueError, match=f"N from 1 to 5, the blocks of this encoder, got `{train}`"):
        choose_trained(timm.create_model("test_resnet", num_classes=3), train)


def test_frozen_parts_are_in_evaluation_mode():
    module = timm.create_model("test_resnet", num_classes=3)
    for train, modes in {"full": (True, True), "last-1": (False, True), "linear": (False, False)}.items():
        choose_trained(module, train)
        training_mode(module, train)
        assert (module.bn1.training, module.layer4[0].bn2.training) == modes


def test_weights_of_the_encoder_are_kept_and_the_rest_follows_the_seed(tmp_path):
    encoder = timm.create_model("test_resnet", num_classes=0, global_pool="avg")
    timm.models.save_for_hf(encoder, tmp_path)
    one, two, other = (open_classifier(str(tmp_path), DIGITS, seed=seed).module for seed in (0, 0, 1))
    for name, value in encoder.state_dict().items():
        assert torch.equal(one.state_dict()[name], value)
    assert torch.equal(one.fc.weight, two.fc.weight)
    assert not torch.equal(one.fc.weight, other.fc.weight)
    scratch = open_classifier(f"random:{tmp_path}", DIGITS, seed=0).module
    assert not torch.equal(scratch.conv1[0].weight, encoder.conv1[0].weight)


def test_damaged_weights_are_a_message(tmp_path):
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=0), tmp_path, safe_serialization=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="could not load the weights of .*Are its files complete?"):
        open_classifier(str(tmp_path), DIGITS)


def test_image_size_reaches_model_and_preprocessing():
    vit = open_classifier("random:test_vit", DIGITS, image_size=32, model_args={"drop_path_rate": 0.1})
    assert vit.module.patch_embed.img_size == (32, 32) and vit.image_size == 32
    assert vit.model_args == {"drop_path_rate": 0.1, "img_size": 32}
    assert open_classifier("random:test_resnet", DIGITS).image_size == 160


@pytest.mark.parametrize(
    ("encoder", "options", "message"),
    [
        ("random:test_resnett", {}, "no folder `test_resnett` .* Did you mean `test_resnet`"),
        ("raw:test_resnet", {}, "`raw:` has no weights to train"),
        ("random:test_resnet", {"model_args": {"wings": 2}}, "cannot build `test_resnet` .*wings"),
        ("random:test_resnet", {"model_args": {"num_classes": 2}}, "must not contain `num_classes`"),
        ("resnet18_cifar", {}, "could not load the weights of `resnet18_cifar`"),
    ],
)
def test_wrong_encoders_are_named(encoder, options, message):
    with pytest.raises(ValueError, match=message):
        open_classifier(encoder, DIGITS, **options)


@pytest.fixture(scope="module")
def digits():
    return open_source("digits", split="test")


def test_a_score_counts_every_image_once(digits):
    classifier = open_classifier("random:test_resnet", DIGITS, image_size=16)
    classifier.module.train()
    scored = score(classifier, digits, "label", batch_size=50, num_workers=0)
    assert classifier.module.training
    assert scored.num_images == 360
    assert scored.confusion.sum(dim=1).tolist() == torch.bincount(torch.tensor(list_of(digits, "label"))).tolist()
    assert scored.accuracy == pytest.approx(float(scored.confusion.diagonal().sum()) / 360)


def list_of(source, column):
    return [row[column] for row in source.records]


def test_classes_are_matched_by_name(digits):
    classifier = open_classifier("random:test_resnet", DIGITS, image_size=16)
    plain = score(classifier, digits, "label", 64, 0)
    # The same images from a split that numbers its classes the other way round.
    turned = dataclasses.replace(digits, labels={"label": DIGITS[::-1]})
    assert torch.equal(score(classifier, turned, "label", 64, 0).confusion, plain.confusion.flip(0))


def test_an_unknown_class_counts_as_wrong_and_an_unknown_column_is_named(digits, caplog):
    check_classes(DIGITS[:9], digits, "label")
    assert "has a class `9` that the training split lacks: its images count as wrong" in caplog.text
    with pytest.raises(ValueError, match="has no label column `digit`"):
        check_classes(DIGITS, digits, "digit")
    classifier = open_classifier("random:test_resnet", DIGITS[:5], image_size=16)
    unnamed = dataclasses.replace(digits, labels={"label": []})
    scores = [score(classifier, source, "label", 64, 0) for source in (digits, unnamed)]
    for one in scores:
        assert one.num_images == digits.num_images == int(one.confusion.sum()) + one.num_strangers
        assert one.num_strangers == sum(label >= 5 for label in list_of(digits, "label"))
        assert one.accuracy == int(one.confusion.trace()) / one.num_images
    assert torch.equal(scores[0].confusion, scores[1].confusion)
    none = open_classifier("random:test_resnet", ["77", "88"], image_size=16)
    with pytest.raises(ValueError, match="has a class of the training split in `label`. Give another `test_split`"):
        score(none, unnamed, "label", 64, 0)
