"""What cards say of a method follows its settings: checked against the modules that these settings build."""

import dataclasses
import inspect
import re

import pytest
import torch

from hf_ssl.hub.model_card import describe_method
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import own_settings
from hf_ssl.studies.methods_report import VARIANTS

SMALL = {"architecture": "test_resnet", "image_size": 32, "projection_dim": 8, "projector_hidden_dim": 8}
SMALL |= {"queue_size": 64, "bank_size": 8, "num_clusters": 2, "subvector_dim": 8, "num_hard_negatives": 4}
NO_MIXTURES = {"num_mixed_negatives": 0, "num_mixed_queries": 0}


def described(name: str, **settings) -> dict:
    return describe_method(METHODS[name], settings)


def built(name: str, **settings):
    """A small model of a method with some settings."""
    config_class = METHODS[name].config_class
    known = {field.name for field in dataclasses.fields(config_class)}
    return METHODS[name](config_class(**{key: value for key, value in {**SMALL, **settings}.items() if key in known}))


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_are_what_the_docstring_says(name: str):
    first = " ".join(inspect.cleandoc(METHODS[name].__doc__ or "").split("\n\n")[0].split())
    told = described(name)
    assert told["idea"] == first and not told["uses_labels"]
    # A record of an earlier version may lack settings, and one that is complete says the same.
    assert described(name, **own_settings(METHODS[name].config_class())) == told


@pytest.mark.parametrize(
    ("name", "settings", "title", "says", "says_not", "arxiv"),
    [
        ("directpred", {}, "DirectPred", "computed from the correlation", "gradients", "2102.06810"),
        ("directpred", {"freq": 0}, "DirectPred's linear baseline", "trained by gradients", "instead", "2102.06810"),
        ("directpred", {"freq": 5}, "DirectPred every 5 steps", "gradients train it", "instead of", "2102.06810"),
        ("directpred", {"rule": "directset", "exponent": 0.75}, "DirectSet", "the power 0.75", "copy", "2110.04947"),
        ("directpred", {"rule": "directcopy"}, "DirectCopy", "a copy of the correlation", "computed", "2110.04947"),
        ("directpred", {"rule": "directcopy", "freq": 0}, "DirectPred's linear baseline", "", "copy", "2102.06810"),
        ("directpred", {"remove_mean": True}, "DirectPred", "the covariance", "correlation", "2102.06810"),
        ("directpred", {"use_ema": False}, "DirectPred", "Without the moving average", "never", "2102.06810"),
        ("byol", {"predictor": "linear"}, "BYOL with a linear predictor", "with a linear predictor", "", "2006.07733"),
        ("byol", {"predictor": "none"}, "BYOL without a predictor", "learns to match", "predict ", "2006.07733"),
        ("byol", {"use_ema": False}, "BYOL without the moving average", "stop-gradient", "average", "2006.07733"),
        ("byol", {"ema_momentum": 1.0}, "BYOL with a target that never moves", "stays", "average", "2006.07733"),
        (
            "byol",
            {"predictor": "linear", "use_ema": False, "stop_gradient": False},
            "BYOL with a linear predictor and without the moving average and without the stop-gradient",
            "the gradient flows",
            "stop-gradient",
            "2006.07733",
        ),
        ("simsiam", {"stop_gradient": False}, "SimSiam without the stop-gradient", "flows", "held", "2011.10566"),
        ("moco", {}, "MoCo v2", "moving average", "each view", "2003.04297"),
        ("moco", {"projector": "linear"}, "MoCo v1", "moving average", "each view", "1911.05722"),
        ("moco", {"symmetric": True}, "MoCo v2", "each view is once the query", "", "2003.04297"),
        ("moco", {"ema_momentum": 0.0}, "MoCo v2", "the network itself", "average", "2003.04297"),
        ("moco_v3", {"ema_momentum": 1.0}, "MoCo v3", "stays as it began", "average", "2104.02057"),
        ("moco_v3", {"ema_momentum": 0.0}, "MoCo v3", "moving average", "itself", "2104.02057"),  # rises to 1
        ("mochi", NO_MIXTURES, "MoCHi without mixtures", "no mixtures", "", "2010.01028"),
        ("end_to_end", {}, "SimCLR", "each other", "key", "2002.05709"),
        ("end_to_end", {"symmetric": False}, "End-to-end contrast", "the other view", "each", "1911.05722"),
        (
            "end_to_end",
            {"symmetric": False, "join_views": False, "separate_keys": True},
            "End-to-end contrast",
            "a second network",
            "no second",
            "1911.05722",
        ),
        ("memory_bank", {"bank_momentum": 1.0}, "Memory bank", "random vectors", "left", "1805.01978"),
        ("contrastive_clustering", {}, "Contrastive Clustering", "clusters", "", "2009.09687"),
    ],
)
def test_settings_change_what_is_said(name: str, settings: dict, title: str, says: str, says_not: str, arxiv: str):
    told = described(name, **settings)
    assert told["method"] == title and told["paper"].arxiv == arxiv
    assert says in told["idea"] and not (says_not and says_not in told["idea"])
    assert re.fullmatch(r"[A-Z].*\.", told["idea"]) and "  " not in told["idea"]


@pytest.mark.parametrize(
    "settings",
    [variant.changes for variant in VARIANTS.values() if variant.method == "directpred"]
    + [{"use_ema": False}, {"freq": 2, "rule": "directcopy"}],
    ids=str,
)
def test_a_predictor_is_computed_as_the_card_says(settings: dict):
    torch.manual_seed(0)
    idea = described("directpred", **settings)["idea"]
    model = built("directpred", **settings)
    assert ("instead of being learned" in idea) == (not model.predictor.weight.requires_grad)
    before = model.predictor.weight.detach().clone()
    model.train()(torch.randn(4, 2, 3, 32, 32))
    model.after_optimizer_step(1, 10)
    assert ("trained by gradients:" in idea) == torch.equal(model.predictor.weight, before)
    assert ("Without the moving average" in idea) == (not hasattr(model, "target_encoder"))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("byol", {}),
        ("byol", {"use_ema": False}),
        *((name, {"ema_momentum": momentum}) for name in ("byol", "moco") for momentum in (0.0, 0.9, 1.0)),
    ],
    ids=str,
)
def test_a_moving_average_is_one(name: str, settings: dict):
    settings = {"ema_schedule": "constant", **settings} if name == "byol" else settings
    torch.manual_seed(0)
    model = built(name, **settings)
    if not hasattr(model, "target_encoder"):
        moves = False
    else:
        start = [weight.detach().clone() for weight in model.target_encoder.parameters()]
        with torch.no_grad():
            for weight in model.encoder.parameters():
                weight.add_(1.0)
        model.after_optimizer_step(1, 10)
        online, target = list(model.encoder.parameters()), list(model.target_encoder.parameters())
        stays = all(torch.equal(one, other) for one, other in zip(start, target, strict=True))
        moves = not stays and not all(torch.equal(one, other) for one, other in zip(online, target, strict=True))
    assert ("moving average" in described(name, **settings)["idea"]) == moves


def test_an_oracle_that_masks_is_a_look_at_labels():
    for oracle, looks in (("off", False), ("measure", False), ("mask", True)):
        told = described("mochi", class_oracle=oracle)
        assert told["uses_labels"] == looks == ("label" in told["idea"])
        torch.manual_seed(0)
        model = built("mochi", class_oracle=oracle, **NO_MIXTURES)
        model.eval()
        views, losses = torch.randn(4, 2, 3, 32, 32), []
        for labels in (torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 0, 0])):
            if "queue_labels" in dict(model.named_buffers()):
                model.queue_labels.zero_()
            losses.append(model(views, labels=labels).loss)
        assert (losses[0] != losses[1]).item() == looks


def test_a_class_made_of_a_method_speaks_for_itself():
    class Mine(METHODS["directpred"]):
        """Something else."""

    told = describe_method(Mine, {"freq": 0})
    assert (told["method"], told["idea"]) == ("Mine", "Something else.")
    assert describe_method(None, {"freq": 0}, "gone")["method"] == "gone"
