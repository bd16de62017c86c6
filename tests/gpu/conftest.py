"""Results of single tests for `scripts/gpu_check.py`, each as soon as it is known."""

import json
import os

import pytest


def pytest_runtest_logreport(report: pytest.TestReport):
    """Append a line for each test that has ended to the file that `GPU_CHECK_RESULTS` names."""
    if report.when == "call" or not report.passed:
        _note(report, report.duration)


def pytest_collectreport(report: pytest.CollectReport):
    """The same for a file that cannot be imported, whose tests nobody would miss otherwise."""
    if report.failed:
        _note(report, 0.0)


def _note(report: pytest.TestReport | pytest.CollectReport, seconds: float) -> None:
    place = os.environ.get("GPU_CHECK_RESULTS")
    if not place or "PYTEST_XDIST_WORKER" in os.environ:
        return
    message = ""
    if not report.passed:
        crash, why = getattr(report.longrepr, "reprcrash", None), report.longrepr
        if crash is not None:
            message = crash.message.splitlines()[0]
        elif isinstance(why, tuple):  # a skipped test has file, line and reason
            message = str(why[2])
        else:  # of a file that cannot be imported the last line is the error
            message = (str(why).strip().splitlines() or [""])[-1]
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": seconds, "message": message[:500]}
    with open(place, "a") as file:
        file.write(json.dumps(line) + "\n")
