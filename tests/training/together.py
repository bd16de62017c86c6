"""Runs a program in two processes of one group, as `torchrun` does, but imports the libraries once instead of thrice.

    python tests/training/together.py PROGRAM [ARGUMENT ...]

What launchers do, when a process dies or a signal comes, is tested with real ones: tests/commands/test_preemption.py.
"""

import importlib
import os
import runpy
import socket
import sys

from torch.multiprocessing.spawn import start_processes

LIBRARIES = ("accelerate", "sklearn.datasets", "hf_ssl.commands.pretrain", "hf_ssl.fine_tuning.task")


def be_one(number: int, port: int, words: list[str]) -> None:
    """Be the process with this number."""
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own_port = free.getsockname()[1]
    # A process that fails ends the other, and this one with its traceback.
    start_processes(be_one, (own_port, sys.argv[1:]), nprocs=2, start_method="fork")
