"""The short form of the soak: runs that are hit by kills and signals, one program for all, since its start is dear."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ("kills_and_signals", "a_checkpoint_that_hangs", "a_second_signal", "an_export_that_hangs", "a_bit_that_flips")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What was tried -> what was wrong."""
    program = Path(__file__).with_name("short.py")
    command = [sys.executable, str(program), str(tmp_path_factory.mktemp("soak"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")
@pytest.mark.parametrize("name", NAMES)
def test_a_run_survives(found, name: str):
    assert found[name] == []


def test_the_guide_has_the_table_of_the_results():
    results = json.loads(Path(__file__).with_name("results.json").read_text())
    guide = Path(__file__).parents[2] / "scripts" / "guides" / "resume.md"
    assert runpy.run_path(str(Path(__file__).with_name("table.py")))["table"](results["cases"]) in guide.read_text()
    assert not any(case["differences"] for case in results["cases"])
