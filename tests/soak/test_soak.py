"""The short form of the soak: runs that are hit by kills and signals, one program for all, since its start is dear."""

import json
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
