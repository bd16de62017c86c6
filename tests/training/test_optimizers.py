"""LARS against loops in float64, the groups of parameters, and the learning rate of every step."""

import copy
import importlib.util
import io
import math

import pytest
import timm.optim
import torch
from torch import nn

from hf_ssl.errors import UserError
from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.optimizers import (
    LARS,
    build_optimizer,
    learning_rate_factor,
    parameter_groups,
    scaled_learning_rate,
    set_learning_rate,
)
from hf_ssl.training.timm_optimizers import known_optimizers


def settings(**values) -> TrainingSettings:
    return TrainingSettings(output_dir="runs/x", num_steps=10, **values)


def norm(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


def lars_by_hand(
    weight: list[float], gradients: list[list[float]], lr: float, momentum: float, decay: float, trust: float | None
) -> list[float]:
    """DeepMind's order of operations, one number at a time; trust None for parameters that are not adapted."""
    velocity = [0.0] * len(weight)
    for gradient in gradients:
        gradient = [g + decay * w for g, w in zip(gradient, weight, strict=True)]
        if trust is not None and norm(weight) > 0 and norm(gradient) > 0:
            ratio = trust * norm(weight) / norm(gradient)
            gradient = [ratio * g for g in gradient]
        velocity = [momentum * v + g for v, g in zip(velocity, gradient, strict=True)]
        weight = [w - lr * v for w, v in zip(weight, velocity, strict=True)]
    return weight


@pytest.mark.parametrize("decay", [0.05, 0.0])
@pytest.mark.parametrize("start", [1.0, 0.0])
def test_lars_follows_its_formula(start: float, decay: float):
    kernel = nn.Parameter(torch.randn(3, 4, dtype=torch.float64) * start)
    bias = nn.Parameter(torch.randn(4, dtype=torch.float64))
    gradients = [(torch.randn(3, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)) for _ in range(4)]
    gradients[2] = (torch.zeros(3, 4, dtype=torch.float64), gradients[2][1])
    expected_kernel = lars_by_hand(
        kernel.flatten().tolist(), [g.flatten().tolist() for g, _ in gradients], 0.3, 0.8, decay, 0.01
    )
    expected_bias = lars_by_hand(bias.tolist(), [g.tolist() for _, g in gradients], 0.3, 0.8, 0.0, None)

    optimizer = LARS(
        [{"params": [kernel]}, {"params": [bias], "weight_decay": 0.0, "adapt": False}],
        lr=0.3,
        momentum=0.8,
        weight_decay=decay,
        trust_coefficient=0.01,
    )
    for kernel_gradient, bias_gradient in gradients:
        kernel.grad, bias.grad = kernel_gradient.clone(), bias_gradient.clone()
        optimizer.step()
        assert torch.equal(kernel.grad, kernel_gradient), "the gradient itself must stay as it is"

    torch.testing.assert_close(kernel.flatten(), torch.tensor(expected_kernel, dtype=torch.float64))
    torch.testing.assert_close(bias.detach(), torch.tensor(expected_bias, dtype=torch.float64))


def test_timm_lars_is_another_formula():
    # Should this fail, timm has changed and its optimizer may replace ours.
    weight, gradient = torch.randn(5, 5), torch.randn(5, 5)
    moved = []
    for make in (
        lambda p: LARS([p], lr=1.0, momentum=0.0, weight_decay=0.5, trust_coefficient=0.1),
        lambda p: timm.optim.Lars([p], lr=1.0, momentum=0.0, weight_decay=0.5, trust_coeff=0.1, eps=0.0),
    ):
        parameter = nn.Parameter(weight.clone())
        parameter.grad = gradient.clone()
        make(parameter).step()
        moved.append(parameter.detach())
    assert (moved[0] - moved[1]).abs().max() > 1e-3


def test_lars_continues_from_its_state():
    def run(parts: list[int]) -> torch.Tensor:
        torch.manual_seed(3)
        parameter = nn.Parameter(torch.randn(4, 4))
        state = None
        for steps in parts:
            optimizer = LARS([parameter], lr=0.1, weight_decay=0.1)
            if state is not None:
                optimizer.load_state_dict(state)
            for _ in range(steps):
                parameter.grad = torch.randn(4, 4)
                optimizer.step()
            state = optimizer.state_dict()
        return parameter.detach()

    assert torch.equal(run([6]), run([2, 4]))


@pytest.fixture(scope="module")
def byol():
    method = METHODS["byol"]
    return method(method.config_class(architecture="test_resnet", image_size=32))


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
def test_every_trainable_parameter_is_in_one_group(byol, optimizer: str):
    groups = build_optimizer(byol, settings(optimizer=optimizer), 0.1).param_groups
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in byol.trainable_parameters().values())
    frozen = {id(parameter) for parameter in byol.parameters() if not parameter.requires_grad}
    assert frozen and not frozen & set(ids)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_optimizers_do_what_plain_ones_do(name: str):
    method = METHODS["simsiam"]
    moved = []
    for precision in ("no", "fp16"):  # fused and not
        torch.manual_seed(0)
        model = method(method.config_class(architecture="test_resnet", image_size=32, projection_dim=8))
        model.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(model, settings(optimizer=name, mixed_precision=precision), 0.1)
        assert {group["fused"] for group in optimizer.param_groups} == {precision == "no"}
        for _ in range(3):
            for parameter in model.trainable_parameters().values():
                parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape))
            optimizer.step()
        moved.append([parameter.detach() for parameter in model.parameters()])
    for fused, plain in zip(*moved, strict=True):
        torch.testing.assert_close(fused, plain)


def test_vectors_and_predictor_have_their_own_rules(byol):
    chosen = settings(
        optimizer="lars",
        weight_decay=0.1,
        decay_norm_and_bias=False,
        predictor_lr_multiplier=10.0,
        predictor_weight_decay=0.02,
    )
    names = {id(parameter): name for name, parameter in byol.named_parameters()}
    seen = set()
    for group in parameter_groups(byol, chosen):
        for parameter in group["params"]:
            in_predictor, is_vector = names[id(parameter)].startswith("predictor."), parameter.ndim <= 1
            seen.add((in_predictor, is_vector))
            assert group["lr_multiplier"] == (10.0 if in_predictor else 1.0)
            assert group["weight_decay"] == (0.0 if is_vector else 0.02 if in_predictor else 0.1)
            assert group["adapt"] == (not is_vector)
    assert len(seen) == 4


def test_decay_reaches_vectors_by_default(byol):
    assert {group["weight_decay"] for group in parameter_groups(byol, settings(weight_decay=0.1))} == {0.1}


def test_constant_modules_ignore_the_schedule():
    method = METHODS["simsiam"]
    model = method(method.config_class(architecture="test_resnet", image_size=32))
    model.constant_lr_modules = ("predictor",)
    optimizer = build_optimizer(model, settings(), 0.5)
    set_learning_rate(optimizer, learning_rate=0.5, factor=0.1)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.trainable_parameters().items():
        assert rates[id(parameter)] == pytest.approx(0.5 if name.startswith("predictor.") else 0.05)


def test_learning_rate_scales_with_images_a_step():
    assert scaled_learning_rate(settings(base_learning_rate=0.03, batch_size=512)) == pytest.approx(0.06)
    unscaled = settings(base_learning_rate=0.03, learning_rate_scaling="none", batch_size=512)
    assert scaled_learning_rate(unscaled) == 0.03


def test_cosine_with_warmup():
    factors = [learning_rate_factor(step, 30, 10, "cosine") for step in range(30)]
    assert factors[:10] == pytest.approx([step / 10 for step in range(10)])
    assert factors[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 20)) for step in range(20)])


def test_cosine_by_epoch_is_that_of_moco_and_simsiam():
    # main_moco.py and main_simsiam.py: lr * 0.5 * (1 + cos(pi * epoch / epochs)), set before each epoch.
    epochs, steps = 5, 7
    factors = [learning_rate_factor(step, epochs * steps, 0, "cosine_by_epoch", steps) for step in range(35)]
    expected = [0.5 * (1 + math.cos(math.pi * epoch / epochs)) for epoch in range(epochs) for _ in range(steps)]
    assert factors == pytest.approx(expected)
    # After a warm-up that ends within an epoch, the rest of that epoch has the peak.
    warm = [learning_rate_factor(step, 35, 10, "cosine_by_epoch", steps) for step in range(35)]
    assert warm[:10] == pytest.approx([step / 10 for step in range(10)]) and warm[10:14] == [1.0] * 4
    assert warm[14:21] == pytest.approx([0.5 * (1 + math.cos(math.pi * 4 / 25))] * 7)


def test_step_and_constant_schedules():
    factors = [learning_rate_factor(step, 10, 0, "step") for step in range(10)]
    assert factors == pytest.approx([1.0] * 6 + [0.1] * 2 + [0.01] * 2)
    assert {learning_rate_factor(step, 10, 0, "constant") for step in range(10)} == {1.0}


def can_be_used(name: str) -> bool:
    packages = {"bnb": "bitsandbytes", "fused": "apex", "kron": "opt_einsum"}
    return all(importlib.util.find_spec(one) for start, one in packages.items() if name.startswith(start))


class Small(nn.Module):
    """Weights of all kinds of shapes, and what `parameter_groups` asks a method for."""

    constant_lr_modules = ("predictor",)

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
        self.predictor = nn.Linear(4, 6)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


@pytest.mark.parametrize("name", [name for name in known_optimizers() if can_be_used(name)])
def test_every_optimizer_trains_and_goes_on_exactly(name: str):
    """Steps at the learning rates of a warm-up, in both layouts of memory, and after a resume."""
    torch.manual_seed(0)
    model = Small().to(memory_format=torch.channels_last)
    given = settings(optimizer=name, base_learning_rate=1e-3)
    before = {key: value.clone() for key, value in model.named_parameters()}

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, factor: float, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            gradient = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=draw))
            parameter.grad = gradient if parameter.requires_grad else None
        torch.manual_seed(seed)  # some draw
        set_learning_rate(optimizer, 1e-3, factor)
        with torch.compiler.set_stance("force_eager"):  # Kron compiles itself, which takes a minute
            optimizer.step()
        optimizer.zero_grad()

    optimizer = build_optimizer(model, given, 1e-3)
    for number, factor in enumerate((0.0, 0.5, 1.0)):
        step(model, optimizer, factor, number)
    still = [key for key, value in model.named_parameters() if value.requires_grad and torch.equal(value, before[key])]
    assert not still
    assert all(bool(value.isfinite().all()) for value in model.parameters())

    again = copy.deepcopy(model)
    resumed = build_optimizer(again, given, 1e-3)
    with io.BytesIO() as file:
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=True))
    for module, one in ((model, optimizer), (again, resumed)):
        step(module, one, 0.7, 9)
    for (key, value), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(value, other), key


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lam", r"must be sgd, adamw, lars or a first-order optimizer of timm, got `lam`. Did you mean `lamb`\?"),
        ("SGD", "got `SGD`. Did you mean `sgd`"),
        ("xyzzy", "got `xyzzy`. Such as lamb, lion, muon or adan."),
        ("adahessian", "got `adahessian`"),  # of second order
        ("bnbadam8bit", "needs the package `bitsandbytes`. Install it, or give `adam`."),
        ("kron", "needs the package `opt_einsum`: without it a step takes many gigabytes. Install it, or choose"),
    ],
)
def test_other_names_are_refused(name: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # they may be installed
    with pytest.raises(UserError, match=message):
        settings(optimizer=name)
