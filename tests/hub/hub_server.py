"""A Hub on 127.0.0.1: enough of its protocol for the real clients to push, list and download (LFS; of Xet the
token only, whose storage answers with 404).

Models, datasets and Spaces; branches, tags and commits; private, gated and disabled repositories; users that may
write, only read, or are strangers. Faults are data: see `Hub.faults`. Nothing here imports hf_ssl.
"""

import base64
import hashlib
import json
import os
import posixpath
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".parquet", ".png", ".jpg", ".webp", ".npy", ".npz", ".bin", ".pt", ".tar", ".faiss")
PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
PORTAL = "<html><title>Willkommen im WLAN</title>Bitte anmelden: M\xfcller</html>".encode("latin-1")
GARBLED = {
    "{}": b"{}",
    "[]": b"[]",
    "null": b"null",
    "text": b'"ok"',
    "latin-1": b'{"name": "M\xfcller"}',
    "empty": b"",
}
INVALID_TOKEN = "Invalid credentials in Authorization header"


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def is_large(path, size):
    return path.endswith(LARGE) or size > 10 * 2**20


class Commit(NamedTuple):
    sha: str
    files: dict  # path -> content
    title: str = "initial commit"
    description: str = ""


class User(NamedTuple):
    name: str
    role: str = "write"
    everywhere: bool = True  # a member of every organisation


class Repo:
    def __init__(self, private=False, sdk=None):
        self.private, self.sdk = private, sdk
        self.gated = self.disabled = False
        self.commits = {"main": [Commit("0" * 40, {})]}  # branch -> its commits, oldest first
        self.tags = {}  # name -> sha
        self.lfs = {}  # sha256 -> content

    def commit(self, revision):
        """The commit that a branch, a tag or a sha names; None if there is none."""
        revision = self.tags.get(revision, revision)
        if revision in self.commits:
            return self.commits[revision][-1]
        return next((c for commits in self.commits.values() for c in commits if c.sha == revision), None)

    def history(self, revision):
        """Commits that lead to a revision, newest first."""
        sha = self.commit(revision).sha
        for commits in self.commits.values():
            shas = [commit.sha for commit in commits]
            if sha in shas:
                return commits[shas.index(sha) :: -1]
        raise AssertionError("unreachable")

    def add(self, branch, files, title="Edit", description=""):
        """Append a commit with exactly these files."""
        commits = self.commits[branch]
        text = repr((branch, len(commits), commits[-1].sha, title, sorted((p, git_oid(c)) for p, c in files.items())))
        commits.append(Commit(hashlib.sha1(text.encode()).hexdigest(), dict(files), title, description))
        return commits[-1].sha


@dataclass
class Hub:
    """The state of the server, and the faults that it injects.

    Attributes:
        repos: `org/name` of a model, `datasets/org/name`, `spaces/org/name` -> repository.
        users: Token -> user.
        forbidden: Nobody may write.
        shared_names: A name is taken for all types by the first repository that has it. On the real Hub each type has
            names of its own.
        faults: Each is used once: `(method, part of the path, kind)`, or `(number of the request, kind)` counted from
            0 since `requests` was empty. Kinds: `drop` (connection closed before the work), `lost` (after it, without
            an answer), `truncated` (after half of the answer), `slow`, a status such as `500`, `portal` (a page of
            somebody else, before the work), or one of `GARBLED` (in the place of the answer, after the work).
        requests: What was asked for, such as `GET /api/whoami-v2`.
        delay: Seconds that `slow` takes.
        retry_after: What `429` asks for, in seconds.
        page_size: Entries of a page of the file listing.
        part_size: Largest upload in one part, in bytes.
    """

    repos: dict = field(default_factory=dict)
    users: dict = field(
        default_factory=lambda: {
            "hf_secret": User("someone"),
            "hf_reader": User("someone", role="read"),
            "hf_stranger": User("stranger", everywhere=False),
        }
    )
    token: str = "hf_secret"
    forbidden: bool = False
    shared_names: bool = False
    faults: list = field(default_factory=list)
    requests: list = field(default_factory=list)
    delay: float = 0.05
    retry_after: int = 0
    page_size: int = 1000
    part_size: int = 2**30
    lock: threading.RLock = field(default_factory=threading.RLock)

    def files(self, repo_id, revision="main"):
        """Path -> content of a repository."""
        return self.repos[repo_id].commit(revision).files

    def edit(self, repo_id, path, content, branch="main"):
        """What a user does on the website."""
        return self.repos[repo_id].add(branch, self.files(repo_id, branch) | {path: content}, f"Update {path}")

    def fault_of(self, request):
        """Count a request and take the kind of fault that it meets, if any."""
        with self.lock:
            number = len(self.requests)
            self.requests.append(request)
            method, path = request.split(" ", 1)
            for fault in self.faults:
                if fault[0] == number if len(fault) == 2 else fault[0] == method and fault[1] in path:
                    self.faults.remove(fault)
                    return fault[-1]
        return None


class RefusalError(Exception):
    def __init__(self, status, message, code=None, **content):
        self.status, self.content = status, {"error": message, **content}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def hub(self):
        return self.server.hub

    def log_message(self, *_):
        pass

    def do(self):
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self._chunked() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        hub = self.hub
        self.fault = hub.fault_of(f"{self.command} {unquote(parts.path)}")
        if self.fault == "drop":
            self.close_connection = True
            return
        if self.fault == "portal":
            return self.answer(content=PORTAL, headers={"Content-Type": "text/html"})
        if self.fault == "slow":
            threading.Event().wait(hub.delay)  # time.sleep may be patched by the test
        try:
            if self.fault and self.fault.isdigit():
                self._refuse(int(self.fault))
            with hub.lock:
                self.route(parts.path)
        except RefusalError as refusal:
            extra = {"Retry-After": str(hub.retry_after)} if refusal.status == 429 else {}
            self.answer(refusal.content, refusal.status, refusal.headers | extra)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do  # noqa: N815

    def _refuse(self, status):
        if status == 409 and self.command == "POST" and self.path.startswith("/api/repos/create"):
            request = json.loads(self.body)  # the Hub names the repository that has the name
            raise RefusalError(409, "injected", url=self.url_of(request.get("type") or "model", self.id_in(request)))
        raise RefusalError(status, INVALID_TOKEN if status == 401 else "injected")

    def _chunked(self):
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, value=None, status=200, headers=(), content=None):
        if self.fault == "lost":
            self.close_connection = True
            return
        content = json.dumps(value).encode() if content is None else content
        if self.fault in GARBLED:
            content, status, headers = GARBLED[self.fault], 200, {"Content-Type": "application/json"}
        self.send_response(status)
        for name, text in dict(headers).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.fault == "truncated":
            content, self.close_connection = content[: len(content) // 2], True
        if self.command != "HEAD":
            self.wfile.write(content)

    def url_of(self, kind, repo_id):
        return f"{self.server.url}/{PREFIXES[kind]}{repo_id}"

    # Who may do what

    def user(self):
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in self.hub.users:
            raise RefusalError(401, INVALID_TOKEN)
        return self.hub.users.get(given)

    def owns(self, repo_id):
        user = self.user()
        return user is not None and (user.everywhere or repo_id.split("/")[0] == user.name)

    def repo(self, kind, repo_id, write=False):
        user, repo = self.user(), self.hub.repos.get(PREFIXES[kind] + repo_id)
        if repo is None or (repo.private and not self.owns(repo_id)):
            raise RefusalError(404 if user else 401, "Repository not found", "RepoNotFound")
        if repo.disabled:
            raise RefusalError(403, "Access to this resource is disabled.")
        if write:
            self.may_write(repo_id)
        return repo

    def may_write(self, repo_id):
        user = self.user()
        if user is None:
            raise RefusalError(401, "Invalid username or password.")
        if self.hub.forbidden or user.role != "write" or not self.owns(repo_id):
            raise RefusalError(
                403, f'You do not have the rights to write under the namespace "{repo_id.split("/")[0]}"'
            )

    def may_read_files(self, repo, repo_id):
        if repo.gated and not self.owns(repo_id):
            raise RefusalError(403 if self.user() else 401, "Access to this repository is restricted.", "GatedRepo")

    # What is asked for

    def route(self, path):
        action = {
            "/api/validate-yaml": self.validate_yaml,
            "/api/whoami-v2": self.whoami,
            "/api/repos/create": self.create,
            "/api/repos/delete": self.delete,
        }.get(path)
        if action:
            return action()
        if match := re.fullmatch(r"/lfs/(.+?)/([0-9a-f]{64})(?:/(\d+))?", path):
            return self.lfs_object(*match.groups())
        if match := re.fullmatch(
            r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([\w-]+)(?:/([^/]+)(?:/(.*))?)?)?", path
        ):
            return self.api(*(unquote(part) if part else part for part in match.groups()))
        if match := re.fullmatch(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)\.git/info/lfs/(objects/batch|verify)", path):
            return self.lfs(match[1] or "model", match[2], match[3])
        if match := re.fullmatch(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/(?:resolve|raw)/([^/]+)/(.+)", path):
            return self.resolve(match[1] or "model", match[2], unquote(match[3]), unquote(match[4]))
        raise RefusalError(404, "Not found", "EntryNotFound")

    def whoami(self):
        user = self.user()
        if user is None:
            raise RefusalError(401, INVALID_TOKEN)
        access = {"displayName": "test", "role": user.role, "createdAt": "2031-01-01T00:00:00.000Z"}
        auth = {"type": "access_token", "accessToken": access}
        orgs = [{"type": "org", "name": "org"}] if user.everywhere else []
        self.answer({"type": "user", "id": "1", "name": user.name, "fullname": user.name, "orgs": orgs, "auth": auth})

    def validate_yaml(self):
        request = json.loads(self.body)
        errors, warnings = problems_of_card(request["content"], request["repoType"])
        if errors and self.headers.get("Accept") == "text/plain":
            return self.answer(status=400, content="\n".join(errors).encode())
        named = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
        self.answer(named, 400 if errors else 200)

    def id_in(self, request):
        user = self.user()
        return f"{request.get('organization') or (user.name if user else 'someone')}/{request['name']}"

    def create(self):
        request = json.loads(self.body)
        kind, repo_id = request.get("type") or "model", self.id_in(request)
        self.may_write(repo_id)
        taken = PREFIXES.values() if self.hub.shared_names else [PREFIXES[kind]]
        if any(prefix + repo_id in self.hub.repos for prefix in taken):
            message = f"You already created this {kind} repo"
            raise RefusalError(409, message, url=self.url_of(kind, repo_id), name=repo_id)
        if kind == "space" and request.get("sdk") not in ("gradio", "docker", "static"):
            raise RefusalError(400, '"sdk" must be one of gradio, docker, static')
        self.hub.repos[PREFIXES[kind] + repo_id] = Repo(request.get("visibility") == "private", request.get("sdk"))
        self.answer({"url": self.url_of(kind, repo_id), "name": repo_id, "id": "1"})

    def delete(self):
        request = json.loads(self.body)
        kind, repo_id = request.get("type") or "model", self.id_in(request)
        self.repo(kind, repo_id, write=True)
        del self.hub.repos[PREFIXES[kind] + repo_id]
        self.answer({})

    def api(self, kind, repo_id, action, revision, rest):
        writes = action in ("branch", "tag", "preupload", "commit", "settings")
        repo = self.repo(kind, repo_id, write=writes)
        if action == "branch":
            return self.branch(repo, revision)
        if action == "tag" and self.command == "DELETE":
            repo.tags.pop(revision)
            return self.answer({})
        if action == "settings":
            request = json.loads(self.body)
            repo.private = request.get("visibility", "private" if repo.private else "public") == "private"
            repo.gated = request.get("gated", repo.gated)
            return self.answer({})
        if action == "refs":
            refs = {"branches": {b: commits[-1].sha for b, commits in repo.commits.items()}, "tags": repo.tags}
            places = {"branches": "heads", "tags": "tags"}
            named = {
                k: [{"name": n, "ref": f"refs/{places[k]}/{n}", "targetCommit": sha} for n, sha in v.items()]
                for k, v in refs.items()
            }
            return self.answer(named | {"converts": []})
        commit = repo.commit(revision or "main")
        if commit is None:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if action == "tag":
            return self.tag(repo, commit)
        if action == "xet-write-token":
            names = {"Cas-Url": f"{self.server.url}/cas", "Access-Token": "x", "Token-Expiration": "4000000000"}
            return self.answer(
                {"casUrl": names["Cas-Url"], "accessToken": "x", "exp": 4000000000},
                headers={f"X-Xet-{name}": value for name, value in names.items()},
            )
        if action == "preupload":
            asked = json.loads(self.body)["files"]
            return self.answer({"files": [upload_mode(file, commit.files) for file in asked]})
        if action == "commit":
            return self.commit(repo, kind, repo_id, revision)
        if action == "commits":
            listed = [
                {"id": c.sha, "title": c.title, "message": c.description, "date": DATE, "authors": []}
                for c in repo.history(revision)
            ]
            return self.answer(listed)
        if action == "tree":
            return self.tree(repo, commit, rest)
        if action == "paths-info":
            form = parse_qs(self.body.decode())
            expand = form.get("expand", ["false"])[0].lower() == "true"
            entries = {entry["path"]: entry for entry in entries_of(repo, commit, expand=expand)}
            return self.answer([entries[path] for path in form.get("paths", []) if path in entries])
        if action in (None, "revision"):
            return self.answer(info_of(repo, kind, repo_id, commit))
        raise RefusalError(404, "Not found", "EntryNotFound")

    def branch(self, repo, name):
        if self.command == "DELETE":
            del repo.commits[name]
            return self.answer({})
        if name in repo.commits:
            raise RefusalError(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repo.commits[name] = repo.history(start)[::-1]
        self.answer({})

    def tag(self, repo, commit):
        name = json.loads(self.body)["tag"]
        if name in repo.tags:
            raise RefusalError(409, "Tag reference exists already")
        repo.tags[name] = commit.sha
        self.answer({})

    def tree(self, repo, commit, folder):
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        expand = self.query.get("expand", ["false"])[0].lower() == "true"
        entries = entries_of(repo, commit, expand=expand)
        folder = (folder or "").strip("/")
        if folder:
            if not any(entry["path"] == folder and entry["type"] == "directory" for entry in entries):
                raise RefusalError(404, f"{folder} does not exist", "EntryNotFound")
            entries = [entry for entry in entries if entry["path"].startswith(f"{folder}/")]
        if not recursive:
            entries = [entry for entry in entries if posixpath.dirname(entry["path"]) == folder]
        start = int(self.query.get("cursor", ["0"])[0])
        page, headers = entries[start : start + self.hub.page_size], {}
        if start + self.hub.page_size < len(entries):
            base = re.sub(r"[&?]cursor=\d+", "", self.path)
            following = f"{base}{'&' if '?' in base else '?'}cursor={start + self.hub.page_size}"
            headers = {"Link": f'<{self.server.url}{following}>; rel="next"'}
        self.answer(page, headers=headers)

    def commit(self, repo, kind, repo_id, branch):
        if branch not in repo.commits:
            raise RefusalError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.commits[branch][-1].sha):
            raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[branch][-1].files)
        for line in lines[1:]:
            value, path = line["value"], line["value"]["path"]
            if line["key"] == "file":
                files[path] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in repo.lfs:
                    raise RefusalError(400, f"LFS object of {path} was not uploaded")
                files[path] = repo.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                if path not in files:
                    raise RefusalError(404, "A file with this name doesn't exist", "EntryNotFound")
                del files[path]
            elif line["key"] == "deletedFolder":
                files = {p: c for p, c in files.items() if not p.startswith(path.rstrip("/") + "/")}
        sha = repo.add(branch, files, header["summary"], header.get("description") or "")
        self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.url_of(kind, repo_id)}/commit/{sha}"})

    def lfs(self, kind, repo_id, action):
        repo, request = self.repo(kind, repo_id, write=True), json.loads(self.body)
        if action == "verify":
            if len(repo.lfs.get(request["oid"], b"")) != request["size"]:
                raise RefusalError(404, "LFS object not found")
            return self.answer({})
        objects = []
        for item in request["objects"]:
            href = f"{self.server.url}/lfs/{PREFIXES[kind]}{repo_id}/{item['oid']}"
            upload = {"href": href}
            parts = -(-item["size"] // self.hub.part_size)
            if parts > 1:
                urls = {f"{number:05d}": f"{href}/{number}" for number in range(1, parts + 1)}
                upload["header"] = {"chunk_size": str(self.hub.part_size), **urls}
            verify = {"href": f"{self.url_of(kind, repo_id)}.git/info/lfs/verify"}
            known = item["oid"] in repo.lfs
            objects.append(item | ({} if known else {"actions": {"upload": upload, "verify": verify}}))
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_object(self, key, oid, part):
        objects = self.hub.repos[key].lfs  # a signed address needs no token
        if part:
            objects[f"{oid}/{part}"] = self.body
            return self.answer({}, headers={"ETag": f'"{git_oid(self.body)}"'})
        content = self.body
        if self.command == "POST":
            content = b"".join(objects.pop(f"{oid}/{p['partNumber']}") for p in json.loads(self.body)["parts"])
        if sha256(content) != oid:
            raise RefusalError(400, "The content is not that of its sha256")
        objects[oid] = content
        self.answer({})

    def resolve(self, kind, repo_id, revision, path):
        repo = self.repo(kind, repo_id)
        commit = repo.commit(revision)
        if commit is None:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        self.may_read_files(repo, repo_id)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            missing = RefusalError(404, "Entry not found", "EntryNotFound")
            missing.headers |= headers
            raise missing
        content = commit.files[path]
        headers |= {"ETag": f'"{git_oid(content)}"', "Content-Type": "application/octet-stream"}
        if is_large(path, len(content)):
            oid = f'"{sha256(content)}"'
            headers |= {"ETag": oid, "X-Linked-ETag": oid, "X-Linked-Size": str(len(content))}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.answer(headers=headers, content=content)
        first, last = asked.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            return self.answer(status=416, headers={"Content-Range": f"bytes */{len(content)}"}, content=b"")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self.answer(status=206, headers=headers, content=content[start:stop])


DATE = "2031-01-01T00:00:00.000Z"


def metadata_of(card):
    """The YAML block of a card; raises `yaml.YAMLError`."""
    block = re.match(r"---\r?\n(.*?)\r?\n?---(?:\r?\n|$)", card, re.DOTALL)
    return yaml.safe_load(block[1]) if block else None


def problems_of_card(card, kind):
    """Errors and warnings, as the Hub finds them in a card's metadata."""
    try:
        metadata = metadata_of(card)
    except yaml.YAMLError as error:
        return [f"YAML metadata is not valid: {error}"], []
    if metadata is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return ['"metadata" must be an object'], []
    errors = []
    for name, type_ in (("license", str), ("tags", list), ("model-index", list), ("pipeline_tag", str)):
        if metadata.get(name) is not None and not isinstance(metadata[name], type_):
            errors.append(f'"{name}" must be a {"string" if type_ is str else "array"}')
    if kind == "space" and metadata.get("sdk") not in ("gradio", "docker", "static"):
        errors.append('"sdk" must be one of [gradio, docker, static]')
    return errors, []


def upload_mode(file, files):
    path, size = file["path"], file["size"]
    known = files.get(path)
    large = is_large(path, size)
    oid = None if known is None else sha256(known) if large else git_oid(known)
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}


def entries_of(repo, commit, expand):
    """Files and folders of a commit as the API lists them, sorted by path."""
    entries = {}
    for path, content in commit.files.items():
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        if is_large(path, len(content)):
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
        if expand:
            history = repo.history(commit.sha)
            same = [c for c, older in zip(history, [*history[1:], Commit("", {})], strict=True)
                    if older.files.get(path) != c.files.get(path)]  # fmt: skip
            entry["lastCommit"] = {"id": same[0].sha, "title": same[0].title, "date": DATE}
        entries[path] = entry
        while path := posixpath.dirname(path):
            entries[path] = {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}
    return [entries[path] for path in sorted(entries)]


def info_of(repo, kind, repo_id, commit):
    try:
        card = metadata_of(commit.files.get("README.md", b"").decode()) or {}
    except yaml.YAMLError:
        card = {}
    siblings = []
    for path, content in commit.files.items():
        sibling = {"rfilename": path, "size": len(content), "blobId": git_oid(content)}
        if is_large(path, len(content)):
            sibling["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
        siblings.append(sibling)
    info = {
        "_id": "1",
        "id": repo_id,
        "author": repo_id.split("/")[0],
        "sha": commit.sha,
        "lastModified": DATE,
        "createdAt": DATE,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": repo.disabled,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags") or [],
        "cardData": card,
        "siblings": siblings,
    }
    names = {"model": ("pipeline_tag", "library_name", "model-index"), "space": ("sdk",), "dataset": ()}[kind]
    return info | {name: card[name] for name in names if name in card}


class Server(ThreadingHTTPServer):
    """The HTTP server; `hub` is its state, which a test may replace."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = Hub()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
        self._thread.join()

    def environment(self, home, token="hf_secret", **variables):
        """Variables of a process whose Hub is this server: `home` is its cache; without a token if that is None."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        settings |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return inherited | settings | ({"HF_TOKEN": token} if token else {}) | variables
