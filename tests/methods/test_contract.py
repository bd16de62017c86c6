"""What every method promises to the training loop, the exporter and the command line."""

import copy
import dataclasses
import inspect
import math
import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForPreTraining, PreTrainedConfig

from hf_ssl.data.settings import DataSettings
from hf_ssl.data.views.recipes import VIEW_RECIPES
from hf_ssl.errors import UserError
from hf_ssl.methods import METHODS, register_method
from hf_ssl.methods.base import SSLConfig, SSLOutput, SSLPreTrainedModel, check_method_class
from hf_ssl.modules.encoder import build_encoder
from hf_ssl.training.arguments import TrainingSettings

# Small sizes for the fields that a method has; a method with other fields runs at its own defaults. Queue and bank are
# so large that twenty steps on the same images do not fill them with their own keys.
SMALL = {
    "projector_hidden_dim": 32,
    "predictor_hidden_dim": 16,
    "projection_dim": 24,
    "queue_size": 20_000,
    "bn_splits": 2,
    "bank_size": 20_000,
    "num_negatives": 256,
    "num_clusters": 4,
    "subvector_dim": 24,
    "num_hard_negatives": 32,
    "num_mixed_negatives": 16,
    "num_mixed_queries": 8,
    "start_step": 1,
}
# Further settings under which a method must keep the contract.
VARIANTS = {
    "end_to_end": [
        {"symmetric": False, "join_views": False, "projector_layers": 1},
        {"symmetric": False, "join_views": False, "separate_keys": True, "projector_norm": "none"},
        {"projector_layers": 3, "projector_hidden_dim": None, "temperature": 0.5},
    ],
    "byol": [
        {"predictor": "linear", "symmetrize": True, "use_ema": False},
        {"predictor": "none", "ema_schedule": "constant", "target_init": "independent", "projector_layers": 1},
        {"projector_layers": 3, "predictor_layers": 3},
    ],
    "simsiam": [
        {"projector_layers": 2, "predictor_layers": 1, "constant_predictor_lr": False, "stop_gradient": False}
    ],
    "moco": [{"projector": "linear", "temperature": 0.07, "bn_splits": 1}, {"symmetric": True}],
    "mochi": [
        {"start_step": 0, "class_oracle": "mask", "symmetric": True},
        {"num_mixed_negatives": 0, "num_hard_negatives": 1, "bn_splits": 1, "class_oracle": "measure"},
    ],
    "memory_bank": [
        {"objective": "sampled", "symmetric": True},
        {"objective": "full", "temperature": 0.1, "bank_momentum": 0.0},
    ],
    "moco_v3": [
        {"projector_layers": 3, "predictor_output_norm": True, "temperature": 0.2, "ema_schedule": "constant"},
        {
            "architecture": "test_vit",
            "model_args": {"img_size": 32, "patch_size": 8},
            "freeze_patch_embed": True,
            "sincos_position_embedding": True,
        },
    ],
    "contrastive_clustering": [{"entropy_weight": 0.0, "cluster_temperature": 0.5}],
    "directclr": [{"subvector_dim": 96, "temperature": 0.5}],
    "directpred": [
        {"freq": 5, "rho": None, "projector_affine": False, "projector_bias": True},
        {"rule": "directcopy", "use_ema": False, "remove_mean": True},
        {"freq": 0, "symmetric": False},
    ],
}
CASES = [
    pytest.param(name, settings, id="-".join([name, *(f"{key}={value}" for key, value in settings.items())]))
    for name in METHODS
    for settings in [{}, *VARIANTS.get(name, [])]
]
every_method = pytest.mark.parametrize("name", METHODS)
every_case = pytest.mark.parametrize(("name", "settings"), CASES)


def make_config(name: str, settings: dict | None = None) -> SSLConfig:
    config_class = METHODS[name].config_class
    own = {field.name for field in dataclasses.fields(config_class)}
    small = {key: value for key, value in SMALL.items() if key in own}
    return config_class(**{"architecture": "test_resnet", "image_size": 32, **small, **(settings or {})})


def make_model(name: str, settings: dict | None = None, seed: int = 0) -> SSLPreTrainedModel:
    torch.manual_seed(seed)
    return METHODS[name](make_config(name, settings))


def make_views(batch_size: int = 8, seed: int = 1, image_size: int = 32) -> Tensor:
    """Two noisy versions of each of some random pictures."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, image_size, image_size)
    pictures = torch.randn(batch_size, 1, *shape, generator=generator)
    return pictures + 0.5 * torch.randn(batch_size, 2, *shape, generator=generator)


def make_batch(batch_size: int = 8, seed: int = 1) -> dict[str, Tensor]:
    """All that the training loop can give: the views, the number of each image, and its label."""
    numbers = torch.arange(batch_size)
    return {"pixel_values": make_views(batch_size, seed), "indices": numbers, "labels": numbers % 3}


def state_of(tensors) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors}


def changed(before: dict[str, Tensor], after) -> set[str]:
    return {name for name, tensor in after if not torch.equal(before[name], tensor)}


def method_buffers(model: SSLPreTrainedModel) -> dict[str, Tensor]:
    """Buffers of the method itself, not the running statistics of its BatchNorm layers."""
    return dict(model.named_buffers(recurse=False))


def train_step(model: SSLPreTrainedModel, optimizer: torch.optim.Optimizer, batch: dict, step: int) -> float:
    loss = model(**batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.after_optimizer_step(step, 20)
    return loss.item()


def make_optimizer(model: SSLPreTrainedModel, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.trainable_parameters().values(), lr=lr, momentum=0.9)


@every_case
def test_output_has_the_promised_shapes(name, settings):
    model = make_model(name, settings)
    output = model(**make_batch())
    assert output.loss.shape == () and output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert output.representations.shape == (8, 2, model.hidden_size)
    assert output.projections.ndim == 3 and output.projections.shape[:2] == (8, 2)
    for tensor in (output.representations, output.projections, *output.metrics.values()):
        assert tensor.isfinite().all() and not tensor.requires_grad
    assert all(metric.shape == () for metric in output.metrics.values())


@every_case
def test_representations_are_those_of_the_encoder_view_by_view(name, settings):
    model = make_model(name, settings).eval()
    batch = make_batch()
    views = batch["pixel_values"]
    output = model(**batch)
    for view in range(2):
        torch.testing.assert_close(output.representations[:, view], model.encode(views[:, view]).detach())


@every_case
def test_gradient_reaches_every_trainable_and_no_frozen_parameter(name, settings):
    model = make_model(name, settings)
    model(**make_batch()).loss.backward()
    modules = tuple(f"{module}." for module in model.frozen_modules)
    assert model.trainable_parameters()
    for parameter_name, parameter in model.named_parameters():
        frozen = parameter_name.startswith(modules) or parameter_name in model.frozen_parameters
        assert parameter.requires_grad != frozen, parameter_name
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name


@every_case
def test_target_starts_equal_unless_told_otherwise(name, settings):
    model = make_model(name, settings)
    targets = [module for module in model.frozen_modules if module.startswith("target_")]
    assert bool(targets) == hasattr(model, "target_encoder")
    for target in targets:
        online = model.get_submodule(target.removeprefix("target_")).state_dict()
        different = changed(online, model.get_submodule(target).state_dict().items())
        assert bool(different) == ((settings or {}).get("target_init") == "independent")


@every_case
def test_encoder_keeps_the_initialisation_of_timm(name, settings):
    model = make_model(name, settings)
    torch.manual_seed(0)
    expected = build_encoder(model.config.architecture, model.config.model_args).state_dict()
    assert list(model.encoder.state_dict()) == list(expected)
    # Only what a method keeps fixed may it set itself.
    fixed = {name for name, parameter in model.encoder.named_parameters() if not parameter.requires_grad}
    assert changed(expected, model.encoder.state_dict().items()) == fixed


@every_case
def test_forward_writes_no_parameter_and_the_hook_no_buffer(name, settings):
    model = make_model(name, settings)
    optimizer = make_optimizer(model)
    parameters = state_of(model.named_parameters())
    model(**make_batch()).loss.backward()
    assert not changed(parameters, model.named_parameters())
    optimizer.step()
    buffers, parameters = state_of(model.named_buffers()), state_of(model.named_parameters())
    model.after_optimizer_step(1, 10)
    assert not changed(buffers, model.named_buffers())
    # The hook moves what gradients do not, and may correct a predictor.
    allowed = (*(f"{module}." for module in model.frozen_modules), "predictor.")
    assert all(parameter.startswith(allowed) for parameter in changed(parameters, model.named_parameters()))


@every_case
def test_the_hook_moves_every_target(name, settings):
    model = make_model(name, settings)
    train_step(model, make_optimizer(model), make_batch(), 1)
    for target in (module for module in model.frozen_modules if module.startswith("target_")):
        before = state_of(model.get_submodule(target).named_parameters())
        with torch.no_grad():
            for parameter in model.get_submodule(target.removeprefix("target_")).parameters():
                parameter.add_(1.0)
        model.after_optimizer_step(2, 10)
        assert changed(before, model.get_submodule(target).named_parameters()) == set(before)


@every_case
def test_evaluation_mode_writes_nothing(name, settings):
    model = make_model(name, settings).eval()
    state = state_of(model.state_dict().items())
    output = model(**make_batch())
    assert output.loss.isfinite() and not changed(state, model.state_dict().items())
    assert torch.equal(output.loss, model(**make_batch()).loss)


@every_case
def test_saving_and_loading_keeps_every_bit_and_the_frozen_set(name, settings, tmp_path):
    model = make_model(name, settings)
    optimizer = make_optimizer(model)
    for step in (1, 2):
        train_step(model, optimizer, make_batch(seed=step), step)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert type(loaded) is METHODS[name]
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert not changed(model.state_dict(), loaded.state_dict().items())
    assert list(loaded.trainable_parameters()) == list(model.trainable_parameters())
    assert loaded.frozen_modules == model.frozen_modules
    assert loaded.frozen_parameters == model.frozen_parameters
    assert loaded.constant_lr_modules == model.constant_lr_modules
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    # Weights in another place of the memory may be added up in another order: equal but for rounding.
    torch.testing.assert_close(loaded(**make_batch()).loss, model.eval()(**make_batch()).loss)
    losses = []
    for each in (model.train(), loaded.train()):
        torch.manual_seed(5)
        losses.append(train_step(each, make_optimizer(each), make_batch(seed=9), 3))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@every_case
def test_encoder_is_a_plain_timm_model(name, settings):
    model = make_model(name, settings)
    train_step(model, make_optimizer(model), make_batch(), 1)
    plain = timm.create_model(model.config.architecture, num_classes=0, **(model.config.model_args or {}))
    plain.load_state_dict(model.encoder.state_dict())
    view = make_views()[:, 0]
    assert torch.equal(plain.eval()(view), model.eval().encode(view))


@every_case
def test_same_seed_same_run(name, settings):
    def run() -> tuple[list[float], dict[str, Tensor]]:
        model = make_model(name, settings, seed=3)
        optimizer = make_optimizer(model)
        return [train_step(model, optimizer, make_batch(seed=step), step) for step in (1, 2, 3)], model.state_dict()

    (losses, state), (losses_again, state_again) = run(), run()
    assert losses == losses_again and not changed(state, state_again.items())


@every_case
def test_twenty_steps_on_eight_images_lower_the_loss(name, settings):
    model = make_model(name, settings)
    optimizer = make_optimizer(model, lr=0.02)
    batch = make_batch()
    losses = [train_step(model, optimizer, batch, step) for step in range(1, 21)]
    assert sum(losses[-3:]) / 3 < losses[0]


@every_case
def test_a_model_cast_to_another_precision_computes_the_same_loss(name, settings):
    exact_model, batch = make_model(name, settings), make_batch()
    torch.manual_seed(0)
    exact = copy.deepcopy(exact_model)(**batch).loss
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, 0.1)):
        model = copy.deepcopy(exact_model).to(dtype)
        torch.manual_seed(0)
        loss = model(**{**batch, "pixel_values": batch["pixel_values"].to(dtype)}).loss
        loss.backward()
        torch.testing.assert_close(loss, exact, atol=tolerance, rtol=0.2 * tolerance)
        assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {dtype}
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
        # What the first pass wrote is read by the next.
        assert model.eval()(**{**batch, "pixel_values": batch["pixel_values"].to(dtype)}).loss.isfinite()


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_gives_finite_float32_losses_and_state(name, settings, dtype):
    model = make_model(name, settings)
    kinds = {key: tensor.dtype for key, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    exact = copy.deepcopy(model)(**make_batch()).loss
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=dtype):
        output = model(**make_batch())
    output.loss.backward()
    model.after_optimizer_step(1, 10)
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, exact, atol=0.1, rtol=0.02)
    assert {key: tensor.dtype for key, tensor in model.state_dict().items()} == kinds
    for key, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), key
    for key, parameter in model.trainable_parameters().items():
        assert parameter.grad.isfinite().all(), key


@every_case
def test_micro_batches_can_wait_for_one_backward_pass(name, settings):
    """Two forward passes before the backward pass: no buffer that is written spoils a saved tensor."""
    model = make_model(name, settings)
    twin = copy.deepcopy(model)
    torch.manual_seed(0)
    (model(**make_batch(seed=1)).loss + model(**make_batch(seed=2)).loss).backward()
    torch.manual_seed(0)
    for seed in (1, 2):
        twin(**make_batch(seed=seed)).loss.backward()
    for (key, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3, msg=key)
    model.after_optimizer_step(1, 10)


@every_case
def test_activation_checkpointing_changes_no_gradient(name, settings):
    model = make_model(name, settings)
    twin = copy.deepcopy(model)
    twin.encoder.set_grad_checkpointing(True)
    torch.manual_seed(0)
    model(**make_batch()).loss.backward()
    torch.manual_seed(0)
    twin(**make_batch()).loss.backward()
    for (key, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, msg=key)
    buffers = method_buffers(twin)
    assert not changed(method_buffers(model), buffers.items())


@every_case
def test_odd_batches_work(name, settings):
    model = make_model(name, settings)
    optimizer = make_optimizer(model)
    for step, batch_size in enumerate((7, 5, 9), start=1):
        assert train_step(model, optimizer, make_batch(batch_size), step) == pytest.approx(0, abs=100)


@every_method
@pytest.mark.parametrize(
    ("architecture", "model_args"), [("test_vit", {"img_size": 32, "patch_size": 8}), ("test_convnext", None)]
)
def test_encoders_without_batch_norm_work(name, architecture, model_args):
    model = make_model(name, {"architecture": architecture, "model_args": model_args})
    loss = train_step(model, make_optimizer(model), make_batch(), 1)
    assert loss == pytest.approx(0, abs=100)


@every_method
def test_models_can_be_built_without_memory(name):
    config = make_config(name)
    with torch.device("meta"):
        model = METHODS[name](config)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


@every_method
@pytest.mark.parametrize("shape", [(8, 3, 32, 32), (8, 3, 3, 32, 32)])
def test_wrong_number_of_views_is_refused(name, shape):
    message = rf"`pixel_values` must have shape \(batch, 2, channels, height, width\), got {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        make_model(name)(torch.zeros(shape))


@every_method
def test_a_misspelt_setting_is_named(name):
    with pytest.raises(ValueError, match=r"has no setting `image_sise`\. Did you mean `image_size`\?"):
        METHODS[name].config_class(image_sise=32)


@every_method
def test_a_setting_of_the_wrong_type_is_refused(name):
    with pytest.raises(UserError, match="image_size"):
        METHODS[name].config_class(image_size="large")


@every_method
def test_auto_classes_know_the_method(name):
    method = METHODS[name]
    assert method.config_class.model_type == f"hf_ssl_{name}"
    assert type(AutoConfig.for_model(f"hf_ssl_{name}")) is method.config_class


@every_method
def test_documentation_describes_the_method_and_every_setting(name):
    method = METHODS[name]
    own = set(method.config_class.__annotations__) - {"model_type"}
    section = inspect.cleandoc(method.config_class.__doc__).split("Args:\n")[1]
    described = re.findall(r"^    (\w+): ", section, re.MULTILINE)
    assert sorted(described) == sorted(own)
    assert "Relations: " in method.__doc__ and "Recipes: " in method.__doc__
    if method.paper is not None:
        assert method.paper.year >= 2018 and re.fullmatch(r"\d{4}\.\d{5}", method.paper.arxiv)
        assert method.paper.title in method.paper.bibtex
    assert method.batch_norm in ("sync", "local")


@every_method
def test_recipes_are_settings_that_exist(name):
    method = METHODS[name]
    config_fields = {field.name for field in dataclasses.fields(method.config_class)}
    data_fields = {field.name for field in dataclasses.fields(DataSettings)}
    training_fields = {field.name for field in dataclasses.fields(TrainingSettings)}
    assert ("paper-imagenet" in method.recipes) == (method.paper is not None)
    assert method.view_recipe in VIEW_RECIPES
    assert config_fields.isdisjoint(data_fields | training_fields) and data_fields.isdisjoint(training_fields)
    for recipe in method.recipes.values():
        assert set(recipe) <= config_fields | data_fields | training_fields
        config = method.config_class(**{key: value for key, value in recipe.items() if key in config_fields})
        assert timm.is_model(config.architecture)
        DataSettings(**{key: value for key, value in recipe.items() if key in data_fields})
        TrainingSettings(output_dir="x", **{key: value for key, value in recipe.items() if key in training_fields})
        assert recipe["view_recipe"] in VIEW_RECIPES


@every_method
def test_the_default_config_is_the_recipe_of_the_paper(name):
    method = METHODS[name]
    config = method.config_class()
    recipe = method.recipes.get("paper-imagenet", {})
    same = {key: getattr(config, key) for key in recipe if hasattr(config, key)}
    expected = {key: recipe[key] for key in same}
    ema = {"ema_momentum", "ema_schedule"} if name == "directpred" else set()
    assert {key for key in same if same[key] != expected[key]} <= ema


class OwnConfig(SSLConfig):
    model_type = "hf_ssl_own"


class Own(SSLPreTrainedModel):
    """A method of a user's own: neither paper nor recipes."""

    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.post_init()

    def forward(self, pixel_values, indices=None, labels=None):
        return SSLOutput(loss=self.encode(pixel_values[:, 0]).mean())


@every_method
def test_the_methods_here_pass_the_check_of_their_class(name):
    check_method_class(METHODS[name])


def test_a_method_of_ones_own_needs_neither_paper_nor_recipes():
    check_method_class(Own)
    assert Own.paper is None and Own.recipes == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_class": SSLConfig}, "its config `SSLConfig` must have a `model_type` of its own"),
        ({"config_class": type("Nameless", (OwnConfig,), {})}, "its config `Nameless` must have a `model_type`"),
        ({"config_class": PreTrainedConfig}, "must be a subclass of `SSLConfig`, got `PreTrainedConfig`"),
        ({"config_class": None}, "must be a subclass of `SSLConfig`, got `None`"),
        ({"forward": SSLPreTrainedModel.forward}, "has no `forward`, which computes the loss"),
        ({"forward": lambda self, pixel_values, labels=None: None}, "and lacks `indices`"),
        ({"forward": lambda self, x: None}, "and lacks `pixel_values`, `indices`, `labels`"),
        ({"recipes": ["mine"]}, "`recipes` must be a dictionary of dictionaries"),
        ({"recipes": {"mine": 3}}, "`recipes` must be a dictionary of dictionaries"),
        ({"paper": "A title"}, "`paper` must be a `Paper` or None, got 'A title'"),
        ({"batch_norm": "global"}, "`batch_norm` must be `sync` or `local`, got `global`"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused_before_training(changes, message):
    broken = type("Broken", (Own,), changes)
    with pytest.raises(UserError, match=r"^The method `Broken` cannot be trained: [^\n]+\.$") as error:
        check_method_class(broken)
    assert message in str(error.value)


def test_what_is_no_method_is_refused():
    for other in (torch.nn.Linear, "byol", Own(OwnConfig(architecture="test_resnet", image_size=32))):
        with pytest.raises(UserError, match="must be a subclass of `SSLPreTrainedModel`, got "):
            check_method_class(other)


def test_a_name_has_to_be_that_of_the_config():
    with pytest.raises(UserError, match=r"`OwnConfig.model_type` must be `hf_ssl_mine` for the method `mine`"):
        register_method("mine", Own)
    assert "mine" not in METHODS


@pytest.mark.parametrize("attribute", ["frozen_modules", "frozen_parameters", "constant_lr_modules"])
def test_a_module_that_does_not_exist_is_found_when_the_model_is_made(attribute):
    broken = type("Broken", (Own,), {attribute: ("encoder.conv11.weight",)})
    message = rf"`{attribute}` of `Broken` names `encoder.conv11.weight`, which the model does not have"
    with pytest.raises(UserError, match=message):
        broken(OwnConfig(architecture="test_resnet", image_size=32))


def test_the_base_class_is_no_method():
    with pytest.raises(TypeError, match="abstract"):
        SSLPreTrainedModel(make_config("byol"))


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    make_model("byol", {"predictor": "none", "use_ema": False}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"The checkpoint lacks \d+ weights of `BYOLForPreTraining`, such as `"):
        METHODS["byol"].from_pretrained(tmp_path, config=make_config("byol"))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    make_model("byol", {"projection_dim": 7}).save_pretrained(tmp_path)
    expected = (
        r"other shapes than the config for \d+ weights of `BYOLForPreTraining`, such as `[\w.]+`: \(.*7.*\) instead"
    )
    with pytest.raises(ValueError, match=expected):
        METHODS["byol"].from_pretrained(tmp_path, config=make_config("byol"))


@pytest.mark.parametrize("method", METHODS)
def test_settings_that_are_no_finite_number_are_refused(method: str):
    kind = METHODS[method].config_class
    defaults = {field.name: getattr(kind(), field.name) for field in dataclasses.fields(kind)}
    numbers = {name: value for name, value in defaults.items() if isinstance(value, float)}
    numbers |= {"image_std": (1.0, 1.0, 1.0)}
    for name, value in numbers.items():
        for wrong in (math.inf, math.nan):
            given: Any = wrong if isinstance(value, float) else [*value[1:], wrong]
            with pytest.raises(UserError, match=f"{name}.* must be .*got .*{wrong}"):
                kind(**{name: given})
