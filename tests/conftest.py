"""One environment for all tests: no network, one thread, the same seed."""

import atexit
import contextlib
import gc
import logging
import os
import signal
import time
from pathlib import Path

# What is in there runs in every Python that a test starts.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).with_name("startup")), *filter(None, [os.environ.get("PYTHONPATH")])]
)
# They would compile the package anew, each of them, a tenth of its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Read when the libraries are imported, so set before.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import psutil
import pytest
import torch

# Under `nohup`, or in the background of a shell, some signals are ignored, and every program that a test starts would
# ignore them too.
for _signal in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _signal == signal.SIGINT else signal.SIG_DFL)

# pytest-xdist's workers have started so too, but live long: they collect again once everything is imported.
gc.disable()
atexit.unregister(gc.freeze)


def pytest_collection_finish():
    """What was imported and collected stays to the end: no collection looks at it again."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Slow tests first: one that starts last keeps one worker busy while the others wait."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """A test that fails, or hangs until `timeout` of pyproject.toml ends it, leaves no process behind."""
    started = time.time() - 1  # the system tells when a process started, to about a second
    try:
        return (yield)
    except BaseException:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.create_time() > started:
                    process.kill()
        raise


@pytest.fixture(autouse=True)
def same_start():
    """Every test starts from the same random state, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_log():
    """A command shows the package's log; each test sees only warnings, also after a fixture of its file ran one."""
    logger = logging.getLogger("hf_ssl")
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()
    yield
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory):
    """Data sets cached by one test run are not seen by the next."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="session")
def hub_server():
    """A Hub on this machine: `.url`, `.hub` (what was pushed) and `.environment(home)` for other processes."""
    from hub_server import Server

    with Server() as server:
        yield server


@pytest.fixture
def online(hub_server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """This process's Hub client talks to the server, whose state is fresh; returns the state."""
    from hub_server import Hub
    from huggingface_hub.utils import close_session

    hub_server.hub = Hub()
    constants = {
        "ENDPOINT": hub_server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub_server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
    }
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", hub_server.hub.token)
    monkeypatch.setattr("hf_ssl.hub.attempts._FIRST_PAUSE", 0.01)
    close_session()
    yield hub_server.hub
    close_session()
