"""The study of augmentation: what it measures and scores, the theorem in its own setting, and all of it tiny."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_ssl.commands import main
from hf_ssl.dynamics.dimensional_collapse import contrastive_spreads
from hf_ssl.studies import augmentation
from hf_ssl.studies.augmentation_measures import (
    CLAIMS,
    _softmax_weights,
    linear_layer,
    predict,
    principal_directions,
    retained,
    scores_of,
    spectra_of,
    warn_of_few,
)
from hf_ssl.studies.augmentation_report import COLUMNS, text_of
from hf_ssl.studies.predictions import FILE
from hf_ssl.training.loop import train

SMALL = ["--dataset", "digits", "--num_steps", "3", "--batch_size", "16", "--num_workers", "0", "--eval_images", "60"]
SMALL += ["--view_images", "40", "--num_views", "3", "--views", "moco_v2", "randaugment"]


def made(noise: list[float], images: int = 600, views: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, len(noise), generator=generator) * torch.linspace(2, 1, len(noise))
    return x, x[:, None] + torch.tensor(noise) * torch.randn(images, views, len(noise), generator=generator)


def test_a_rotation_keeps_everything_and_a_projection_loses_its_directions():
    before = torch.randn(400, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    turned = before @ torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0] + 3
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(retained(before, turned, eye), torch.ones(6, dtype=torch.float64), atol=1e-4, rtol=0)
    kept = retained(before, before[:, :4], eye)
    assert kept[:4].min() > 0.999 and kept[4:].max() < 0.05
    half = retained(before, before + torch.randn(400, 6, dtype=torch.float64), eye)
    assert half.min() > 0.35 and half.max() < 0.65  # signal and noise of equal variance


def test_few_images_for_many_features_are_warned_of(caplog):
    warn_of_few(images=2048, width=256)
    assert not caplog.records
    warn_of_few(images=2047, width=256)
    assert "A linear map of 256 features is fitted to 1023 images" in caplog.text and "Measure on 2048" in caplog.text


def test_directions_are_those_that_are_used_largest_first():
    images = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0, 0.0, 2.0, 1e-5])
    directions = principal_directions(images)
    assert directions.shape == (5, 3)
    assert directions.abs().argmax(dim=0).tolist() == [1, 3, 0]


def test_shares_and_counts_are_those_of_the_noise():
    images, views = made([0.1, 0.1, 4.0, 1.3])
    said = predict(images, views, torch.eye(4, dtype=torch.float64))
    variances = torch.linspace(2, 1, 4).square()
    expected = torch.tensor([0.1, 0.1, 4.0, 1.3]).square()
    spectra = spectra_of(images, views, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(spectra["within"], expected.double(), rtol=0.1, atol=0)
    for name in ("images", "between"):
        torch.testing.assert_close(spectra[name], variances.double(), rtol=0.3, atol=0)
    assert said["shares"] == pytest.approx((expected / (expected + variances)).tolist(), abs=0.03)
    # 16 against 1.8 is lost; 1.7 against 1 is more than the data, and less than twice of it.
    assert (said["dominated"], said["lost_by_theorem"]) == (2, 1)


def test_in_its_own_setting_the_theorem_holds():
    images, views = made([0.1, 0.5, 4.0, 3.0, 0.2, 5.0])
    found = linear_layer(images, views, two_views=False)
    assert found["negative"] == found["shrunk"] == 3
    assert found["agree"] == 1 and found["rank_correlation"] > 0.9
    both = linear_layer(images, views, two_views=True)
    assert both["negative"] == both["shrunk"] == 0


def test_softmax_weights_are_those_of_the_loss():
    images, views = made([0.5, 1.0], images=20)
    first, second = images.double(), views[:, 0].double()
    eye = torch.eye(2, dtype=torch.float64)
    expected = contrastive_spreads(eye, first, second)
    weights = _softmax_weights(first, second)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(20, dtype=torch.float64))
    pairs = first[:, None] - first
    others = weights - weights.diagonal().diag()
    torch.testing.assert_close(torch.einsum("ij,ijk,ijl->kl", others, pairs, pairs) / 20, expected.data)


def test_scores_hold_what_the_claims_say():
    variances = [4.0, 1.0, 3.0, 2.0]
    predictions = {
        "weak": {"shares": [0.1, 0.2, 0.3, 0.4], "lost_by_theorem": 1},
        "strong": {"shares": [0.5, 0.9, 0.6, 0.6], "lost_by_theorem": 2},
    }
    kept = {"weak": [0.9, 0.8, 0.7, 0.6], "strong": [0.5, 0.1, 0.4, 0.35]}
    scores = scores_of(variances, predictions, kept)
    assert scores["by_recipe"]["weak"]["share_and_loss"] == 1
    assert scores["by_recipe"]["weak"]["variance_and_loss"] < 1
    assert scores["differences"] == {"weak - strong": pytest.approx(0.95, abs=0.1)}
    assert scores["claims"]["recipes"] and scores["claims"]["differences"]
    turned = scores_of(variances, predictions, {"weak": kept["strong"], "strong": kept["weak"]})
    assert not turned["claims"]["recipes"] and not turned["claims"]["differences"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("augmentation")
    assert main(["study", "augmentation", *SMALL, "--output_dir", str(folder), "--predict_only"]) == 0
    assert {path.name for path in folder.iterdir()} == {"predictions.json", "settings.json"}
    said = (folder / "predictions.json").read_bytes()
    assert main(["study", "augmentation", *SMALL, "--output_dir", str(folder)]) == 0
    assert (folder / "predictions.json").read_bytes() == said  # older than the runs, and left as it was
    return folder


def test_runs_are_compared_with_what_was_said_before(finished: Path):
    results = json.loads((finished / "augmentation.json").read_text())
    said = json.loads((finished / "predictions.json").read_text())
    (one,) = results["seeds"]
    assert one["predictions"] == {entry["title"]: entry["prediction"] for entry in said["runs"]}
    assert all(entry["before_run"] and entry["variances"] == one["variances"] for entry in said["runs"])
    assert list(one["runs"]) == ["moco_v2", "randaugment"]
    for measured in one["runs"].values():
        assert len(measured["kept"]) == one["directions"] and 0 <= min(measured["kept"]) <= max(measured["kept"]) <= 1
    assert set(one["scores"]["claims"]) == set(CLAIMS)
    assert results["command"].endswith(" --output_dir FOLDER")
    assert str(finished.parent) not in json.dumps(results)


def test_new_recipes_and_seeds_are_predicted_before_they_are_trained(finished: Path, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    text = (folder / "predictions.json").read_text()
    before, trained = json.loads(text), []
    known = text[: text.rindex("\n  ]")]  # byte for byte, up to the end of the list

    def look(*arguments):
        trained.append([(one["title"], one["seed"]) for one in json.loads((folder / FILE).read_text())["runs"]])
        return train(*arguments)

    monkeypatch.setattr(augmentation, "train", look)
    words = ["study", "augmentation", *SMALL[:-2], "byol", "moco_v2", "--output_dir", str(folder)]
    assert main([*words, "--seeds", "2"]) == 0
    new = [("byol", 0), ("byol", 1), ("moco_v2", 1)]
    assert trained == [[("moco_v2", 0), ("randaugment", 0), *new]] * 3
    assert (folder / FILE).read_text().startswith(known)
    after = json.loads((folder / FILE).read_text())
    assert all(one["before_run"] for one in after["runs"]) and after["command"] == before["command"]
    results = json.loads((folder / "augmentation.json").read_text())
    assert [list(one["predictions"]) for one in results["seeds"]] == [["byol", "moco_v2"]] * 2
    assert results["seeds"][0]["predictions"]["moco_v2"] == before["runs"][0]["prediction"]
    (folder / FILE).unlink()
    capsys.readouterr()
    assert main([*words, "--predict_only"]) == 0  # and what comes late says so
    assert "2 of these runs had begun before they were predicted." in capsys.readouterr().out


def test_a_prediction_of_another_start_is_refused(finished: Path, tmp_path, capsys):
    for change, message in (
        (lambda one: one.update(seed="a"), "`runs.0.seed` must be a whole number"),
        (lambda one: one.update(variances=[1.0]), "every list must have a number for each of its"),
        (lambda one: one.update(_short(one)), "is about 2 directions, but the encoder has"),
    ):
        folder = tmp_path / message[:8].strip("`")
        shutil.copytree(finished, folder)
        said = json.loads((folder / FILE).read_text())
        change(said["runs"][0])
        (folder / FILE).write_text(json.dumps(said))
        assert main(["study", "augmentation", *SMALL, "--output_dir", str(folder)]) == 2
        assert message in capsys.readouterr().err


def _short(one: dict) -> dict:
    spectra = {name: values[:2] for name, values in one["spectra"].items()}
    prediction = {**one["prediction"], "shares": one["prediction"]["shares"][:2]}
    return {"directions": 2, "variances": one["variances"][:2], "spectra": spectra, "prediction": prediction}


def test_a_direction_in_which_nothing_varies_has_no_number(finished: Path, tmp_path, monkeypatch):
    before = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before[20:, 2] = 5.0  # the half that judges
    kept = retained(before, before, torch.eye(3, dtype=torch.float64)).tolist()
    assert kept[:2] == pytest.approx([1, 1], abs=1e-4) and kept[2] != kept[2]
    said = {name: {"shares": [0.1, 0.2, 0.9], "lost_by_theorem": 1} for name in ("one", "other")}
    scores = scores_of([3.0, 2.0, 1.0], said, {"one": [0.9, 0.5, None], "other": [0.8, 0.2, 0.1]})
    assert scores["by_recipe"]["one"] == {
        "share_and_loss": 1.0,
        "variance_and_loss": 1.0,
        "mean_loss": pytest.approx(0.3),
    }
    assert scores["by_recipe"]["other"]["mean_loss"] == pytest.approx(0.5)  # of the two directions that both tell
    # In the file it is null, which is read and drawn.
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    (folder / "moco_v2" / "seed0" / "result.json").unlink()
    one = json.loads((finished / "augmentation.json").read_text())["seeds"][0]["runs"]["moco_v2"]["kept"]
    values = torch.tensor([math.nan, *one[1:]])
    monkeypatch.setattr(augmentation, "retained", lambda *arguments: values)
    for _ in range(2):
        assert main(["study", "augmentation", *SMALL, "--output_dir", str(folder)]) == 0
    results = json.loads((folder / "augmentation.json").read_text(), parse_constant=pytest.fail)
    assert results["seeds"][0]["runs"]["moco_v2"]["kept"][0] is None


def test_finished_runs_are_not_made_again_and_a_file_is_drawn_again(finished: Path, tmp_path, capsys):
    before = (finished / "augmentation.json").read_text()
    (finished / "moco_v2" / "seed0" / "metrics.jsonl").unlink()  # a run would need it
    assert main(["study", "augmentation", *SMALL, "--output_dir", str(finished)]) == 0
    printed = capsys.readouterr().out
    for name, meaning in COLUMNS.items():  # every column of the table is explained
        assert f"{name:>13}" in printed and f"{name:<12} {meaning}" in printed
    assert json.loads((finished / "augmentation.json").read_text())["seeds"] == json.loads(before)["seeds"]
    words = ["--drawn_from", str(finished / "augmentation.json"), "--output_dir", str(tmp_path)]
    assert main(["study", "augmentation", *words]) == 0
    for name in ("augmentation.png", "spectra.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300
    assert "A linear layer on these features, moco_v2, two views" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kept": [0.5]}, "result of a run of this study: it lacks `loss`"),
        ({"kept": "all"}, "`kept` must be a list of numbers or none values, got `all`"),
        ([], "must hold a JSON object"),
        (None, "its `directions` is 1, and the folder is of "),
    ],
)
def test_a_result_of_another_form_is_a_sentence(finished: Path, content, message, capsys):
    result = finished / "randaugment" / "seed0" / "result.json"
    kept = result.read_text()
    result.write_text(json.dumps({**json.loads(kept), "kept": [0.5]} if content is None else content))
    assert main(["study", "augmentation", *SMALL, "--output_dir", str(finished)]) == 2
    assert message in capsys.readouterr().err
    result.write_text(kept)


def test_a_file_of_another_form_is_not_drawn(finished: Path, tmp_path, capsys):
    good = json.loads((finished / "augmentation.json").read_text())
    (one,) = good["seeds"]
    other = {**one, "runs": {**one["runs"], "moco_v2": {**one["runs"]["moco_v2"], "kept": [0.5]}}}
    for content, message in (
        ({**good, "seeds": []}, "`seeds` is empty"),
        ({**good, "seeds": 3}, "`seeds` must be a list of JSON objects, got 3"),
        ({**good, "seeds": [{**one, "runs": {}}]}, "must be of the same recipes"),
        ({**good, "seeds": [{**one, "variances": ["a"]}]}, "`seeds.0.variances` must be a list of numbers"),
        ({**good, "seeds": [other]}, "every list of a seed must have a number for each"),
        ({**good, "study": "curriculum"}, "its `study` is 'curriculum'"),
    ):
        (tmp_path / "x.json").write_text(json.dumps(content))
        words = ["--drawn_from", str(tmp_path / "x.json"), "--output_dir", str(tmp_path / "out")]
        assert main(["study", "augmentation", *words]) == 2
        assert message in capsys.readouterr().err


def test_where_nothing_varies_or_a_layer_diverges_there_is_no_number():
    said = {name: {"shares": [0.5, 0.6], "lost_by_theorem": 1} for name in ("one", "other")}
    scores = scores_of([2.0, 1.0], said, {"one": [0.0, 0.0], "other": [0.0, 0.0]})
    assert scores["by_recipe"]["one"]["share_and_loss"] is None and scores["differences"] == {"one - other": None}
    assert not scores["claims"]["directions"] and not scores["claims"]["differences"]
    images, views = made([0.5, 1.0, 2.0], images=40)
    layer = linear_layer(images * 100, views, two_views=False)  # X is large beside the spread of views
    assert layer["agree"] is None and layer["rank_correlation"] is None
    json.dumps(scores | layer, allow_nan=False)
    one = {"seed": 0, "directions": 2, "predictions": {}, "linear_layer": {"one": {"two_views": layer}}}
    assert "one, two views: X has 0 negative eigenvalues, training diverged" in text_of(one)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--view_recipe", "byol"], "`view_recipe` has no place in this study. Name the recipes by `views`."),
        (["--views", "moko_v2"], "`views` must name recipes, got `moko_v2`. Did you mean `moco_v2`"),
        (["--views", "3"], "`views` must name recipes, got 3. The number of views is `num_views`."),
        (["--num_views", "1"], "`num_views` must be at least 2, got 1"),
        (["--test_split", "train"], "`split` and `test_split` are both `train`"),
    ],
)
def test_wrong_words_are_a_sentence(words, message, tmp_path, capsys):
    assert main(["study", "augmentation", *SMALL, "--output_dir", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_it_needs_images_unless_it_draws(tmp_path, capsys):
    assert main(["study", "augmentation", "--output_dir", str(tmp_path)]) == 2
    assert "`dataset` is needed" in capsys.readouterr().err


def test_only_results_of_the_study_are_drawn(finished: Path, tmp_path, capsys):
    for name, message in (
        ("predictions.json", "holds none: it lacks `seeds`. Name its augmentation.json"),
        ("none.json", "there is no `"),
    ):
        words = ["--drawn_from", str(finished / name), "--output_dir", str(tmp_path / "out")]
        assert main(["study", "augmentation", *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
