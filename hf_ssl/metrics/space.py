"""A metric as the files of a Space, from which `evaluate.load("org/name")` reads it."""

import ast
from pathlib import Path

import yaml

from hf_ssl.errors import UserError

_APP = '''"""The card of this metric as a page; `evaluate.load` reads the module beside it."""

from pathlib import Path

import gradio as gr

with gr.Blocks() as page:
    gr.Markdown(Path("README.md").read_text(encoding="utf-8").split("---", 2)[2])
page.launch()
'''
_REQUIREMENTS = "hf_ssl[metrics]\n"  # the module computes by this package: one implementation
_MOST_LETTERS = 60  # of a Space's short description


def space_files(module: Path, repo_id: str) -> dict[str, bytes]:
    """The files of a metric's Space: module, card, page and requirements.

    Args:
        module: The file of the metric.
        repo_id: Name of the Space, `org/name`; `evaluate` finds the module by it, so `name` must be the metric's.

    Raises:
        UserError: If the Space has another name than the metric.
    """
    name = module.stem
    if repo_id.count("/") != 1 or not repo_id.endswith(f"/{name}"):
        raise UserError(f"The Space of this metric must be called `{name}`, got `{repo_id}`. Give `ORG/{name}`.")
    source = module.read_text(encoding="utf-8")
    return {
        module.name: source.encode(),
        "README.md": _card(name, repo_id, _texts(source)).encode(),
        "app.py": _APP.encode(),
        "requirements.txt": _REQUIREMENTS.encode(),
    }


def _texts(source: str) -> dict[str, str]:
    """The texts that a module assigns to names, without running it."""
    return {
        node.targets[0].id: node.value.value.strip()
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def _card(name: str, repo_id: str, texts: dict[str, str]) -> str:
    title = name.replace("_", " ")
    metadata = {
        "title": title,
        "sdk": "gradio",
        "app_file": "app.py",
        "pinned": False,
        "license": "apache-2.0",
        "tags": ["evaluate", "metric", "self-supervised-learning"],
        "short_description": _short(texts["_DESCRIPTION"]),
    }
    return (
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, width=1000)}---\n\n"
        f"# {title}\n\n{texts['_DESCRIPTION']}\n\n"
        f'```python\nimport evaluate\n\nmetric = evaluate.load("{repo_id}")\n```\n\n'
        f"It needs `pip install hf_ssl[metrics]`, whose functions it calls.\n\n"
        f"## Inputs and output\n\n```\n{texts['_INPUTS']}\n```\n\n"
        f"## Citation\n\n```bibtex\n{texts['_CITATION']}\n```\n"
    )


def _short(description: str) -> str:
    """The beginning of a description, in whole words."""
    if len(description) <= _MOST_LETTERS:
        return description
    return description[: _MOST_LETTERS - 3].rsplit(" ", 1)[0] + "..."
