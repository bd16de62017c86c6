"""Push a run to the Hugging Face Hub: the encoder as the repository's root, the whole method in `pretraining/`."""

import shlex
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from hf_ssl.errors import UserError
from hf_ssl.hub.cards import card_to_push, is_edited
from hf_ssl.hub.model_card import render_model_card
from hf_ssl.hub.names import check_license, check_refs, check_repo_id, url_of
from hf_ssl.hub.public import public_files
from hf_ssl.hub.push import push_files
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.settings import HUB_TIMEOUT
from hf_ssl.training.files import RUN_FILE

_NEEDED = ("encoder/config.json", "encoder/model.safetensors", "pretraining/config.json")


def publish(
    run_dir: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    message: str | None = None,
    license: str | None = None,
    token: str | None = None,
    hub_timeout: float = HUB_TIMEOUT,
) -> str:
    """Push `run_dir/encoder` and `run_dir/pretraining` in one commit, by `push_files`: all of it arrives or nothing.

    Files of an earlier push that this one does not have are removed where hf_ssl wrote them (results, clusters,
    figures, `pretraining/`, model code), and a `preprocessor_config.json` with them: the Hub would prefer it to the
    preprocessing in `config.json`. A card that was edited on the Hub stays. Nothing in `run_dir` changes.

    Args:
        run_dir: Folder of the run.
        repo_id: Repository, `org/name`, or `name` for one of the token's user; made if missing.
        private: Make it a private one.
        revision: Branch to push to, such as `step-000500`; made from `main` if missing. Without it `main`.
        tag: Name for what is pushed, such as `v1.0`; a tag that names something else is an error.
        dry_run: Check everything that can be checked without the network, and push nothing.
        message: Commit message.
        license: Licence of the weights for the card, such as `apache-2.0`.
        token: Token of the Hub; None: that of `hf auth login` or `HF_TOKEN`.
        hub_timeout: Seconds that the push may lose to failures, see `push_files`.

    Returns:
        Address of what was pushed.

    Raises:
        UserError: If the name of the repository, branch or tag cannot be used, or the folder is not that of a run or
            lacks a part.
        UserError: If the Hub cannot be reached or refuses; the sentence ends with the command that tries again.
    """
    check_repo_id(repo_id)
    check_refs(revision, tag)
    check_license(license)
    files_to_push(run_dir, repo_id, license=license)  # finds what is missing before anything is sent
    _check_same_encoder(run_dir)
    if dry_run:
        return url_of(repo_id, revision=revision)
    return push_files(
        lambda name: files_to_push(run_dir, name, license=license),
        repo_id,
        private=private,
        revision=revision,
        tag=tag,
        message=message or "Publish the run",
        is_stale=is_stale,
        token=token,
        hub_timeout=hub_timeout,
        retry=publish_command(run_dir, repo_id, private, revision=revision, tag=tag, message=message, license=license),
    )


def files_to_push(
    run_dir: Path, repo_id: str, *, license: str | None = None, model: SSLPreTrainedModel | None = None
) -> dict[str, Path | bytes]:
    """What a push consists of: a local file, or the content of one, by its path in the repository.

    The card names the repository; one that was edited by hand is pushed as it is.

    Args:
        run_dir: Folder of the run.
        repo_id: Repository that the card's examples load.
        license: Licence of the weights for the card.
        model: The method, of whose training nothing is recorded. Without it the folder needs the record of a run.

    Raises:
        UserError: If the folder is not that of a run, or lacks a part.
    """
    for name in _NEEDED:
        if not (run_dir / name).is_file():
            raise UserError(
                f"`{run_dir}` cannot be published: it has no `{name}`. Give a folder that `hf-ssl pretrain` wrote."
            )
    encoder = run_dir / "encoder"
    files = public_files(encoder, files_in(encoder))
    for name, path in files_in(run_dir / "pretraining").items():
        if path.name != "README.md" or is_edited(path):  # it names a folder of this machine
            files[f"pretraining/{name}"] = path
    files["README.md"] = card_to_push(
        encoder / "README.md", lambda: render_model_card(encoder, repo_id, license=license, model=model)
    )
    return files


def files_in(folder: Path) -> dict[str, Path]:
    """The files of a folder by their path in it, without hidden ones."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path for path in found}


def _check_same_encoder(run_dir: Path) -> None:
    """Each folder is replaced as a whole, but a process may be killed between the two."""
    with safe_open(run_dir / "encoder" / "model.safetensors", "pt") as encoder:
        weights = ((f"encoder.{name}", encoder.get_tensor(name)) for name in encoder.keys())  # noqa: SIM118
        name = first_difference(weights, run_dir / "pretraining")
    if name is not None:
        raise UserError(
            f"`{run_dir}/encoder` and `{run_dir}/pretraining` are not of the same step "
            f"(`{name.removeprefix('encoder.')}` differs). Resume the run, which writes both again."
        )


def first_difference(weights: Iterable[tuple[str, Tensor]], folder: Path) -> str | None:
    """Name of the first weight that the safetensors files of a folder lack, or hold with other values; None if none.

    Args:
        weights: Names and values, on any device.
        folder: Folder with the files. What they hold in half precision is compared in it.
    """
    shards: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            shards |= dict.fromkeys(file.keys(), path)
    for name, value in weights:
        if name not in shards:
            return name
        with safe_open(shards[name], "pt") as file:
            stored = file.get_tensor(name)
        if not torch.equal(value.cpu().to(stored.dtype), stored):
            return name
    return None


def is_stale(path: str) -> bool:
    """Whether hf_ssl wrote a file of a model repository, so that a push which lacks it removes it."""
    top, _, rest = path.partition("/")
    if rest:
        return top == "pretraining" or (top == "figures" and path.endswith(".png"))
    written = {RUN_FILE, "results.json", "embedding.json", "metrics.jsonl", "assignments.parquet"}
    written |= {"resnet_cifar.py", "preprocessor_config.json"}
    return path in written or path.endswith(".png")


def publish_command(run_dir: Path, repo_id: str, private: bool, **flags: str | None) -> str:
    """The command line that publishes a run; flags whose value is None are left out."""
    words = ["hf-ssl", "publish", str(run_dir), "--repo_id", repo_id]
    words += ["--private"] if private else []
    for name, value in flags.items():
        words += [f"--{name}", value] if value else []
    return shlex.join(words)
