"""The lock of a run's folder, and what a run does where its disk refuses or has damaged its files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_ssl.errors import UserError
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.files import storage_errors_explained
from hf_ssl.training.lock import locked_output_dir
from hf_ssl.training.watch.log import MetricsLog

_TRY = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def can_lock(folder: Path) -> bool:
    """Whether another process could use the folder now."""
    return subprocess.run([sys.executable, "-S", "-c", _TRY, str(folder / ".lock")], stderr=-3).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_training_within_a_command_leaves_the_lock_to_it(tmp_path: Path):
    settings = TrainingSettings(output_dir=str(tmp_path), num_steps=1)
    with locked_output_dir(settings):
        with locked_output_dir(settings):
            assert not can_lock(tmp_path)
        assert not can_lock(tmp_path)  # what is exported now is safe
    assert can_lock(tmp_path)


def test_damaged_lines_of_a_log_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1}\n\xff\xfe{"step": 2}\n{"step": "x"}\n[4]\n{"loss": 5}\n{"step": 6}\n{"step": 7}\n{"st'
    )
    MetricsLog(path, 6).append({"step": 8})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 6, 8]
    assert "4 damaged lines of" in caplog.text


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    os.symlink("/dev/full", log.path)
    with pytest.raises(UserError, match=r"metrics.jsonl` cannot be written: No space left.* Make room .* continues"):
        log.append({"step": 1})
    log.path.unlink()
    log.append({"step": 1})

    def refuse(*_):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(UserError, match="Read-only file system. Make the folder writable"):
        MetricsLog(log.path, 1)


def test_other_errors_keep_their_traceback(tmp_path: Path):
    with pytest.raises(KeyError), storage_errors_explained(tmp_path):
        raise KeyError("x")
