"""What is no answer of the Hub is said to be none, whoever asks; a bug stays a bug."""

import json

import fsspec
import pytest
from hub_server import GARBLED, Repo
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from hf_ssl.answers import ForeignAnswerError, hub_answers
from hf_ssl.commands.errors import as_user_errors
from hf_ssl.data.sources.open import open_source
from hf_ssl.demo.space import published_reference
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import load_encoder
from hf_ssl.features.search import open_features
from hf_ssl.hub.access import check_push_access
from hf_ssl.training.start import find_encoder, find_method

ASKING = {
    "access": check_push_access,
    "encoder": find_encoder,
    "method": find_method,
    "evaluation": load_encoder,
    "space": published_reference,
    "features": open_features,
    "data": open_source,
}


@pytest.fixture
def asked(online, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", constants.ENDPOINT)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    online.repos |= {"org/x": Repo(), "datasets/org/x": Repo()}
    yield online
    fsspec.get_filesystem_class("hf").clear_instance_cache()


@pytest.mark.parametrize("answer", ["portal", *GARBLED])
@pytest.mark.parametrize("who", ASKING)
def test_an_answer_that_is_not_the_hubs(asked, who, answer):
    asked.faults = [(method, "/", answer) for method in ("GET", "HEAD", "POST")] * 100
    with pytest.raises(UserError, match=rf"at {constants.ENDPOINT} is not the Hub: .*`HF_ENDPOINT`") as error:
        ASKING[who]("org/x")
    assert error.value.exit_code == 2


@pytest.mark.parametrize("answer", ["portal", "{}", "null", "text", "latin-1", "empty"])
def test_the_second_question_of_a_check_before_a_run(asked, answer):
    asked.faults = [("GET", "/api/models/", answer)]
    with pytest.raises(ForeignAnswerError):
        check_push_access("org/x")


def test_what_a_command_asks_by_itself_is_translated_at_its_door(asked):
    asked.faults = [("GET", "/refs", "{}")]
    with pytest.raises(UserError, match="is not the Hub"), as_user_errors():
        HfApi().list_repo_refs("org/x")


def test_bugs_and_refusals_stay_what_they_are(asked):
    for bug in (lambda: {}["name"], lambda: json.loads("<html>"), lambda: None.name, lambda: b"\xfc".decode()):
        with pytest.raises((KeyError, ValueError, AttributeError)) as error, hub_answers():
            bug()
        assert not isinstance(error.value, UserError)
    with pytest.raises(HFValidationError), hub_answers():
        HfApi().repo_info("not/a/name")
    with pytest.raises(RepositoryNotFoundError), hub_answers():
        HfApi().repo_info("org/none")
