"""From a method in training to two folders: the encoder as timm and transformers load it, and the whole method."""

import contextlib
import ctypes
import filecmp
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import nn

from hf_ssl.data.decode import pillow
from hf_ssl.hub import handler
from hf_ssl.hub.cards import is_edited, is_own_figure
from hf_ssl.hub.model_card import write_model_card
from hf_ssl.hub.timm_folder import plain_state_dict, write_json, write_timm_folder
from hf_ssl.methods.base import SSLConfig, SSLPreTrainedModel
from hf_ssl.modules.preprocessing import preprocessing
from hf_ssl.modules.quiet import quiet_transformers
from hf_ssl.training.files import RUN_FILE
from hf_ssl.training.record import RunRecord

logger = logging.getLogger(__name__)

# What sentence-transformers reads since 5.4. Without these it would average the tokens of a ViT, class token included.
_SENTENCE_TRANSFORMERS: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"image": {"method": "forward", "method_output_name": "pooler_output"}},
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    },
}
_REQUIREMENTS = "timm>=1.0.31\n"  # what the image of an Inference Endpoint lacks of what `handler.py` imports
_DECODER = "pillow_decoder"  # module that `handler.py` imports from beside it

_ABOUT_WEIGHTS = ("results.json", "embedding.json", "analysis.json", "assignments.parquet")

_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_HERE = -100  # AT_FDCWD of fcntl.h


def export_encoder(encoder: nn.Module, config: SSLConfig, folder: Path) -> None:
    """Write an encoder folder: what `write_timm_folder` writes, and files for other doors.

    These are three that sentence-transformers needs, and for Inference Endpoints `handler.py`, the decoder that it
    imports, and `requirements.txt`.

    Args:
        encoder: Model made by `build_encoder`; BatchNorm may be synchronised or split, layers may be compiled.
        config: Config that the encoder was built from.
        folder: Where to write; made if missing.

    Raises:
        UserError: If the weights are not those of the config's architecture, so that nothing could load them.
    """
    write_timm_folder(
        encoder,
        folder,
        architecture=config.architecture,
        model_args=config.model_args or {},
        data_config=preprocessing(config.image_size, config.image_mean, config.image_std),
    )
    for name, content in _SENTENCE_TRANSFORMERS.items():
        write_json(folder / name, content)
    # An endpoint puts the folder on Python's path before it runs `handler.py`, so that it finds the decoder there:
    # `check_and_register_custom_pipeline_from_directory` in huggingface-inference-toolkit.
    shutil.copyfile(pillow.__file__, folder / f"{_DECODER}.py")
    (folder / "handler.py").write_text(Path(handler.__file__).read_text().replace(pillow.__name__, _DECODER))
    (folder / "requirements.txt").write_text(_REQUIREMENTS)


def export_run(model: SSLPreTrainedModel, run_dir: Path) -> Path:
    """Write `run_dir/encoder` (a complete Hub repository) and `run_dir/pretraining` (the whole method).

    Each folder is replaced as a whole: a process killed in between leaves the old or the new one. The encoder folder
    gets what is published of `run_dir/run.json`, a copy of `run_dir/metrics.jsonl`, and the model card made from
    them, if there are any. See `keep_added` for what stays of the folders that are there.

    Args:
        model: The method, without wrappers for several processes. If each process keeps its own BatchNorm statistics,
            average them first.
        run_dir: Folder of the run; made if missing.

    Returns:
        The encoder folder.
    """
    model = getattr(model, "_orig_mod", model)
    encoder_folder = run_dir / "encoder"
    with replacing(encoder_folder) as new:
        export_encoder(model.encoder, model.config, new)  # pyright: ignore[reportArgumentType]
        write_public_record(run_dir, new)
        if (run_dir / "metrics.jsonl").is_file():
            shutil.copyfile(run_dir / "metrics.jsonl", new / "metrics.jsonl")
        keep_added(encoder_folder, new)
        if (new / RUN_FILE).is_file():
            write_model_card(new, shown_as=encoder_folder)
    with replacing(run_dir / "pretraining") as new, quiet_transformers():
        weights = {name: value.contiguous() for name, value in plain_state_dict(model).items()}
        model.save_pretrained(new, state_dict=weights, readme=False)  # the encoder's card tells of both
        keep_added(run_dir / "pretraining", new)
    return encoder_folder


def write_public_record(run_dir: Path, folder: Path) -> None:
    """Write what is published of a run's record into a folder that is exported, if there is a record."""
    record = RunRecord.read(run_dir)
    if record is not None:
        write_json(folder / RUN_FILE, record.public().to_json())


def keep_added(old: Path, new: Path) -> None:
    """Copy what somebody added to an exported folder into the one that takes its place.

    Results, figures and a card edited by hand describe the weights. With other weights the results and figures that
    this package wrote go, and the edited card is kept beside the folder, because a new one is written.

    Args:
        old: The folder that is there, if any.
        new: The one that is exported: its own files stay.
    """
    if not old.is_dir():
        return
    same = _same_file(old / "model.safetensors", new / "model.safetensors")
    card = old / "README.md"
    edited = is_edited(card)
    exported = {path.relative_to(new) for path in new.rglob("*") if not path.is_dir()}
    if not (same and edited):
        exported.add(Path(card.name))

    def left_out(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder).relative_to(old)
        return [name for name in names if inside / name in exported or (not same and _describes(inside / name))]

    shutil.copytree(old, new, symlinks=True, dirs_exist_ok=True, ignore=left_out)
    if edited and not same:
        logger.warning(
            "`%s` was edited, and the weights are others now: it is kept as `%s`, and a new card is written.",
            card,
            _kept_beside(card),
        )


def _same_file(first: Path, second: Path) -> bool:
    return first.is_file() and filecmp.cmp(first, second, shallow=False)


def _describes(path: Path) -> bool:
    """Whether this package writes a file of that name about the weights, or with them in it."""
    if path.parent.name == "figures":
        return is_own_figure(path.name)
    return path.name in _ABOUT_WEIGHTS or fnmatch(path.name, "model*.safetensors*")


def _kept_beside(card: Path) -> Path:
    """Copy an edited card out of a folder that is replaced; another one that was kept before stays."""
    text, count = card.read_bytes(), 1
    while True:
        kept = card.parent.with_name(f"README.edited{f'-{count}' if count > 1 else ''}.md")
        if not kept.exists():
            kept.write_bytes(text)
        if kept.read_bytes() == text:
            return kept
        count += 1


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, and put it in the place of `folder` when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    _put_back(old, folder)  # an earlier process was killed between the two renames below
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        for weights in new.glob("*.safetensors"):
            # safetensors lets nobody but the owner read its files.
            weights.chmod((new / "config.json").stat().st_mode)
        if not folder.exists():
            new.rename(folder)
        elif not _exchange(new, folder):
            folder.rename(old)
            new.rename(folder)
    finally:
        _put_back(old, folder)
        shutil.rmtree(new, ignore_errors=True)


def _put_back(old: Path, folder: Path) -> None:
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux); a folder cannot be renamed onto a full one."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0
