"""`hf-ssl simulate`: figures and numbers of each kind, and one sentence for wrong input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hf_ssl
from hf_ssl.commands import main


def run(folder: Path, *words: str) -> dict:
    """Numbers of a kind; its figures must be there."""
    assert main(["simulate", *words, "--output_dir", str(folder)]) == 0
    numbers = json.loads((folder / f"{words[0].replace('-', '_')}.json").read_text())
    for picture in folder.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000
    return numbers


def test_phase_portrait(tmp_path):
    numbers = run(tmp_path, "phase-portrait", "--etas", "0", "0.05", "0.2")
    points = numbers["fixed_points_by_eta"]
    assert points["0.05"]["p_minus"] == pytest.approx(0.0544467, abs=1e-7)
    assert points["0.05"]["eigenvalues_at_plus"] == pytest.approx([-0.1, -0.5122], abs=1e-4)
    assert points["0.2"]["p_plus"] is None
    assert {path.name for path in tmp_path.glob("*.png")} == {"phase_portrait.png", "one_dimensional_flow.png"}


def test_flow(tmp_path):
    words = ("--dim", "4", "--num_runs", "2", "--num_steps", "600", "--duration", "20", "--etas", "0", "0.1")
    numbers = run(tmp_path, "flow", *words)
    assert len(list(tmp_path.glob("*.png"))) == 5
    theorems = numbers["theorems"]
    for eta in ("0", "0.1"):
        assert theorems[eta]["largest_balance_residual"] < 1e-5
        assert theorems[eta]["last_commutator"] < 1e-3 * theorems[eta]["first_commutator"]
    assert theorems["norm of W, no predictor"] < 1e-3 < theorems["norm of W, as it is"]
    for values in numbers["constant_lag"]["eigenvalues_by_eta"].values():
        for first, last in zip(values["first"], values["last"], strict=True):
            # Both are sorted, and modes do not overtake each other.
            assert last < first if first < values["p_minus"] else last > values["p_minus"]
    assert numbers["eigenspace_alignment"]["cosine_by_eta"]["0"]["last_mean"] > 0.7


def test_sweep_finds_the_edge_of_the_closed_form(tmp_path, capsys):
    numbers = run(tmp_path, "sweep", "--size", "12", "--duration", "2000")
    assert numbers["share_where_they_agree"] == 1 and 0.3 < numbers["share_alive"] < 0.9
    assert len(numbers["s"]) == len(numbers["y"]) == 12
    assert "144/144" in capsys.readouterr().err
    words = (
        "--x",
        "beta",
        "--x_range",
        "0.001",
        "1",
        "--x_log",
        "--y",
        "alpha_p",
        "--y_range",
        "0.2",
        "5",
        "--tau",
        "0",
    )
    slow = run(tmp_path, "sweep", *words, "--size", "5", "--p", "0.15")
    survivors = [[s > 1e-3 for s in row] for row in slow["s"]]
    assert not any(row[0] for row in survivors) and all(row[-1] for row in survivors)  # a slow target loses the mode


def test_collapse(tmp_path, capsys):
    words = ("--dim", "8", "--num_steps", "400", "--batch_size", "32", "--depths", "1", "2", "--noises", "0.01", "2")
    numbers = run(tmp_path, "collapse", *words)
    assert numbers["frozen_statistics"]["negative_eigenvalues"] == 4
    assert numbers["strong_augmentation_by_noise"]["2"]["collapsed_by_theory"] == 4
    assert "collapsed_with_relu" in numbers["implicit_regularisation_by_depth"]["2"]
    assert "2100/2100" in capsys.readouterr().err
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("portrait",), "`simulate` knows no `portrait`. Did you mean `phase_portrait`?"),
        (("theory",), "`simulate` knows no `theory`. It is one of phase_portrait, flow, sweep, collapse."),
        (("sweep", "--x", "p", "--y", "p"), "`x` and `y` are both p"),
        (("sweep", "--x_range", "1"), "`x_range` must be a lower and a higher number, got 1.0"),
        (("sweep", "--x_log"), "`x_range` must be positive for `x_log`, got 0"),
        (("sweep", "--size", "1"), "`size` must be at least 2, got 1"),
        (("sweep", "--alpha_p", "-1"), "`alpha_p` must be positive, got -1.0"),
        (("sweep", "--duration", "0"), "`duration` must be positive, got 0.0"),
        (("flow", "--sover", "RK45"), "Unknown flag `--sover`. Did you mean `--solver`?"),
        (("flow", "--solver", "Euler"), "`solver` must be one of RK45"),
        (("flow", "--dim", "1"), "`dim` must be at least 2, got 1"),
        (("flow", "--beta", "0"), "`beta` must be positive, got 0.0"),
        (("flow", "--num_steps", "1"), "`num_steps` must be at least 10, got 1"),
        (("phase-portrait", "--etas", "-1"), "`eta` must be at least 0, got -1.0"),
        (("phase-portrait", "--tau", "0"), "`tau` must be positive, got 0.0"),
        (("collapse", "--depths", "0"), "`depth` must be at least 1, got 0"),
        (("collapse", "--dim", "1"), "`dim` must be at least 2, got 1"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, capsys, words, message):
    assert main(["simulate", *words, "--output_dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_wrong_input_ends_with_exit_code_2():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "hf_ssl", "simulate", "sweep", "--size", "one"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr == "error: `--size` must be a whole number, got 'one'.\n"


@pytest.mark.parametrize("kind", ["flow", "phase_portrait", "sweep", "collapse"])
def test_help_teaches(capsys, kind):
    assert main(["simulate", kind, "--help"]) == 0
    assert f"hf-ssl simulate {kind} --" in capsys.readouterr().out
    assert main(["simulate", "--help"]) == 0 and f"\n  {kind} " in capsys.readouterr().out


def test_from_python_numbers_and_files_come_back_and_threads_stay(tmp_path, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result = hf_ssl.simulate("phase-portrait", etas=[0.05], output_dir=tmp_path / "theory")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out == ""
    assert result.numbers == json.loads(result.json_file.read_text())
    assert result.json_file == tmp_path / "theory" / "phase_portrait.json"
    assert all(path.is_file() for path in result.figures) and len(result.figures) == 2
    assert str(result).splitlines() == [str(path) for path in (*result.figures, result.json_file)]
    with pytest.raises(hf_ssl.UserError, match="`tau` must be positive, got 0.0"):
        hf_ssl.simulate("phase_portrait", tau=0, output_dir=tmp_path)
