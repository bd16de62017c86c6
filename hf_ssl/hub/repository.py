"""A branch of a repository on the Hub: what it holds, and how it changes."""

import hashlib
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
from huggingface_hub.hf_api import RepoFile

from hf_ssl import __version__
from hf_ssl.answers import ForeignAnswerError, is_foreign_answer
from hf_ssl.hub.attempts import Budget
from hf_ssl.hub.cards import is_edited
from hf_ssl.hub.refusals import CannotPushError, may_pass, one_line, status_of

CARD = "README.md"
_MARK = "Pushed by hf_ssl"  # in the description of each commit: tells what was edited on the Hub since
_STUB = "Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference"
_XET_SECONDS = 60.0

Files = Mapping[str, Path | bytes]


@dataclass(frozen=True)
class Branch:
    """A branch of a repository that exists.

    Args:
        api: Whose token may write to it.
        repo_id: Full name of the repository, `org/name`.
        repo_type: `model`, `dataset` or `space`.
        name: Name of the branch.
    """

    api: HfApi
    repo_id: str
    repo_type: str
    name: str

    def refs(self) -> tuple[str, dict[str, str]]:
        """Last commit of the branch, which is made if missing, and the commit that each tag names."""
        refs = self.api.list_repo_refs(self.repo_id, repo_type=self.repo_type)
        heads = {ref.name: ref.target_commit for ref in refs.branches}
        tags = {ref.name: ref.target_commit for ref in refs.tags}
        if self.name in tags:
            raise CannotPushError(
                f"`{self.repo_id}` has a tag `{self.name}`; tags stay as they are. Choose another `--revision`."
            )
        if "main" not in heads:
            raise ForeignAnswerError
        if self.name not in heads:
            self.api.create_branch(self.repo_id, branch=self.name, repo_type=self.repo_type, exist_ok=True)
        return heads.get(self.name, heads["main"]), tags

    def files(self, head: str) -> dict[str, RepoFile]:
        """The files of a commit by their path."""
        entries = self.api.list_repo_tree(self.repo_id, recursive=True, revision=head, repo_type=self.repo_type)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def commit(self, files: Files, stale: Iterable[str], head: str, message: str, budget: Budget) -> str:
        """Add files and remove stale ones in one commit after `head`.

        An answer that is lost or garbled says nothing about the commit, so the branch is looked at.

        Returns:
            The new commit.
        """
        try:
            return self._create_commit(files, stale, head, message, budget)
        except Exception as error:
            status = status_of(error)
            if not may_pass(error) or (status is not None and status < 500):
                raise
            now, _ = self.refs()
            there = {} if now == head else self.files(now)
            if now == head or any(path in there for path in stale):
                raise
            if not all(is_same(content, there.get(path)) for path, content in files.items()):
                raise
            return now

    def _create_commit(self, files: Files, stale: Iterable[str], head: str, message: str, budget: Budget) -> str:
        # New operations for each attempt: they remember how far the last one came.
        additions = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()]
        started = time.monotonic()
        try:
            return self.api.create_commit(
                self.repo_id,
                [*additions, *(CommitOperationDelete(path_in_repo=path) for path in stale)],
                commit_message=message,
                commit_description=f"{_MARK} {__version__}.",
                repo_type=self.repo_type,
                revision=self.name,
                parent_commit=head,  # if somebody else pushes meanwhile, the Hub refuses and all is compared anew
            ).oid
        except HTTPError:
            raise
        except ValueError as error:  # such as an upload that the storage refuses
            if is_foreign_answer(error):
                raise
            raise CannotPushError(f"The Hub refuses the push to `{self.repo_id}`: {one_line(str(error))}.") from None
        except (RuntimeError, OSError) as error:
            cause = error.__cause__
            if cause is not None and (isinstance(cause, HTTPError | OSError) or is_foreign_answer(cause)):  # of LFS
                raise cause from cause.__cause__
            if isinstance(error, ConnectionError):  # of Xet, whose requests nobody else counts
                budget.spend(min(time.monotonic() - started, _XET_SECONDS))
            if isinstance(error, OSError):
                raise
            raise ConnectionError(one_line(str(error))) from None

    def create_tag(self, tag: str, head: str) -> None:
        """Give a commit a name for ever, and look whether it has it: the answer holds nothing to be read."""
        self.api.create_tag(self.repo_id, tag=tag, revision=head, repo_type=self.repo_type)
        if self.refs()[1].get(tag) != head:
            raise ForeignAnswerError

    def edited(self, head: str, paths: Iterable[str]) -> set[str]:
        """The cards and evaluation results among the paths that somebody changed on the Hub after the last push."""
        paths = [path for path in paths if path == CARD or path.startswith(".eval_results/")]
        if not paths:
            return set()
        ours = {
            commit.commit_id
            for commit in self.api.list_repo_commits(self.repo_id, revision=head, repo_type=self.repo_type)
            if commit.message.startswith(_MARK)
        }
        infos = self.api.get_paths_info(self.repo_id, paths, expand=True, revision=head, repo_type=self.repo_type)
        edited = {
            info.path
            for info in infos
            if isinstance(info, RepoFile) and info.last_commit and info.last_commit.oid not in ours
        }
        if CARD in edited and not self._has_card_of_its_own(head):
            edited.remove(CARD)
        return edited

    def _has_card_of_its_own(self, head: str) -> bool:
        """Whether the card is neither one that hf_ssl wrote nor the stub that the Hub makes with a repository."""
        with tempfile.TemporaryDirectory() as folder:
            found = self.api.hf_hub_download(
                self.repo_id, CARD, repo_type=self.repo_type, revision=head, local_dir=folder
            )
            card = Path(found)
            text = card.read_text(encoding="utf-8", errors="replace")
            body = re.sub(r"\A---\r?\n.*?^---\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
            return body.strip() not in ("", _STUB) and is_edited(card)


def is_same(content: Path | bytes, there: RepoFile | None) -> bool:
    """Whether a file of a repository has this content."""
    if there is None or there.size != size_of(content):
        return False
    if there.lfs is None:
        content = content if isinstance(content, bytes) else content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == there.blob_id
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest() == there.lfs.sha256
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256


def size_of(content: Path | bytes) -> int:
    """Size of a content or of a file in bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size
