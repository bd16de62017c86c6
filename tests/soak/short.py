"""The short form of the soak: one case of `run.py`, and blows at moments that random ones seldom meet.

    python tests/soak/short.py FOLDER

Prints a JSON object: what was tried -> what was found wrong, an empty list if all is well.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import Blow, Case
from forks import Started, import_libraries, send
from pictures import Hub, make_data

LONGEST = 240.0  # seconds, on however busy a machine
HANGS = 1000  # seconds


def hang_in(module: str, name: str, call: int) -> Callable[[], None]:
    """What makes a function of a module hang when it is called for the n-th time, from 1."""

    def prepare() -> None:
        place = sys.modules[module]
        whole, calls = getattr(place, name), []

        def hanging(*args, **options):
            calls.append(1)
            if len(calls) == call:
                Path("hangs").touch()
                time.sleep(HANGS)
            return whole(*args, **options)

        setattr(place, name, hanging)

    return prepare


def repetition_is_a_second_request() -> None:
    """Signals need not be seconds apart to be two."""
    sys.modules["hf_ssl.training.watch.signals"]._SAME_REQUEST_SECONDS = 0.1


def until(start: Started, condition: Callable[[], bool]) -> None:
    """Wait for something that a run does."""
    end = time.monotonic() + LONGEST
    while not condition():
        if start.has_ended() or time.monotonic() > end:
            raise RuntimeError(start.log.read_text(errors="replace"))
        time.sleep(0.005)


class Short:
    """The checks, each of which gives what it found wrong."""

    def __init__(self, folder: Path, hub: Hub):
        self.folder, self.data, self.hub = folder, folder / "data", hub
        self.case = Case(0, "directclr", "folder", "fork", (1,), (), (0, 1), False, ())

    def start(self, name: str, number: int, *flags: str, prepare=None, num_processes: int = 1) -> Started:
        """Start a run in a folder of its own."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        arguments = [*self.case.arguments(self.data, number), *flags]
        return Started(place, number, arguments, "fork", num_processes, prepare)

    def kills_and_signals(self) -> Iterator[str]:
        """A case with everything: cache, accumulation, publishing, a kill in training and a signal at a checkpoint."""
        from suffering import suffer

        blows = (Blow("any", "all", signal.SIGKILL, 0.4), Blow("checkpoint", "one", signal.SIGUSR1, 0.5))
        flags = ("--cache", "uint8", "--images_per_device", "4")
        case = Case(1, "moco", "folder", "fork", (1,), flags, (1, 0), True, blows)
        yield from suffer(case, self.folder / "case", self.data, self.hub)["differences"]

    def a_checkpoint_that_hangs(self) -> Iterator[str]:
        """A signal ends it within `--grace_seconds`, with the last good one named."""
        prepare = hang_in("hf_ssl.training.checkpoint", "check_room", 2)
        run = self.start("checkpoint", 0, "--grace_seconds", "1", prepare=prepare)
        until(run, (run.folder / "hangs").exists)
        send(run.first, signal.SIGUSR2)
        yield from self.ended(run, 128 + signal.SIGUSR2, "SIGUSR2 came 1 seconds ago (`grace_seconds`)", "step-000005")

    def a_second_signal(self) -> Iterator[str]:
        """It ends the run at once."""

        def prepare() -> None:
            hang_in("hf_ssl.training.checkpoint", "check_room", 2)()
            repetition_is_a_second_request()

        run = self.start("second", 0, "--grace_seconds", str(HANGS), prepare=prepare)
        until(run, (run.folder / "hangs").exists)
        send(run.first, signal.SIGHUP)
        time.sleep(0.5)
        send(run.first, signal.SIGTERM)
        yield from self.ended(
            run, 128 + signal.SIGHUP, "SIGTERM came after SIGHUP: the run ends at once.", "step-000005"
        )

    def an_export_that_hangs(self) -> Iterator[str]:
        """A signal ends it at once, and the next start exports."""
        length = ("--num_steps", "6")
        run = self.start("export", 0, *length, prepare=hang_in("hf_ssl.hub.finish", "export_run", 1))
        until(run, (run.folder / "hangs").exists)
        send(run.first, signal.SIGTERM)
        yield from self.ended(run, -signal.SIGTERM)
        run = self.start("export", 1, *length)
        yield from self.ended(run, 0)
        if not (run.folder / "run/encoder/model.safetensors").exists():
            yield "nothing is exported"

    def a_bit_that_flips(self) -> Iterator[str]:
        """Two processes go back to the same older checkpoint."""
        run = self.start("bit", 0, num_processes=2)
        newest = run.folder / "run/checkpoints/step-000010"
        until(run, newest.exists)
        for process in run.trainers():
            send(process, signal.SIGKILL)
        run.wait(LONGEST)
        older, newest = sorted(newest.parent.glob("step-*"))[-2:]
        weights = newest / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
        run = self.start("bit", 1, num_processes=2)
        until(run, lambda: newest.with_name(f"{newest.name}.damaged").exists() and newest.exists())
        send(run.first, signal.SIGTERM)
        said = (
            f"{newest.name}.damaged` is damaged: `model.safetensors` is not what was written",
            f"Resuming after step {int(older.name[5:])} of",
            "Stopped by SIGTERM after step",
        )
        yield from self.ended(run, 128 + signal.SIGTERM, *said)

    def ended(self, run: Started, code: int, *said: str) -> Iterator[str]:
        """What is wrong with the end of a run."""
        if not run.wait(LONGEST):
            yield "it does not end"
            run.clean_up()
        text = run.log.read_text(errors="replace")
        if set(run.codes.values()) != {code}:
            yield f"exit codes {list(run.codes.values())}: {text}"
        yield from (f"it does not say `{words}`: {text}" for words in said if words not in text)


def main() -> None:
    """Do all checks."""
    folder = Path(sys.argv[1]).resolve()
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    make_data(folder / "data")
    hub = Hub(folder / "data")
    os.environ.update(hub.environment(folder / "home"))
    import_libraries()
    try:
        short = Short(folder, hub)
        checks = (
            *(short.kills_and_signals, short.a_checkpoint_that_hangs, short.a_second_signal),
            *(short.an_export_that_hangs, short.a_bit_that_flips),
        )
        print(json.dumps({check.__name__: list(check()) for check in checks}))  # noqa: T201
    finally:
        hub.close()


if __name__ == "__main__":
    main()
