"""Results of single tests for `scripts/gpu_check.py`, each as soon as it is known."""

import json
import os

import pytest


def pytest_runtest_logreport(report: pytest.TestReport):
    """Append a line for each test that has ended to the file that `GPU_CHECK_RESULTS` names."""
    place = os.environ.get("GPU_CHECK_RESULTS")
    is_controller = "PYTEST_XDIST_WORKER" not in os.environ
    if not place or not is_controller or (report.when != "call" and report.passed):
        return
    message = ""
    if not report.passed:
        crash, why = getattr(report.longrepr, "reprcrash", None), report.longrepr
        if crash is not None:
            message = crash.message.splitlines()[0]
        else:  # a skipped test has file, line and reason
            message = str(why[2] if isinstance(why, tuple) else why)
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "message": message[:500]}
    with open(place, "a") as file:
        file.write(json.dumps(line) + "\n")
