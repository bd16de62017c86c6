"""Push files to a repository on the Hugging Face Hub so that either all of them arrive or none.

huggingface_hub tries an upload of content again by itself, but neither the creation of a repository nor the commit,
and it cannot know whether a commit whose answer was lost has arrived. Here one attempt compares what is there with
what is to be there and commits only the difference, so that it can be repeated as often as needed.
"""

import hashlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session, hf_raise_for_status, parse_ratelimit_headers

from hf_ssl import __version__
from hf_ssl.errors import UserError
from hf_ssl.hub.cards import is_edited
from hf_ssl.hub.names import check_refs, check_repo_id, url_of
from hf_ssl.tokens import has_token, without_tokens

logger = logging.getLogger(__name__)

_ATTEMPTS = 5
_FIRST_PAUSE = 1.0  # seconds; doubled after each attempt
_LONGEST_PAUSE = 300.0  # seconds; the Hub counts requests in windows of five minutes
_MARK = "Pushed by hf_ssl"  # in the description of each commit: tells what was edited on the Hub since
_CARD = "README.md"
_STUB = "Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference"
_TEXT = (".json", ".jsonl", ".md", ".py", ".txt", ".yaml", ".yml")
_LARGEST_TEXT = 10_000_000  # bytes

Files = Mapping[str, Path | bytes]


class _CannotPushError(Exception):
    """A sentence about what no other attempt would change."""


def push_files(
    files: Files | Callable[[str], Files],
    repo_id: str,
    *,
    repo_type: Literal["model", "dataset", "space"] = "model",
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    message: str,
    is_stale: Callable[[str], bool] = lambda path: False,
    space_sdk: str | None = None,
    token: str | None = None,
    retry: str,
) -> str:
    """Push files in one commit; either all of them arrive or nothing.

    Server errors, dropped connections and a repository that changes meanwhile are met by another attempt after a
    pause. Pushing what is already there makes no commit, so a push whose answer was lost can be repeated. Nothing
    local changes. A card or an evaluation result (`README.md`, `.eval_results/`) that was edited on the Hub stays as
    it is there, and a line of the log says so. The Hub checks the card's metadata before anything is sent.

    Args:
        files: A local file, or the content of one, by its path in the repository; or a function that gives them for
            the repository's full name, `org/name`.
        repo_id: Repository, `org/name`, or `name` for one of the token's user; made if missing.
        repo_type: Kind of repository; each kind has names of its own.
        private: Make it a private one.
        revision: Branch to push to; made from `main` if missing. Without it `main`.
        tag: Name to give to what was pushed. Tags stay as they are: one that names something else is an error, and
            then nothing is pushed.
        message: Title of the commit.
        is_stale: Whether a path in the repository that `files` does not have was written by an earlier push and is to
            be removed.
        space_sdk: What runs a Space: `gradio`, `docker` or `static`.
        token: Token of the Hub; None: that of `hf auth login` or `HF_TOKEN`.
        retry: Command that pushes again, for errors.

    Returns:
        Address of what was pushed.

    Raises:
        UserError: If the name of the repository, branch or tag cannot be used.
        UserError: If the Hub cannot be reached or refuses; the sentence ends with the command that tries again.
    """
    check_repo_id(repo_id)
    check_refs(revision, tag)
    again = without_tokens(f"The local files are intact; then: {retry}")
    token = token or get_token()
    if token is None:
        raise UserError(f"No Hub token was found. Run `hf auth login` or set `HF_TOKEN`. {again}")
    api = HfApi(token=token, library_name="hf_ssl", library_version=__version__)
    files_of = files if callable(files) else lambda _: files

    def push() -> str:
        _check_no_token(files_of(repo_id))
        _check_card(api, files_of(repo_id), repo_type)
        name = api.create_repo(
            repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=space_sdk
        ).repo_id
        if private and not api.repo_info(name, repo_type=repo_type).private:
            raise _CannotPushError(
                f"`{name}` exists and is public, which `--private` does not change. "
                "Make it private in its settings on the Hub first, or choose another `--repo_id`."
            )
        _commit_difference(api, name, repo_type, files_of(name), revision, tag, message, is_stale)
        return url_of(name, repo_type, revision)

    try:
        return _with_retries(push)
    except _CannotPushError as error:
        raise UserError(without_tokens(str(error))) from None
    except (HTTPError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{without_tokens(_sentence_about(error, repo_id, repo_type))} {again}") from None


def _commit_difference(
    api: HfApi,
    name: str,
    repo_type: str,
    files: Files,
    revision: str | None,
    tag: str | None,
    message: str,
    is_stale: Callable[[str], bool],
) -> None:
    branch = revision or "main"
    head, tags = _head_of(api, name, repo_type, branch)
    there = {
        entry.path: entry
        for entry in api.list_repo_tree(name, recursive=True, revision=head, repo_type=repo_type)
        if isinstance(entry, RepoFile)
    }
    changed = [path for path, content in files.items() if not _is_same(content, there.get(path))]
    kept = _edited_there(api, name, repo_type, head, [path for path in changed if path in there])
    changed = [path for path in changed if path not in kept]
    stale = [path for path in there if path not in files and is_stale(path)]
    if tag in tags and (tags[tag] != head or changed or stale):
        raise _CannotPushError(
            f"`{name}` has a tag `{tag}`, which names something else (commit {tags[tag][:8]}); tags stay as they are. "
            "Choose another `--tag`."
        )
    if changed or stale:
        # New operations for each attempt: they remember how far the last one came.
        additions = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=files[path]) for path in changed]
        removals = [CommitOperationDelete(path_in_repo=path) for path in stale]
        head = _create_commit(api, name, repo_type, [*additions, *removals], branch, head, message)
    if tag and tag not in tags:
        api.create_tag(name, tag=tag, revision=head, repo_type=repo_type)
    megabytes = sum(_size_of(files[path]) for path in changed) / 1e6
    parts = [f"{len(changed)} files ({megabytes:.1f} MB) pushed"]
    parts += [f"{len(stale)} old ones removed"] if stale else []
    parts += [f"{len(files) - len(changed) - len(kept)} unchanged"]
    parts += [f"tag `{tag}`"] if tag else []
    logger.info("%s: %s.", name, ", ".join(parts))
    for path in sorted(kept):
        logger.warning(
            "`%s` of %s was edited on the Hub and stays as it is there. Delete it there to publish the local one.",
            path,
            name,
        )


def _head_of(api: HfApi, name: str, repo_type: str, branch: str) -> tuple[str, dict[str, str]]:
    """Last commit of the branch, which is made if missing, and the commit that each tag names."""
    refs = api.list_repo_refs(name, repo_type=repo_type)
    heads = {ref.name: ref.target_commit for ref in refs.branches}
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    if branch in tags:
        raise _CannotPushError(f"`{name}` has a tag `{branch}`; tags stay as they are. Choose another `--revision`.")
    if branch not in heads:
        api.create_branch(name, branch=branch, repo_type=repo_type, exist_ok=True)
    return heads.get(branch, heads["main"]), tags


def _create_commit(
    api: HfApi,
    name: str,
    repo_type: str,
    operations: Iterable[CommitOperationAdd | CommitOperationDelete],
    branch: str,
    head: str,
    message: str,
) -> str:
    try:
        return api.create_commit(
            name,
            operations,
            commit_message=message,
            commit_description=f"{_MARK} {__version__}.",
            repo_type=repo_type,
            revision=branch,
            parent_commit=head,  # if somebody else pushes meanwhile, the Hub refuses and the comparison is made anew
        ).oid
    except HTTPError:
        raise
    except ValueError as error:  # such as an upload that the storage refuses
        raise _CannotPushError(f"The Hub refuses the push to `{name}`: {_one_line(str(error))}.") from None
    except RuntimeError as error:  # how both ways of uploading report what befell them
        cause = error.__cause__
        raise (cause if isinstance(cause, HTTPError | OSError) else ConnectionError(_one_line(str(error)))) from None


def _is_same(content: Path | bytes, there: RepoFile | None) -> bool:
    if there is None or there.size != _size_of(content):
        return False
    if there.lfs is None:
        content = content if isinstance(content, bytes) else content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == there.blob_id
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest() == there.lfs.sha256
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256


def _size_of(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _edited_there(api: HfApi, name: str, repo_type: str, head: str, paths: Iterable[str]) -> set[str]:
    """The cards and evaluation results among the paths that somebody changed on the Hub after the last push."""
    paths = [path for path in paths if path == _CARD or path.startswith(".eval_results/")]
    if not paths:
        return set()
    ours = {
        commit.commit_id
        for commit in api.list_repo_commits(name, revision=head, repo_type=repo_type)
        if commit.message.startswith(_MARK)
    }
    edited = {
        info.path
        for info in api.get_paths_info(name, paths, expand=True, revision=head, repo_type=repo_type)
        if isinstance(info, RepoFile) and info.last_commit and info.last_commit.oid not in ours
    }
    if _CARD in edited and not _has_content_of_its_own(api, name, repo_type, head):
        edited.remove(_CARD)
    return edited


def _has_content_of_its_own(api: HfApi, name: str, repo_type: str, head: str) -> bool:
    """Whether a card is neither one that hf_ssl wrote nor the stub that the Hub makes with a repository."""
    with tempfile.TemporaryDirectory() as folder:
        card = Path(api.hf_hub_download(name, _CARD, repo_type=repo_type, revision=head, local_dir=folder))
        body = re.sub(r"\A---\r?\n.*?^---\s*$", "", card.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        return body.strip() not in ("", _STUB) and is_edited(card)


def _check_no_token(files: Files) -> None:
    """Refuse to publish somebody's access, such as in a command that a card repeats."""
    for path, content in files.items():
        if path.endswith(_TEXT) and _size_of(content) < _LARGEST_TEXT:
            text = content if isinstance(content, bytes) else content.read_bytes()
            if has_token(text.decode(errors="replace")):
                raise _CannotPushError(
                    f"`{path}` holds an access token of the Hub, so nothing was pushed. Remove it there, and make the "
                    "token invalid in the settings of its account if others may have seen it."
                )


def _check_card(api: HfApi, files: Files, repo_type: str) -> None:
    """Let the Hub check the metadata of the card, if there is one, before anything is sent."""
    if _CARD not in files:
        return
    content = files[_CARD]
    text = (content if isinstance(content, bytes) else content.read_bytes()).decode()
    # Not by `RepoCard.validate`: up to huggingface_hub 2.0 it asks huggingface.co whatever Hub is pushed to.
    response = get_session().post(
        f"{api.endpoint}/api/validate-yaml",
        json={"repoType": repo_type, "content": text},
        headers={"Accept": "text/plain"},
    )
    if response.status_code == 400:
        raise _CannotPushError(
            f"The Hub refuses the metadata at the top of `{_CARD}`: {_one_line(response.text)}. Nothing was pushed."
        )
    hf_raise_for_status(response)


def _with_retries(push: Callable[[], str]) -> str:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return push()
        except (HTTPError, OSError, json.JSONDecodeError) as error:
            if attempt == _ATTEMPTS or not _may_pass(error):
                raise
            pause = max(_FIRST_PAUSE * 2 ** (attempt - 1), min(_asked_pause(error), _LONGEST_PAUSE))
            logger.warning("The push failed (%s); trying again in %.0f s.", _reason(error), pause)
            time.sleep(pause)
    raise AssertionError("unreachable")


def _may_pass(error: Exception) -> bool:
    if isinstance(error, RevisionNotFoundError):
        return True  # a branch just made, or one removed meanwhile
    if isinstance(error, HfHubHTTPError):
        # 409 and 412: something else changes the repository at the same time.
        return error.response.status_code in (408, 409, 412, 429) or error.response.status_code >= 500
    # A local file that cannot be read is an OSError too; only connections are worth another attempt.
    if isinstance(error, OfflineModeIsEnabled):
        return False
    # A file that cannot be downloaded is reported as one that the cache does not have.
    connection = HTTPError | ConnectionError | TimeoutError | LocalEntryNotFoundError
    return isinstance(error, connection | json.JSONDecodeError)


def _asked_pause(error: Exception) -> float:
    """Seconds that the Hub asks to wait."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    asked = error.response.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"status {error.response.status_code}"
    return type(error).__name__


def _sentence_about(error: Exception, repo_id: str, repo_type: str) -> str:
    """What went wrong and what to do; the server's own words only where there is nothing better."""
    if isinstance(error, OfflineModeIsEnabled):
        return "`HF_HUB_OFFLINE` is set, so nothing can be pushed. Unset it."
    if isinstance(error, GatedRepoError):
        return f"`{repo_id}` is gated, and the token's user has no access to it. Ask for access on its page."
    if isinstance(error, DisabledRepoError):
        return f"The Hub has disabled `{repo_id}`. Its page says why."
    if isinstance(error, RepositoryNotFoundError) and error.response.status_code == 404:
        return (
            f"The name `{repo_id}` is taken, but not by a {repo_type} that the token may see. "
            "Choose another `--repo_id`, or a token with access to it."
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return "The Hub does not accept the token. Run `hf auth login` with a valid one that may write."
        if status == 403:
            return f"The token may not write to `{repo_id}`. Use one with write access to that account."
        words = _one_line(error.server_message or "")
        return f"The Hub refuses the push to `{repo_id}` with status {status}{f': {words}' if words else ''}."
    if _may_pass(error):
        return f"The Hub cannot be reached ({type(error).__name__}). Check the network."
    return f"The push failed: {_one_line(str(error))}."


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
