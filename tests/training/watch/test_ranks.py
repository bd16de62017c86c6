"""Lost processes, where no real ones are needed: what is said of them."""

import os
import socket
import subprocess
import sys

import pytest

from hf_ssl.errors import LostProcessError
from hf_ssl.training.watch import ranks
from hf_ssl.training.watch.ranks import Ranks


class Closed:
    """A store whose process is gone."""

    def set(self, *_):
        raise RuntimeError("Broken pipe")


def test_a_process_that_took_the_store_with_it_is_named_at_once(monkeypatch: pytest.MonkeyPatch):
    """Without a launcher the store is in process 0."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    said = []
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    monkeypatch.setattr(ranks, "end_process", lambda *words: said.append(words))
    for name in ("BEAT_SECONDS", "_SECONDS_TO_RAISE"):
        monkeypatch.setattr(ranks, name, 0.01)
    monkeypatch.setattr(ranks, "SILENCE_SECONDS", 2.0)
    watch = Ranks(lambda: "Checkpoint X.")
    watch._peers = [("a", socket.gethostname(), gone.pid), ("b", socket.gethostname(), os.getpid())]
    watch._store = Closed()
    watch._watch()
    assert said == [
        (
            f"Process 0 of 2 (pid {gone.pid} on {socket.gethostname()}) has died. Checkpoint X.",
            LostProcessError.exit_code,
        )
    ]
