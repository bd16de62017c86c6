"""Pushing with the real client to a server on this machine, also when the server or the network fails."""

import json
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from huggingface_hub import HfApi

import hf_ssl
from hf_ssl.commands import main
from hf_ssl.errors import UserError
from hf_ssl.hub.model_card import write_model_card
from hf_ssl.hub.names import check_refs
from hf_ssl.hub.publish import publish
from hf_ssl.hub.push import push_files

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "publish.py"


@pytest.fixture
def run_dir(make_run, tmp_path):
    make_run(tmp_path / "run")
    return tmp_path / "run"


def content_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_one_commit_holds_encoder_method_and_card(online, run_dir):
    before = content_of(run_dir)
    url = publish(run_dir, "org/enc", message="First")
    assert url.endswith("/org/enc")
    files = online.files("org/enc")
    assert len(online.repos["org/enc"].commits["main"]) == 2
    assert set(files) == {
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "handler.py",
        "pillow_decoder.py",
        "requirements.txt",
        "README.md",
        "run.json",
        "pretraining/config.json",
        "pretraining/model.safetensors",
        "pretraining/preprocessor_config.json",
    }
    for path, content in files.items():
        if path != "README.md":
            local = path if path.startswith("pretraining/") else f"encoder/{path}"
            assert content == before[local]
    assert b'from_pretrained("org/enc")' in files["README.md"]
    assert str(run_dir).encode() not in files["README.md"]
    assert content_of(run_dir) == before


def test_a_second_push_of_the_same_makes_no_commit_and_new_results_do(online, run_dir):
    publish(run_dir, "org/enc")
    publish(run_dir, "org/enc")
    assert len(online.repos["org/enc"].commits["main"]) == 2
    (run_dir / "encoder" / "results.json").write_text(json.dumps({"results": []}))
    publish(run_dir, "org/enc")
    assert "results.json" in online.files("org/enc")
    (run_dir / "encoder" / "results.json").unlink()
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes.md", repo_id="org/enc")
    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="preprocessor_config.json", repo_id="org/enc")
    publish(run_dir, "org/enc")
    files = online.files("org/enc")
    assert files["notes.md"] == b"mine"  # not ours
    assert "results.json" not in files  # they were of other weights
    assert "preprocessor_config.json" not in files  # it would replace the preprocessing of config.json


@pytest.mark.parametrize("kind", ["500", "drop", "lost"])
@pytest.mark.parametrize(
    "call",
    [
        ("POST", "/api/repos/create"),
        ("POST", "/preupload/"),
        ("POST", "/objects/batch"),
        ("PUT", "/lfs/"),
        ("GET", "/tree/"),
        ("POST", "/commit/"),
    ],
    ids=lambda call: call[1].strip("/"),
)
def test_a_fault_costs_another_attempt_and_never_a_second_commit(online, run_dir, call, kind, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    online.faults = [(*call, kind)]
    publish(run_dir, "org/enc")
    assert online.faults == []
    commits = online.repos["org/enc"].commits["main"]
    assert len(commits) == 2
    assert len(commits[-1].files) == 13


def test_it_gives_up_after_some_attempts_and_says_how_to_try_again(online, run_dir):
    before = content_of(run_dir)
    online.faults = [("POST", "/commit/", "500")] * 20
    with pytest.raises(UserError, match=r"status 500.*intact; then: hf-ssl publish") as error:
        publish(run_dir, "org/enc", revision="step-000500", private=True, message="Half way", hub_timeout=0.1)
    retry = shlex.split(str(error.value).split("then: ")[1])
    expected = [
        str(run_dir),
        "--repo_id",
        "org/enc",
        "--private",
        "--revision",
        "step-000500",
        "--message",
        "Half way",
    ]
    assert retry[2:] == expected
    assert content_of(run_dir) == before
    assert online.files("org/enc") == {}  # all or nothing
    online.faults = []
    publish(run_dir, "org/enc")
    assert len(online.files("org/enc")) == 13


def test_a_revision_is_a_branch_and_main_stays(online, run_dir):
    publish(run_dir, "org/enc")
    (run_dir / "encoder" / "notes.txt").write_text("more")
    for _ in range(2):  # the branch is there the second time
        url = publish(run_dir, "org/enc", revision="step-000500")
    assert url.endswith("/org/enc/tree/step-000500")
    assert "notes.txt" in online.files("org/enc", "step-000500")
    assert "notes.txt" not in online.files("org/enc")
    online.repos["org/enc"].tags["v1.0"] = "0" * 40
    with pytest.raises(UserError, match=r"tag `v1.0`.*another `--revision`"):
        publish(run_dir, "org/enc", revision="v1.0")


def test_private(online, run_dir):
    publish(run_dir, "org/secret", private=True)
    assert online.repos["org/secret"].private
    publish(run_dir, "org/open")
    assert not online.repos["org/open"].private
    (run_dir / "encoder" / "notes.txt").write_text("secret")
    with pytest.raises(UserError, match=r"`org/open` exists and is public"):
        publish(run_dir, "org/open", private=True)
    assert "notes.txt" not in online.files("org/open")


def test_a_name_without_owner_goes_to_the_user(online, run_dir):
    assert publish(run_dir, "enc").endswith("/someone/enc")
    assert b'from_pretrained("someone/enc")' in online.files("someone/enc")["README.md"]


def test_a_card_edited_by_hand_is_pushed_as_it_is(online, run_dir):
    card = write_model_card(run_dir / "encoder")
    card.write_text(card.read_text() + "\nTrained for the bird count.\n")
    publish(run_dir, "org/enc")
    assert online.files("org/enc")["README.md"] == card.read_bytes()


def test_a_card_edited_on_the_hub_stays_and_one_that_was_generated_is_written_anew(online, run_dir, caplog):
    publish(run_dir, "org/enc")
    generated = online.files("org/enc")["README.md"]
    online.edit("org/enc", "README.md", generated)  # uploaded by other means
    publish(run_dir, "org/enc", license="mit", tag="v1")
    assert b"license: mit" in online.files("org/enc")["README.md"]
    online.edit("org/enc", "README.md", b"# Birds\n")
    (run_dir / "encoder" / "notes.txt").write_text("more")
    publish(run_dir, "org/enc", tag="v2")
    assert online.files("org/enc")["README.md"] == b"# Birds\n"
    assert "notes.txt" in online.files("org/enc", "v2")
    assert "`README.md` of org/enc was edited on the Hub and stays" in caplog.text
    assert b"license: mit" in online.files("org/enc", "v1")["README.md"]


@pytest.mark.parametrize("repo_id", ["a/b/c", "org/", "org/na me", "../x", "org/-enc", "x" * 120])
def test_a_bad_name_is_refused_before_anything_else(online, run_dir, repo_id):
    with pytest.raises(ValueError, match=r"`repo_id` must be `org/name`"):
        publish(run_dir, repo_id)
    assert online.requests == []


@pytest.mark.parametrize("missing", ["encoder/model.safetensors", "pretraining/config.json", "encoder/config.json"])
def test_a_folder_that_is_not_a_run_is_refused(online, run_dir, missing):
    (run_dir / missing).unlink()
    with pytest.raises(ValueError, match=f"it has no `{missing}`"):
        publish(run_dir, "org/enc")
    assert online.requests == []


def test_an_encoder_of_another_step_is_refused(online, run_dir, make_run, tmp_path):
    make_run(tmp_path / "other")
    (tmp_path / "other" / "encoder" / "model.safetensors").replace(run_dir / "encoder" / "model.safetensors")
    with pytest.raises(UserError, match="not of the same step"):
        publish(run_dir, "org/enc")
    assert online.requests == []


def test_no_token_a_wrong_one_and_one_without_write_access(online, run_dir, monkeypatch):
    online.forbidden = True
    with pytest.raises(UserError, match=r"may not write to `org/enc`.*then: hf-ssl"):
        publish(run_dir, "org/enc")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"does not accept the token.*then: hf-ssl") as error:
        publish(run_dir, "org/enc")
    assert "hf_wrong" not in str(error.value)
    monkeypatch.delenv("HF_TOKEN")
    asked = len(online.requests)
    with pytest.raises(UserError, match=r"No Hub token was found.*then: hf-ssl"):
        publish(run_dir, "org/enc")
    assert len(online.requests) == asked  # needs no network to say so


def test_no_network(online, run_dir, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"`HF_HUB_OFFLINE` is set.*then: hf-ssl"):
        publish(run_dir, "org/enc", hub_timeout=0.1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"The Hub cannot be reached.*then: hf-ssl"):
        publish(run_dir, "org/enc", hub_timeout=0.1)


def run_script(environment, *arguments):
    """`scripts/publish.py` as a user runs it, in a process of its own."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_script_pushes(online, run_dir, hub_server, tmp_path):
    online.faults = [("POST", "/commit/", "lost")]
    done = run_script(hub_server.environment(tmp_path / "home"), run_dir, "--repo_id", "org/enc", "--tag", "v1")
    assert done.returncode == 0, done.stderr
    assert "0 unchanged, tag `v1`." in done.stderr  # the lost answer costs no other attempt
    assert online.files("org/enc", "v1") == online.files("org/enc")
    assert done.stdout.strip() == f"{hub_server.url}/org/enc"
    assert len(online.repos["org/enc"].commits["main"]) == 2
    assert online.token not in done.stdout + done.stderr


def test_a_dry_run_shows_files_card_and_address_and_asks_nobody(online, hub_server, run_dir, capsys):
    online.requests = []
    words = [str(run_dir), "--repo_id", "org/enc", "--license", "mit", "--revision", "next", "--dry_run"]
    assert main(["publish", *words]) == 0
    shown = capsys.readouterr().out
    for path in ("config.json", "model.safetensors", "pretraining/model.safetensors", "README.md"):
        assert f" MB  {path}\n" in shown
    assert 'from_pretrained("org/enc")' in shown
    assert "license: mit" in shown
    assert shown.endswith(f"Nothing was pushed. Without `--dry_run` this goes to {hub_server.url}/org/enc/tree/next\n")
    assert online.requests == []


def test_python_publishes_what_its_dry_run_shows(online, hub_server, run_dir):
    would = hf_ssl.publish(run_dir, repo_id="org/enc", dry_run=True)
    assert (would.pushed, would.url) == (False, f"{hub_server.url}/org/enc")
    done = hf_ssl.publish(run_dir, repo_id="org/enc")
    assert (done.pushed, done.url) == (True, would.url)
    files = online.files("org/enc")
    assert {path: len(content) for path, content in files.items()} == would.files
    assert files["README.md"].decode() == would.card


@pytest.mark.parametrize(
    "name", ["v1.0", "step-000500", "a/b", "2024", "v1.0-rc.1", "deadbeef", "a" * 40 + "x", "\u00e9"]
)
def test_names_of_branches_and_tags(name):
    check_refs(name, None)
    check_refs(None, name)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "which is empty"),
        ("my tag", "which has a space"),
        ("a..b", "which has '..' in it"),
        *((f"a{sign}b", "in it") for sign in "~^:?*[\\\n\x7f"),
        ("a@{b", "which has '@{' in it"),
        ("a//b", "which has '//' in it"),
        ("-v1", "which starts with `-`"),
        ("/v1", "which starts with `/`"),
        ("v1/", "which ends with `/`"),
        ("v1.", "which ends with `.`"),
        (".v1", "of which a part starts with `.`"),
        ("a/.b", "of which a part starts with `.`"),
        ("v1.lock", "of which a part ends with `.lock`"),
        ("a.lock/b", "of which a part ends with `.lock`"),
        ("refs/pr/1", "which starts with `refs/`"),
        ("HEAD", "which means something else in git"),
        ("@", "which means something else in git"),
        ("0123456789abcdef" * 2 + "01234567", "which looks like a commit"),
    ],
)
def test_a_name_that_no_branch_or_tag_can_have_is_refused_before_anything_is_sent(online, run_dir, name, fault):
    with pytest.raises(UserError, match="`tag` must be the name of a tag, such as v1.0") as error:
        publish(run_dir, "org/enc", tag=name, dry_run=True)
    assert fault in str(error.value)
    with pytest.raises(UserError, match="`revision` must be the name of a branch"):
        push_files({"a.txt": b""}, "org/enc", revision=name, message="New", retry="again")
    assert online.requests == []


def test_git_refuses_the_same_names():
    """The rules are git's, but for those of the Hub and what has a meaning of its own."""
    ours = {"": 1, "a b": 1, "a..b": 1, "a@{b": 1, "a//b": 1, "-v1": 1, "/v1": 1, "v1/": 1, "v1.": 1, "a/.b": 1}
    ours |= {"a.lock/b": 1, "a\\b": 1, "v1.0": 0, "a/b": 0, "v1.0-rc.1": 0, "a@b": 0, "a.b.c": 0, "a'b": 0}
    for name, refused in ours.items():
        git = subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True, cwd="/")
        assert bool(git.returncode) == bool(refused), name
        with pytest.raises(UserError) if refused else nullcontext():
            check_refs(name, None)


def test_a_tag_with_the_name_of_its_branch_is_refused(online, run_dir):
    for revision, tag in ((None, "main"), ("next", "next")):
        with pytest.raises(UserError, match=f"`tag` must not be the name of the branch .* got `{tag}`"):
            publish(run_dir, "org/enc", revision=revision, tag=tag)
    assert online.requests == []


def test_the_command_fails_in_one_line(online, run_dir, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    found = (([], 4, "No Hub token was found."), (["--tag", "a b"], 2, "`tag` must be the name of a tag"))
    for words, code, start in found:
        assert main(["publish", str(run_dir), "--repo_id", "org/enc", *words]) == code
        message = capsys.readouterr().err
        assert message.startswith(f"error: {start}")
        assert len(message.splitlines()) == 1
