"""The files of a folder that can hold images, with their sizes, and those that are left out, by reason."""

import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from datasets.packaged_modules import _EXTENSION_TO_MODULE

from hf_ssl.data.decode.image_bytes import reason_of
from hf_ssl.data.decode.pictures import IMAGE_SUFFIXES
from hf_ssl.data.sources.tar_bytes import is_tar

TABLES = ("parquet", "arrow", "csv", "json")
"""Modules of `datasets` that read tables."""

# Pictures that cannot be decoded here, unless a package for that makes their ending one of `IMAGE_SUFFIXES`.
_PICTURES = (
    ".avif .heic .heif .heics .heifs .hif .jxl .jp2 .jxr .wdp .hdp .bpg .flif .svg .svgz .eps .ps .wmf .emf .fit "
    ".fits .exr .hdr .dcm .psb .xcf .kra .raw .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .srw .orf .rw2 .raf .pef "
    ".x3f .3fr .iiq .rwl .mrw .dcr .kdc"
)
_OTHER_PICTURES = frozenset(_PICTURES.split())

# Files of other modules, such as texts and sounds, hold no images: beside images they must not decide the format.
_DATA_SUFFIXES = frozenset(
    [suffix for suffix, (module, _) in _EXTENSION_TO_MODULE.items() if module in (*TABLES, "webdataset")] + [".zip"]
)
_IGNORED = (
    "README.md",
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dummy_data.zip",
    "dataset_dict.json",
)


@dataclass(frozen=True)
class Listing:
    """What lies in a folder, hidden files aside.

    Args:
        folder: Absolute path of the folder.
        sizes: Image and data file, relative to the folder -> its bytes; sorted by name.
        unreadable: Data files and folders that cannot be read, counted by reason.
        unsupported: Pictures of formats that cannot be decoded here, counted by reason, such as `format not
            supported: .heic`.
    """

    folder: str
    sizes: dict[str, int]
    unreadable: dict[str, int]
    unsupported: dict[str, int]


def suffix_of(name: str) -> str:
    """The last ending of a file's name, in lower case, such as `.png`."""
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Whether a file counts as an image by its name."""
    return suffix_of(name) in IMAGE_SUFFIXES


def is_utf8(path: str) -> bool:
    """Whether a path as Python gives it has a name that Arrow tables can hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def list_folder(folder: Path) -> Listing:
    """List a folder and all folders below it, through links, each folder once."""
    base = str(folder.resolve())
    sizes: dict[str, int] = {}
    unreadable, unsupported = Counter[str](), Counter[str]()
    visited: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        place = waiting.pop()
        try:
            about = os.stat(os.path.join(base, place))
            if (about.st_dev, about.st_ino) in visited:
                continue
            visited.add((about.st_dev, about.st_ino))
            with os.scandir(os.path.join(base, place)) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            unreadable[reason_of(error)] += 1
            continue
        folders = []
        for entry in found:
            name = f"{place}/{entry.name}" if place else entry.name
            try:
                if entry.is_dir():
                    if not entry.name.startswith((".", "__")):  # as `datasets` leaves them out
                        folders.append(name)
                    continue
                if not _is_data(entry.name):
                    suffix = suffix_of(entry.name)
                    if suffix in _OTHER_PICTURES and not entry.name.startswith("."):
                        unsupported[f"format not supported: {suffix}"] += 1
                    continue
                about = entry.stat()
            except OSError as error:
                if _is_data(entry.name):
                    unreadable[reason_of(error)] += 1
                continue
            if not stat.S_ISREG(about.st_mode):
                unreadable["not a regular file"] += 1
            elif not is_utf8(name):
                unreadable["name is not UTF-8"] += 1
            else:
                sizes[name] = about.st_size
        waiting += reversed(folders)
    return Listing(base, dict(sorted(sizes.items())), dict(unreadable), dict(unsupported))


def _is_data(name: str) -> bool:
    if name.startswith(".") or name in _IGNORED:
        return False
    if is_image(name) or is_tar(name):
        return True
    # An archive may be compressed: `images.tar.gz`.
    return suffix_of(name) not in _OTHER_PICTURES and any(f".{part}" in _DATA_SUFFIXES for part in _endings(name))


def _endings(name: str) -> list[str]:
    return name.lower().split(".")[1:]
