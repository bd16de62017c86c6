"""Which files of a folder are its splits: what `datasets` makes of it, on a list of files that is made once.

`datasets` walks through the folder for each of some fifty patterns and asks for the time of each file, which takes
many minutes for a million images. Here the same patterns, in the same order, meet one listing.
"""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import (
    DEFAULT_PATTERNS_SPLIT_IN_DIR_NAME,
    DEFAULT_PATTERNS_SPLIT_IN_FILENAME,
    DataFilesDict,
    DataFilesList,
    _get_data_files_patterns,
    sanitize_patterns,
)
from datasets.exceptions import DatasetsError
from datasets.load import infer_module_for_data_files
from datasets.packaged_modules import _ALL_METADATA_FILENAMES, _PACKAGED_DATASETS_MODULES

from hf_ssl.data.sources.card import check_inside, choose_config, read_card
from hf_ssl.data.sources.listing import Listing, is_image, list_folder, suffix_of
from hf_ssl.data.sources.patterns import MODULES, Match, format_of, is_of
from hf_ssl.data.sources.tar_bytes import is_tar
from hf_ssl.errors import UserError

_ASSETS = "assets/"  # where repositories keep the pictures of their README


@dataclass(frozen=True)
class Choice:
    """What the user says about the files of a data set; see the settings of the same names.

    Args:
        config: `dataset_config`.
        revision: `dataset_revision`.
        data_dir: `data_dir`.
        data_files: `data_files`: patterns, or splits with their patterns.
        drop_labels: `drop_labels`.
    """

    config: str | None = None
    revision: str | None = None
    data_dir: str | None = None
    data_files: str | list[str] | dict[str, Any] | None = None
    drop_labels: bool | None = None


@dataclass(frozen=True)
class Resolved:
    """A folder as `datasets` reads it.

    Args:
        module: The format, one of `MODULES`.
        options: What its builder is told besides the files.
        features: Columns and types that the README states.
        listing: The folder.
        splits: Split -> its files, relative to the folder, or absolute where the user named others.
        found_by: `given` by the user, by the `card` (README), by the names of numbered `shards`, of `folders` or of
            `files`, or `all` files are one split.
        in_no_split: Images or data files of the same format that no split has.
        aside: Data files of other formats.
        repeated: Files that two patterns of a split match, which `datasets` would read twice.
    """

    module: str
    options: dict[str, Any]
    features: datasets.Features | None
    listing: Listing
    splits: dict[str, list[str]]
    found_by: str
    in_no_split: list[str]
    aside: list[str]
    repeated: int

    def path(self, file: str) -> str:
        """Absolute path of a file."""
        return os.path.join(self.listing.folder, file)

    def size(self, file: str) -> int:
        """Bytes of a file."""
        known = self.listing.sizes.get(file)
        return os.path.getsize(self.path(file)) if known is None else known

    def builder(self) -> datasets.DatasetBuilder:
        """The builder of `datasets` for these files."""
        files = {
            split: DataFilesList(
                [self.path(file) for file in files],
                [(str(os.stat(self.path(file)).st_mtime),) for file in files],
            )
            for split, files in self.splits.items()
        }
        return MODULES[self.module](
            dataset_name=self.module,
            hash=_PACKAGED_DATASETS_MODULES[self.module][1],
            data_files=DataFilesDict(files),
            features=self.features,
            **self.options,
        )


def resolve_folder(name: str, folder: Path, choice: Choice) -> Resolved:
    """Find the splits, files and format of a folder.

    Args:
        name: What messages call the folder.
        folder: It exists.
        choice: What the user says about it.

    Raises:
        UserError: If there are no data files, or no config, folder or files as the user named them, or if the README
            names files outside of the folder.
    """
    configs, infos = read_card(name, folder)
    config, params = choose_config(name, configs, choice.config)
    if choice.data_files is None and not choice.data_dir:
        check_inside(name, [params])
    place = folder
    data_dir = choice.data_dir or (params.get("data_dir") if choice.data_files is None else None)
    if data_dir:
        place = _data_dir(name, folder, data_dir)
    listing = list_folder(place)
    own = choice.data_files if choice.data_files is not None else None if choice.data_dir else params.get("data_files")
    match = Match(_without_assets(listing))
    if own is not None:
        found_by = "card" if choice.data_files is None else "given"
        match = Match(list(listing.sizes))  # who names files may name any
        patterns = sanitize_patterns(own)
    else:
        try:
            patterns = _get_data_files_patterns(match)
        except FileNotFoundError:
            raise _nothing(name, listing) from None
        found_by = _found_by(patterns)
    splits, repeated = {}, 0
    for split, wanted in patterns.items():
        files = [
            file for pattern in wanted for file in match.files_of(pattern, listing, name, required=own is not None)
        ]
        splits[str(split)] = list(dict.fromkeys(files))
        repeated += len(files) - len(splits[str(split)])
    splits = {split: files for split, files in splits.items() if files}
    if not splits:
        raise _nothing(name, listing)
    module, options = _module(name, listing, splits)
    splits = {split: kept for split, files in splits.items() if (kept := [f for f in files if is_of(f, module)])}
    used = {file for files in splits.values() for file in files}
    beside = [file for file in listing.sizes if file not in used]
    known = MODULES[module].BUILDER_CONFIG_CLASS
    options |= {
        key: value
        for key, value in params.items()
        if hasattr(known, key) and key not in ("default", "data_files", "data_dir", "features")
    }
    if choice.drop_labels is not None and module != "imagefolder":
        raise UserError(f"`drop_labels` is for folders of images, but `{name}` holds {module} files. Leave it out.")
    if choice.drop_labels is not None:
        options["drop_labels"] = choice.drop_labels
    info = infos.get(config or "default") or (next(iter(infos.values())) if len(infos) == 1 else None)
    stated = None if info is None or choice.data_dir or choice.data_files is not None else info.features
    if "features" in params:
        stated = params["features"]
    return Resolved(
        module,
        options,
        stated,
        listing,
        splits,
        found_by,
        [file for file in beside if is_of(file, module) and os.path.basename(file) not in _ALL_METADATA_FILENAMES],
        [file for file in beside if not is_of(file, module)],
        repeated,
    )


def resolve_file(name: str, path: Path, choice: Choice) -> Resolved:
    """A single file, whose only split is `train`.

    Raises:
        UserError: If it is of no known format.
    """
    for setting in ("config", "data_dir", "data_files"):
        if getattr(choice, setting) is not None:
            flag = "dataset_config" if setting == "config" else setting
            raise UserError(f"`{flag}` is for folders and data sets on the Hub, but `{name}` is a file. Leave it out.")
    folder, own = path.parent.resolve(), path.name
    listing = Listing(str(folder), {own: path.stat().st_size}, {}, {})
    if is_image(own) or format_of(own) is None:
        raise _no_format(name)
    module, options = _module(name, listing, {"train": [own]})
    if choice.drop_labels is not None:
        if module != "imagefolder":
            raise UserError(
                f"`drop_labels` is for folders of images, but `{name}` is of another format. Leave it out."
            )
        options["drop_labels"] = choice.drop_labels
    return Resolved(module, options, None, listing, {"train": [own]}, "given", [], [], 0)


def _no_format(name: str) -> UserError:
    return UserError(
        f"`dataset` must be a folder, a parquet, arrow, csv, json, tar or zip file or a Hub id, got the file `{name}`."
    )


def _nothing(name: str, listing: Listing) -> UserError:
    left_out = counted(listing.unreadable | listing.unsupported)
    if left_out:
        return UserError(f"The folder `{name}` holds no images that can be read: {left_out}.{help_for(left_out)}")
    return UserError(
        f"The folder `{name}` holds no images, parquet, arrow, csv, json, tar or zip files. Give the folder that "
        "holds them."
    )


def counted(counts: dict[str, int]) -> str:
    """Reasons with their counts, the most frequent first."""
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in by_count)


def help_for(left_out: str) -> str:
    """How to read pictures that were left out, if there is a way."""
    if any(ending in left_out for ending in (".heic", ".heif", ".hif", ".jxl")):
        return " HEIC and JPEG XL can be read after: pip install 'hf_ssl[formats]'"
    return ""


def _data_dir(name: str, folder: Path, data_dir: str) -> Path:
    place = folder / data_dir
    outside = os.path.isabs(data_dir) or os.path.normpath(data_dir).split("/")[0] == ".."
    if outside or not place.is_dir():
        folders = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        raise UserError(
            f"`data_dir` must be a folder in `{name}`, relative to it, got `{data_dir}`. "
            f"It has: {', '.join(folders) or 'no folders'}."
        )
    return place


def _without_assets(listing: Listing) -> list[str]:
    """Files of the listing; without the pictures of a README where there are tables or archives beside them."""
    tables = any(not is_image(file) and not file.startswith(_ASSETS) and _is_table(file) for file in listing.sizes)
    return [file for file in listing.sizes if not (tables and file.startswith(_ASSETS) and is_image(file))]


def _is_table(file: str) -> bool:
    return suffix_of(file) in (".parquet", ".arrow", ".tar") and os.path.basename(file) not in _ALL_METADATA_FILENAMES


def _found_by(patterns: dict[str, list[str]]) -> str:
    tables: tuple[tuple[str, dict], ...] = (
        ("folders", DEFAULT_PATTERNS_SPLIT_IN_DIR_NAME),
        ("files", DEFAULT_PATTERNS_SPLIT_IN_FILENAME),
    )
    for kind, table in tables:
        if any(patterns.get(str(split)) == table[split] for split in table):
            return kind
    return "all" if list(patterns.values()) == [["**"]] else "shards"


def _seen(path: str) -> str:
    """A file as `datasets` knows it: names in lower case, and no short names of tars; zip archives are opened."""
    if is_tar(path):
        return "archive.tar"
    return path if path.endswith(".zip") else os.path.basename(path).lower()


def _module(name: str, listing: Listing, splits: dict[str, list[str]]) -> tuple[str, dict[str, Any]]:
    """The format that `datasets` finds by the endings of the files, in upper or lower case."""
    lists = {}
    for split, files in splits.items():
        others = [file for file in files if not is_image(file)]
        names = [_seen(os.path.join(listing.folder, file)) for file in others]
        # Only whether the images are most matters, and one that is of a format which `datasets` does not list counts.
        num_images = min(len(files) - len(others), len(others) + 1)
        lists[split] = DataFilesList(names + ["image.png"] * num_images, [])
    try:
        module, options = infer_module_for_data_files(DataFilesDict(lists), path=name)
    except zipfile.BadZipFile as error:
        raise UserError(f"`{name}` cannot be read as a zip archive: {error}. Repair it, or take it away.") from error
    except (ValueError, OSError, DatasetsError) as error:
        formats = sorted({format_of(file) or "image" for files in splits.values() for file in files})
        raise UserError(
            f"`{name}` must hold one format of images, got {', '.join(formats)} files that `datasets` cannot read "
            "together. Choose files by `data_files`, such as `**/*.parquet`."
        ) from error
    if module not in MODULES:
        raise UserError(f"`{name}` must hold images, got {module} files. Choose others by `data_files`.")
    return module, dict(options)
