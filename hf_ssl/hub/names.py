"""Names that the Hub takes: of repositories, and of branches and tags in them; and their addresses."""

import re

from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_ssl.errors import UserError

_LICENSE = re.compile(r"[a-z0-9]+([-.+][a-z0-9]+)*")
_COMMIT = re.compile(r"[0-9a-f]{40}", re.IGNORECASE)
_NOT_IN_A_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")


def check_repo_id(repo_id: str) -> None:
    """Refuse a name that no repository can have.

    Raises:
        UserError: If the name cannot be used.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise UserError(
            f"`repo_id` must be `org/name` of letters, digits, `-`, `_` and `.`, at most 96 of them, got `{repo_id}`."
        ) from None


def check_license(license: str | None) -> None:
    """Refuse what cannot be the identifier of a licence on the Hub, which refuses a card with it.

    Raises:
        UserError: If it cannot be one.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        raise UserError(
            f"`license` must be the identifier of a licence on the Hub, such as `apache-2.0`, got `{license}`. It has "
            "small letters, digits and `-` or `.` between them."
        )


def check_refs(revision: str | None, tag: str | None) -> None:
    """Refuse names that no branch and no tag can have, by the rules of `git check-ref-format` and of the Hub.

    Args:
        revision: Branch to push to; None: `main`.
        tag: Name for what is pushed; None: no tag.

    Raises:
        UserError: If one of the names cannot be used, or both are the same.
    """
    for setting, name in (("revision", revision), ("tag", tag)):
        fault = None if name is None else _fault_of_ref(name)
        if fault is not None:
            kind, example = ("branch", "step-000500") if setting == "revision" else ("tag", "v1.0")
            raise UserError(f"`{setting}` must be the name of a {kind}, such as {example}, got `{name}`, {fault}.")
    if tag is not None and tag == (revision or "main"):
        raise UserError(f"`tag` must not be the name of the branch that is pushed to, got `{tag}`. Choose another.")


def url_of(repo_id: str, repo_type: str = "model", revision: str | None = None) -> str:
    """Address of a repository, or of a branch of it."""
    prefix = hub_constants.REPO_TYPES_URL_PREFIXES.get(repo_type, "")
    branch = f"/tree/{revision}" if revision and revision != "main" else ""
    return f"{hub_constants.ENDPOINT}/{prefix}{repo_id}{branch}"


def _fault_of_ref(name: str) -> str | None:
    """What is wrong with the name of a branch or tag; None if nothing is."""
    if not name:
        return "which is empty"
    if _COMMIT.fullmatch(name):
        return "which looks like a commit"
    if name in ("HEAD", "@"):
        return "which means something else in git"
    if name.startswith("refs/"):
        return "which starts with `refs/`"
    found = _NOT_IN_A_REF.search(name)
    if found is not None:
        return "which has a space" if found.group() == " " else f"which has {found.group()!r} in it"
    if name.startswith(("-", "/")):
        return f"which starts with `{name[0]}`"
    if name.endswith(("/", ".")):
        return f"which ends with `{name[-1]}`"
    for part in name.split("/"):
        if part.startswith("."):
            return "of which a part starts with `.`"
        if part.endswith(".lock"):
            return "of which a part ends with `.lock`"
    return None
