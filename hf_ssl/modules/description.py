"""What cards say of a method: its name, its idea in a sentence and its paper. Settings may change all three."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Paper:
    """The publication behind a method; model cards and the README's table read it.

    Args:
        title: Title as published.
        authors: Authors in BibTeX form, joined by ` and `.
        arxiv: arXiv identifier, such as `2102.06810`.
        year: Year of the arXiv version.
    """

    title: str
    authors: str
    arxiv: str
    year: int

    @property
    def url(self) -> str:
        """Abstract page on arXiv."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def bibtex(self) -> str:
        """BibTeX entry."""
        surname = self.authors.split(" and ")[0].split(",")[0].split()[-1].lower()
        first_word = "".join(letter for letter in self.title.split()[0].lower() if letter.isalnum())
        return (
            f"@article{{{surname}{self.year}{first_word},\n"
            f"  title={{{self.title}}},\n"
            f"  author={{{self.authors}}},\n"
            f"  journal={{arXiv preprint arXiv:{self.arxiv}}},\n"
            f"  year={{{self.year}}}\n}}"
        )


MOCO_PAPER = Paper(
    title="Momentum Contrast for Unsupervised Visual Representation Learning",
    authors="He, Kaiming and Fan, Haoqi and Wu, Yuxin and Xie, Saining and Girshick, Ross",
    arxiv="1911.05722",
    year=2019,
)
"""Of MoCo and of the end-to-end contrast that it compares itself with."""


@dataclass(frozen=True)
class Description:
    """What a card says of a method with its settings.

    Args:
        name: What it is called, such as `DirectPred`.
        idea: What it does, in sentences; empty if it is not known.
        paper: The publication, if there is one.
        uses_labels: Whether labels have a part in what the encoder learns.
    """

    name: str
    idea: str
    paper: Paper | None = None
    uses_labels: bool = False


def kind_of_target(settings: Mapping[str, Any]) -> Literal["average", "fixed", "itself"]:
    """What a target really is: no moving average where an update keeps all of it, or nothing.

    Args:
        settings: With `ema_momentum` and, where the method has them, `ema_schedule` and `use_ema`.
    """
    constant = settings.get("ema_schedule", "constant") == "constant"
    if not settings.get("use_ema", True) or (settings["ema_momentum"] == 0 and constant):
        return "itself"
    return "fixed" if settings["ema_momentum"] == 1 else "average"


def maker_of_keys(settings: Mapping[str, Any]) -> str:
    """What makes the keys of a momentum contrast, in words; settings as `kind_of_target` takes them."""
    return {
        "average": "made by a moving average of the network",
        "fixed": "made by a second network that stays as it began",
        "itself": "made by the network itself, held constant",
    }[kind_of_target(settings)]
