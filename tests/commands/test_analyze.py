"""`hf-ssl analyze`: numbers of known features, one table and figures for several encoders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hf_ssl.commands.analyze import COMMAND
from hf_ssl.commands.command import python_function
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.views.cpu import find_recipe
from hf_ssl.data.views.recipes import VIEW_RECIPES, ViewParameters, ViewRecipe
from hf_ssl.diagnostics import alignment, lidar, rank_me
from hf_ssl.evaluation.analysis import FEATURE_NUMBERS, PREDICTOR_NUMBERS, analyse_features, analyse_predictor
from hf_ssl.evaluation.augmentation import AUGMENTATION_NUMBERS
from hf_ssl.evaluation.encoders import Encoder, ImageTransform
from hf_ssl.evaluation.view_features import ManyViews, extract_view_features
from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS
from hf_ssl.training.record import RunRecord


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with a predictor and its diagnoses, and one whose projections are a part of the representation."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    sizes = {
        "byol": {"projector_hidden_dim": 16, "projection_dim": 12, "predictor": "linear"},
        "directclr": {"subvector_dim": 8},
    }
    made = {}
    for name, values in sizes.items():
        method = METHODS[name]
        run = folder / name
        run.mkdir()
        config = {"image_size": 16, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
        record = RunRecord(name, data={"view_recipe": "simclr"}, config=config)
        record.write(run)
        # A card needs a whole record of a run.
        (run / "run.json").rename(run / "later.json")
        export_run(method(method.config_class(architecture="test_resnet", **config, **values)), run)
        (run / "later.json").rename(run / "encoder" / "run.json")
        made[name] = run
    curves = {"projection": [1.0, 0.1], "representation": [2.0, 1.0, 0.5]}
    line = {"step": 5, "curves": curves, "ranks": {name: [*range(1, len(c) + 1)] for name, c in curves.items()}}
    (made["byol"] / "diagnostics.jsonl").write_text(json.dumps(line) + "\n")
    (made["byol"] / "metrics.jsonl").write_text(json.dumps({"step": 5, "loss": 1.0}) + "\n")
    return made


WORDS = ["--dataset", "digits", "--num_workers", "0", "--max_images", "40", "--view_images", "20", "--num_views", "3"]


def test_a_run_is_analysed_into_its_folder(runs, capsys):
    assert COMMAND.main([str(runs["byol"]), *WORDS]) == 0
    printed = capsys.readouterr().out
    assert "digits, split test: 40 images" in printed and "3 views of 20 by recipe simclr" in printed
    assert all(f"\n{name}" in printed for name in [*PREDICTOR_NUMBERS, "rank_me", "lidar", "projection"])
    folder = runs["byol"] / "encoder"
    found = json.loads((folder / "analysis.json").read_text())
    byol = found["encoders"]["byol"]
    assert found["dataset"] == "digits" and byol["num_images"] == 40 and byol["view_images"] == 20
    assert byol["dims"] == {"representation": 96, "projection": 12}
    # 12 eigenvalues are too few for their decay.
    assert set(byol["representation"]["numbers"]) == set(FEATURE_NUMBERS)
    assert set(FEATURE_NUMBERS) - set(byol["projection"]["numbers"]) == {"alpha_req", "alpha_req_r2"}
    assert len(byol["projection"]["curves"]["spectrum"]) == 12 and len(byol["predictor"]["curves"]["cosine"]) <= 12
    names = {path.name for path in (folder / "figures").glob("*.png")}
    drawn = {"analysis-spectrum.png", "analysis-augmentation.png", "analysis-predictor.png", "diagnostics.png"}
    assert names == drawn
    assert list(byol["augmentation"]) == ["simclr"]


def test_recipes_are_compared_in_a_table(runs, tmp_path, capsys):
    words = [*WORDS, "--views", "moco_v2", "randaugment", "--output", str(tmp_path)]
    assert COMMAND.main([str(runs["byol"]), "random:test_resnet", *words]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "analysis.json").read_text())["encoders"]
    for title, each in found.items():
        assert list(each["augmentation"]) == ["moco_v2", "randaugment"] and each["view_recipe"] == "moco_v2"
        for recipe, one in each["augmentation"].items():
            row = next(line.split() for line in printed.splitlines() if line.split()[:2] == [title, recipe])
            numbers = one["numbers"]
            assert row[2:5] == [f"{numbers[name]:.4g}" for name in ("directions", "augmentation_share", "dominated")]
            # 20 images: no more directions than these differ in; digits are labelled.
            assert 0 < numbers["augmentation_share"] < 1 and 0 <= numbers["knn"] <= 1
            assert len(one["curves"]["images"]) == 96
    assert all(f"\n{name}  " in printed or f"\n{name} " in printed for name in AUGMENTATION_NUMBERS if name in printed)


def test_the_theorem_compares_the_views_of_an_image_with_the_image_itself(runs, tmp_path):
    # Views that are the images: no augmentation, and nothing lost.
    words = [*WORDS, "--views", "identity", "--output", str(tmp_path)]
    same = ViewParameters(crop_scale=(1, 1), crop_ratio=(1, 1), flip_probability=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VIEW_RECIPES, "identity", ViewRecipe(same, same, "none"))
        assert COMMAND.main([str(runs["byol"]), *words]) == 0
    numbers = json.loads((tmp_path / "analysis.json").read_text())["encoders"]["byol"]["augmentation"]["identity"]
    assert numbers["numbers"]["augmentation_share"] < 1e-6
    assert numbers["numbers"]["dominated"] == numbers["numbers"]["lost_by_theorem"] == 0


def test_encoders_side_by_side(runs, tmp_path, capsys):
    encoders = [str(runs["byol"]), str(runs["directclr"]), "random:test_resnet"]
    assert COMMAND.main([*encoders, *WORDS, "--views", "moco_v2", "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:4] == ["representation", "byol", "directclr", "random:test_resnet"] for line in lines)
    assert any(line.split()[:3] == ["projection", "byol", "directclr"] for line in lines)
    found = json.loads((tmp_path / "analysis.json").read_text())["encoders"]
    assert {name: each["dims"]["projection"] for name, each in found.items()} == {
        "byol": 12,
        "directclr": 8,
        "random:test_resnet": 0,
    }
    assert found["random:test_resnet"]["image_size"] == 160 and found["byol"]["view_recipe"] == "moco_v2"
    assert (tmp_path / "figures" / "byol-diagnostics.png").exists()


def test_from_python_it_returns_what_the_file_holds(runs, tmp_path, capsys):
    encoders = [str(runs["byol"]), "random:test_resnet"]
    settings = {"num_workers": 0, "max_images": 20, "view_images": 10, "num_views": 2, "output": tmp_path}
    result = python_function(COMMAND)(encoders, dataset="digits", **settings)
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "analysis.json").read_text())["encoders"] == result.encoders
    assert list(result.encoders) == ["byol", "random:test_resnet"] and result.folder == tmp_path
    assert all(path.is_file() and f"Figure:  {path}" in str(result) for path in result.figures)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_views", "1"], "`num_views` must be at least 2, got 1"),
        (["--views", "10"], "`views` must name recipes, got 10. The number of views is `num_views`."),
        (["--max_images", "1"], "`max_images` must be at least 2, got 1"),
        (["--views", "moco_v2", "moko_v2"], "`views` must name recipes, got `moko_v2`. Did you mean `moco_v2`"),
        (["--viewz", "3"], "Unknown flag `--viewz`. Did you mean `--views`"),
    ],
)
def test_wrong_words_are_a_sentence(words, message):
    with pytest.raises(ValueError, match=message):
        COMMAND.main(["random:test_resnet", "--dataset", "digits", *words])


def test_a_misspelt_name_is_told_before_the_other_encoders_are_looked_at(monkeypatch):
    monkeypatch.setattr("hf_ssl.commands.analyze._analyse", lambda *_: pytest.fail("looked at the first"))
    with pytest.raises(
        ValueError, match="no folder `test_resnt` and timm knows no encoder of that name. Did you mean"
    ):
        COMMAND.main(["random:test_resnet", "random:test_resnt", "--dataset", "digits"])


def test_features_have_the_numbers_of_the_diagnostics():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 20, generator=generator)
    views = features[:30, None] + 0.1 * torch.randn(30, 4, 20, generator=generator)
    found = analyse_features(features, views)
    assert found.numbers["rank_me"] == float(rank_me(features)) and found.numbers["lidar"] == float(lidar(views))
    assert found.numbers["alignment"] == float(alignment(views[:, 0], views[:, 1]))
    assert found.numbers["collapsed"] == 0 and found.numbers["spread"] == pytest.approx(1, abs=0.05)
    narrow = torch.cat([features[:, :10], 1e-4 * features[:, 10:]], dim=1)
    assert analyse_features(narrow, views).numbers["collapsed"] == 0.5


def test_a_predictor_is_analysed_by_its_weight_or_its_jacobian():
    linear, z = nn.Linear(6, 6, bias=False), torch.randn(300, 6)
    assert analyse_predictor(linear, z).numbers == pytest.approx(
        analyse_predictor(nn.Sequential(linear), z).numbers, rel=1e-5
    )


def test_views_depend_on_the_row_and_not_on_those_beside_them():
    transform = ImageTransform({"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}).of_crops()
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8))
    both = ManyViews(transform, find_recipe("simclr"), 16, 3, seed=1)(pictures, [4, 7])
    assert [views.shape for views in both] == [(3, 3, 16, 16)] * 2
    three, two = both[1], ManyViews(transform, find_recipe("simclr"), 16, 2, seed=1)(pictures[1:], [7])[0]
    torch.testing.assert_close(three[:2], two, rtol=0, atol=0)
    assert not torch.equal(three[0], three[2])
    assert not torch.equal(ManyViews(transform, find_recipe("simclr"), 16, 2, seed=1)(pictures[1:], [8])[0], two)


def test_view_features_are_in_the_order_of_the_images():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, pixel_values):
            return self.scale * pixel_values.mean(dim=(2, 3))

    transform = ImageTransform({"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3})
    encoder, source = Encoder(Mean(), transform, 3, "mean"), open_source("digits")
    once, again = (
        extract_view_features(encoder, source, "simclr", 2, image_size=16, batch_size=size, max_images=7)
        for size in (4, 64)
    )
    assert once.shape == (7, 2, 3) and once.dtype == torch.float32
    torch.testing.assert_close(once, again)
