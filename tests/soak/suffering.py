"""One case: a run that nothing disturbs, and the same run hit again and again; then both are compared."""

import random
import re
import signal
import time
from pathlib import Path
from typing import Any

from cases import Blow, Case
from comparison import BEFORE_TRAINING, differences, faults_after
from forks import Started, send
from pictures import Hub

LONGEST = 300.0  # seconds of a run that nothing disturbs, on a busy machine
AFTER_BLOW = 60.0  # until all of its processes are gone: 30 are promised
SEEN = {
    "checkpoint": "checkpoints/.step-*.partial",
    "export": ".encoder.new",
    "publish": "unpublished/step-*",
}
SOON = {"checkpoint": 0.03, "export": 0.3, "publish": 0.3, "cache": 0.2, "start": 3.0}


def suffer(case: Case, folder: Path, data: Path, hub: Hub) -> dict[str, Any]:
    """Do all of a case.

    Args:
        case: The case.
        folder: Of its own, which is made.
        data: See `make_data`.
        hub: Takes what is published.

    Returns:
        What a table says of it; `differences` is empty if all is well.
    """
    quiet, hurt = folder / "quiet", folder / "hurt"
    quiet.mkdir(parents=True)
    hurt.mkdir()
    found: list[str] = []
    first = Started(quiet, 0, case.arguments(data, 1, quiet=True), "fork", case.processes[0])
    if not first.wait(LONGEST) or any(first.codes.values()):
        first.clean_up()
        return _told(case, [], 0, [f"undisturbed: {list(first.codes.values())}, {first.log}"])
    seconds = _trained_seconds(quiet / "run")
    hits, number = [], 0
    for blow in case.blows:
        start = _start(case, hurt, data, number)
        try:
            hit = _strike(start, blow, seconds)
            if hit and blow.moment in BEFORE_TRAINING:
                start.end_others(AFTER_BLOW)
            ended = start.wait(AFTER_BLOW if hit else LONGEST)
        finally:
            start.clean_up()
        number += 1
        what = f"start {number} ({blow.target}, {signal.Signals(blow.signal).name}, {blow.moment})"
        found += [f"{what}: {one}" for one in faults_after(start, blow if hit else None, ended)]
        if hit:
            hits.append(blow)
        else:
            break  # it was faster, and is done
    last = _start(case, hurt, data, number)
    if not last.wait(LONGEST):
        last.clean_up()
        found.append("the last start did not end")
    found += [f"last start: {one}" for one in faults_after(last, None, True)]
    if not found:
        found += differences(case, quiet, hurt, number + 1, hub)
    return _told(case, hits, number, found)


def _start(case: Case, folder: Path, data: Path, number: int) -> Started:
    num_processes = case.processes[number % len(case.processes)]
    return Started(folder, number, case.arguments(data, number), case.form, num_processes)


def _told(case: Case, hits: list[Blow], resumes: int, found: list[str]) -> dict[str, Any]:
    blows = [f"{one.target} {signal.Signals(one.signal).name} at {one.moment}" for one in hits]
    kills = sum(one.signal == signal.SIGKILL for one in hits)
    counts = {"kills": kills, "signals": len(hits) - kills, "resumes": resumes}
    return {**case.described(), "blows": blows, **counts, "differences": found}


def _trained_seconds(run: Path) -> float:
    return float(re.findall(r'"seconds": ([\d.]+)', (run / "run.json").read_text())[-1])


def _strike(start: Started, blow: Blow, seconds: float) -> bool:
    """Wait for the moment and send the signal; False if the run has ended before."""
    run = start.folder / "run"
    before = {path.name for path in run.glob("unpublished/step-*")}

    def is_there() -> bool:
        if blow.moment == "start":
            return True
        text = start.log.read_text(errors="replace") if start.log.exists() else ""
        if blow.moment == "any":
            return "device   " in text
        if blow.moment == "cache":
            return "cache:" in text
        return any(path.name not in before for path in run.glob(SEEN[blow.moment]))

    if blow.moment == "cache" and "--cache" not in start.arguments:
        return False
    end = time.monotonic() + LONGEST
    while not is_there():
        if start.has_ended() or time.monotonic() > end:
            return False
        time.sleep(0.001)
    time.sleep(blow.delay * (SOON.get(blow.moment) or 1.3 * seconds))
    if start.has_ended():
        return False
    some = {"first": [start.first], "one": start.trainers(), "worker": start.workers()}
    targets = some.get(blow.target) or [one.pid for one in start.processes()]
    if blow.target in ("one", "worker"):
        targets = [random.Random(blow.delay).choice(targets)] if targets else []
    return any([send(process, blow.signal) for process in targets])
