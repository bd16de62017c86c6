"""Whether a push will be allowed: asked before the work whose result is to be pushed."""

import logging

from huggingface_hub import HfApi, get_token
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError  # pyright: ignore[reportPrivateImportUsage]

from hf_ssl import __version__
from hf_ssl.answers import ForeignAnswerError, hub_answers
from hf_ssl.errors import UserError
from hf_ssl.hub.names import check_repo_id

logger = logging.getLogger(__name__)


def check_push_access(repo_id: str, *, private: bool = False) -> None:
    """Refuse a push to a model repository that the Hub would refuse hours later, at the end of a run.

    The Hub is asked who the token belongs to, and whether the repository exists. A Hub that cannot be reached now may
    be reached at the end, so that is only a warning.

    Args:
        repo_id: Repository, `org/name`, or `name` for one of the token's user.
        private: Whether the repository is to be a private one.

    Raises:
        UserError: If the name cannot be used, there is no token, the token is not valid or may only read, its user
            does not belong to the organisation, the repository is public although a private one is asked for,
            `HF_HUB_OFFLINE` is set, or what answers is not the Hub.
    """
    check_repo_id(repo_id)
    token = get_token()
    if token is None:
        raise UserError("`push_to_hub` needs a Hub token. Run `hf auth login` or set `HF_TOKEN`.")
    if hub_constants.HF_HUB_OFFLINE:
        raise UserError("`push_to_hub` cannot work while `HF_HUB_OFFLINE` is set. Unset it, or publish the run later.")
    api = HfApi(token=token, library_name="hf_ssl", library_version=__version__)
    try:
        with hub_answers():
            user = _check_token(api, repo_id)
            _check_repository(api, repo_id if "/" in repo_id else f"{user}/{repo_id}", private)
    except (HTTPError, OSError) as error:
        logger.warning(
            "The Hub does not say now whether the push to `%s` will be allowed (%s). The run goes on.",
            repo_id,
            type(error).__name__,
        )


def _check_token(api: HfApi, repo_id: str) -> str:
    """Name of the token's user."""
    try:
        user = api.whoami()
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise UserError(
                "`push_to_hub` needs a valid token, and the Hub does not accept this one. Run `hf auth login` with "
                "one that may write."
            ) from None
        raise
    if not isinstance(user, dict) or not isinstance(user.get("name"), str):
        raise ForeignAnswerError
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UserError(
            "`push_to_hub` needs a token that may write, and this one may only read. Make another at "
            f"{hub_constants.ENDPOINT}/settings/tokens, then run `hf auth login`."
        )
    owner = repo_id.split("/")[0] if "/" in repo_id else user["name"]
    names = [user["name"], *(org["name"] for org in user.get("orgs", []))]
    # What a fine-grained token may do is not said by the organisations.
    if role == "write" and owner.lower() not in [name.lower() for name in names]:
        raise UserError(
            f"`repo_id` `{repo_id}` is not among those that `{user['name']}` may write to: {', '.join(names)}. "
            "Choose one of these names before the `/`, or a token of a member."
        )
    return user["name"]


def _check_repository(api: HfApi, repo_id: str, private: bool) -> None:
    try:
        found = api.repo_info(repo_id)
    except RepositoryNotFoundError:
        return  # it will be made
    if private and not found.private:
        raise UserError(
            f"`repo_id` `{repo_id}` exists and is public, which `private` does not change. Make it private in its "
            "settings on the Hub, or choose another name."
        )
