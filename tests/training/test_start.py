"""Starting from what exists: every kind of reference comes to the same features, and what does not fit is refused."""

import hashlib
import json
import shutil

import pytest
import timm
import torch
from hub_server import Repo
from safetensors.torch import load_file, save_file
from timm.models import get_pretrained_cfg

from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import load_encoder
from hf_ssl.hub.export import export_encoder, export_run
from hf_ssl.methods import METHODS
from hf_ssl.modules.encoder import build_encoder
from hf_ssl.training.integrity import STATE
from hf_ssl.training.start import check_encoder, find_encoder, find_method
from hf_ssl.training.twins import TIMM_TWINS

RECORD = {
    "method": "simsiam",
    "data": {"dataset": "org/photos", "dataset_kind": "hub"},
    "progress": {"step": 300},
    "config": {},
    "training": {},
    "base_model": "timm/resnet50.a1_in1k",
    "origin": {
        "encoder": "resnet50.a1_in1k",
        "former": {"method": "moco", "dataset": "org/cats", "steps": 7},
    },
}
FORMER = {
    **{
        "method": "simsiam",
        "dataset": "org/photos",
        "dataset_kind": "hub",
        "steps": 300,
        "encoder": "resnet50.a1_in1k",
    },
    "former": {"method": "moco", "dataset": "org/cats", "steps": 7},
}
SMALL_HEADS = {"projector_hidden_dim": 16, "projection_dim": 8}
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}


def new_model(method="simsiam", seed=1, **config):
    settings = {
        "architecture": "test_resnet",
        "image_size": 32,
        "image_mean": (0.4, 0.5, 0.6),
        **SMALL_HEADS,
        **config,
    }
    torch.manual_seed(seed)
    config_class = METHODS[method].config_class
    fields = config_class.__dataclass_fields__
    model = METHODS[method](config_class(**{name: value for name, value in settings.items() if name in fields}))
    with torch.no_grad():  # statistics of BatchNorm that differ from a fresh model's
        model.encoder(torch.randn(8, 3, model.config.image_size, model.config.image_size) + 1)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    export_run(new_model(), folder)
    for record in (folder / "run.json", folder / "encoder" / "run.json"):
        record.write_text(json.dumps(RECORD))
    return folder


def on_hub(hub, repo, folder):
    """Publish a folder; returns the commit."""
    hub.repos[repo] = Repo()
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return hub.repos[repo].add("main", files)


def published_by_timm(folder, name="test_vit.r160_in1k", **arguments):
    """A folder as timm publishes its own: a classifier, and a config with the preprocessing."""
    torch.manual_seed(5)
    cfg = get_pretrained_cfg(name).to_dict(remove_source=True)
    model = timm.create_model(name.split(".")[0], **arguments)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    config = {"architecture": name.split(".")[0], "num_classes": 1000, "pretrained_cfg": cfg, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def features(module, size, images=2):
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        return module.eval()(torch.randn(images, 3, size, size, generator=generator))


def built(start):
    """The encoder of a run that starts there, in the state that it has at step 0."""
    torch.manual_seed(99)
    check_encoder(start.architecture, start.model_args, start.image_size)
    encoder = build_encoder(start.architecture, start.model_args)
    start.load_into(encoder)
    return encoder


@pytest.mark.parametrize("kind", ["run", "folder", "local-dir"])
def test_a_local_start_has_the_features_and_preprocessing_of_what_it_names(run, kind):
    reference = {"run": str(run), "folder": str(run / "encoder"), "local-dir": f"local-dir:{run / 'encoder'}"}[kind]
    start = find_encoder(reference)
    assert (start.architecture, start.model_args, start.image_size) == ("test_resnet", {}, 32)
    assert start.image_mean == (0.4, 0.5, 0.6) and start.image_std == pytest.approx((0.229, 0.224, 0.225))
    assert torch.equal(features(built(start), 32), features(load_encoder(reference).module, 32))
    weights = (run / "encoder" / "model.safetensors").read_bytes()
    assert start.origin == {
        "encoder": reference,
        "kind": "run" if kind == "run" else "folder",
        "revision": None,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "former": FORMER,
    }
    assert start.base_model == "timm/resnet50.a1_in1k"  # the nearest ancestor that others can find


@pytest.mark.parametrize("prefix", ["", "hf_hub:", "hf-hub:"])
def test_a_start_from_the_hub_is_that_of_the_local_folder(online, run, tmp_path, prefix):
    commit = on_hub(online, "org/first", run / "encoder")
    online.edit("org/first", "model.safetensors", b"damaged")
    start = find_encoder(f"{prefix}org/first@{commit}")
    assert torch.equal(features(built(start), 32), features(load_encoder(str(run)).module, 32))
    assert start.base_model == "org/first"
    assert start.origin is not None
    assert (start.origin["kind"], start.origin["revision"], start.origin["former"]) == ("hub", commit, FORMER)
    assert start.origin["encoder"] == f"{prefix}org/first@{commit}"
    with pytest.raises(UserError, match=r"model.safetensors` cannot be read"):
        built(find_encoder(f"{prefix}org/first"))


def test_a_damaged_record_on_the_hub_is_told_and_ends_nothing(online, run, tmp_path, caplog):
    on_hub(online, "org/garbled", run / "encoder")
    online.edit("org/garbled", "run.json", b'{"method": 3')
    start = find_encoder("org/garbled")
    assert start.origin is not None and start.origin["former"] is None
    assert (
        "weights of `org/garbled` lacks their training: `" in caplog.text and "cannot be read as JSON" in caplog.text
    )
    caplog.clear()
    online.edit("org/garbled", "run.json", b'{"method": "simsiam", "steps": 3}')
    find_encoder("org/garbled")
    assert "is not the record of a run: it lacks" in caplog.text


@pytest.mark.parametrize(
    ("reference", "pretrained"),
    [("test_vit", True), ("test_vit.r160_in1k", False), ("timm/test_vit.r160_in1k", False)],
)
def test_timms_own_weights_come_without_their_classifier(online, tmp_path, reference, pretrained):
    folder = published_by_timm(tmp_path / "vit")
    commit = on_hub(online, "timm/test_vit.r160_in1k", folder)
    start = find_encoder(reference, pretrained=pretrained)
    assert (start.architecture, start.image_size, start.base_model) == ("test_vit", 160, "timm/test_vit.r160_in1k")
    assert start.image_mean == get_pretrained_cfg("test_vit").mean
    assert start.origin is not None and start.origin["revision"] == commit and start.origin["former"] is None
    assert start.origin["kind"] == ("hub" if "/" in reference else "timm")
    expected = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    assert torch.equal(features(built(start), 160), features(expected, 160))


def test_a_head_with_more_than_a_classifier_is_left_out_as_a_whole(tmp_path):
    folder = published_by_timm(tmp_path / "levit", "levit_128s.fb_dist_in1k")
    expected = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    assert torch.equal(features(built(find_encoder(str(folder))), 224), features(expected, 224))


def test_a_plain_name_has_no_weights():
    start = find_encoder("test_resnet", model_args={"drop_rate": 0.1})
    assert (start.architecture, start.model_args, start.origin) == ("test_resnet", {"drop_rate": 0.1}, None)
    assert start.base_model is None and start.image_mean is None and start.image_size is None
    encoder = build_encoder("test_resnet")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    start.load_into(encoder)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("model_args", [{}, {"global_pool": "avg"}])
def test_a_vit_for_images_of_another_size_has_its_positions_resampled(tmp_path, model_args):
    folder = published_by_timm(tmp_path / "vit", **model_args)
    start = find_encoder(str(folder), image_size=96)
    assert start.model_args == {**model_args, "img_size": 96} and start.image_size == 96
    encoder = built(start)
    expected = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, img_size=96)
    assert encoder.pos_embed.shape[1] == (96 // 16) ** 2 + 1
    assert torch.equal(features(encoder, 96), features(expected, 96))
    # Exported and started from again, at a third size.
    config = METHODS["simsiam"].config_class(architecture="test_vit", model_args=start.model_args, image_size=96)
    export_encoder(encoder, config, tmp_path / "again")
    third = find_encoder(str(tmp_path / "again"), image_size=64)
    assert third.model_args == {**model_args, "img_size": 64}
    assert built(third).pos_embed.shape[1] == (64 // 16) ** 2 + 1


def test_a_swin_for_images_of_another_size_has_its_relative_positions_resampled(tmp_path):
    config = METHODS["simsiam"].config_class(
        architecture="swin_tiny_patch4_window7_224", model_args={**SWIN, "img_size": 32}, image_size=32
    )
    export_encoder(build_encoder(config.architecture, config.model_args), config, tmp_path)
    start = find_encoder(str(tmp_path), image_size=64, model_args={"window_size": 8})
    assert start.model_args == {**SWIN, "img_size": 64, "window_size": 8}
    encoder = built(start)
    expected = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=64, window_size=8)
    table = encoder.state_dict()["layers.0.blocks.0.attn.relative_position_bias_table"]
    assert table.shape[0] == (2 * 8 - 1) ** 2
    assert torch.equal(features(encoder, 64), features(expected, 64))


def test_weights_that_lack_some_are_refused_although_timm_would_leave_them_random(tmp_path):
    folder = published_by_timm(tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    del weights["blocks.1.attn.qkv.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"do not fit `test_vit`: .*blocks.1.attn.qkv.weight"):
        built(find_encoder(str(folder)))


def test_weights_of_another_width_are_refused(run):
    start = find_encoder(str(run))
    with pytest.raises(UserError, match=r"do not fit"):
        start.load_into(build_encoder("resnet18_cifar"))


def test_every_twin_is_a_published_timm_encoder():
    assert set(TIMM_TWINS.values()) <= set(timm.list_pretrained())
    with pytest.raises(UserError, match=r"its timm twin: `timm/vit_small_patch14_dinov2.lvd142m`"):
        find_encoder("facebook/dinov2-small")  # without asking the Hub


def test_what_cannot_be_started_from_is_refused(online, run, tmp_path):
    online.repos["org/native"] = Repo()
    online.edit("org/native", "config.json", b'{"model_type": "vit"}')
    online.repos["org/pickled"] = Repo()
    online.edit("org/pickled", "config.json", (run / "encoder" / "config.json").read_bytes())
    online.edit("org/pickled", "pytorch_model.bin", b"code")
    (tmp_path / "empty").mkdir()
    shutil.copytree(run / "encoder", tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    for reference, options, message in [
        ("org/native", {}, r"`org/native` does not hold an encoder of timm"),
        ("hf_hub:org/native", {}, r"does not hold an encoder of timm"),
        ("org/pickled", {}, r"the Hub gave no `model.safetensors` of the repository: .* because they may hold code"),
        (
            "org/nothing",
            {},
            r"There is no folder `org/nothing`, and the Hub gave no `config.json`.* no such repo",
        ),
        ("org/native@v9", {}, r"no revision `v9`"),
        ("resnet5O", {}, r"timm knows no encoder of that name. Did you mean `resnet50"),
        ("resnet50.a9_in1k", {}, r"timm has no weights `resnet50.a9_in1k`. Did you mean `resnet50\..*_in1k`"),
        ("resnet18_cifar", {"pretrained": True}, r"published no weights of `resnet18_cifar`"),
        (str(run / "pretraining"), {}, r"holds a whole method, not only an encoder. Give it as `start_from`"),
        (str(tmp_path / "empty"), {}, r"holds no encoder"),
        (str(tmp_path / "bare"), {}, r"has no `model.safetensors`"),
        (f"local-dir:{tmp_path / 'none'}", {}, r"there is no folder"),
    ]:
        with pytest.raises(UserError, match=message):
            find_encoder(reference, **options)


def test_without_network_one_sentence_says_so():
    for find, reference in ((find_encoder, "timm/test_vit.r160_in1k"), (find_encoder, "test_vit.r160_in1k"),
                            (find_method, "org/first")):  # fmt: skip
        with pytest.raises(UserError, match=r"it cannot be reached, and the cache does not have it") as raised:
            find(reference)
        assert "\n" not in str(raised.value)


HEADS = {
    "moco": ["encoder", "projector", "target encoder", "target projector", "queue", "queue position"],
    "byol": ["encoder", "projector", "predictor", "target encoder", "target projector"],
    "simsiam": ["encoder", "projector", "predictor"],
}


@pytest.mark.parametrize("method", ["moco", "byol", "directpred", "memory_bank", "simsiam"])
@pytest.mark.parametrize("of_the_run", [True, False])
def test_the_same_method_starts_with_all_that_was_saved(tmp_path, method, of_the_run):
    settings = {"bank_size": 32, "num_negatives": 8, "queue_size": 16, "bn_splits": 2}
    saved = new_model(method, seed=1, **settings)
    with torch.no_grad():
        for buffer in saved.buffers():
            buffer.add_(1)
    export_run(saved, tmp_path)
    start = find_method(str(tmp_path if of_the_run else tmp_path / "pretraining"))
    assert (start.model_type, start.base_model) == (f"hf_ssl_{method}", None)
    assert start.origin["method"] == method and start.origin["kind"] == ("run" if of_the_run else "folder")
    model = new_model(method, seed=2, **settings)
    taken = start.load_into(model)
    assert taken == HEADS.get(method, taken)
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in model.state_dict().items())


def test_another_method_takes_the_encoder_alone_and_its_target_begins_there(run):
    model = new_model("byol", seed=2)
    heads = {name: value.clone() for name, value in model.state_dict().items() if "encoder" not in name}
    start = find_method(str(run))
    assert start.load_into(model) == ["encoder", "target encoder"]
    expected = features(load_encoder(str(run)).module, 32)
    assert torch.equal(features(model.encoder, 32), expected)
    assert torch.equal(features(model.target_encoder, 32), expected)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in heads.items())
    assert start.origin["former"] == FORMER and start.base_model == "timm/resnet50.a1_in1k"


def test_a_method_on_the_hub_is_found_by_its_repository(online, run):
    commit = on_hub(online, "org/first", run / "encoder")
    for path in (run / "pretraining").iterdir():
        commit = online.edit("org/first", f"pretraining/{path.name}", path.read_bytes())
    saved = load_file(run / "pretraining" / "model.safetensors")
    for reference in ("org/first", "org/first/pretraining", f"org/first/pretraining@{commit}", "hf_hub:org/first"):
        start = find_method(reference)
        model = new_model(seed=2)
        start.load_into(model)
        assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
        assert start.base_model == "org/first"
        assert start.origin["revision"] == commit and start.origin["former"] == FORMER


def test_a_run_that_has_not_finished_gives_its_newest_checkpoint(tmp_path):
    saved = new_model(seed=3)
    config = {name: value for name, value in saved.config.to_dict().items() if name in ("architecture", "image_size")}
    (tmp_path / "run.json").write_text(json.dumps({**RECORD, "config": config}))
    for step in (5, 10):
        folder = tmp_path / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        with torch.no_grad():
            saved.predictor[0].weight.fill_(step)
        save_file(dict(saved.state_dict()), folder / "model.safetensors")
        size = (folder / "model.safetensors").stat().st_size
        (folder / STATE).write_text(
            json.dumps({"step": 1, "seconds": 1, "identity": {}, "files": {"model.safetensors": size}})
        )
    model = new_model(seed=4)
    find_method(str(tmp_path)).load_into(model)
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_vit_method_goes_on_with_images_of_another_size(tmp_path):
    model_args = {"patch_size": 8}
    saved = new_model("byol", architecture="test_vit", model_args={**model_args, "img_size": 32})
    export_run(saved, tmp_path)
    model = new_model(
        "byol", seed=2, architecture="test_vit", model_args={**model_args, "img_size": 64}, image_size=64
    )
    taken = find_method(str(tmp_path)).load_into(model)
    assert taken == HEADS["byol"]
    assert torch.equal(model.predictor[0].weight, saved.predictor[0].weight)
    expected = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True, img_size=64)
    assert torch.equal(features(model.encoder, 64), features(expected, 64))
    assert torch.equal(features(model.target_encoder, 64), features(expected, 64))


def test_what_differs_is_named(run, tmp_path):
    start = find_method(str(run))
    for settings, message in [
        ({"projection_dim": 16}, r"`projection_dim` is 8 there and 16 here"),
        ({"architecture": "resnet18_cifar"}, r"`architecture` is test_resnet there and resnet18_cifar here"),
    ]:
        model = new_model(seed=2, **settings)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(UserError, match=message):
            start.load_into(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match=r"`architecture` is test_resnet there and resnet18_cifar here. Give"):
        start.load_into(new_model("byol", architecture="resnet18_cifar", **SMALL_HEADS))
    for reference, message in [
        (str(tmp_path), r"holds no method"),
        (str(run / "encoder"), r"holds something else. Give an encoder by `encoder`"),
        (str(run / "nothing"), r"there is no such folder"),
    ]:
        with pytest.raises(UserError, match=message):
            find_method(reference)
