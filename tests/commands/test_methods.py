"""`hf-ssl methods`: what a user needs to choose one, as text and as the table of the README."""

import re

import pytest

from hf_ssl.commands import main
from hf_ssl.commands.methods import MethodsSettings, run, summary_of
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLPreTrainedModel


def test_every_method_says_what_it_is_and_when_to_use_it():
    listed = run(MethodsSettings()).methods
    assert [one.name for one in listed] == list(METHODS)
    for one in listed:
        assert METHODS[one.name].paper is not None
        assert (one.year, one.paper) == (METHODS[one.name].paper.year, METHODS[one.name].paper.url)
        for text in (one.idea, one.use_when):
            assert text.endswith(".") and 30 < len(text) < 230 and "  " not in text
        assert re.search(rf"^ *Use it when: {re.escape(one.use_when[:20])}", METHODS[one.name].__doc__, re.MULTILINE)
        named = set(re.findall(r"`([a-z_0-9]+)`", one.use_when))
        assert named <= METHODS.keys() - {one.name}  # another method to take instead


def test_the_list_and_the_table(capsys: pytest.CaptureFixture[str]):
    assert main(["methods"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "moco (2019)\n    A query must find the key of its image" in text
    assert main(["methods", "--markdown"]) == 0
    header, rule, *rows = capsys.readouterr().out.splitlines()
    assert header == "| method | year | use it when | paper |"
    assert len(rows) == len(METHODS) and {row.count("|") for row in (header, rule, *rows)} == {5}
    assert rows[2].endswith(" | [1911.05722](https://arxiv.org/abs/1911.05722) |")


def test_a_method_without_paper_is_listed_and_one_without_advice_is_named():
    class Mine(SSLPreTrainedModel):
        """Do it
        my way.

        Use it when: you wrote it,
        and only then.

        More.
        """

        paper = None

    one = summary_of("mine", Mine)
    assert (one.idea, one.use_when, one.year) == ("Do it my way.", "you wrote it, and only then.", None)
    Mine.__doc__ = "Do it."
    with pytest.raises(KeyError, match="`Mine` has no paragraph `Use it when: ...`"):
        summary_of("mine", Mine)
