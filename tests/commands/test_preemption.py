"""What a cluster does to a run, by real launchers: each start takes seconds, so that few have to show much."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from torch.distributed.run import get_args_parser

from hf_ssl.commands.pretrain import COMMAND
from hf_ssl.training.checkpoint import complete_checkpoints

HANG = """
import os, threading
from hf_ssl.data.order.stream import TrainingStream

batches = TrainingStream.__iter__

def hanging(self):
    for number, batch in enumerate(batches(self)):
        if number == 12 and os.environ.get("RANK", "0") == "0":
            threading.Event().wait()
        yield batch

TrainingStream.__iter__ = hanging
from hf_ssl.commands import program
program()
"""


class Launched:
    """A run that a launcher has started, which has written its first checkpoint."""

    def __init__(self, folder: Path, launcher: list[str], *flags: str, program: tuple[str, ...] = ("-m", "hf_ssl")):
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "0"}
        settings = ["--method", "simsiam", "--dataset", "digits", "--output_dir", str(folder / "run")]
        settings += ["--architecture", "test_resnet", "--image_size", "16", "--batch_size", "8", "--num_workers", "1"]
        settings += ["--num_steps", "100000", "--checkpoint_every", "10", "--diagnostics_every", "0", *flags]
        self.run_dir, self.log = folder / "run", folder / "log"
        with self.log.open("w") as log:
            self.process = psutil.Popen(
                [sys.executable, "-m", *launcher, *program, "pretrain", *settings],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(lambda: bool(complete_checkpoints(self.run_dir)) or self.process.poll() is not None, self)
        assert self.process.poll() is None, self.said()
        self.all = self.process.children(recursive=True)
        self.trainers = [one for one in self.all if one.ppid() == self.process.pid]

    def said(self) -> str:
        """Everything that the run has printed, in one line."""
        return " ".join(self.log.read_text().split())

    def has_ended(self) -> bool:
        """Whether the launcher and every process below it are gone."""
        self.process.poll()
        return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in [self.process, *self.all])

    def clean_up(self) -> None:
        """Leave no process behind, whatever failed."""
        for one in [self.process, *self.all]:
            if one.is_running():
                one.kill()


@pytest.fixture
def launch(tmp_path: Path):
    runs: list[Launched] = []

    def start(*args, **options) -> Launched:
        runs.append(Launched(tmp_path, *args, **options))
        return runs[-1]

    yield start
    for one in runs:
        one.clean_up()


def wait_until(condition: Callable[[], bool], run: Launched) -> None:
    try:
        while not condition():
            time.sleep(0.1)
    except BaseException:
        print(run.said())  # noqa: T201 (shown where the suite's limit ends a wait)
        raise


ACCELERATE = ["accelerate.commands.launch", "--num_processes", "1"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.mark.slow
def test_two_processes_whose_launcher_dies_of_a_signal_end_with_a_checkpoint(launch):
    run = launch(TORCHRUN)
    os.kill(run.process.pid, signal.SIGUSR1)  # which `torchrun` does not pass on unless it is told to
    wait_until(run.has_ended, run)
    assert run.process.returncode == -signal.SIGUSR1
    said = run.said()
    assert "The launcher of this process has died" in said and "Stopped by SIGTERM after step" in said
    step = int(said.rpartition("Stopped by SIGTERM after step ")[2].split()[0])
    assert complete_checkpoints(run.run_dir)[-1].name == f"step-{step:06d}"


@pytest.mark.slow
def test_a_process_that_is_killed_is_named_by_the_others(launch):
    run = launch(TORCHRUN)
    os.kill(run.trainers[1].pid, signal.SIGKILL)
    wait_until(run.has_ended, run)
    said = run.said()
    lost = next(number for number in (0, 1) if f"Process {number} of 2 (pid {run.trainers[1].pid} on " in said)
    assert f"error: Process {lost} of 2" in said.replace(f"(process {1 - lost}) ", "")
    assert "has died. The run stopped after step" in said and "its newest checkpoint is" in said
    assert "in backward" not in said  # no traceback of the loop


@pytest.mark.slow
def test_signals_to_all_processes_while_the_data_of_one_hang(launch, tmp_path: Path):
    program = tmp_path / "hang.py"
    program.write_text(HANG)
    run = launch(TORCHRUN, "--grace_seconds", "3", program=(str(program),))
    for one in [run.process, *run.all]:
        os.kill(one.pid, signal.SIGTERM)
    wait_until(run.has_ended, run)
    said = run.said()
    assert "SIGTERM came 3 seconds ago (`grace_seconds`)" in said
    assert f"its newest checkpoint is {complete_checkpoints(run.run_dir)[-1]}" in said
    assert "exitcode : 143" in said or "SignalException" in said


@pytest.mark.slow
def test_accelerate_that_passes_nothing_on_leaves_no_process(launch):
    run = launch(ACCELERATE)
    os.killpg(run.process.pid, signal.SIGHUP)  # launcher, trainer and data worker
    wait_until(run.has_ended, run)
    assert "Stopped by SIGHUP after step" in run.said()
    assert "Traceback" not in run.said()


STAND_IN = """#!/bin/bash
echo "$(basename $0) $*" >> "$CALLS"
case "$(basename $0) $1" in
    "scontrol show") echo first; echo second ;;
    "srun "*) shift; exec torchrun "$@" ;;
    "torchrun "*)
        trap 'exit 143' TERM
        sleep 0.5
        eval "$KILL"
        for i in $(seq 36000); do [ -n "$KILL" ] || exit 0; sleep 0.1; done ;;
esac
"""


def check_flags(words: list[str]) -> None:
    """That `torchrun` and `hf-ssl pretrain` know what they are given."""
    launched = get_args_parser().parse_args(words)
    assert launched.module and launched.training_script == "hf_ssl"
    name, *flags = launched.training_script_args
    assert name == "pretrain" and COMMAND.parse(flags)["resume"] == "auto"


def test_the_examples_for_clusters(tmp_path: Path):
    guide = (Path(__file__).parents[2] / "scripts" / "guides" / "resume.md").read_text()
    cluster = guide[guide.index("## On a cluster") : guide.index("## Disks that fail")]
    slurm, elastic = re.findall(r"<!-- not run.*?```bash\n(.*?)```", cluster, re.DOTALL)
    check_flags(shlex.split(elastic.replace("\\\n", " "))[1:])
    for name in ("scontrol", "srun", "torchrun"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(slurm)
    job = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "gpu[1-2]"}
    for kill, code, requeued in (("", 0, False), ("kill -USR1 $PPID", 143, True)):
        calls = tmp_path / f"calls-{code}"
        stand_ins = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "KILL": kill}
        done = subprocess.run(
            ["bash", "job.sh"], cwd=tmp_path, env={**os.environ, **job, **stand_ins}, capture_output=True
        )
        called = calls.read_text().splitlines()
        assert done.returncode == code, (called, done.stderr)
        check_flags(shlex.split(next(line for line in called if line.startswith("torchrun")))[1:])
        assert ("scontrol requeue 77" in called) == requeued


DIES = """
import os, signal
from hf_ssl.training import pretraining

opened = pretraining.open_stream

def open_stream(*arguments, **options):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return opened(*arguments, **options)

pretraining.open_stream = open_stream
from hf_ssl.commands import program
program()
"""


def test_a_process_that_dies_before_the_first_step_is_named(tmp_path: Path):
    """Without a launcher that would end the others, as under srun."""
    program = tmp_path / "program.py"
    program.write_text(DIES)
    settings = ["--method", "simsiam", "--dataset", "digits", "--output_dir", str(tmp_path / "run")]
    settings += ["--architecture", "test_resnet", "--image_size", "16", "--batch_size", "8", "--num_workers", "0"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), "pretrain", *settings],
            env={**os.environ, **address, "WORLD_SIZE": "2", "RANK": number, "LOCAL_RANK": number},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    _, said = processes[0].communicate()
    processes[1].communicate()
    assert [process.returncode for process in processes] == [75, -signal.SIGKILL], said
    assert re.search(r"error: Process 1 of 2 \(pid \d+ on .*\) has died. Training had not begun.", said)
