import dataclasses
import math

import pytest
import timm
import torch
from plain import Node, State, l2_normalize, log_softmax, move_target, sequential
from steps import Batch, compare_steps, encode, make_tiny
from torch import nn
from transformers import AutoModelForPreTraining

from hf_ssl.errors import UserError
from hf_ssl.hub.export import export_encoder
from hf_ssl.methods.moco_v3 import MoCoV3Config, MoCoV3ForPreTraining

VIT = {"architecture": "test_vit", "model_args": {"img_size": 32, "patch_size": 8}}
FIXED = {**VIT, "freeze_patch_embed": True, "sincos_position_embedding": True}


def make_model(seed: int = 0, **settings) -> MoCoV3ForPreTraining:
    small = {"architecture": "test_resnet", "image_size": 32, "projector_hidden_dim": 32, "predictor_hidden_dim": 16}
    torch.manual_seed(seed)
    return MoCoV3ForPreTraining(MoCoV3Config(**{**small, "projection_dim": 8, **settings}))


def make_views(batch_size: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def unit_rows(tensor: torch.Tensor):
    return [row / math.sqrt(sum(row**2)) for row in tensor.detach().double().numpy()]


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_loss_is_that_of_the_paper(tau):
    model = make_model(temperature=tau)
    with torch.no_grad():  # a target that differs from the online network
        for parameter in model.target_encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    views = make_views().unbind(dim=1)
    queries = [unit_rows(model.predictor(model.projector(model.encoder(view)))) for view in views]
    keys = [unit_rows(model.target_projector(model.target_encoder(view))) for view in views]
    expected, hits = 0.0, 0
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        for i in range(6):
            scores = [math.exp(sum(query[i] * key[j]) / tau) for j in range(6)]
            expected -= 2 * tau * math.log(scores[i] / sum(scores)) / 6
            hits += scores[i] == max(scores)
    output = model(make_views())
    assert output.loss.item() == pytest.approx(expected, rel=1e-3)
    assert output.metrics["contrast_accuracy"].item() == pytest.approx(hits / 12)


def test_start_value_is_the_logarithm_of_the_batch():
    loss = make_model(temperature=1.0, projection_dim=64)(make_views(32)).loss.item()
    assert loss == pytest.approx(4 * math.log(32), rel=0.05)


def test_one_image_has_no_negatives():
    model = make_model(temperature=0.2).eval()
    assert model(make_views(1)).loss.item() == 0.0


def test_heads_are_those_of_the_official_code():
    def describe(head: nn.Sequential) -> list[str]:
        words = []
        for layer in head:
            if isinstance(layer, nn.Linear):
                assert layer.bias is None
                words.append(f"{layer.in_features}-{layer.out_features}")
            elif isinstance(layer, nn.BatchNorm1d):
                words.append("norm" if layer.affine else "plain norm")
            else:
                words.append("relu")
        return words

    def heads(recipe: str) -> tuple[list[str], list[str]]:
        own = {field.name for field in dataclasses.fields(MoCoV3Config)}
        recipe_settings = MoCoV3ForPreTraining.recipes[recipe]
        config = MoCoV3Config(**{name: value for name, value in recipe_settings.items() if name in own})
        with torch.device("meta"):
            model = MoCoV3ForPreTraining(config)
        return describe(model.projector), describe(model.predictor)

    hidden = ["4096-4096", "norm", "relu"]
    predictor = ["256-4096", "norm", "relu", "4096-256"]
    projector, vit_projector = (["2048-4096", "norm", "relu"], ["384-4096", "norm", "relu"])
    output = ["4096-256", "plain norm"]
    assert heads("paper-imagenet") == (projector + output, predictor)
    assert heads("paper-imagenet-vit") == (vit_projector + hidden + output, [*predictor, "plain norm"])


def test_every_key_is_made_by_the_weights_of_the_official_order():
    """Official: queries, move the target with the momentum of this step's fraction, keys, optimizer step."""
    model = make_model(ema_momentum=0.6)
    optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.1)
    official = [parameter.detach().double().clone() for parameter in model.target_encoder.parameters()]
    num_steps = 5

    def compare() -> None:
        for expected, used in zip(official, model.target_encoder.parameters(), strict=True):
            torch.testing.assert_close(used.detach().double(), expected, atol=1e-6, rtol=1e-5)

    for step in range(num_steps):
        momentum = 1 - 0.5 * (1 + math.cos(math.pi * step / num_steps)) * (1 - 0.6)
        official = [
            momentum * key + (1 - momentum) * query.detach().double()
            for key, query in zip(official, model.encoder.parameters(), strict=True)
        ]
        compare()
        optimizer.zero_grad()
        model(make_views(seed=step)).loss.backward()
        optimizer.step()
        model.after_optimizer_step(step + 1, num_steps)
    compare()  # the update that the official code does not have keeps all


def test_a_constant_momentum_stays():
    model = make_model(ema_momentum=0.6, ema_schedule="constant")
    before = model.target_projector[0].weight.clone()
    with torch.no_grad():
        model.projector[0].weight.add_(1.0)
    model.after_optimizer_step(9, 10)
    torch.testing.assert_close(model.target_projector[0].weight - before, torch.full_like(before, 0.4))


def test_the_patch_projection_is_drawn_as_in_the_official_code_and_stays():
    width, inputs = 64, 3 * 8 * 8
    model, free = make_model(**FIXED), make_model(**VIT)
    bound = math.sqrt(6 / (inputs + width))
    projection = model.encoder.patch_embed.proj
    assert projection.weight.shape == (64, 3, 8, 8)
    assert 0.99 * bound < projection.weight.abs().max() <= bound
    assert projection.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not projection.bias.any() and free.encoder.patch_embed.proj.bias.any()
    assert {name for name, p in model.encoder.named_parameters() if not p.requires_grad} == {
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "pos_embed",
    }
    assert all(parameter.requires_grad for parameter in free.encoder.parameters())
    assert model.encoder.cls_token.std() < 2e-6
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=0.01)
    for step in (1, 2):
        optimizer.zero_grad()
        model(make_views(seed=step)).loss.backward()
        optimizer.step()
        model.after_optimizer_step(step, 10)
    for name, tensor in model.state_dict().items():
        stays = name.removeprefix("target_").startswith(("encoder.patch_embed.", "encoder.pos_embed"))
        assert torch.equal(tensor, before[name]) == stays, name


@pytest.mark.parametrize(
    ("model_args", "grid", "num_prefix"),
    [
        ({"img_size": 32, "patch_size": 8}, (4, 4), 1),
        ({"img_size": [16, 40], "patch_size": 8}, (2, 5), 1),
        ({"img_size": 32, "patch_size": 8, "class_token": False, "global_pool": "avg"}, (4, 4), 0),
    ],
)
def test_position_embedding_is_sines_and_cosines_of_row_and_column(model_args, grid, num_prefix):
    model = make_model(architecture="test_vit", model_args=model_args, sincos_position_embedding=True)
    embedding = model.encoder.pos_embed.detach()
    assert embedding.shape == (1, num_prefix + grid[0] * grid[1], 64)
    assert not embedding[:, :num_prefix].any()
    for row in range(grid[0]):
        for column in range(grid[1]):
            expected = [
                function(place / 10000 ** (i / 16))
                for place in (row, column)
                for function in (math.sin, math.cos)
                for i in range(16)
            ]
            actual = embedding[0, num_prefix + row * grid[1] + column]
            torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_a_vit_is_saved_loaded_and_exported_with_what_is_fixed(tmp_path):
    model = make_model(**FIXED)
    model.save_pretrained(tmp_path / "method")
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "method")
    assert list(loaded.trainable_parameters()) == list(model.trainable_parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    export_encoder(model.encoder, model.config, tmp_path / "encoder")
    plain = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    view = make_views()[:, 0]
    torch.testing.assert_close(plain(view), model.eval().encode(view))
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_the_vit_of_the_paper_can_be_built():
    recipe = MoCoV3ForPreTraining.recipes["paper-imagenet-vit"]
    with torch.device("meta"):
        encoder = timm.create_model(recipe["architecture"], num_classes=0, **recipe["model_args"])
    assert encoder.blocks[0].attn.num_heads == 12 and encoder.num_features == 384
    assert recipe["freeze_patch_embed"] and recipe["sincos_position_embedding"]


@pytest.mark.parametrize(
    ("setting", "architecture", "message"),
    [
        ("freeze_patch_embed", "test_resnet", "a patch embedding, such as vit_small_patch16_224, got test_resnet"),
        ("freeze_patch_embed", "test_convnext", "a patch embedding, .* got test_convnext"),
        ("sincos_position_embedding", "test_resnet", "a learned position embedding, such as vit_.*, got test_resnet"),
        ("sincos_position_embedding", "test_vit_relpos", "a learned position embedding, .*, got test_vit_relpos"),
    ],
)
def test_encoders_that_lack_what_is_fixed_are_refused(setting, architecture, message):
    with pytest.raises(ValueError, match=f"`{setting}` needs an encoder with {message}"):
        make_model(architecture=architecture, **{setting: True})


def test_widths_that_four_does_not_divide_are_refused():
    model_args = {"img_size": 32, "patch_size": 8, "embed_dim": 66, "num_heads": 2}
    with pytest.raises(ValueError, match="needs a width that is a multiple of 4, and test_vit has 66. Choose another"):
        make_model(architecture="test_vit", model_args=model_args, sincos_position_embedding=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projector_layers": 0}, "`projector_layers` must be at least 1, got 0"),
        ({"predictor_layers": 0}, "`predictor_layers` must be at least 1, got 0"),
        ({"projector_hidden_dim": 0}, "`projector_hidden_dim` must be at least 1, got 0"),
        ({"predictor_hidden_dim": 0}, "`predictor_hidden_dim` must be at least 1, got 0"),
        ({"projection_dim": 0}, "`projection_dim` must be at least 1, got 0"),
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"temperature": float("nan")}, "`temperature` must be positive, got nan"),
        ({"ema_momentum": 1.1}, r"`ema_momentum` must be in \[0, 1\], got 1.1"),
        ({"ema_schedule": "linear"}, "ema_schedule"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        MoCoV3Config(**settings)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize(("layers", "output_norm", "tau"), [(2, False, 1.0), (3, True, 0.2)])
def test_ten_steps_are_those_of_the_equations(layers, output_norm, tau, schedule):
    settings = {"projector_hidden_dim": 16, "projection_dim": 5, "predictor_hidden_dim": 12, "temperature": tau}
    settings |= {"projector_layers": layers, "predictor_output_norm": output_norm}
    model = make_tiny("moco_v3", ema_momentum=0.8, ema_schedule=schedule, **settings)
    projector = "matrix norm relu " * (layers - 1) + "matrix plain_norm"
    predictor = "matrix norm relu matrix" + " plain_norm" * output_norm

    def project(state: State, branch: str, view: Node) -> Node:
        return sequential(state, f"{branch}projector", encode(state, f"{branch}encoder", view), projector)

    def forward(state: State, batch: Batch) -> Node:
        queries = [sequential(state, "predictor", project(state, "", view), predictor) for view in batch.views]
        keys = [l2_normalize(project(state, "target_", view)).value for view in batch.views]
        loss = Node(0)
        for i, j in ((0, 1), (1, 0)):
            chosen = log_softmax(l2_normalize(queries[i]) @ keys[j].T / tau)[range(8), range(8)]
            loss = loss - 2 * tau * chosen.mean()
        return loss

    def after(state: State, batch: Batch) -> None:
        rising = 1 - (1 - 0.8) * (1 + math.cos(math.pi * batch.step / batch.num_steps)) / 2
        for part in ("encoder", "projector"):
            move_target(state, f"target_{part}", part, rising if schedule == "cosine" else 0.8)

    compare_steps(model, forward, after)
