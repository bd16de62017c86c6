"""A wheel of the repository, installed outside any clone, does all that a user does first."""

import json
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

import hf_ssl

ROOT = Path(__file__).parents[2]

PROGRAM = """
    import sys
    from pathlib import Path

    import hf_ssl
    import hf_ssl.evaluation.portrait
    from hf_ssl.commands import main

    assert Path(hf_ssl.__file__).is_relative_to(sys.argv[1]), hf_ssl.__file__
    hf_ssl.evaluation.portrait.MAX_IMAGES = 100  # not 2000
    small = ["--batch_size", "16", "--num_workers", "0"]
    steps = ["--num_steps", "4", "--warmup_steps", "0", "--cpu", *small]
    run, shapes, few = "runs/quickstart", ["--dataset", "shapes"], ["--knn_images", "100"]
    lines = [
        ["pretrain", "--recipe", "quickstart", "--encoder", "test_resnet", *steps, *few, "--output_dir", run],
        ["evaluate", run, "knn", *shapes, "--max_images", "64", "--k", "5", *small],
        ["extract", run, *shapes, "--max_images", "64", "--output", "features", *small],
        ["search", "photo.png", "--index", "features", "--k", "3", "--figure", "neighbours.png"],
        ["finetune", run, *shapes, "--train", "linear", *steps, "--output_dir", "runs/shapes"],
        ["publish", run, "--repo_id", "org/name", "--dry_run"],
    ]
    for line in lines:
        print(f"== {line[0]}", flush=True)
        code = main(line)
        if code:
            sys.exit(f"`{' '.join(line)}` ended with exit code {code}")
"""


def run(*words, folder, environment):
    done = subprocess.run([*map(str, words)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as a release is, by the build backend that `pyproject.toml` names."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, folder=ROOT, environment=os.environ)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that holds the installed wheel, and the environment in which Python finds it first."""
    folder = tmp_path_factory.mktemp("site-packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--target", folder, wheel, folder=folder, environment=os.environ)
    # Before the clone that the tests' Python knows; after it stands what every program of a test begins with.
    return folder, {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.slow
def test_a_wheel_holds_the_package_with_its_files_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    package = Path(hf_ssl.__file__).parent
    files = {path.relative_to(package.parent).as_posix() for path in package.rglob("*") if path.is_file()}
    expected = {name for name in files if "__pycache__" not in name}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.slow
def test_every_first_command_works_outside_a_clone(installed, tmp_path):
    folder, environment = installed
    picture = "import numpy, PIL.Image; PIL.Image.fromarray(numpy.eye(64, dtype='uint8') * 255).save('photo.png')"
    run(sys.executable, "-c", picture, folder=tmp_path, environment=environment)
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    printed = run(sys.executable, program, folder, folder=tmp_path, environment=environment)

    parts = dict(part.split("\n", 1) for part in re.split(r"^== ", printed, flags=re.MULTILINE)[1:])
    assert list(parts) == ["pretrain", "evaluate", "extract", "search", "finetune", "publish"]
    assert "similarity" in parts["search"] and (tmp_path / "neighbours.png").is_file()
    assert "Classifier: runs/shapes/classifier" in parts["finetune"] and "README.md" in parts["publish"]
    encoder = tmp_path / "runs" / "quickstart" / "encoder"
    record = json.loads((encoder / "run.json").read_text())
    assert record["commit"] is None and record["progress"]["step"] == 4  # no clone: nothing to name a commit of
    for card in (encoder / "README.md", tmp_path / "runs" / "shapes" / "classifier" / "README.md"):
        assert card.read_text().startswith("---\n")


@pytest.mark.slow
def test_the_installed_programs_start(installed, tmp_path):
    folder, environment = installed
    overview = run(folder / "bin" / "hf-ssl", "--help", folder=tmp_path, environment=environment)
    assert "usage: hf-ssl COMMAND" in overview
    version = run(sys.executable, "-m", "hf_ssl", "--version", folder=tmp_path, environment=environment)
    assert version == f"hf_ssl {hf_ssl.__version__}\n"
