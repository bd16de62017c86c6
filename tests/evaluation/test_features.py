"""Encoders of every kind with their own preprocessing, and features that depend on nothing but the images."""

import dataclasses
import io
import json
import pickle
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data.transforms_factory import create_transform
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from hf_ssl.data.order.ordered import sampled_rows
from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError
from hf_ssl.evaluation import features as features_module
from hf_ssl.evaluation.encoders import ImageTransform, PooledTransformersEncoder, ProcessorTransform
from hf_ssl.evaluation.features import (
    encoder_of,
    extract_augmented_features,
    extract_features,
    features_of_ranges,
    load_encoder,
)
from hf_ssl.evaluation.random_crops import RandomCrops
from hf_ssl.features.search import features_of_pictures
from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS
from hf_ssl.modules.preprocessing import preprocessing

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def model():
    method = METHODS["simsiam"]
    torch.manual_seed(1)
    config = method.config_class(
        architecture="test_resnet", image_size=32, image_mean=MEAN, image_std=STD, projection_dim=8
    )
    model = method(config)
    with torch.no_grad():  # statistics of BatchNorm that differ from a fresh model's
        model.encoder(torch.randn(16, 3, 32, 32) + 1)
    return model.eval()


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """A folder as a run leaves it, without a record of the run."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    export_run(model, folder)
    return folder


def picture(index, mode="RGB", size=(40, 33)):
    generator = np.random.default_rng(index)
    colours = generator.integers(256, size=(*size[::-1], 4), dtype=np.uint8)
    return Image.fromarray(colours, mode="RGBA").convert(mode)


def png(image):
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory):
    """23 images of two label columns; two of them cannot be read."""
    folder = tmp_path_factory.mktemp("data")
    images = [{"bytes": png(picture(index)), "path": None} for index in range(23)]
    images[5]["bytes"] = b"no image"
    images[22]["bytes"] = images[22]["bytes"][:200]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "kind": datasets.ClassLabel(names=["a", "b", "c"]),
            "side": datasets.ClassLabel(names=["left", "right"]),
        }
    )
    columns = {"image": images, "kind": [i % 3 for i in range(23)], "side": [i % 2 for i in range(23)]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


@pytest.fixture
def source(folder_of_images):
    return open_source(str(folder_of_images))


IMAGES = [picture(0), picture(1, "L"), picture(2, "RGBA"), picture(3, "P"), picture(4, "CMYK", (90, 20))]


def on_white(image):
    """RGB as a data set's images are decoded."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB") if image.mode == "RGBA" else image.convert("RGB")


@pytest.mark.parametrize("reference", ["{}", "{}/encoder", "local-dir:{}/encoder"])
def test_an_exported_encoder_equals_what_transformers_loads(run, reference):
    encoder = load_encoder(reference.format(run))
    processor = AutoImageProcessor.from_pretrained(run / "encoder")
    pixels = processor([on_white(image) for image in IMAGES], return_tensors="pt")["pixel_values"]
    own_pixels = torch.stack([encoder.transform(image) for image in IMAGES])
    assert torch.equal(own_pixels, pixels)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(run / "encoder")(pixels).pooler_output
        features = encoder.module(own_pixels)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert encoder.dim == features.shape[1]
    assert not encoder.module.training


def test_an_encoder_in_training_equals_its_export(model, run, source):
    during = encoder_of(model.encoder, 32, MEAN, STD)
    after = load_encoder(str(run))
    assert during.dim == after.dim
    torch.testing.assert_close(
        extract_features(during, source).features, extract_features(after, source).features, atol=1e-6, rtol=0
    )


def test_a_timm_folder_with_a_classifier_gives_what_stands_before_it(tmp_path):
    classifier = timm.create_model("test_vit", num_classes=7).eval()
    timm.models.save_for_hf(classifier, tmp_path / "encoder", safe_serialization=True)
    encoder = load_encoder(str(tmp_path / "encoder"))
    pixels = torch.randn(2, *classifier.pretrained_cfg["input_size"])
    with torch.no_grad():
        expected = classifier.forward_head(classifier.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(encoder.module(pixels), expected)
    # What the published config says, not what the image is.
    assert encoder.transform(picture(0)).shape == classifier.pretrained_cfg["input_size"]


def test_the_cifar_resnet_of_this_package_loads(tmp_path):
    method = METHODS["simsiam"]
    model = method(method.config_class(architecture="resnet18_cifar", image_size=32, projection_dim=8)).eval()
    export_run(model, tmp_path)
    encoder = load_encoder(str(tmp_path))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder.module(pixels), model.encode(pixels))


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
}


def transformers_folder(folder, model, processor=None):
    torch.manual_seed(2)
    model = model()
    model.save_pretrained(folder)
    (processor or ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
    return model.eval()


CASES = {
    "vit": (lambda: ViTModel(ViTConfig(**SMALL)), lambda output: output.pooler_output),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**SMALL, patch_size=16)), lambda output: output.pooler_output),
    "resnet": (
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
        lambda output: output.pooler_output[:, :, 0, 0],
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_transformers_encoders_give_their_pooled_output(kind, tmp_path):
    make, pooled = CASES[kind]
    model = transformers_folder(tmp_path, make)
    encoder = load_encoder(str(tmp_path))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor([on_white(image) for image in IMAGES], return_tensors="pt")["pixel_values"]
    own_pixels = torch.stack([encoder.transform(image) for image in IMAGES])
    assert torch.equal(own_pixels, pixels)
    with torch.no_grad():
        torch.testing.assert_close(encoder.module(own_pixels), pooled(model(pixels)))


def test_a_pooler_that_the_checkpoint_lacks_is_not_used(tmp_path):
    # transformers would fill it with random numbers; the class token is what was trained.
    model = transformers_folder(tmp_path, lambda: ViTForImageClassification(ViTConfig(**SMALL)))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.vit(pixels).last_hidden_state[:, 0]
        torch.testing.assert_close(load_encoder(str(tmp_path)).module(pixels), expected)


def test_a_masked_autoencoder_sees_the_whole_image(tmp_path):
    transformers_folder(tmp_path, lambda: ViTMAEModel(ViTMAEConfig(**SMALL, patch_size=8)))
    module = load_encoder(str(tmp_path)).module
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(module(pixels), module(pixels))  # else each call would mask at random


def test_of_a_model_of_images_and_text_the_vision_part_is_used(tmp_path):
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = CLIPConfig(text_config=text, vision_config={**SMALL, "patch_size": 16}, projection_dim=8)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    model = transformers_folder(tmp_path, lambda: CLIPModel(config), CLIPImageProcessor(**size))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.vision_model(pixels).pooler_output
        torch.testing.assert_close(load_encoder(str(tmp_path)).module(pixels), expected)


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 7, 3, 4)])
def test_without_pooler_and_class_token_positions_are_averaged(shape):
    hidden = torch.randn(shape)

    class Bare(nn.Module):
        def forward(self, pixel_values):
            return type("Output", (), {"last_hidden_state": hidden})()

    expected = hidden.mean(dim=1) if hidden.ndim == 3 else hidden.flatten(2).mean(dim=2)
    torch.testing.assert_close(PooledTransformersEncoder(Bare(), use_pooler=True)(None), expected)


def test_an_incomplete_checkpoint_is_refused(tmp_path):
    transformers_folder(tmp_path, lambda: ViTModel(ViTConfig(**SMALL)))
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "layernorm_before" in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of its encoder, such as `.*layernorm_before"):
        load_encoder(str(tmp_path))


def test_the_random_baseline_is_timms_fresh_initialisation(run):
    state = torch.get_rng_state()
    first, again, other = (load_encoder(f"random:{run}", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    expected = timm.create_model("test_resnet", num_classes=0).state_dict()
    for name, value in first.module.state_dict().items():
        assert torch.equal(value, expected[name])  # also the statistics of BatchNorm
        assert torch.equal(value, again.module.state_dict()[name])
    assert not torch.equal(first.module.conv1[0].weight, other.module.conv1[0].weight)
    trained = load_encoder(str(run))
    assert torch.equal(first.transform(IMAGES[4]), trained.transform(IMAGES[4]))
    assert first.dim == trained.dim


def test_a_random_transformers_encoder_differs_from_its_weights(tmp_path):
    transformers_folder(tmp_path, lambda: Dinov2Model(Dinov2Config(**SMALL, patch_size=16)))
    pixels = torch.randn(1, 3, 32, 32)
    trained, first, again = (load_encoder(f"{kind}{tmp_path}").module for kind in ("", "random:", "random:"))
    assert torch.equal(first(pixels), again(pixels))
    assert not torch.allclose(first(pixels), trained(pixels), atol=1e-3)


def test_raw_pixels_are_those_that_the_encoder_sees(run):
    raw, trained = load_encoder(f"raw:{run}"), load_encoder(str(run))
    pixels = torch.stack([trained.transform(image) for image in IMAGES])
    assert raw.dim == 3 * 32 * 32
    assert torch.equal(raw.module(torch.stack([raw.transform(image) for image in IMAGES])), pixels.flatten(1))


def test_features_come_in_order_with_labels_and_without_bad_images(run, source, caplog):
    encoder = load_encoder(str(run))
    features = extract_features(encoder, source, batch_size=4)
    good = [index for index in range(22) if index != 5]
    assert features.row_ids.tolist() == good
    assert features.labels["kind"].tolist() == [index % 3 for index in good]
    assert features.labels["side"].tolist() == [index % 2 for index in good]
    assert features.features.dtype == torch.float32
    with torch.no_grad():
        expected = encoder.module(torch.stack([encoder.transform(picture(index)) for index in good]))
    torch.testing.assert_close(features.features, expected, atol=1e-5, rtol=0)
    assert "not an image: 1" in caplog.text
    assert "truncated: 1" in caplog.text


def test_batches_and_workers_change_nothing(run, source):
    encoder = load_encoder(str(run))
    whole = extract_features(encoder, source, batch_size=64)
    parts = extract_features(encoder, source, batch_size=3, num_workers=1)
    torch.testing.assert_close(parts.features, whole.features, atol=1e-6, rtol=0)
    assert torch.equal(parts.row_ids, whole.row_ids)
    sample = extract_features(encoder, source, max_images=7)
    assert set(sample.row_ids.tolist()) == set(sampled_rows(23, 7).tolist()) - {5, 22}  # these cannot be read
    of_sample = torch.isin(whole.row_ids, sample.row_ids)
    torch.testing.assert_close(sample.features, whole.features[of_sample], atol=1e-6, rtol=0)


def test_training_mode_is_restored_part_by_part_and_features_can_be_trained_on(source):
    module = timm.create_model("test_resnet", num_classes=0)
    module.bn1.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    (batch,) = features_of_ranges(encoder_of(module, 32, MEAN, STD), source, [(0, 30)])
    assert module.training
    assert not module.bn1.training
    assert module.layer1.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])  # evaluation moves no statistics
    nn.Linear(batch.features.features.shape[1], 2)(
        batch.features.features
    ).sum().backward()  # an inference tensor would raise


def test_the_mode_is_restored_when_the_consumer_stops_early(source):
    module = timm.create_model("test_resnet", num_classes=0)
    batches = features_of_ranges(encoder_of(module, 32, MEAN, STD), source, [(0, 30)], batch_size=4)
    next(batches)
    assert not module.training
    batches.close()
    assert module.training


@pytest.mark.parametrize("shape", [(32, 32, 3), (224, 224, 3), (60, 32, 3), (3, 40, 3)])
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("change", [{}, {"crop_pct": 1.0}, {"crop_pct": 1.0, "crop_mode": "border"}])
def test_an_array_gives_the_pixels_of_timm_for_its_image(shape, size, change):
    config = {**preprocessing(size, MEAN, STD), **change}
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = create_transform(**config, is_training=False)(image)
    transform = pickle.loads(pickle.dumps(ImageTransform(config)))
    assert torch.equal(transform(pixels), expected)
    assert torch.equal(transform(image), expected)


@pytest.mark.parametrize("make", [ViTImageProcessor, CLIPImageProcessor])
def test_an_array_gives_the_pixels_of_transformers_for_its_image(make):
    for shape in ((32, 50, 3), (3, 40, 3), (40, 3, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        expected = make()(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(ProcessorTransform(make())(pixels), expected)


def test_augmented_passes_are_the_features_of_random_crops(run, source):
    encoder = load_encoder(str(run))
    passes = extract_augmented_features(encoder, source, 3, seed=5)
    rows = [row for row in range(22) if row != 5]  # bad images move no other image's crop
    assert passes.dtype == torch.float16
    with torch.no_grad():
        for number in range(3):
            crops = RandomCrops(encoder, 5, number)
            pictures = [np.array(picture(row).convert("RGB")) for row in rows]
            expected = encoder.module(torch.stack(crops(pictures, rows)))
            torch.testing.assert_close(passes[number].float(), expected, atol=1e-5, rtol=1e-3)
    plain = extract_features(encoder, source).features
    for other in (passes[1], passes[2], plain, extract_augmented_features(encoder, source, 1, seed=6)[0]):
        assert (passes[0].float() - other.float()).abs().amax(dim=1).min() > 0.01  # for every image


def test_augmented_passes_depend_on_neither_batches_nor_workers(run, source):
    encoder = load_encoder(str(run))
    whole = extract_augmented_features(encoder, source, 2, batch_size=64)
    parts = extract_augmented_features(encoder, source, 2, batch_size=3, num_workers=2)
    torch.testing.assert_close(parts.float(), whole.float(), atol=1e-5, rtol=1e-3)
    sample = extract_augmented_features(encoder, source, 1, max_images=7)
    usable = torch.tensor([row for row in range(22) if row != 5])
    of_sample = torch.isin(usable, torch.from_numpy(sampled_rows(23, 7)))
    torch.testing.assert_close(sample.float(), whole[:1, of_sample].float(), atol=1e-5, rtol=1e-3)


def test_one_progress_bar_covers_all_passes(run, source, capsys):
    extract_augmented_features(load_encoder(str(run)), source, 3, description="three passes")
    text = capsys.readouterr().err
    assert text.count("three passes:   0%") == 1
    assert "63/69" in text  # three times 23 images, of which two cannot be read


def test_features_that_float16_cannot_hold_are_refused(run, source):
    encoder = load_encoder(f"raw:{run}")
    encoder.module = nn.Sequential(encoder.module, nn.Linear(encoder.dim, 2))
    nn.init.constant_(encoder.module[1].bias, 1e5)
    with pytest.raises(ValueError, match=r"must fit into float16, but `raw:.*` gives 1e\+05"):
        extract_augmented_features(encoder, source, 1)


@pytest.mark.parametrize("length_is_known", [True, False])
def test_passes_that_memory_cannot_hold_are_refused(run, source, monkeypatch, length_is_known):
    encoder = load_encoder(f"raw:{run}")
    if not length_is_known:
        source = dataclasses.replace(source, num_images=None)
    images = 23 if length_is_known else 21  # the latter without the bad ones
    needed = 10 * images * encoder.dim * 2
    memory = SimpleNamespace(available=needed)
    monkeypatch.setattr(features_module.psutil, "virtual_memory", lambda: memory)
    assert len(extract_augmented_features(encoder, source, 10)) == 10
    memory.available -= 1
    if length_is_known:
        monkeypatch.setattr(features_module, "_batches", None)  # nothing may be computed
    message = rf"`augmented_passes` must .* 10 passes over {images} images with 3,072 features need .*to 7, or"
    with pytest.raises(ValueError, match=message):
        extract_augmented_features(encoder, source, 10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused_whatever_computes_them(run, source, value):
    class Broken(nn.Module):
        """Its features are not finite where the first pixel is bright: of some of the images."""

        def forward(self, pixel_values):
            features = pixel_values.mean(dim=(2, 3))
            features[pixel_values[:, 0, 0, 0] > 0] = value
            return features

    encoder = dataclasses.replace(load_encoder(str(run)), module=Broken(), dim=3, name="broken")
    pixels = torch.stack([encoder.transform(picture(row)) for row in range(22) if row != 5])
    broken = int((pixels[:, 0, 0, 0] > 0).sum())
    assert 0 < broken < 21
    message = f"features of `broken` must be finite, but those of {broken} of 21 images hold NaN or infinity"
    with pytest.raises(UserError, match=message):
        extract_features(encoder, source, batch_size=4)
    with pytest.raises(UserError, match=message):
        list(features_of_ranges(encoder, source, [(0, 30)]))
    with pytest.raises(UserError, match=r"features of `broken` must be finite"):
        extract_augmented_features(encoder, source, 1)
    bright = np.full((8, 8, 3), 255, np.uint8)
    with pytest.raises(UserError, match="those of 1 of 2 images hold"):
        features_of_pictures(encoder, [bright, 0 * bright])


def _extract(rank, run, data, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    features = extract_features(load_encoder(run), open_source(data), batch_size=4)
    augmented = extract_augmented_features(load_encoder(run), open_source(data), 2, batch_size=4)
    torch.save([features.features, features.labels, features.row_ids, augmented], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_features_of_one(run, folder_of_images, tmp_path):
    torch.multiprocessing.start_processes(
        _extract, (str(run), str(folder_of_images), str(tmp_path)), nprocs=2, start_method="fork"
    )
    alone = extract_features(load_encoder(str(run)), open_source(str(folder_of_images)), batch_size=4)
    augmented = extract_augmented_features(load_encoder(str(run)), open_source(str(folder_of_images)), 2, batch_size=4)
    for rank in range(2):
        features, labels, row_ids, passes = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(passes, augmented)
        assert torch.equal(row_ids, alone.row_ids)
        assert torch.equal(features, alone.features)
        assert all(torch.equal(labels[column], alone.labels[column]) for column in alone.labels)


def test_a_data_set_without_usable_images_is_named(run, tmp_path):
    (tmp_path / "one.png").write_bytes(b"")
    (tmp_path / "two.jpg").write_bytes(b"text")
    with pytest.raises(ValueError, match="Split `train` of .* has no usable image .*empty: 1"):
        extract_features(load_encoder(str(run)), open_source(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", r"no folder `resnet5O` and timm knows no encoder of that name. Did you mean `resnet50"),
        ("raw", "The baseline `raw` needs an encoder .* Write `raw:ENCODER`"),
        ("random:resnet5O", r"Did you mean `resnet50"),
        ("runs/none/encoder", "Give a folder, a timm name or a repo|Did you mean"),
        ("local-dir:runs/none", "`local-dir:runs/none` must name a folder, and there is no folder `runs/none`"),
        (
            "no-such-org/none",
            "There is no folder `no-such-org/none`, and the Hub gave no `config.json` of the repository",
        ),
        ("test_resnet", "timm could not load the weights of `test_resnet`"),  # tests have no network
    ],
)
def test_unknown_encoders_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(name)


def test_folders_that_hold_no_encoder_are_named(run, tmp_path):
    with pytest.raises(ValueError, match="holds no encoder"):
        load_encoder(str(tmp_path))
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config.json` (cannot be read as JSON|must hold a JSON object)"):
            load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_type"}))
    with pytest.raises(ValueError, match="transformers could not load the encoder"):
        load_encoder(str(tmp_path))
    with pytest.raises(ValueError, match="`bf16` needs a CUDA device, got `cpu`"):
        extract_features(load_encoder(str(run)), open_source("digits"), bf16=True)


@pytest.mark.parametrize("turned", [False, True])
def test_a_thin_strip_is_seen_in_its_middle_and_never_made_huge(turned, monkeypatch):
    strip = np.random.default_rng(0).integers(0, 256, (2, 20_000, 3), dtype=np.uint8)
    middle = strip[:, 10_000 - 400 : 10_000 + 400]
    if turned:
        strip, middle = (np.ascontiguousarray(picture.transpose(1, 0, 2)) for picture in (strip, middle))
    transform = ImageTransform(preprocessing(32, MEAN, STD))
    expected = transform(middle)
    sizes = []
    original = Image.Image.resize

    def resize(image, size, *arguments, **keywords):
        sizes.append(size)
        return original(image, size, *arguments, **keywords)

    monkeypatch.setattr(Image.Image, "resize", resize)
    torch.testing.assert_close(transform(strip), expected)
    assert sizes and all(width * height <= 400 * 40 * 40 for width, height in sizes)


def test_an_encoder_loads_from_a_path(run):
    assert load_encoder(run).dim == load_encoder(str(run)).dim
