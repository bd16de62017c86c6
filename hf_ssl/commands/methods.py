"""List the methods: the year of the paper, the idea in a sentence, and when to use which.

    hf-ssl methods
    hf-ssl methods --markdown

`hf-ssl pretrain --method NAME --help` shows the settings of one.
"""

import inspect
import re
import textwrap
from dataclasses import dataclass

from hf_ssl.commands.command import Command
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.settings import checked

_WIDTH = 100
_INDENT = "    "


@checked
class MethodsSettings:
    """How the list is written.

    Args:
        markdown: Write a table in Markdown, such as that of the README, instead of text.
    """

    markdown: bool = False


@dataclass(frozen=True)
class MethodSummary:
    """What a user needs to know of a method to choose it.

    Args:
        name: What `--method` takes.
        year: Year of the paper; None without one.
        idea: What the method does, in one sentence.
        use_when: When to choose it: the words after `Use it when: `.
        paper: Address of the paper; None without one.
    """

    name: str
    year: int | None
    idea: str
    use_when: str
    paper: str | None


@dataclass(frozen=True)
class MethodsResult:
    """The methods, in the order of `hf_ssl.METHODS`.

    Args:
        methods: One for each.
        markdown: Whether the text of this result is a table in Markdown.
    """

    methods: list[MethodSummary]
    markdown: bool = False

    def __str__(self) -> str:
        return self.as_table() if self.markdown else self.as_text()

    def as_table(self) -> str:
        """Table in Markdown: method, year, when to use it, paper."""
        lines = ["| method | year | use it when | paper |", "|---|---|---|---|"]
        for one in self.methods:
            link = f"[{one.paper.rpartition('/')[2]}]({one.paper})" if one.paper else "-"
            lines.append(f"| `{one.name}` | {one.year or '-'} | {one.use_when} | {link} |")
        return "\n".join(lines)

    def as_text(self) -> str:
        """A paragraph for each method."""
        parts = []
        for one in self.methods:
            idea, use = one.idea, f"Use it when {one.use_when}"
            wrapped = [
                textwrap.fill(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT) for text in (idea, use)
            ]
            parts.append("\n".join([f"{one.name} ({one.year})" if one.year else one.name, *wrapped]))
        return "\n\n".join(parts)


def run(settings: MethodsSettings) -> MethodsResult:
    """Read what the classes of the methods say of themselves."""
    return MethodsResult([summary_of(name, method) for name, method in METHODS.items()], settings.markdown)


def summary_of(name: str, method: type[SSLPreTrainedModel]) -> MethodSummary:
    """The summary of a method from its docstring and paper.

    Args:
        name: Name in `METHODS`.
        method: Its class; the docstring has a paragraph that begins with `Use it when: `.

    Raises:
        KeyError: If the docstring has no such paragraph.
    """
    text = inspect.cleandoc(method.__doc__ or "")
    found = re.search(r"^Use it when: (.+?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise KeyError(f"The docstring of `{method.__name__}` has no paragraph `Use it when: ...`.")
    idea = " ".join(text.split("\n\n")[0].split())
    paper = method.paper
    return MethodSummary(
        name=name,
        year=paper.year if paper else None,
        idea=idea,
        use_when=" ".join(found.group(1).split()),
        paper=paper.url if paper else None,
    )


COMMAND = Command("methods", MethodsSettings, run, __doc__ or "", first=("markdown",), function="list_methods")
