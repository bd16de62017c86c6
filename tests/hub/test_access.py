"""What the Hub would refuse at the end of a run is refused before it."""

import logging

import pytest
from hub_server import Repo, User

from hf_ssl.errors import UserError
from hf_ssl.hub.access import check_push_access


def test_who_may_write_passes_and_nothing_is_made(online):
    check_push_access("org/new")
    check_push_access("new", private=True)
    assert online.repos == {}
    assert [request for request in online.requests if not request.startswith("GET ")] == []


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("hf_reader", "org/new", "may only read"),
        ("hf_stranger", "org/new", "`org/new` is not among those that `stranger` may write to: stranger"),
        ("hf_unknown", "org/new", "the Hub does not accept this one"),
        ("", "org/new", "needs a Hub token"),
        ("hf_secret", "org/new/er", "`repo_id` must be `org/name`"),
    ],
)
def test_tokens_and_names_that_cannot_push(token, repo_id, message, online, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message):
        check_push_access(repo_id)


def test_a_fine_grained_token_is_not_judged_by_organisations(online):
    online.users["hf_secret"] = User("stranger", role="fineGrained", everywhere=False)
    check_push_access("org/new")


def test_a_public_repository_does_not_become_private(online):
    online.repos["someone/mine"] = Repo()
    check_push_access("mine")
    with pytest.raises(UserError, match="`someone/mine` exists and is public"):
        check_push_access("mine", private=True)


def test_offline_is_refused_and_a_hub_out_of_reach_is_a_warning(online, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match="while `HF_HUB_OFFLINE` is set"):
            check_push_access("org/new")
    online.faults = [("GET", "whoami", "500"), ("GET", "api/models", "drop")]
    with caplog.at_level(logging.WARNING):
        check_push_access("org/new")
        check_push_access("org/new")
    assert [record.message.split(" (")[0] for record in caplog.records if record.name.startswith("hf_ssl")] == [
        "The Hub does not say now whether the push to `org/new` will be allowed"
    ] * 2
