"""The page as a Space on the Hub.

The Space carries the images with their features, so that it starts at once, and the source of this package, so that
it reads images and encoders by the very code that computed them; only other packages come from a registry.
"""

import logging
import platform
import re
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import HfApi, SpaceCardData
from huggingface_hub.errors import HfHubHTTPError

from hf_ssl.answers import hub_answers
from hf_ssl.demo.collection import Collection
from hf_ssl.errors import UserError, first_line
from hf_ssl.evaluation.encoders import encoder_folder
from hf_ssl.hub.cards import render_card
from hf_ssl.hub.push import push_files
from hf_ssl.settings import HUB_TIMEOUT

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parents[1]
_DEPENDENCIES = (  # those of pyproject.toml, which an installation from a changed checkout may not know
    "accelerate",
    "datasets",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "psutil",
    "safetensors",
    "scikit-learn",
    "scipy",
    "timm",
    "torch",
    "torchvision",
    "tqdm",
    "transformers",
)
_APP = '''"""The page, as `hf-ssl demo` serves it."""

from pathlib import Path

import torch

from hf_ssl.demo.collection import Collection
from hf_ssl.demo.page import build_page, serve
from hf_ssl.evaluation.encoders import load_encoder

encoder = load_encoder({reference!r}, "cuda" if torch.cuda.is_available() else "cpu")
serve(build_page(Collection.load(Path(__file__).parent), encoder))
'''


def published_reference(reference: str) -> str:
    """The name by which a Space can load an encoder, now and later: of a repo, with the commit that it is at.

    Args:
        reference: What `load_encoder` takes.

    Raises:
        UserError: If the encoder is a folder here, or its repo cannot be found.
    """
    bare = re.sub(r"^(?:raw|random):", "", reference)
    if encoder_folder(bare) is not None:
        raise UserError(
            f"A Space loads its encoder from the Hub, but `{bare}` is a folder here. Publish it first: "
            f"hf-ssl publish {bare} --repo_id ORG/NAME, then name ORG/NAME in its place."
        )
    repo = _repo_of(bare)
    if repo is None:
        return reference
    name, _, revision = repo.partition("@")
    try:
        with hub_answers():
            about = HfApi().model_info(name, revision=revision or None)
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"The Hub gave no encoder `{repo}`: {first_line(error)}.") from None
    if about.private:
        logger.warning("`%s` is private: the Space needs a token that reads it, as its secret `HF_TOKEN`.", name)
    return f"{reference.removesuffix(repo)}{name}@{about.sha}"


def push_space(
    collection: Collection,
    reference: str,
    dataset: str | None,
    repo_id: str,
    *,
    private: bool,
    hub_timeout: float = HUB_TIMEOUT,
    retry: str,
) -> str:
    """Push the page in one commit; returns its address.

    Args:
        collection: The images, which everybody who sees the Space sees.
        reference: What `published_reference` returns.
        dataset: Id of the data set, if it is one of the Hub.
        repo_id: The Space; made if missing.
        private: Make it a private one.
        hub_timeout: Seconds that the push may lose to failures, see `push_files`.
        retry: Command that pushes again, for errors.

    Raises:
        UserError: If the name cannot be used.
        UserError: If the Hub cannot be reached or refuses.
    """
    files: dict[str, Path | bytes] = {
        "README.md": _card(collection, reference, dataset).encode(),
        "app.py": _APP.format(reference=reference).encode(),
        "requirements.txt": _requirements().encode(),
        **collection.files(),
    }
    for path in sorted(_PACKAGE.rglob("*")):
        if path.suffix in (".py", ".md"):
            files[f"hf_ssl/{path.relative_to(_PACKAGE).as_posix()}"] = path
    return push_files(
        files,
        repo_id,
        repo_type="space",
        private=private,
        message=f"Demo of {collection.encoder}",
        is_stale=lambda path: path.startswith("hf_ssl/"),
        space_sdk="gradio",
        hub_timeout=hub_timeout,
        retry=retry,
    )


def _repo_of(reference: str) -> str | None:
    """The repo on the Hub, perhaps with a revision, of which an encoder is; None for a name of timm."""
    bare = re.sub(r"^(?:hf_hub:|hf-hub:)", "", reference)
    return bare if bare.count("/") == 1 else None


def _requirements() -> str:
    """Versions of here, without what tells a build from another; Gradio's is in the card's metadata."""
    return "".join(f"{name}=={version(name).partition('+')[0]}\n" for name in _DEPENDENCIES)


def _card(collection: Collection, reference: str, dataset: str | None) -> str:
    repo = (_repo_of(reference.rpartition(":")[2]) or "").partition("@")[0]
    title = f"{collection.encoder} on {collection.dataset}"
    metadata = SpaceCardData(
        title=title,
        colorFrom="blue",
        colorTo="gray",
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file="app.py",
        models=[repo] if repo else None,
        datasets=[dataset] if dataset else None,
        tags=["hf_ssl", "image-feature-extraction"],
    )
    facts = {
        "title": title,
        "num_images": len(collection.pictures),
        "split": collection.split,
        "dataset": f"[{dataset}](https://huggingface.co/datasets/{dataset})" if dataset else f"`{collection.dataset}`",
        "encoder": f"[{repo}](https://huggingface.co/{repo})" if repo else f"`{collection.encoder}`",
    }
    return render_card("demo/card_template.md", facts, metadata)
