"""Push a run to the Hugging Face Hub: the encoder as the repository's root, the whole method in `pretraining/`."""

import logging
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

from hf_ssl import __version__
from hf_ssl.hub.model_card import is_edited, render_model_card

logger = logging.getLogger(__name__)

_ATTEMPTS = 5
_FIRST_PAUSE = 1.0  # seconds; doubled after each attempt
_NEEDED = ("encoder/config.json", "encoder/model.safetensors", "pretraining/config.json")


def publish(
    run_dir: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    message: str | None = None,
    license: str | None = None,
) -> str:
    """Push `run_dir/encoder` and `run_dir/pretraining` in one commit; either all of it arrives or nothing.

    Server errors and dropped connections are tried again, with pauses. Pushing what is already there makes no commit,
    so a push whose answer was lost can be repeated. Files of an earlier push that this one does not have are removed
    where hf_ssl wrote them (results, clusters, figures, `pretraining/`, model code), and a `preprocessor_config.json`
    with them: the Hub would prefer it to the preprocessing in `config.json`. Nothing in `run_dir` changes.

    Args:
        run_dir: Folder of the run.
        repo_id: Repository, `org/name`, or `name` for one of the token's user; made if missing.
        private: Make it a private one.
        revision: Branch to push to, such as `step-000500`; made from `main` if missing. Without it `main`.
        dry_run: Check everything that can be checked without the network, and push nothing.
        message: Commit message.
        license: Licence of the weights for the card, such as `apache-2.0`.

    Returns:
        Address of what was pushed.

    Raises:
        ValueError: If the repository's name cannot be used, or the folder is not that of a run or lacks a part.
        RuntimeError: If the Hub cannot be reached or refuses; the sentence ends with the command that tries again.
    """
    _check_repo_id(repo_id)
    files_to_push(run_dir, repo_id, license=license)  # finds what is missing before anything is sent
    _check_same_encoder(run_dir)
    if dry_run:
        return _url(hub_constants.ENDPOINT, repo_id, revision)
    api = HfApi(library_name="hf_ssl", library_version=__version__)

    def push() -> str:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(name).private:
            raise RuntimeError(
                f"`{name}` exists and is public, which `--private` does not change. "
                "Make it private in its settings on the Hub first, or choose another `--repo_id`."
            )
        if revision and revision != "main":
            if revision in {tag.name for tag in api.list_repo_refs(name).tags}:
                raise RuntimeError(
                    f"`{name}` has a tag `{revision}`; tags stay as they are. Choose another `--revision`."
                )
            api.create_branch(name, branch=revision, exist_ok=True)
        _commit(api, name, files_to_push(run_dir, name, license=license), revision, message)
        return _url(api.endpoint, name, revision)

    command = _command(run_dir, repo_id, private, revision, message, license)
    retry = f"The run in `{run_dir}` is intact; then: {command}"
    if get_token() is None:
        raise RuntimeError(f"No Hub token was found. Run `hf auth login` or set `HF_TOKEN`. {retry}")
    try:
        return _with_retries(push)
    except (HTTPError, OSError) as error:
        raise RuntimeError(f"{_sentence_about(error, repo_id)} {retry}") from None


def files_to_push(run_dir: Path, repo_id: str, *, license: str | None = None) -> dict[str, Path | bytes]:
    """What a push consists of: a local file, or the content of one, by its path in the repository.

    The card names the repository; one that was edited by hand is pushed as it is.

    Args:
        run_dir: Folder of the run.
        repo_id: Repository that the card's examples load.
        license: Licence of the weights for the card.

    Raises:
        ValueError: If the folder is not that of a run, or lacks a part.
    """
    for name in _NEEDED:
        if not (run_dir / name).is_file():
            raise ValueError(
                f"`{run_dir}` cannot be published: it has no `{name}`. Give a folder that `scripts/pretrain.py` wrote."
            )
    encoder = run_dir / "encoder"
    files: dict[str, Path | bytes] = {}
    for path in _files_in(encoder):
        files[path.relative_to(encoder).as_posix()] = path
    for path in _files_in(run_dir / "pretraining"):
        files[path.relative_to(run_dir).as_posix()] = path
    if not is_edited(encoder / "README.md"):
        files["README.md"] = render_model_card(encoder, repo_id, license=license).encode()
    return files


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _check_same_encoder(run_dir: Path) -> None:
    """Each folder is replaced as a whole, but a process may be killed between the two."""
    method: dict[str, Path] = {}
    for shard in sorted((run_dir / "pretraining").glob("*.safetensors")):
        with safe_open(shard, "pt") as weights:
            method |= dict.fromkeys(weights.keys(), shard)
    with safe_open(run_dir / "encoder" / "model.safetensors", "pt") as encoder:
        for name in encoder.keys():  # noqa: SIM118
            shard = method.get(f"encoder.{name}")
            if shard is not None:
                with safe_open(shard, "pt") as weights:
                    same = torch.equal(encoder.get_tensor(name), weights.get_tensor(f"encoder.{name}").to("cpu"))
            if shard is None or not same:
                raise RuntimeError(
                    f"`{run_dir}/encoder` and `{run_dir}/pretraining` are not of the same step (`{name}` differs). "
                    "Resume the run, which writes both again."
                )


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(
            f"`repo_id` must be `org/name` of letters, digits, `-`, `_` and `.`, at most 96 of them, got `{repo_id}`."
        ) from None


def _commit(
    api: HfApi, repo_id: str, files: dict[str, Path | bytes], revision: str | None, message: str | None
) -> None:
    # New operations for each attempt: they remember how far the last one came.
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()
    ]
    for path in api.list_repo_files(repo_id, revision=revision):
        if path not in files and _is_stale(path):
            operations.append(CommitOperationDelete(path_in_repo=path))
    api.create_commit(repo_id, operations, commit_message=message or "Publish the run", revision=revision)


def _is_stale(path: str) -> bool:
    top, _, rest = path.partition("/")
    if rest:
        return top == "pretraining" or (top == "figures" and path.endswith(".png"))
    written = ("results.json", "assignments.parquet", "resnet_cifar.py", "preprocessor_config.json")
    return path in written or path.endswith(".png")


def _with_retries(push: Callable[[], str]) -> str:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return push()
        except (HTTPError, OSError) as error:
            if attempt == _ATTEMPTS or not _may_pass(error):
                raise
            pause = _FIRST_PAUSE * 2 ** (attempt - 1)
            logger.warning("The push failed (%s); trying again in %.0f s.", _reason(error), pause)
            time.sleep(pause)
    raise AssertionError("unreachable")


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    # A local file that cannot be read is an OSError too; only connections are worth another attempt.
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return isinstance(error, HTTPError | ConnectionError | TimeoutError)


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"status {error.response.status_code}"
    return type(error).__name__


def _sentence_about(error: Exception, repo_id: str) -> str:
    """What went wrong and what to do; the server's own words only where there is nothing better."""
    if isinstance(error, OfflineModeIsEnabled):
        return "`HF_HUB_OFFLINE` is set, so nothing can be pushed. Unset it."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return "The Hub does not accept the token. Run `hf auth login` with a valid one that may write."
        if status in (403, 404):
            return f"The token may not write to `{repo_id}`. Use one with write access to that account."
        words = " ".join((error.server_message or "").split())
        return f"The Hub refuses the push to `{repo_id}` with status {status}{f': {words}' if words else ''}."
    if _may_pass(error):
        return f"The Hub cannot be reached ({type(error).__name__}). Check the network."
    return f"The push failed: {error}."


def _command(
    run_dir: Path, repo_id: str, private: bool, revision: str | None, message: str | None, license: str | None
) -> str:
    words = ["python", "scripts/publish.py", str(run_dir), "--repo_id", repo_id]
    words += ["--private"] if private else []
    for flag, value in (("--revision", revision), ("--message", message), ("--license", license)):
        words += [flag, value] if value else []
    return shlex.join(words)


def _url(endpoint: str, repo_id: str, revision: str | None) -> str:
    return f"{endpoint}/{repo_id}" + (f"/tree/{revision}" if revision and revision != "main" else "")
