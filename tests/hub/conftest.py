"""A Hub on 127.0.0.1: enough of its protocol for the real clients to push, list and download (LFS, no Xet)."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub.utils import close_session

from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS


def oid_of(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repo:
    def __init__(self, private):
        self.private = private
        self.commits = {"main": [("0" * 40, {})]}  # branch -> [(sha, {path: content})], oldest first
        self.tags = {}
        self.lfs = {}

    def files(self, revision):
        revision = self.tags.get(revision, revision)
        if revision in self.commits:
            return self.commits[revision][-1]
        return next((c for commits in self.commits.values() for c in commits if c[0] == revision), None)


class Hub:
    """The state of the server, and the faults that it injects."""

    def __init__(self):
        self.repos = {}
        self.token = "hf_secret"
        self.forbidden = False
        self.faults = []  # (method, part of the path, "500" | "drop" | "lost"), each used once
        self.requests = []
        self.lock = threading.RLock()

    def files(self, repo_id, revision="main"):
        return self.repos[repo_id].files(revision)[1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        return self.server.hub

    def log_message(self, *_):
        pass

    def do(self):
        self.parts = urlsplit(self.path)
        self.query = parse_qs(self.parts.query)
        path = unquote(self.parts.path)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self._chunked() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        self.hub.requests.append(f"{self.command} {path}")
        fault = next((f for f in self.hub.faults if f[0] == self.command and f[1] in path), None)
        if fault:
            self.hub.faults.remove(fault)
        self.lost = bool(fault) and fault[2] == "lost"
        if fault and fault[2] == "drop":
            self.close_connection = True
            return
        if fault and fault[2] == "500":
            self.answer({"error": "injected"}, 500)
            return
        with self.hub.lock:
            self.route(path)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do  # noqa: N815

    def _chunked(self):
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, value=None, status=200, headers=(), content=None):
        if self.lost:  # the work is done, the answer does not arrive
            self.close_connection = True
            return
        content = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        for name, text in dict(headers).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, code):
        self.answer({"error": code}, 404, {"X-Error-Code": code, "X-Error-Message": code})

    def route(self, path):
        given = self.headers.get("Authorization", "")
        if given and given != f"Bearer {self.hub.token}":
            message = "Invalid credentials in Authorization header"
            self.answer({"error": message}, 401, {"X-Error-Message": message})
        elif self.command in ("POST", "PUT") and not given and not path.startswith(("/lfs/", "/api/validate")):
            self.answer({"error": "no token"}, 401)
        elif self.command == "POST" and self.hub.forbidden:
            self.answer({"error": "no write right"}, 403)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create(json.loads(self.body))
        elif path.startswith("/lfs/"):
            _, _, owner, name, oid = path.split("/")
            self.hub.repos[f"{owner}/{name}"].lfs[oid] = self.body
            self.answer({})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/([^/]+)(?:/(.*))?)?)?", path):
            self.api(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self.lfs_batch(match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(*match.groups())
        else:
            self.missing("EntryNotFound")

    def create(self, request):
        repo_id = f"{request.get('organization') or 'someone'}/{request['name']}"
        if repo_id in self.hub.repos:
            return self.answer({"error": "exists", "url": f"{self.server.url}/{repo_id}"}, 409)
        self.hub.repos[repo_id] = Repo(request.get("private") or request.get("visibility") == "private")
        self.answer({"url": f"{self.server.url}/{repo_id}", "name": repo_id})

    def api(self, repo_id, action, revision, rest):
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            return self.missing("RepoNotFound")
        if action == "branch":
            if revision in repo.commits:
                return self.answer({"error": "exists"}, 409)
            repo.commits[revision] = [repo.commits["main"][-1]]
            return self.answer({})
        if action == "refs":
            refs = {"branches": {b: commits[-1][0] for b, commits in repo.commits.items()}, "tags": repo.tags}
            named = {k: [{"name": n, "ref": n, "targetCommit": sha} for n, sha in v.items()] for k, v in refs.items()}
            return self.answer(named | {"converts": []})
        found = repo.files(revision or "main")  # also of .../revision/{revision}, which has no route of its own
        if found is None:
            return self.missing("RevisionNotFound")
        sha, files = found
        if action == "preupload":
            return self.answer({"files": [self.upload_mode(file, files) for file in json.loads(self.body)["files"]]})
        if action == "commit":
            return self.commit(repo, repo_id, revision)
        if action == "tree":
            listed = [(path, content) for path, content in files.items() if path.startswith(rest or "")]
            return self.answer([{"type": "file", "path": p, "size": len(c), "oid": oid_of(c)} for p, c in listed])
        siblings = [{"rfilename": path} for path in files]
        card = files.get("README.md", b"").decode()
        metadata = dict(re.findall(r"^(pipeline_tag|library_name): (\S+)", card, re.MULTILINE))
        info = {"id": repo_id, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}
        self.answer(info | metadata)

    def upload_mode(self, file, files):
        mode = "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular"
        known = files.get(file["path"])
        oid = None if known is None else hashlib.sha256(known).hexdigest() if mode == "lfs" else oid_of(known)
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def lfs_batch(self, repo_id):
        objects = []
        for item in json.loads(self.body)["objects"]:
            href = f"{self.server.url}/lfs/{repo_id}/{item['oid']}"
            known = item["oid"] in self.hub.repos[repo_id].lfs
            objects.append(item | ({} if known else {"actions": {"upload": {"href": href}}}))
        self.answer({"transfer": "basic", "objects": objects})

    def commit(self, repo, repo_id, branch):
        files = dict(repo.commits[branch][-1][1])
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = repo.lfs[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        sha = hashlib.sha1(f"{branch}{len(repo.commits[branch])}{sorted(files)}".encode()).hexdigest()
        repo.commits[branch].append((sha, files))
        url = f"{self.server.url}/{repo_id}/commit/{sha}"
        self.answer({"success": True, "commitOid": sha, "commitUrl": url})

    def resolve(self, repo_id, revision, path):
        repo = self.hub.repos.get(repo_id)
        found = repo and repo.files(revision)
        if not found:
            return self.missing("RevisionNotFound" if repo else "RepoNotFound")
        sha, files = found
        if path not in files:
            return self.missing("EntryNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{oid_of(files[path])}"', "Accept-Ranges": "bytes"}
        self.answer(headers=headers, content=files[path])


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = Hub()  # replaced by the fixture `online`
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture(scope="module")
def hub_server():
    """A running server; `.url`, and `.hub` with what was pushed."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def online(hub_server, monkeypatch, tmp_path):
    """This process's Hub client talks to the server, whose state is fresh; returns the state."""
    hub_server.hub = Hub()
    for name, value in {"ENDPOINT": hub_server.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", hub_server.hub.token)
    monkeypatch.setattr("hf_ssl.hub.publish._FIRST_PAUSE", 0.01)
    close_session()
    yield hub_server.hub
    close_session()


RUN = {
    "hf_ssl": "0.1.0",
    "method": "simsiam",
    "recipe": "cifar",
    "command": "accelerate launch scripts/pretrain.py --method simsiam --dataset ORG/NAME --output_dir runs/x",
    "started": "2031-01-01T00:00:00",
    "finished": "2031-01-01T01:02:05",
    "config": {"architecture": "test_resnet", "model_args": None, "image_size": 32, "projection_dim": 16},
    "data": {
        "dataset": "ORG/NAME",
        "dataset_config": None,
        "dataset_revision": None,
        "split": "train",
        "num_images": 50000,
        "fingerprint": "0123abcd",
    },
    "training": {
        "output_dir": "runs/x",
        "batch_size": 64,
        "encoder_pretrained": False,
        "repo_id": None,
        "num_steps": 500,
        "global_batch_size": 128,
        "learning_rate": 0.015,
        "num_processes": 2,
    },
    "versions": {"python": "3.12.1", "torch": "2.15.0"},
    "commit": None,
    "hardware": {"device": "cpu", "cpu_count": 2},
    "progress": {
        "step": 500,
        "epoch": 1,
        "images_seen": 64000,
        "seconds": 3725.4,
        "energy_kwh": 0.01234,
        "energy_of": ["CPU", "GPU"],
    },
    "skipped": {"truncated": 3, "not an image": 1},
}


@pytest.fixture
def run_record():
    """A `run.json` with values that occur nowhere else."""
    return json.loads(json.dumps(RUN))


@pytest.fixture
def make_run(run_record):
    """A function that exports a small run: `make_run(folder, run=None, **config)` returns its model."""

    def make(folder, run=None, architecture="test_resnet", image_size=32, **config):
        method = METHODS["simsiam"]
        sizes = {"projection_dim": 16, "projector_hidden_dim": 16, "predictor_hidden_dim": 8}
        model = method(method.config_class(architecture=architecture, image_size=image_size, **sizes, **config))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(run or run_record))
        export_run(model, folder)
        return model

    return make
