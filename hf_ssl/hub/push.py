"""Push files to a repository on the Hugging Face Hub so that either all of them arrive or none.

One attempt compares what is there with what is to be there and commits only the difference, so that it can be repeated
as often as needed: `attempts` does that. `repository` knows what is there, `refusals` what went wrong.
"""

import logging
from collections.abc import Callable
from typing import Literal

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
from huggingface_hub.utils import get_session, hf_raise_for_status

from hf_ssl import __version__
from hf_ssl.answers import is_foreign_answer
from hf_ssl.errors import NotPublishedError
from hf_ssl.hub.attempts import Budget, repeat
from hf_ssl.hub.names import check_refs, check_repo_id, url_of
from hf_ssl.hub.refusals import CannotPushError, asked_pause, may_pass, one_line, sentence_about
from hf_ssl.hub.repository import CARD, Branch, Files, is_same, size_of
from hf_ssl.settings import HUB_TIMEOUT
from hf_ssl.tokens import has_token, without_tokens

logger = logging.getLogger(__name__)

_TEXT = (".json", ".jsonl", ".md", ".py", ".txt", ".yaml", ".yml")
_LARGEST_TEXT = 10_000_000  # bytes


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
    hub_timeout: float = HUB_TIMEOUT,
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
        hub_timeout: Seconds that the push may lose to failures of the Hub and to pauses after them, all attempts
            together; 0: nothing is tried again.
        retry: Command that pushes again, for errors.

    Returns:
        Address of what was pushed.

    Raises:
        UserError: If the name of the repository, branch or tag cannot be used.
        NotPublishedError: If the Hub cannot be reached or refuses; the sentence ends with what tries again.
    """
    check_repo_id(repo_id)
    check_refs(revision, tag)
    again = without_tokens(f"The local files are intact; then: {retry}")
    token = token or get_token()
    if token is None:
        raise NotPublishedError(f"No Hub token was found. Run `hf auth login` or set `HF_TOKEN`. {again}")
    api = HfApi(token=token, library_name="hf_ssl", library_version=__version__)
    files_of = files if callable(files) else lambda _: files
    budget = Budget(hub_timeout)

    def push() -> str:
        _check_no_token(files_of(repo_id))
        _check_card(api, files_of(repo_id), repo_type)
        name = api.create_repo(
            repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=space_sdk
        ).repo_id
        if private and not api.repo_info(name, repo_type=repo_type).private:
            raise CannotPushError(
                f"`{name}` exists and is public, which `--private` does not change. "
                "Make it private in its settings on the Hub first, or choose another `--repo_id`."
            )
        branch = Branch(api, name, repo_type, revision or "main")
        _commit_difference(branch, files_of(name), tag, message, is_stale, budget)
        return url_of(name, repo_type, revision)

    try:
        return repeat(push, budget)
    except CannotPushError as error:
        raise NotPublishedError(without_tokens(str(error))) from None
    except Exception as error:
        if not isinstance(error, HTTPError | OSError) and not is_foreign_answer(error):
            raise
        told = sentence_about(error, repo_id, repo_type)
        raise NotPublishedError(f"{without_tokens(told)}{_why_no_longer(error, budget)} {again}") from None


def _why_no_longer(error: Exception, budget: Budget) -> str:
    """Why something that may pass was not tried again, for the end of a sentence."""
    if not may_pass(error) or not budget.seconds:
        return ""
    asked = asked_pause(error)
    if asked > budget.left:
        return f" It asks for a pause of {asked:g} s, and `hub_timeout` is {budget.seconds:g} s."
    return f" It was tried again until {budget.seconds:g} s were lost (`hub_timeout`)."


def _commit_difference(
    branch: Branch,
    files: Files,
    tag: str | None,
    message: str,
    is_stale: Callable[[str], bool],
    budget: Budget,
) -> None:
    name = branch.repo_id
    head, tags = branch.refs()
    there = branch.files(head)
    changed = [path for path, content in files.items() if not is_same(content, there.get(path))]
    kept = branch.edited(head, [path for path in changed if path in there])
    changed = [path for path in changed if path not in kept]
    stale = [path for path in there if path not in files and is_stale(path)]
    if tag in tags and (tags[tag] != head or changed or stale):
        raise CannotPushError(
            f"`{name}` has a tag `{tag}`, which names something else (commit {tags[tag][:8]}); tags stay as they are. "
            "Choose another `--tag`."
        )
    if changed or stale:
        head = branch.commit({path: files[path] for path in changed}, stale, head, message, budget)
    if tag and tag not in tags:
        branch.create_tag(tag, head)
    megabytes = sum(size_of(files[path]) for path in changed) / 1e6
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


def _check_no_token(files: Files) -> None:
    """Refuse to publish somebody's access, such as in a command that a card repeats."""
    for path, content in files.items():
        if path.endswith(_TEXT) and size_of(content) < _LARGEST_TEXT:
            text = content if isinstance(content, bytes) else content.read_bytes()
            if has_token(text.decode(errors="replace")):
                raise CannotPushError(
                    f"`{path}` holds an access token of the Hub, so nothing was pushed. Remove it there, and make the "
                    "token invalid in the settings of its account if others may have seen it."
                )


def _check_card(api: HfApi, files: Files, repo_type: str) -> None:
    """Let the Hub check the metadata of the card, if there is one, before anything is sent."""
    if CARD not in files:
        return
    content = files[CARD]
    text = (content if isinstance(content, bytes) else content.read_bytes()).decode()
    # Not by `RepoCard.validate`: up to huggingface_hub 2.0 it asks huggingface.co whatever Hub is pushed to.
    response = get_session().post(
        f"{api.endpoint}/api/validate-yaml",
        json={"repoType": repo_type, "content": text},
        headers={"Accept": "text/plain"},
    )
    if response.status_code == 400:
        raise CannotPushError(
            f"The Hub refuses the metadata at the top of `{CARD}`: {one_line(response.text)}. Nothing was pushed."
        )
    hf_raise_for_status(response)
