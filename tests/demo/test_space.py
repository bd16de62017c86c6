"""The page as a Space: pushed to a Hub on this machine, downloaded again and run there by its own files."""

import re
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest
import yaml

from hf_ssl.commands import main
from hf_ssl.demo import space
from hf_ssl.hub.push import push_files

STUB = b"---\nsdk: gradio\n---\n\nCheck out the configuration reference at "
STUB += b"https://huggingface.co/docs/hub/spaces-config-reference\n"


def run(*words):
    return main(["demo", *words])


@pytest.fixture
def encoder(tmp_path):
    """Files of a tiny encoder."""
    import timm

    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=0), tmp_path / "encoder")
    return tmp_path / "encoder"


def test_a_space_runs_from_its_own_files(online, hub_server, encoder, tmp_path, capsys):
    files = {path.name: path for path in encoder.iterdir()}
    push_files(files, "org/tiny", message="Encoder", retry="again")
    commit = online.repos["org/tiny"].commit("main").sha
    push_files({"README.md": STUB}, "org/demo", repo_type="space", space_sdk="gradio", message="Stub", retry="again")
    online.edit("spaces/org/demo", "README.md", STUB + b"\n")  # what the Hub makes with a Space is nobody's edit
    words = ["org/tiny", "--dataset", "shapes", "--max_images", "10", "--num_workers", "0", "--space", "org/demo"]
    assert run(*words) == 0
    assert capsys.readouterr().out == f"Pushed to {hub_server.url}/spaces/org/demo\n"

    pushed = online.files("spaces/org/demo")
    card = yaml.safe_load(pushed["README.md"].decode().split("---")[1])
    assert (card["sdk"], card["app_file"], card["models"]) == ("gradio", "app.py", ["org/tiny"])
    assert f"org/tiny@{commit}" in pushed["app.py"].decode()
    assert re.search(r"^torch==[\d.]+$", pushed["requirements.txt"].decode(), re.MULTILINE)

    folder = tmp_path / "space"
    for path, content in pushed.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with_port = {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
    environment = hub_server.environment(tmp_path / "home", **with_port)
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        while True:
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}").read().decode()
                break
            except OSError:
                assert process.poll() is None, process.stdout.read().decode()
                time.sleep(0.2)
        assert "tiny on shapes" in page
    finally:
        process.kill()
        process.communicate()


def test_a_local_encoder_must_be_published_first(encoder, capsys):
    assert run(str(encoder), "--dataset", "shapes", "--space", "org/demo") == 2
    assert "is a folder here. Publish it first" in capsys.readouterr().err


def test_pins_are_those_of_the_package():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert [re.match(r"[\w-]+", line).group() for line in project["dependencies"]] == list(space._DEPENDENCIES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "photos", "--space", "org/demo"], "Add `--publish_images`"),
        (["--dataset", "shapes", "--space", "a/b/c"], "`repo_id` must be"),
        (["--dataset", "shapes", "--private"], "`private` is for a Space"),
        (["--dataset", "shapes", "--port", "99999"], "`port` must be in"),
        (["--dataset", "shapes", "--host", "203.0.113.7"], "`host` must be an address of this machine"),
        (["--dataset", "shapes", "--max_images", "1"], "`max_images` must be at least 2"),
        (["--dataset", "shapse"], "Did you mean `shapes`?"),
        (["--dataset", "shapes", "--prot", "1"], "Did you mean `--port`?"),
    ],
)
def test_wrong_input_gets_one_sentence(words, message, capsys):
    assert run("random:test_resnet", *words) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_encoder_gets_one_sentence(capsys):
    assert run("test_resnte", "--dataset", "shapes") == 2
    assert "timm knows no encoder of that name" in capsys.readouterr().err


def test_a_taken_port_is_told_before_anything_is_computed(hub_server, capsys):
    port = str(hub_server.server_address[1])
    assert run("random:test_resnet", "--dataset", "shapes", "--port", port) == 2
    assert f"`port` {port} of `127.0.0.1` cannot be used: Address already in use" in capsys.readouterr().err


def test_missing_gradio_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("random:test_resnet", "--dataset", "shapes") == 2
    assert "pip install 'hf_ssl[demo]'" in capsys.readouterr().err
