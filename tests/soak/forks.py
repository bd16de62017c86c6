"""Starts runs: by fork from this process, which has imported everything once, or by a real launcher."""

import atexit
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil

LIBRARIES = (
    *("accelerate", "datasets", "matplotlib.figure", "scipy.stats", "sklearn.linear_model", "timm", "torch"),
    *("torchvision", "transformers", "hf_ssl.commands.pretrain"),
)
TRAINER = str(Path(__file__).with_name("trainer.py"))
LAUNCHERS = {
    "fork": None,
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node"],
    "accelerate": ["accelerate.commands.launch", "--num_processes"],
}


def import_libraries() -> None:
    """Pay for the imports once; `fork` needs a process without threads."""
    for library in LIBRARIES:
        importlib.import_module(library)


class Started:
    """A run of one or several processes, all of which work in the folder that tells them from others.

    Args:
        folder: Working folder of all its processes, and of no others.
        number: Of the start, in names of its files.
        arguments: Of `hf-ssl`.
        form: A key of `LAUNCHERS`; `fork` starts the processes of a run without any launcher.
        num_processes: Trainers.
        prepare: Called in each forked process before the run.

    Attributes:
        codes: Exit codes of the processes that were started here, by process; None while they are at work.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        arguments: list[str],
        form: str,
        num_processes: int,
        prepare: Callable[[], None] | None = None,
    ):
        self.folder, self.arguments, self.form, self.num_processes = folder, arguments, form, num_processes
        self.log = folder / f"log-{number}.txt"
        self.environment = {"SOAK_TRACE": str(folder / f"trace-{number}"), "ACCELERATE_USE_CPU": "true"}
        self.codes: dict[int, int | None] = {}
        launcher = LAUNCHERS[form]
        if launcher is not None:
            several = ["--multi_gpu"] if form == "accelerate" and num_processes > 1 else []
            words = [*launcher[:1], *several, *launcher[1:], str(num_processes)]
            command = [sys.executable, "-m", *words, TRAINER, *arguments]
            with self.log.open("w") as log:
                self._launcher = subprocess.Popen(
                    command,
                    cwd=folder,
                    env={**os.environ, **self.environment},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.codes[self._launcher.pid] = None
            return
        places = [{}] if num_processes == 1 else _places(num_processes)
        for place in places:
            self.codes[_fork(folder, self.log, {**self.environment, **place}, arguments, prepare)] = None

    @property
    def first(self) -> int:
        """The launcher, or the first process."""
        return next(iter(self.codes))

    def trainers(self) -> list[int]:
        """Processes that train, without launcher and data workers; empty while a launcher starts."""
        if self.form == "fork":
            return [process for process, code in self.codes.items() if code is None]
        return [one.pid for one in self.processes() if _parent(one) == self.first]

    def workers(self) -> list[int]:
        """Data workers and other processes below the trainers."""
        trainers = {*self.trainers(), *self.codes}
        return [one.pid for one in self.processes() if one.pid not in trainers]

    def processes(self) -> list[psutil.Process]:
        """All that are at work, whoever is their parent now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(self.folder):
                    found.append(process)
            except psutil.Error:
                continue  # it has ended, or is of another user
        return found

    def has_ended(self) -> bool:
        """Whether those that were started here have ended; notes their exit codes."""
        for process, code in self.codes.items():
            if code is None:
                if self.form != "fork":
                    self.codes[process] = self._launcher.poll()
                elif (done := os.waitpid(process, os.WNOHANG))[0]:
                    self.codes[process] = os.waitstatus_to_exitcode(done[1])
        return None not in self.codes.values()

    def wait(self, seconds: float) -> bool:
        """Whether all processes end within a time, also those that nobody waits for."""
        end = time.monotonic() + seconds
        while not self.has_ended() or self.processes():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def end_others(self, seconds: float) -> None:
        """Do as every launcher does when one process has ended: ask the others to end."""
        end = time.monotonic() + seconds
        while self.form == "fork" and not self.has_ended() and time.monotonic() < end:
            if any(code is not None for code in self.codes.values()):
                for process in self.trainers():
                    send(process, signal.SIGTERM)
                return
            time.sleep(0.02)

    def clean_up(self) -> None:
        """Leave no process behind."""
        for process in self.processes():
            send(process.pid, signal.SIGKILL)
        self.wait(60)


def send(process: int, number: int) -> bool:
    """Send a signal; False if the process is gone."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.Error:
        return 0


def _places(num_processes: int) -> list[dict[str, str]]:
    """What a launcher would tell each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]


def _fork(
    folder: Path,
    log: Path,
    environment: dict[str, str],
    arguments: list[str],
    prepare: Callable[[], None] | None,
) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(environment)
        trainer = importlib.import_module("trainer")
        trainer.write_down_pictures()
        if prepare is not None:
            prepare()
        sys.argv = [TRAINER, *arguments]
        trainer.program()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:  # before the run has begun
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
