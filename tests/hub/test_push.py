"""Pushing any files with the real client to a Hub on this machine, with a fault at each request in turn."""

import copy
import logging
import subprocess
import sys
import time

import pytest
from hub_server import GARBLED, Handler, RefusalError, Repo
from huggingface_hub import HfApi, constants

from hf_ssl.errors import UserError
from hf_ssl.hub.push import push_files

CARD = b"---\nlicense: mit\ntags:\n- hf_ssl\n---\n# Features\n"
STUB = b"---\nlicense: mit\n---\n"  # what the Hub's website makes with a repository
RETRY = "hf-ssl publish runs/x --repo_id org/x"
KINDS = ["drop", "lost", "truncated", "slow", "500", "429", "401", "403", "409", "portal", *GARBLED]


@pytest.fixture
def no_pauses(monkeypatch):
    """Neither this package nor the client waits between attempts; returns the pauses that they asked for."""
    asked = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", asked.append)
    monkeypatch.setattr("hf_ssl.hub.attempts.monotonic", lambda: time.monotonic() + sum(asked))
    return asked


@pytest.fixture
def model_files(tmp_path):
    contents = {"README.md": CARD, "config.json": b"{}", "model.safetensors": b"encoder", "figures/loss.png": b"png"}
    contents |= {"pretraining/config.json": b"{}", "pretraining/model.safetensors": b"whole method"}
    files = {}
    for path, content in contents.items():
        files[path] = tmp_path / "model" / path
        files[path].parent.mkdir(parents=True, exist_ok=True)
        files[path].write_bytes(content)
    return files


def model(files):
    """Replace an older version in a repository, and give the new one a tag."""
    before = {
        "README.md": CARD + b"old",
        "model.safetensors": b"old",
        "pretraining/extra.bin": b"old",
        "mine.txt": b"",
    }
    repo = Repo()
    repo.add("main", before, description="Pushed by hf_ssl 0.0.")
    after = {path: file.read_bytes() for path, file in files.items()} | {"mine.txt": b""}
    arguments = {"repo_id": "org/x", "tag": "v1", "is_stale": lambda path: path.startswith("pretraining/")}
    return {"org/x": repo}, "org/x", files, after, arguments


def dataset(files):
    """A new private data set."""
    contents = {"README.md": CARD, "data/train-00000-of-00001.parquet": b"rows"}
    return {}, "datasets/org/x", contents, contents, {"repo_id": "org/x", "repo_type": "dataset", "private": True}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [model, dataset])
def test_a_fault_at_any_request_leaves_all_or_nothing(
    online, no_pauses, model_files, case, kind, caplog, capfd, recwarn
):
    caplog.set_level(logging.DEBUG, "huggingface_hub")
    caplog.set_level(logging.DEBUG, "hf_ssl")
    repos, key, files, after, arguments = case(model_files)

    def run():
        return push_files(files, **arguments, message="New", retry=RETRY)

    def state():
        return online.files(key) if key in online.repos else {}

    online.repos = copy.deepcopy(repos)
    before = state()
    run()
    assert state() == after
    requests, num_commits = online.requests, len(online.repos[key].commits["main"])
    said = ""
    for number, request in enumerate(requests):
        if kind == "[]" and ("/tree/" in request or "/commits/" in request):
            continue  # nobody can tell it from the right answer
        online.repos, online.requests, online.faults = copy.deepcopy(repos), [], [(number, kind)]
        try:
            run()
        except UserError as error:
            assert str(error).endswith(f"; then: {RETRY}"), error
            assert state() in (before, after)
            said += str(error)
        else:
            assert state() == after
        assert online.faults == []
        run()
        assert state() == after
        assert len(online.repos[key].commits["main"]) == num_commits  # a lost answer makes no second commit
        assert online.repos[key].private == bool(arguments.get("private"))
        assert set(online.repos[key].tags) == ({"v1"} if "tag" in arguments else set())
    # A repository that exists and is not there is a taken name; content that somebody else took is not on the Hub.
    if kind not in ("409", "portal"):
        assert bool(said) == (kind in ("401", "403"))
    captured = capfd.readouterr()
    assert online.token not in said + caplog.text + captured.out + captured.err
    assert not any(online.token in str(warning.message) for warning in recwarn)
    assert {path: file.read_bytes() for path, file in model_files.items()}.items() <= model(model_files)[3].items()


def push(files, repo_id="org/x", **more):
    return push_files(files, repo_id, **{"message": "New", "retry": RETRY, **more})


def test_each_kind_of_repository_has_its_names(online):
    assert push({"a.txt": b"model"}).endswith("/org/x")
    assert push({"a.txt": b"rows"}, repo_type="dataset", revision="dev").endswith("/datasets/org/x/tree/dev")
    assert push({"app.py": b"app"}, repo_type="space", space_sdk="gradio").endswith("/spaces/org/x")
    assert online.files("org/x") == {"a.txt": b"model"}
    assert online.files("datasets/org/x", "dev") == {"a.txt": b"rows"}
    assert online.files("datasets/org/x") == {}
    assert online.files("spaces/org/x") == {"app.py": b"app"}


def test_a_name_that_another_kind_has_taken(online):
    online.shared_names = True
    push({"a.txt": b"rows"}, repo_type="dataset")
    with pytest.raises(UserError, match=r"name `org/x` is taken, but not by a model.*another `--repo_id`.*then: "):
        push({"a.txt": b"model"})
    assert set(online.repos) == {"datasets/org/x"}


def test_a_gated_and_a_disabled_repository(online, monkeypatch):
    push({"README.md": CARD})
    online.repos["org/x"].disabled = True
    with pytest.raises(UserError, match=r"disabled `org/x`.*then: "):
        push({"README.md": CARD + b"new"})
    online.repos["org/x"].disabled, online.repos["org/x"].gated = False, True
    push({"README.md": CARD + b"new"})  # its owner may
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(UserError, match=r"may not write to `org/x`.*then: "):
        push({"README.md": CARD + b"newer"})


@pytest.mark.parametrize("token", ["hf_reader", "hf_stranger"])
def test_a_token_that_may_not_write(online, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=r"may not write to `org/x`.*then: ") as error:
        push({"a.txt": b""})
    assert token not in str(error.value)
    assert online.repos == {}


def test_a_private_repository_of_others_looks_like_none(online, monkeypatch):
    push({"a.txt": b"1"}, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(UserError, match="may not write to `org/x`"):
        push({"a.txt": b"2"})
    assert online.files("org/x") == {"a.txt": b"1"}


def test_a_tag_names_one_thing_for_ever(online):
    push({"a.txt": b"1"}, tag="v1")
    push({"a.txt": b"1"}, tag="v1")
    assert online.repos["org/x"].tags == {"v1": online.repos["org/x"].commits["main"][-1].sha}
    with pytest.raises(UserError, match=r"has a tag `v1`, which names something else .*another `--tag`"):
        push({"a.txt": b"2"}, tag="v1")
    assert online.files("org/x") == {"a.txt": b"1"}
    push({"a.txt": b"2"}, tag="v2")
    with pytest.raises(UserError, match="which names something else"):
        push({"a.txt": b"2"}, tag="v1")
    assert online.files("org/x", "v1") == {"a.txt": b"1"}
    assert online.files("org/x", "v2") == {"a.txt": b"2"}


def test_somebody_else_commits_between_comparison_and_commit(online, monkeypatch, no_pauses):
    push({"README.md": CARD, "old.txt": b"1"})
    create_commit, edits = HfApi.create_commit, [("README.md", b"theirs")]

    def late(self, *arguments, **values):
        while edits:
            online.edit("org/x", *edits.pop())
        return create_commit(self, *arguments, **values)

    monkeypatch.setattr(HfApi, "create_commit", late)
    push({"README.md": CARD + b"new", "a.txt": b"2"}, is_stale=lambda path: path == "old.txt")
    assert online.files("org/x") == {"README.md": b"theirs", "a.txt": b"2"}
    assert [commit.title for commit in online.repos["org/x"].commits["main"][2:]] == ["Update README.md", "New"]


def test_what_was_edited_on_the_hub_stays(online, caplog):
    result = ".eval_results/knn.yaml"
    push({"README.md": CARD, result: b"- value: 1", "config.json": b"1"})
    push({"README.md": CARD + b"second", result: b"- value: 2", "config.json": b"2"})  # nobody has edited: replaced
    assert online.files("org/x")["README.md"] == CARD + b"second"
    online.edit("org/x", "README.md", CARD + b"by hand")
    online.edit("org/x", result, b"- value: 9")
    push({"README.md": CARD + b"third", result: b"- value: 3", "config.json": b"3"})
    assert online.files("org/x") == {"README.md": CARD + b"by hand", result: b"- value: 9", "config.json": b"3"}
    for path in ("README.md", result):
        assert f"`{path}` of org/x was edited on the Hub and stays as it is there." in caplog.text
    assert push({"README.md": CARD + b"third", result: b"- value: 3", "config.json": b"3"})
    assert len(online.repos["org/x"].commits["main"]) == 6  # and no commit for nothing


def test_the_stub_that_the_hub_makes_is_replaced(online):
    push({})
    online.edit("org/x", "README.md", STUB)
    push({"README.md": CARD})
    assert online.files("org/x")["README.md"] == CARD


def test_the_hub_checks_the_metadata_before_anything_is_sent(online):
    for card, words in ((b"---\ntags: hf_ssl\n---\n", '"tags" must be a'), (b"---\na: [\n---\n", "while parsing")):
        with pytest.raises(UserError, match=f"refuses the metadata at the top of `README.md`: .*{words}"):
            push({"README.md": card, "a.txt": b"1"})
    assert online.repos == {}
    online.faults = [("POST", "/validate-yaml", "drop")]
    push({"README.md": CARD})
    assert online.files("org/x") == {"README.md": CARD}


def test_the_pause_that_the_hub_asks_for(online, no_pauses):
    online.faults, online.retry_after = [("POST", "/commit/", "429")], 17
    push({"a.txt": b"1"})
    assert no_pauses == [17]
    online.faults, online.retry_after = [("POST", "/commit/", "429")], 10**6
    with pytest.raises(UserError, match=r"asks for a pause of 1e\+06 s, and `hub_timeout` is 300 s\."):
        push({"a.txt": b"2"})
    assert no_pauses == [17]
    push({"a.txt": b"2"})


@pytest.mark.parametrize("answer", ["500", "drop", "portal", "429"])
@pytest.mark.parametrize(
    "request_",
    [("POST", "/create"), ("GET", "/tree/"), ("POST", "/preupload/"), ("PUT", "/lfs/"), ("POST", "/commit/")],
)
def test_one_budget_for_all_attempts(online, no_pauses, monkeypatch, request_, answer):
    """Whatever request fails for ever, ours or one that the client repeats, the pauses stay in the budget."""
    monkeypatch.setattr("hf_ssl.hub.attempts._FIRST_PAUSE", 1.0)
    for seconds in (0, 10, 300):
        online.repos, online.requests, online.faults = {}, [], [(*request_, answer)] * 1000
        no_pauses.clear()
        with pytest.raises(UserError, match="then: " + RETRY):
            push({"model.safetensors": b"1"}, hub_timeout=seconds)
        tried = sum(one.startswith(request_[0]) and request_[1] in one for one in online.requests)
        assert sum(no_pauses) <= seconds
        if seconds == 0 or (answer == "portal" and request_[0] == "PUT"):
            assert tried == 1
        else:
            assert 3 <= tried <= 100


@pytest.mark.parametrize("answer", ["lost", "truncated", *GARBLED])
def test_a_commit_that_arrived_is_found_although_nothing_is_tried_again(online, answer):
    files = {"README.md": CARD, "model.safetensors": b"1", "old.txt": b""}
    push(files)
    del files["old.txt"]
    files["model.safetensors"] = b"2"
    online.faults = [("POST", "/commit/", answer)]
    push(files, tag="v1", is_stale=lambda path: path == "old.txt", hub_timeout=0)
    assert online.faults == []
    assert online.files("org/x") == files
    head, *_ = online.repos["org/x"].commits["main"][::-1]
    assert online.repos["org/x"].tags == {"v1": head.sha}
    assert len(online.repos["org/x"].commits["main"]) == 3


@pytest.mark.parametrize("answer", ["portal", "drop", "500"])
def test_a_commit_that_did_not_arrive_is_sent_again_once(online, answer, no_pauses):
    online.faults = [("POST", "/commit/", answer)]
    push({"model.safetensors": b"1"}, tag="v1")
    assert online.files("org/x") == {"model.safetensors": b"1"}
    assert [commit.title for commit in online.repos["org/x"].commits["main"]] == ["initial commit", "New"]
    assert len(no_pauses) == 1


def test_a_commit_of_somebody_else_is_not_taken_for_ours(online, monkeypatch):
    push({"a.txt": b"1"})
    online.faults = [("POST", "/commit/", "portal")]
    answered = Handler.answer

    def answer(handler, *arguments, **values):
        if handler.fault == "portal":
            online.edit("org/x", "b.txt", b"theirs")
        return answered(handler, *arguments, **values)

    monkeypatch.setattr(Handler, "answer", answer)
    with pytest.raises(UserError, match="is not the Hub"):
        push({"a.txt": b"2"}, tag="v1", hub_timeout=0)
    assert online.files("org/x") == {"a.txt": b"1", "b.txt": b"theirs"}
    assert online.repos["org/x"].tags == {}


@pytest.mark.parametrize("answer", ["portal", "null"])
def test_a_network_that_wants_a_login_first_is_said_to_be_no_hub(online, answer, no_pauses):
    online.faults = [(method, "/", answer) for method in ("GET", "POST")] * 1000
    words = rf"What answered at {constants.ENDPOINT} is not the Hub: .*`HF_ENDPOINT`.* until 20 s were lost .*then: "
    with pytest.raises(UserError, match=words):
        push({"a.txt": b"1"}, hub_timeout=20)
    assert all(repo.commit("main").files == {} for repo in online.repos.values())


@pytest.mark.parametrize(
    ("where", "status", "message"),
    [
        ("/xet-write-token/", "401", r"The Hub does not accept the token\."),
        ("/xet-write-token/", "403", "The token may not write to `org/x`"),
        ("/cas/", "401", r"The Hub does not accept the token\."),
        ("/cas/", "403", "The token may not write to `org/x`"),
        ("/xet-write-token/", "null", "is not the Hub"),
    ],
)
def test_what_the_storage_of_large_files_refuses(online, monkeypatch, where, status, message, no_pauses):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "0")
    online.faults = [(method, where, status) for method in ("GET", "POST")] * 100
    with pytest.raises(UserError, match=message + ".*then: "):
        push({"model.safetensors": b"1" * 5000}, hub_timeout=0)
    assert no_pauses == []
    assert online.files("org/x") == {}


@pytest.mark.parametrize("status", ["500", "403"])
def test_a_storage_that_refuses_the_content(online, no_pauses, status):
    online.faults = [("PUT", "/lfs/", status)] * 100
    with pytest.raises(UserError, match=r"(status 500|may not write).*then: "):
        push({"model.safetensors": b"1", "other.safetensors": b"2"})
    assert online.files("org/x") == {}


def test_the_server_repeats_a_token_and_nobody_reads_it(online, no_pauses, monkeypatch, caplog):
    secret = "hf_" + "aB3" * 11
    words = f"not with {online.token}, nor with {secret}, at https://me:{secret}@host/x"
    monkeypatch.setattr("hub_server.Repo.add", lambda *_: (_ for _ in ()).throw(RefusalError(400, words)))
    with pytest.raises(UserError, match=r"not with \*\*\*, nor with \*\*\*, at https://\*\*\*@host/x") as error:
        push({"a.txt": b"1"}, retry=f"HF_TOKEN={secret} {RETRY}")
    assert secret not in str(error.value) + caplog.text
    assert online.token not in str(error.value) + caplog.text


def test_a_file_with_a_token_is_not_published(online):
    for secret in (online.token, "hf_" + "aB3" * 11):
        with pytest.raises(UserError, match="`run.json` holds an access token") as error:
            push({"run.json": f'{{"command": "HF_TOKEN={secret} python"}}'.encode(), "a.txt": b"1"})
        assert secret not in str(error.value)
    assert online.requests == []


def test_large_files_go_in_parts(online):
    online.part_size = 4
    push({"model.safetensors": b"0123456789"})
    assert online.files("org/x") == {"model.safetensors": b"0123456789"}
    assert sum("/lfs/" in request and request.startswith("PUT") for request in online.requests) == 3


PULL = """
import datasets
from huggingface_hub import HfApi, hf_hub_download
rows = datasets.load_dataset("org/rows", split="train")
print(rows["a"][:], [row["a"] for row in datasets.load_dataset("org/rows", split="train", streaming=True)])
print(datasets.load_dataset("org/rows", revision="v1", split="train").num_rows)
print(len(HfApi().list_repo_files("org/many")))
"""


def test_other_processes_pull_data_sets(online, hub_server, tmp_path):
    datasets = pytest.importorskip("datasets")
    online.page_size = 2
    files = {"README.md": CARD}
    for number in range(3):
        path = tmp_path / f"train-{number:05d}-of-00003.parquet"
        datasets.Dataset.from_dict({"a": [number]}).to_parquet(path)
        files[f"data/{path.name}"] = path
    push(files, "org/rows", repo_type="dataset", private=True, tag="v1")
    push({f"folder/{number}.txt": b"" for number in range(5)}, "org/many")
    environment = hub_server.environment(tmp_path / "home")
    done = subprocess.run([sys.executable, "-c", PULL], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[0, 1, 2] [0, 1, 2]", "3", "5"], done.stderr
    stranger = hub_server.environment(tmp_path / "other", token="hf_stranger")
    done = subprocess.run([sys.executable, "-c", PULL], env=stranger, capture_output=True, text=True)
    assert done.returncode != 0
    assert "org/rows" in done.stderr
