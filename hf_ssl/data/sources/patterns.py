"""Glob patterns of `datasets` on a list of files, and the formats of files."""

import glob
import os
import re
from functools import lru_cache

import datasets
from datasets.data_files import resolve_pattern
from datasets.packaged_modules import _ALL_METADATA_FILENAMES, _EXTENSION_TO_MODULE
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from fsspec.utils import glob_translate

from hf_ssl.data.sources.listing import Listing, is_image, suffix_of
from hf_ssl.data.sources.tar_bytes import is_tar
from hf_ssl.errors import UserError

MODULES: dict[str, type[datasets.DatasetBuilder]] = {
    "imagefolder": ImageFolder,
    "webdataset": WebDataset,
    "parquet": Parquet,
    "arrow": Arrow,
    "csv": Csv,
    "json": Json,
}
"""Formats of `datasets` that can hold images, and their builders."""


class Match:
    """Patterns of `datasets` on a list of files."""

    def __init__(self, files: list[str]):
        self._files = files
        self._found = lru_cache(maxsize=None)(self._find)

    def __call__(self, pattern: str) -> list[str]:
        """Files that match a pattern, in their order."""
        return self._found(pattern)

    def _find(self, pattern: str) -> list[str]:
        matches = re.compile(glob_translate(pattern)).match
        # Most patterns hold a word: looking for it costs less than the pattern.
        word = max(re.findall(r"\w+", re.sub(r"\[[^]]*\]", "*", pattern)), key=len, default="")
        return [file for file in self._files if word in file and matches(file)]

    def files_of(self, pattern: str, listing: Listing, name: str, *, required: bool) -> list[str]:
        """Files of one pattern, which may be a file, a folder, a glob pattern or a place outside the folder.

        Raises:
            UserError: If it is required and matches nothing.
        """
        inner = os.path.normpath(pattern) if not pattern.endswith("**") else pattern.removeprefix("./")
        if pattern in listing.sizes or inner in listing.sizes:
            return [pattern if pattern in listing.sizes else inner]
        if os.path.isabs(pattern) or pattern.startswith("..") or "://" in pattern:
            found = self._outside(pattern, listing)
        else:
            try:
                found = self(inner)
            except (ValueError, re.error):
                raise UserError(f"`data_files` must hold glob patterns such as `train/**`, got `{pattern}`.") from None
            if not found and not glob.has_magic(pattern):
                found = [file for file in self._files if file.startswith(f"{inner}/")]
        if not found and required:
            raise UserError(
                f"`data_files` `{pattern}` matches no image or data file in `{name}`. Patterns are relative to it, "
                "such as `train/**` or `*.parquet`."
            )
        return found

    @staticmethod
    def _outside(pattern: str, listing: Listing) -> list[str]:
        if "://" in pattern:
            raise UserError(
                f"`data_files` of a folder must lie on this machine, got `{pattern}`. Give the address as `dataset`."
            )
        try:
            own = os.path.isfile(os.path.join(listing.folder, pattern))
            path = os.path.abspath(os.path.join(listing.folder, pattern))
            found = [path] if own else resolve_pattern(pattern, glob.escape(listing.folder))
        except (OSError, ValueError):
            return []
        inside = listing.folder.rstrip("/") + "/"
        return [file.removeprefix(inside) for file in found if is_image(file) or format_of(file)]


def format_of(file: str) -> str | None:
    """The module of `datasets` that reads a file which is no image, by its endings; `zip` for an archive."""
    if is_tar(file):
        return "webdataset"
    formats = [_EXTENSION_TO_MODULE.get(f".{ending}", ("", {}))[0] for ending in file.lower().split(".")[1:]]
    return next((one for one in formats if one in MODULES), "zip" if suffix_of(file) == ".zip" else None)


def is_of(file: str, module: str) -> bool:
    """Whether a file is read by a module."""
    base = os.path.basename(file)
    if is_image(file) or (module == "imagefolder" and base in _ALL_METADATA_FILENAMES):
        return module == "imagefolder"
    found = format_of(file)
    return found == module or found == "zip"
