"""What other packages say, as part of a sentence."""

import pytest

from hf_ssl.errors import first_line


@pytest.mark.parametrize(
    ("error", "line", "with_kind"),
    [
        (ValueError("One.\nTwo.\n"), "One", "ValueError: One"),
        (OSError("\n  no such file "), "no such file", "OSError: no such file"),
        (AssertionError(), "AssertionError", "AssertionError"),
        (RuntimeError(" \n."), "RuntimeError", "RuntimeError"),
    ],
)
def test_first_line(error: Exception, line: str, with_kind: str):
    assert first_line(error) == line
    assert first_line(error, kind=True) == with_kind
