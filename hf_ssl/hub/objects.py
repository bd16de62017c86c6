"""What a method does by itself, as objects of Hugging Face do: describe the folder it is saved to, publish itself.

`hf_ssl.methods.base` calls these functions.
"""

import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hf_ssl.hub.cards import render_card, write_card
from hf_ssl.hub.export import export_run
from hf_ssl.hub.model_card import describe_method
from hf_ssl.hub.names import check_license, check_refs, check_repo_id
from hf_ssl.hub.publish import files_to_push, first_difference, is_stale, publish
from hf_ssl.hub.push import push_files
from hf_ssl.hub.timm_folder import plain_state_dict
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLPreTrainedModel, own_settings
from hf_ssl.private import public_place
from hf_ssl.training.files import RUN_FILE


def write_readme(model: SSLPreTrainedModel, folder: Path) -> None:
    """Write `README.md` into the folder that a method was saved to; one edited by hand is left as it is.

    Args:
        model: The method.
        folder: Where it was saved; the code of the text loads it from there.
    """
    facts: dict[str, Any] = {
        **describe_method(type(model), own_settings(model.config)),  # pyright: ignore[reportArgumentType]
        "class": type(model).__name__,
        "module": type(model).__module__,
        # A class that was not registered is one that the Auto classes do not find.
        "registered": type(model) in METHODS.values(),
        "config": model.config,
        "num_features": model.hidden_size,
        "folder": public_place(folder),
    }
    tags = ["self-supervised-learning", "hf_ssl", model.config.model_type]
    metadata = ModelCardData(library_name="transformers", tags=tags)
    write_card(folder / "README.md", lambda: render_card("hub/method_card_template.md", facts, metadata))


def push_method(
    model: SSLPreTrainedModel,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    license: str | None = None,
    token: str | None = None,
) -> str:
    """Publish a method: its encoder as the repository's root, the whole method in `pretraining/`, and the card.

    Takes the arguments of `SSLPreTrainedModel.push_to_hub`, which documents it.
    """
    check_repo_id(repo_id)
    check_refs(revision, tag)
    check_license(license)
    run_dir = _run_of(model)
    if run_dir is not None:
        return publish(
            run_dir,
            repo_id,
            private=private,
            revision=revision,
            tag=tag,
            message=message,
            license=license,
            token=token,
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_run(model, folder)
        return push_files(
            lambda full_name: files_to_push(folder, full_name, license=license, model=model),
            repo_id,
            private=private,
            revision=revision,
            tag=tag,
            message=message or "Publish the method",
            is_stale=is_stale,
            token=token,
            retry=f'push_to_hub("{repo_id}")',
        )


def _run_of(model: SSLPreTrainedModel) -> Path | None:
    """Folder of the run that the method was loaded from, if it still holds exactly these weights."""
    if not model.name_or_path:
        return None
    loaded_from = Path(model.name_or_path)
    for run_dir in (loaded_from, loaded_from.parent):  # the second for `runs/first/pretraining`
        if (run_dir / "encoder" / RUN_FILE).is_file() and _holds(run_dir / "pretraining", model):
            return run_dir
    return None


def _holds(folder: Path, model: SSLPreTrainedModel) -> bool:
    return first_difference(plain_state_dict(model).items(), folder) is None
