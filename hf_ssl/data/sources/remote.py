"""Data sets on the Hub and at addresses, which `datasets` resolves and streams."""

import os
from typing import Any
from urllib.parse import urlsplit

import datasets
import fsspec
from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns
from datasets.load import infer_module_for_data_files
from datasets.packaged_modules import _ALL_ALLOWED_EXTENSIONS, _EXTENSION_TO_MODULE

from hf_ssl.data.decode.access import roots_of
from hf_ssl.data.sources.card import check_hub_card
from hf_ssl.data.sources.objects import undecoded
from hf_ssl.data.sources.opened import Opened, attempt, no_split
from hf_ssl.data.sources.patterns import MODULES
from hf_ssl.data.sources.resolve import Choice
from hf_ssl.data.sources.tar_bytes import is_tar
from hf_ssl.data.sources.tars import tar_layout, tar_records
from hf_ssl.errors import UserError, first_line

_HUB = "hf://datasets/"


def is_address(name: str) -> bool:
    """Whether the name of a data set is an address, such as `https://...` or `s3://...`."""
    return "://" in name


def open_hub(name: str, split: str, choice: Choice) -> Opened:
    """Stream one split of a data set on the Hub.

    Raises:
        UserError: If it cannot be opened or lacks the split, or if its README names files outside of it.
    """
    check_hub_card(name, choice.revision)
    where: dict[str, Any] = {
        "path": name,
        "name": choice.config,
        "revision": choice.revision,
        "data_dir": choice.data_dir,
        "data_files": choice.data_files,
    }
    if choice.drop_labels is not None:
        where["drop_labels"] = choice.drop_labels
    return _streamed(name, split, where)


def open_address(name: str, split: str, choice: Choice) -> Opened:
    """Stream one split of what lies at an address: files, a pattern, a folder, or a data set on the Hub.

    Raises:
        UserError: If it cannot be opened, lacks the split, or a package for such addresses is missing.
    """
    _check_scheme(name)
    if name.startswith(_HUB):
        # `datasets` takes the id alone; what follows is a folder or file of it.
        repository, revision, rest = _parts_of_hub(name)
        if revision is not None and choice.revision not in (None, revision):
            raise UserError(f"`dataset_revision` must be that of `{name}`, got `{choice.revision}`. Leave it out.")
        inner = {"data_dir": choice.data_dir, "data_files": choice.data_files}
        if rest:
            key = "data_files" if _module_of(rest) or any(sign in rest for sign in "*?[") else "data_dir"
            if inner[key] is not None:
                raise UserError(f"`{key}` is already in the address `{name}`. Leave it out.")
            inner[key] = rest
        return open_hub(
            repository,
            split,
            Choice(choice.config, revision or choice.revision, drop_labels=choice.drop_labels, **inner),
        )
    for setting in ("config", "revision"):
        if getattr(choice, setting) is not None:
            raise UserError(
                f"`dataset_{setting}` is for data sets on the Hub, but `{name}` is an address. Leave it out."
            )
    base, own = name, choice.data_files
    if own is None and (_module_of(name) or "*" in name):
        if choice.data_dir is not None:
            raise UserError(f"`data_dir` is for folders, but `{name}` is a file. Leave it out.")
        base, own = "", name
    elif choice.data_dir is not None:
        base = f"{name.rstrip('/')}/{choice.data_dir}"
    return attempt(name, lambda: _resolved(name, base, own, split, choice.drop_labels))


def _resolved(name: str, base: str, own: Any, split: str, drop_labels: bool | None) -> Opened:
    if own is None and base.startswith(("http://", "https://")):
        raise UserError(
            f"`dataset` must be a file at an http address, such as one that ends in .parquet, since folders cannot be "
            f"listed there, got `{name}`. Name its files by `data_files`."
        )
    patterns = sanitize_patterns(own) if own is not None else get_data_patterns(base)
    files = DataFilesDict.from_patterns(patterns, base_path=base, allowed_extensions=_ALL_ALLOWED_EXTENSIONS)
    module, options = infer_module_for_data_files(files, path=name)
    if module not in MODULES:
        raise UserError(f"`dataset` must be images, tables or tars, but `{name}` is {module or 'of no known format'}.")
    if drop_labels is not None:
        options = options | {"drop_labels": drop_labels}
    return _streamed(name, split, {"path": module, "data_files": files, **options})


def _streamed(name: str, split: str, where: dict[str, Any]) -> Opened:
    try:
        builder = attempt(name, lambda: datasets.load_dataset_builder(**where))
    except TypeError as error:
        raise UserError(f"`drop_labels` is for folders of images, but `{name}` is of another format.") from error
    data_files = builder.config.data_files or {}
    splits = [str(known) for known in (builder.info.splits or data_files)]
    if splits and split not in splits:
        raise no_split(name, split, splits, of_files=True)
    known = (builder.info.splits or {}).get(split)
    origin = getattr(data_files.get(split), "origin_metadata", [])
    files = list(data_files.get(split, []))
    # Addresses in a repository hold its commit; others have a tag or a time in `origin_metadata`.
    identity = [builder.hash, files, [list(one) for one in origin]]
    here = bool(files) and all(os.path.exists(file.removeprefix("file://")) for file in files)
    roots = () if here else roots_of(file for of_split in data_files.values() for file in of_split)
    num_images = known.num_examples if known else None
    layout = attempt(name, lambda: tar_layout(files)) if files and all(map(is_tar, files)) else None
    if layout is not None:
        return Opened(
            tar_records(files, layout),
            num_images,
            identity,
            lambda needed, labels: tar_records(files, layout, needed[0], [*needed, *labels]),
            roots=roots,
        )
    records = attempt(name, lambda: undecoded(builder.as_streaming_dataset(split=split)))
    return Opened(records, num_images, identity, roots=roots)


def _check_scheme(name: str) -> None:
    scheme = name.split("://")[0].split("::")[-1]
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}.get(
            scheme
        )
        how = f"Install it: pip install {package}" if package else f"{first_line(error)}."
        raise UserError(f"`dataset` `{name}` needs a package that reads `{scheme}://`. {how}") from None
    except ValueError:
        raise UserError(
            f"`dataset` must be at an address that fsspec knows, such as s3:// or https://, got `{name}`."
        ) from None


def _parts_of_hub(name: str) -> tuple[str, str | None, str]:
    parts = name.removeprefix(_HUB).rstrip("/").split("/")
    if len(parts) < 2 or not all(parts[:2]):
        raise UserError(
            f"`dataset` on the Hub must have an address such as hf://datasets/uoft-cs/cifar10, got `{name}`."
        )
    one, _, revision = parts[1].partition("@")
    return f"{parts[0]}/{one}", revision or None, "/".join(parts[2:])


def _module_of(address: str) -> str | None:
    name = os.path.basename(urlsplit(address).path or address)
    for ending in name.lower().split(".")[1:]:
        if f".{ending}" in _EXTENSION_TO_MODULE or ending == "zip":
            return ending
    return None
