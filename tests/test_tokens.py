"""What counts as a token, and what only looks similar."""

import pytest

from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError
from hf_ssl.tokens import has_token, record_without_tokens, without_tokens

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"HF_TOKEN={TOKEN} accelerate launch", "HF_TOKEN=*** accelerate launch"),
        (f"--token {TOKEN}, then", "--token ***, then"),
        ("api_org_" + "x" * 34, "***"),
        ("hf_oauth_eyJhbGciOi.eyJz-dWI.x_y", "***"),
        (f"https://me:{TOKEN}@huggingface.co/org/x", "https://***@huggingface.co/org/x"),
        ("s3://key:pass/word@bucket", "s3://key:pass/word@bucket"),  # a slash ends the name of a host
        ("https://key:password@host/data.parquet?x=1", "https://***@host/data.parquet?x=1"),
        ("https://me:p@ss@host/x", "https://***@host/x"),
        ("mine in_use.", "mine ***."),
    ],
)
def test_a_token_is_hidden(text, hidden, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "in_use")
    assert without_tokens(text) == hidden
    assert has_token(text) == ("***" in hidden and "password" not in text and "p@ss" not in text)


SIGNED = "https://host/a.parquet?X-Amz-Algorithm=AWS4&X-Amz-Credential=AKIA/20260101&X-Amz-Date=1&X-Amz-Signature=beef"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://host/a.parquet?token=abc", "https://host/a.parquet?token=***"),
        ("`https://host/a?x=1&access_token=a.b-c&y=2`.", "`https://host/a?x=1&access_token=***&y=2`."),
        (
            SIGNED,
            "https://host/a.parquet?X-Amz-Algorithm=AWS4&X-Amz-Credential=***&X-Amz-Date=1&X-Amz-Signature=***",
        ),
        ("https://a.blob/x?sv=2024&sig=a%2Bb%3D&se=2027", "https://a.blob/x?sv=2024&sig=***&se=2027"),
        ("https://s3/x?AWSAccessKeyId=AKIA&Signature=ab/c=", "https://s3/x?AWSAccessKeyId=***&Signature=***"),
        ("https://cdn/x?Policy=eyJ&Key-Pair-Id=K2", "https://cdn/x?Policy=***&Key-Pair-Id=***"),
        ("https://host/a?key=abc#api_key=x", "https://host/a?key=***#api_key=***"),
        ("zip://a.png::https://host/b.zip?TOKEN=abc", "zip://a.png::https://host/b.zip?TOKEN=***"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': 'Bearer ***'}"),
        ("authorization: Basic bWU6aXQ=", "authorization: Basic ***"),
        ("AWS_SECRET_ACCESS_KEY=a/b+c hf-ssl pretrain", "AWS_SECRET_ACCESS_KEY=*** hf-ssl pretrain"),
    ],
)
def test_what_gives_access_to_an_address_is_hidden(text, hidden, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "in_use")
    assert without_tokens(text) == hidden
    assert without_tokens(hidden) == hidden


def test_an_error_for_the_user_has_no_secret():
    """From Python too, where it is not a command that prints it."""
    address = "https://me:pw@127.0.0.1:9/a.docx?token=abc"
    with pytest.raises(UserError) as raised:
        open_source(address)
    assert "https://***@127.0.0.1:9/a.docx?token=***" in str(raised.value)
    assert not any(secret in str(raised.value) for secret in ("pw", "abc"))


@pytest.mark.parametrize(
    "text",
    [
        "hf_ssl hf_hub:org/name hf_hub_download hf_xet hf_transfer, runs/hf_experiments_with_long_names",
        "https://huggingface.co/org/name/tree/main me@example.org",
        "torch 2.15.0",
        "https://host/data.parquet?file=a/b.zip&author=me&design=7&page=2",
        "TOKENIZERS_PARALLELISM=false key=value, the token is new: --token_pooling mean",
    ],
)
def test_other_text_stays(text, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "nowhere")
    assert without_tokens(text) == text
    assert not has_token(text)


def test_a_record_is_searched_to_its_ends():
    record = {"command": TOKEN, "data": {"files": [f"https://{TOKEN}@host/x", ("a", TOKEN)]}, "step": 3, "none": None}
    expected = {"command": "***", "data": {"files": ["https://***@host/x", ("a", "***")]}, "step": 3, "none": None}
    assert record_without_tokens(record) == expected
