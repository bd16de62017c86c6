"""The study of the curriculum: equations against integration and the paper's golden values, and all of it tiny."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_ssl.commands import main
from hf_ssl.dynamics.eigenmodes import EigenmodeFlow
from hf_ssl.methods.byol import BYOLForPreTraining
from hf_ssl.studies import curriculum
from hf_ssl.studies.curriculum_report import CLAIMS, COLUMNS, claims_of, order_of, text_of
from hf_ssl.studies.curriculum_settings import average_of, same_average
from hf_ssl.studies.curriculum_theory import (
    Moments,
    Rates,
    follow_alignment,
    follow_modes,
    moments_of,
    scaled,
    turning_steps,
)
from hf_ssl.studies.predictions import FILE
from hf_ssl.training.loop import train

SMALL = ["--dataset", "digits", "--num_steps", "4", "--measurements", "2", "--batch_size", "16", "--num_workers", "0"]
SMALL += ["--targets", "none", "0.9", "0.5-cosine", "--directions", "5"]


def start(p: list[float], s: list[float], noise: float = 0.5) -> Moments:
    between = torch.diag(torch.tensor(s, dtype=torch.float64))
    return Moments(between=between, within=noise * between, predictor=torch.diag(torch.tensor(p, dtype=torch.float64)))


def rates(**changed) -> Rates:
    values = {"learning_rate": 0.025, "optimizer_momentum": 0.9, "weight_decay": 0.2, "ema_momentum": None}
    return Rates(**{**values, "cosine": False, "num_steps": 400, **changed})


def test_modes_end_at_the_golden_fixed_points():
    # sigma^2 = 0.5 and eta = 0.05: p below 0.0544 dies, above it s ends at 0.3748 (a step is a time of 1).
    moments = start([0.05, 0.06, 1.0], [0.05**2, 0.06**2, 1.0])
    curves = follow_modes(moments, torch.eye(3, dtype=torch.float64), rates(num_steps=2000), [0, 1000, 2000])
    torch.testing.assert_close(curves[0], torch.tensor([0.05**2, 0.06**2, 1.0], dtype=torch.float64))
    assert curves[-1, 0] < 1e-8
    torch.testing.assert_close(curves[-1, 1:], torch.full((2,), 0.3748134, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("momentum", [None, 0.8])
def test_modes_follow_the_equations_of_p_s_and_tau(momentum):
    moments, steps = start([0.3, 0.5], [0.2, 0.05]), [0, 3, 10]
    chosen = rates(ema_momentum=momentum)
    found = follow_modes(moments, torch.eye(2, dtype=torch.float64), chosen, steps)
    flow = EigenmodeFlow(eta=0.05, noise=0.5, beta=None if momentum is None else 0.2)
    times = torch.tensor(steps, dtype=torch.float64)
    _, expected, _ = flow.trajectory(torch.tensor([0.3, 0.5]), torch.tensor([0.2, 0.05]), 1.0, times=times)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_a_dying_direction_does_not_end_the_solver():
    moments = start([-0.9, 0.2], [0.5, 0.1])
    curves = follow_modes(moments, torch.eye(2, dtype=torch.float64), rates(ema_momentum=0.999), [0, 200, 400])
    assert curves.isfinite().all() and curves.min() >= 0


def test_a_scheduled_momentum_rises_to_one():
    chosen = rates(ema_momentum=0.9, cosine=True)
    assert chosen.beta(0) == pytest.approx(0.1) and chosen.beta(200) == pytest.approx(0.05)
    assert chosen.beta(400) == pytest.approx(0, abs=1e-12)
    assert rates(ema_momentum=0.9).beta(300) == pytest.approx(0.1) and rates().beta(0) is None


def test_alignment_rises_and_does_so_later_with_a_slow_target():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64) / 3
    predictor = torch.randn(6, 6, generator=generator, dtype=torch.float64) / 10
    moments = Moments(between=root @ root.T, within=0.2 * root @ root.T, predictor=predictor)
    curves = {}
    for momentum in (None, 0.99):
        chosen = rates(ema_momentum=momentum, weight_decay=0.004, learning_rate=0.0025)
        curves[momentum] = follow_alignment(moments, chosen, [0, 30, 400])
        assert curves[momentum][0] == pytest.approx(moments.cosine())
    assert curves[None][1] > curves[0.99][1] and curves[None][2] > 0.9
    assert all(curve[0] < curve[1] < curve[2] for curve in curves.values())


def test_moments_are_what_views_share_and_what_augmentation_adds():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, 3, generator=generator) * torch.tensor([2.0, 1.0, 0.5])
    z = 5 + x + 0.5 * torch.randn(20_000, 2, 3, generator=generator)
    found = scaled(moments_of(z, torch.eye(3)), 2.0)
    torch.testing.assert_close(
        found.between, torch.diag(torch.tensor([4.0, 1.0, 0.25]) / 4).double(), atol=0.03, rtol=0
    )
    torch.testing.assert_close(found.within, 0.0625 * torch.eye(3).double(), atol=0.01, rtol=0)
    assert found.noise == pytest.approx(0.1875 / 1.3125, rel=0.05)


def test_a_direction_turns_half_of_the_way_on_a_logarithmic_scale():
    curves = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.9, 1.0], [9.0, 0.1, 1.0], [100.0, 0.01, 1.0]])
    # log 9 is less than half of log 100; log 0.1 is half of log 0.01.
    assert turning_steps([0, 10, 20, 30], curves) == [30, 20, 0]


def test_names_of_targets():
    assert average_of("none") == (None, False) and average_of("0.99-cosine") == (0.99, True)
    wrong_ones = ["1", "1.5", "nan", "inf", "-0.5", " 0.9", "1_0", "9e-1", "\u0660.\u0669", "", "slow", "-", "0.99-"]
    wrong_ones += ["-cosine", "cosine", "cosine-", "none-cosine", "0.9-linear", "0.9-1-2", "0.9-cosine-cosine"]
    for wrong in wrong_ones:
        with pytest.raises(ValueError, match="`targets` must be `none`, a momentum"):
            average_of(wrong)
    assert same_average(["0.9", "none", "0.9"]) == ["0.9", "none"]
    with pytest.raises(ValueError, match="has one moving average twice, as `0.9` and `0.90`. Leave one out."):
        same_average(["0.9", "0.90"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curriculum")
    assert main(["study", "curriculum", *SMALL, "--output_dir", str(folder), "--predict_only"]) == 0
    assert not (folder / "curriculum.json").exists()
    said = (folder / "predictions.json").read_bytes()
    assert main(["study", "curriculum", *SMALL, "--output_dir", str(folder)]) == 0
    assert (folder / "predictions.json").read_bytes() == said
    return folder


def test_runs_share_their_start_and_stand_beside_the_equations(finished: Path):
    results = json.loads((finished / "curriculum.json").read_text())
    said = json.loads((finished / "predictions.json").read_text())
    assert results["steps"] == [0, 2, 4] and set(results["holds"]) == set(CLAIMS)
    first = set()
    for target, one in results["targets"].items():
        (entry,) = [entry for entry in said["runs"] if entry["title"] == target]
        assert one["theory"] == entry["theory"] and entry["before_run"]
        measured = one["measured"]
        # The equations start where the network does.
        assert measured["s"][0] == pytest.approx(one["theory"]["s"][0], rel=1e-3)
        assert measured["cosine"][0] == pytest.approx(one["theory"]["cosine"][0], abs=1e-4)
        assert measured["s"][2] != measured["s"][0] and len(measured["s"][0]) == 5
        first.add((measured["alignment"][0], *measured["s"][0]))
    assert len(first) == 1


def test_finished_runs_are_read_and_a_file_is_drawn_again(finished: Path, tmp_path, capsys):
    before = json.loads((finished / "curriculum.json").read_text())["targets"]
    assert main(["study", "curriculum", *SMALL, "--output_dir", str(finished)]) == 0
    assert json.loads((finished / "curriculum.json").read_text())["targets"] == before
    words = ["--drawn_from", str(finished / "curriculum.json"), "--output_dir", str(tmp_path)]
    assert main(["study", "curriculum", *words]) == 0
    for name in ("curriculum.png", "alignment.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300
    assert "0.5-cosine" in capsys.readouterr().out


def test_a_new_target_is_predicted_before_it_is_trained(finished: Path, tmp_path, monkeypatch):
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    text = (folder / FILE).read_text()
    known = text[: text.rindex("\n  ]")]

    def look(*arguments, **options):
        assert [one["title"] for one in json.loads((folder / FILE).read_text())["runs"]][3:] == ["0.7"]
        return train(*arguments, **options)

    monkeypatch.setattr(curriculum, "train", look)
    words = ["study", "curriculum", *SMALL, "--output_dir", str(folder), "--targets", "0.7", "0.9"]
    assert main(words) == 0
    assert (folder / FILE).read_text().startswith(known)
    results = json.loads((folder / "curriculum.json").read_text())
    assert list(results["targets"]) == results["settings"]["targets"] == ["0.7", "0.9"]


def test_a_study_goes_on_where_sums_have_other_last_digits(finished: Path, tmp_path, monkeypatch):
    folder, exact = tmp_path / "study", vars(Moments)["noise"].fget
    shutil.copytree(finished, folder)
    monkeypatch.setattr(Moments, "noise", property(lambda self: exact(self) * (1 + 1e-9)))
    assert main(["study", "curriculum", *SMALL, "--output_dir", str(folder), "--predict_only"]) == 0
    assert (folder / FILE).read_bytes() == (finished / FILE).read_bytes()


@pytest.mark.parametrize("how", ["signal", "killed before its look"])
def test_a_run_that_was_cut_short_goes_on_to_the_same_numbers(finished: Path, tmp_path, monkeypatch, capsys, how):
    before = json.loads((finished / "curriculum.json").read_text())["targets"]["0.9"]["measured"]
    original, steps = BYOLForPreTraining.after_optimizer_step, []

    def count(model, step: int, num_steps: int):
        original(model, step, num_steps)
        steps.append(step)
        if how == "signal" and steps == [1, 2, 3]:
            os.kill(os.getpid(), signal.SIGTERM)

    class KilledError(BaseException):
        pass

    def killed(step, looks):
        raise KilledError

    monkeypatch.setattr(BYOLForPreTraining, "after_optimizer_step", count)
    words = ["study", "curriculum", *SMALL, "--output_dir", str(tmp_path), "--targets", "0.9", "none"]
    if how == "signal":
        assert main(words) == 128 + signal.SIGTERM
        out, err = capsys.readouterr()
        assert "Stopped by SIGTERM after 0 of 2 runs. The same command continues." in err
        assert out.endswith("Not finished: 0.9, none. The same command continues.\n")
        assert "turns (eq.)" in out and "holds" not in out and "FAILS" not in out
    else:
        with monkeypatch.context() as patched:
            patched.setattr(curriculum, "write_json", killed)
            with pytest.raises(KilledError):
                main(words)
        assert steps == [1, 2]
    assert main(words) == 0
    assert steps[:4] == ([1, 2, 3, 4] if how == "signal" else [1, 2, 1, 2])
    assert json.loads((tmp_path / "0.9" / "result.json").read_text()) == before


def test_looks_of_another_form_are_a_sentence(finished: Path, tmp_path, capsys):
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    (folder / "0.9" / "result.json").unlink()
    kept = folder / "0.9" / "looks.json"
    good = json.loads(kept.read_text())
    for content, message in (
        ({**good, "2": {"s": 1}}, "a run: `2.s` must be a list of numbers, got 1. Remove the file"),
        ({**good, "2": {}}, "a run: it lacks `2.s`. Remove the file"),
        ({"two": good["2"]}, "'two'. Remove the file"),
    ):
        kept.write_text(json.dumps(content))
        assert main(["study", "curriculum", *SMALL, "--output_dir", str(folder)]) == 2
        assert message in capsys.readouterr().err
    kept.write_text(json.dumps(good))
    assert main(["study", "curriculum", *SMALL, "--output_dir", str(folder)]) == 0
    name = Path("0.9", "result.json")
    assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_a_study_that_was_stopped_says_what_is_missing():
    one = {"theory": {"turns": 2, "cosine": [0.1, 0.5]}, "order": 0.5}
    targets = {"none": {**one, "measured": {"turns": 4, "cosine": [0.1, None]}}, "0.9": {"theory": one["theory"]}}
    lines = text_of({"targets": targets}).splitlines()
    assert lines[1].split() == ["none", "2", "0.50", "4", "0.50", "none"]
    assert lines[2].split() == ["0.9", "2", "0.50", *["not", "run"] * 3]
    assert not any("holds" in line or "FAILS" in line for line in lines)


def test_where_all_directions_have_collapsed_there_is_no_cosine():
    empty = Moments(between=-torch.eye(3).double(), within=torch.eye(3).double(), predictor=torch.eye(3).double())
    assert empty.cosine() is None
    slow = {"turning_steps": [0, 1], "cosine": [0.2, None]}
    fast = {"turning_steps": [0, 1], "cosine": [0.1, 0.5]}
    gone = {"turning_steps": [0, 1], "cosine": [None, None]}
    curves = {"a": slow, "b": fast, "c": gone}
    targets = {name: {"theory": one, "measured": one, "order": 1.0} for name, one in curves.items()}
    assert claims_of(targets) == {"order": True, "alignment": True}
    targets["a"]["measured"] = gone  # which is not the slowest, though it has nothing
    assert not claims_of(targets)["alignment"]
    assert order_of([1, 2, 3], [5, 5, 5]) == 0 and order_of([1, 2, 3], [3, 5, 9]) == 1


def test_only_results_of_the_study_are_drawn(finished: Path, tmp_path, capsys):
    for name, message in (
        ("predictions.json", "holds none: it lacks `targets`. Name its curriculum.json"),
        ("none.json", "there is no `"),
    ):
        words = ["--drawn_from", str(finished / name), "--output_dir", str(tmp_path / "out")]
        assert main(["study", "curriculum", *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_drawing_does_not_use_is_refused(finished: Path, tmp_path, capsys):
    words = ["--drawn_from", str(finished / "curriculum.json"), "--output_dir", str(tmp_path / "out")]
    assert main(["study", "curriculum", *words, "--num_steps", "240", "--predict_only"]) == 2
    assert "draws what is there, so `predict_only` and `num_steps` would not be used." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_of_another_form_are_a_sentence(finished: Path, tmp_path, capsys):
    good = json.loads((finished / "curriculum.json").read_text())
    for content, message in (
        ({**good, "targets": {}}, "`targets` must have curves of as many numbers as `steps`"),
        ({**good, "steps": [0, 2]}, "`targets` must have curves of as many numbers as `steps`"),
        ({**good, "targets": [1]}, "`targets` must be a JSON object of JSON objects, got [1]"),
    ):
        (tmp_path / "x.json").write_text(json.dumps(content))
        words = ["--drawn_from", str(tmp_path / "x.json"), "--output_dir", str(tmp_path / "out")]
        assert main(["study", "curriculum", *words]) == 2
        assert message in capsys.readouterr().err
    result = finished / "0.9" / "result.json"
    kept = json.loads(result.read_text())
    for content, message in (
        ({"turns": "a"}, "`turns` must be a whole number, got `a`"),
        ({**kept, "cosine": [0.5]}, "`s` and `cosine` must have a number for each step"),
        ({**kept, "turning_steps": [2] * 3, "s": [[0.1] * 3] * 3}, "its `directions` is 3, and the folder is of 5"),
    ):
        result.write_text(json.dumps(content))
        assert main(["study", "curriculum", *SMALL, "--output_dir", str(finished)]) == 2
        assert message in capsys.readouterr().err
    result.write_text(json.dumps(kept))


def test_what_may_be_published_has_no_path(finished: Path, tmp_path, capsys):
    results = json.loads((finished / "curriculum.json").read_text())
    assert results["command"].endswith(" --output_dir FOLDER")
    assert str(finished.parent) not in json.dumps(results)
    assert results["settings"]["view_recipe"]  # that of the method's recipe, which was not given
    table = text_of(results)
    assert all(f"{name:>14}" in table and f"{name:<13} {meaning}" in table for name, meaning in COLUMNS.items())
    assert main(["study", "curriculum", *SMALL, "--seeds", "2", "--output_dir", str(tmp_path)]) == 2
    assert "`seeds` must be 1 in this study, whose runs share one start, got 2." in capsys.readouterr().err
